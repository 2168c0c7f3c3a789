"""A training step of the masked autoencoder: ours beside transformers' ViTMAEForPreTraining on the same work.

ViT-S/16 at 224 pixels, decoder of 8 blocks x 512 with 16 heads, 75 % masked, `norm_pix_loss`, batch 8; a step is
forward, backward and AdamW with the published recipe's settings, on as many threads as torch takes (on a busy machine
`--threads 1` is the steadier measure). Weights, images and noise are the same on both sides, and so is the loss
(largest relative difference 1e-4) before anything is timed.

`mae_fp32`: both in float32. `mae_bf16`: ours under bf16 autocast, which the library chooses where the processor has
AVX512-BF16 or AMX, beside the peer in float32; not applicable elsewhere.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext

import numpy as np
import torch
from harness import Bench, Fidelity, Measured, NotApplicable, Result, main
from torch import Tensor
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from headcam.randomness import stream
from headcam.ssl.mae import MaskedAutoencoder
from headcam.ssl.objective import parameter_groups
from headcam.ssl.training.precision import cpu_bf16

_BATCH = 8
_PATCHES = 196
_RECIPE = {"lr": 1.5e-4 * _BATCH / 256, "betas": (0.9, 0.95)}  # He et al. 2022, table 8
_WEIGHT_DECAY = 0.05
_BF16_BAR = 1.3

_RENAMED = (  # transformers -> ours
    (r"^vit\.embeddings\.cls_token$", "encoder.cls_token"),
    (r"^vit\.embeddings\.position_embeddings$", "encoder.pos_embed"),
    (r"^vit\.embeddings\.patch_embeddings\.projection\.", "encoder.patch_embed.proj."),
    (r"^vit\.layernorm\.", "encoder.norm."),
    (r"^vit\.layers\.", "encoder.blocks."),
    (r"^decoder\.decoder_layers\.", "decoder_blocks."),
    (r"^decoder\.", ""),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.qkv\.", ".attn.qkv."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
)


def from_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a `ViTMAEForPreTraining` under our names, for `MaskedAutoencoder.load_state_dict`.

    Its three projections of queries, keys and values are one of ours, in that order.
    """
    renamed = {}
    for name, value in weights.items():
        joint = re.sub(r"\.q_proj\.", ".qkv.", name)
        if joint != name:
            value = torch.cat([weights[joint.replace(".qkv.", f".{part}_proj.")] for part in "qkv"])
        elif re.search(r"\.[kv]_proj\.", name):
            continue
        for pattern, ours in _RENAMED:
            joint = re.sub(pattern, ours, joint)
        renamed[joint] = value
    return renamed


def same_models() -> tuple[MaskedAutoencoder, ViTMAEForPreTraining]:
    """Our model and the peer with the same weights, in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours = MaskedAutoencoder()  # ViT-S/16 and the decoder as named above are its defaults
        peer = ViTMAEForPreTraining(
            ViTMAEConfig(
                hidden_size=384,
                num_hidden_layers=12,
                num_attention_heads=6,
                intermediate_size=1536,
                decoder_hidden_size=512,
                decoder_num_hidden_layers=8,
                decoder_num_attention_heads=16,
                decoder_intermediate_size=2048,
                layer_norm_eps=1e-6,  # MAE's; its default is 1e-12
                mask_ratio=0.75,
                norm_pix_loss=True,
            )
        )
    with torch.no_grad():  # transformers builds these four at zero
        peer.vit.embeddings.position_embeddings.copy_(ours.encoder.pos_embed)
        peer.vit.embeddings.cls_token.copy_(ours.encoder.cls_token)
        peer.decoder.decoder_pos_embed.copy_(ours.decoder_pos_embed)
        peer.decoder.mask_token.copy_(ours.mask_token)
    ours.load_state_dict(from_transformers(peer.state_dict()))
    return ours.train(), peer.train()


def inputs() -> tuple[Tensor, Tensor]:
    """Images (B, 3, 224, 224), as if normalised, and noise (B, L)."""
    rng = stream(0, "benchmark mae", 0)
    images = rng.standard_normal((_BATCH, 3, 224, 224), dtype=np.float32)
    return torch.from_numpy(images), torch.from_numpy(rng.random((_BATCH, _PATCHES), dtype=np.float32))


def compare(bench: Bench, bf16: bool, bar: float, closeness: float) -> Measured:
    """Time our step, under bf16 autocast or not, and the peer's in float32."""
    ours, peer = same_models()
    images, noise = inputs()

    def our_loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            return ours(images, noise)["loss"]

    def peer_loss() -> Tensor:
        return peer(images, noise=noise).loss

    with torch.no_grad():
        difference = abs(float(our_loss()) / float(peer_loss()) - 1)
    return bench.compare(
        step(our_loss, torch.optim.AdamW(parameter_groups(ours, _WEIGHT_DECAY), fused=True, **_RECIPE)),
        step(peer_loss, torch.optim.AdamW(peer.parameters(), weight_decay=_WEIGHT_DECAY, **_RECIPE)),
        bar=bar,
        items=1,
        unit=f"step of {_BATCH} images",
        fidelity={"relative difference of the losses": Fidelity(difference, "", most=closeness)},
    )


def step(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """One training step as a function without arguments."""

    def run() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return run


def mae_fp32(bench: Bench) -> Measured:
    """Both sides in float32."""
    return compare(bench, bf16=False, bar=1.0, closeness=1e-4)


def mae_bf16(bench: Bench) -> Result:
    """Ours in bf16, the peer in float32."""
    if cpu_bf16() is None:
        return NotApplicable(_BF16_BAR, "this processor has neither AVX512-BF16 nor AMX; the library runs in fp32 here")
    return compare(bench, bf16=True, bar=_BF16_BAR, closeness=2e-2)  # bf16 keeps 8 bits: single values to 0.4 %


if __name__ == "__main__":
    main("mae_step", {"mae_fp32": mae_fp32, "mae_bf16": mae_bf16}, packages=("transformers",))
