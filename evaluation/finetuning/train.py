"""Finetuning: all weights of an encoder and a linear head on labelled pictures or clips, by a `Finetune` protocol.

    labels of a draw ─┬─ four fifths ─▶ search: one training for each learning rate, scored on the other fifth after
                      │                 every few epochs ─▶ learning rate, number of epochs      (selection.py)
                      └─ all ─────────▶ final training at these values ─▶ test items, scored once

Here is what is trained and scored, in which order; how a training goes is in loop.py. A run that was killed goes on at
its last state (restart.py), and several processes get what one gets (processes.py).
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headcam.errors import InputError
from headcam.evaluation.finetuning.data import ScoredItems
from headcam.evaluation.finetuning.head import Classifier, check_encoder
from headcam.evaluation.finetuning.loop import Job, Loop
from headcam.evaluation.finetuning.processes import run_on
from headcam.evaluation.finetuning.restart import CONTRACT, read_result
from headcam.evaluation.finetuning.selection import choose, epoch_choices, needs_search
from headcam.evaluation.labelled.faults import check_readable
from headcam.evaluation.labelled.sets import LabelledSet, groups_of, labels_of, selection_mask
from headcam.evaluation.protocols import Finetune, label, protocol_hash
from headcam.evaluation.scoring.guesses import guesses
from headcam.files import claim, sha256_json
from headcam.ssl.training.precision import cpu_bf16
from headcam.ssl.weights import state_hash

_SMALLEST_BATCH = 3  # with 2, an odd number of items leaves a batch of a single one, which cannot be normalised


@dataclass(frozen=True)
class FinetuneResult:
    """What `finetune` found.

    Attributes:
        scores: (m, K) float32 on the CPU, log-probabilities of the test items (of several clips, of their mean
            probability); NaN for those that cannot be read.
        lr, epochs: of the final training.
        selection_top1: (learning rate, epochs) -> top-1 on the labels set aside; empty where nothing was to be chosen.
        test_top1_by_epoch: epochs of the final training -> top-1 on the test items, where that was asked for. It is for
            reporting how much choosing on the test would flatter, never for choosing.
        unreadable: test item -> reason.
        seconds: of work.
    """

    scores: Tensor
    lr: float
    epochs: int
    selection_top1: dict[tuple[float, int], float]
    test_top1_by_epoch: dict[int, float] | None
    unreadable: dict[int, str]
    seconds: float


def finetune(
    build: Callable[[], tuple[nn.Module, dict[str, Any]]],
    data: LabelledSet,
    rows: np.ndarray,
    protocol: Finetune,
    *,
    num_classes: int,
    seed: int,
    out: str | os.PathLike,
    device: str | torch.device = "cpu",
    score_test_by_epoch: bool = False,
    processes: int = 1,
    description: str = "finetuning",
    quiet: bool = False,
) -> FinetuneResult:
    """Choose on a fifth of the labels, train on all of them, score the test items once.

    Labels of the test items are looked at only with `score_test_by_epoch`, and then change nothing.

    Args:
        build: gives the encoder to start from (`VisionTransformer` or `ResNet`, trained or at random) and its card, of
            which `img_size`, `mean` and `std` are used.
        data: pictures, or videos where the protocol has `clips`.
        rows: (n,) int64 of `data.train`, the labels of the draw; those that cannot be read are left out already.
        num_classes: K.
        seed: of the head, the order, the views and stochastic depth.
        out: a folder for this finetuning alone. A killed one goes on there, a finished one is read from there.
        device: "cuda" with several processes: one GPU after the other.
        score_test_by_epoch: train on to the last epoch and score the test at every number of epochs that there was to
            choose from.
        processes: that share the work on this machine; the numbers stay the same, up to rounding.
    Raises:
        InputError: a folder of another finetuning, settings out of range, labels or items that do not fit the
            protocol, an encoder that cannot be fine-tuned, too many test items that cannot be read, or a training that
            diverged.
    """
    out = Path(out)
    _check(protocol, data, rows, torch.device(device), processes)
    encoder, card = build()
    check_encoder(encoder, protocol.pool, protocol.drop_path)
    about = {
        "contract": CONTRACT,
        "protocol": label(protocol),
        **{f"protocol.{key}": value for key, value in asdict(protocol).items()},
        "protocol_hash": protocol_hash(protocol),
        "data": data.hash,
        "labels": sha256_json([data.train[row].sha256 for row in rows]),
        "weights": state_hash(encoder),
        "card": sha256_json(card),
        "classes": num_classes,
        "seed": seed,
    }
    claim(out / "finetune.json", about, "a finetuning")
    found = _read(out, score_test_by_epoch)
    if found is None:
        few = min(len(rows), protocol.batch_size) // 4  # of a batch, so that each process has a pair of every one
        job = Job(
            encoder,
            card,
            data,
            np.asarray(rows),
            protocol,
            num_classes,
            seed,
            torch.device(device),
            out,
            score_test_by_epoch,
            description,
            quiet,
        )
        run_on(min(processes, max(1, few)), _search_and_train, job)
        found = _read(out, score_test_by_epoch)
    return found


def _check(protocol: Finetune, data: LabelledSet, rows: np.ndarray, device: torch.device, processes: int) -> None:
    name = label(protocol)
    if (data.media == "videos") != (protocol.clips is not None):
        raise InputError(
            f"{name} is for {'videos' if protocol.clips else 'pictures'}, and {data.name} holds {data.media}",
            "use a video-* protocol for videos, and a fewshot-* or finetune-* one for pictures",
        )
    if protocol.clips and protocol.augmentation == "heavy":
        raise InputError(f"{name}: augmentation heavy is for pictures", "use minimal with clips")
    positive = {"lr": min(protocol.lr), "epochs": protocol.epochs, "choose_epoch_every": protocol.choose_epoch_every}
    if protocol.clips:
        positive |= {"clips.num_frames": protocol.clips.num_frames, "clips.test_clips": protocol.clips.test_clips}
    for key, value in (positive | {"processes": processes}).items():
        if not value > 0:
            raise InputError(f"{name}: {key} is {value}", "give numbers above 0")
    if protocol.batch_size < _SMALLEST_BATCH or len(rows) < _SMALLEST_BATCH:
        raise InputError(
            f"{name}: {len(rows)} labelled items in batches of {protocol.batch_size} cannot be normalised over batches",
            f"use {_SMALLEST_BATCH} or more of both",
        )
    if protocol.precision == "bfloat16" and device.type == "cpu" and cpu_bf16() is None:
        raise InputError(
            f"{name} wants bfloat16, and this CPU has neither AVX512-BF16 nor AMX",
            "use a GPU, or a protocol with precision: float32",
        )


def _read(out: Path, with_test_by_epoch: bool) -> FinetuneResult | None:
    """The finished result; None where there is none, or not with the test by epoch."""
    found = read_result(out)
    if found is None or (with_test_by_epoch and not found.measured.test):
        return None
    measured = found.measured
    return FinetuneResult(
        torch.from_numpy(found.scores),
        found.lr,
        found.epochs,
        measured.selection,
        measured.test if with_test_by_epoch else None,
        measured.unreadable,
        measured.seconds,
    )


def _search_and_train(job: Job) -> None:
    """All that is to be done, in one of the processes."""
    loop = Loop(job)
    lr, epochs = job.protocol.lr[0], job.protocol.epochs
    if needs_search(job.protocol):
        aside = selection_mask(loop.labels[job.rows], groups_of([job.data.train[row] for row in job.rows]))
        held_out = loop.scored([job.data.train[row] for row in job.rows[aside]])
        truth = loop.labels[job.rows[aside]]
        for rate in job.protocol.lr:
            if (rate, epochs) not in loop.measured.selection:
                _search(loop, rate, job.rows[~aside], held_out, truth)
        lr, epochs = choose(loop.measured.selection)
    _train_and_test(loop, lr, epochs)
    loop.finish(lr, epochs)


def _search(loop: Loop, lr: float, rows: np.ndarray, held_out: ScoredItems, truth: np.ndarray) -> None:
    protocol = loop.job.protocol

    def after_epoch(epoch: int, model: Classifier) -> None:
        if epoch in epoch_choices(protocol):
            scores, _ = loop.score(model, held_out)
            loop.measured.selection[lr, epoch] = float(guesses(scores, truth).right(1).mean())

    loop.train(f"search at {lr:g}", lr, rows, protocol.epochs, after_epoch)


def _train_and_test(loop: Loop, lr: float, chosen: int) -> None:
    job = loop.job
    test, truth = loop.scored(job.data.test), labels_of(job.data.test)
    if not job.test_by_epoch:
        loop.measured.test.clear()  # a part of it, where an earlier run had been asked for it

    def after_epoch(epoch: int, model: Classifier) -> None:
        if epoch != chosen and not (job.test_by_epoch and epoch in epoch_choices(job.protocol)):
            return
        scores, unreadable = loop.score(model, test)
        if job.test_by_epoch:
            loop.measured.test[epoch] = float(guesses(scores, truth).right(1).mean())
        if epoch == chosen:
            _check_scores(job, scores, unreadable)
            loop.keep_scores(scores, unreadable)

    if job.test_by_epoch:
        loop.train("final, tested by epoch", lr, job.rows, job.protocol.epochs, after_epoch)
    else:
        loop.train("final", lr, job.rows, chosen, after_epoch)


def _check_scores(job: Job, scores: Tensor, unreadable: dict[int, str]) -> None:
    items = job.data.test
    reasons = [(items[row].name, reason) for row, reason in unreadable.items()]
    check_readable(reasons, len(items), f"test {job.data.media} of {job.data.name}")
    readable = np.setdiff1d(np.arange(len(items)), list(unreadable))
    if not torch.isfinite(scores[readable]).all():
        raise InputError(
            f"{label(job.protocol)} diverged: scores are no numbers", "use smaller learning rates, or clip_grad"
        )
