"""What lies in the folder of a finetuning: enough to go on after a kill, and in the end the result alone.

    finetune.json   what it is a finetuning of; a folder of anything else is refused
    state.pt        once a minute: weights and optimizer of the training under way, and all that was measured so far
    scores.npy      (m, K) float32, log-probabilities of the test items
    result.json     what was chosen, from what; last: where it stands, the folder is complete

A state is written between two steps and says at which, so a killed run goes on there with the same numbers.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headcam.errors import InputError
from headcam.files import atomic_file, write_json

CONTRACT = "finetune/1"
_SECONDS_BETWEEN_STATES = 60.0
_MOST_TIME_FOR_STATES = 0.05  # of all time: those of a large model take seconds each


@dataclass
class Measured:
    """What is known so far.

    Attributes:
        selection: (learning rate, epochs) -> top-1 on the labels set aside.
        test: epochs -> top-1 on the test items of the final training.
        unreadable: test item -> reason.
        seconds: of work, over all runs.
    """

    selection: dict[tuple[float, int], float] = field(default_factory=dict)
    test: dict[int, float] = field(default_factory=dict)
    unreadable: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "selection_top1": [[lr, epochs, value] for (lr, epochs), value in self.selection.items()],
            "test_top1_by_epoch": [[epochs, value] for epochs, value in self.test.items()],
            "unreadable": {str(row): reason for row, reason in self.unreadable.items()},
            "seconds": self.seconds,
        }

    @classmethod
    def of_json(cls, found: dict[str, Any]) -> "Measured":
        return cls(
            {(lr, epochs): value for lr, epochs, value in found["selection_top1"]},
            dict(found["test_top1_by_epoch"]),
            {int(row): reason for row, reason in found["unreadable"].items()},
            found["seconds"],
        )


@dataclass(frozen=True)
class Finished:
    """What a complete folder holds."""

    scores: np.ndarray
    lr: float
    epochs: int
    measured: Measured


def read_result(folder: Path) -> Finished | None:
    """The result in `folder`; None: not there yet."""
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
        scores = np.load(folder / "scores.npy", allow_pickle=False)
        return Finished(scores, found["lr"], found["epochs"], Measured.of_json(found))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} holds a damaged result: {error}", "remove the folder and run again") from error


class Restart:
    """Writes the folder, from one of the processes, and reads the state, in each.

    Args:
        writes: whether this is the process that writes.
    """

    def __init__(self, folder: Path, writes: bool):
        self._folder, self._writes = folder, writes
        self._last, self._cost = time.monotonic(), 0.0

    def load(self) -> dict[str, Any] | None:
        """The newest state: `training` (its name), `step`, `model`, `optimizer`, `measured`; None: none."""
        path = self._folder / "state.pt"
        if not path.exists():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises pickle, zip, runtime and other errors
            raise InputError(f"{path} is damaged: {error}", "remove it: the training begins anew") from error

    def due(self) -> bool:
        """Whether the last state is old enough."""
        pause = max(_SECONDS_BETWEEN_STATES, self._cost / _MOST_TIME_FOR_STATES)
        return time.monotonic() - self._last >= pause

    def save(self, **state: Any) -> None:
        begun = time.monotonic()
        if self._writes:
            with atomic_file(self._folder / "state.pt") as file:
                torch.save(state, file)
        self._last = time.monotonic()
        self._cost = self._last - begun

    def write_scores(self, scores: np.ndarray) -> None:
        if self._writes:
            with atomic_file(self._folder / "scores.npy") as file:
                np.save(file, scores)

    def finish(self, lr: float, epochs: int, measured: Measured) -> None:
        if self._writes:
            about = {"contract": CONTRACT, "lr": lr, "epochs": epochs, **measured.as_json()}
            write_json(self._folder / "result.json", about)
            (self._folder / "state.pt").unlink(missing_ok=True)
