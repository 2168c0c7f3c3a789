"""Published layouts, built small: converted models against plain statements of the original forward passes, and errors.

The layouts are those of original_ssl.md section 3: names, shapes and wrappers are written out here, not taken from the
code under test. Everything is D = 32 wide and 2 blocks deep.
"""

import argparse
import fractions
import math
import pathlib
import re

import pytest
import torch
import torch.nn.functional as F
import torchvision

from headcam.errors import InputError
from headcam.ssl.published.converters import convert

D, DEPTH, HEADS = 32, 2, 4
E = 16  # decoder width
PATCH, GRID, SLOTS, TUBE = 4, 3, 2, 2
SIDE = PATCH * GRID


# What published files look like


def randoms(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator) * 0.3


def linear(new, name: str, out: int, dim: int) -> dict:
    return {f"{name}.weight": new(out, dim), f"{name}.bias": new(out)}


def norm(new, name: str, dim: int) -> dict:
    return {f"{name}.weight": 1 + new(dim), f"{name}.bias": new(dim)}


def blocks(new, name: str, depth: int, dim: int, separate: bool = False) -> dict:
    state = {}
    for i in range(depth):
        at = f"{name}.{i}"
        state |= norm(new, f"{at}.norm1", dim)
        for part in "qkv" if separate else ():
            state |= linear(new, f"{at}.attn.{part}", dim, dim)
        if not separate:
            state |= linear(new, f"{at}.attn.qkv", 3 * dim, dim)
        state |= linear(new, f"{at}.attn.proj", dim, dim) | norm(new, f"{at}.norm2", dim)
        state |= linear(new, f"{at}.mlp.fc1", 4 * dim, dim) | linear(new, f"{at}.mlp.fc2", dim, 4 * dim)
    return state


def fixed_table(dim: int, rows: int, columns: int) -> torch.Tensor:
    """Row 1 + y W + x: sines, cosines of x, then of y, of position times 10000^(-k / (D / 4)); the class's row is 0."""
    quarter = dim // 4
    table = torch.zeros(1, 1 + rows * columns, dim)
    for y in range(rows):
        for x in range(columns):
            for k in range(quarter):
                rate = 10000 ** (-k / quarter)
                row = table[0, 1 + y * columns + x]
                row[k], row[quarter + k] = math.sin(x * rate), math.cos(x * rate)
                row[2 * quarter + k], row[3 * quarter + k] = math.sin(y * rate), math.cos(y * rate)
    return table


def image_encoder(new, fixed: bool, grid: int = GRID) -> dict:
    table = fixed_table(D, grid, grid) if fixed else new(1, grid * grid + 1, D)
    state = {"cls_token": new(1, 1, D), "pos_embed": table, "patch_embed.proj.weight": new(D, 3, PATCH, PATCH)}
    return state | {"patch_embed.proj.bias": new(D)} | blocks(new, "blocks", DEPTH, D) | norm(new, "norm", D)


def image_decoder(new, grid: int = GRID) -> dict:
    state = {"mask_token": new(1, 1, E), "decoder_pos_embed": fixed_table(E, grid, grid)}
    state |= linear(new, "decoder_embed", E, D) | blocks(new, "decoder_blocks", 2, E) | norm(new, "decoder_norm", E)
    return state | linear(new, "decoder_pred", 3 * PATCH**2, E)


def video_encoder(new) -> dict:
    state = {"cls_token": new(1, 1, D), "pos_embed_class": new(1, 1, D)}
    state |= {"pos_embed_spatial": new(1, GRID**2, D), "pos_embed_temporal": new(1, SLOTS, D)}
    state |= {"patch_embed.proj.weight": new(D, 3, TUBE, PATCH, PATCH), "patch_embed.proj.bias": new(D)}
    return state | blocks(new, "blocks", DEPTH, D, separate=True) | norm(new, "norm", D)


