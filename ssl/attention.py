"""Multi-head self-attention through PyTorch's scaled_dot_product_attention (Vaswani et al. 2017, equation 1).

Shapes: B batch, N tokens, D width, heads x head_dim = D. Parameter names are timm's (`qkv`, `proj`).
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Mask = None | Literal["causal"]


class Attention(nn.Module):
    """Self-attention with one joint projection for queries, keys and values.

    Args:
        dim: D.
        num_heads: must divide D.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

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
        x = F.scaled_dot_product_attention(q, k, v)  # (B, heads, num_queries, head_dim)
        return self.proj(x.transpose(1, 2).reshape(B, -1, D))
