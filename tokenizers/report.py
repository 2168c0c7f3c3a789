"""The tokenizer report: what reconstruction costs and keeps, for several tokenizers on several data sets.

    tokenizers x data ──fidelity.measure──▶ measured/*.npz ──here──▶ report.csv, pictures/, report.html

Everything is measured on pixels of a fixed range that went through no lossy file, on items that follow from the seed.
Whether they were held out is checked where it can be: a run's `data.json` names the recordings that it was trained on.
The page around the numbers is made by `headcam.tokenizers.report_page`.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headcam.devices import usable_device
from headcam.errors import InputError
from headcam.files import atomic_file
from headcam.randomness import stream
from headcam.ssl.looking.tiles import save_png
from headcam.statistics import bootstrap_mean
from headcam.tokenizers.autoencoders.tokenizer import Tokenizer, clip_step, load_tokenizer
from headcam.tokenizers.fidelity.distances import FID_PICTURES, frechet_distance, kernel_distance
from headcam.tokenizers.fidelity.features import EncoderFeatures, InceptionFeatures
from headcam.tokenizers.fidelity.measure import Evaluators, Measured, measure, reconstruct
from headcam.tokenizers.losses.lpips import load_perceptual
from headcam.video.items import Items, open_items
from headcam.video.sampling.manifest import Manifest

CONTRACT = "tokenizer report/1"
_SHOWN = 6  # pictures, or frames of a clip, side by side
_KID_PICTURES = 10  # below, its interval says nothing


@dataclass(frozen=True)
class Number:
    """A row of report.csv.

    Attributes:
        model, weights_hash: of the tokenizer.
        data: name of the data set; empty for what follows from the tokenizer alone.
        metric: such as `psnr`.
        value, low, high: the number and its 95 % interval; both ends equal it where it is exact.
        n: items that it is a mean over; for the use of codes, tokens.
        evaluator: what measured it, where that is a network.
    """

    model: str
    weights_hash: str
    data: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    evaluator: str = ""


@dataclass(frozen=True)
class Candidate:
    """A tokenizer of the report; `trained_on` are ids of recordings, None where nothing says which."""

    name: str
    tokenizer: Tokenizer
    card: dict[str, Any]
    trained_on: frozenset[str] | None

    @property
    def is_video(self) -> bool:
        return self.tokenizer.num_frames > 1

    @property
    def bits_per_pixel(self) -> float:
        """Bits of the tokens, each counted as log2 K, for a pixel of one frame."""
        t = self.tokenizer
        return t.num_tokens * float(np.log2(t.vocab_size)) / (t.num_frames * t.img_size[0] * t.img_size[1])

    def tokens_per_second(self, step_s: float) -> float:
        """Tokens of a second of video with a frame every `step_s` seconds; a picture's tokenizer takes each frame."""
        return self.tokenizer.num_tokens / (self.tokenizer.num_frames * step_s)


@dataclass(frozen=True)
class Cell:
    """A tokenizer on a data set.

    Attributes:
        items: how many were tried, those that could not be decoded included.
        seen: how many of them are of recordings that the tokenizer was trained on; None: not known.
        pictures: originals and reconstructions to show, uint8 (b, H, W, 3) each, of a clip its frames; None without.
    """

    candidate: Candidate
    data: str
    measured: Measured
    items: int
    seen: int | None
    pictures: tuple[np.ndarray, np.ndarray] | None


@dataclass(frozen=True)
class ReportResult:
    """What `report` made.

    Attributes:
        page: the HTML file to open.
        numbers: rows of report.csv.
        left_out: one sentence for everything that was asked for and could not be measured.
        skipped: items that could not be decoded.
    """

    page: Path
    numbers: list[Number]
    left_out: list[str]
    skipped: int


