"""A training step of DINO: ours beside lightly's parts in its example loop, and beside our own with a call per crop.

ViT-S/16, two crops of 224 and eight of 96 pixels, batch 2, heads with 65,536 prototypes (those of the paper, and the
default of lightly). A step is the teacher's and the student's passes, the loss, backward, AdamW, and the moving
averages of teacher and centre, in float32. The backbone is ours on both sides, and so are weights and crops; the loss
is the same (largest relative difference 1e-5) before anything is timed. One thread, so that CPU time counts.

`dino_lightly`: the peer is lightly's `DINOProjectionHead`, `DINOLoss` and `update_momentum`, put together as in its
example for PyTorch: backbone and head are called for one view after the other, and AdamW is PyTorch's default.
`dino_lightly_4096`: the same with 4,096 prototypes, where the head weighs less; reported beside it, not slower is all
that is asked. `dino_per_crop`: the peer is our own network, loss and fused AdamW with one call per crop.
"""

import copy
import warnings
from collections.abc import Callable

import numpy as np
import torch
from harness import Bench, Fidelity, Measured, main
from lightly.loss import DINOLoss
from lightly.models.modules.heads import DINOProjectionHead
from lightly.models.utils import update_momentum
from torch import Tensor, nn

from headcam.randomness import stream
from headcam.ssl.dino_network import DINONetwork, dino_loss
from headcam.ssl.masking import patchify
from headcam.ssl.objective import parameter_groups
from headcam.ssl.vit import VisionTransformer

_BATCH = 2
_PROTOTYPES = 65_536
_STUDENT_TEMP, _TEACHER_TEMP = 0.1, 0.04
_MOMENTUM = 0.996
_CENTER_MOMENTUM = 0.9
_LR = 5e-4 * _BATCH / 256  # Caron et al. 2021, "Implementation details"
_WEIGHT_DECAY = 0.04
_CLOSENESS = 1e-5

Step = Callable[[], Tensor]  # takes a training step and returns its loss


def build() -> VisionTransformer:
    """ViT-S/16 with DINO's learned positions."""
    return VisionTransformer(224, 16, 3, 384, 12, 6, positions="learned")


def network(prototypes: int) -> DINONetwork:
    """The same weights at every call; the teacher is moved away from the student, as in the midst of training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DINONetwork(build, prototypes)
        with torch.no_grad():
            for parameter in (*model.encoder.parameters(), *model.head.parameters()):
                parameter.add_(0.002 * torch.randn_like(parameter))
    return model.train()


def crops() -> tuple[Tensor, Tensor]:
    """(B, 2, 3, 224, 224) and (B, 8, 3, 96, 96), as if normalised."""
    rng = stream(0, "benchmark dino", 0)
    shapes = ((_BATCH, 2, 3, 224, 224), (_BATCH, 8, 3, 96, 96))
    large, small = (torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)) for shape in shapes)
    return large, small


def class_token(encoder: VisionTransformer, images: Tensor) -> Tensor:
    """(B, 3, H, W) of any size -> (B, D)."""
    grid = (images.shape[-2] // 16, images.shape[-1] // 16)
    return encoder.forward_patches(patchify(images, 16), grid=grid)[:, 0]


def ours(prototypes: int) -> Step:
    """Our step: crops of one size in one call, all crops in one call of the head."""
    model, (large, small) = network(prototypes), crops()
    optimizer = torch.optim.AdamW(parameter_groups(model, _WEIGHT_DECAY), lr=_LR, fused=True)

    def step() -> Tensor:
        out = model(large, small, _STUDENT_TEMP, _TEACHER_TEMP)
        return finish(model, optimizer, out["loss"], out["outputs"])

    return step


def per_crop(prototypes: int) -> Step:
    """The same network and loss, with a call of backbone and head for every crop."""
    model, (large, small) = network(prototypes), crops()
    optimizer = torch.optim.AdamW(parameter_groups(model, _WEIGHT_DECAY), lr=_LR, fused=True)

    def step() -> Tensor:
        with torch.no_grad():
            outputs = torch.stack([model.head(class_token(model.encoder, x)) for x in large.unbind(1)], dim=1)
            teacher = ((outputs - model.center) / _TEACHER_TEMP).softmax(-1)
        logits = [
            model.student_head(class_token(model.student_encoder, x), _STUDENT_TEMP)
            for x in (*large.unbind(1), *small.unbind(1))
        ]
        loss = dino_loss(torch.stack(logits[:2], dim=1), torch.stack(logits[2:], dim=1), teacher)
        return finish(model, optimizer, loss, outputs)

    return step


def finish(model: DINONetwork, optimizer: torch.optim.Optimizer, loss: Tensor, outputs: Tensor) -> Tensor:
    """Backward, AdamW, and the moving averages."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    model.note_outputs(outputs)
    model.update_center(_CENTER_MOMENTUM)
    model.update_teacher(_MOMENTUM)
    return loss.detach()


