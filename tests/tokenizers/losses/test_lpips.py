"""LPIPS: the published distances, where their weights are at hand; on made-up weights, the method and the files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from headcam.errors import InputError
from headcam.files import sha256_file
from headcam.tokenizers.losses.lpips import LPIPS, load_perceptual, perceptual_trunk

WEIGHTS = Path(__file__).resolve().parents[4] / "shared" / "data" / "weights"


@pytest.fixture(scope="module")
def made_up() -> LPIPS:
    """AlexNet's with small weights that are drawn; channel weights are not negative, as published ones."""
    generator, model = torch.Generator().manual_seed(0), LPIPS("alexnet")
    for name, value in model.state_dict().items():
        if name not in ("shift", "scale"):
            fan = value[0].numel() if value.ndim == 4 else 1
            value.normal_(std=(2 / fan) ** 0.5, generator=generator)
            value.abs_() if name.startswith("lin") else None
    return model


@pytest.mark.shared
@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="../shared/data/weights is absent")
def test_the_published_distances_come_out():
    """Reference values computed by a plain statement of the method, gradients included; its README says how."""
    model = load_perceptual(WEIGHTS / "lpips_alexnet.safetensors")
    pictures = np.load(WEIGHTS / "lpips_reference_pairs.npz")
    for pair in json.loads((WEIGHTS / "lpips_reference.json").read_text())["pairs"]:
        a, b = (
            torch.from_numpy(pictures[f"{which}{pair['pair']}"]).permute(2, 0, 1)[None] / 127.5 - 1 for which in "ab"
        )
        b.requires_grad_()
        distance = model(a, b)
        distance.sum().backward()
        assert distance.item() == pytest.approx(pair["lpips"], abs=1e-4)
        assert model(b, a).item() == pytest.approx(pair["lpips_swapped"], abs=1e-4) and model(a, a).item() == 0
        assert b.grad.norm().item() == pytest.approx(pair["grad_b_l2"], abs=1e-4)
    for k in range(5):
        getattr(model, f"lin{k}").weight.fill_(1.0)  # as `load_perceptual` weights a trunk of torchvision
    assert model(a, b).item() == pytest.approx(pair["unweighted_sum"], abs=1e-3)


def test_the_method_step_by_step(made_up):
    """Zhang et al. 2018, section 3: taps at unit length over channels, squared, weighted, averaged, added up."""
    generator = torch.Generator().manual_seed(1)
    pictures = [torch.rand(2, 3, 40, 47, generator=generator) * 2 - 1 for _ in range(2)]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = torch.zeros(2)
    for n in range(2):
        a, b = (((p[n] + 1) / 2 - mean[:, None, None]) / std[:, None, None] for p in pictures)
        tap = 0
        for layer in made_up.features:
            a, b = layer(a[None])[0], layer(b[None])[0]
            if isinstance(layer, torch.nn.ReLU):
                weights = getattr(made_up, f"lin{tap}").weight.flatten()
                for y in range(a.shape[1]):
                    for x in range(a.shape[2]):
                        one, other = (v[:, y, x] / (v[:, y, x].norm() + 1e-10) for v in (a, b))
                        expected[n] += (weights * (one - other) ** 2).sum() / (a.shape[1] * a.shape[2])
                tap += 1
    assert tap == 5
    assert torch.allclose(made_up(*pictures), expected, rtol=1e-4)


def test_pictures_without_features_have_a_finite_gradient(made_up):
    for name in ("features.0.bias", "features.3.bias"):
        made_up.state_dict()[name].fill_(-100.0)  # nothing gets past the ReLU
    a, b = torch.zeros(1, 3, 40, 40, requires_grad=True), torch.rand(1, 3, 40, 40)
    made_up(a, b).sum().backward()
    assert a.grad.isfinite().all()


def test_it_is_a_measure_not_a_part_that_is_trained(made_up):
    torch.nn.Sequential(made_up).train()
    assert not made_up.training and not any(p.requires_grad for p in made_up.parameters())


