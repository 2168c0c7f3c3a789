"""One probe a layer, from a table that has the layers side by side."""

import numpy as np
import torch

from headcam.evaluation.heads.layers import probe_layers
from headcam.evaluation.heads.linear import in_top, linear_probe
from headcam.evaluation.labelled.sets import selection_mask
from headcam.evaluation.protocols import LinearProbe

PROTOCOL = LinearProbe(epochs=5, base_lr_per_256=(0.1, 1.0), layers="all")


def test_each_layer_is_probed_as_if_it_were_alone(tmp_path):
    """Three layers, and the second alone knows the classes."""
    labels = np.arange(400) % 4
    rng = np.random.default_rng(0)
    table = rng.normal(size=(2, 400, 15)).astype(np.float16)
    table[:, :, 5:9] += 3 * np.eye(4, dtype=np.float16)[labels]
    np.save(tmp_path / "layers.npy", table)
    train, test = np.load(tmp_path / "layers.npy", mmap_mode="r")
    aside = selection_mask(labels)
    found = dict(probe_layers(train, labels, aside, test, 4, PROTOCOL, num_layers=3, seed=0, quiet=True))
    assert list(found) == [1, 2, 3]
    truth = torch.from_numpy(labels)
    top1 = [in_top(found[layer].logits, truth, 1).double().mean().item() for layer in found]
    assert top1[1] > 0.9 and max(top1[0], top1[2]) < 0.35
    for layer, result in found.items():
        columns = slice(5 * layer - 5, 5 * layer)
        alone = linear_probe(train[:, columns], labels, aside, test[:, columns], 4, PROTOCOL, seed=0, quiet=True)
        assert torch.equal(result.logits, alone.logits)
