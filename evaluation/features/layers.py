"""Features of every layer of an encoder, from one pass: for the curve of how well each of them can be read.

The table has the layers side by side, (n, depth * D): columns k * D to (k + 1) * D are block k + 1, the first block
first. Each is what `EncoderExtractor` gives for that `layer` alone. On the disk it is `depth` times as large as the
table of one layer: for a ViT-B on ImageNet 23.6 GB.
"""

from typing import Any

import numpy as np
import torch

from headcam.errors import InputError
from headcam.evaluation.features.blocks import block_outputs, layer_count
from headcam.evaluation.features.encoders import EncoderExtractor
from headcam.evaluation.protocols import EncoderFeatures


class LayersExtractor(EncoderExtractor):
    """Pooled outputs of all blocks of a ViT or GPT; arguments as of `EncoderExtractor`.

    Attributes:
        depth: number of layers.
    Raises:
        InputError: an encoder without transformer blocks, or a protocol that names one layer.
    """

    def __init__(
        self, encoder: torch.nn.Module, card: dict[str, Any], protocol: EncoderFeatures, device: str | torch.device
    ):
        if protocol.layer is not None:
            raise InputError(f"layer {protocol.layer} is asked for, and all layers", "leave one of the two out")
        super().__init__(encoder, card, protocol, device)
        self.depth = layer_count(encoder)

    @property
    def dim(self) -> int:
        return self.depth * self.encoder.embed_dim

    @property
    def identity(self) -> dict[str, Any]:
        return {**super().identity, "layers": "all"}

    @torch.inference_mode()
    def compute(self, batch: np.ndarray) -> np.ndarray:
        """Pictures (B, H, W, 3) uint8 to (B, depth * D) float32."""
        outputs = block_outputs(self.encoder, self.normalized(batch))
        return torch.cat([self.pool(tokens) for tokens in outputs], dim=1).cpu().numpy()