def lightly(prototypes: int) -> Step:
    """lightly's parts in the order of its example, examples/pytorch/dino.py."""
    model, (large, small) = network(prototypes), crops()
    views = [*large.unbind(1), *small.unbind(1)]
    student, teacher = model.student_encoder, model.encoder
    student_head, teacher_head = (_lightly_head(head, prototypes) for head in (model.student_head, model.head))
    for parameter in teacher_head.parameters():
        parameter.requires_grad = False
    loss_of = DINOLoss(prototypes, teacher_temp=_TEACHER_TEMP, student_temp=_STUDENT_TEMP)
    trained = [p for part in (student, student_head) for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=_LR, weight_decay=_WEIGHT_DECAY)

    def step() -> Tensor:
        with torch.no_grad():
            teacher_out = [teacher_head(class_token(teacher, view)) for view in views[:2]]
        student_out = [student_head(class_token(student, view)) for view in views]
        loss = loss_of(teacher_out, student_out, teacher_temp=_TEACHER_TEMP)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update_momentum(student, teacher, m=_MOMENTUM)
        update_momentum(student_head, teacher_head, m=_MOMENTUM)
        return loss.detach()

    return step


def _lightly_head(head: nn.Module, prototypes: int) -> DINOProjectionHead:
    """lightly's head with the weights of ours."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*weight_norm. is deprecated.*")
        theirs = DINOProjectionHead(384, 2048, 256, prototypes)
    linears = [module for module in theirs.layers if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for mine, other in zip((m for m in head.mlp if isinstance(m, nn.Linear)), linears, strict=True):
            other.load_state_dict(copy.deepcopy(mine.state_dict()))
        theirs.last_layer.weight_v.copy_(head.last_layer.weight_v)
    return theirs


def compare(bench: Bench, peer: Callable[[int], Step], prototypes: int, bar: float) -> Measured:
    """Take two steps of both sides, whose losses must agree (the second one's behind all updates), then time them."""
    sides = ours(prototypes), peer(prototypes)
    losses = [[float(side()) for _ in range(2)] for side in sides]
    difference = max(abs(mine / theirs - 1) for mine, theirs in zip(*losses))
    return bench.compare(
        *sides,
        bar=bar,
        items=1,
        unit=f"step of {_BATCH} x 10 crops",
        fidelity={"relative difference of the losses": Fidelity(difference, "", most=_CLOSENESS)},
    )


def dino_lightly(bench: Bench) -> Measured:
    """Against lightly's loop, at the published number of prototypes."""
    return compare(bench, lightly, _PROTOTYPES, bar=1.3)


def dino_lightly_4096(bench: Bench) -> Measured:
    """Against lightly's loop with a small head."""
    return compare(bench, lightly, 4096, bar=1.0)


def dino_per_crop(bench: Bench) -> Measured:
    """Against one call per crop of our own network."""
    return compare(bench, per_crop, _PROTOTYPES, bar=1.3)


if __name__ == "__main__":
    ratios = {"dino_lightly": dino_lightly, "dino_per_crop": dino_per_crop, "dino_lightly_4096": dino_lightly_4096}
    main("dino_step", ratios, threads=1, packages=("lightly",))
