"""Run folders: everything that says how a number came about, in one place.

`runs/<name>/` holds `config.yaml` (complete), `environment.json`, `data.json` (the manifest), `metrics.csv`,
`checkpoints/`, `weights.safetensors` + `card.json`, `pictures/`.
"""

import csv
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from headcam import __version__
from headcam.files import atomic_file, storage_errors

_PACKAGES = ("torch", "torchvision", "lightning", "timm", "av", "numpy", "simplejpeg", "opencv-python-headless")


def git_commit(folder: str | Path = Path(__file__).parent) -> str | None:
    """Commit of the checkout that `folder` belongs to (`-dirty` where files differ from it), or None outside of one.

    A folder that merely lies in a checkout, such as a virtual environment in a user's own project, has none.
    """
    try:
        subprocess.run(
            ["git", "ls-files", "--error-unmatch", "."], cwd=folder, capture_output=True, check=True, timeout=10
        )
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("-dirty" if status.strip() else "")


def processor_name() -> str:
    """Name of the CPU as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """What a run ran on: packages, commit, machine, the time (UTC)."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    import torch

    return {
        "headcam": __version__,
        "git_commit": git_commit(),
        "python": sys.version.split()[0],
        "packages": packages,
        "platform": platform.platform(),
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


class MetricsFile:
    """`metrics.csv`: one row an optimizer step that logs something; columns are added as they come.

    A run that was killed may have logged steps that its last checkpoint does not hold; `resume` takes them out, so
    that the file reads as if the run had never stopped. A torn last line does no harm.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.columns: list[str] = []
        self._last: dict[str, Any] | None = None  # the newest row, and where it starts in the file
        self._last_offset = 0

    def resume(self, step: int) -> None:
        """Keep the rows up to `step` and go on behind them."""
        rows = [row for row in self.rows() if int(row["step"]) <= step]
        self.columns = []
        for row in rows:
            self.columns += [k for k in row if k not in self.columns]
        if rows:
            self._rewrite(rows)
        else:
            self.path.unlink(missing_ok=True)

    def rows(self) -> list[dict[str, str]]:
        """All complete rows, empty cells left out; what a kill in the middle of a line left is passed over."""
        if not self.path.is_file():
            return []
        text = self.path.read_text("utf-8")
        whole = text[: text.rfind("\n") + 1]  # a kill can tear the last line, or leave the tail of the one it replaced
        rows = [row for row in csv.DictReader(whole.splitlines()) if None not in row.values() and None not in row]
        return [{k: v for k, v in row.items() if v} for row in rows]

    def log(self, step: int, values: dict[str, float]) -> None:
        """Add `values` to the row of `step`, which must not be older than the newest row."""
        if self._last is None:
            self.resume(step)
        same = self._last is not None and self._last["step"] == step
        row = {**self._last, **values} if same else {"step": step, **values}
        new = [k for k in row if k not in self.columns]
        if new:
            rows = self.rows()
            self.columns += new
            self._rewrite(rows)
        with storage_errors(self.path), open(self.path, "r+", newline="", encoding="utf-8") as file:
            offset = self._last_offset if same else file.seek(0, os.SEEK_END)
            file.seek(offset)
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(row)
            file.truncate()
        self._last, self._last_offset = row, offset

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        with atomic_file(self.path, "w") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            for row in rows:
                self._last_offset = file.tell()
                writer.writerow(row)
        self._last = {**rows[-1], "step": int(rows[-1]["step"])} if rows else None
