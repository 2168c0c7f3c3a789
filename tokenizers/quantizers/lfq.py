"""Lookup-free quantization (Yu et al. 2023, "Language model beats diffusion: tokenizer is key to visual generation",
MAGVIT-v2): a code is the signs of log2 K numbers.

There is no codebook; what keeps codes in use is an entropy term: each latent should be sure of its code, all together
should use all codes. With binary dimensions both have closed forms that never need the M x K matrix of probabilities:
given a latent, its bits are independent, so its entropy is the sum of theirs; for that of all together see
`headcam.tokenizers.quantizers.entropy`.

Shapes: M places of a batch, d = log2 K bits, the first one the highest.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from headcam.errors import InputError
from headcam.tokenizers.quantizers.entropy import entropy_of_mean
from headcam.tokenizers.quantizers.projected import ProjectedQuantizer
from headcam.tokenizers.quantizers.quantizer import straight_through
from headcam.tokenizers.quantizers.whitening import Whitening


class LFQ(ProjectedQuantizer):
    """LFQ with a linear layer from the latents to the bits, and one back.

    Args:
        codebook_size: K, a power of 2.
        dim: D of the latents.
        entropy_loss_weight: of the entropy term.
        diversity_gamma: of the mean distribution's entropy within it.
        inv_temperature: sharpness of a latent's distribution over codes: its logits are 2 x.c times that, for a latent
            x and codes c of -1 and 1. Where it is high, bits far from 0 feel no pull.
        commitment_weight: of the term that draws latents to their codes.
        whiten: spread latents over the bits by their running mean and covariance (not in the paper).
    Raises:
        InputError: K is no power of 2, or a negative weight.
    """

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        entropy_loss_weight: float = 0.1,
        diversity_gamma: float = 1.0,
        inv_temperature: float = 1.0,
        commitment_weight: float = 0.25,
        whiten: bool = True,
    ):
        bits = codebook_size.bit_length() - 1
        if codebook_size < 2 or codebook_size != 1 << bits:
            near = 2 << max(0, bits)
            raise InputError(f"codebook_size {codebook_size} is no power of 2", f"take {near // 2} or {near}")
        options = {
            "entropy_loss_weight": entropy_loss_weight,
            "diversity_gamma": diversity_gamma,
            "inv_temperature": inv_temperature,
            "commitment_weight": commitment_weight,
        }
        for name, value in options.items():
            if value < 0:
                raise InputError(f"{name} is {value}", "give a number from 0 on")
        super().__init__(codebook_size, dim, bits, **options, whiten=whiten)
        self.whitening = Whitening(bits) if whiten else None
        self.entropy_loss_weight, self.diversity_gamma = entropy_loss_weight, diversity_gamma
        self.inv_temperature, self.commitment_weight = inv_temperature, commitment_weight
        self.register_buffer("_basis", 2 ** torch.arange(bits - 1, -1, -1), persistent=False)

    def round(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.whitening is not None:
            rows = self.whitening(rows)
        indices = ((rows > 0) * self._basis).sum(1)
        codes = self.lookup(indices)
        loss = self.commitment_weight * F.mse_loss(rows, codes)
        if self.entropy_loss_weight:
            each, together = self.entropies(rows)
            loss = loss + self.entropy_loss_weight * (each - self.diversity_gamma * together)
        return straight_through(rows, codes), indices, loss

    def after_step(self, step: int, skip: Tensor | float = 0.0) -> None:
        if self.whitening is not None:
            self.whitening.update(skip)

    def lookup(self, indices: Tensor) -> Tensor:
        return (indices[:, None] // self._basis % 2).float() * 2 - 1

    def entropies(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean entropy of the latents' distributions over codes, and entropy of their mean, in nats; scalars.

        In training the mean is over all processes.

        Args:
            rows: (M, d) float32.
        """
        logits = 4 * self.inv_temperature * rows  # of a bit being set: 2 x.c differs by 4 x between the two
        each = (F.softplus(logits) - logits * logits.sigmoid()).sum(1).mean()
        p = logits.sigmoid()
        digits = torch.stack([1 - p, p], -1).unbind(1)
        return each, entropy_of_mean(digits, everywhere=self.training)
