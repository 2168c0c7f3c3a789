"""A training step of the GPT: ours beside transformers' GPT2LMHeadModel on the same work.

6 blocks x 384 with 6 heads, 1,024 tokens of a vocabulary of 1,024, batch 2; no dropout, exact GELU, a last layer that
is not the table of tokens, attention by `scaled_dot_product_attention`. A step is forward, backward and fused AdamW,
on as many threads as torch takes (on a busy machine `--threads 1` is the steadier measure). Weights and tokens are the
same on both sides, and so is the loss (largest relative difference 1e-5) before anything is timed. Ours has no start
token here, as GPT-2 has none: both predict 1,023 tokens from 1,023.

`gpt_fp32`: both in float32. `gpt_bf16`: ours under bf16 autocast, which the library chooses where the processor has
AVX512-BF16 or AMX, beside the peer in float32; not applicable elsewhere.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from harness import Bench, Fidelity, Measured, NotApplicable, Result, main
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from headcam.randomness import stream
from headcam.ssl.objective import parameter_groups
from headcam.ssl.training.precision import cpu_bf16
from headcam.tokenizers.autoregression.gpt import PRESETS
from headcam.tokenizers.autoregression.training import TokenModel

_BATCH = 2
_GRID = (32, 32)
_VOCAB = 1024
_SIZE = PRESETS["mini"]
_RECIPE = {"lr": 3e-4, "betas": (0.9, 0.95)}
_WEIGHT_DECAY = 0.05
_FP32_BAR, _BF16_BAR = 0.95, 1.3

_RENAMED = (  # transformers -> ours
    (r"^transformer\.wte\.", "tok_embed."),
    (r"^transformer\.wpe\.weight$", "pos_embed"),
    (r"^transformer\.h\.", "blocks."),
    (r"^transformer\.ln_f\.", "norm."),
    (r"^lm_head\.", "head."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.c_attn\.", ".qkv."),
    (r"\.attn\.c_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


def from_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a `GPT2LMHeadModel` under our names, for `GPT.load_state_dict`.

    Its linear maps in the blocks are stored as (in, out), ours as (out, in).
    """
    renamed = {}
    for name, value in weights.items():
        for pattern, ours in _RENAMED:
            name = re.sub(pattern, ours, name)
        if name.startswith("blocks.") and value.ndim == 2:
            value = value.T
        renamed[name] = value.unsqueeze(0) if name == "pos_embed" else value
    return renamed


def same_models() -> tuple[TokenModel, GPT2LMHeadModel]:
    """Our model and the peer with the same weights, in training mode."""
    positions = _GRID[0] * _GRID[1] - 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        peer = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=_VOCAB,
                n_positions=positions,
                n_embd=_SIZE.embed_dim,
                n_layer=_SIZE.depth,
                n_head=_SIZE.num_heads,
                activation_function="gelu",  # the exact one, as ours; its default is the tanh approximation
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                tie_word_embeddings=False,
                use_cache=False,
                bos_token_id=0,
                eos_token_id=0,
                attn_implementation="sdpa",
            )
        )
        ours = TokenModel(
            vocab_size=_VOCAB,
            grid=_GRID,
            embed_dim=_SIZE.embed_dim,
            depth=_SIZE.depth,
            num_heads=_SIZE.num_heads,
            start_token="none",
        )
    ours.encoder.load_state_dict(from_transformers(peer.state_dict()))
    return ours.train(), peer.train()


def inputs() -> Tensor:
    """Tokens (B, h, w) int64."""
    rng = stream(0, "benchmark gpt", 0)
    return torch.from_numpy(rng.integers(0, _VOCAB, (_BATCH, *_GRID)))


def compare(bench: Bench, bf16: bool, bar: float, closeness: float) -> Measured:
    """Time our step, under bf16 autocast or not, and the peer's in float32."""
    ours, peer = same_models()
    tokens = inputs()
    flat = tokens.flatten(1)
    given, wanted = flat[:, :-1].contiguous(), flat[:, 1:].contiguous()

    def our_loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            return ours(tokens)

    def peer_loss() -> Tensor:
        scores = peer(given).logits
        return torch.nn.functional.cross_entropy(scores.view(-1, _VOCAB), wanted.view(-1))

    difference = abs(float(our_loss().detach()) / float(peer_loss().detach()) - 1)
    return bench.compare(
        step(our_loss, torch.optim.AdamW(parameter_groups(ours, _WEIGHT_DECAY), fused=True, **_RECIPE)),
        step(peer_loss, torch.optim.AdamW(peer.parameters(), weight_decay=_WEIGHT_DECAY, fused=True, **_RECIPE)),
        bar=bar,
        items=1,
        unit=f"step of {_BATCH} x {_GRID[0] * _GRID[1]:,} tokens",
        fidelity={"relative difference of the losses": Fidelity(difference, "", most=closeness)},
    )


def step(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """One training step as a function without arguments."""

    def run() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return run


def gpt_fp32(bench: Bench) -> Measured:
    """Both sides in float32."""
    return compare(bench, bf16=False, bar=_FP32_BAR, closeness=1e-5)


def gpt_bf16(bench: Bench) -> Result:
    """Ours in bf16, the peer in float32."""
    if cpu_bf16() is None:
        return NotApplicable(_BF16_BAR, "this processor has neither AVX512-BF16 nor AMX; the library runs in fp32 here")
    return compare(bench, bf16=True, bar=_BF16_BAR, closeness=2e-2)  # bf16 keeps 8 bits: single values to 0.4 %


if __name__ == "__main__":
    main("gpt_train", {"gpt_fp32": gpt_fp32, "gpt_bf16": gpt_bf16}, packages=("transformers",))
