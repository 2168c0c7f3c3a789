"""One run of an experiment: a study set with a seed, saved after every exposure, so that it can be stopped at will.

    Learner.begin ─▶ test (exposure 0) ─▶ expose ─▶ test ─▶ ... ─▶ recall ─▶ retention ─▶ Rows
                          └── state.pt, after each test: the student, and the rows so far ──┘

`state.pt` is one file that is complete or not there: a run that was killed goes on behind its last whole exposure, and
ends with the same rows. When it is over, `rows.json` holds them, and the state is gone.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from headcam.files import atomic_file, write_json
from headcam.progress import Progress
from headcam.recognition_memory.experiment import Experiment
from headcam.recognition_memory.harder.recall import RecallTask, completion_distances, recall_items, recall_task
from headcam.recognition_memory.harder.retention import retain
from headcam.recognition_memory.learners.learner import Learner
from headcam.recognition_memory.running.materials import Materials, Test
from headcam.recognition_memory.study import Student

STATE, ROWS = "state.pt", "rows.json"


@dataclass
class Rows:
    """What a run has found so far; JSON values throughout.

    Attributes:
        scores: test -> exposure -> score of each picture of the test.
        study: exposure -> [updates, study loss, seconds].
        recall_before: distances of completions before study, as long as recall is to come.
        recall, retention, retention_log: rows, once the last exposure is over.
        parameters: numbers that study changes by gradients.
        notes: of this run.
    """

    scores: dict[str, list[list[float]]]
    study: list[list[float | None]] = field(default_factory=list)
    recall_before: list[list[float]] | None = None
    recall: list[dict] = field(default_factory=list)
    retention: list[dict] = field(default_factory=list)
    retention_log: list[dict] = field(default_factory=list)
    parameters: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass
class OneRun:
    """Attributes:
    materials: of the experiment.
    experiment: with the learning rate that is studied at.
    learner: takes its state before study here, whatever an earlier run has left.
    folder: of this run.
    device: as torch names it.
    quiet: no progress on standard error.
    """

    materials: Materials
    experiment: Experiment
    learner: Learner
    study_set: str
    seed: int
    folder: Path
    device: str = "cpu"
    quiet: bool = False

    def rows(self) -> Rows:
        """Study and test, from wherever the run stands.

        Raises:
            Diverged: a loss or score that is not finite.
        """
        if (self.folder / ROWS).is_file():
            return Rows(**json.loads((self.folder / ROWS).read_text("utf-8")))
        # Begun on the CPU, so that the start is the same whatever the device, and whichever run came before.
        self.learner.to("cpu").begin(self.seed, self.materials.pixels)
        student = Student(self.learner, self.experiment.study, self.seed, self.device)
        rows = self._resumed(student)
        settings = self.experiment.recall
        task = recall_task(self.materials.pairs[self.study_set], settings.num) if settings else None
        self._study(student, rows, task)
        if task is not None:  # before retention, which takes the student further
            run = {"study_set": self.study_set, "seed": self.seed, "exposures": student.exposure}
            rows.recall = recall_items(task, np.array(rows.recall_before), self._distances(student, task), **run)
            rows.recall_before = None
        if self.experiment.retention is not None:
            self._retain(student, rows)
        write_json(self.folder / ROWS, asdict(rows))
        (self.folder / STATE).unlink(missing_ok=True)
        return rows

    def _resumed(self, student: Student) -> Rows:
        """The rows so far, and the student where it was."""
        if (self.folder / STATE).is_file():
            state = torch.load(self.folder / STATE, map_location="cpu", weights_only=True)
            student.load_state_dict(state["student"])
            return Rows(**json.loads(state["rows"]))
        rows = Rows({test.name: [] for test in self.materials.tests[self.study_set]})
        rows.parameters = sum(p.numel() for p in student.learner.parameters() if p.requires_grad)
        rows.notes += [student.note] if student.note else []
        return rows

    def _study(self, student: Student, rows: Rows, task: RecallTask | None) -> None:
        """The exposures that are left, with a test after each."""
        listed = self.materials.study_list(self.study_set, self.seed)
        pictures = self.materials.pixels[torch.from_numpy(listed)]
        exposures = self.experiment.study.exposures
        with Progress(
            f"set {self.study_set}, seed {self.seed}",
            total=exposures * len(pictures),
            unit="pictures",
            quiet=self.quiet,
            done=max(len(rows.study) - 1, 0) * len(pictures),
        ) as progress:
            for exposure in range(len(rows.study), exposures + 1):
                start, current, loss = time.perf_counter(), f"exposure {exposure}", None
                if exposure:
                    loss = student.expose(pictures, exposure, lambda n, current=current: progress.advance(n, current))
                for test in self.materials.tests[self.study_set]:
                    rows.scores[test.name].append(self._scores(student, test))
                if task is not None and exposure == 0:
                    rows.recall_before = self._distances(student, task).tolist()
                rows.study.append([student.updates, loss, time.perf_counter() - start])
                with atomic_file(self.folder / STATE) as file:
                    torch.save({"student": student.state_dict(), "rows": json.dumps(asdict(rows))}, file)

    def _retain(self, student: Student, rows: Rows) -> None:
        """Learn other data, and test again in between."""
        plain = self.materials.tests[self.study_set][0]
        last = student.exposure
        retained = retain(
            student,
            self.experiment.retention,
            self.materials.manifest,
            lambda: self.memory_rows(plain, last, self._scores(student, plain)),
            self.memory_rows(plain, 0, rows.scores[plain.name][0]),
            batch_size=self.experiment.study.batch_size,
            seed=self.seed,
            quiet=self.quiet,
        )
        rows.retention, rows.retention_log = retained.rows, retained.log
        rows.notes += retained.notes

    def _scores(self, student: Student, test: Test) -> list[float]:
        return student.scores(test.pixels, self.experiment.test.batch_size, test.names).tolist()

    def _distances(self, student: Student, task: RecallTask) -> np.ndarray:
        rows = [self.materials.row[stimulus.sha256] for stimulus in task.candidates]
        student.learner.eval()
        return completion_distances(
            student.learner,
            self.materials.pixels[rows].to(student.device),
            task,
            self.experiment.recall,
            seed=self.seed,
            batch_size=self.experiment.test.batch_size,
        )

    def memory_rows(self, test: Test, exposure: int, scores: Sequence[float]) -> list[dict]:
        """Rows of the memory table: the scores of one test after one exposure."""
        return [
            {
                "model": self.experiment.model,
                "pretraining": self.experiment.pretraining,
                "study_set": self.study_set,
                "seed": self.seed,
                "condition": condition,
                "exposures": exposure,
                "pair": pair,
                "loss_seen": scores[seen],
                "loss_unseen": scores[unseen],
                "test": test.name,
            }
            for (condition, pair), seen, unseen in zip(
                test.pairs, test.seen.tolist(), test.unseen.tolist(), strict=True
            )
        ]
