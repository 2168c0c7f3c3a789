"""The page of the context experiment: curves over what is given, samples beside truth and nearest training items.

`headcam.tokenizers.context` runs the experiment, this file shows it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from headcam import __version__
from headcam.pages import BLUE, MUTED, ORANGE, Estimate, Page, chart
from headcam.ssl.looking.tiles import save_png
from headcam.tokenizers.autoencoders.tokenizer import Tokenizer
from headcam.tokenizers.context import HELD_OUT, TRAINING, UNRELATED, Items, Model, Number, Sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 6  # samples in a row, or frames of a clip
_CLIP_SAMPLES = 3
_GIVEN = (0.25, 0.5, 0.75)  # of the sheets
_HIDDEN = 128  # grey
_LOG_FROM = 20  # times as much training from which an axis is logarithmic
_NAMES = {
    "diversity_pixels": "difference between samples\n(grey levels)",
    "error_pixels": "difference from the truth\n(grey levels)",
    "diversity_tokens": "tokens that differ between samples",
    "accuracy": "tokens as in the truth",
    "diversity_lpips": "LPIPS between samples",
    "error_lpips": "LPIPS from the truth",
}
Table = dict[tuple[str, str, int, str], Number]  # model, set, given, metric


def write_page(
    path: Path,
    models: Sequence[Model],
    sets: Sequence[Items],
    numbers: Sequence[Number],
    sheets: Sequence[Sheet],
    notes: Sequence[str],
    tokenizer: Tokenizer,
    about: dict[str, Any],
) -> None:
    """Write the page, and its first chart as context.png beside it; the arguments are what `context` made."""
    table: Table = {(n.model, n.set, n.given, n.metric): n for n in numbers}
    given = sorted({n.given for n in numbers})
    name, unit = models[-1].name, "slots of a clip" if tokenizer.num_frames > 1 else "rows of a picture"
    page = Page("How much context a true continuation needs", _headline(table, name, given, unit), about["frames"])
    units = tokenizer.grid[0]
    page.section(
        "Diversity and closeness",
        f"{name} is given the first {unit} ({units} in all), and draws the rest {about['samples']} times. How much do "
        "these continuations differ from each other, and how much from what was really there? Both over what was not "
        "given, as root mean square differences of pixels in grey levels of 255.",
    )
    with chart(height=5.6) as figure:
        upper, lower = figure.subplots(2, sharex=True)
        for axes, metric in ((upper, "error_pixels"), (lower, "diversity_pixels")):
            _curves(axes, table, name, given, metric)
        lower.set(xlabel="share of the tokens that is given")
        figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        figure.savefig(path.with_suffix(".png"), dpi=160, facecolor="white")
        page.figure(
            figure,
            f"Means over {sets[0].rows.size} training and {sets[1].rows.size} held-out items, with 95 % intervals. "
            "A model that has the truth by heart has both at 0; one that knows what is likely has samples that differ "
            "from each other as much as from the truth. Unrelated: other training items in place of samples.",
            alt=_headline(table, name, given, unit),
        )
    _table(page, table, name, given, units)
    _tokens(page, table, name, given)
    if len(models) > 1:
        _training(page, table, models, given)
    _retrieval(page, table, name, given, units)
    _sheets(page, sheets, tokenizer)
    page.section("What these numbers do and do not show")
    page.bullets([*notes, *_caveats(models[-1], about)])
    page.provenance(
        {f"weights of {m.name}": m.weights_hash for m in models}
        | {f"{items.name} items": str(items.store.folder) for items in sets}
        | {"tokenizer": sets[0].store.tokenizer_hash, "seed": str(about["seed"])}
        | {"numbers": f"{path.with_name('context.csv')}, {path.with_name('items.csv')}"}
        | {"version": f"headcam {__version__}"}
    )
    page.write(path)


def _headline(table: Table, model: str, given: Sequence[int], unit: str) -> str:
    """The result in words: least and most context, both sets."""
    parts = []
    for units in dict.fromkeys((given[0], given[-1])):
        n = {
            (name, metric): table[model, name, units, metric]
            for name in (TRAINING, HELD_OUT)
            for metric in ("diversity_pixels", "error_pixels")
        }
        share = n[TRAINING, "error_pixels"].fraction
        parts.append(
            f"With {100 * share:.0f} % of the {unit} given, samples differ from each other by "
            f"{_words(n[TRAINING, 'diversity_pixels'])} grey levels on training items and "
            f"{_words(n[HELD_OUT, 'diversity_pixels'])} on held-out ones, and from the truth by "
            f"{_words(n[TRAINING, 'error_pixels'])} and {_words(n[HELD_OUT, 'error_pixels'])}."
        )
    return " ".join(parts)


def _words(number: Number) -> str:
    return f"{number.value:.1f} [{number.low:.1f}, {number.high:.1f}]"


def _estimate(number: Number, digits: int = 1, scale: float = 1.0) -> Estimate:
    return Estimate(scale * number.value, scale * number.low, scale * number.high, digits)


def _curves(axes: "Axes", table: Table, model: str, given: Sequence[int], metric: str) -> None:
    series = (
        (model, TRAINING, BLUE, "o", "-", "training items"),
        (model, HELD_OUT, ORANGE, "s", "-", "held-out items"),
        (UNRELATED, HELD_OUT, MUTED, None, "--", "unrelated items"),
    )
    for name, which, colour, marker, line, label in series:
        of = [table[name, which, units, metric] for units in given]
        _line(axes, [n.fraction for n in of], of, color=colour, marker=marker, linestyle=line, label=label)
    axes.set(ylabel=_NAMES[metric], xlim=(0, 1), ylim=(0, None))


def _line(axes: "Axes", x: Sequence[float], of: Sequence[Number], **style: Any) -> None:
    value = np.array([n.value for n in of])
    ends = [value - [n.low for n in of], [n.high for n in of] - value]
    axes.errorbar(x, value, yerr=ends, markersize=5, capsize=2, elinewidth=1, **style)


def _table(page: Page, table: Table, model: str, given: Sequence[int], units: int) -> None:
    shown = given if len(given) <= 5 else [given[k] for k in np.linspace(0, len(given) - 1, 5).round().astype(int)]
    metrics = [m for m in ("diversity_lpips", "error_lpips") if (model, TRAINING, given[0], m) in table]
    metrics = ["diversity_pixels", "error_pixels", *metrics]
    rows = [
        [f"{u}/{units}", who if name == model else "unrelated"]
        + [_estimate(table[name, who, u, m], 3 if "lpips" in m else 1) for m in metrics]
        for u in shown
        for name, who in ((model, TRAINING), (model, HELD_OUT), (UNRELATED, HELD_OUT))
    ]
    n = table[model, TRAINING, given[0], "accuracy"].n
    page.table(
        ["given", "items", *(_NAMES[m].replace("\n", " ") for m in metrics)],
        rows,
        f"The same as numbers, with 95 % bootstrap intervals over items ({n} of training).",
    )


def _tokens(page: Page, table: Table, model: str, given: Sequence[int]) -> None:
    page.section(
        "Tokens and entropy",
        "The entropy is the model's own: how uncertain it is of the next token along its own continuations. Beside it "
        "stands how surprising the true continuation is to it. Where truth costs less than the entropy, the model "
        "knows this item better than it knows the world.",
    )
    with chart(height=5.4) as figure:
        upper, lower = figure.subplots(2, sharex=True)
        _curves(upper, table, model, given, "accuracy")
        styles = (("entropy", "-", "entropy"), ("nats_truth", ":", "truth"))
        for which, colour, marker in ((TRAINING, BLUE, "o"), (HELD_OUT, ORANGE, "s")):
            for metric, line, word in styles:
                of = [table[model, which, units, metric] for units in given]
                label = f"{word}, {which}"
                _line(lower, [n.fraction for n in of], of, color=colour, marker=marker, linestyle=line, label=label)
        lower.set(xlabel="share of the tokens that is given", ylabel="nats per token", ylim=(0, None))
        upper.legend(fontsize=8)
        figure.legend(*lower.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
        page.figure(
            figure,
            "Above: share of the continuation's tokens that are the true ones. Below: entropy of the model along its "
            "samples (solid) and -ln p of the true continuation (dotted), a token.",
            alt="; ".join(
                f"{which}, {table[model, which, given[0], 'entropy'].value:.2f} to "
                f"{table[model, which, given[-1], 'entropy'].value:.2f} nats per token"
                for which in (TRAINING, HELD_OUT)
            ),
        )


def _training(page: Page, table: Table, models: Sequence[Model], given: Sequence[int]) -> None:
    middle = min(given, key=lambda units: abs(table[models[-1].name, TRAINING, units, "accuracy"].fraction - 0.5))
    share = table[models[-1].name, TRAINING, middle, "accuracy"].fraction
    page.section("With more training", f"The same items and the same draws, with {100 * share:.0f} % given.")
    seen = [model.samples_seen for model in models]
    known = min(seen) >= 0 and len(set(seen)) == len(seen)
    with chart(height=5.2) as figure:
        upper, lower = figure.subplots(2, sharex=True)
        for axes, metric in ((upper, "error_pixels"), (lower, "diversity_pixels")):
            for which, colour, marker in ((TRAINING, BLUE, "o"), (HELD_OUT, ORANGE, "s")):
                of = [table[model.name, which, middle, metric] for model in models]
                x = seen if known else range(len(models))
                _line(axes, x, of, color=colour, marker=marker, label=which)
            axes.set(ylabel=_NAMES[metric], ylim=(0, None))
        if known and min(seen) > 0 and max(seen) > _LOG_FROM * min(seen):
            lower.set(xscale="log")
        lower.set(xlabel="samples seen in training" if known else "model, in the order given")
        if not known:
            lower.set_xticks(range(len(models)), [model.name for model in models], rotation=20, ha="right")
        upper.legend()
        page.figure(
            figure,
            "Closeness (above) and diversity (below) by the amount of training, with 95 % intervals over items.",
            alt="; ".join(
                f"{m.name}: {table[m.name, TRAINING, middle, 'error_pixels'].value:.1f} training, "
                f"{table[m.name, HELD_OUT, middle, 'error_pixels'].value:.1f} held out"
                for m in models
            ),
        )


def _retrieval(page: Page, table: Table, model: str, given: Sequence[int], units: int) -> None:
    page.section(
        "Are samples training items?",
        "Each sample is compared with every item of the training store over what was not given, by one mean colour a "
        "token. If the nearest training item is closer than the truth, the model fetched the wrong memory; if the "
        "truth itself is as close to some other training item, there is little to tell them apart by.",
    )
    rows = []
    for u in given:
        for which in (TRAINING, HELD_OUT):
            found = [
                table[model, which, u, m] for m in ("nearest_training", "truth_at_cells", "truth_nearest_training")
            ]
            own = table.get((model, which, u, "retrieved"))
            share = (
                "not possible" if own is None else f"{100 * own.value:.0f} [{100 * own.low:.0f}, {100 * own.high:.0f}]"
            )
            rows.append([f"{u}/{units}", which, *(_estimate(n) for n in found), share])
    page.table(
        ["given", "items", "sample to nearest", "sample to truth", "truth to nearest other", "nearest is own, %"],
        rows,
        "Grey levels, means over items with 95 % intervals. Own: the same moment of the same recording.",
    )


def _sheets(page: Page, sheets: Sequence[Sheet], tokenizer: Tokenizer) -> None:
    page.section("Samples, truth and nearest training items")
    shown = [sheet for sheet in sheets if sheet.item == 0]
    chosen = _near(shown)
    if not page.frames:
        page.tiles([("", [np.zeros((8, 8, 3), np.uint8)])], "Samples beside truth and nearest training items.")
    for sheet in chosen:
        share = 100 * sheet.given / tokenizer.grid[0]
        page.tiles(sheet_rows(sheet, tokenizer), f"{sheet.set.capitalize()} item, {share:.0f} % given.")
    if page.frames:
        page.bullets(["Grey is what was not given. More items are in sheets/, as PNG."])


def _near(sheets: Sequence[Sheet]) -> list[Sheet]:
    """Of each set those with about a quarter, half and three quarters given."""
    found: list[Sheet] = []
    for name in (TRAINING, HELD_OUT):
        of = [sheet for sheet in sheets if sheet.set == name]
        most = max((sheet.given for sheet in of), default=0) + 1
        for wanted in _GIVEN if of else ():
            nearest = min(of, key=lambda sheet: abs(sheet.given / most - wanted))
            if not any(nearest is sheet for sheet in found):
                found.append(nearest)
    return found


def write_sheets(folder: Path, sheets: Sequence[Sheet], tokenizer: Tokenizer) -> None:
    """Write every sheet as PNG: rows as in the page, without labels."""
    for sheet in sheets:
        rows = [np.concatenate([_framed(tile) for tile in row], axis=1) for _, row in sheet_rows(sheet, tokenizer)]
        name = f"{sheet.set.replace(' ', '_')}-{sheet.item}-given-{sheet.given}-of-{tokenizer.grid[0]}.png"
        save_png(folder / name, np.concatenate(rows))


def _framed(tile: np.ndarray) -> np.ndarray:
    return np.pad(tile, ((2, 2), (2, 2), (0, 0)), constant_values=255)


def sheet_rows(sheet: Sheet, tokenizer: Tokenizer) -> list[tuple[str, list[np.ndarray]]]:
    """Labelled rows of (H, W, 3) tiles, all equally long.

    Pictures: truth and samples, below them what was given and each sample's nearest training item. Clips: a row of
    frames each.
    """
    given = sheet.truth.clone()
    size = given.shape[1]  # rows of a picture, frames of a clip
    given[:, size * sheet.given // tokenizer.grid[0] :] = _HIDDEN
    if sheet.truth.ndim == 3:
        columns = min(_COLUMNS - 1, len(sheet.samples))
        return [
            ("truth, then samples", [_tile(sheet.truth), *map(_tile, sheet.samples[:columns])]),
            ("given, then the training item nearest to each", [_tile(given), *map(_tile, sheet.nearest[:columns])]),
        ]
    rows = [("truth", sheet.truth), ("given", given)]
    for k in range(min(_CLIP_SAMPLES, len(sheet.samples))):
        rows += [(f"sample {k + 1}", sheet.samples[k]), ("its nearest training clip", sheet.nearest[k])]
    every = max(tokenizer.tubelet_size, -(-size // _COLUMNS))
    return [(label, [_tile(clip[:, t]) for t in range(0, size, every)]) for label, clip in rows]


def _tile(pixels: Tensor) -> np.ndarray:
    return pixels.permute(1, 2, 0).numpy()


def _caveats(model: Model, about: dict[str, Any]) -> list[str]:
    how = about["settings"]
    lines = [
        "Truth is the true tokens as the tokenizer decodes them: what it loses is not held against the model.",
        "Differences of pixels punish a thing that is shifted by its width as much as one that is missing.",
        "Intervals speak of items like these: not of other runs of training. Neighbouring moments of one recording are "
        "more alike than the bootstrap assumes.",
    ]
    if (how.temperature, how.top_k, how.top_p) != (1.0, None, None):
        lines.append(
            f"Samples were drawn at temperature {how.temperature:g}, top-k {how.top_k}, top-p {how.top_p}: they are "
            "less diverse than the model's own distribution. The entropy is that of the model along these samples."
        )
    if model.gpt.arguments["start_token"] == "none":
        lines.append("The model has no start token: the first token of an item is never predicted.")
    if "manifest_hash" in model.card:
        lines.append(
            "That the training store is what the model was trained on is taken from the command; its card names the "
            f"data by manifest {model.card['manifest_hash'][:12]}."
        )
    return lines
