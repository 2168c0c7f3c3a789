"""What an encoder looks at: attention of its class token to the patches, head by head (Caron et al. 2021, figure 1).

Any size of picture whose sides the patch divides can be looked at: positions are put on its grid, and only the class
token's row of the attention matrix is formed, (heads, L) instead of (heads, L, L), so that thousands of patches cost
little more than the forward pass. Models for clips show every time slot.

Shapes: B batch, L patches, t time slots, h x w grid of patches, D width.
"""

import torch
from torch import Tensor, nn

from headcam.errors import InputError
from headcam.ssl.masking import patchify
from headcam.ssl.vit import VisionTransformer, patch_grid


@torch.no_grad()
def class_attention(encoder: nn.Module, images: Tensor, block: int = -1) -> Tensor:
    """Attention of the class token to each patch.

    Args:
        encoder: a `VisionTransformer`.
        images: normalised (B, C, H, W) or, for models of clips, (B, C, T, H, W) too; sides that the patch divides.
        block: number of the block, negative from the last.
    Returns:
        (B, heads, t, h, w) float32; with what goes to the class token itself, the values of a head add up to 1.
    Raises:
        InputError: an encoder without attention, a block that is not there, a size that the patch does not divide.
    """
    if not isinstance(encoder, VisionTransformer):
        raise InputError(f"{type(encoder).__name__} has no attention to show", "give a model with a Vision Transformer")
    depth = len(encoder.blocks)
    if not -depth <= block < depth:
        raise InputError(f"block {block} is not there: the encoder has {depth}", f"give 0 to {depth - 1}, or -1")
    grid = patch_grid(tuple(images.shape[-2:]), encoder.patch_size)
    frames = images.shape[2] if images.ndim == 5 else 1
    if images.ndim == 5 and frames != encoder.num_frames:
        raise InputError(f"clips of {frames} frames do not fit a model for {encoder.num_frames}", "cut them to it")
    tubelet_size = encoder.tubelet_size if images.ndim == 5 else 1

    found: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], qkv: Tensor) -> None:
        B, N, width = qkv.shape
        heads = attention.num_heads
        q, k, _ = qkv.float().view(B, N, 3, heads, width // (3 * heads)).unbind(2)  # (B, N, heads, head_dim)
        scores = torch.einsum("bhd,bnhd->bhn", q[:, 0], k) * q.shape[-1] ** -0.5
        found.append(scores.softmax(dim=-1)[..., 1:])

    attention = encoder.blocks[block].attn
    handle = attention.qkv.register_forward_hook(look)
    try:
        encoder.forward_patches(patchify(images, encoder.patch_size, tubelet_size), grid=grid)
    finally:
        handle.remove()
    return found[0].view(len(images), attention.num_heads, -1, *grid)
