"""The network of DINO and its loss, without Lightning: student, teacher, centre (see `headcam.ssl.dino` for the whole).

The loss is that of the published code (Caron et al. 2021), the work is less:

- crops of one size go through the backbone in one call, all crops through the head in one;
- the K x 256 prototypes are not copied to be normalised: similarities are divided by their norms instead;
- the loss has no loop over pairs of views and stores no log-probabilities.

Shapes: B batch, n small crops, V = 2 + n views, D backbone width, K prototypes.
"""

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headcam.ssl.masking import patchify
from headcam.ssl.training.distributed import sum_over_processes
from headcam.ssl.vit import VisionTransformer

NUM_GLOBAL = 2  # large crops: the loss pairs each with the teacher's view of the other


def dino_loss(student_global: Tensor, student_local: Tensor | None, teacher: Tensor) -> Tensor:
    """Mean cross-entropy over all pairs of a teacher's view and another view of the student's (Caron et al., eq. 3).

    With the distributions t of the teacher adding up to 1, -sum_k t_k log_softmax(z)_k = logsumexp(z) - sum_k t_k z_k,
    so that no log-probabilities are stored beside the logits z. A large view learns from the teacher's view of the
    other one, a small view from both.

    Args:
        student_global: (B, 2, K) logits of the large views, divided by the student's temperature.
        student_local: (B, n, K) those of the small views; None: there are none.
        teacher: (B, 2, K) probabilities.
    """
    # Products instead of matrix products: autocast would lower those to 16 bits.
    loss = student_global.logsumexp(-1).sum() - (student_global * teacher.flip(1)).sum()
    pairs = student_global.shape[0] * NUM_GLOBAL
    if student_local is not None:
        both = teacher.sum(1, keepdim=True)
        loss = loss + 2 * student_local.logsumexp(-1).sum() - (student_local * both).sum()
        pairs += student_local.shape[0] * student_local.shape[1] * NUM_GLOBAL
    return loss / pairs


class Prototypes(nn.Module):
    """Cosine similarity of unit vectors to K learned directions: a weight-normalised linear layer whose gain is 1."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.weight_v = nn.Parameter(torch.empty(out_dim, in_dim))
        nn.init.kaiming_uniform_(self.weight_v, a=math.sqrt(5))  # that of nn.Linear, as published

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        """(N, in_dim) -> (N, K); `frozen`: the directions get no gradient."""
        directions = self.weight_v.detach() if frozen else self.weight_v
        return F.linear(x, directions) / directions.norm(dim=1)


class DINOHead(nn.Module):
    """MLP of three layers to a bottleneck, whose unit vector is compared to K prototypes (Caron et al., appendix C).

    Args:
        in_dim: D.
        out_dim: K.
        hidden_dim, bottleneck_dim: widths (published: 2048, 256).
        use_bn: batch normalisation behind the two hidden layers (published: not with transformers).
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int = 65_536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        use_bn: bool = False,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for width in (in_dim, hidden_dim):
            layers += [nn.Linear(width, hidden_dim), *([nn.BatchNorm1d(hidden_dim)] if use_bn else []), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_dim, bottleneck_dim))
        self.mlp.apply(_init_linear)
        self.last_layer = Prototypes(bottleneck_dim, out_dim)

    def forward(self, x: Tensor, temperature: float = 1.0, frozen: bool = False) -> Tensor:
        """Features (N, D) -> cosine similarities over `temperature` (N, K); `frozen`: see `Prototypes`."""
        x = F.normalize(self.mlp(x), dim=-1)
        return self.last_layer(x / temperature, frozen)  # divided here, where there are 256 numbers and not K


