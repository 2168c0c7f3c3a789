"""What a training step takes on the device, per part, and which batch fits: found by running the step without memory.

The network is built, and the objective's `losses` and backward run, on fake tensors (`FakeTensorMode`): they have
shapes, types and storages, but no bytes. A ledger sees every storage come and go, so the plan follows whatever the code
does: what is gathered late, what checkpointing keeps and what it computes again, when gradients are there. Every moment
of the step is written down at two batch sizes; bytes are linear in the batch at each moment (the same operations run),
so the peak at any batch is the largest of those lines, with no further run.

What the ledger says about the bytes kept for backward equals, to the byte, what the same step keeps on a CPU. For a GPU
it is a computation, not a measurement: fake tensors on the CPU run in the GPU's types (autocast, with the operations
that CUDA keeps in fp32 kept there) and with fused attention, which keeps there what flash attention keeps; not in the
ledger are the workspaces inside of kernels, the allocator's fragments, and the CUDA context. A tenth of the device is
therefore left unused unless told otherwise. `torch.compile` keeps less than is said here.

Order of a step as Lightning runs it: forward with the last step's gradients still there; they are dropped; backward.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from headcam.errors import InputError
from headcam.ssl.attention import set_attention_backend
from headcam.ssl.objective import Objective
from headcam.ssl.planning.flops import PartOfNetwork, set_checkpointing, stand_in

USABLE = 0.9  # of a device: 72 of 80 GB
_ADAMW_STATE = 2  # moments, each of the size of the trained weights

WEIGHTS, FROZEN = "weights", "frozen weights and buffers"
GRADIENTS, OPTIMIZER, BUCKETS = "gradients", "optimizer state", "gradient buckets of DDP"
GATHERED = "blocks gathered by FSDP"
CASTS = "weights cast or rearranged"
BATCH, WORK = "batch", "in work"
_KEPT = "kept for backward: "

# Operations whose inputs CUDA's autocast turns into fp32 and the CPU's leaves alone, as far as networks here use them
# (PyTorch, "Automatic Mixed Precision package", CUDA ops that autocast to float32).
_FP32_ON_CUDA = frozenset(
    [F.layer_norm, F.group_norm, F.softmax, F.log_softmax, F.cross_entropy, F.mse_loss, F.normalize]
    + [torch.softmax, torch.log_softmax, torch.sum, torch.exp, torch.log, torch.pow, torch.norm]
    + [Tensor.softmax, Tensor.log_softmax, Tensor.sum, Tensor.exp, Tensor.log, Tensor.pow, Tensor.norm]
)
_AUTOCAST = {"32": None, "32-true": None, "bf16": torch.bfloat16, "bf16-mixed": torch.bfloat16}
_AUTOCAST |= {"16": torch.float16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one device at every moment of a training step, as lines in the batch size.

    Attributes:
        title: the model, its picture, precision and checkpointing, on one line.
        parts: K names of what takes memory.
        phases: of each moment, `forward` or `backward`.
        fixed: (moments, K) int64, bytes that do not depend on the batch.
        per_sample: (moments, K) int64, bytes a sample of the batch adds.
        kept: what forward keeps for backward, by part of the network: (fixed, per sample) bytes.
    """

    title: str
    parts: tuple[str, ...]
    phases: tuple[str, ...]
    fixed: np.ndarray
    per_sample: np.ndarray
    kept: dict[str, tuple[int, int]]

    def peak_bytes(self, batch_size: int) -> int:
        """The most bytes alive at once on a device that gets `batch_size` samples a step."""
        return int((self.fixed.sum(1) + batch_size * self.per_sample.sum(1)).max())

    def at_peak(self, batch_size: int) -> dict[str, tuple[int, int]]:
        """(fixed, per sample) bytes of each part at the moment of the peak, without parts that are not there then."""
        k = self._peak_moment(batch_size)
        rows = {part: (int(self.fixed[k, j]), int(self.per_sample[k, j])) for j, part in enumerate(self.parts)}
        return {part: row for part, row in rows.items() if any(row)}

    def largest_batch(self, device_bytes: float, usable: float = USABLE) -> int:
        """The largest batch that a device of that size holds at `usable` of its memory; 0 where not even one fits."""
        fixed, per_sample = self.fixed.sum(1), self.per_sample.sum(1)
        room = device_bytes * usable - fixed
        if (room < 0).any():
            return 0
        return int((room // np.maximum(per_sample, 1)).min())

    def table(self, batch_size: int) -> str:
        """The parts at the peak for `batch_size` samples on a device, as readable text; GB are 10^9 bytes."""
        k = self._peak_moment(batch_size)
        rows = [
            (part, f"{fixed / 1e9:.2f}", f"{each / 1e9:.3f}", f"{(fixed + batch_size * each) / 1e9:.2f}")
            for part, (fixed, each) in self.at_peak(batch_size).items()
        ]
        total = (int(self.fixed[k].sum()), int(self.per_sample[k].sum()))
        rows.append(
            ("peak", f"{total[0] / 1e9:.2f}", f"{total[1] / 1e9:.3f}", f"{self.peak_bytes(batch_size) / 1e9:.2f}")
        )
        head = (f"part (GB, at the peak, in {self.phases[k]})", "fixed", "a sample", f"batch {batch_size}")
        width = max(len(row[0]) for row in [head, *rows])
        lines = [f"{a.ljust(width)}{b:>9}{c:>10}{d:>12}" for a, b, c, d in [head, *rows]]
        note = "computed by running the step on tensors without memory; not measured on a GPU"
        return "\n".join([self.title, *lines, note])

    def as_json(self, batch_size: int) -> dict[str, Any]:
        """What `table` says, for a file."""
        return {
            "title": self.title,
            "batch_size": batch_size,
            "peak_bytes": self.peak_bytes(batch_size),
            "peak_in": self.phases[self._peak_moment(batch_size)],
            "parts": {p: {"fixed": f, "per_sample": s} for p, (f, s) in self.at_peak(batch_size).items()},
            "kept_for_backward": {p: {"fixed": f, "per_sample": s} for p, (f, s) in self.kept.items()},
            "how": "computed, not measured on a GPU",
        }

    def _peak_moment(self, batch_size: int) -> int:
        return int((self.fixed.sum(1) + batch_size * self.per_sample.sum(1)).argmax())


def plan_memory(
    objective: Objective,
    precision: str | int = "bf16-mixed",
    *,
    processes: int = 1,
    shard: bool = False,
    accumulate: bool = False,
) -> MemoryPlan:
    """Plan the memory of a training step of `objective` on each of its devices.

    Args:
        objective: built or not; its `compute` settings say what is checkpointed.
        precision: Lightning's `trainer.precision`: `32-true`, `bf16-mixed` or `16-mixed`.
        processes: devices that train together. Without `shard` (DDP) each holds everything, and a second copy of the
            gradients in its communication buckets where there are several.
        shard: FSDP: weights, gradients and optimizer state are divided among the processes; two blocks are whole at a
            time (one in use, one on its way).
        accumulate: gradients are summed over several batches, so that they are there during backward as well.
    Raises:
        InputError: another precision.
    """
    if str(precision) not in _AUTOCAST:
        raise InputError(f"memory cannot be planned for precision {precision!r}", "use 32-true, bf16-mixed or 16-mixed")
    runs = [
        _run(objective, batch_size, _AUTOCAST[str(precision)], accumulate) for batch_size in (2, 3)
    ]  # not 1: copies of a single row can be views, and a plan for one would miss them
    parts = tuple(sorted({part for run in runs for moment in run.moments for part in moment}, key=_order))
    two, three = (np.array([[m.get(p, 0) for p in parts] for m in run.moments], dtype=np.int64) for run in runs)
    per_sample = three - two
    fixed = two - 2 * per_sample
    kept = {
        part: (3 * a - 2 * b, b - a)
        for part in sorted(runs[0].kept | runs[1].kept)
        for a, b in [(runs[0].kept.get(part, 0), runs[1].kept.get(part, 0))]
    }
    parameters = list(objective.skeleton.parameters())
    trained = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    constant = {OPTIMIZER: _ADAMW_STATE * trained}
    if shard:
        fixed[:, [parts.index(p) for p in (WEIGHTS, FROZEN, GRADIENTS) if p in parts]] //= processes
        constant = {OPTIMIZER: _ADAMW_STATE * trained // processes, GATHERED: 2 * _largest_block(objective.skeleton)}
    elif processes > 1:
        constant[BUCKETS] = trained
    for part, size in constant.items():
        parts = (*parts, part)
        fixed = np.concatenate([fixed, np.full((len(fixed), 1), size)], axis=1)
        per_sample = np.concatenate([per_sample, np.zeros((len(fixed), 1), np.int64)], axis=1)
    order = sorted(range(len(parts)), key=lambda j: _order(parts[j]))
    return MemoryPlan(
        title=_title(objective, str(precision), processes, shard),
        parts=tuple(parts[j] for j in order),
        phases=tuple(runs[0].phases),
        fixed=fixed[:, order],
        per_sample=per_sample[:, order],
        kept=kept,
    )


class Ledger(TorchDispatchMode):
    """Sees storages come and go, real or fake, and knows what each is for.

    Attributes:
        live: bytes by part, now.
        moments: `live` after each operation that took memory; `phases` says in which phase that was.
        kept: bytes that were saved for backward, by part of the network.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: Counter[str] = Counter()
        self.moments: list[dict[str, int]] = []
        self.phases: list[str] = []
        self.phase = "forward"
        self.kept: Counter[str] = Counter()
        self._known: dict[int, tuple[str, int]] = {}  # address of a storage -> part, bytes

    def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sources = {self.part_of(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        part = CASTS if sources and sources <= {WEIGHTS, FROZEN, CASTS} else WORK
        grew = [self.own(t, part) for t in tree_leaves(out) if isinstance(t, Tensor)]
        if any(grew):
            self.moments.append(dict(self.live))
            self.phases.append(self.phase)
        return out

    def own(self, tensor: Tensor, part: str) -> bool:
        """Enter a tensor's storage under `part`; False where it is known already."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return False
        self._known[key] = (part, size)
        self.live[part] += size
        weakref.finalize(storage, self._free, key).atexit = False
        return True

    def part_of(self, tensor: Tensor) -> str | None:
        return self._known.get(tensor.untyped_storage()._cdata, (None, 0))[0]

    def move(self, tensor: Tensor, part: str) -> None:
        """Count a known storage under another part from now on."""
        key = tensor.untyped_storage()._cdata
        old, size = self._known[key]
        self.live[old] -= size
        self.live[part] += size
        self._known[key] = (part, size)

    def keep(self, tensor: Tensor, part: str) -> None:
        """What is in work has been saved for backward by `part` of the network; a later part that takes it as its input
        takes it over from `rest`."""
        old, size = self._known[tensor.untyped_storage()._cdata]
        if old in (WORK, _KEPT + "rest") and old != _KEPT + part:
            if old != WORK:
                self.kept["rest"] -= size
            self.kept[part] += size
            self.move(tensor, _KEPT + part)

    def _free(self, key: int) -> None:
        part, size = self._known.pop(key)
        self.live[part] -= size


class _AutocastOfCuda(TorchFunctionMode):
    """Makes the CPU's autocast do what CUDA's does: some operations in fp32."""

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FP32_ON_CUDA:
            args = tuple(_fp32(a) for a in args)
            kwargs = {name: _fp32(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _fp32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16) else value


def _run(objective: Objective, batch_size: int, autocast: torch.dtype | None, accumulate: bool) -> Ledger:
    """One training step of `batch_size` samples on fake tensors."""
    with torch.device("meta"):
        network = objective.build()  # initialisations may look at numbers, which fake tensors do not have
    with FakeTensorMode(allow_non_fake_inputs=True):
        network.to_empty(device="cpu")
        settings = objective.compute_settings
        set_checkpointing(network, settings.checkpointing)
        # xformers' kernels keep what flash attention keeps, which is what PyTorch's own is planned as.
        set_attention_backend(network, "math" if settings.attention == "math" else "sdpa")
        with stand_in(objective, network):
            return trace_step(objective, objective.example_batch(batch_size, "cpu"), autocast, accumulate)


def trace_step(
    objective: Objective, batch: dict[str, Tensor], autocast: torch.dtype | None = None, accumulate: bool = False
) -> Ledger:
    """The ledger of one step of `objective.network` on a batch: CPU tensors, real or fake."""
    ledger, network = Ledger(), objective.network
    trained = [p for p in network.parameters() if p.requires_grad]
    for parameter in trained:
        ledger.own(parameter, WEIGHTS)
        parameter.grad = torch.empty_like(parameter)  # of the step before
        ledger.own(parameter.grad, GRADIENTS)
    for tensor in [*network.parameters(), *network.buffers()]:
        ledger.own(tensor, FROZEN)
    for tensor in batch.values():
        ledger.own(tensor, BATCH)

    part = PartOfNetwork(network, on_enter=lambda inputs: _take_over(ledger, inputs, part.name))

    def pack(tensor: Tensor) -> Tensor:
        if ledger.phase == "forward":
            ledger.keep(tensor, part.name)
        return tensor.detach()  # the tensor itself would refer to the graph that refers to it

    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_gradients_known(trained, ledger))
        stack.enter_context(ledger)
        if autocast is not None:
            stack.enter_context(_AutocastOfCuda())
        with part, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            with torch.autocast("cpu", autocast, enabled=autocast is not None):
                loss = objective.losses(batch)["loss"]
        if not accumulate:
            network.zero_grad(set_to_none=True)
        ledger.phase = "backward"
        loss.backward()
    return ledger


def _take_over(ledger: Ledger, inputs: tuple, part: str) -> None:
    for tensor in inputs:
        if isinstance(tensor, Tensor) and ledger.part_of(tensor) == _KEPT + "rest":
            ledger.keep(tensor, part)


@contextmanager
def _gradients_known(parameters: list[nn.Parameter], ledger: Ledger) -> Iterator[None]:
    """Enter every gradient as one when backward has made it."""

    def made(parameter: Tensor) -> None:
        ledger.move(parameter.grad, GRADIENTS)

    handles = [p.register_post_accumulate_grad_hook(made) for p in parameters]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _largest_block(network: nn.Module) -> int:
    """Bytes of the weights of the largest numbered module, which is what FSDP gathers at a time."""
    blocks = [m for path, m in network.named_modules() if path.rpartition(".")[2].isdigit()]
    return max((sum(p.numel() * p.element_size() for p in block.parameters()) for block in blocks), default=0)


def _order(part: str) -> tuple[int, str]:
    """Parts in the order of the table: what the model has, what a step adds."""
    listed = (WEIGHTS, FROZEN, CASTS, GRADIENTS, BUCKETS, OPTIMIZER, GATHERED, BATCH)
    return (listed.index(part), "") if part in listed else (len(listed) + (part == WORK), part)


def _title(objective: Objective, precision: str, processes: int, shard: bool) -> str:
    encoder = objective.skeleton.encoder
    height, width = objective.img_size
    frames = f"{objective.num_frames} x " if objective.num_frames > 1 else ""
    count = sum(p.numel() for p in objective.skeleton.parameters()) / 1e6
    devices = f", {'FSDP' if shard else 'DDP'} over {processes} devices" if processes > 1 else ""
    checkpointing = objective.compute_settings.checkpointing
    return (
        f"{objective.name} {type(encoder).__name__} of {count:.1f} M parameters at {frames}{height} x {width}, "
        f"{precision}, checkpointing {checkpointing}{devices}"
    )
