"""Multi-head self-attention, softmax(Q K^T / sqrt(d)) V (Vaswani et al. 2017, equation 1), by one of three backends.

| backend | what computes it | where |
| --- | --- | --- |
| `sdpa` (default) | PyTorch's `scaled_dot_product_attention`, which takes flash kernels where it has them | anywhere |
| `xformers` | memory-efficient attention of the package xformers, or mslk, where it lives from 2026 on | CUDA |
| `math` | the formula as it stands, with the whole map of scores: the reference of the tests | anywhere |

All three give the same numbers up to rounding, so the choice is no part of a model: weights trained with one run with
another. `resolve_backend` says which one a device can have, `set_attention_backend` sets it in all layers of a network.

**Unverified:** the kernels of xformers have not been run by this project, no GPU run is recorded yet. What is tested is
that its masks are ours (written out by its own `materialize()`, on a CPU) and that its layout is filled and read
correctly. On tensors that are not on a CUDA device the `xformers` backend computes by `sdpa`.

Masks are None (every token attends to all), "causal" (token i to tokens 0..i), or `BlockDiagonal` (several sequences
packed into one). None is ever written out as a dense map but in `math`, and where the last tokens alone of a causal
sequence are computed on a CPU or by compiled code. `sdpa` has no kernel for packed sequences and needs none: neighbours
of equal length are a batch.

Shapes: B batch, N tokens, D width, heads x head_dim = D. Parameter names are timm's (`qkv`, `proj`).
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from itertools import groupby
from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from headcam.errors import InputError

BACKENDS = ("sdpa", "xformers", "math")


@dataclass(frozen=True)
class BlockDiagonal:
    """Sequences of `lengths` tokens, one after the other in a batch of one; each attends to itself only.

    Attributes:
        lengths: tokens of each sequence, in order; their sum is N.
        causal: within a sequence, token i attends to its tokens 0..i only.
    """

    lengths: tuple[int, ...]
    causal: bool = False


Mask = None | Literal["causal"] | BlockDiagonal


class Attention(nn.Module):
    """Self-attention with one joint projection for queries, keys and values.

    Args:
        dim: D.
        num_heads: must divide D.

    Attributes:
        backend: one of `BACKENDS`, see `set_attention_backend`.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.backend = "sdpa"

    def forward(self, x: Tensor, num_queries: int | None = None, mask: Mask = None) -> Tensor:
        """Attend from the last `num_queries` tokens (None: all) to all tokens: (B, N, D) -> (B, num_queries, D)."""
        B, N, D = x.shape
        heads = self.num_heads
        if num_queries is None or num_queries == N:
            qkv = self.qkv(x).view(B, N, 3, heads, D // heads).permute(2, 0, 3, 1, 4)  # (3, B, heads, N, head_dim)
            q, k, v = qkv.unbind(0)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            q = F.linear(x[:, N - num_queries :], weight[:D], bias[:D])  # (B, num_queries, D)
            q = q.view(B, num_queries, heads, D // heads).transpose(1, 2)
            kv = F.linear(x, weight[D:], bias[D:]).view(B, N, 2, heads, D // heads)
            k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        x = attend(q, k, v, mask, self.backend)  # (B, heads, num_queries, head_dim)
        return self.proj(x.transpose(1, 2).reshape(B, -1, D))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, backend: str = "sdpa") -> Tensor:
    """Attention of projected tokens; the queries are those of the last tokens where they are fewer than the keys.

    Args:
        q: (B, heads, num_queries, head_dim).
        k, v: (B, heads, N, head_dim).
        mask: for `BlockDiagonal` B is 1 and there are as many queries as keys.
        backend: one of `BACKENDS`.
    Returns:
        (B, heads, num_queries, head_dim).
    """
    if isinstance(mask, BlockDiagonal):
        tokens = sum(mask.lengths)
        if (q.shape[0], q.shape[2], k.shape[2]) != (1, tokens, tokens):
            raise ValueError(f"{mask} packs 1 x {tokens} tokens, got queries {tuple(q.shape)}, keys {tuple(k.shape)}")
    if backend == "math":
        return _attend_math(q, k, v, mask)
    if backend == "xformers" and q.is_cuda:
        return _attend_xformers(q, k, v, mask)
    return _attend_sdpa(q, k, v, mask)


def dense_mask(mask: Mask, num_queries: int, num_keys: int, device: torch.device | str | None = None) -> Tensor:
    """`mask` written out: (num_queries, num_keys) bool, true where the query attends to the key.

    Queries are the last tokens: the last query of a causal mask sees the last key.
    """
    everything = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    if mask is None:
        return everything
    if mask == "causal":
        return everything.tril(num_keys - num_queries)
    return torch.block_diag(*(dense_mask("causal" if mask.causal else None, n, n, device) for n in mask.lengths))


def _attend_math(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """The formula, in the dtype of its input but for the softmax, which is at least float32."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, heads, num_queries, N)
    if mask is not None:
        scores = scores.masked_fill(~dense_mask(mask, q.shape[2], k.shape[2], q.device), -math.inf)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return weights.to(v.dtype) @ v


def _attend_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    if isinstance(mask, BlockDiagonal):
        return _attend_packed(q, k, v, mask)
    num_queries, num_keys = q.shape[2], k.shape[2]
    if mask is None or num_queries == 1:  # the last token sees all
        return F.scaled_dot_product_attention(q, k, v)
    if num_queries == num_keys:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    # `is_causal` lets the first query see the first key only, whatever the lengths; ours are the last tokens.
    if torch.compiler.is_compiling():  # cannot trace PyTorch's own class for that
        bias = dense_mask(mask, num_queries, num_keys, q.device)
    else:
        bias = causal_lower_right(num_queries, num_keys)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _attend_packed(q: Tensor, k: Tensor, v: Tensor, mask: BlockDiagonal) -> Tensor:
    """Each run of sequences of one length as a batch: views only, until the results are joined."""
    parts, start = [], 0
    for length, run in groupby(mask.lengths):
        count = len(list(run))
        blocks = (
            x[0, :, start : start + count * length].unflatten(1, (count, length)).transpose(0, 1) for x in (q, k, v)
        )  # each (count, heads, length, head_dim)
        out = F.scaled_dot_product_attention(*blocks, is_causal=mask.causal)
        parts.append(out.transpose(1, 2).flatten(0, 1))  # (count * length, heads, head_dim)
        start += count * length
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).unsqueeze(0).transpose(1, 2)


def _attend_xformers(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """Its layout is (B, tokens, heads, head_dim), which is how ours lies in memory."""
    bias = _xformers_bias(mask, q.shape[2], k.shape[2], q.device)
    attended = _fmha().memory_efficient_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_bias=bias)
    return attended.transpose(1, 2)


@lru_cache(maxsize=64)  # a packed mask holds tensors on the device; a network asks for the same few in every layer
def _xformers_bias(mask: Mask, num_queries: int, num_keys: int, device: torch.device) -> Any:
    """`mask` as an `AttentionBias` of xformers."""
    if mask is None:
        return None
    biases = _fmha().attn_bias
    if mask == "causal":
        return biases.LowerTriangularMask() if num_queries == num_keys else biases.LowerTriangularFromBottomRightMask()
    packed = biases.BlockDiagonalMask.from_seqlens(list(mask.lengths), device=device)
    return packed.make_causal() if mask.causal else packed


@lru_cache(maxsize=1)
def _fmha() -> ModuleType:
    """The module of memory-efficient attention: of mslk where that is installed, else of xformers.

    Raises:
        Exception: of whatever kind a missing or broken install raises.
    """
    try:
        module = import_module("mslk.attention.fmha")
    except ImportError:
        module = import_module("xformers.ops.fmha")
    import_module(f"{module.__name__}.attn_bias")
    if not hasattr(module, "memory_efficient_attention"):
        raise ImportError(f"{module.__name__} has no memory_efficient_attention (mslk is missing)")
    return module


def resolve_backend(wanted: str, device: torch.device | str) -> tuple[str, str]:
    """The backend to use on `device`, and one line that says why, where it is not the wanted one (else empty).

    Whether xformers has kernels for this GPU and this torch is found out by using them once, forward and backward.

    Raises:
        InputError: no such backend.
    """
    _check_backend(wanted)
    device = torch.device(device)
    if wanted != "xformers":
        return wanted, ""
    instead = "attention runs by PyTorch's scaled_dot_product_attention instead, with the same results"
    if device.type != "cuda":
        return "sdpa", f"xformers has kernels for CUDA only and this is {device.type}: {instead}; nothing to install"
    try:
        _fmha()
    except Exception as error:  # a broken install raises more than ImportError
        return "sdpa", (
            f"xformers cannot be imported ({_first_line(error)}): {instead}; to have it: pip install "
            "'headcam[xformers]' (from the release after 0.0.35 on it needs mslk too)"
        )
    try:
        _try_kernels(device)
    except Exception as error:
        return "sdpa", (
            f"xformers has no working kernels here ({_first_line(error)}): {instead}; to have it install the build of "
            f"xformers for torch {torch.__version__} and CUDA {torch.version.cuda}"
        )
    return wanted, ""


def _try_kernels(device: torch.device) -> None:
    q, k, v = torch.zeros(3, 1, 2, 24, 64, dtype=torch.float16, device=device, requires_grad=True).unbind()
    _attend_xformers(q, k, v, BlockDiagonal((16, 8))).sum().backward()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def set_attention_backend(module: nn.Module, backend: str) -> None:
    """Let every `Attention` in `module` compute by `backend`, a name that `resolve_backend` returned.

    Raises:
        InputError: no such backend.
    """
    _check_backend(backend)
    for part in module.modules():
        if isinstance(part, Attention):
            part.backend = backend


def _check_backend(name: str) -> None:
    if name not in BACKENDS:
        raise InputError(f"there is no attention backend {name!r}", f"use one of {', '.join(BACKENDS)}")
