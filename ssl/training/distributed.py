"""Several processes that train one model: what they agree on, how they stop, how weights are spread over them.

Data are split by the plan, not here: a process takes its part of every global batch (`step_samples`), so that one
process or many see the same samples. Gradients are averaged by Lightning's strategies: `ddp`, or
`ModelParallelStrategy`, for which `shard` spreads the weights (FSDP2, Zhao et al. 2023) and `gathered` puts them
together again.
"""

import copy
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from headcam.errors import HeadcamError, InputError

_STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


def say_once(line: str) -> None:
    """A line on standard error, from the first process only."""
    if rank_zero_only.rank == 0:
        print(f"headcam: {line}", file=sys.stderr)


def many() -> bool:
    """Whether this is one of several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_processes(tensor: Tensor) -> int:
    """Add up `tensor` over all processes, in place; returns how many they are."""
    if not many():
        return 1
    dist.all_reduce(tensor)
    return dist.get_world_size()


class AgreedError(InputError):
    """An error that every process raises although one had it; the first process says it."""


@contextmanager
def agreeing() -> Iterator[None]:
    """A block that every process runs; an error of ours in one becomes an `AgreedError` in all, so that none waits."""
    mine = None
    try:
        yield
    except HeadcamError as error:
        if not many():
            raise
        mine = (error.problem, error.fix)
    if many():
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, mine)
        for rank, one in enumerate(found):
            if one is not None:
                raise AgreedError(f"process {rank}: {one[0]}", one[1])


class Stopped(Exception):
    """A run ended between two steps because the system asked for it; its checkpoint is written.

    Attributes:
        signal_name: what was received, such as `SIGTERM`.
        step: the last one that was taken.
    """

    def __init__(self, signal_name: str, step: int):
        super().__init__(f"{signal_name} after step {step}")
        self.signal_name, self.step = signal_name, step


class CleanStop(Callback):
    """Ends a run between two steps when the system asks for it: SIGTERM, or SIGUSR1 (SLURM's warning before a limit).

    Lightning's own handlers save in the middle of whatever is going on, or leave other processes waiting. Here the
    signal is only noted; processes agree after each step, and before the next one all save and raise `Stopped`. A
    validation that is due or under way is finished first.

    Args:
        checkpoint: where the state of the run goes.
    """

    def __init__(self, checkpoint: str | Path):
        self.checkpoint = Path(checkpoint)
        self._received = self._agreed = 0
        self._group: dist.ProcessGroup | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if many():
            self._group = dist.new_group(backend="gloo")  # asks the processes, and makes no GPU wait
        launcher = trainer.strategy.launcher

        def note(number: int, frame: Any) -> None:
            if isinstance(launcher, _SubprocessScriptLauncher) and not self._received:
                launcher.kill(number)  # pass it on to the processes that this one started
            self._received = number

        # Lightning has put its own in place by now, and puts back those before them when it ends.
        for number in _STOP_SIGNALS:
            signal.signal(number, note)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            highest = torch.tensor(self._received)
            if self._group is not None:
                dist.all_reduce(highest, dist.ReduceOp.MAX, group=self._group)
            self._agreed = int(highest)

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if self._agreed:
            trainer.save_checkpoint(self.checkpoint)
            raise Stopped(signal.Signals(self._agreed).name, trainer.global_step)


class Preflight(Callback):
    """Reads a batch in every process before the model is built: what is wrong with data shows in seconds."""

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        with agreeing():
            loader = trainer.datamodule.train_dataloader()
            numbers = next(iter(loader.batch_sampler))
            items = [loader.dataset[i] for i in numbers]
            for number, item in zip(numbers, items):
                if isinstance(item, HeadcamError):
                    raise type(item)(f"sample {number}: {item.problem}", item.fix) from item


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Spread the weights of `network` over the processes of `mesh`, block by block (FSDP2), in place.

    Each member of a list of modules (blocks of an encoder or decoder) is gathered when it is used and let go again;
    the rest of the network is one more such part.
    """
    for module in network.modules():
        if isinstance(module, nn.ModuleList):
            for block in module:
                fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def is_sharded(tensor: Tensor) -> bool:
    """Whether processes hold a part of the tensor each."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, which is all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, also of a sharded one, in every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(module: nn.Module, skeleton: nn.Module) -> nn.Module:
    """`module`, or where its weights are sharded, a copy with whole ones on the CPU (in the first process only).

    Every process has to call it.

    Args:
        module: a part of a network.
        skeleton: the same part without weights, on the meta device.
    """
    if not any(map(is_sharded, module.parameters())):
        return module
    state = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    out = copy.deepcopy(skeleton)
    if state:
        out.load_state_dict(state, assign=True)
    return out
