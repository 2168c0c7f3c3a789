"""How much a model has to be given before it continues as it was: the experiment behind "Further thoughts on
hallucinations in generative models".

Given the upper half of a picture, an image model invents; given the first second of a clip, a video model returns
nearly the true second. Here both are asked the same way: by how much their continuations differ from each other, and
from the truth, as the share that is given grows; for items that the model was trained on and for held-out ones.

    token stores ──items──▶ first rows or slots ──sample x S──▶ continuations ──▶ diversity, closeness, entropy
                                                                      └─▶ nearest training items

Everything is measured over what was not given. Truth is the true tokens, decoded: what the tokenizer loses is not held
against the model. The baseline is unrelated items of the training store, as if they were continuations. The samples are
kept in a file an item, so that an experiment that was killed goes on where it was. `items.csv` has every number of
every item, `context.csv` the means with intervals over items. The page is made by `headcam.tokenizers.context_page`.

Shapes: S samples of an item, N tokens of a grid in raster order, `first` the number of tokens given.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headcam.errors import InputError
from headcam.files import atomic_file, write_json
from headcam.progress import Progress
from headcam.randomness import permuted, stream
from headcam.statistics import bootstrap_mean
from headcam.tokenizers.autoencoders.tokenizer import Tokenizer
from headcam.tokenizers.autoregression.gpt import GPT
from headcam.tokenizers.autoregression.loading import load_gpt_and_tokenizer
from headcam.tokenizers.autoregression.sampling import Sampling, sample
from headcam.tokenizers.continuations import closeness, diversity, predictions
from headcam.tokenizers.fidelity.pictures import cell_colours
from headcam.tokenizers.losses.lpips import load_perceptual
from headcam.tokenizers.nearest import decoded, nearest, thumbnails
from headcam.tokenizers.token_store import TokenStore

CONTRACT = "context/1"
FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
TRAINING, HELD_OUT = "training", "held out"
UNRELATED = "unrelated training items"  # the baseline, as a model
_SHEETS = 4  # items of each set whose samples are written as pictures


@dataclass(frozen=True)
class Number:
    """A row of context.csv.

    Attributes:
        model, weights_hash: of the GPT; the baseline has no weights.
        samples_seen: in its training; -1 where the card does not say.
        set: `training` or `held out`.
        given: rows of the picture or slots of the clip that are given.
        fraction: the same as a share of all.
        metric, value, low, high: mean over items and its 95 % interval.
        n: items.
    """

    model: str
    weights_hash: str
    samples_seen: int
    set: str
    given: int
    fraction: float
    metric: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Model:
    """A GPT of the experiment."""

    name: str
    gpt: GPT
    card: dict[str, Any]

    @property
    def samples_seen(self) -> int:
        return int(self.card.get("samples_seen", -1))

    @property
    def weights_hash(self) -> str:
        return self.card["weights_hash"]


@dataclass(frozen=True)
class Items:
    """The items of one set: rows of a token store."""

    name: str
    store: TokenStore
    rows: np.ndarray

    def tokens(self, row: int) -> Tensor:
        """(N,) int64."""
        return torch.from_numpy(self.store.tokens(row)).long().flatten()

    def recording(self, row: int) -> str:
        return self.store.recordings[int(self.store.recording[row])]


@dataclass(frozen=True)
class Sheet:
    """Samples of one item by the last model, to be looked at.

    Attributes:
        truth, samples, nearest: uint8 pixels (3, ...), (S, 3, ...) and, of each sample, its nearest training item.
        distance: (S,) to those, in grey levels.
    """

    set: str
    item: int
    given: int
    truth: Tensor
    samples: Tensor
    nearest: Tensor
    distance: Tensor


@dataclass(frozen=True)
class ContextResult:
    """What `context` made: the page to open, the rows of context.csv, and what is to be kept in mind."""

    page: Path
    numbers: list[Number]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Measure:
    """What all items are measured with."""

    tokenizer: Tokenizer
    training: TokenStore
    colours: np.ndarray  # (n, N, 3) uint8, of the training items
    lpips: nn.Module | None
    device: str


def context(
    run: str | Path,
    train: str | Path,
    held_out: str | Path,
    out: str | Path,
    *,
    fractions: Sequence[float] = FRACTIONS,
    samples: int = 8,
    num: int = 16,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    checkpoints: Sequence[str | Path] | None = None,
    lpips: str | None = None,
    frames: bool = True,
    quiet: bool = False,
) -> ContextResult:
    """Run the experiment and write `OUT/context.html`, `context.csv`, `items.csv`, `context.png` and `sheets/`.

    Args:
        run: run folder, weights or checkpoint of a GPT.
        train, held_out: token stores, made with the GPT's tokenizer: of data that it was trained on, and of other data.
        out: folder. An experiment that was killed goes on where it was.
        fractions: shares of the tokens that are given, each in (0, 1), rounded to rows of a picture or slots of a clip.
        samples: S, at least 2.
        num: items of each store.
        temperature, top_k, top_p: see `Sampling`. Only at temperature 1 without a cut are the samples those of the
            model's own distribution.
        seed: of the choice of items and of all draws. The same numbers are drawn for every model and every fraction.
        checkpoints: the same model after less training, in any order: runs or checkpoint files.
        lpips: weights, see `load_perceptual`; None: without.
        frames: whether pictures are shown and written.
    Raises:
        InputError: stores and model that do not belong together, settings out of range, another experiment in `out`.
    """
    from headcam.tokenizers.context_page import write_page, write_sheets

    out = Path(out)
    settings = Sampling(temperature, top_k, top_p)
    if samples < 2 or num < 2:
        raise InputError(f"{samples} samples of {num} items say nothing of diversity", "give at least 2 of both")
    models, tokenizer = _models([*(checkpoints or ()), run], train, device)
    sets = [_items(name, path, num, seed) for name, path in ((TRAINING, train), (HELD_OUT, held_out))]
    notes = _check_sets(*(items.store for items in sets), tokenizer)
    given = given_units(tokenizer.grid, fractions)
    _check_folder(out, sets, given, samples, settings, seed)
    network = None if lpips is None else load_perceptual(lpips).to(device).eval()
    training = sets[0].store
    measure = _Measure(tokenizer, training, thumbnails(training, tokenizer, out / "kept", quiet), network, device)

    values: dict[tuple[int, str, int, str], list[float]] = {}  # (model, set, given, metric) -> one an item
    lines, sheets = [], []
    with Progress("continuing", len(models) * sum(len(s.rows) for s in sets), "items", quiet) as progress:
        for items in sets:
            for k, row in enumerate(items.rows.tolist()):
                of_item = {(-1, units): found for units, found in _baseline(measure, items, row, given, samples, seed)}
                for m, model in enumerate(models):
                    drawn = _drawn(out / "kept", model, items, row, given, samples, settings, seed)
                    for units, tokens, facts in drawn:
                        found, sheet = _measured(measure, items, row, units, tokens)
                        of_item[m, units] = found | facts
                        if frames and k < _SHEETS and m == len(models) - 1:
                            sheets.append(Sheet(items.name, k, units, *sheet))
                    progress.advance(current=f"{model.name}, {items.name} {k + 1}")
                for (m, units), found in of_item.items():
                    name = UNRELATED if m < 0 else models[m].name
                    for metric, value in found.items():
                        values.setdefault((m, items.name, units, metric), []).append(value)
                        where = items.recording(row), float(items.store.time_s[row])
                        lines.append((CONTRACT, name, items.name, row, *where, units, metric, value))
    numbers = [_number(models, tokenizer.grid, key, of, seed) for key, of in sorted(values.items())]
    _write_csv(out / "items.csv", _ITEM_COLUMNS, lines)
    _write_csv(
        out / "context.csv",
        ("contract", *(f.name for f in fields(Number))),
        [(CONTRACT, *asdict(number).values()) for number in numbers],
    )
    if frames:
        write_sheets(out / "sheets", sheets, tokenizer)
    page = out / "context.html"
    about = {"samples": samples, "settings": settings, "seed": seed, "frames": frames, "lpips": lpips}
    write_page(page, models, sets, numbers, sheets, notes, tokenizer, about)
    return ContextResult(page, numbers, notes)


_ITEM_COLUMNS = ("contract", "model", "set", "row", "recording", "time_s", "given", "metric", "value")


def given_units(grid: tuple[int, ...], fractions: Sequence[float]) -> list[int]:
    """How many rows (h, w) or slots (t, h, w) to give: the fractions rounded, at least 1, at most all but 1; rising.

    Raises:
        InputError: a fraction outside (0, 1), or a grid of one row.
    """
    for fraction in fractions:
        if not 0 < fraction < 1:
            raise InputError(f"fraction {fraction:g} of the tokens cannot be given", "give numbers between 0 and 1")
    if not fractions or grid[0] < 2:
        raise InputError(f"{len(fractions)} fractions of {grid[0]} rows or slots leave no question", "give some")
    return sorted({min(max(round(fraction * grid[0]), 1), grid[0] - 1) for fraction in fractions})


def _models(sources: Sequence[str | Path], train: str | Path, device: str) -> tuple[list[Model], Tokenizer]:
    """The models by rising amount of training (ties as given), and the tokenizer that all of them have."""
    found = []
    for source in sources:
        gpt, tokenizer, card = load_gpt_and_tokenizer(source, train, device)
        found.append(Model(str(card.get("name", Path(source).name)), gpt, card))
    found.sort(key=lambda model: model.samples_seen)
    names = [model.name for model in found]
    if len(set(names)) < len(names):  # checkpoints of one run
        found = [Model(f"{m.name}, {m.samples_seen:,} samples seen", m.gpt, m.card) for m in found]
    return found, tokenizer


def _items(name: str, path: str | Path, num: int, seed: int) -> Items:
    store = TokenStore(path)
    rows = permuted(np.arange(min(num, len(store))), len(store), seed, f"context items {name}")
    return Items(name, store, np.sort(rows))


def _check_sets(training: TokenStore, held_out: TokenStore, tokenizer: Tokenizer) -> list[str]:
    if held_out.tokenizer_hash != training.tokenizer_hash or held_out.grid != training.grid:
        raise InputError(
            f"{held_out.folder} was made by another tokenizer than {training.folder}", "make both with the GPT's"
        )
    shared = set(training.recordings) & set(held_out.recordings)
    if not shared:
        return []
    moments = [
        {(s.recordings[r], t) for r, t in zip(s.recording.tolist(), s.time_s.tolist()) if s.recordings[r] in shared}
        for s in (training, held_out)
    ]
    both = len(moments[0] & moments[1])
    if both:
        raise InputError(
            f"{both} moments of {held_out.folder} are also in {training.folder}", "give data that was held out"
        )
    return [
        f"{len(shared)} of {len(held_out.recordings)} recordings of the held-out store are also in the training store, "
        "at other moments: held out are moments, not places."
    ]


def _check_folder(out: Path, sets: list[Items], given: list[int], samples: int, how: Sampling, seed: int) -> None:
    """Refuse a folder with another experiment; note what this one is."""
    facts = {
        "contract": CONTRACT,
        "stores": {items.name: items.store.metadata for items in sets},
        "rows": {items.name: items.rows.tolist() for items in sets},
        "given": given,
        "samples": samples,
        "sampling": asdict(how),
        "seed": seed,
    }
    facts = json.loads(json.dumps(facts))
    note = out / "context.json"
    if note.is_file() and json.loads(note.read_text("utf-8")) != facts:
        raise InputError(f"{out} holds an experiment with other settings or data", "give another --out")
    write_json(note, facts)


def _drawn(
    folder: Path, model: Model, items: Items, row: int, given: list[int], count: int, how: Sampling, seed: int
) -> list[tuple[int, Tensor, dict[str, float]]]:
    """(given, (S, N) tokens, facts of the model) for each amount given: drawn, or read from an earlier run."""
    path = folder / f"{model.weights_hash[:16]}-{items.name.replace(' ', '_')}-{row}.npz"
    if not path.is_file():
        truth, label = items.tokens(row), _label(model, items, row)
        device = model.gpt.head.weight.device
        labels = None if label is None else torch.tensor([label], device=device)
        per_unit = len(truth) // items.store.grid[0]
        item_seed = int(stream(seed, f"context {items.name}", row).integers(1 << 31))
        true_nats, true_entropy = predictions(model.gpt, truth[None].to(device), labels)
        found: dict[str, list] = {"tokens": [], "entropy": [], "nats_truth": [], "entropy_truth": []}
        for units in given:
            first = units * per_unit
            drawn = sample(model.gpt, count, prompt=truth[:first], label=label, settings=how, seed=item_seed)
            tokens = drawn.flatten(1)
            entropy = predictions(model.gpt, tokens.to(device), labels)[1]
            left = len(truth) - first
            found["tokens"].append(tokens.numpy().astype(np.uint32))
            found["entropy"].append(float(entropy[:, -left:].mean()))
            found["nats_truth"].append(float(true_nats[:, -left:].mean()))
            found["entropy_truth"].append(float(true_entropy[:, -left:].mean()))
        with atomic_file(path) as file:
            np.savez(file, **{name: np.array(value) for name, value in found.items()})
    with np.load(path) as file:
        facts = {name: file[name] for name in file.files}
    tokens = torch.from_numpy(facts.pop("tokens").astype(np.int64))
    return [(u, tokens[k], {name: float(of[k]) for name, of in facts.items()}) for k, u in enumerate(given)]


def _label(model: Model, items: Items, row: int) -> int | None:
    """The class of an item (its source), for models that are told it."""
    if model.gpt.arguments["start_token"] != "class":
        return None
    classes, facts = model.card.get("classes") or [], items.store.facts
    source = "" if facts is None else facts["source"][int(items.store.recording[row])].as_py()
    if source not in classes:
        raise InputError(f"source {source!r} of {items.store.folder} is no class of {model.name}", "use other data")
    return list(classes).index(source)


def _measured(
    measure: _Measure, items: Items, row: int, units: int, tokens: Tensor
) -> tuple[dict[str, float], tuple[Tensor, ...]]:
    """Metrics of S continuations of an item, and (truth, samples, nearest, distance) for its sheet."""
    grid, training = items.store.grid, measure.training
    truth = items.tokens(row)
    first = units * (len(truth) // grid[0])
    pixels = decoded(measure.tokenizer, torch.cat([truth[None], tokens]).view(-1, *grid))
    colours = cell_colours(pixels, grid)
    own = np.zeros(len(training), dtype=bool)
    if items.name == TRAINING:  # other crops of the moment, and clips that overlap, are the item too
        apart = np.abs(training.time_s - training.time_s[row])
        own = (training.recording == training.recording[row]) & (apart <= training.span_s[row])
    distance, which = nearest(colours[1:], measure.colours, first)
    found = diversity(tokens, pixels[1:], units, grid[0], measure.lpips, measure.device)
    found |= closeness(truth, tokens, pixels, units, grid[0], measure.lpips, measure.device)
    found["nearest_training"] = float(distance.mean())
    found["truth_at_cells"] = float((colours[1:, first:] - colours[:1, first:]).square().mean(dim=(1, 2)).sqrt().mean())
    found["truth_nearest_training"] = float(nearest(colours[:1], measure.colours, first, own)[0])
    if items.name == TRAINING:
        found["retrieved"] = float(own[which.numpy()].mean())
    neighbours = torch.from_numpy(np.stack([training.tokens(i) for i in which.tolist()])).long()
    return found, (pixels[0], pixels[1:], decoded(measure.tokenizer, neighbours), distance)


def _baseline(
    measure: _Measure, items: Items, row: int, given: list[int], count: int, seed: int
) -> Iterator[tuple[int, dict[str, float]]]:
    """(given, metrics) of unrelated training items as if they were continuations, for each amount given."""
    training, grid = measure.training, items.store.grid
    others = np.array([training.recordings[r] != items.recording(row) for r in training.recording])
    among = np.flatnonzero(others)
    if not len(among):  # one recording only
        among = np.arange(len(training))
    rng = stream(seed, f"context unrelated {items.name}", row)
    tokens = torch.from_numpy(np.stack([training.tokens(i) for i in rng.choice(among, count)])).long().flatten(1)
    truth = items.tokens(row)
    pixels = decoded(measure.tokenizer, torch.cat([truth[None], tokens]).view(-1, *grid))
    for units in given:
        found = diversity(tokens, pixels[1:], units, grid[0], measure.lpips, measure.device)
        yield units, found | closeness(truth, tokens, pixels, units, grid[0], measure.lpips, measure.device)


def _number(
    models: list[Model], grid: tuple[int, ...], key: tuple[int, str, int, str], values: list[float], seed: int
) -> Number:
    m, name, units, metric = key
    of = (UNRELATED, "", -1) if m < 0 else (models[m].name, models[m].weights_hash, models[m].samples_seen)
    interval = bootstrap_mean(np.array(values), rng=stream(seed, f"context {name} {metric}", units))
    ends = interval.estimate, interval.low, interval.high
    return Number(*of, name, units, units / grid[0], metric, *ends, interval.n)


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with atomic_file(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
