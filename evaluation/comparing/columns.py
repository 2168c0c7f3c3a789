"""Which numbers may stand beside each other: rows are models, a column is one metric of one protocol on one data set.

Two numbers are comparable where the hash of their protocol and the content hash of their data are equal, and only then
do they share a column. A metric that was measured in two ways has two columns, and `why_apart` says what differs.

The trained models come first, in the order of the folders; then their random twins, raw pixels and chance. Baselines
have protocols of their own (raw pixels have other features, chance has none), so a baseline stands in the column of
the trained model that it was measured beside. What is the same thing measured in several folders (raw pixels, chance,
the twin of one architecture and seed, one checkpoint under two protocols) is one row, as long as its numbers agree.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from headcam.errors import InputError
from headcam.evaluation.comparing.probes import Probe
from headcam.evaluation.scoring.guesses import Guesses
from headcam.evaluation.scoring.scores import Score
from headcam.evaluation.subjects import CHANCE, PIXELS

Role = Literal["trained", "random", "pixels", "chance"]
Kind = Literal["plain", "draw", "labels", "layer", "robustness"]
RANDOM = " (random weights)"  # how a probe ends the name of a random twin
_ROLES: tuple[Role, ...] = ("trained", "random", "pixels", "chance")
_ROBUSTNESS = re.compile(r"(^|/)(imagenet-[^/]+|cue-conflict|corruption|edges|silhouettes)(/|$)")
_NAMED = 3  # models in the name of a twin that they share
_PREFERRED = ("linear/top1", "linear-whitened/top1")


@dataclass(frozen=True, order=True)
class Column:
    """A metric of one protocol on one data set; `protocol_hash` is that of the trained models in it."""

    metric: str
    data: str
    protocol_hash: str

    @property
    def stem(self) -> str:
        """The metric without its `/top1`: how items name the measurement."""
        return re.sub(r"/top\d+$", "", self.metric)

    @property
    def top(self) -> int | None:
        """k of a top-k accuracy; None of another measure."""
        found = re.search(r"/top(\d+)$", self.metric)
        return int(found[1]) if found else None

    @property
    def kind(self) -> Kind:
        """plain: stands in the tables; draw: one of several draws of labels; the others have sections of their own."""
        if _ROBUSTNESS.search(self.metric):
            return "robustness"
        if re.search(r"/draw\d+(/|$)", self.metric):
            return "draw"
        if re.search(r"^label-curve[^/]*/\d+(/|$)", self.metric):
            return "labels"
        return "layer" if re.search(r"/layer\d+(/|$)", self.metric) else "plain"


@dataclass
class Row:
    """One model or baseline.

    Attributes:
        name: as the page calls it.
        models: how each folder that it was measured in calls it, by the folder's number (twins are named by models).
        probes: those folders.
        cells: its numbers; origin: the folder of each.
    """

    name: str
    role: Role
    weights_hash: str
    models: dict[int, str]
    probes: list[Probe]
    cells: dict[Column, Score]
    origin: dict[Column, Probe]

    def guesses(self, column: Column, stem: str | None = None) -> Guesses | None:
        """What it said of the test pictures of `column` (or of another `stem` of that probe), if that was kept."""
        probe = self.origin.get(column)
        return None if probe is None else probe.items.guesses.get((self.models[probe.number], stem or column.stem))

    @property
    def about(self) -> dict[str, Any]:
        """What the probe says of the checkpoint: hours, samples, parameters where known."""
        return self.probes[0].report["model"] if self.role == "trained" else {}


@dataclass(frozen=True)
class Grid:
    """All numbers of all probes, sorted into rows and columns."""

    probes: tuple[Probe, ...]
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]

    @cached_property
    def trained(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.role == "trained")

    def of_kind(self, *kinds: Kind) -> list[Column]:
        return [column for column in self.columns if column.kind in kinds]

    def trained_in(self, column: Column) -> list[Row]:
        """The trained models that have a number there."""
        return [row for row in self.trained if column in row.cells]

    def baseline(self, row: Row, role: Role, column: Column) -> Row | None:
        """The baseline that was measured beside `row`: its own twin, or the raw pixels or chance of its folder."""
        beside = row.origin.get(column)
        for other in self.rows:
            if other.role == role and beside is not None and column in other.cells:
                if role != "random" or beside.number in other.models:
                    return other
        return None

    def title(self, column: Column) -> str:
        """Heading of a column, with a number where its metric was measured in several ways."""
        same = [other for other in self.columns if other.metric == column.metric]
        text = readable(column.metric).replace("top-", "top\N{NON-BREAKING HYPHEN}")
        return text if len(same) == 1 else f"{text} ({same.index(column) + 1})"


def readable(metric: str) -> str:
    """`knn/k20_T0.07/top1` as "knn k20 T0.07, top-1"."""
    stem, _, top = metric.rpartition("/top")
    if not top.isdigit():
        return metric.replace("/", " ").replace("_", " ")
    return f"{stem.replace('/', ' ').replace('_', ' ')}, top-{top}"


def grid_of(probes: Sequence[Probe], names: Sequence[str] | None = None) -> Grid:
    """Sort the numbers of the probes into rows and columns.

    Args:
        probes: folders that were read.
        names: how to call the checkpoint of each folder; default its own name, with the folder's where it is not the
            only one of that name.
    Raises:
        InputError: another number of names than of folders, or a name twice.
    """
    if names is not None and (len(names) != len(probes) or len(set(names)) != len(names)):
        raise InputError(
            f"--names has {len(names)} names ({', '.join(names)}) for {len(probes)} folders",
            "give each folder one name of its own, in their order",
        )
    rows: list[Row] = []
    columns: dict[Column, None] = {}
    for probe in probes:
        column_of = {
            score.metric: Column(score.metric, _content(score.data), score.protocol_hash)
            for score in probe.scores
            if _role(score.model) == "trained"
        }
        columns |= dict.fromkeys(column_of.values())
        for model in dict.fromkeys(score.model for score in probe.scores):
            of = [score for score in probe.scores if score.model == model and score.metric in column_of]
            role, cells = _role(model), {column_of[score.metric]: score for score in of}
            name = names[probe.number] if names is not None and model == probe.model else model
            digest, origin = of[0].weights_hash if of else "", dict.fromkeys(cells, probe)
            row = Row(name, role, digest, {probe.number: model}, [probe], cells, origin)
            _join(rows, row, apart=names is not None and role == "trained")
    _name_apart(rows)
    ordered = sorted(rows, key=lambda row: _ROLES.index(row.role))
    return Grid(tuple(probes), tuple(ordered), tuple(columns))


def _content(data: str) -> str:
    """The content hash of a data set, without the name of its folder."""
    return data.rpartition("@")[2]


def _role(model: str) -> Role:
    if model in (PIXELS, CHANCE):
        return "pixels" if model == PIXELS else "chance"
    return "random" if model.endswith(RANDOM) else "trained"


def _join(rows: list[Row], row: Row, apart: bool) -> None:
    """Add a row, or its numbers to the row that is of the same thing."""
    for other in rows:
        same = (other.role, other.weights_hash) == (row.role, row.weights_hash)
        if apart or not same or (row.role == "trained" and other.name != row.name):
            continue
        if all(_number(other.cells[c]) == _number(row.cells[c]) for c in other.cells.keys() & row.cells.keys()):
            other.probes += row.probes
            other.models |= row.models
            for column, score in row.cells.items():
                if column not in other.cells:
                    other.cells[column], other.origin[column] = score, row.origin[column]
            return
    rows.append(row)


def _number(score: Score) -> tuple[float, ...]:
    if score.model == CHANCE:  # exact, whatever it stands beside: shape bias counts each model's own decisions
        return (score.value,)
    return score.value, score.low, score.high, score.n


def _name_apart(rows: list[Row]) -> None:
    """Rows that still share a name get as much of their folder's path as tells them apart."""
    for row in rows:
        if row.role == "random" and len({probe.model for probe in row.probes}) > 1:
            models = list(dict.fromkeys(probe.model for probe in row.probes))
            more = f" and {len(models) - _NAMED} more" if len(models) > _NAMED else ""
            row.name = "random weights of " + ", ".join(models[:_NAMED]) + more
    for name in {row.name for row in rows}:
        same = [row for row in rows if row.name == name]
        if len(same) == 1:
            continue
        paths = [row.probes[0].folder.expanduser().resolve().parts for row in same]
        depth = next((d for d in range(1, 99) if len({path[-d:] for path in paths}) == len(paths)), 99)
        for row, path in zip(same, paths):
            row.name = f"{name} ({'/'.join(path[-depth:])})"


