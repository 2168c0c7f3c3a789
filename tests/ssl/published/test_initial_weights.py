"""Starting from other weights: what is copied, the three bridges, the record, and what does not fit."""

import pytest
import torch
from torch import nn

from headcam.errors import InputError
from headcam.ssl import zoo
from headcam.ssl.inflation import deflate, inflate
from headcam.ssl.mae import MAE
from headcam.ssl.published.initial_weights import initialize
from headcam.ssl.resnet import ResNet
from headcam.ssl.vit import VisionTransformer
from headcam.ssl.weights import build_encoder, save_weights

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
CLIPS = {"num_frames": 4, "tubelet_size": 2, "positions": "separable"}


def vit(seed: int, **changes) -> VisionTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VisionTransformer(**{**SMALL, **changes})
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return model


class Network(nn.Module):
    """As an objective's: an encoder, something beside it, and perhaps a student."""

    def __init__(self, encoder: nn.Module, student: nn.Module | None = None):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(3, 3)
        if student is not None:
            self.student_encoder = student


def card_of(model: nn.Module, name: str = "theirs") -> dict:
    return {
        "contract": "card",
        "version": 1,
        "name": name,
        "architecture": {"class": type(model).__name__, "arguments": model.arguments},
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
    }


def saved(folder, model: nn.Module) -> str:
    save_weights(folder, model, card_of(model))
    return str(folder)


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def test_equal_architectures_are_copied_into_encoder_and_student_and_nothing_else(tmp_path):
    theirs, network = vit(1), Network(vit(2), vit(3, drop_path_rate=0.1))
    before = network.head.weight.clone()
    record = initialize(network, saved(tmp_path, theirs))
    assert same_weights(network.encoder, theirs) and same_weights(network.student_encoder, theirs)
    assert torch.equal(network.head.weight, before)
    assert record.pop("hash") and record == {
        "source": str(tmp_path),
        "name": "theirs",
        "steps": ["copied"],
        "into": ["encoder", "student_encoder"],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
    }
    network.encoder.cls_token.data += 1
    assert not same_weights(network.encoder, network.student_encoder)  # no memory is shared


def test_a_published_name_and_a_published_file_are_taken_too(tmp_path, monkeypatch):
    theirs = vit(1, embed_dim=192, num_heads=3)  # a width whose heads are known
    path = tmp_path / "published.pth"
    torch.save({"model": theirs.state_dict()}, path)
    network = Network(vit(2, embed_dim=192, num_heads=3))
    record = initialize(network, str(path))
    assert same_weights(network.encoder, theirs) and record["name"] == "published"

    asked = []
    monkeypatch.setattr(
        zoo, "load", lambda name: asked.append(name) or (theirs, {**card_of(theirs), "weights_hash": "h"})
    )
    network = Network(vit(2, embed_dim=192, num_heads=3))
    assert initialize(network, "zoo:vits14_1.0_1")["hash"] == "h" and asked == ["vits14_1.0_1"]
    assert same_weights(network.encoder, theirs)


def test_an_image_model_is_inflated_for_clips(tmp_path):
    theirs, network = vit(1), Network(vit(2, **CLIPS))
    record = initialize(network, saved(tmp_path, theirs))
    assert same_weights(network.encoder, inflate(theirs, 4, 2))
    assert record["steps"] == ["inflated to 4 frames in tubes of 2", "copied"]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = deflate(network.encoder).forward_features(images)
        torch.testing.assert_close(features, theirs.forward_features(images))


def test_a_clip_model_is_deflated_for_images(tmp_path):
    theirs, network = vit(1, **CLIPS), Network(vit(2, positions="learned"))
    record = initialize(network, saved(tmp_path, theirs))
    assert same_weights(network.encoder, deflate(theirs))
    assert record["steps"] == ["deflated from 4 frames, mean of the time positions", "copied"]


@pytest.mark.parametrize("positions", ["learned", "separable", "sincos"])
def test_another_resolution_shows_the_same_field_of_view(positions, tmp_path):
    kind = {**CLIPS} if positions == "separable" else {"positions": positions}
    theirs, network = vit(1, **kind), Network(vit(2, img_size=64, **kind))
    record = initialize(network, saved(tmp_path, theirs))
    assert record["steps"] == ["positions resampled from 32 x 32 to 64 x 64 pixels", "copied"]
    ours = network.encoder
    assert torch.equal(ours.blocks[1].mlp.fc1.weight, theirs.blocks[1].mlp.fc1.weight)
    torch.testing.assert_close(ours.position_table(), theirs.position_table((8, 8)))
    if positions == "sincos":  # which is not what a new model of that size has
        assert (ours.position_table() - vit(2, img_size=64).position_table()).abs().max() > 0.5


