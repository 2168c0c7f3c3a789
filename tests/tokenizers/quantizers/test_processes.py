"""Two processes (gloo) that share a batch end with one codebook: that of one process with the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from headcam.tokenizers.quantizers.table import build_quantizer

SCHEMES = ("vq", "ema", "lfq", "gumbel")


def train(name, rank, world):
    """The state of a quantizer after six steps of two micro-batches each, the fourth step a skipped one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        quantizer = build_quantizer(name, 64, 12).train()
    if name in ("vq", "ema"):
        quantizer.threshold_ema_dead_code = 0.9  # move codes at every step
    for step in range(6):
        samples = torch.randn(8, 12, 3, 3, generator=torch.Generator().manual_seed(step))
        keys = torch.rand(8, generator=torch.Generator().manual_seed(step))
        quantizer.zero_grad()
        # As `step_samples` deals out a batch.
        for micro, noise in zip(*(x.unflatten(0, (2, world, -1))[:, rank] for x in (samples, keys))):
            out = quantizer(micro, noise)
            ((out.loss + out.quantized.square().mean()) / 2).backward()
        with torch.no_grad():
            for parameter in quantizer.parameters():
                if world > 1:
                    dist.all_reduce(parameter.grad)
                parameter -= 0.1 * parameter.grad / world
        quantizer.after_step(step, torch.tensor(float(step == 3)))
    return quantizer.state_dict()


def as_process(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save({name: train(name, rank, 2) for name in SCHEMES}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """What two processes ended with: a state by scheme, each."""
    folder = tmp_path_factory.mktemp("processes")
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], env={**os.environ, "OMP_NUM_THREADS": "1"})
        for rank in range(2)
    ]
    try:
        assert [process.wait(300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMES)
def test_two_processes_end_as_one(ended, name):
    one, (first, second) = train(name, 0, 1), (state[name] for state in ended)
    assert one.keys() == first.keys()
    for key in one:
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], one[key], rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    as_process(int(sys.argv[1]), Path(sys.argv[2]))
