"""How much arithmetic a training step is, and the peaks that devices are sold with.

The objective's own `losses` and backward run once on its skeleton on the meta device: shapes flow, no memory is taken,
and PyTorch's counter sees every matrix product, convolution and attention (multiply and add counted as 2; elementwise
work, which is bound by memory, not at all). So the count follows whatever the code does, for any objective: what is
left out of the last decoder block is not counted, what checkpointing computes twice is counted apart. Attention is
counted as its plain matrix products, two forward and four backward, whichever kernel a device runs, less what a mask
lets it skip (`Objective.masked_flops`).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from headcam.ssl.objective import Objective

# Dense 16-bit peaks in FLOP/s (NVIDIA's data sheets: A100, H100 SXM, H200; without sparsity), by words of the device's
# name. The PCIe and NVL cards of the same chips are slower and left out: a wrong peak is worse than none.
_PEAKS_16_BIT = (("A100", 312e12), ("H100", 989e12), ("H200", 989e12))
_OTHER_CARDS = ("PCIE", "NVL", "GH200", "MIG")


@dataclass(frozen=True)
class StepFlops:
    """FLOP of one training step, for the batch that it was counted for.

    Attributes:
        forward: by part of the network (`encoder.blocks`, `decoder_blocks`, ..., `rest`).
        backward: of all parts, without what is computed again.
        recomputed: what checkpointing adds, as the objective's `compute` settings say.
    """

    forward: dict[str, float]
    backward: float
    recomputed: float

    @property
    def training(self) -> float:
        """Forward and backward: what the model needs, however it is run."""
        return sum(self.forward.values()) + self.backward


def count_flops(objective: Objective, batch_size: int = 1) -> StepFlops:
    """Count a training step of `batch_size` samples on the meta device."""
    skeleton = objective.skeleton
    forward, backward = _count(objective, batch_size)
    set_checkpointing(skeleton, objective.compute_settings.checkpointing)
    try:
        _, with_recomputation = _count(objective, batch_size)
    finally:
        set_checkpointing(skeleton, "none")
    return StepFlops(forward, backward, with_recomputation - backward)


def training_flops(objective: Objective, batch_size: int = 1) -> float:
    """FLOP of forward and backward of `batch_size` samples (a sample: all its views), without recomputation."""
    forward, backward = _count(objective, batch_size)
    return sum(forward.values()) + backward


def peak_flops(device_name: str, precision: str | torch.dtype) -> float | None:
    """The dense peak of a device in FLOP/s as published, or None where no reference of ours gives one.

    Args:
        device_name: as `torch.cuda.get_device_name` says it, such as `NVIDIA H100 80GB HBM3`.
        precision: a dtype, or Lightning's name of a precision; only 16-bit formats have a row.
    """
    name = device_name.upper()
    if "16" not in str(precision) or any(card in name for card in _OTHER_CARDS):
        return None
    return next((peak for chip, peak in _PEAKS_16_BIT if re.search(rf"\b{chip}\b", name)), None)


@contextmanager
def stand_in(objective: Objective, network: nn.Module) -> Iterator[nn.Module]:
    """Let `objective.losses` work on another network (the skeleton, one without memory) for a while."""
    own = objective.network
    objective.network = network
    try:
        yield network
    finally:
        objective.network = own
        network.zero_grad(set_to_none=True)


def set_checkpointing(network: nn.Module, what: str) -> None:
    """Switch activation checkpointing as `ComputeSettings.checkpointing` spells it."""
    for module in network.modules():
        if hasattr(module, "checkpointing"):
            module.checkpointing = what in ("all", module.checkpointing_part)


class PartOfNetwork:
    """Says which part of a network is running: `with PartOfNetwork(network) as part: ... part.name`.

    A part is the outermost numbered group of modules, spelled without the number (`encoder.blocks`); what runs outside
    of any is `rest` (embeddings, heads, losses).

    Args:
        on_enter: called with the inputs of a numbered module when it begins.
        on_leave: called when it ends, while `name` still says it.
    """

    def __init__(
        self,
        network: nn.Module,
        on_enter: Callable[[tuple], None] = lambda inputs: None,
        on_leave: Callable[[], None] = lambda: None,
    ):
        self.name = "rest"
        self._on_enter, self._on_leave = on_enter, on_leave
        self._numbered: dict[nn.Module, str] = {}
        for path, module in network.named_modules():
            *group, last = path.split(".")
            if last.isdigit() and not any(word.isdigit() for word in group):
                self._numbered[module] = ".".join(group)

    def __enter__(self) -> "PartOfNetwork":
        self._hooks = []
        for module in self._numbered:
            self._hooks.append(module.register_forward_pre_hook(self._enter))
            self._hooks.append(module.register_forward_hook(self._leave, always_call=True))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _enter(self, module: nn.Module, inputs: tuple) -> None:
        self.name = self._numbered[module]
        self._on_enter(inputs)

    def _leave(self, module: nn.Module, inputs: tuple, output: object) -> None:
        self._on_leave()
        self.name = "rest"


def _count(objective: Objective, batch_size: int) -> tuple[dict[str, float], float]:
    """FLOP of forward by part, and of backward with what checkpointing computes again, of the skeleton as it is set."""
    forward: Counter[str] = Counter()
    started = 0
    counter = FlopCounterMode(display=False)

    def begin(inputs: tuple) -> None:
        nonlocal started
        started = counter.get_total_flops()

    def end() -> None:
        forward[part.name] += counter.get_total_flops() - started

    part = PartOfNetwork(objective.skeleton, begin, end)
    with torch.enable_grad(), stand_in(objective, objective.skeleton), counter:
        with part:
            loss = objective.losses(objective.example_batch(batch_size))["loss"]
        total = counter.get_total_flops()
        loss.backward()
    forward["rest"] = total - forward.total()
    backward, masked = counter.get_total_flops() - total, objective.masked_flops(batch_size)
    forward.subtract(masked)
    return dict(forward), backward - 2 * sum(masked.values())