def report(
    tokenizers: Sequence[str | Path],
    data: Sequence[str | Path],
    out: str | Path,
    *,
    num: int = 256,
    lpips: str | None = None,
    inception: str | Path | None = None,
    encoder: str | Path | None = None,
    step_s: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    frames: bool = True,
    quiet: bool = False,
) -> ReportResult:
    """Measure tokenizers and write `OUT/report.html`, `report.csv` and `pictures/`.

    Args:
        tokenizers: run folders, weights with their cards, or folders with a copy of a tokenizer.
        data: frame stores, clip stores, files of `headcam index`, folders of pictures; held out ones.
        out: folder. A report that was killed goes on where it was.
        num: most items of each data set. FID needs 10,000.
        lpips: weights, see `load_perceptual`; None: without.
        inception: weights of pytorch-fid's Inception-v3 for FID and KID.
        encoder: a run of ours whose features KID is computed on where there are no Inception weights.
        step_s: seconds between the frames of a clip; None for those that the tokenizers of clips were trained on.
        seed: of the choice of items and of the bootstrap.
        frames: whether pictures are shown and written.
    Raises:
        InputError: a tokenizer or data set that cannot be used, or no pair of both that fits.
    """
    from headcam.tokenizers.report_page import write_page

    if not tokenizers or not data:
        raise InputError("a report needs a tokenizer and data", "name at least one of each")
    out, device = Path(out), str(usable_device(device))
    candidates = _candidates(tokenizers, device)
    step_s = _common_step(candidates, step_s)
    evaluators = _evaluators(lpips, inception, encoder, device)
    cells, left_out = [], _without(lpips, inception, encoder)
    for path in data:
        refused = []
        for candidate in candidates:
            t = candidate.tokenizer
            try:
                held_out = open_items(path, t.img_size, t.num_frames, num=num, step_s=step_s, seed=seed)
            except InputError as error:
                refused.append((candidate.name, error))
                continue
            cells.append(_cell(candidate, held_out, evaluators, out, frames, quiet))
        if len(refused) == len(candidates):
            raise refused[0][1]  # a wrong path, or data that none of them takes
        left_out += [f"{name} on {path}: {error.problem}." for name, error in refused]
    left_out += _limits(cells, evaluators)
    numbers = [number for candidate in candidates for number in _exact(candidate, step_s)]
    numbers += [number for cell in cells for number in _numbers(cell, evaluators, seed)]
    write_numbers(out / "report.csv", numbers)
    page = out / "report.html"
    write_page(page, candidates, cells, numbers, left_out, evaluators, step_s=step_s, seed=seed, frames=frames)
    return ReportResult(page, numbers, left_out, sum(len(cell.measured.skipped) for cell in cells))


def write_numbers(path: Path, numbers: Iterable[Number]) -> None:
    """Write report.csv, whole or not at all; floats so that they read back exactly."""
    with atomic_file(path, "w") as file:
        writer = csv.DictWriter(file, ("contract", *(f.name for f in fields(Number))), lineterminator="\n")
        writer.writeheader()
        writer.writerows({"contract": CONTRACT, **asdict(number)} for number in numbers)


def _candidates(paths: Sequence[str | Path], device: str) -> list[Candidate]:
    found: list[Candidate] = []
    for path in paths:
        tokenizer, card = load_tokenizer(path)
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        name = str(card.get("name") or folder.resolve().name)
        same = sum(other.name.partition(" #")[0] == name for other in found)
        name = f"{name} #{same + 1}" if same else name
        account = folder / "data.json"
        trained_on = frozenset(Manifest.read(account).seconds) if account.is_file() else None
        found.append(Candidate(name, tokenizer.to(device), card, trained_on))
    return found


def _evaluators(lpips: str | None, inception: Any, encoder: Any, device: str) -> Evaluators:
    network = None if lpips is None else load_perceptual(lpips).to(device).eval()
    if inception is not None:
        features = InceptionFeatures(inception, device)
    else:
        features = None if encoder is None else EncoderFeatures(encoder, device)
    return Evaluators(network, "" if network is None else network.source, features, device)


def _without(lpips: str | None, inception: Any, encoder: Any) -> list[str]:
    """What the user gave no network for."""
    found = []
    if lpips is None:
        found.append("LPIPS: no weights were given.")
    if inception is None:
        found.append(
            "FID, and KID on Inception features: no Inception weights were given."
            + ("" if encoder else " KID on features of one of your own encoders: none was given.")
        )
    return found


def _limits(cells: Sequence[Cell], evaluators: Evaluators) -> list[str]:
    """What the data does not allow."""
    found = []
    for cell in cells:
        what = f"of {cell.candidate.name} on {cell.data}"
        if "ssim" not in cell.measured.items:
            found.append(f"SSIM {what}: its pictures are smaller than the window.")
        if evaluators.lpips is not None and "lpips" not in cell.measured.items:
            found.append(f"LPIPS {what}: its pictures are too small for the network.")
        if evaluators.features is not None and cell.measured.n < _KID_PICTURES:
            found.append(f"KID {what}: {cell.measured.n} items are too few.")
        if evaluators.features is not None and evaluators.features.comparable and cell.measured.n < FID_PICTURES:
            found.append(f"FID {what}: {cell.measured.n:,} items, where it needs {FID_PICTURES:,}.")
    return found


