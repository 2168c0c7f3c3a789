"""The settings of an experiment: which learner studies which pictures, how often, and what it is asked afterwards.

    configs/memory/NAME.yaml ─▶ read_experiment ─▶ Experiment ─▶ headcam.recognition_memory.run

Everything that a number depends on is here, but for the pictures themselves: those are in the manifest
(`headcam.recognition_memory.stimuli.manifest`), and a run goes by its hash. The learner is kept as it is written in the
file, its class path and arguments, because every run of an experiment takes a new state of it (`Learner.begin`).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import yaml

from headcam.errors import HeadcamError, InputError
from headcam.recognition_memory.learners.learner import Learner
from headcam.recognition_memory.stimuli.variants import Augmentation, parse_variant


@dataclass
class StudySettings:
    """How pictures are studied: exact passes at a constant learning rate, nothing clipped.

    Attributes:
        exposures: passes over the study list; every picture is seen once in each.
        batch_size: pictures of an optimizer step; the last one of a pass may have fewer.
        micro_batch_size: pictures that go through the model together, their gradients summed up to the batch's; null:
            all of the batch. For memory only: the step is the same up to rounding.
        optimizer: its state is fresh at the start of a run.
        lr: learning rate, constant.
        betas: of adam and adamw.
        weight_decay: added to the gradient (adam, sgd) or decoupled (adamw).
        momentum: of sgd.
        list_length: pictures of the study list: all those that are tested, then fillers drawn by the seed; null: all.
        augmentation: what is done to pictures while they are studied; by default nothing, so that the same pixels are
            studied and tested.
        precision: of the arithmetic of study; bf16 where the device computes in it, else 32. Scores are always made in
            32 bits: one exposure changes them by less than bf16 tells apart.
    """

    exposures: int = 10
    batch_size: int = 32
    micro_batch_size: int | None = None
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    momentum: float = 0.0
    list_length: int | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)
    precision: Literal["32", "bf16"] = "32"

    def __post_init__(self) -> None:
        _at_least("study.exposures", self.exposures, 1)
        _at_least("study.batch_size", self.batch_size, 1)
        _at_least("study.micro_batch_size", self.micro_batch_size, 1)
        _at_least("study.list_length", self.list_length, 1)
        _positive("study.lr", self.lr)
        for name, value in (("betas", self.betas[0]), ("betas", self.betas[1]), ("momentum", self.momentum)):
            if not 0 <= value < 1:
                raise InputError(f"study.{name} holds {value}", "give numbers from 0 to below 1")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"study.weight_decay is {self.weight_decay}", "give 0 or more")


@dataclass
class TestSettings:
    """What is tested after each exposure.

    Attributes:
        conditions: of the manifest; null: all.
        batch_size: pictures that are scored together.
        resample: how pictures are brought to the learner's size, at study and test alike.
        flagged: leave_out: a picture that lies in the study list twice is studied once, and pairs whose foil is studied
            are not tested; keep: everything as it is in the manifest, faults and all.
        variants: tests besides the plain one, such as "noise:25", "occluded:0.25" or "foil mirror"
            (`headcam.recognition_memory.stimuli.variants`).
    """

    __test__ = False  # no test of pytest

    conditions: list[str] | None = None
    batch_size: int = 64
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    flagged: Literal["leave_out", "keep"] = "leave_out"
    variants: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        _at_least("test.batch_size", self.batch_size, 1)
        _distinct("test.conditions", self.conditions)
        _distinct("test.variants", [parse_variant(text).name for text in self.variants])


@dataclass
class SelectionSettings:
    """The learning rate is chosen on other pictures, then frozen (`headcam.recognition_memory.running.selection`).

    Attributes:
        pictures: folder of pictures, frame store, file of headcam index, or manifest of other stimuli.
        lrs: learning rates that are tried.
        num: pictures that are drawn: one half is studied, the other serves as foils, then the other way round.
        exposures: after which the memory is measured.
        seed: of the draw and of the runs.
    """

    pictures: str
    lrs: list[float]
    num: int = 400
    exposures: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("selection.num", self.num, 4)
        _at_least("selection.exposures", self.exposures, 1)
        _at_least("selection.seed", self.seed, 0)
        _distinct("selection.lrs", self.lrs)
        if not self.lrs:
            raise InputError("selection.lrs is empty", "give learning rates, such as [1e-4,3e-4,1e-3]")
        for lr in self.lrs:
            _positive("selection.lrs", lr)


@dataclass
class RetentionSettings:
    """What is left after learning other data (`headcam.recognition_memory.harder.retention`).

    Attributes:
        data: frame store, file of headcam index, or folder of pictures.
        updates: optimizer steps on them after the last exposure.
        batch_size: pictures of such a step; null: as in study.
        tests: updates after which is tested; null: 1, 2, 4, ... and the last.
    """

    data: str
    updates: int = 1000
    batch_size: int | None = None
    tests: list[int] | None = None

    def __post_init__(self) -> None:
        _at_least("retention.updates", self.updates, 1)
        _at_least("retention.batch_size", self.batch_size, 1)
        _distinct("retention.tests", self.tests)
        for step in self.tests or []:
            if not 1 <= step <= self.updates:
                raise InputError(
                    f"retention.tests holds {step}", f"give numbers from 1 to retention.updates, {self.updates}"
                )


@dataclass
class RecallSettings:
    """Completion of the lower half of studied pictures (`headcam.recognition_memory.harder.recall`).

    Attributes:
        num: tested pairs, the same in every run: the studied picture and the foil of each are completed.
        samples: completions of each.
        temperature: of the draws, where the learner draws.
        top_k: codes that are drawn from; null: all.
    """

    num: int = 50
    samples: int = 1
    temperature: float = 1.0
    top_k: int | None = 128

    def __post_init__(self) -> None:
        _at_least("recall.num", self.num, 1)
        _at_least("recall.samples", self.samples, 1)
        _at_least("recall.top_k", self.top_k, 1)
        _positive("recall.temperature", self.temperature)


@dataclass
class SweepSettings:
    """The same experiment under other settings of study, every combination (`headcam.recognition_memory.harder.sweep`).

    Attributes:
        lr: learning rates; empty: the experiment's own, as for the other two.
        batch_size: pictures of an optimizer step.
        list_length: pictures of the study list.
    """

    lr: list[float] = field(default_factory=list)
    batch_size: list[int] = field(default_factory=list)
    list_length: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, values in (("lr", self.lr), ("batch_size", self.batch_size), ("list_length", self.list_length)):
            _distinct(f"sweep.{name}", values)
            for value in values:
                _positive(f"sweep.{name}", value)


@dataclass
class Experiment:
    """One learner on one manifest, in as many runs as there are study sets and seeds.

    Attributes:
        model: how tables and the report call the model, such as igpt_s.
        learner: `class_path` of a `headcam.recognition_memory.learners` class, and its `init_args`.
        pretraining: how tables call what the model has seen before, such as saycam_1pct; none: nothing.
        manifest: file or folder of `headcam memory prepare`, relative to the current folder.
        study: how pictures are studied.
        test: what is tested after each exposure.
        seeds: of the runs of each study set: the order of study, and whatever is random in the learner.
        study_sets: of the manifest; null: all.
        selection: choose the learning rate on other pictures first; null: `study.lr` as given.
        retention: test again after learning other data; null: not.
        recall: let the learner complete studied pictures; null: not.
        sweep: repeat all of it under other settings of study; null: not.
    """

    model: str
    learner: dict[str, Any]
    pretraining: str = "none"
    manifest: str | None = None
    study: StudySettings = field(default_factory=StudySettings)
    test: TestSettings = field(default_factory=TestSettings)
    seeds: list[int] = field(default_factory=lambda: [0, 1])
    study_sets: list[str] | None = None
    selection: SelectionSettings | None = None
    retention: RetentionSettings | None = None
    recall: RecallSettings | None = None
    sweep: SweepSettings | None = None

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise InputError("model is empty", "give the model a name for tables and the report")
        if not self.seeds:
            raise InputError("seeds is empty", "give seeds, such as [0,1]")
        _distinct("seeds", self.seeds)
        _distinct("study_sets", self.study_sets)
        for seed in self.seeds:
            _at_least("seeds", seed, 0)


def add_experiment_options(parser: jsonargparse.ArgumentParser) -> None:
    """The settings of an experiment as options (`--study.lr`, `--learner.init_args.depth`, ...) of `parser`."""
    parser.add_class_arguments(Experiment, skip={"learner"})
    parser.add_subclass_arguments(Learner, "learner", required=True, instantiate=False)


def read_experiment(config: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of a YAML file.

    Args:
        config: the file.
        overrides: options as on a command line, such as `--study.lr=1e-3`; they win over the file.
    Raises:
        InputError: no such file, or a setting that is unknown or cannot be.
    """
    if not Path(config).is_file():
        raise InputError(f"config {config} does not exist", "give a YAML file, see configs/memory")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    add_experiment_options(parser)
    try:
        return experiment_of(parser, parser.parse_args(["--config", str(config), *overrides]))
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        raise _plain_error(error, f"{config} describes no experiment", "see the examples in configs/memory") from error


