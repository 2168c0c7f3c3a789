"""A training step of the spatiotemporal masked autoencoder: ours beside two that do the same size of work.

ViT-S/16, clips of 16 frames at 160 pixels in tubes of 2 (800 tubes, 80 of them visible), decoder of 4 blocks x 512 with
16 heads, all frames predicted and normalised patch by patch, batch 1; a step is forward, backward and AdamW in float32,
on as many threads as torch takes (on a busy machine `--threads 1` is the steadier measure).

`stmae_plain`: the same model with the same weights, in the order in which the paper tells it: every tube is embedded
and then most are dropped, tokens are put back in their order, every decoder block and the head work on all tokens. Its
loss is equal (to 1e-4) before anything is timed; the ratio is the work that we leave out.

`stmae_videomae`: transformers' VideoMAEForPreTraining, which a user would pick, at the same width, depth, decoder and
number of visible tubes. It is another model, so losses are not compared: it hides the same places in all time slots,
and has no class token, no learned positions and no bias for keys.

No bar is set for either by the project's goals; 1.0 says that leaving work out costs nothing.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from harness import Bench, Fidelity, Measured, main
from mae_step import step
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEForPreTraining

from headcam.randomness import stream
from headcam.ssl.mae import MaskedAutoencoder, normalize_patches
from headcam.ssl.masking import patchify
from headcam.ssl.objective import parameter_groups

_BATCH, _FRAMES, _SIDE = 1, 16, 160
_SLOTS, _PLACES = 8, 100
_VISIBLE = 80
_RECIPE = {"lr": 1e-4, "betas": (0.9, 0.95)}
_WEIGHT_DECAY = 0.05


def ours() -> MaskedAutoencoder:
    """Our model, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MaskedAutoencoder(
            img_size=_SIDE,
            decoder_depth=4,
            mask_ratio=1 - _VISIBLE / (_SLOTS * _PLACES),
            num_frames=_FRAMES,
            tubelet_size=2,
            positions="separable",
        )
    return model.train()


def inputs() -> tuple[Tensor, Tensor]:
    """Clips (B, 3, T, H, W), as if normalised, and noise (B, L)."""
    rng = stream(0, "benchmark stmae", 0)
    clips = rng.standard_normal((_BATCH, 3, _FRAMES, _SIDE, _SIDE), dtype=np.float32)
    return torch.from_numpy(clips), torch.from_numpy(rng.random((_BATCH, _SLOTS * _PLACES), dtype=np.float32))


def plain_loss(model: MaskedAutoencoder, clips: Tensor, noise: Tensor) -> Tensor:
    """The loss of `model` by the paper's order of steps."""
    encoder = model.encoder
    order = noise.argsort(dim=1)
    restore = order.argsort(dim=1)

    def rows(x: Tensor, ids: Tensor) -> Tensor:
        return x.gather(1, ids.unsqueeze(-1).expand(-1, -1, x.shape[-1]))

    projection = encoder.patch_embed.proj
    x = F.conv3d(clips, projection.weight, projection.bias, stride=projection.stride).flatten(2).transpose(1, 2)
    table = encoder.position_table()
    x = rows(x + table[:, 1:], order[:, :_VISIBLE])
    x = torch.cat([(encoder.cls_token + table[:, :1]).expand(_BATCH, -1, -1), x], dim=1)
    for block in encoder.blocks:
        x = block(x)
    x = model.decoder_embed(encoder.norm(x)[:, 1:])
    hidden = noise.shape[1] - _VISIBLE
    x = rows(torch.cat([x, model.mask_token.expand(_BATCH, hidden, -1)], dim=1), restore)
    table = model.decoder_position_table(encoder.grid)
    x = torch.cat([(model.decoder_cls_token + table[:, :1]).expand(_BATCH, -1, -1), x + table[:, 1:]], dim=1)
    for block in model.decoder_blocks:
        x = block(x)
    prediction = model.decoder_pred(model.decoder_norm(x))[:, 1:]
    target = normalize_patches(patchify(clips, model.patch_size, model.tubelet_size))
    masked = (restore >= _VISIBLE).float()
    return ((prediction - target).square().mean(dim=-1) * masked).sum() / masked.sum()


def trained(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One training step of `model` on `loss`."""
    return step(loss, torch.optim.AdamW(parameter_groups(model, _WEIGHT_DECAY), fused=True, **_RECIPE))


def stmae_plain(bench: Bench) -> Measured:
    """The same model without what we leave out."""
    model, peer = ours(), ours()
    clips, noise = inputs()
    with torch.no_grad():
        difference = abs(float(model(clips, noise)["loss"]) / float(plain_loss(peer, clips, noise)) - 1)
    return bench.compare(
        trained(model, lambda: model(clips, noise)["loss"]),
        trained(peer, lambda: plain_loss(peer, clips, noise)),
        bar=1.0,
        items=1,
        unit=f"step of {_BATCH} clip",
        fidelity={"relative difference of the losses": Fidelity(difference, "", most=1e-4)},
    )


def stmae_videomae(bench: Bench) -> Measured:
    """A model of the same size that a user would pick."""
    model = ours()
    peer = VideoMAEForPreTraining(
        VideoMAEConfig(
            image_size=_SIDE,
            num_frames=_FRAMES,
            tubelet_size=2,
            hidden_size=384,
            num_hidden_layers=12,
            num_attention_heads=6,
            intermediate_size=1536,
            decoder_hidden_size=512,
            decoder_num_hidden_layers=4,
            decoder_num_attention_heads=16,
            decoder_intermediate_size=2048,
            layer_norm_eps=1e-6,
        )
    ).train()
    clips, noise = inputs()
    frames_first = clips.transpose(1, 2).contiguous()  # the order it takes
    places = noise[:, :_PLACES].argsort(dim=1)
    hidden = torch.ones(_BATCH, _PLACES, dtype=torch.bool).scatter_(1, places[:, : _VISIBLE // _SLOTS], False)
    hidden = hidden.repeat(1, _SLOTS)  # tubes through all time slots, as it is meant to be used
    sizes = [sum(p.numel() for p in m.parameters() if p.requires_grad and p.ndim > 1) for m in (model, peer)]
    with torch.no_grad():
        predicted = model(clips, noise)["prediction"].shape, peer(frames_first, bool_masked_pos=hidden).logits.shape
    if predicted[0] != predicted[1]:
        raise RuntimeError(f"the two models predict {predicted[0]} and {predicted[1]}: not the same size of work")
    return bench.compare(
        trained(model, lambda: model(clips, noise)["loss"]),
        trained(peer, lambda: peer(frames_first, bool_masked_pos=hidden).loss),
        bar=1.0,
        items=1,
        unit=f"step of {_BATCH} clip",
        fidelity={"weights, ours over theirs": Fidelity(sizes[0] / sizes[1], "", least=0.98, most=1.02)},
    )


if __name__ == "__main__":
    main("stmae_step", {"stmae_plain": stmae_plain, "stmae_videomae": stmae_videomae}, packages=("transformers",))