def _cell(candidate: Candidate, held_out: Items, evaluators: Evaluators, out: Path, frames: bool, quiet: bool) -> Cell:
    hash_ = candidate.card["weights_hash"]
    measured = measure(candidate.tokenizer, hash_, held_out, evaluators, out / "measured", quiet=quiet)
    trained_on = candidate.trained_on
    seen = None if trained_on is None else sum(recording in trained_on for recording in held_out.recordings)
    pictures = None
    if frames:
        pictures = _pictures(candidate.tokenizer, held_out, evaluators.device)
        sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in (*pictures, difference(*pictures))])
        save_png(out / "pictures" / f"{candidate.name}-{held_out.name}.png", sheet)
    return Cell(candidate, held_out.name, measured, len(held_out), seen, pictures)


def _pictures(tokenizer: Tokenizer, held_out: Items, device: str) -> tuple[np.ndarray, np.ndarray]:
    """Originals and reconstructions of items spread over the data set, (b, H, W, 3); of one clip, its frames."""
    n, clips = len(held_out), tokenizer.num_frames > 1
    chosen = held_out.chosen[_spread(n, 1 if clips else _SHOWN)]
    pixels = list(replace(held_out, chosen=chosen, skipped=[]))
    if not pixels:  # none of these can be decoded, some other can
        pixels = [next(iter(replace(held_out, skipped=[])))]
    originals = torch.stack(pixels)
    both = originals, reconstruct(tokenizer, originals, device)[1]
    if clips:
        both = tuple(part[0, :, _spread(tokenizer.num_frames, _SHOWN)].transpose(0, 1) for part in both)
    return tuple(part.permute(0, 2, 3, 1).numpy() for part in both)


def _spread(n: int, most: int) -> np.ndarray:
    """At most `most` of n positions, evenly from the first to the last."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def difference(originals: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """Reconstruction minus original, four times as strong, around grey: uint8, as both."""
    return np.clip(128 + 4 * (reconstructions.astype(np.int32) - originals), 0, 255).astype(np.uint8)


def _common_step(candidates: Sequence[Candidate], given: float | None) -> float:
    steps = {clip_step(c.card, given) for c in candidates if c.tokenizer.num_frames > 1} or {clip_step({}, given)}
    if len(steps) > 1:
        found = ", ".join(f"{step:.4g}" for step in sorted(steps))
        raise InputError(f"the tokenizers were trained on clips of different steps: {found} s", "say which by --step_s")
    return steps.pop()


def _exact(candidate: Candidate, step_s: float) -> list[Number]:
    t, hash_ = candidate.tokenizer, candidate.card["weights_hash"]
    values = {
        "tokens": float(t.num_tokens),
        "tokens_per_second": candidate.tokens_per_second(step_s),
        "bits_per_pixel": candidate.bits_per_pixel,
    }
    return [Number(candidate.name, hash_, "", metric, v, v, v, 1) for metric, v in values.items()]


def _numbers(cell: Cell, evaluators: Evaluators, seed: int) -> list[Number]:
    measured, labels = cell.measured, evaluators.labels
    key = cell.candidate.name, cell.candidate.card["weights_hash"], cell.data
    found = []
    for metric, values in measured.items.items():
        interval = bootstrap_mean(values, rng=stream(seed, f"report {metric}", 0))
        evaluator = labels.get(metric, "")
        found.append(Number(*key, metric, interval.estimate, interval.low, interval.high, interval.n, evaluator))
    originals, reconstructions = measured.features
    if len(originals) >= _KID_PICTURES:
        kid = kernel_distance(originals, reconstructions)
        found.append(Number(*key, "kid", kid.estimate, kid.low, kid.high, kid.n, labels["features"]))
    if len(originals) >= FID_PICTURES and evaluators.features.comparable:
        fid = frechet_distance(originals, reconstructions)
        found.append(Number(*key, "fid", fid, fid, fid, len(originals), labels["features"]))
    codes = measured.codes
    found += [Number(*key, metric, value, value, value, codes.tokens) for metric, value in codes.figures().items()]
    return found