def why_apart(grid: Grid, first: Column, second: Column) -> list[str]:
    """What differs between two columns of one metric: the data, or settings of the protocol, with both values."""
    a, b = (next(row.origin[c] for row in grid.trained_in(c)) for c in (first, second))
    reasons = []
    if first.data != second.data:
        texts = [f"{p.report['data']['name']} ({_size(p)})" for p in (a, b)]
        reasons.append("labelled pictures: " + " | ".join(texts))
    if first.protocol_hash != second.protocol_hash:
        left, right = (
            _flat(probe.report["protocols"].get(c.protocol_hash, {})) for probe, c in ((a, first), (b, second))
        )
        reasons += [
            f"{key}: {left.get(key, 'not set')} | {right.get(key, 'not set')}"
            for key in dict.fromkeys([*left, *right])
            if left.get(key) != right.get(key)
        ] or ["protocols of different hashes, and no settings recorded"]
    return reasons


def _size(probe: Probe) -> str:
    data = probe.report["data"]
    return f"{len(data['classes'])} classes, {data['train']:,} training and {data['test']:,} test pictures"


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def main_column(grid: Grid, metric: str | None = None) -> Column:
    """The column that the page is about: that of `metric`, else a linear probe's, with the most trained models.

    Raises:
        InputError: no such metric, or no column that two trained models share.
    """
    every = [column for column in grid.of_kind("plain", "labels", "layer") if column.top is not None]
    if metric is not None:
        every = [column for column in every if column.metric == metric]
        if not every:
            known = dict.fromkeys(column.metric for column in grid.of_kind("plain") if column.top is not None)
            raise InputError(
                f"--metric {metric} is no accuracy that was measured on the test pictures of these probes",
                f"use one of {', '.join(known)}",
            )
    else:
        every = [column for column in every if column.kind == "plain"] or every
    best = max(
        every,
        key=lambda c: (
            len(grid.trained_in(c)),
            c.metric in _PREFERRED,
            -_PREFERRED.index(c.metric) if c.metric in _PREFERRED else 0,
            c.top == 1,
            -grid.columns.index(c),
        ),
    )
    if len(grid.trained_in(best)) < 2:
        raise InputError(_nothing_shared(grid, every), "probe the same labelled pictures with the same protocols")
    return best


def _nothing_shared(grid: Grid, columns: list[Column]) -> str:
    """Why no two models have a number in common, by the first metric that several have."""
    if len(grid.trained) == 1:
        return f"there is only one model here, {grid.trained[0].name}, and nothing to compare it with"
    for column in columns:
        others = [c for c in columns if c.metric == column.metric and c != column]
        if others:
            return (
                f"nothing can be compared: {column.metric} was measured in different ways "
                f"({'; '.join(why_apart(grid, column, others[0])[:3])})"
            )
    return "nothing can be compared: no metric is in two of these probes"
