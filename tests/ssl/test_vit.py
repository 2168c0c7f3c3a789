"""The Vision Transformer: encoding a part of the patches, any grid, clips and stills, packing, stochastic depth,
checkpointing, precision, initialisation, refusals."""

import math

import pytest
import timm
import torch

from headcam.errors import InputError
from headcam.ssl.attention import Attention
from headcam.ssl.masking import patchify
from headcam.ssl.positions import sincos_2d
from headcam.ssl.vit import Block, VisionTransformer, patch_grid, time_slots


@pytest.fixture(scope="module")
def model() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer((32, 48), 8, embed_dim=32, depth=3, num_heads=4).eval()


def test_all_patches_named_in_order_are_the_whole_image(model):
    images = torch.randn(2, 3, 32, 48)
    patches = patchify(images, 8)
    everything = torch.arange(24).expand(2, -1)
    torch.testing.assert_close(model.forward_patches(patches, everything), model(images))


def test_the_order_of_visible_patches_does_not_matter(model):
    """Positions go by index, and attention is a set operation."""
    patches = torch.randn(2, 24, 192)
    ids = torch.stack([torch.randperm(24)[:6] for _ in range(2)])
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    a, b = model.forward_patches(patches, ids), model.forward_patches(patches, ids[:, order])
    torch.testing.assert_close(a[:, 0], b[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a[:, 1:][:, order], b[:, 1:], rtol=1e-4, atol=1e-5)


def test_attention_is_the_published_formula():
    torch.manual_seed(0)
    layer, x = Attention(12, 3).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = (x @ w.T + b for w, b in zip(layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3)))
    heads = []
    for h in range(3):
        part = slice(4 * h, 4 * h + 4)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(4)
        heads.append(torch.softmax(scores, dim=-1) @ v[..., part])
    wanted = torch.cat(heads, dim=-1) @ layer.proj.weight.T + layer.proj.bias
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("queries", [1, 3, 5])
def test_the_last_tokens_alone_are_those_of_the_whole_block(queries):
    torch.manual_seed(0)
    block, x = Block(16, 4).double(), torch.randn(2, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(block(x, queries), block(x)[:, -queries:])


def test_initialisation_is_mae_s():
    torch.manual_seed(0)
    model = VisionTransformer(64, 16, embed_dim=128, depth=1, num_heads=4)
    for name, weight, fans in (
        ("patch embedding, as a linear map", model.patch_embed.proj.weight, 128 + 3 * 16 * 16),
        ("fc1", model.blocks[0].mlp.fc1.weight, 128 + 512),
        ("qkv, as one matrix", model.blocks[0].attn.qkv.weight, 128 + 384),
    ):
        bound = math.sqrt(6 / fans)  # Glorot and Bengio 2010, equation 16
        assert weight.detach().abs().max() <= bound, name
        assert weight.detach().std() == pytest.approx(bound / math.sqrt(3), rel=0.05), name
    assert model.cls_token.detach().std() == pytest.approx(0.02, rel=0.3)
    assert not model.pos_embed.requires_grad and (model.pos_embed[:, 0] == 0).all()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name


def test_images_of_another_size_are_refused(model):
    with pytest.raises(InputError, match="images of 48 x 32 pixels do not fit a model for 32 x 48"):
        model(torch.zeros(1, 3, 48, 32))


@pytest.mark.parametrize(
    "img_size, patch, grid", [((224, 224), 14, (16, 16)), ((48, 80), 16, (3, 5)), ((8, 8), 8, (1, 1))]
)
def test_patch_grid(img_size, patch, grid):
    assert patch_grid(img_size, patch) == grid


@pytest.mark.parametrize("img_size, patch", [((224, 220), 16), ((8, 8), 16), ((224, 224), 0), ((224, 224), -14)])
def test_a_patch_that_does_not_divide_is_refused_with_one_that_does(img_size, patch):
    with pytest.raises(InputError, match=f"patch_size {patch} does not divide the image side .*use a patch_size of"):
        patch_grid(img_size, patch)


@pytest.mark.parametrize(
    "changes, telling",
    [({"num_heads": 5}, "5 heads do not divide"), ({"num_heads": 0}, "0 heads"), ({"embed_dim": 30}, "multiple of 4")],
)
def test_widths_that_do_not_fit_are_refused(changes, telling):
    with pytest.raises(InputError, match=telling):
        VisionTransformer(**({"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2} | changes))


# --- any grid ---------------------------------------------------------------------------------------------------------


def randomised(**arguments) -> VisionTransformer:
    """Small, and with no parameter at its start."""
    torch.manual_seed(0)
    small = {"img_size": (16, 24), "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
    encoder = VisionTransformer(**(small | arguments)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


@pytest.mark.parametrize(
    "size, patch, positions", [((32, 48), 8, "learned"), (32, 16, "learned"), ((48, 32), 16, "sincos")]
)
def test_features_are_those_of_timm(size, patch, positions):
    ours = randomised(img_size=size, patch_size=patch, positions=positions)
    theirs = timm.models.VisionTransformer(size, patch, embed_dim=16, depth=3, num_heads=2, num_classes=0).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, *ours.img_size)
    torch.testing.assert_close(ours(images), theirs.forward_features(images), rtol=1e-5, atol=1e-5)


def test_fixed_positions_at_another_grid_are_evaluated():
    encoder = randomised()
    assert torch.equal(encoder.position_table((2, 3)), encoder.pos_embed)
    assert torch.equal(encoder.position_table((5, 4)), sincos_2d(16, (5, 4), field=(2, 3)))
    moved = encoder.double().position_table((5, 4))
    assert moved.dtype == torch.float64 and not moved.requires_grad


@pytest.mark.parametrize("positions", ["learned", "separable"])
def test_learned_positions_of_any_grid_learn(positions):
    frames = {"num_frames": 4, "tubelet_size": 2} if positions == "separable" else {}
    encoder = randomised(positions=positions, **frames)
    table = encoder.position_table((3, 5))
    assert table.shape == (1, 1 + encoder.slots * 15, 16)
    table.square().sum().backward()
    learned = [p for name, p in encoder.named_parameters() if "pos_embed" in name]
    assert all((p.grad != 0).all() for p in learned)


def test_separable_positions_are_a_place_plus_a_time():
    encoder = randomised(num_frames=4, tubelet_size=2, positions="separable")
    table = encoder.position_table()
    for slot in range(2):
        for place in range(6):
            wanted = encoder.pos_embed_spatial[0, place] + encoder.pos_embed_temporal[0, slot]
            assert torch.equal(table[0, 1 + slot * 6 + place], wanted)
    assert torch.equal(table[:, :1], encoder.pos_embed_class)


# --- clips and stills -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames, tube", [(4, 2), (4, 1), (3, 3)])
def test_stills_in_a_model_for_clips_are_clips_of_equal_frames(frames, tube):
    encoder = randomised(num_frames=frames, tubelet_size=tube, positions="separable")
    stills = torch.randn(2, 3, 16, 24)
    clips = stills.unsqueeze(2).repeat(1, 1, frames, 1, 1)
    assert encoder(stills).shape == (2, 1 + encoder.num_patches, 16)
    torch.testing.assert_close(encoder(stills), encoder(clips), rtol=1e-5, atol=1e-5)
    ids = torch.stack([torch.randperm(encoder.num_patches)[:5] for _ in range(2)])  # and where only some are seen
    some = [encoder.forward_patches(patchify(x, 8, u), ids) for x, u in ((stills, 1), (clips, tube))]
    torch.testing.assert_close(*some, rtol=1e-5, atol=1e-5)


def test_patches_of_clips_are_embedded_as_by_the_convolution():
    encoder = randomised(num_frames=4, tubelet_size=2, positions="separable")
    clips = torch.randn(2, 3, 4, 16, 24)
    wanted = encoder.patch_embed.proj(clips).flatten(2).transpose(1, 2)  # (B, D, t, h, w) -> (B, L, D)
    torch.testing.assert_close(encoder.patch_embed(patchify(clips, 8, 2)), wanted, rtol=1e-5, atol=1e-5)


def test_the_state_dict_of_a_model_for_clips_has_the_published_names():
    encoder = randomised(num_frames=4, tubelet_size=2, positions="separable")
    shapes = {name: tuple(value.shape) for name, value in encoder.state_dict().items() if "blocks" not in name}
    assert shapes == {
        "cls_token": (1, 1, 16),
        "pos_embed_class": (1, 1, 16),
        "pos_embed_spatial": (1, 6, 16),
        "pos_embed_temporal": (1, 2, 16),
        "patch_embed.proj.weight": (16, 3, 2, 8, 8),
        "patch_embed.proj.bias": (16,),
        "norm.weight": (16,),
        "norm.bias": (16,),
    }


# --- packed sequences -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["sincos", "learned"])
@pytest.mark.parametrize("backend", ["sdpa", "math"])
def test_packed_pictures_are_those_encoded_size_by_size(positions, backend):
    encoder = randomised(positions=positions, drop_path_rate=0.5)
    for block in encoder.blocks:
        block.attn.backend = backend
    images = [torch.randn(n, 3, *size) for n, size in ((2, (16, 24)), (3, (8, 8)), (1, (24, 16)), (2, (8, 8)))]
    noise = [torch.rand(len(batch), 3, 2) for batch in images]
    for given in (None, noise):
        packed = encoder.forward_packed(images, given)
        for k, batch in enumerate(images):
            grid = patch_grid(tuple(batch.shape[-2:]), 8)
            alone = encoder.forward_patches(
                patchify(batch, 8), grid=grid, drop_noise=None if given is None else noise[k]
            )
            torch.testing.assert_close(packed[k], alone, rtol=1e-5, atol=1e-5)


def test_packed_pictures_do_not_see_each_other():
    encoder = randomised()
    a, b = torch.randn(2, 3, 16, 24), torch.randn(1, 3, 8, 8)
    before = encoder.forward_packed([a, b])[1]
    assert torch.equal(encoder.forward_packed([a + 1, b])[1], before)


def test_packed_pictures_that_the_patch_does_not_divide_are_refused():
    with pytest.raises(InputError, match="patch_size 8 does not divide the image side 20"):
        randomised().forward_packed([torch.zeros(1, 3, 20, 16)])


# --- stochastic depth -------------------------------------------------------------------------------------------------


def test_rates_rise_linearly_and_act_only_with_noise():
    encoder = randomised(drop_path_rate=0.3).train()
    assert encoder.drop_path_rates == pytest.approx([0, 0.15, 0.3])
    images = torch.randn(2, 3, 16, 24)
    assert torch.equal(encoder(images), encoder.eval()(images))


def test_a_dropped_branch_adds_exactly_nothing_and_a_kept_one_is_scaled():
    torch.manual_seed(0)
    block, x = Block(16, 4), torch.randn(4, 5, 16)
    keep = torch.tensor([[0, 0], [2, 0], [0, 2], [2, 2]]).float().unsqueeze(1)
    out = block(x, keep=keep)
    attended = block.attn(block.norm1(x))
    middle = x + 2 * attended
    assert torch.equal(out[0], x[0])
    torch.testing.assert_close(out[1], middle[1])
    torch.testing.assert_close(out[2], x[2] + 2 * block.mlp(block.norm2(x[2])))
    torch.testing.assert_close(out[3], middle[3] + 2 * block.mlp(block.norm2(middle[3])))
    torch.testing.assert_close(block(x, num_queries=2, keep=keep), out[:, -2:])


def test_each_sample_drops_by_its_own_noise_at_the_stated_rate():
    encoder = randomised(drop_path_rate=0.5)
    images = torch.randn(3, 3, 16, 24)
    noise = torch.rand(3, 3, 2)
    patches = patchify(images, 8)
    together = encoder.forward_patches(patches, drop_noise=noise)
    for k in range(3):
        alone = encoder.forward_patches(patches[k : k + 1], drop_noise=noise[k : k + 1])
        torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-5, atol=1e-5)
    seen = []
    for block in encoder.blocks:
        block.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["keep"]), with_kwargs=True)
    encoder.forward_patches(
        patchify(torch.zeros(1, 3, 16, 24), 8).expand(4000, -1, -1), drop_noise=torch.rand(4000, 3, 2)
    )
    assert seen[0] is None
    for rate, keep in zip((0.25, 0.5), seen[1:]):
        assert keep.unique().tolist() == pytest.approx([0, 1 / (1 - rate)])
        assert keep.mean(dim=(0, 1)).tolist() == pytest.approx([1, 1], abs=0.07)  # 4 standard errors


# --- memory, precision, devices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{}, {"num_frames": 4, "tubelet_size": 2, "positions": "separable"}])
def test_checkpointing_changes_no_bit_of_the_gradients(arguments):
    encoder = randomised(drop_path_rate=0.5, **arguments).train()
    patches = torch.randn(2, encoder.num_patches, 192 * encoder.tubelet_size)
    noise, gradients = torch.rand(2, 3, 2), []
    for encoder.checkpointing in (False, True):
        encoder.zero_grad()
        encoder.forward_patches(patches, drop_noise=noise).square().mean().backward()
        gradients.append([p.grad.clone() for p in encoder.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_checkpointing_keeps_less():
    encoder = randomised(embed_dim=32, depth=4)
    kept = {False: 0, True: 0}  # numbers saved for backward

    def count(x: torch.Tensor) -> torch.Tensor:
        kept[encoder.checkpointing] += x.numel()
        return x

    for encoder.checkpointing in (False, True):
        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            encoder.forward_patches(torch.randn(8, 6, 192))
    assert kept[True] < kept[False] / 3


@pytest.mark.parametrize("positions", ["sincos", "learned", "separable"])
def test_autocast_keeps_the_stream_in_float32_and_loses_no_position(positions):
    frames = {"num_frames": 4, "tubelet_size": 2} if positions == "separable" else {}
    encoder = randomised(positions=positions, **frames)
    patches = torch.randn(2, encoder.num_patches, 192 * encoder.tubelet_size)
    ids = torch.arange(5).expand(2, -1)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = encoder.embed_patches(patches, ids)
        features = encoder.forward_patches(patches, ids)
    assert tokens.dtype == torch.float32
    full = encoder.embed_patches(patches, ids)
    assert torch.equal(tokens[:, 0], full[:, 0])  # the class token meets no linear map: not one bit is lost
    torch.testing.assert_close(tokens, full, rtol=0.02, atol=0.02)
    torch.testing.assert_close(features.float(), encoder.forward_patches(patches, ids), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("positions", ["sincos", "learned", "separable"])
def test_a_model_cast_as_a_whole_stays_in_its_precision(positions, dtype):
    frames = {"num_frames": 4, "tubelet_size": 2} if positions == "separable" else {}
    encoder = randomised(positions=positions, drop_path_rate=0.5, **frames).to(dtype)
    patches = torch.randn(2, encoder.slots * 20, 192 * encoder.tubelet_size, dtype=dtype)
    assert encoder.forward_patches(patches, grid=(4, 5), drop_noise=torch.rand(2, 3, 2)).dtype == dtype


@pytest.mark.parametrize("arguments", [{}, {"positions": "learned"}, {"num_frames": 4, "positions": "separable"}])
def test_everything_runs_on_the_meta_device(arguments):
    with torch.device("meta"):
        encoder = randomised(drop_path_rate=0.1, **arguments)
        patches = torch.zeros(2, encoder.slots * 20, 192)
        ids = torch.zeros(2, 5, dtype=torch.int64)
        out = encoder.forward_patches(patches, ids, (4, 5), torch.rand(2, 3, 2))
    assert out.is_meta and out.shape == (2, 6, 16)
    if encoder.num_frames == 1:
        packed = encoder.forward_packed(
            [torch.zeros(2, 3, 16, 24, device="meta"), torch.zeros(1, 3, 8, 8, device="meta")]
        )
        assert [tuple(x.shape) for x in packed] == [(2, 7, 16), (1, 2, 16)]
    out.sum().backward()


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, telling",
    [
        ({"num_frames": 4, "positions": "sincos"}, "positions 'sincos' do not fit 4 frames.*separable for clips"),
        ({"positions": "separable"}, "'separable' do not fit 1 frames"),
        ({"positions": "rotary"}, "positions 'rotary'"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate is 1.0.*\[0, 1\)"),
        ({"drop_path_rate": -0.1}, "drop_path_rate is -0.1"),
        ({"positions": "learned", "position_field": (4, 4)}, r"position_field \[4, 4\] does not go with learned"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, telling):
    with pytest.raises(InputError, match=telling):
        VisionTransformer(**({"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2} | changes))


@pytest.mark.parametrize("frames, tube", [(5, 2), (0, 1), (4, 0), (2, 4)])
def test_tubes_that_do_not_divide_the_clip_are_refused(frames, tube):
    with pytest.raises(InputError, match=f"tubelet_size {tube} does not divide num_frames {frames}"):
        time_slots(frames, tube)


def test_clips_of_another_length_are_refused():
    encoder = randomised(num_frames=4, tubelet_size=2, positions="separable")
    with pytest.raises(InputError, match="clips of 6 frames do not fit a model for 4"):
        encoder(torch.zeros(1, 3, 6, 16, 24))
    with pytest.raises(InputError, match="clips of 2 frames do not fit a model for 1"):
        randomised()(torch.zeros(1, 3, 2, 16, 24))


def test_a_patch_is_suggested_that_divides_both_sides():
    with pytest.raises(InputError, match="use a patch_size of 4, 8, 16, or"):
        patch_grid((224, 240), 32)
