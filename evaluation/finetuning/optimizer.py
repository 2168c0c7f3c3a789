"""Which learning rate and weight decay each weight has, and when."""

import math
from typing import Any

import torch
from torch import nn

from headcam.evaluation.finetuning.head import Classifier
from headcam.evaluation.protocols import Finetune
from headcam.ssl.objective import parameter_groups
from headcam.ssl.resnet import ResNet
from headcam.ssl.schedules import warmup_constant, warmup_cosine


def build_optimizer(model: Classifier, protocol: Finetune) -> torch.optim.AdamW:
    """AdamW, with `scale` in each group: the factor of the learning rate that layer-wise decay gives its weights.

    Clark et al. (2020, ELECTRA, section 3.1 and appendix), as MAE and BEiT count: the head and the last norm learn at
    the full rate, the last block at `layer_decay` times it, and so on; what comes before the first block (patches,
    tokens, positions; the stem of a ResNet) is depth + 1 steps below the head.
    """
    steps = steps_below_head(model)
    groups: list[dict[str, Any]] = []
    for group in parameter_groups(model, protocol.weight_decay):
        for below in sorted({steps[p] for p in group["params"]}):
            parameters = [p for p in group["params"] if steps[p] == below]
            scale = protocol.layer_decay**below
            groups.append({"params": parameters, "weight_decay": group["weight_decay"], "scale": scale})
    return torch.optim.AdamW(groups, lr=0.0, betas=protocol.betas, fused=True)


def steps_below_head(model: Classifier) -> dict[nn.Parameter, int]:
    """How many layers below the head each weight of a classifier is."""
    encoder = model.encoder
    if isinstance(encoder, ResNet):
        blocks = [b for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4) for b in stage]
        last = []
    else:
        blocks, last = list(encoder.blocks), list(encoder.norm.parameters())
    steps = dict.fromkeys(model.parameters(), 0)
    steps |= dict.fromkeys(encoder.parameters(), len(blocks) + 1)
    for k, block in enumerate(blocks):
        steps |= dict.fromkeys(block.parameters(), len(blocks) - k)
    return steps | dict.fromkeys(last, 0)


def set_rate(optimizer: torch.optim.Optimizer, protocol: Finetune, lr: float, step: int, steps_per_epoch: int) -> None:
    """The learning rate of `step` (from 0) for every group."""
    warmup = math.ceil(protocol.warmup_epochs * steps_per_epoch)
    if protocol.schedule == "cosine":
        factor = warmup_cosine(step, total_steps=protocol.epochs * steps_per_epoch, warmup_steps=warmup)
    else:
        factor = warmup_constant(step, warmup_steps=warmup)
    for group in optimizer.param_groups:
        group["lr"] = lr * factor * group["scale"]