def video_decoder(new) -> dict:
    state = {"decoder_cls_token": new(1, 1, E), "mask_token": new(1, 1, E), "decoder_pos_embed_class": new(1, 1, E)}
    state |= {"decoder_pos_embed_spatial": new(1, GRID**2, E), "decoder_pos_embed_temporal": new(1, SLOTS, E)}
    state |= linear(new, "decoder_embed", E, D) | blocks(new, "decoder_blocks", 1, E, separate=True)
    return state | norm(new, "decoder_norm", E) | linear(new, "decoder_pred", 3 * TUBE * PATCH**2, E)


def projection(new, dim: int) -> dict:
    state = linear(new, "mlp.0", 24, dim) | linear(new, "mlp.2", 24, 24) | linear(new, "mlp.4", 8, 24)
    return state | {"last_layer.weight_g": new(40, 1), "last_layer.weight_v": new(40, 8)}


def mugs_heads(new) -> dict:
    state = {"instance_head.projector.0.weight": new(24, D), "local_group_head.projector.0.weight": new(24, D)}
    state |= {"group_head.projector.0.weight": new(24, D), "group_head.last_layer.weight_g": new(40, 1)}
    return state | {"group_head.last_layer.weight_v": new(40, 24)}


def resnext(seed: int, num_classes: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = torchvision.models.resnext50_32x4d(num_classes=num_classes)
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value.normal_(std=0.1)
    return model.eval()


def prefixed(prefix: str, state: dict) -> dict:
    return {prefix + key: value for key, value in state.items()}


ARGS = argparse.Namespace(model="mae_vit", lr=1e-4, output_dir="somewhere", betas=(0.9, 0.95), warm=float("inf"))


def run_of(model: dict, **more) -> dict:
    return {"model": model, "optimizer": {"state": {}, "param_groups": []}, "args": ARGS, "scaler": {}, **more}


def build(family: str) -> tuple[dict, dict]:
    """A file of `family`, and the plain state dict of the encoder (and classifier) in it."""
    new = randoms(sum(map(ord, family)))
    if family == "mae":
        state = image_encoder(new, fixed=True)
        return run_of(state | image_decoder(new), it=3), state
    if family == "mae-encoder-only":
        state = image_encoder(new, fixed=True)
        return {"model": state}, state
    if family == "optimized-mae":
        state = image_encoder(new, fixed=False)
        return run_of(state | image_decoder(new), epoch=3), state
    if family in ("mae-finetuned", "mae-finetuned-fixed"):
        state = image_encoder(new, fixed=family.endswith("fixed"))
        state |= {"head.0.running_mean": new(D), "head.0.running_var": 1 + new(D) ** 2}
        state |= {"head.0.num_batches_tracked": torch.tensor(7)} | linear(new, "head.1", 5, D)
        return run_of(state, epoch=3), state
    if family == "stmae":
        state = video_encoder(new)
        return run_of(state | video_decoder(new), epoch=3), state
    if family == "stmae-finetuned":
        state = video_encoder(new) | linear(new, "head", 5, D)
        return run_of(state, epoch=3), state
    if family in ("dino", "dino-ddp"):
        state = image_encoder(new, fixed=False)
        outer = "module." if family == "dino-ddp" else ""
        student = prefixed("module.backbone.", image_encoder(new, fixed=False))
        teacher = prefixed("backbone.", state) | prefixed("head.", projection(new, D))
        file = {"student": student | prefixed("module.head.", projection(new, D)), "teacher": prefixed(outer, teacher)}
        return file | {"optimizer": {}, "it": 5, "args": ARGS, "dino_loss": {"center": new(1, 40)}}, state
    if family == "dino-bare":
        state = image_encoder(new, fixed=False)
        return state, state
    if family == "mugs":
        state = image_encoder(new, fixed=False)
        inside = state | blocks(new, "relation_blocks", 1, D)
        teacher = prefixed("backbone.", inside) | mugs_heads(new)
        student = prefixed("module.", teacher) | {"module.instance_head.predictor.0.weight": new(24, 24)}
        memories = {"student_mem": {"queue": new(3, 4)}, "teacher_mem": {"queue": new(3, 4)}}
        return {"student": student, "teacher": teacher, **memories, "optimizer": {}, "epoch": 1, "args": ARGS}, state
    raise AssertionError(family)


VITS = ["mae", "mae-encoder-only", "optimized-mae", "mae-finetuned", "mae-finetuned-fixed", "stmae", "stmae-finetuned"]
VITS += ["dino", "dino-ddp", "dino-bare", "mugs"]


@pytest.fixture
def save(tmp_path):
    def write(file) -> pathlib.Path:
        path = tmp_path / "published.pth"
        torch.save(file, path)
        return path

    return write


# The original forward passes, plainly


def attention(state: dict, at: str, x: torch.Tensor) -> torch.Tensor:
    if f"{at}.qkv.weight" in state:
        weights, biases = state[f"{at}.qkv.weight"].chunk(3), state[f"{at}.qkv.bias"].chunk(3)
    else:
        weights, biases = ([state[f"{at}.{part}.{kind}"] for part in "qkv"] for kind in ("weight", "bias"))
    q, k, v = (x @ weight.double().T + bias.double() for weight, bias in zip(weights, biases))
    heads, dim = [], D // HEADS
    for h in range(HEADS):
        a, b, c = (part[..., h * dim : (h + 1) * dim] for part in (q, k, v))
        scores = a @ b.transpose(1, 2) * dim**-0.5
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        heads.append(weights @ c)
    return torch.cat(heads, -1) @ state[f"{at}.proj.weight"].double().T + state[f"{at}.proj.bias"].double()


def layer_norm(state: dict, at: str, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    x = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return x * state[f"{at}.weight"].double() + state[f"{at}.bias"].double()


def mlp(state: dict, at: str, x: torch.Tensor) -> torch.Tensor:
    x = x @ state[f"{at}.fc1.weight"].double().T + state[f"{at}.fc1.bias"].double()
    x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    return x @ state[f"{at}.fc2.weight"].double().T + state[f"{at}.fc2.bias"].double()


def plain_features(state: dict, pixels: torch.Tensor) -> torch.Tensor:
    """Tokens (B, 1 + N, D) in float64 of images (B, 3, H, W) or clips (B, 3, T, H, W)."""
    weight, bias = state["patch_embed.proj.weight"].double(), state["patch_embed.proj.bias"].double()
    convolve = F.conv3d if pixels.ndim == 5 else F.conv2d
    x = convolve(pixels.double(), weight, bias, stride=weight.shape[2:]).flatten(2).transpose(1, 2)
    if pixels.ndim == 5:  # tokens in the order time, row, column
        spatial, temporal = state["pos_embed_spatial"][0], state["pos_embed_temporal"][0]
        places = torch.stack([spatial[s] + temporal[t] for t in range(len(temporal)) for s in range(len(spatial))])
        table = torch.cat([state["pos_embed_class"][0], places]).double()
    else:
        table = state["pos_embed"][0].double()
    x = torch.cat([state["cls_token"].double().expand(len(x), -1, -1), x], dim=1) + table
    for i in range(DEPTH):
        x = x + attention(state, f"blocks.{i}.attn", layer_norm(state, f"blocks.{i}.norm1", x))
        x = x + mlp(state, f"blocks.{i}.mlp", layer_norm(state, f"blocks.{i}.norm2", x))
    return layer_norm(state, "norm", x)


def pixels_for(state: dict) -> torch.Tensor:
    frames = (SLOTS * TUBE,) if "pos_embed_spatial" in state else ()
    return torch.randn(2, 3, *frames, SIDE, SIDE, generator=torch.Generator().manual_seed(9))


# They agree


@pytest.mark.parametrize("family", VITS)
def test_features_are_those_of_the_original(family, save):
    file, state = build(family)
    encoder, card, _ = convert(save(file), num_heads=HEADS)
    assert not encoder.training and card["source"]["family"] == re.sub("-(ddp|bare|fixed|encoder-only)$", "", family)
    pixels = pixels_for(state)
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.forward_features(pixels).double(), plain_features(state, pixels), atol=2e-5, rtol=1e-4
        )


def test_logits_of_fine_tuned_images_are_the_linear_map_of_the_normed_class_token(save):
    file, state = build("mae-finetuned")
    found = convert(save(file), num_heads=HEADS)
    pixels = pixels_for(state)
    token = plain_features(state, pixels)[:, 0]
    deviation = (state["head.0.running_var"].double() + 1e-6).sqrt()
    normed = (token - state["head.0.running_mean"].double()) / deviation
    wanted = normed @ state["head.1.weight"].double().T + state["head.1.bias"].double()
    with torch.no_grad():
        torch.testing.assert_close(found.logits(pixels).double(), wanted, atol=5e-5, rtol=1e-4)
    assert found.card["classes"] == 5 and found.card["source"]["keys_used"] == 11 + 12 * DEPTH


def test_logits_of_fine_tuned_clips_are_the_linear_map_of_the_class_token(save):
    file, state = build("stmae-finetuned")
    found = convert(save(file), num_heads=HEADS)
    pixels = pixels_for(state)
    wanted = plain_features(state, pixels)[:, 0] @ state["head.weight"].double().T + state["head.bias"].double()
    with torch.no_grad():
        torch.testing.assert_close(found.logits(pixels).double(), wanted, atol=5e-5, rtol=1e-4)
    assert found.card["mean"] == [0.45] * 3 and found.card["std"] == [0.225] * 3


@pytest.mark.parametrize("wrapping", ["temporal-classification", "dino", "dino-bare"])
def test_a_published_resnext_gives_the_features_and_logits_of_torchvision(wrapping, save):
    model = resnext(1, 7)
    state = model.state_dict()
    trunk = {key: value for key, value in state.items() if not key.startswith("fc.")}
    assert len(trunk) == 318
    if wrapping == "temporal-classification":
        scores = {"acc1_list": [1.0, 2.0], "optimizer_state_dict": {}}
        file = {"model_state_dict": prefixed("module.", state)} | scores
    elif wrapping == "dino":  # with batch norms the teacher is wrapped too
        teacher = prefixed("module.backbone.", trunk) | prefixed("module.head.", projection(randoms(0), 2048))
        file = {"teacher": teacher, "student": prefixed("module.backbone.", trunk), "args": ARGS}
    else:
        file = trunk
    found = convert(save(file))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        if wrapping == "temporal-classification":
            torch.testing.assert_close(found.logits(images), model(images), atol=1e-4, rtol=1e-4)
            assert found.card["classes"] == 7
        else:
            model.fc = torch.nn.Identity()
            features = found.encoder.forward_features(images).mean(dim=1)
            torch.testing.assert_close(features, model(images), atol=1e-4, rtol=1e-4)
            assert found.head is None
    assert found.card["parameters"] == 22_979_904 and found.card["architecture"]["class"] == "ResNet"


# What the card says


def test_the_card_names_the_file_and_what_became_of_every_key(save):
    path = save(build("mae")[0])
    _, card, head = convert(path, num_heads=HEADS, name="somewhere/tiny")
    source = card["source"]
    assert head is None and card["name"] == "somewhere/tiny" and card["objective"] == "mae"
    assert source["keys_used"] == 6 + 12 * DEPTH and source["keys_dropped"] == {"decoder": 8 + 12 * 2}
    assert len(source["hash"]) == 64 and card["weights_hash"] == source["hash"]
    assert source["args"] == {**vars(ARGS), "betas": [0.9, 0.95], "warm": "inf"}
    assert source["entries_not_read"] == ["optimizer", "scaler", "it"]
    wanted = 3 * PATCH**2 * D + 2 * D + (GRID**2 + 1) * D + DEPTH * (12 * D**2 + 13 * D) + 2 * D
    assert card["parameters"] == wanted and card["img_size"] == [SIDE, SIDE]


def test_the_encoder_is_a_copy_in_float32_and_a_fixed_table_stays_fixed(save):
    file, state = build("mae")
    path = save(
        {**file, "model": {**{key: value.half() for key, value in state.items()}, "pos_embed": state["pos_embed"]}}
    )
    encoder = convert(path, num_heads=HEADS).encoder
    path.unlink()
    assert {value.dtype for value in encoder.parameters()} == {torch.float32}
    assert [name for name, value in encoder.named_parameters() if not value.requires_grad] == ["pos_embed"]
    assert torch.equal(encoder.cls_token, state["cls_token"].half().float())


def test_student_and_teacher_are_different_networks(save):
    file, _ = build("dino")
    path = save(file)
    teacher, student = (convert(path, num_heads=HEADS, network=which) for which in ("teacher", "student"))
    assert torch.equal(teacher.encoder.cls_token, file["teacher"]["backbone.cls_token"])
    assert torch.equal(student.encoder.cls_token, file["student"]["module.backbone.cls_token"])
    assert (teacher.card["source"]["entry"], student.card["source"]["entry"]) == ("teacher", "student")


def test_mugs_relation_blocks_and_heads_are_dropped_by_name(save):
    dropped = convert(save(build("mugs")[0]), num_heads=HEADS).card["source"]["keys_dropped"]
    assert dropped == {"relation_blocks": 12, "heads": 5}


def test_swapped_queries_and_keys_are_seen_in_the_output(save):
    file, state = build("stmae")
    for kind in ("weight", "bias"):
        names = [f"blocks.0.attn.{part}.{kind}" for part in "qk"]
        file["model"][names[0]], file["model"][names[1]] = state[names[1]], state[names[0]]
    pixels = pixels_for(state)
    with torch.no_grad():
        features = convert(save(file), num_heads=HEADS).encoder.forward_features(pixels)
    assert (features.double() - plain_features(state, pixels)).abs().max() > 1e-2


@pytest.mark.parametrize("side, grid", [(448, 32), (476, 34)])
def test_the_resolution_follows_from_the_grid(side, grid, save):
    new = randoms(0)
    state = image_encoder(new, fixed=True, grid=grid) | {"patch_embed.proj.weight": new(D, 3, 14, 14)}
    assert convert(save({"model": state}), num_heads=HEADS).encoder.img_size == (side, side)


def test_the_table_of_another_grid_is_not_taken_for_the_model_s(save):
    """34 x 34 places cut to the number of 32 x 32."""
    state = build("mae-encoder-only")[1] | {"pos_embed": fixed_table(D, 34, 34)[:, : 32**2 + 1]}
    with pytest.raises(InputError, match=r"is mae, whose positions are sincos, but its pos_embed is in part"):
        convert(save({"model": state}), num_heads=HEADS)


# What is refused


def entry_of(file: dict, family: str) -> dict:
    return (
        file["teacher"] if family in ("dino", "dino-ddp", "mugs") else file if family == "dino-bare" else file["model"]
    )


@pytest.mark.parametrize("family", VITS)
def test_a_missing_an_extra_and_a_misshapen_key_are_named(family, save):
    prefix = {"dino": "backbone.", "dino-ddp": "module.backbone.", "mugs": "backbone."}.get(family, "")
    norm_key = f"{prefix}blocks.1.norm2.weight"

    file, _ = build(family)
    del entry_of(file, family)[norm_key]
    with pytest.raises(InputError, match=r"lacks blocks\.1\.norm2\.weight\. Fix"):
        convert(save(file), num_heads=HEADS)

    for extra in ("norm3.weight", "blocks.1.norm3.weight"):
        file, _ = build(family)
        entry_of(file, family)[prefix + extra] = torch.zeros(D)
        with pytest.raises(InputError, match=rf"has the unknown {re.escape(extra)}\. Fix"):
            convert(save(file), num_heads=HEADS)

    file, _ = build(family)
    entry_of(file, family)[norm_key] = torch.zeros(D + 1)
    with pytest.raises(InputError, match=r"blocks\.1\.norm2\.weight is \(33,\) .* ask for \(32,\)"):
        convert(save(file), num_heads=HEADS)


@pytest.mark.parametrize(
    "family, key",
    [
        ("mae", "decoder_blocks.1.attn.qkv.bias"),
        ("mae", "decoder_pos_embed"),
        ("mae", "cls_token"),
        ("mae", "pos_embed"),
        ("mae", "blocks.0.attn.qkv.weight"),
        ("mae-finetuned", "head.0.running_var"),
        ("mae-finetuned", "head.1.bias"),
        ("stmae", "blocks.1.attn.k.bias"),
        ("stmae", "pos_embed_temporal"),
        ("stmae", "pos_embed_class"),
        ("stmae", "decoder_blocks.0.attn.v.weight"),
        ("stmae-finetuned", "head.bias"),
        ("dino", "backbone.patch_embed.proj.weight"),
        ("mugs", "backbone.relation_blocks.0.attn.proj.bias"),
    ],
)
def test_no_part_may_lack_a_key(family, key, save):
    file, _ = build(family)
    del entry_of(file, family)[key]
    with pytest.raises(InputError, match=rf"lacks {re.escape(key.removeprefix('backbone.'))}\. Fix"):
        convert(save(file), num_heads=HEADS)


def test_a_gap_in_the_blocks_is_named(save):
    _, state = build("dino-bare")
    gone = {key: value for key, value in state.items() if not key.startswith("blocks.0.")}
    with pytest.raises(InputError, match=r"lacks blocks\.0\.norm1\.weight, .* and 8 more"):
        convert(save(gone), num_heads=HEADS)


@pytest.mark.parametrize("key", ["cls_token", "pos_embed", "patch_embed.proj.weight"])
def test_a_key_that_tells_sizes_must_have_its_axes(key, save):
    file, state = build("mae")
    file["model"][key] = state[key][0]
    with pytest.raises(InputError, match=rf"{re.escape(key)} is \(.*\), not of [34] axes"):
        convert(save(file), num_heads=HEADS)


def test_separate_maps_must_be_square(save):
    file, _ = build("stmae")
    file["model"]["blocks.0.attn.q.weight"] = torch.zeros(D + 1, D)
    file["model"]["blocks.0.attn.v.weight"] = torch.zeros(D - 1, D)  # together they would have the right shape
    with pytest.raises(InputError, match=r"blocks\.0\.attn\.q\.weight is \(33, 32\)"):
        convert(save(file), num_heads=HEADS)


def test_a_prefix_goes_only_at_the_start_and_only_where_all_carry_it(save):
    file, _ = build("dino")
    teacher = file["teacher"]
    teacher["backbone.blocks.0.backbone.norm1.weight"] = teacher.pop("backbone.blocks.0.norm1.weight")
    with pytest.raises(
        InputError, match=r"lacks blocks\.0\.norm1\.weight and has the unknown blocks\.0\.backbone\.norm1\.weight"
    ):
        convert(save(file), num_heads=HEADS)

    file, _ = build("dino")
    file["teacher"]["norm.weight"] = file["teacher"].pop("backbone.norm.weight")
    with pytest.raises(InputError, match=r"has the unknown norm\.weight"):
        convert(save(file), num_heads=HEADS)

    file, _ = build("dino-ddp")
    file["teacher"]["norm.weight"] = file["teacher"].pop("module.backbone.norm.weight")
    with pytest.raises(InputError, match="layout of no published family"):
        convert(save(file), num_heads=HEADS)


def test_a_fine_tuned_file_is_no_pre_trained_one_nor_the_reverse(save):
    for found, wanted in [("mae", "mae-finetuned"), ("stmae", "stmae-finetuned")]:
        for holds, asked in [(found, wanted), (wanted, found)]:
            with pytest.raises(InputError, match=f"holds {holds} where {asked} is wanted"):
                convert(save(build(holds)[0]), family=asked, num_heads=HEADS)


def test_files_of_two_families_are_refused(save):
    both = build("mae")[0] | build("dino")[0]
    with pytest.raises(InputError, match=r"has the keys of mae and of dino\. Fix: save the wanted model alone"):
        convert(save(both), num_heads=HEADS)
    both = build("mugs")[0] | {"dino_loss": {"center": torch.zeros(1, 4)}}
    with pytest.raises(InputError, match="has the keys of dino and of mugs"):
        convert(save(both), num_heads=HEADS)


def test_positions_must_be_those_of_the_family(save):
    _, state = build("dino-bare")
    with pytest.raises(
        InputError, match="is dino, whose positions are learned, but its pos_embed is exactly the fixed"
    ):
        convert(save({**state, "pos_embed": fixed_table(D, GRID, GRID)}), num_heads=HEADS)
    file, _ = build("mae")
    transposed = fixed_table(D, GRID, GRID)[:, 1:].unflatten(1, (GRID, GRID)).transpose(1, 2).flatten(1, 2)
    file["model"]["pos_embed"] = torch.cat([torch.zeros(1, 1, D), transposed], dim=1)
    with pytest.raises(InputError, match="is mae, whose positions are sincos, but its pos_embed is in part"):
        convert(save(file), num_heads=HEADS)
    file["model"]["pos_embed"] = fixed_table(D, GRID, GRID) + 5e-5  # the rounding of float32 frequencies is less
    assert convert(save(file), num_heads=HEADS).encoder.positions == "sincos"


def test_attention_heads_are_not_guessed(save):
    with pytest.raises(InputError, match=r"width 32, which no published model has.*Fix: give num_heads"):
        convert(save(build("mae")[0]))
    with pytest.raises(InputError, match="5 heads do not divide"):
        convert(save(build("mae")[0]), num_heads=5)


class Harmful:
    """What a malicious file would hold."""

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("harm"),)