def test_a_moved_fixed_table_remembers_its_units_in_the_card(tmp_path):
    theirs, network = vit(1), Network(vit(2, img_size=64))
    initialize(network, saved(tmp_path / "theirs", theirs))
    ours = network.encoder
    assert ours.arguments["position_field"] == [4, 4]
    again = build_encoder({"architecture": {"class": "VisionTransformer", "arguments": ours.arguments}}, seed=0)
    assert torch.equal(again.pos_embed, ours.pos_embed)
    torch.testing.assert_close(ours.position_table((4, 4)), theirs.pos_embed)


def test_image_weights_of_another_size_start_a_clip_model_with_both_bridges(tmp_path):
    network = Network(vit(2, img_size=64, **CLIPS))
    record = initialize(network, saved(tmp_path, vit(1)))
    assert [step.split()[0] for step in record["steps"]] == ["positions", "inflated", "copied"]


def test_a_fixed_table_may_start_learned_positions_but_not_the_reverse(tmp_path):
    theirs, network = vit(1), Network(vit(2, positions="learned"))
    record = initialize(network, saved(tmp_path / "a", theirs))
    assert record["steps"][0] == "sin-cos positions taken as the start of learned ones"
    assert torch.equal(network.encoder.pos_embed, theirs.pos_embed) and network.encoder.pos_embed.requires_grad
    with pytest.raises(InputError, match="its kind of positions is learned, here it is sincos"):
        initialize(Network(vit(2)), saved(tmp_path / "b", vit(1, positions="learned")))


@pytest.mark.parametrize(
    "theirs, ours, telling",
    [
        ({"depth": 3}, {}, "its depth is 3, here it is 2"),
        ({"embed_dim": 64}, {}, "its embed_dim is 64, here it is 32"),
        ({"num_heads": 8}, {}, "its num_heads is 8, here it is 4"),
        ({"patch_size": 4}, {}, "its patch_size is 4, here it is 8"),
        ({"mlp_ratio": 2.0}, {}, r"its mlp_ratio is 2\.0, here it is 4\.0"),
        ({**CLIPS, "num_frames": 8}, CLIPS, "its num_frames is 8, here it is 4"),
        ({**CLIPS, "tubelet_size": 4}, CLIPS, "its tubelet_size is 4, here it is 2"),
    ],
)
def test_any_other_difference_is_named(theirs, ours, telling, tmp_path):
    network = Network(vit(2, **ours))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(InputError, match=f"does not fit the model to be trained: {telling}"):
        initialize(network, saved(tmp_path, vit(1, **theirs)))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_trunks_are_copied_and_kept_apart_from_transformers(tmp_path):
    theirs = ResNet("resnext50_32x4d", 64)
    path = tmp_path / "trunk.pth"
    torch.save(theirs.state_dict(), path)
    network = Network(ResNet("resnext50_32x4d", 32))
    assert initialize(network, str(path))["steps"] == ["copied"] and same_weights(network.encoder, theirs)
    with pytest.raises(InputError, match="its architecture is ResNet, here it is VisionTransformer"):
        initialize(Network(vit(2)), str(path))
    with pytest.raises(InputError, match="its trunk is resnext50_32x4d, here it is resnet50"):
        initialize(Network(ResNet("resnet50", 32)), str(path))


def test_a_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"mae_say_vits16 to start from does not exist\. Fix: .* zoo:NAME"):
        initialize(Network(vit(1)), "mae_say_vits16")
    with pytest.raises(InputError, match="did you mean zoo:silicon-menagerie/mae_say_vits16"):
        initialize(Network(vit(1)), "silicon-menagerie/mae_say_vits16")
    with pytest.raises(InputError, match="'mae_say_vits1' is neither a published model"):
        initialize(Network(vit(1)), "zoo:mae_say_vits1")


def test_an_objective_starts_from_them_and_its_card_says_so(tmp_path):
    theirs = vit(1)
    objective = MAE(**SMALL, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)
    objective.initial_weights = saved(tmp_path, theirs)
    objective.configure_model()
    assert same_weights(objective.encoder, theirs)
    assert objective.card()["init"]["name"] == "theirs"
