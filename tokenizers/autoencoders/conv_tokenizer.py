"""The convolutional tokenizer of pictures: VQGAN (Esser et al. 2021), in the layout of the published models.

Pixels in [-1, 1] go through a convolutional encoder to a grid f times as coarse, f = 2^(len(ch_mult) - 1); every place
of the grid becomes one of K codes; the decoder mirrors the encoder. The published models are

| name | `ch_mult` | `attn_resolutions` | codes | quantizer | tokens at 256 px | parameters |
| --- | --- | --- | --- | --- | --- | --- |
| f8 on SAYCam | 1, 1, 2, 4 | 32 | 8,192 | `vq` | 32 x 32 | 66.9 M |
| f16 on ImageNet, on SAYCam | 1, 1, 2, 2, 4 | 16 | 16,384 | `vq` | 16 x 16 | 76.1 M |
| f8 on OpenImages | 1, 1, 2, 4 | 32 | 8,192 | `gumbel` | 32 x 32 | 69.0 M |

all with `ch` 128, `num_res_blocks` 2, `z_channels` and `embed_dim` 256; `headcam.tokenizers.published` converts their
files. A small one for a CPU: `img_size` 64, `ch` 32, `ch_mult` (1, 2, 2, 4), `attn_resolutions` (8,), `z_channels` and
`embed_dim` 64.

Shapes: B batch, H x W pixels, D width of latents, K codes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from headcam.errors import InputError
from headcam.tokenizers.autoencoders.conv_blocks import Decoder, Encoder
from headcam.tokenizers.autoencoders.tokenizer import Tokenizer
from headcam.tokenizers.quantizers.table import build_quantizer


class ConvTokenizer(Tokenizer):
    """VQGAN's encoder and decoder around a quantizer.

    Args:
        img_size: pixels, one side or (height, width); f must divide both.
        ch: channels at full resolution before the multiplication; below 32, or so that all are multiples of 32.
        ch_mult: for each level, from full resolution on, by what `ch` is multiplied.
        num_res_blocks: residual blocks of a level of the encoder; the decoder has one more.
        attn_resolutions: levels that attend, by the shorter side of their maps in places.
        z_channels: channels of the encoder's outcome.
        embed_dim: D of the latents.
        codebook_size: K.
        quantizer, quantizer_options: see `headcam.tokenizers.quantizers.table`.
    Raises:
        InputError: a size that f does not divide, attention at a resolution that no level has, channels that cannot be
            normalised in groups, an unknown quantizer or option.
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 256,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 4),
        num_res_blocks: int = 2,
        attn_resolutions: Sequence[int] = (32,),
        z_channels: int = 256,
        embed_dim: int = 256,
        codebook_size: int = 8192,
        quantizer: str = "vq",
        quantizer_options: Mapping[str, Any] | None = None,
    ):
        sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if not ch_mult:
            raise InputError("ch_mult is empty", "give a factor for each level, such as 1, 2, 4")
        factor = 2 ** (len(ch_mult) - 1)
        if len(sides) != 2 or any(side < factor or side % factor for side in sides):
            raise InputError(
                f"img_size {' x '.join(map(str, sides))} is not divided by the {factor} of {len(ch_mult)} levels",
                f"use sides that are multiples of {factor}, or another number of factors in ch_mult",
            )
        resolutions = [min(sides) >> level for level in range(len(ch_mult))]
        absent = sorted(set(attn_resolutions) - set(resolutions))
        if absent:
            raise InputError(
                f"attn_resolutions name {', '.join(map(str, absent))}, which no level has at "
                f"{sides[0]} x {sides[1]} pixels",
                f"choose among {', '.join(map(str, resolutions))}, or none",
            )
        grid = (sides[0] // factor, sides[1] // factor)
        super().__init__(sides, grid, build_quantizer(quantizer, codebook_size, embed_dim, quantizer_options))
        self.arguments = {
            "img_size": list(sides),
            "ch": ch,
            "ch_mult": list(ch_mult),
            "num_res_blocks": num_res_blocks,
            "attn_resolutions": list(attn_resolutions),
            "z_channels": z_channels,
            "embed_dim": embed_dim,
            "codebook_size": codebook_size,
            "quantizer": quantizer,
            "quantizer_options": dict(quantizer_options or {}),
        }
        attention_levels = {level for level, side in enumerate(resolutions) if side in attn_resolutions}
        self.encoder = Encoder(ch, ch_mult, num_res_blocks, attention_levels, z_channels)
        self.decoder = Decoder(ch, ch_mult, num_res_blocks, attention_levels, z_channels)
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)

    def latents(self, images: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(images))

    def pixels(self, quantized: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(quantized))