class DINONetwork(nn.Module):
    """Student, teacher and centre; usable without Lightning.

    Args:
        build_encoder: makes the backbone at random initialisation.
        out_dim, hidden_dim, bottleneck_dim, use_bn_in_head: of the heads, see `DINOHead`.

    Attributes:
        encoder, head: of the teacher, which starts equal to the student and gets no gradient.
        student_encoder, student_head: what is optimised.
        center: (K,) buffer, moving mean of the teacher's similarities.
    """

    def __init__(
        self,
        build_encoder: Callable[[], nn.Module],
        out_dim: int = 65_536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        use_bn_in_head: bool = False,
    ):
        super().__init__()
        self.student_encoder = build_encoder()
        if isinstance(self.student_encoder, VisionTransformer):
            init_vit(self.student_encoder)
        width = self.student_encoder.embed_dim
        self.student_head = DINOHead(width, out_dim, hidden_dim, bottleneck_dim, use_bn_in_head)
        self.encoder = copy.deepcopy(self.student_encoder).requires_grad_(False)
        self.head = copy.deepcopy(self.student_head).requires_grad_(False)
        self.register_buffer("center", torch.zeros(out_dim))
        # Sum and number of the teacher's outputs since the centre moved last; empty between steps, so no state.
        self._outputs: Tensor | None = None
        self._num_outputs = 0

    def forward(
        self,
        global_views: Tensor,
        local_views: Tensor | None = None,
        student_temp: float = 0.1,
        teacher_temp: float = 0.04,
        global_noise: Tensor | None = None,
        local_noise: Tensor | None = None,
        frozen: bool = False,
    ) -> dict[str, Tensor]:
        """Loss of a batch, and what the centre and the watch over collapse need of the teacher.

        Args:
            global_views: (B, 2, 3, H, W) float, normalised.
            local_views: (B, n, 3, h, w) float, normalised; None: there are none.
            student_temp, teacher_temp: temperatures of the two distributions.
            global_noise, local_noise: (B, 2, 2 * depth) and (B, n, 2 * depth) uniform in [0, 1), decide stochastic
                depth in the student; None: nothing is dropped.
            frozen: the student's prototypes get no gradient but zeros.
        Returns:
            `loss` scalar; `teacher` (B, 2, K) probabilities, `outputs` (B, 2, K) similarities before centering, and
            `features` (B, 2, D) of the teacher.
        """
        B = len(global_views)
        with torch.no_grad():
            features = _features(self.encoder, [global_views], [None])[0]  # (2 B, D)
            outputs = self.head(features).float().unflatten(0, (B, NUM_GLOBAL))
            teacher = ((outputs - self.center) / teacher_temp).softmax(-1)
        views, noise = [global_views], [global_noise]
        if local_views is not None:
            views, noise = [*views, local_views], [*noise, local_noise]
        seen = _features(self.student_encoder, views, noise)
        logits = self.student_head(torch.cat(seen), student_temp, frozen).float()  # (V B, K), large views first
        large, *small = (part.unflatten(0, (B, -1)) for part in logits.split([len(x) for x in seen]))
        loss = dino_loss(large, small[0] if small else None, teacher)
        if frozen:  # DistributedDataParallel waits for a gradient of every parameter
            loss = loss + 0.0 * self.student_head.last_layer.weight_v[0, 0]
        return {"loss": loss, "teacher": teacher, "outputs": outputs, "features": features.unflatten(0, (B, -1))}

    @torch.no_grad()
    def note_outputs(self, outputs: Tensor) -> None:
        """Take a micro-batch's (B, 2, K) into the mean that `update_center` moves to."""
        total = outputs.sum((0, 1))
        self._outputs = total if self._outputs is None else self._outputs + total
        self._num_outputs += outputs.shape[0] * outputs.shape[1]

    @torch.no_grad()
    def update_center(self, momentum: float, skip: Tensor | None = None) -> None:
        """Move the centre to the mean of what was noted, over all processes (Caron et al. 2021, equation 4).

        Args:
            momentum: what the centre keeps of itself.
            skip: scalar; 1.0 leaves it where it is. None: 0.0.
        """
        total, count = self._outputs, self._num_outputs
        self._outputs, self._num_outputs = None, 0
        count *= sum_over_processes(total)
        moved = torch.lerp(total / count, self.center, momentum)
        self.center.copy_(moved if skip is None else torch.where(skip > 0, self.center, moved))

    @torch.no_grad()
    def update_teacher(self, momentum: float, skip: Tensor | None = None) -> None:
        """Teacher = momentum * teacher + (1 - momentum) * student; running statistics of batches stay its own.

        `skip` as in `update_center`.
        """
        student = [*self.student_encoder.parameters(), *self.student_head.parameters()]
        teacher = [*self.encoder.parameters(), *self.head.parameters()]
        if skip is None:
            torch._foreach_lerp_(teacher, student, 1 - momentum)
        else:
            torch._foreach_lerp_(teacher, student, [(1 - skip) * (1 - momentum)] * len(teacher))


def init_vit(encoder: VisionTransformer) -> None:
    """The published random initialisation: truncated normal of deviation 0.02, biases zero, norms one and zero.

    The patch embedding keeps that of PyTorch's convolutions.
    """
    encoder.apply(_init_linear)
    encoder.patch_embed.proj.reset_parameters()
    for table in (encoder.cls_token, encoder.pos_embed):
        nn.init.trunc_normal_(table, std=0.02)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _features(encoder: nn.Module, views: list[Tensor], noise: list[Tensor | None]) -> list[Tensor]:
    """One vector a view, (B v, D) for each (B, v, 3, H, W): class token, or mean of the places where there is none.

    A call for each size of views, or a single one where attention can keep to the pictures of a packed sequence.
    """
    images = [x.flatten(0, 1) for x in views]
    if not isinstance(encoder, VisionTransformer):
        return [encoder.forward_features(x).mean(1) for x in images]
    drops = [None if x is None else x.flatten(0, 1).unflatten(-1, (-1, 2)) for x in noise]  # (B v, depth, 2)
    if len(images) > 1 and encoder.blocks[0].attn.backend == "xformers":
        tokens = encoder.forward_packed(images, None if drops[0] is None else drops)
    else:
        p = encoder.patch_size
        grids = [(x.shape[-2] // p, x.shape[-1] // p) for x in images]
        tokens = [
            encoder.forward_patches(patchify(x, p), None, grid, drop) for x, grid, drop in zip(images, grids, drops)
        ]
    return [x[:, 0] for x in tokens]
