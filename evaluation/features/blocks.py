"""What the blocks of an encoder put out, one after the other, in one pass; whoever has enough stops it.

| encoder | its blocks | their number N of tokens |
| --- | --- | --- |
| VisionTransformer | those of the trunk; no norm after the last one | class token, then patches |
| GPT on tokens | those of the GPT; the last one's output is taken after the final norm | positions |

A model of clips takes a still as a clip of equal frames, here as in `forward_features`. Trunks of convolutions and
tokenizers have no blocks of one width, and are refused.
"""

from collections.abc import Iterator

from torch import Tensor, nn

from headcam.errors import InputError
from headcam.ssl.masking import patchify
from headcam.ssl.vit import VisionTransformer
from headcam.tokenizers.autoregression.encoder import TokenEncoder


def layer_count(encoder: nn.Module) -> int:
    """Number of blocks.

    Raises:
        InputError: an encoder without.
    """
    if isinstance(encoder, VisionTransformer):
        return len(encoder.blocks)
    if isinstance(encoder, TokenEncoder) and encoder.gpt is not None:
        return encoder.gpt.depth
    what = type(encoder.tokenizer if isinstance(encoder, TokenEncoder) else encoder).__name__
    raise InputError(
        f"a {what} has no transformer blocks whose features could be taken", "leave the layer out, or give a ViT or GPT"
    )


def block_number(encoder: nn.Module, layer: int) -> int:
    """1 .. depth, from a layer that may be counted from the end (-1 is the last).

    Raises:
        InputError: no such layer.
    """
    depth = layer_count(encoder)
    if not 1 <= abs(layer) <= depth:
        raise InputError(
            f"layer {layer} is none of an encoder of {depth} blocks", f"give 1 to {depth}, or -1 for the last"
        )
    return layer if layer > 0 else depth + 1 + layer


def block_outputs(encoder: nn.Module, images: Tensor) -> Iterator[Tensor]:
    """(B, N, D) after every block in turn, the next one computed when it is asked for.

    Args:
        encoder: one that `layer_count` knows.
        images: (B, 3, H, W) of the encoder's size, or clips (B, 3, T, H, W), normalised.
    """
    if isinstance(encoder, TokenEncoder):
        yield from encoder.block_outputs(images)
        return
    x = encoder.embed_patches(patchify(images, encoder.patch_size, encoder.tubelet_size if images.ndim == 5 else 1))
    for block in encoder.blocks:
        x = block(x)
        yield x
