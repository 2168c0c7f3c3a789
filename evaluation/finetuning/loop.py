"""One training: steps over batches of views, a state on the disk about once a minute, items scored in between.

    views of a batch ──▶ normalised, (heavy: erased, mixed) ──▶ `Classifier` ──▶ loss ──▶ gradient, clipped ──▶ AdamW

What a step does follows from (seed, step) and the weights alone: a training that was killed goes on at its last state
with the same numbers. Several processes have a part of every batch each and compute what one computes, up to
rounding: batch normalisation counts all of the batch, and gradients are summed.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headcam.evaluation.finetuning.augmentation import erase, mix, soft_targets
from headcam.evaluation.finetuning.data import Examples, PictureExamples, ScoredItems, epoch_batches, part_of
from headcam.evaluation.finetuning.head import Classifier, sync_batch_norms
from headcam.evaluation.finetuning.optimizer import build_optimizer, set_rate
from headcam.evaluation.finetuning.processes import gathered, own_device, rank_and_count, sum_gradients
from headcam.evaluation.finetuning.restart import Measured, Restart, read_result
from headcam.evaluation.labelled.sets import LabelledSet, Picture, labels_of
from headcam.evaluation.protocols import Finetune
from headcam.progress import Progress
from headcam.randomness import stream
from headcam.video.transforms import normalize


@dataclass(frozen=True)
class Job:
    """What each process is told; see `headcam.evaluation.finetuning.train.finetune`."""

    encoder: nn.Module
    card: dict[str, Any]
    data: LabelledSet
    rows: np.ndarray
    protocol: Finetune
    num_classes: int
    seed: int
    device: torch.device
    out: Path
    test_by_epoch: bool
    description: str
    quiet: bool


class Loop:
    """Trainings and scorings of a job, in one of its processes.

    Attributes:
        labels: of all training items.
        measured: so far, also by earlier runs.
    """

    def __init__(self, job: Job):
        self.job = job
        self.labels = labels_of(job.data.train)
        self._rank, self._processes = rank_and_count()
        self._device = own_device(job.device)
        self._examples = _examples(job)
        self._restart = Restart(job.out, writes=self._rank == 0)
        self._state = self._restart.load()
        if self._state is not None:
            self.measured = Measured.of_json(self._state["measured"])
        else:
            finished = read_result(job.out)  # all but the test by epoch: what was chosen stays
            self.measured = Measured() if finished is None else finished.measured
        self._begun = time.monotonic() - self.measured.seconds

    def train(
        self, name: str, lr: float, rows: np.ndarray, epochs: int, after_epoch: Callable[[int, Classifier], None]
    ) -> None:
        """Train from the encoder of the job, or from where this very training was.

        Args:
            name: of the training, another one for each of a job.
            lr: peak learning rate.
            rows: of the training items.
            after_epoch: called with the number of epochs that are done, from 1 on, and the network.
        """
        model, optimizer = self._new_model()
        batch_size, seed = self.job.protocol.batch_size, self.job.seed
        per_epoch, step = len(epoch_batches(rows, batch_size, seed, 0)), 0
        if self._state is not None and self._state["training"] == name:
            model.load_state_dict(self._state["model"])
            optimizer.load_state_dict(self._state["optimizer"])
            step = self._state["step"]
        self._state = None
        quiet = self.job.quiet or self._rank > 0
        seen = step * len(rows) // per_epoch
        with Progress(
            f"{self.job.description}, {name}", epochs * len(rows), self.job.data.media, quiet, seen
        ) as progress:
            for epoch in range(step // per_epoch, epochs):
                batches = epoch_batches(rows, batch_size, seed, epoch)[step % per_epoch :]
                parts = [part_of(batch, self._rank, self._processes) for batch in batches]
                for views, part, batch in zip(self._examples.views(parts, epoch), parts, batches):
                    set_rate(optimizer, self.job.protocol, lr, step, per_epoch)
                    self._step(model, optimizer, part, views, len(batch), epoch, step)
                    step += 1
                    if step % per_epoch == 0:
                        after_epoch(epoch + 1, model)
                    if self._restart.due():
                        self._save(name, step, model, optimizer)
                    progress.advance(len(batch), f"epoch {epoch + 1} of {epochs}")
        self._save(name, step, model, optimizer)

    def _new_model(self) -> tuple[Classifier, torch.optim.AdamW]:
        job, protocol = self.job, self.job.protocol
        generator = torch.Generator().manual_seed(int(stream(job.seed, "finetune, head", 0).integers(1 << 62)))
        encoder = copy.deepcopy(job.encoder)
        model = Classifier(encoder, job.num_classes, protocol.pool, protocol.drop_path, generator)
        if self._processes > 1:
            sync_batch_norms(model)
        model.to(self._device)
        return model, build_optimizer(model, protocol)

    def _step(
        self,
        model: Classifier,
        optimizer: torch.optim.Optimizer,
        rows: np.ndarray,
        views: Tensor,
        batch_size: int,
        epoch: int,
        step: int,
    ) -> None:
        """One step on this process's part of a batch of `batch_size`."""
        model.train()
        protocol, seed = self.job.protocol, self.job.seed
        keys = [epoch * len(self.labels) + int(row) for row in rows]
        images = self._normalized(views)
        truth = torch.from_numpy(self.labels[rows]).to(self._device)
        targets = soft_targets(truth, self.job.num_classes, protocol.label_smoothing)
        if protocol.augmentation == "heavy":
            for image, key in zip(images, keys):
                erase(image, stream(seed, "finetune, erasing", key))
            images, targets = mix(images, targets, stream(seed, "finetune, mix", step))
        noise = None
        if (shape := model.drop_noise_shape) is not None:
            drawn = [stream(seed, "finetune, drop path", key).random(shape, dtype=np.float32) for key in keys]
            noise = torch.from_numpy(np.stack(drawn)).to(self._device)
        logits = self._logits(model, images, noise)
        # Of the whole batch's mean; `batch_size` counts the other processes' parts, too.
        loss = -(targets * logits.log_softmax(dim=1)).sum() / batch_size
        optimizer.zero_grad()
        loss.backward()
        parameters = list(model.parameters())
        if self._processes > 1:
            sum_gradients(parameters)
        if protocol.clip_grad is not None:
            nn.utils.clip_grad_norm_(parameters, protocol.clip_grad)
        optimizer.step()

    def scored(self, items: Sequence[Picture]) -> ScoredItems:
        """`items`, ready to be scored, also several times."""
        return ScoredItems(items, self._examples.prepare, self.job.protocol.batch_size, self._rank, self._processes)

    @torch.inference_mode()
    def score(self, model: Classifier, items: ScoredItems) -> tuple[Tensor, dict[int, str]]:
        """Log-probabilities (n, K) float32 on the CPU, NaN where an item cannot be read, and item -> reason."""
        model.eval()
        scores = torch.zeros(items.total, self.job.num_classes)
        unreadable: dict[int, str] = {}
        for rows, views in items:
            good = [k for k, view in enumerate(views) if isinstance(view, np.ndarray)]
            unreadable |= {int(row): view for row, view in zip(rows, views) if isinstance(view, str)}
            scores[rows] = torch.nan
            if good:
                found = torch.from_numpy(np.stack([views[k] for k in good]))  # (b, V, 3, ...)
                logits = self._logits(model, self._normalized(found.flatten(0, 1)), None)
                by_view = logits.log_softmax(dim=1).unflatten(0, found.shape[:2])  # (b, V, K)
                scores[rows[good]] = (by_view.logsumexp(dim=1) - np.log(found.shape[1])).cpu()
        return gathered(scores, unreadable, self._device)

    def _logits(self, model: Classifier, images: Tensor, noise: Tensor | None) -> Tensor:
        low = self.job.protocol.precision == "bfloat16"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=low):
            return model(images, noise)

    def _normalized(self, views: Tensor) -> Tensor:
        return normalize(views.to(self._device), tuple(self.job.card["mean"]), tuple(self.job.card["std"]))

    def keep_scores(self, scores: Tensor, unreadable: dict[int, str]) -> None:
        """Write the scores that count."""
        self.measured.unreadable = unreadable
        self._restart.write_scores(scores.numpy())

    def finish(self, lr: float, epochs: int) -> None:
        """Write what was chosen and measured; the state is not needed any more."""
        self.measured.seconds = time.monotonic() - self._begun
        self._restart.finish(lr, epochs, self.measured)

    def _save(self, name: str, step: int, model: Classifier, optimizer: torch.optim.Optimizer) -> None:
        self.measured.seconds = time.monotonic() - self._begun
        states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        self._restart.save(training=name, step=step, **states, measured=self.measured.as_json())


def _examples(job: Job) -> Examples:
    size = tuple(job.card["img_size"])
    if job.protocol.clips is None:
        return PictureExamples(job.data.train, job.protocol, size, tuple(job.card["mean"]), job.seed)
    from headcam.evaluation.finetuning.clips import ClipExamples  # the readers of videos take a while to import

    num_frames = getattr(job.encoder, "num_frames", 1)
    if num_frames == 1:
        num_frames = job.protocol.clips.num_frames
    return ClipExamples(job.data.train, job.data.classes, job.protocol, num_frames, size, job.seed)
