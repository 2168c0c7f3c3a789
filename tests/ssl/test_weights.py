"""Weights and their card: the round trip, plain timm, and what gets an error."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file

from headcam.errors import InputError
from headcam.files import sha256_file
from headcam.ssl.vit import VisionTransformer
from headcam.ssl.weights import build_encoder, load_encoder, save_weights


def encoder(**changes) -> VisionTransformer:
    torch.manual_seed(0)
    arguments = dict(img_size=(32, 48), patch_size=8, embed_dim=32, depth=2, num_heads=4)
    return VisionTransformer(**(arguments | changes))


def card_of(model: VisionTransformer) -> dict:
    return {
        "contract": "card",
        "version": 1,
        "architecture": {"class": "VisionTransformer", "arguments": model.arguments},
    }


@pytest.fixture
def saved(tmp_path):
    model = encoder()
    return model, save_weights(tmp_path, model, card_of(model))


def test_card_and_weights_alone_rebuild_the_encoder(saved, tmp_path):
    model, path = saved
    for source in (tmp_path, path, str(path)):
        again, card = load_encoder(source)
        assert not again.training and card["weights_hash"] == sha256_file(path)
        assert again.img_size == (32, 48)
        assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))


def test_weights_beside_the_card_of_others_are_refused(saved, tmp_path):
    """As a kill between the writing of the two would leave them."""
    other = save_weights(tmp_path / "other", encoder().requires_grad_(False), card_of(saved[0]))
    shifted = encoder()
    shifted.cls_token.data += 1
    later = save_weights(tmp_path / "later", shifted, card_of(shifted))
    other.write_bytes(later.read_bytes())
    with pytest.raises(InputError, match=r"card.json belongs to other weights than .*last.ckpt"):
        load_encoder(other)


def test_the_weights_load_into_plain_timm(saved):
    _, path = saved
    plain = timm.models.VisionTransformer(
        img_size=(32, 48), patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=0
    )
    plain.load_state_dict(load_file(path))  # strict


def test_equal_weights_give_equal_bytes(tmp_path, saved):
    model, path = saved
    other = save_weights(tmp_path / "again", model, card_of(model))
    assert sha256_file(other) == sha256_file(path)


def test_random_weights_follow_from_the_seed_alone_and_touch_no_global_state():
    card = card_of(encoder())
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a = build_encoder(card, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    b, c = build_encoder(card, seed=3), build_encoder(card, seed=4)
    assert torch.equal(a.blocks[0].mlp.fc1.weight, b.blocks[0].mlp.fc1.weight)
    assert not torch.equal(a.blocks[0].mlp.fc1.weight, c.blocks[0].mlp.fc1.weight)


def edit_card(path, **changes) -> None:
    card = path.with_name("card.json")
    card.write_text(json.dumps(json.loads(card.read_text()) | changes))


@pytest.mark.parametrize(
    "damage, telling",
    [
        (lambda p: p.unlink(), r"weights\.safetensors does not exist"),
        (lambda p: p.with_name("card.json").unlink(), r"card\.json is missing"),
        (lambda p: p.with_name("card.json").write_text("{"), r"card\.json is damaged"),
        (lambda p: p.with_name("card.json").write_text("[]"), r"card\.json holds no card"),
        (lambda p: p.write_bytes(p.read_bytes()[:500]), r"weights\.safetensors or its card\.json is damaged"),
        (lambda p: edit_card(p, version=99), r"card of version 99, not a card of version 1"),
        (lambda p: edit_card(p, architecture=card_of(encoder(depth=3))["architecture"]), r"12 keys differ.*absent in"),
        (
            lambda p: edit_card(p, architecture=card_of(encoder(embed_dim=64))["architecture"]),
            r"keys differ, first cls_token: \(1, 1, 32\) in the file, \(1, 1, 64\) in the model",
        ),
        (lambda p: edit_card(p, architecture={"class": "Swin", "arguments": {}}), r"Swin .*one of VisionTransformer"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(saved, damage, telling):
    _, path = saved
    damage(path)
    with pytest.raises(InputError, match=telling) as error:
        load_encoder(path)
    assert "\n" not in str(error.value)
