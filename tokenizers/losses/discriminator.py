"""The adversary of a tokenizer: a network that tells real patches from reconstructed ones, and the losses of both.

PatchGAN (Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks", section 3.2.2) scores
overlapping patches, not whole pictures: a small network that looks at texture. For clips the same with 3-D
convolutions (Ge et al. 2022, TATS). Losses are the hinge ones (Lim and Ye 2017), as in VQGAN.

It differs from the published code in its norm: batch norm mixes the samples of a process, so that a result would depend
on the number of processes and on real and reconstructed pictures being passed apart; group norm does not. In time,
kernels are 3 wide instead of 4, so that no length of a clip is too short.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from headcam.errors import InputError
from headcam.ssl.training.distributed import sum_over_processes

_KERNEL = 4  # pixels; in time 3
_WIDEST = 8  # times the first layer's channels, at most
_GROUPS = 32


class PatchDiscriminator(nn.Module):
    """Scores of overlapping patches: high for real ones.

    Args:
        size: of what is judged, (H, W) or (T, H, W); (H, W) makes 2-D convolutions, (T, H, W) 3-D ones.
        ch: channels of the first layer, doubled with every halving up to 8 times.
        num_layers: halvings of resolution (published: 3, a patch of 70 pixels).
    Raises:
        InputError: pictures too small for so many halvings.
    """

    def __init__(self, size: Sequence[int], ch: int = 64, num_layers: int = 3):
        super().__init__()
        left = min(size[-2:]) // 2**num_layers - 2  # two more convolutions of 4 pixels without a step
        if left < 1:
            raise InputError(
                f"pictures of {size[-2]} x {size[-1]} are too small for a discriminator of {num_layers} layers",
                "lower model.loss.disc_layers, or set model.loss.adversarial_weight to 0",
            )
        clips = len(size) == 3
        make = nn.Conv3d if clips else nn.Conv2d
        kernel = (3, _KERNEL, _KERNEL) if clips else _KERNEL

        def conv(inputs: int, outputs: int, stride: int, bias: bool = True) -> nn.Module:
            return make(inputs, outputs, kernel, stride, padding=1, bias=bias)

        layers: list[nn.Module] = [conv(3, ch, 2), nn.LeakyReLU(0.2)]
        width = ch
        for k in range(1, num_layers + 1):
            inputs, width = width, ch * min(2**k, _WIDEST)
            layers += [
                conv(inputs, width, 2 if k < num_layers else 1, bias=False),
                nn.GroupNorm(min(_GROUPS, width), width),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, conv(width, 1, 1))
        for module in self.modules():
            if isinstance(module, make):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) -> scores (B, 1, h, w); clips (B, 3, T, H, W) -> (B, 1, t, h, w)."""
        return self.layers(images)


def frozen(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """`module` as a function of its input alone: gradients pass through it and do not reach its weights."""
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return lambda images: functional_call(module, weights, (images,))


def generator_loss(scores: Tensor) -> Tensor:
    """What the tokenizer minimises: minus the mean score of its reconstructions, scalar float32."""
    return -scores.float().mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator: mean of max(0, 1 - real) and max(0, 1 + fake), halved, scalar float32."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def adaptive_weight(nll: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """How much larger the gradient of the other terms is than the adversarial one at the decoder's last layer.

    |grad nll| / (|grad adversarial| + 1e-4), at most 1e4 (Esser et al. 2021, equation 7, with the constants of its
    code). In a run of several processes the gradients are averaged first, so that all use the same weight.

    Args:
        nll, adversarial: scalars with a graph that reaches `last_layer`, which stays for the backward pass.
        last_layer: a weight.
    Returns:
        scalar without gradient.
    """
    gradients = [torch.autograd.grad(loss, last_layer, retain_graph=True)[0] for loss in (nll, adversarial)]
    both = torch.stack(gradients).detach().float()
    both = both / sum_over_processes(both)
    ours, theirs = both.flatten(1).norm(dim=1)
    return (ours / (theirs + 1e-4)).clamp(0.0, 1e4)
