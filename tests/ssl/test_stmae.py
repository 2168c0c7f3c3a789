"""The spatiotemporal masked autoencoder against a plain statement of the published forward pass.

The statement below is written from the published layout (names, shapes and order of what the HVM-1 files hold) with
loops and separate projections, and shares no code with ours. There is no other library to compare with: VideoMAE, which
transformers has, hides the same places in all time slots, has no class token and fixed positions.
"""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from headcam.cli import main
from headcam.errors import InputError
from headcam.ssl.mae import MaskedAutoencoder
from headcam.ssl.masking import unpatchify
from headcam.ssl.stmae import STMAE
from headcam.ssl.weights import load_encoder

FRAMES, TUBE, SIDE, PATCH, HEADS = 6, 2, 16, 4, 4
SLOTS, PLACES = FRAMES // TUBE, (SIDE // PATCH) ** 2
L = SLOTS * PLACES  # 48
SMALL = dict(
    img_size=SIDE, patch_size=PATCH, embed_dim=16, depth=2, num_heads=HEADS, num_frames=FRAMES, tubelet_size=TUBE
)
SMALL |= dict(decoder_embed_dim=8, decoder_depth=2, decoder_num_heads=HEADS)


def small(**changes) -> MaskedAutoencoder:
    """A network with no weight left at zero or one, where a swap would go unseen."""
    torch.manual_seed(0)
    settings = SMALL | dict(positions="separable", mask_ratio=0.9, norm_pix_loss=False) | changes
    model = MaskedAutoencoder(**settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def published(model: MaskedAutoencoder) -> dict[str, Tensor]:
    """Our parameters under the published names: no prefix, separate q, k, v. Gradients flow back to ours."""
    out = {}
    for name, parameter in model.named_parameters():
        name = name.removeprefix("encoder.")
        if ".attn.qkv." in name:
            for part, value in zip("qkv", parameter.chunk(3)):
                out[name.replace("qkv", part)] = value
        else:
            out[name] = parameter
    return out


def plain_patches(clip: Tensor, frames: list[int]) -> Tensor:
    """(3, T, H, W) -> (L, len(frames) * p * p * 3): frame, row, column, channel (tokens: time, row, column)."""
    rows = []
    for slot in range(SLOTS):
        for top in range(0, SIDE, PATCH):
            for left in range(0, SIDE, PATCH):
                values = [
                    clip[:, slot * TUBE + frame, top + y, left + x]
                    for frame in frames
                    for y in range(PATCH)
                    for x in range(PATCH)
                ]
                rows.append(torch.cat(values))
    return torch.stack(rows)


def plain_block(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    """Pre-norm block with an attention that is written out: (B, N, D) -> (B, N, D)."""
    B, N, D = x.shape

    def linear(x: Tensor, layer: str) -> Tensor:
        return x @ w[f"{name}.{layer}.weight"].T + w[f"{name}.{layer}.bias"]

    def norm(x: Tensor, layer: str) -> Tensor:
        return F.layer_norm(x, (D,), w[f"{name}.{layer}.weight"], w[f"{name}.{layer}.bias"], eps=1e-6)

    y = norm(x, "norm1")
    q, k, v = (linear(y, f"attn.{part}").view(B, N, HEADS, D // HEADS).transpose(1, 2) for part in "qkv")
    weights = (q @ k.transpose(-2, -1) * (D // HEADS) ** -0.5).softmax(dim=-1)
    x = x + linear((weights @ v).transpose(1, 2).reshape(B, N, D), "attn.proj")
    return x + linear(F.gelu(linear(norm(x, "norm2"), "mlp.fc1")), "mlp.fc2")


def plain_forward(
    w: dict[str, Tensor], clips: Tensor, noise: Tensor, keep: int, norm_pix_loss: bool, frames: list[int]
) -> tuple[Tensor, Tensor]:
    """Loss, and predictions of all tubes (B, L, Q) in their own order, as the published code computes them."""
    B = len(clips)
    x = F.conv3d(clips, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=(TUBE, PATCH, PATCH))
    x = x.flatten(2).transpose(1, 2)  # (B, L, D), all tubes
    order = noise.argsort(dim=1)
    restore = order.argsort(dim=1)

    def positions(part: str) -> Tensor:
        tiled = w[f"{part}pos_embed_spatial"].repeat(1, SLOTS, 1)
        return tiled + torch.repeat_interleave(w[f"{part}pos_embed_temporal"], PLACES, dim=1)

    x = torch.stack([(x + positions(""))[b, order[b, :keep]] for b in range(B)])
    x = torch.cat([(w["cls_token"] + w["pos_embed_class"]).expand(B, -1, -1), x], dim=1)
    for k in range(SMALL["depth"]):
        x = plain_block(x, w, f"blocks.{k}")
    x = F.layer_norm(x, x.shape[-1:], w["norm.weight"], w["norm.bias"], eps=1e-6)

    x = x[:, 1:] @ w["decoder_embed.weight"].T + w["decoder_embed.bias"]  # without the class token
    x = torch.cat([x, w["mask_token"].expand(B, L - keep, -1)], dim=1)
    x = torch.stack([x[b, restore[b]] for b in range(B)]) + positions("decoder_")
    x = torch.cat([(w["decoder_cls_token"] + w["decoder_pos_embed_class"]).expand(B, -1, -1), x], dim=1)
    for k in range(SMALL["decoder_depth"]):
        x = plain_block(x, w, f"decoder_blocks.{k}")
    x = F.layer_norm(x, x.shape[-1:], w["decoder_norm.weight"], w["decoder_norm.bias"], eps=1e-6)
    prediction = (x @ w["decoder_pred.weight"].T + w["decoder_pred.bias"])[:, 1:]

    target = torch.stack([plain_patches(clip, frames) for clip in clips])
    if norm_pix_loss:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
    hidden = (restore >= keep).float()
    loss = ((prediction - target).square().mean(dim=-1) * hidden).sum() / hidden.sum()
    return loss, prediction


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("predicted_frames, frames", [("all", [0, 1]), ("first", [0])])
def test_loss_prediction_and_gradients_equal_those_of_the_plain_statement(norm_pix_loss, predicted_frames, frames):
    model = small(norm_pix_loss=norm_pix_loss, predicted_frames=predicted_frames)
    clips, noise = torch.randn(3, 3, FRAMES, SIDE, SIDE), torch.rand(3, L)
    keep = 4  # of 48 at 0.9
    out = model(clips, noise)
    gradients = dict(zip(dict(model.named_parameters()), torch.autograd.grad(out["loss"], list(model.parameters()))))
    loss, prediction = plain_forward(published(model), clips, noise, keep, norm_pix_loss, frames)
    theirs = torch.autograd.grad(loss, list(model.parameters()))

    assert abs(out["loss"] - loss) / loss < 1e-5
    assert out["prediction"].shape == (3, L - keep, len(frames) * PATCH**2 * 3)
    picked = torch.stack([prediction[b, out["mask"].ids_masked[b]] for b in range(3)])
    torch.testing.assert_close(out["prediction"], picked, rtol=1e-5, atol=1e-5)
    for (name, ours), other in zip(gradients.items(), theirs):
        assert ours.abs().max() > 0, f"{name} does not learn"
        torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    "side, mask_ratio, visible, encoder, total",
    # Published: HVM-1 at 224 and 448 pixels; tokens of the encoder are 205 and 410 with the class token.
    [(224, 0.9, 204, 631_527_680, 645_534_104), (448, 0.95, 409, 632_510_720, 646_910_360)],
)
def test_the_published_models_have_the_published_parameters_and_tokens(side, mask_ratio, visible, encoder, total):
    objective = STMAE("h", img_size=side, patch_size=14, mask_ratio=mask_ratio)
    network = objective.skeleton
    assert objective.card()["parameters"] == encoder and objective.card()["parameters_total"] == total
    assert network.num_visible(network.encoder.num_patches) == visible
    names = published(network)
    assert len(names) == 595 and sum(not name.startswith(("decoder", "mask_token")) for name in names) == 520
    assert names["patch_embed.proj.weight"].shape == (1280, 3, 2, 14, 14)
    assert names["decoder_pos_embed_spatial"].shape == (1, (side // 14) ** 2, 512)
    assert names["decoder_pred.weight"].shape == (1176, 512)
    assert names["blocks.31.attn.k.bias"].shape == (1280,) and names["decoder_blocks.3.attn.v.weight"].shape == (
        512,
        512,
    )


def test_the_mask_is_exact_and_random_over_space_and_time():
    model = small(mask_ratio=0.5)
    torch.manual_seed(0)
    mask = model(torch.randn(2, 3, FRAMES, SIDE, SIDE), torch.rand(2, L))["mask"].as_binary()
    assert mask.sum(dim=1).tolist() == [24, 24]
    slots = mask.view(2, SLOTS, PLACES)
    assert not torch.equal(slots[:, 0], slots[:, 1]), "the same places are hidden in all time slots, as in VideoMAE"


def test_the_encoder_s_class_token_does_not_enter_the_decoder():
    model = small()
    mask = model(torch.randn(2, 3, FRAMES, SIDE, SIDE), torch.rand(2, L))["mask"]
    latent = torch.randn(2, 1 + 4, 16)
    changed = latent.clone()
    changed[:, 0] += 1
    assert torch.equal(model.forward_decoder(latent, mask), model.forward_decoder(changed, mask))
    changed[:, 1] += 1
    assert not torch.equal(model.forward_decoder(latent, mask), model.forward_decoder(changed, mask))


@pytest.mark.parametrize("predicted_frames", ["all", "first"])
def test_a_completed_clip_keeps_its_visible_tubes(predicted_frames):
    model = small(predicted_frames=predicted_frames, norm_pix_loss=True)
    clips, noise = torch.randn(2, 3, FRAMES, SIDE, SIDE), torch.rand(2, L)
    masked, completed = model.reconstruct(clips, noise)
    assert masked.shape == completed.shape == clips.shape
    binary = model(clips, noise)["mask"].as_binary()
    width = TUBE * PATCH**2 * 3
    area = unpatchify(binary.unsqueeze(-1).expand(-1, -1, width), PATCH, (4, 4), TUBE).bool()
    assert torch.equal(masked[~area], clips[~area]) and torch.equal(completed[~area], clips[~area])
    assert (masked[area] == 0).all() and (completed[area] != clips[area]).any()
    # The second frame of a tube is a prediction of its own, or the first one's again.
    pairs = completed.view(2, 3, SLOTS, TUBE, SIDE, SIDE).unbind(dim=3)
    hidden = area[:, :, ::TUBE]
    assert torch.equal(pairs[0][hidden], pairs[1][hidden]) == (predicted_frames == "first")


def test_another_resolution_keeps_the_weights_and_the_field_of_view():
    model = small()
    out = model(torch.randn(2, 3, FRAMES, 2 * SIDE, SIDE), torch.rand(2, 2 * L))
    assert out["prediction"].shape[1] == 2 * L - 9
    flat = SIDE // PATCH
    with torch.no_grad():
        model.decoder_pos_embed_spatial.copy_(torch.ones_like(model.decoder_pos_embed_spatial))
    table = model.decoder_position_table((2 * flat, flat))
    torch.testing.assert_close(table[0, 1 : 1 + 2 * PLACES], 1 + model.decoder_pos_embed_temporal[0, :1].expand(32, -1))


def objective(**changes) -> STMAE:
    module = STMAE(**(SMALL | changes))
    module.configure_model()
    return module


def test_repeats_are_views_of_their_own():
    module = objective(repeats=3)
    assert module.views_per_sample == 3 and module.num_frames == FRAMES
    batch = module.example_batch(2, "cpu")
    assert batch["clip"].shape == (2, 3, 3, FRAMES, SIDE, SIDE) and batch["noise"].shape == (2, 3, L)
    batch["clip"].random_(0, 256)
    single = [
        module.losses({key: value[b, r].unsqueeze(0) for key, value in batch.items()})["loss"]
        for b in range(2)
        for r in range(3)
    ]
    torch.testing.assert_close(module.losses(batch)["loss"], torch.stack(single).mean())


def test_a_single_view_and_a_held_out_one_have_no_dimension_of_views():
    module = objective(repeats=1)
    batch = module.example_batch(2, "cpu")
    assert batch["clip"].shape == (2, 3, FRAMES, SIDE, SIDE) and module.views_per_sample == 1
    loss = module.losses(batch)["loss"]
    assert torch.equal(loss, objective(repeats=4).losses(batch)["loss"])  # the same seed built the same network
    clips, masked, completed = module.reconstruct(batch)
    assert clips.shape == masked.shape == completed.shape == batch["clip"].shape and clips.dtype == torch.float32


def test_work_and_memory_can_be_counted_on_the_meta_device():
    module = STMAE(**(SMALL | dict(repeats=2)))
    module.network = module.skeleton
    loss = module.losses(module.example_batch(3))["loss"]
    assert loss.is_meta and loss.requires_grad


def test_pixels_are_normalised_with_one_mean_and_deviation_as_published():
    module = objective()
    clips = torch.randint(0, 256, (2, 3, FRAMES, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(module.normalize(clips), (clips / 255 - 0.45) / 0.225)
    assert module.card()["mean"] == [0.45] * 3 and module.card()["std"] == [0.225] * 3


def test_the_learning_rate_counts_repeats():
    rates = []
    for repeats in (1, 4):
        module = objective(repeats=repeats)
        module._trainer = SimpleNamespace(
            max_steps=10,
            datamodule=SimpleNamespace(batch_size=8),
            world_size=2,
            accumulate_grad_batches=1,
            precision_plugin=SimpleNamespace(),
        )
        module.samples_per_step = lambda: 16
        rates.append(module.configure_optimizers()["optimizer"].defaults["lr"])
    assert rates == pytest.approx([1.5e-4 * 16 / 256, 1.5e-4 * 64 / 256])


def test_it_completes_a_moving_pattern_and_not_noise():
    t, y, x = torch.meshgrid(torch.arange(FRAMES), torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    clips = torch.stack([torch.sin(0.4 * (x + (k - 3) * t)) + torch.cos(0.4 * y) for k in range(8)])
    clips = clips.unsqueeze(1).expand(-1, 3, -1, -1, -1).contiguous()
    final = {}
    for name in ("pattern", "noise"):
        model = small(mask_ratio=0.75)
        torch.manual_seed(1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(120):
            data = clips if name == "pattern" else torch.randn_like(clips)
            loss = model(data, torch.rand(8, L))["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        final[name] = float(loss.detach()) / float(data.var())
    assert final["pattern"] < 0.5
    assert final["noise"] > 0.9


@pytest.mark.slow
def test_a_run_on_videos_learns_and_leaves_an_encoder_for_stills_and_clips(recordings, tmp_path):
    config = {
        "seed_everything": 0,
        "model": {
            "class_path": "headcam.ssl.stmae.STMAE",
            "init_args": SMALL | {"repeats": 2, "optimizer": {"lr": 0.003, "base_lr_per_256": None}},
        },
        "data": {
            "class_path": "headcam.video.data_module.FrameDataModule",
            "init_args": {"train": [str(recordings[0])], "val": [str(recordings[1])], "batch_size": 4, "step_s": 0.2}
            | {"num_workers": 0},
        },
        "trainer": {"max_steps": 40, "val_check_interval": 20, "log_every_n_steps": 10, "accelerator": "cpu"},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(path), "--out", str(tmp_path / "run")]) == 0
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv")
    held_out = metrics["val/loss"].dropna()
    assert len(held_out) == 2 and held_out.iloc[1] < held_out.iloc[0] < 1.5
    encoder, card = load_encoder(tmp_path / "run")
    assert card["objective"] == "stmae" and card["mean"] == [0.45] * 3
    assert encoder.forward_features(torch.zeros(1, 3, FRAMES, SIDE, SIDE)).shape == (1, 1 + L, 16)
    assert encoder.forward_features(torch.zeros(1, 3, SIDE, SIDE)).shape == (1, 1 + L, 16)


@pytest.mark.parametrize(
    "changes, telling",
    [
        (dict(num_frames=1, tubelet_size=1), r"num_frames is 1.*MAE is for images"),
        (dict(num_frames=7), r"tubelet_size 2 does not divide num_frames 7"),
        (dict(patch_size=5), r"patch_size 5 does not divide the image side 16"),
        (dict(repeats=0), r"model.repeats is 0"),
        (dict(mask_ratio=90), r"mask_ratio must be in \[0, 1\), got 90.*did you mean 0.9"),
        (dict(mask_ratio=0.0), r"mask_ratio 0 masks none of 48 patches"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_the_fix(changes, telling):
    with pytest.raises(InputError, match=telling):
        STMAE(**(SMALL | changes))


@pytest.mark.parametrize(
    "shape, noise, telling",
    [
        ((3, 4, SIDE, SIDE), 32, "input of 4 frames does not fit a model for 6"),
        ((3, SIDE, SIDE), L, "input of 1 frames does not fit a model for 6"),
        ((3, FRAMES, SIDE, SIDE), 47, "noise of 47 numbers does not fit 48 patches"),
        ((3, FRAMES, SIDE, SIDE + 1), L, "patch_size 4 does not divide the image side 17"),
    ],
)
def test_input_and_noise_that_do_not_fit_are_refused(shape, noise, telling):
    with pytest.raises(InputError, match=telling):
        small()(torch.zeros(1, *shape), torch.rand(1, noise))
