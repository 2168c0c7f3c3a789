"""Feature networks: the differences between the 2015 Inception and torchvision's, and which files are refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from headcam.errors import InputError
from headcam.ssl.vit import VisionTransformer
from headcam.ssl.weights import save_weights
from headcam.tokenizers.fidelity.features import EncoderFeatures, InceptionFeatures, fid_inception


@pytest.fixture(scope="module")
def inception():
    torch.manual_seed(0)
    network = fid_inception()
    for module in network.modules():  # as trained: running statistics that are no identity
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def test_pooling_of_the_2015_network(inception):
    """Averages leave padding out in all blocks but the last, which takes the maximum (pytorch-fid's notes)."""
    seen = {}
    names = ["Mixed_5b", "Mixed_5d", "Mixed_6b", "Mixed_6e", "Mixed_7b", "Mixed_7c"]
    hooks = []
    for name in names:
        block = getattr(inception, name)
        hooks.append(block.register_forward_pre_hook(lambda m, x, n=name: seen.__setitem__(n, [x[0]])))
        hooks.append(block.register_forward_hook(lambda m, x, y, n=name: seen[n].append(y)))
    with torch.no_grad():
        inception(torch.randn(1, 3, 107, 107))
        for name in names:
            x, y = seen[name]
            padded = F.pad(x, (1, 1, 1, 1), value=float("nan"))
            windows = padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)
            pooled = windows.nan_to_num(-torch.inf).amax(-1) if name == "Mixed_7c" else windows.nanmean(-1)
            branch = getattr(inception, name).branch_pool(pooled)
            assert torch.allclose(y[:, -branch.shape[1] :], branch, atol=1e-5), name
    for hook in hooks:
        hook.remove()


def test_inception_features_from_a_file(inception, tmp_path):
    state = inception.state_dict()
    assert state["fc.weight"].shape == (1008, 2048) and "AuxLogits.conv0.conv.weight" not in state
    torch.save(state, tmp_path / "weights.pth")
    features = InceptionFeatures(tmp_path / "weights.pth")
    assert features.comparable and "Inception-v3 2015" in features.label
    pictures = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8)
    found = features(pictures)
    assert found.shape == (2, 2048) and found.dtype == np.float64
    resized = F.interpolate(pictures / 255, (299, 299), mode="bilinear", align_corners=False)  # as pytorch-fid does
    with torch.no_grad():
        pooled = []
        hook = inception.avgpool.register_forward_hook(lambda m, x, y: pooled.append(y.flatten(1)))
        inception(2 * resized - 1)
        hook.remove()
    assert np.allclose(found, pooled[0], atol=1e-4)


def test_other_weights_are_refused_in_one_line(inception, tmp_path):
    save_file({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.pth").write_bytes(b"not a file of weights")
    for name, message in (
        ("none.pth", "do not exist"),
        ("other.safetensors", "does not hold the Inception-v3 of pytorch-fid"),
        ("broken.pth", "cannot be read as weights"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            InceptionFeatures(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_features_of_an_encoder_of_ours_are_labelled_so(tmp_path):
    arguments = {"img_size": [16, 16], "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
    encoder = VisionTransformer(**arguments).eval()
    card = {"contract": "card", "version": 1, "name": "mine", "objective": "mae", "img_size": [16, 16]}
    card |= {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    card |= {"architecture": {"class": "VisionTransformer", "arguments": arguments}}
    save_weights(tmp_path, encoder, card)
    features = EncoderFeatures(tmp_path)
    assert not features.comparable and features.label == "features of mine, not comparable"
    pictures = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    mean, std = torch.tensor(card["mean"]).view(3, 1, 1), torch.tensor(card["std"]).view(3, 1, 1)
    with torch.no_grad():
        tokens = encoder.forward_features((pictures / 255 - mean) / std)[:, 1:]
    assert np.allclose(features(pictures), tokens.mean(1), atol=1e-5)
