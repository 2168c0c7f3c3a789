"""What a tokenizer's training minimises: terms and weights, and when the adversary begins to count."""

import math
from dataclasses import dataclass
from typing import Literal

from headcam.errors import InputError


@dataclass
class LossSettings:
    """Reconstruction, perceptual and adversarial terms; the quantizer's own terms are among its options.

    Attributes:
        reconstruction: Absolute (`l1`) or squared (`l2`) difference of pixels in -1..1, mean over all.
        reconstruction_weight: Its factor.
        perceptual: Weights of LPIPS, whose trunk was trained on ImageNet labels: a file, torchvision:vgg16 or
            torchvision:alexnet; null trains without.
        perceptual_weight: Its factor; with a trunk of torchvision, whose distances are larger, take 0.1.
        adversarial_weight: Factor of what the discriminator has to say; 0: no discriminator.
        adversarial_adaptive: Multiply it by the ratio of the gradients of the other terms and of this one at the
            decoder's last layer, so that neither drowns the other (Esser et al. 2021, equation 7).
        adversarial_start: Optimizer step from which it counts for the tokenizer; the discriminator learns from the
            first step on, so that it knows its trade by then.
        adversarial_warmup: Optimizer steps from there in which its factor grows linearly.
        disc_layers: Halvings of resolution in the discriminator (published: 3); its patches grow with them.
        disc_ch: Channels of the discriminator's first layer (published: 64).
    """

    reconstruction: Literal["l1", "l2"] = "l1"
    reconstruction_weight: float = 1.0
    perceptual: str | None = None
    perceptual_weight: float = 1.0
    adversarial_weight: float = 0.0
    adversarial_adaptive: bool = True
    adversarial_start: int = 0
    adversarial_warmup: int = 0
    disc_layers: int = 3
    disc_ch: int = 64

    def __post_init__(self) -> None:
        for name in ("reconstruction_weight", "perceptual_weight", "adversarial_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"loss.{name} is {getattr(self, name)}", "give a number from 0 on")
        for name, least in (("adversarial_start", 0), ("adversarial_warmup", 0), ("disc_layers", 1), ("disc_ch", 1)):
            if getattr(self, name) < least:
                raise InputError(f"loss.{name} is {getattr(self, name)}", f"give a whole number from {least} on")

    def ramp(self, step: int) -> float:
        """Share of `adversarial_weight` that counts for the tokenizer at an optimizer step, in [0, 1]."""
        since = step - self.adversarial_start
        if since < 0:
            return 0.0
        return min(1.0, (since + 1) / self.adversarial_warmup) if self.adversarial_warmup else 1.0
