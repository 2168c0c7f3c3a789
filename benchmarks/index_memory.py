"""What an index of 100,000 recordings (20 million key frames) costs a loader worker: memory, and the time to open it.

The index is generated: 20,000 hours in files of 12 minutes, with ages, sources and 200 key frames each. The "peer" of
each ratio is the limit that was set, so a ratio is the limit over what was measured, and the bar is 1:

    index_memory  MiB that a worker's peak resident memory has more over `PlannedFrames` on a `VideoSource` of the index
                  (2,000 samples: plan, path and key frames of each; no video is decoded) than over an empty data set
    index_open    seconds that a fresh process takes to open the index, its imports made

Workers are spawned, not forked, so that none shares the memory of the process that made it; file pages that they
have mapped count as theirs, though all workers of a machine share them.
"""

import math
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from harness import Bench, Measured, NotApplicable, Result, main
from torch.utils.data import DataLoader, Dataset

from headcam.randomness import stream
from headcam.video.datasets import PlannedFrames, VideoSource
from headcam.video.recording_index import RecordingIndex
from headcam.video.recordings import SCHEMA, write_recordings
from headcam.video.sampling.plan import FramePlan
from headcam.video.sampling.views import ViewLaw

_RECORDINGS, _KEYFRAMES = 100_000, 200
_SECONDS = 720.0
_LOOK_UPS = 2000
_MEMORY_MIB, _OPEN_SECONDS = 100.0, 0.2
_SIZE = (16, 16)  # of the pictures that workers send; what they weigh is not the question
_ROUNDS = 3


def index_memory(bench: Bench) -> Result:
    if not sys.platform.startswith("linux"):
        return NotApplicable(1, "peak memory of a process is read from Linux's /proc")
    file = generated_index()

    def added() -> float:
        return in_fresh_process("peak_of_worker", str(file)) - in_fresh_process("peak_of_worker", "")

    return bench.compare_memory(added, lambda: _MEMORY_MIB, bar=1, unit="worker")


def index_open(bench: Bench) -> Result:
    file = generated_index()
    both = [in_fresh_process("seconds_to_open", str(file), values=2) for _ in range(_ROUNDS)]
    wall, cpu = np.array(both).T.tolist()
    return Measured(
        bar=1,
        clock="wall",
        ours=float(np.median(wall)),
        peer=_OPEN_SECONDS,
        ratios=[_OPEN_SECONDS / seconds for seconds in wall],
        other=[_OPEN_SECONDS / seconds for seconds in cpu],
        unit="open",
        fidelity={},
    )


class Located(VideoSource):
    """A source whose recordings are not there: it looks up all that decoding would need, and shows black."""

    def views(self, unit, time_s, cuts):
        path, keyframes = self.locate(unit)
        assert path and len(keyframes) == _KEYFRAMES
        return [np.zeros((*cut.size, 3), np.uint8) for cut in cuts]


class Empty(Dataset):
    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"image": torch.zeros((3, *_SIZE), dtype=torch.uint8)}


class WithPeak(Dataset):
    """Items are the peak resident memory (MiB) of the process that made them, after an item of `data` was made."""

    def __init__(self, data: Dataset):
        self.data = data

    def __len__(self) -> int:
        return _LOOK_UPS

    def __getitem__(self, i: int) -> float:
        self.data[i]
        return peak_mib()


def peak_of_worker(file: str) -> float:
    """MiB that a loader's worker has held at most, over the index in `file`, or over an empty data set where none."""
    if file:
        source = Located(file)
        data = PlannedFrames(FramePlan(source.units, 0, (ViewLaw("image", _SIZE, noise=1),)), source)
    else:
        data = Empty()
    loader = DataLoader(WithPeak(data), batch_size=100, num_workers=1, multiprocessing_context="spawn")
    return float(torch.cat(list(loader)).max())


def seconds_to_open(file: str) -> tuple[float, float]:
    """Wall and CPU seconds of opening the index and looking one recording up."""
    import time

    wall, cpu = time.perf_counter(), time.process_time()
    index = RecordingIndex.open(file)
    assert len(index.keyframes(len(index) // 2)) == _KEYFRAMES
    return time.perf_counter() - wall, time.process_time() - cpu


def peak_mib() -> float:
    """Peak resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return math.nan


def in_fresh_process(function: str, file: str, values: int = 1):
    """What `function` of this module returns in a process of its own: a number, or a list of them."""
    code = f"import index_memory; print(index_memory.{function}({file!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    found = [float(word) for word in done.stdout.strip("()\n ").split(",")]
    assert len(found) == values
    return found if values > 1 else found[0]


@cache
def generated_index() -> Path:
    """An index of recordings that are not there, opened once, so that its companion is made."""
    folder = Path(_folder().name)
    n = _RECORDINGS
    rng = stream(0, "index of 100,000", 0)
    ids = np.sort(rng.integers(0, 1 << 63, n, dtype=np.int64))
    keyframes = np.tile(np.arange(_KEYFRAMES, dtype=np.int64), n) * 324_000 + np.repeat(rng.integers(0, 3000, n), 200)
    columns = {
        "recording": [f"{k:016x}" for k in ids],
        "path": [f"/data/headcam/child-{k % 300:03d}/week-{k % 97:02d}/recording-{k:06d}.mp4" for k in range(n)],
        "bytes": np.full(n, 270_000_000),
        "codec": ["h264"] * n,
        "width": np.full(n, 1280),
        "height": np.full(n, 720),
        "rotation": np.full(n, 180),
        "fps_num": np.full(n, 30_000),
        "fps_den": np.full(n, 1001),
        "start_s": np.zeros(n),
        "duration_s": np.full(n, _SECONDS),
        "frames": np.full(n, 21_578),
        "keyframes": pa.ListArray.from_arrays(np.arange(n + 1, dtype=np.int32) * _KEYFRAMES, keyframes),
        "time_base_num": np.full(n, 1),
        "time_base_den": np.full(n, 90_000),
        "source": [f"corpus-{k % 4}" for k in range(n)],
        "wearer": [f"child-{k % 300:03d}" for k in range(n)],
        "age_days": rng.uniform(150, 1000, n),
        "status": ["ok"] * n,
        "reason": [""] * n,
    }
    arrays = [pa.array(columns[f.name]).cast(f.type) if f.name in columns else pa.nulls(n, f.type) for f in SCHEMA]
    write_recordings(pa.Table.from_arrays(arrays, schema=SCHEMA), folder / "recordings.parquet")
    RecordingIndex.open(folder / "recordings.parquet")
    return folder / "recordings.parquet"


@cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()  # kept until the process ends


if __name__ == "__main__":
    main("index_memory", {"index_memory": index_memory, "index_open": index_open}, threads=1, packages=("pyarrow",))