def test_of_pickled_objects_only_namespaces_are_made(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for harmful in (
        Harmful(),
        argparse.Namespace(inner=Harmful()),
        argparse.Namespace(inner=fractions.Fraction(1, 3)),
    ):
        with pytest.raises(InputError, match=r"holds a pickled \S+, which could run any code"):
            convert(save(build("mae")[0] | {"args": harmful}), num_heads=HEADS)
    assert not pathlib.Path("harm").exists()


def test_the_allow_list_is_closed_again(save):
    path = save(build("mae")[0])
    convert(path, num_heads=HEADS)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_what_is_no_checkpoint_gets_one_line(save, tmp_path):
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no checkpoint")
    cases = {
        tmp_path / "absent.pth": "absent.pth does not exist",
        broken: "cannot be read as a checkpoint",
    }
    for path, telling in cases.items():
        with pytest.raises(InputError, match=telling) as error:
            convert(path)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="holds a list, no dictionary"):
        convert(save([1, 2]))
    moco = {"epoch": 1, "arch": "resnext50", "state_dict": {"module.queue": torch.zeros(2)}, "optimizer": {}}
    with pytest.raises(InputError, match="no published family: its keys are epoch, arch, state_dict, optimizer"):
        convert(save(moco))


def test_files_of_the_old_format_are_read(tmp_path):
    file, state = build("mae")
    path = tmp_path / "old.tar"
    torch.save(file, path, _use_new_zipfile_serialization=False)
    assert torch.equal(convert(path, num_heads=HEADS).encoder.cls_token, state["cls_token"])