@pytest.mark.parametrize("trunk", ["alexnet", "vgg16"])
def test_trunks_are_torchvision_s(trunk):
    with torch.device("meta"):
        ours, theirs = LPIPS(trunk).features, getattr(torchvision.models, trunk)(weights=None).features
    assert [str(layer) for layer in ours] == [str(layer) for layer in theirs][: len(ours)]
    assert [str(layer)[:7] for layer in theirs[len(ours) :]] == ["MaxPool"]


def test_without_memory(made_up):
    with torch.device("meta"):
        for trunk in ("alexnet", "vgg16"):
            images = torch.zeros(2, 3, 64, 64, requires_grad=True)
            distance = LPIPS(trunk)(images, images)
            assert distance.is_meta and distance.shape == (2,) and torch.autograd.grad(distance.sum(), images)


def test_weights_from_files(made_up, tmp_path):
    state = {k: v.clone().contiguous() for k, v in made_up.state_dict().items()}
    images = torch.rand(1, 3, 40, 40), torch.rand(1, 3, 40, 40)
    save_file(state, tmp_path / "own.safetensors")
    torch.save(state, tmp_path / "own.pt")
    for name in ("own.safetensors", "own.pt"):
        loaded = load_perceptual(str(tmp_path / name))
        assert torch.equal(loaded(*images), made_up(*images))
        assert loaded.source == f"LPIPS (AlexNet) of {name}, SHA-256 {sha256_file(tmp_path / name)[:16]}"
        assert perceptual_trunk(tmp_path / name) == "alexnet"


def test_weights_from_a_checkpoint_of_taming_transformers(tmp_path):
    """The 33 keys that those carry along for VGG-16, documented by the layouts of the published checkpoints."""
    model = LPIPS("vgg16")
    for parameter in model.parameters():
        parameter.uniform_(0, 0.01)
    slices = {1: (0, 2), 2: (5, 7), 3: (10, 12, 14), 4: (17, 19, 21), 5: (24, 26, 28)}
    own, theirs = model.state_dict(), {}
    for number, layers in slices.items():
        for layer in layers:
            for what in ("weight", "bias"):
                theirs[f"net.slice{number}.{layer}.{what}"] = own[f"features.{layer}.{what}"]
    theirs |= {f"lin{k}.model.1.weight": own[f"lin{k}.weight"] for k in range(5)}
    theirs |= {f"scaling_layer.{name}": own[name].view(1, 3, 1, 1) for name in ("shift", "scale")}
    assert len(theirs) == 33
    state = {f"loss.perceptual_loss.{key}": value for key, value in theirs.items()}
    torch.save({"state_dict": state | {"encoder.conv_in.bias": torch.zeros(3)}}, tmp_path / "vqgan.ckpt")
    loaded = load_perceptual(tmp_path / "vqgan.ckpt")
    assert loaded.trunk == "vgg16" and all(torch.equal(v, own[k]) for k, v in loaded.state_dict().items())


@pytest.mark.parametrize("name, content, telling", [
    ("nowhere.pt", None, "does not exist"),
    ("torn.safetensors", b"abc", "holds no LPIPS weights"),
    ("torn.pt", b"abc", "holds no LPIPS weights"),
    ("other.safetensors", {"weight": torch.zeros(3)}, "no trunk of AlexNet or VGG-16"),
    ("half.safetensors", {"features.10.weight": torch.zeros(256, 256, 3, 3)}, "Missing key"),
])  # fmt: skip
def test_other_files_are_refused_by_one_line(name, content, telling, tmp_path):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        save_file(content, path)
    with pytest.raises(InputError, match=telling) as found:
        load_perceptual(path)
    assert name in str(found.value) and "\n" not in str(found.value)


def test_no_such_trunk_no_network_and_pictures_too_small(made_up, monkeypatch):
    with pytest.raises(InputError, match="torchvision:resnet names no trunk"):
        load_perceptual("torchvision:resnet")
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: (_ for _ in ()).throw(OSError("no route")))
    monkeypatch.setenv("TORCH_HOME", "/nonexistent/for/this/test")
    with pytest.raises(InputError, match="could not fetch alexnet"):
        load_perceptual("torchvision:alexnet")
    with pytest.raises(InputError, match="16 x 16 are too small for AlexNet"):
        made_up(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))
