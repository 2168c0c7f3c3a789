"""A fitted head in a file: the same scores again, and nobody takes it for another's."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from headcam.errors import InputError
from headcam.evaluation.heads.linear import linear_probe
from headcam.evaluation.heads.linear_head import LinearHead
from headcam.evaluation.labelled.sets import selection_mask
from headcam.evaluation.protocols import LinearProbe

CLASSES = ("cup", "table", "tree")
PROTOCOLS = [
    LinearProbe(epochs=2, base_lr_per_256=(0.1,)),
    LinearProbe(epochs=2, base_lr_per_256=(0.1,), normalisation="whitening"),
]


@pytest.fixture(params=PROTOCOLS, ids=lambda p: p.normalisation)
def fitted(request):
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    train, test = rng.normal(size=(90, 5)) + labels[:, None], rng.normal(size=(40, 5)).astype(np.float16)
    found = linear_probe(train, labels, selection_mask(labels), test, 3, request.param, seed=0, quiet=True)
    return request.param, found, test


def test_the_head_that_is_read_again_gives_the_scores_of_the_probe(fitted, tmp_path):
    protocol, found, test = fitted
    assert torch.allclose(found.head.logits(test), found.logits, atol=1e-5)
    found.head.save(tmp_path / "head.safetensors", protocol, CLASSES)
    head, classes = LinearHead.load(tmp_path / "head.safetensors", protocol)
    assert classes == CLASSES
    assert torch.equal(head.logits(test), found.head.logits(torch.from_numpy(test)))


def test_a_head_of_another_protocol_is_refused(fitted, tmp_path):
    protocol, found, _ = fitted
    found.head.save(tmp_path / "head.safetensors", protocol, CLASSES)
    for other in (dataclasses.replace(protocol, epochs=3), dataclasses.replace(protocol, version=3)):
        with pytest.raises(InputError, match=rf"fitted by protocol linear-v2 .*linear-v{other.version} .* is wanted"):
            LinearHead.load(tmp_path / "head.safetensors", other)


def test_other_files_are_refused(fitted, tmp_path):
    protocol, found, _ = fitted
    path = tmp_path / "head.safetensors"
    with pytest.raises(InputError, match=r"head\.safetensors cannot be read"):
        LinearHead.load(path, protocol)
    path.write_bytes(b"no head")
    with pytest.raises(InputError, match=r"head\.safetensors cannot be read"):
        LinearHead.load(path, protocol)
    found.head.save(path, protocol, CLASSES)
    save_file(load_file(path), path, {"contract": "linear-head/0"})
    with pytest.raises(InputError, match=r"no linear head of contract linear-head/1, but linear-head/0"):
        LinearHead.load(path, protocol)