def experiment_of(parser: jsonargparse.ArgumentParser, parsed: jsonargparse.Namespace) -> Experiment:
    """The experiment that a parser with `add_experiment_options` has parsed; its other options are passed over."""
    settings = _instantiate(parser, parsed).as_dict()
    return Experiment(**{one.name: settings[one.name] for one in fields(Experiment)})


def build_learner(spec: Mapping[str, Any]) -> Learner:
    """The learner that a config describes; its state before study is taken by `Learner.begin`.

    Args:
        spec: `class_path` and `init_args`.
    Raises:
        InputError: a class or argument that does not exist, or that the learner refuses.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Learner, "learner", required=True)
    try:
        return _instantiate(parser, parser.parse_object({"learner": dict(spec)})).learner
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        raise _plain_error(
            error, "the experiment describes no learner", "see headcam.recognition_memory.learners"
        ) from error


def experiment_yaml(experiment: Experiment) -> str:
    """All settings, in the form that `read_experiment` reads."""
    plain = json.loads(json.dumps(asdict(experiment)))  # tuples as lists
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)


def _instantiate(parser: jsonargparse.ArgumentParser, parsed: jsonargparse.Namespace) -> jsonargparse.Namespace:
    # jsonargparse 4.49 renamed the method.
    return (parser.instantiate if hasattr(parser, "instantiate") else parser.instantiate_classes)(parsed)


def _plain_error(error: Exception, problem: str, fix: str) -> HeadcamError:
    """Our own error where one lies behind what jsonargparse raised, else one with its message on a line."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HeadcamError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return InputError(f"{problem}: {' '.join(str(error).split()).rstrip('.')}", fix)


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise InputError(f"{name} is {value}", f"give {least} or more")


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise InputError(f"{name} is {value}", "give a number above 0")


def _distinct(name: str, values: Sequence[Any] | None) -> None:
    doubled = sorted({str(value) for value in values or () if list(values).count(value) > 1})
    if doubled:
        raise InputError(f"{name} holds {doubled[0]} more than once", "give each value once")
