"""The FLOP counter against closed formulas, and the table of peaks."""

import pytest
import torch

from headcam.ssl.mae import MAE
from headcam.ssl.objective import ComputeSettings
from headcam.ssl.planning.flops import count_flops, peak_flops, training_flops
from headcam.ssl.stmae import STMAE


def blocks(tokens: int, width: int, depth: int) -> int:
    """Forward FLOP of transformer blocks: 12 D^2 weights a token, two N x N products of width D; 2 a multiply-add."""
    return depth * (2 * 12 * width**2 * tokens + 4 * tokens**2 * width)


def last_block(tokens: int, queries: int, width: int) -> int:
    """The same of a block that forms queries for some tokens only: keys and values for all, the rest for them."""
    return 2 * 2 * width**2 * tokens + 2 * 10 * width**2 * queries + 4 * tokens * queries * width


def mae_forward(width: int, depth: int, patch: int, patches: int, visible: int) -> dict[str, int]:
    masked, pixels = patches - visible, 3 * patch**2
    return {
        "encoder.blocks": blocks(visible + 1, width, depth),
        "decoder_blocks": blocks(patches + 1, 512, 7) + last_block(patches + 1, masked, 512),
        "rest": 2 * (visible * pixels * width + (visible + 1) * width * 512 + masked * 512 * pixels),
    }


@pytest.mark.parametrize(("size", "width", "depth", "patch"), [("s", 384, 12, 16), ("h", 1280, 32, 14)])
def test_the_masked_autoencoder_costs_what_its_formula_says(size, width, depth, patch):
    found = count_flops(MAE(size, patch_size=patch))
    patches = (224 // patch) ** 2
    expected = mae_forward(width, depth, patch, patches, patches // 4)
    assert found.forward == expected
    # Backward is twice forward, but nothing flows back into pixels.
    pixels_in = 2 * (patches // 4) * 3 * patch**2 * width
    assert found.backward == 2 * sum(expected.values()) - pixels_in
    assert found.recomputed == 0


@pytest.mark.parametrize(
    ("settings", "published"),
    [
        # Computed by hand with the published model's shapes.
        ({"size": "s", "patch_size": 16}, 39.0e9),
        ({"size": "l", "patch_size": 16}, 124.5e9),
        # humanlike-vits, mask 0.8: FLOP an image by an independent count of the originals' code.
        ({"size": "s", "patch_size": 14, "mask_ratio": 0.8}, 49.7e9),
        ({"size": "h", "patch_size": 14, "mask_ratio": 0.8}, 241.5e9),
        ({"size": "h", "patch_size": 14, "mask_ratio": 0.8, "img_size": 448}, 1008e9),
    ],
)
def test_counts_are_those_of_the_originals_less_what_the_last_decoder_block_leaves_out(settings, published):
    patch, side = settings["patch_size"], settings.get("img_size", 224)
    tokens = (side // patch) ** 2 + 1
    visible = int((tokens - 1) * (1 - settings.get("mask_ratio", 0.75)) + 1e-6)
    left_out = 3 * (blocks(tokens, 512, 1) - last_block(tokens, tokens - 1 - visible, 512))
    found = training_flops(MAE(**settings))
    assert found < published
    # Those also embed and predict patches that no loss looks at.
    assert found + left_out == pytest.approx(published, rel=0.015)


def test_clips_cost_what_was_computed_for_the_published_model():
    model = STMAE("h", img_size=224, patch_size=14, num_frames=16, tubelet_size=2, repeats=1, mask_ratio=0.9)
    found = count_flops(model)
    assert found.forward["encoder.blocks"] == blocks(205, 1280, 32) == pytest.approx(264.8e9, rel=1e-3)
    # 1,078 GFLOP embed all patches and run the last decoder block for all tokens.
    saved = 3 * (blocks(2049, 512, 1) - last_block(2049, 2048 - 204, 512)) + 2 * 2 * (2048 - 204) * 1176 * 1280
    assert found.training + saved == pytest.approx(1078e9, rel=0.01)


def test_what_checkpointing_computes_twice_is_counted_apart():
    small = {"size": "ti", "img_size": 64, "depth": 3, "decoder_depth": 3}
    plain = count_flops(MAE(**small))
    for what, part in (("encoder", "encoder.blocks"), ("decoder", "decoder_blocks")):
        found = count_flops(MAE(**small, compute=ComputeSettings(checkpointing=what)))
        assert found.training == plain.training
        # Recomputation stops once everything that backward needs is there: the last linear layer is not among it.
        assert 0.6 * plain.forward[part] < found.recomputed < plain.forward[part]


def test_a_batch_costs_its_samples_and_counting_leaves_the_model_alone():
    model = MAE("ti", img_size=64, depth=3, decoder_depth=2)
    assert training_flops(model, 3) == 3 * training_flops(model)
    assert model.network is None
    assert all(p.grad is None for p in model.skeleton.parameters())
    model.configure_model()
    network = model.network
    with torch.no_grad():
        training_flops(model)
    assert model.network is network


def test_peaks_are_those_of_the_data_sheets_and_unknown_otherwise():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16-mixed") == 989e12
    assert peak_flops("NVIDIA H200", torch.bfloat16) == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", torch.float16) == 312e12
    for name, precision in [
        ("NVIDIA H100 PCIe", "bf16-mixed"),
        ("NVIDIA H100 NVL", "bf16-mixed"),
        ("NVIDIA H100 80GB HBM3", "32-true"),
        ("NVIDIA A100-SXM4-80GB", torch.float32),
        ("NVIDIA A1000", "bf16-mixed"),
        ("Tesla V100-SXM2-16GB", "16-mixed"),
    ]:
        assert peak_flops(name, precision) is None, name
