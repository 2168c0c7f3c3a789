"""From images to clips, back, and to other resolutions: what the module's header calls exact, and what it does not."""

import pytest
import torch

from headcam.errors import InputError
from headcam.ssl.attention import set_attention_backend
from headcam.ssl.inflation import deflate, inflate, resize
from headcam.ssl.masking import patchify
from headcam.ssl.positions import resample
from headcam.ssl.vit import VisionTransformer

SMALL = {"img_size": (16, 24), "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}


def model(**changes) -> VisionTransformer:
    """Trained, as far as a test can tell: no parameter is at its start."""
    torch.manual_seed(0)
    encoder = VisionTransformer(**(SMALL | changes)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def video(num_frames: int = 6, tubelet_size: int = 2) -> VisionTransformer:
    return model(num_frames=num_frames, tubelet_size=tubelet_size, positions="separable")


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def repeated(stills: torch.Tensor, frames: int) -> torch.Tensor:
    return stills.unsqueeze(2).expand(-1, -1, frames, -1, -1)


def assert_close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", ["sincos", "learned"])
@pytest.mark.parametrize("frames, tube", [(4, 1), (4, 2), (16, 4), (6, 3)])
def test_deflating_the_inflated_model_gives_it_back(positions, frames, tube):
    encoder = model(positions=positions)
    again = deflate(inflate(encoder, frames, tube))
    assert again.positions == "learned" and again.arguments == encoder.arguments | {"positions": "learned"}
    for name, value in encoder.state_dict().items():
        exact = 0 if tube != 3 else 1e-7
        torch.testing.assert_close(again.state_dict()[name], value, rtol=exact, atol=exact, msg=name)
    assert_close(again(images()), encoder(images()))


@pytest.mark.parametrize("frames, tube", [(4, 1), (8, 2), (6, 3)])
def test_an_inflated_model_embeds_equal_frames_as_the_image_model_the_still(frames, tube):
    encoder = model()
    clips = inflate(encoder, frames, tube)
    still = encoder.embed_patches(patchify(images(), 8))
    tokens = clips.embed_patches(patchify(repeated(images(), frames), 8, tube))
    assert_close(tokens[:, :1], still[:, :1])
    for slot in tokens[:, 1:].chunk(frames // tube, dim=1):
        assert_close(slot, still[:, 1:])


@pytest.mark.parametrize("tube", [2, 3])
def test_one_slot_of_equal_frames_is_the_deflated_models_still(tube):
    clips = video(tube, tube)
    for slot in (None, 0):
        assert_close(clips(repeated(images(), tube)), deflate(clips, slot)(images()))


def test_with_several_slots_the_features_differ_as_the_header_says():
    encoder = model()
    clips = inflate(encoder, 4, 2)
    assert (clips(repeated(images(), 4))[:, 0] - encoder(images())[:, 0]).abs().max() > 1e-3


def test_the_slot_chooses_the_time_position():
    clips = video()
    for slot in range(3):
        wanted = clips.pos_embed_spatial + clips.pos_embed_temporal[:, slot : slot + 1]
        assert torch.equal(deflate(clips, slot).pos_embed[:, 1:], wanted)
    mean = clips.pos_embed_spatial + clips.pos_embed_temporal.mean(1, keepdim=True)
    assert_close(deflate(clips).pos_embed[:, 1:], mean)
    assert torch.equal(deflate(clips).pos_embed[:, :1], clips.pos_embed_class)


def test_the_inflated_table_holds_the_images_positions_in_every_slot():
    encoder = model(positions="sincos")
    clips = inflate(encoder, 6, 2)
    assert clips.slots == 3 and clips.pos_embed_spatial.requires_grad
    table = clips.position_table()
    assert torch.equal(table[:, :1], encoder.pos_embed[:, :1])
    assert all(torch.equal(part, encoder.pos_embed[:, 1:]) for part in table[:, 1:].chunk(3, dim=1))


def test_new_models_share_nothing_and_draw_nothing():
    encoder = model(drop_path_rate=0.2).double().train()
    encoder.checkpointing = True
    set_attention_backend(encoder, "math")
    state = torch.random.get_rng_state()
    clips = inflate(encoder, 4, 2)
    others = [clips, deflate(clips), resize(encoder, 32), resize(encoder, (16, 24))]
    assert torch.equal(torch.random.get_rng_state(), state)
    before = encoder.blocks[0].mlp.fc1.weight.clone()
    for other in others:
        assert other.training and other.checkpointing and other.drop_path_rates == [0.0, 0.2]
        assert {block.attn.backend for block in other.blocks} == {"math"}
        assert {p.dtype for p in other.parameters()} == {torch.float64}
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
    assert torch.equal(encoder.blocks[0].mlp.fc1.weight, before)


@pytest.mark.parametrize("positions", ["sincos", "learned", "separable"])
def test_a_resized_model_is_the_old_one_at_another_grid(positions):
    encoder = video() if positions == "separable" else model(positions=positions)
    large = resize(encoder, (32, 40))
    assert large.img_size == (32, 40) and large.grid == (4, 5) and large.positions == positions
    assert not large.training
    x = torch.randn(2, 3, *((6,) if positions == "separable" else ()), 32, 40)
    patches = patchify(x, 8, encoder.tubelet_size)
    assert_close(large(x), encoder.forward_patches(patches, grid=(4, 5)))
    same = resize(encoder, (16, 24))
    assert same.arguments == encoder.arguments
    assert all(torch.equal(a, b) for a, b in zip(same.state_dict().values(), encoder.state_dict().values()))


def test_sincos_positions_survive_any_number_of_resolutions():
    """They are evaluated, in the units of the first grid; a card rebuilds them."""
    encoder = model()
    there = resize(resize(encoder, 64), (48, 16))
    assert there.arguments["position_field"] == [2, 3] and not there.pos_embed.requires_grad
    assert torch.equal(there.position_table((2, 3)), encoder.pos_embed)
    rebuilt = VisionTransformer(**there.arguments)
    assert torch.equal(rebuilt.pos_embed, there.pos_embed)
    back = resize(there, (16, 24))
    assert back.arguments == encoder.arguments and torch.equal(back.pos_embed, encoder.pos_embed)


def test_an_inflated_model_of_another_resolution_keeps_its_table_as_values():
    large = resize(model(), (32, 48))
    clips = inflate(large, 4, 2)
    assert torch.equal(clips.pos_embed_spatial, large.pos_embed[:, 1:])
    assert_close(resize(clips, 16).pos_embed_spatial, resample(large.pos_embed[:, 1:], (4, 6), (2, 2)))
    assert "position_field" not in clips.arguments


@pytest.mark.parametrize(
    "call, telling",
    [
        (lambda: inflate(video(), 4, 2), "for 6 frames cannot be inflated.*num_frames 1"),
        (lambda: inflate(model(), 1, 1), "num_frames is 1"),
        (lambda: inflate(model(), 5, 2), "tubelet_size 2 does not divide num_frames 5"),
        (lambda: inflate(model(), 4, 0), "tubelet_size 0 does not divide"),
        (lambda: deflate(model()), "for images cannot be deflated"),
        (lambda: deflate(video(), 3), "time slot 3 is not there.*0 to 2"),
        (lambda: deflate(video(), -1), "time slot -1"),
        (lambda: resize(model(), (16, 20)), "patch_size 8 does not divide the image side 20"),
    ],
)
def test_what_cannot_be_done_is_refused(call, telling):
    with pytest.raises(InputError, match=telling):
        call()
