"""The same work on one process or on several: start them, pass their errors on, add up their gradients."""

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from headcam.errors import HeadcamError


def run_on(processes: int, work: Callable[[Any], None], job: Any) -> None:
    """Call `work(job)` here, or in so many processes that form a process group (`dist.get_rank()` tells them apart).

    Args:
        work: a function of a module; job: anything that can be pickled, where there are several processes.
    Raises:
        HeadcamError: that one of the processes raised.
    """
    if processes == 1:
        work(job)
        return
    errors = mp.get_context("spawn").SimpleQueue()
    threads = max(1, torch.get_num_threads() // processes)
    with tempfile.TemporaryDirectory() as folder:
        try:
            mp.spawn(_member, (work, job, processes, threads, f"file://{folder}/meet", errors), nprocs=processes)
        except (ProcessExitedException, ProcessRaisedException):
            # One error of ours ends them all, and whose end is seen first is chance.
            if errors.empty():
                raise
            kind, problem, fix = errors.get()
            raise kind(problem, fix) from None


def _member(
    rank: int,
    work: Callable[[Any], None],
    job: Any,
    processes: int,
    threads: int,
    meeting: str,
    errors: Any,
) -> None:
    torch.set_num_threads(threads)
    # NCCL wants a GPU for each process; gloo takes CPUs, and several processes on one GPU.
    backend = "nccl" if job.device.type == "cuda" and torch.cuda.device_count() >= processes else "gloo"
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=processes)
    if job.device.type == "cuda":
        torch.cuda.set_device(own_device(job.device))
    try:
        work(job)
    except HeadcamError as error:
        errors.put((type(error), error.problem, error.fix))
        raise SystemExit(2) from error
    dist.destroy_process_group()


def rank_and_count() -> tuple[int, int]:
    """Number of this process and of all; (0, 1) where there is no group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def own_device(device: torch.device) -> torch.device:
    """The device of this process: one GPU after the other where `device` is "cuda" and there are several."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", rank_and_count()[0] % torch.cuda.device_count())


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Add up the gradients of all processes, in place, in one message."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(total.view_as(gradient))


def gathered(scores: Tensor, reasons: dict[int, str], device: torch.device) -> tuple[Tensor, dict[int, str]]:
    """Scores (n, K), of which each process has its rows and zeros elsewhere, and what it could not read: all."""
    if not dist.is_initialized():
        return scores, reasons
    total = scores.to(device)
    dist.all_reduce(total)
    found: list[dict[int, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(found, reasons)
    return total.cpu(), dict(sorted(item for part in found for item in part.items()))
