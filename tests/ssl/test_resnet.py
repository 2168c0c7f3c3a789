"""The ResNet trunks against torchvision's, and what the encoder interface promises."""

import pytest
import torch
import torchvision

from headcam.errors import InputError
from headcam.ssl.resnet import TRUNKS, ResNet

# original_ssl, section 1.13, less torchvision's 1000-way classifier of 2,049,000; ResNet-50: torchvision's own count.
PARAMETERS = {"resnext50_32x4d": 22_979_904, "resnext101_32x8d": 86_742_336, "resnet50": 23_508_032}


@pytest.mark.parametrize("name", TRUNKS)
def test_names_shapes_and_counts_are_those_of_torchvision(name):
    with torch.device("meta"):
        ours, theirs = ResNet(name), getattr(torchvision.models, name)(weights=None)
    shapes = {k: v.shape for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    assert {k: v.shape for k, v in ours.state_dict().items()} == shapes
    assert sum(p.numel() for p in ours.parameters()) == PARAMETERS[name]


def test_the_mean_of_the_tokens_is_what_torchvision_pools():
    torch.manual_seed(0)
    ours, theirs = (
        ResNet("resnext50_32x4d", img_size=64).eval(),
        torchvision.models.resnext50_32x4d(weights=None).eval(),
    )
    theirs.fc = torch.nn.Identity()
    theirs.load_state_dict(ours.state_dict())  # strict
    with torch.no_grad():
        for size, places in (((64, 64), 4), ((70, 33), 6)):  # its own size and another
            images = torch.randn(2, 3, *size)
            tokens = ours.forward_features(images)
            assert tokens.shape == (2, places, ours.embed_dim)
            torch.testing.assert_close(tokens.mean(1), theirs(images), rtol=1e-5, atol=1e-5)


def test_its_arguments_rebuild_it():
    with torch.device("meta"):
        first = ResNet("resnet50", img_size=(64, 96))
        arguments = first.arguments
        again = ResNet(**{**arguments, "img_size": tuple(arguments["img_size"])})
    assert again.img_size == (64, 96) and again.arguments == arguments and first.num_prefix_tokens == 0
    assert [p.shape for p in again.parameters()] == [p.shape for p in first.parameters()]


def test_checkpointing_changes_no_number_not_even_a_running_statistic():
    torch.manual_seed(0)
    plain, thrifty = ResNet("resnet50", img_size=32), ResNet("resnet50", img_size=32)
    thrifty.load_state_dict(plain.state_dict())
    thrifty.checkpointing = True
    images = torch.randn(2, 3, 32, 32)
    for model in (plain, thrifty):
        model.train()
        for _ in range(2):
            model(images).square().mean().backward()
    for a, b in zip(plain.parameters(), thrifty.parameters()):
        assert torch.equal(a.grad, b.grad)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, thrifty.state_dict()[key]), key
    assert plain.bn1.num_batches_tracked == 2


@pytest.mark.parametrize(
    "arguments, telling",
    [({"name": "resnet51"}, r"no trunk 'resnet51'.*resnet50, resnext50_32x4d"), ({"img_size": 0}, r"img_size is 0")],
)
def test_what_cannot_be_built_is_refused_with_the_fix(arguments, telling):
    with pytest.raises(InputError, match=telling), torch.device("meta"):
        ResNet(**arguments)
