"""What an encoder has learned so far, measured while it trains: a sample-efficiency curve out of a single run.

`OnlineProbe` is a callback that a config of `headcam fit` names, with no code:

    trainer:
      callbacks:
        - class_path: headcam.evaluation.online.OnlineProbe
          init_args: {labelled: pictures/, at_hours: [1, 3, 10, 30, 100]}

Before training, at each milestone of hours of video seen, and at the end it encodes a small labelled set with the
network as it is, frozen and in eval mode, and scores kNN and a linear probe in the way of `headcam probe`. The run
itself is not touched: its samples, random numbers, statistics of normalisation and losses are those of a run without
the callback, bit for bit. Nothing that is measured here is used to choose anything.

    headcam.evaluation.watching.hours      hours seen, and when the next milestone is due
    headcam.evaluation.watching.pictures   the labelled pictures, decoded once
    headcam.evaluation.watching.record     online_probe.csv in the run folder
    headcam.evaluation.watching.page       online_probe.html beside it
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import nn

from headcam.errors import HeadcamError, InputError
from headcam.evaluation import protocols as known
from headcam.evaluation.features.encoders import EncoderExtractor
from headcam.evaluation.heads.knn import knn_scores
from headcam.evaluation.heads.linear import linear_probe
from headcam.evaluation.labelled.sets import LabelledSet, groups_of, read_labelled, selection_mask
from headcam.evaluation.scoring.guesses import guesses
from headcam.evaluation.watching.hours import HoursSeen, milestone
from headcam.evaluation.watching.page import write_page
from headcam.evaluation.watching.pictures import PreparedPictures, first_of_each_class
from headcam.evaluation.watching.record import Record, Row
from headcam.randomness import stream
from headcam.ssl.objective import Objective
from headcam.ssl.training.distributed import AgreedError, agreeing, gathered, many, say_once
from headcam.ssl.training.run_folder import RunFolder
from headcam.ssl.weights import ARCHITECTURES, build_encoder
from headcam.statistics import bootstrap_mean
from headcam.tokenizers.autoregression.encoder import as_token_encoder, token_architectures

_PATIENCE = timedelta(hours=12)  # of the processes that wait while the first one measures
_TOP5_ABOVE = 5  # classes; with five or fewer every guess is among the five best


class OnlineProbe(Callback):
    """Scores the encoder of a run on labelled pictures at milestones of hours of video.

    It writes `online_probe.csv` and `online_probe.html` into the run folder, and top-1 as `online/<metric>` into
    `metrics.csv`. In a run of several processes the first one measures and the others wait. Sharded weights are put
    together for it, so that the first process then holds one whole encoder in float32.

    Args:
        labelled: Folder of labelled pictures, as `headcam probe` takes it.
        at_hours: Milestones in hours of video seen (samples drawn times the seconds that each stands for); null takes
            1, 3, 10, 30, ... in every decade from 0.001 on. Each is measured at the first step that reaches it.
        every_steps: Measure also whenever so many optimizer steps are done.
        protocols: Names of shipped protocols or YAML files of kNN or linear probes on cached features.
        max_pictures_per_class: Of training and of test pictures, the first by hash of content; null takes all.
        pool: Features are the mean of the patch tokens (avg) or the class token (cls).
        seed: Of the linear probe's order of pictures and of the intervals.
    Raises:
        InputError: a setting out of range or a protocol of another kind; when training starts, labelled pictures that
            cannot be used, or data that stand for no time and are asked for at hours only.
    """

    def __init__(
        self,
        labelled: str,
        at_hours: list[float] | None = None,
        every_steps: int | None = None,
        protocols: list[str] = ["knn", "linear-whitened"],  # noqa: B006  jsonargparse shows it; it is not changed
        max_pictures_per_class: int | None = 100,
        pool: Literal["avg", "cls"] = "avg",
        seed: int = 0,
    ):
        for at in at_hours or ():
            if not 0 < at < math.inf:
                raise InputError(f"at_hours of OnlineProbe has {at}", "give hours above 0, such as [1, 3, 10]")
        if every_steps is not None and every_steps < 1:
            raise InputError(f"every_steps of OnlineProbe is {every_steps}", "give optimizer steps from 1 on, or null")
        if max_pictures_per_class is not None and max_pictures_per_class < 2:
            raise InputError(
                f"max_pictures_per_class of OnlineProbe is {max_pictures_per_class}",
                "give 2 or more: a part of the training pictures is set aside for choices",
            )
        self.labelled, self.at_hours, self.every_steps = labelled, at_hours, every_steps
        self.max_pictures_per_class, self.seed = max_pictures_per_class, seed
        self.protocols = [_usable(name, pool) for name in protocols]
        if not self.protocols or len({p.metric for p in self.protocols}) < len(self.protocols):
            raise InputError(f"protocols of OnlineProbe are {protocols}", "give one or more, each once")
        self.record: Record | None = None
        self._data: LabelledSet | None = None
        self._prepared: dict[known.EncoderFeatures, tuple[PreparedPictures, PreparedPictures]] = {}
        self._group: dist.ProcessGroup | None = None
        self._hours = 0.0  # seen, at the newest step
        self._measured: int | None = None  # step of the newest measurement

    def setup(self, trainer: pl.Trainer, module: Objective, stage: str) -> None:
        """Look at everything that can be wrong before a model is built."""
        if stage != "fit":
            return
        folders = [callback for callback in trainer.callbacks if isinstance(callback, RunFolder)]
        encoders = {**ARCHITECTURES, **token_architectures()}
        with agreeing():
            if not folders:
                raise InputError("OnlineProbe writes into a run folder, and there is none", "train with headcam fit")
            if type(module.skeleton.encoder).__name__ not in encoders:
                raise InputError(
                    f"OnlineProbe cannot encode pictures with a {type(module.skeleton.encoder).__name__}",
                    "take it out of trainer.callbacks",
                )
            if not trainer.datamodule.plan.units.hours and self.every_steps is None:
                raise InputError(
                    "data.train is still pictures, which stand for no hours of video",
                    "set every_steps of OnlineProbe",
                )
            if trainer.is_global_zero:
                self._data = _limited(read_labelled(self.labelled), self.max_pictures_per_class)
        self._folder = folders[0]

    def on_train_start(self, trainer: pl.Trainer, module: Objective) -> None:
        if many():
            # Of its own: one that waits makes no GPU wait, and may wait for longer than a step ever takes.
            self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        self._seen = HoursSeen(trainer.datamodule.plan)
        self._hours = self._seen.advance(_samples(trainer, module))
        with self._others_told() as outcome:
            if trainer.is_global_zero:
                self.record = Record(self._folder.folder / "online_probe.csv")
                hashes = [known.protocol_hash(protocol) for protocol in self.protocols]
                self.record.resume(trainer.global_step, self._data.identity, hashes)
                outcome["measured"] = self.record.step
        self._measured = outcome["measured"]
        if self._measured is None:
            self._measure(trainer, module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Objective, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        before, self._hours = self._hours, self._seen.advance(_samples(trainer, module))
        passed = milestone(self._hours, self.at_hours) > milestone(before, self.at_hours)
        step = trainer.global_step
        # The last step here, not only at the end of training: its checkpoint is written behind this.
        if passed or (self.every_steps and step % self.every_steps == 0) or step == trainer.max_steps:
            self._measure(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, module: Objective) -> None:
        if self._measured != trainer.global_step:  # a run that ended before its last step
            self._measure(trainer, module)

    def _measure(self, trainer: pl.Trainer, module: Objective) -> None:
        """Score the encoder as it is, write it down, say it; every process has to call it."""
        began = time.perf_counter()
        self._folder.count(trainer, module)
        sharded = gathered(module.encoder, module.skeleton.encoder)
        with self._others_told():
            if trainer.is_global_zero:
                with _modes_kept(module):
                    encoder, card = self._frozen(module, sharded)
                    found = self._rows(trainer, module, encoder, card)
                self._write(trainer, module, found, time.perf_counter() - began)
        self._measured = trainer.global_step
        self._folder.pause(time.perf_counter() - began)

    def _frozen(self, module: Objective, encoder: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
        """The encoder of the run as probes load it, and its card; the live one itself where that is the same."""
        card = {**module.card(), "name": self._folder.folder.name}
        whole = encoder is module.encoder and all(p.dtype == torch.float32 for p in encoder.parameters())
        if not whole:
            copy = build_encoder(card, self.seed, {**ARCHITECTURES, **token_architectures()})
            copy.load_state_dict(encoder.state_dict())
            encoder = copy
        if card["architecture"]["class"] in ARCHITECTURES:
            return encoder, card
        return as_token_encoder(encoder, card, self._folder.folder, None)

    def _rows(self, trainer: pl.Trainer, module: Objective, encoder: nn.Module, card: dict[str, Any]) -> list[Row]:
        """All numbers of this step."""
        device = trainer.strategy.root_device
        rows, features = [], {}
        for protocol in self.protocols:
            if protocol.features not in features:
                extractor = EncoderExtractor(encoder, card, protocol.features, device)
                features[protocol.features] = [p.features(extractor) for p in self._pictures(extractor)]
            train, test = features[protocol.features]
            if not (np.isfinite(train).all() and np.isfinite(test).all()):
                say_once(
                    f"online probe at step {trainer.global_step}: features are not finite in float16; not measured"
                )
                return []
            rows += self._numbers(trainer, module, protocol, train, test)
        return rows

    def _pictures(self, extractor: EncoderExtractor) -> tuple[PreparedPictures, PreparedPictures]:
        """Training and test pictures for an extractor, decoded at the first call."""
        if extractor.protocol not in self._prepared:
            parts = [PreparedPictures(pictures, extractor.prepare) for pictures in (self._data.train, self._data.test)]
            skipped = [found for part in parts for found in part.unreadable]
            if skipped:
                name, reason = skipped[0]
                say_once(f"online probe: {len(skipped)} pictures cannot be read, first {name}: {reason}")
            self._prepared[extractor.protocol] = tuple(parts)
        return self._prepared[extractor.protocol]

    def _numbers(
        self,
        trainer: pl.Trainer,
        module: Objective,
        protocol: known.KNN | known.LinearProbe,
        train: np.ndarray,
        test: np.ndarray,
    ) -> list[Row]:
        labels, truth = (part.labels for part in self._prepared[protocol.features])
        num_classes, device = len(self._data.classes), trainer.strategy.root_device
        selection = selection_mask(labels, groups_of(self._prepared[protocol.features][0].pictures))
        if isinstance(protocol, known.KNN):
            scores = knn_scores(train, labels, test, num_classes, protocol, selection=selection, device=device).scores
        else:
            scores = linear_probe(
                train, labels, selection, test, num_classes, protocol, seed=self.seed, device=device, quiet=True
            ).logits
        found = guesses(scores, truth, votes=isinstance(protocol, known.KNN))
        rows = []
        for k in (1, 5) if num_classes > _TOP5_ABOVE else (1,):
            metric = f"{protocol.metric}/top{k}"
            interval = bootstrap_mean(found.right(k), rng=stream(self.seed, f"bootstrap: {metric}", 0)).percent()
            rows.append(
                Row(
                    step=trainer.global_step,
                    samples=_samples(trainer, module),
                    hours_seen=self._hours,
                    hours_lived=self._folder.account.hours,
                    protocol=known.label(protocol),
                    protocol_hash=known.protocol_hash(protocol),
                    data=self._data.identity,
                    metric=metric,
                    value=interval.estimate,
                    low=interval.low,
                    high=interval.high,
                    n=interval.n,
                    chance=100 * k / num_classes,
                )
            )
        return rows

    def _write(self, trainer: pl.Trainer, module: Objective, rows: list[Row], seconds: float) -> None:
        """Put the numbers of a measurement where they belong, and say them in one line."""
        if not rows:
            return
        self.record.add(rows)
        top1 = {row.metric: row.value for row in rows if row.metric.endswith("/top1")}
        self._folder.metrics.log(trainer.global_step, {f"online/{metric}": value for metric, value in top1.items()})
        used = {known.label(p): known.protocol_hash(p) for p in self.protocols}
        start = "the initial weights" if "init" in module.card() else "random weights"
        facts = {"pictures": self._data.identity, **{f"protocol {label}": digest for label, digest in used.items()}}
        name = self._folder.folder.resolve().name
        write_page(self._folder.folder / "online_probe.html", self.record.rows, name, start, facts)
        values = ", ".join(f"{metric} {value:.1f} %" for metric, value in top1.items())
        say_once(
            f"online probe at step {trainer.global_step}, {self._hours:.3g} h seen, {rows[0].hours_lived:.3g} h lived: "
            f"{values} ({seconds:.1f} s)"
        )

    @contextmanager
    def _others_told(self) -> Iterator[dict[str, Any]]:
        """A block in which the first process works; the others wait for its end, and get what it put into the yield.

        Raises:
            AgreedError: in all processes, where the first one had an error of ours.
        """
        outcome: dict[str, Any] = {}
        if self._group is None:
            yield outcome
            return
        try:
            yield outcome
        except HeadcamError as error:
            outcome = {"error": (error.problem, error.fix)}
        told = [outcome]
        dist.broadcast_object_list(told, src=0, group=self._group)
        outcome |= told[0]
        if "error" in told[0]:
            raise AgreedError(*told[0]["error"])


def _usable(name: str, pool: str) -> known.KNN | known.LinearProbe:
    """The protocol of that name, if it is one of frozen features that are computed once."""
    found = known.protocol(name)
    cached = isinstance(found, known.LinearProbe) and (found.augmentation, found.layers) == ("none", "given")
    if not (cached or isinstance(found, known.KNN)):
        raise InputError(
            f"OnlineProbe cannot measure {name}, which is no kNN or linear probe on cached features of one layer",
            "use knn, linear or linear-whitened, and headcam probe for the others",
        )
    return known.with_features(found, pool=pool)


def _limited(data: LabelledSet, count: int | None) -> LabelledSet:
    """The set with the first `count` pictures of each class in either part; its name hashes what is left."""
    if data.media != "pictures":
        raise InputError(f"{data.name} is of videos, and OnlineProbe measures on pictures", "give a folder of pictures")
    return replace(data, train=first_of_each_class(data.train, count), test=first_of_each_class(data.test, count))


@contextmanager
def _modes_kept(module: nn.Module) -> Iterator[None]:
    """A block that may put parts of `module` into eval mode; behind it each is as it was."""
    before = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


def _samples(trainer: pl.Trainer, module: Objective) -> int:
    """Samples that all processes together have trained on."""
    return trainer.global_step * module.samples_per_step()
