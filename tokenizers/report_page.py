"""The page of the tokenizer report, made from its measurements: `headcam.tokenizers.report` measures, this file shows.

In the order of a reader's questions: what do the tokens cost, what do they keep, how does that look, are the codes
used, does it hold over time, what was left out, how was it measured.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from headcam import __version__
from headcam.pages import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, Estimate, Page, chart
from headcam.tokenizers.fidelity.distances import FID_PICTURES
from headcam.tokenizers.fidelity.measure import Evaluators
from headcam.tokenizers.quantizers.usage import collapse_line
from headcam.tokenizers.report import Candidate, Cell, Number, difference

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, INK, MUTED)
_MARKERS = "osD^vP"
_METRICS = {  # name -> (column, digits)
    "psnr": ("PSNR in dB", 2),
    "psnr_cells": ("PSNR of mean colours", 2),
    "ssim": ("SSIM", 3),
    "lpips": ("LPIPS", 3),
    "kid": ("KID x 1000", 2),
    "fid": ("FID", 2),
}
_SKIPPED = 20  # rows


def write_page(
    path: Path,
    candidates: Sequence[Candidate],
    cells: Sequence[Cell],
    numbers: Sequence[Number],
    left_out: Sequence[str],
    evaluators: Evaluators,
    *,
    step_s: float,
    seed: int,
    frames: bool,
) -> None:
    """Write the page; the arguments are what `headcam.tokenizers.report.report` made."""
    table = {(number.model, number.data, number.metric): number for number in numbers}
    page = Page("How much of a picture its tokens keep", headline(cells, table), frames=frames)
    _costs(page, candidates, step_s)
    for data in dict.fromkeys(cell.data for cell in cells):
        _data_set(page, data, [cell for cell in cells if cell.data == data], table)
    _trade(page, cells, table, step_s)
    _time(page, [cell for cell in cells if cell.candidate.is_video], table)
    _codes(page, cells)
    skipped = [(cell.data, *row) for cell in cells for row in cell.measured.skipped]
    if left_out or skipped:
        page.section("What was left out")
        page.bullets(list(left_out))
    if skipped:
        more = f" {len(skipped) - _SKIPPED} more are not shown." if len(skipped) > _SKIPPED else ""
        page.table(["data", "item", "reason"], skipped[:_SKIPPED], f"Items that could not be decoded.{more}")
    page.section("How it was measured")
    page.bullets(_method(cells, evaluators, step_s))
    page.provenance(
        {f"weights of {c.name}": c.card["weights_hash"] for c in candidates}
        | {"numbers": str(path.with_name("report.csv")), "seed": str(seed), "version": f"headcam {__version__}"}
    )
    page.write(path)


def headline(cells: Sequence[Cell], table: dict[tuple[str, str, str], Number]) -> str:
    """The result in a sentence or two: on each data set, the best PSNR and what it costs."""
    sentences = []
    for data in dict.fromkeys(cell.data for cell in cells):
        of = [cell.candidate for cell in cells if cell.data == data]
        best = max(of, key=lambda candidate: table[candidate.name, data, "psnr"].value)
        number = table[best.name, data, "psnr"]
        rank = "" if len(of) == 1 else f", the most of {len(of)}"
        sentences.append(
            f"On {data}, {best.name} gives pictures back at a PSNR of {number.value:.1f} dB "
            f"[{number.low:.1f}, {number.high:.1f}]{rank}, from {best.bits_per_pixel:.3f} bits a pixel."
        )
    return " ".join(sentences)


def _costs(page: Page, candidates: Sequence[Candidate], step_s: float) -> None:
    page.section(
        "What the tokens cost",
        "A raw pixel has 24 bits. A token counts as log2 of the number of codes. Tokens of a second of video are those "
        f"at {1 / step_s:.3g} frames a second; a tokenizer of pictures then takes every frame for itself.",
    )
    rows = []
    for c in candidates:
        t = c.tokenizer
        what = " x ".join(map(str, (*t.img_size, *([f"{t.num_frames} frames"] if c.is_video else []))))
        rows.append(
            [c.name, what, " x ".join(map(str, t.grid)), t.vocab_size]
            + [Estimate(c.tokens_per_second(step_s), digits=0), Estimate(c.bits_per_pixel, digits=3)]
        )
    page.table(["tokenizer", "pixels", "tokens", "codes", "tokens/s of video", "bits/pixel"], rows, "What is compared.")


def _data_set(page: Page, data: str, cells: Sequence[Cell], table: dict[tuple[str, str, str], Number]) -> None:
    page.section(f"What they keep: {data}", *_held_out_words(cells))
    metrics = [metric for metric in _METRICS if any((c.candidate.name, data, metric) in table for c in cells)]
    rows = []
    for cell in cells:
        row = [cell.candidate.name]
        for metric in metrics:
            number = table.get((cell.candidate.name, data, metric))
            row.append("not measured" if number is None else _estimate(number))
        rows.append(row)
    page.table(
        ["tokenizer", *(_METRICS[metric][0] for metric in metrics)],
        rows,
        f"Means over {_range([c.measured.n for c in cells])} items with 95 % intervals. More is better for PSNR and "
        "SSIM, less for LPIPS, KID and FID. PSNR of mean colours is the baseline: every token replaced by the mean "
        "colour of the pixels that it stands for.",
    )
    for cell in cells:
        if cell.pictures is None and page.frames:
            continue
        pictures = cell.pictures or (np.zeros((1, 8, 8, 3), np.uint8),) * 2
        rows = [
            (f"{cell.candidate.name}: original", list(pictures[0])),
            ("reconstruction", list(pictures[1])),
            ("difference, four times as strong", list(difference(*pictures))),
        ]
        what = "Frames of a clip" if cell.candidate.is_video else "Items spread over the data set"
        page.tiles(rows, f"{what}. Grey is no difference.")


def _held_out_words(cells: Sequence[Cell]) -> list[str]:
    """Whether the items were held out, as far as it is known."""
    unknown = [cell.candidate.name for cell in cells if cell.seen is None]
    clean = [cell.candidate.name for cell in cells if cell.seen == 0]
    lines = []
    if clean:
        lines.append(f"None of the items is of a recording that {_list(clean)} was trained on.")
    for cell in cells:
        if cell.seen:
            lines.append(
                f"{cell.seen:,} of {cell.items:,} items are of recordings that {cell.candidate.name} was also trained "
                "on: they are not held out (unless other seconds of them were, by data.hold_out)."
            )
    if unknown:
        lines.append(f"It is not known what {_list(unknown)} was trained on: nothing beside the weights says.")
    return lines


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" or " if len(names) > 1 else "") + names[-1]


def _estimate(number: Number) -> Estimate:
    scale = 1000 if number.metric == "kid" else 1
    digits = _METRICS[number.metric][1]
    if number.low == number.high:
        return Estimate(scale * number.value, digits=digits)
    return Estimate(scale * number.value, scale * number.low, scale * number.high, digits)


def _trade(page: Page, cells: Sequence[Cell], table: dict[tuple[str, str, str], Number], step_s: float) -> None:
    names = list(dict.fromkeys(cell.candidate.name for cell in cells))
    if len(names) < 2:
        return
    page.section("Quality against tokens")
    metrics = [m for m in ("psnr", "lpips") if any((c.candidate.name, c.data, m) in table for c in cells)]
    data_sets = list(dict.fromkeys(cell.data for cell in cells))
    filled = dict(zip(data_sets, ("full", "none", "left", "right", "top", "bottom") * len(data_sets)))
    with chart(height=1.2 + 2.1 * len(metrics) + 0.17 * len(names)) as figure:
        for axes, metric in zip(figure.subplots(len(metrics), sharex=True, squeeze=False)[:, 0], metrics):
            for cell in cells:
                number = table.get((cell.candidate.name, cell.data, metric))
                if number is None:
                    continue
                k = names.index(cell.candidate.name)
                axes.errorbar(
                    cell.candidate.tokens_per_second(step_s),
                    number.value,
                    yerr=[[number.value - number.low], [number.high - number.value]],
                    fmt=_MARKERS[k % len(_MARKERS)],
                    color=_COLOURS[k % len(_COLOURS)],
                    fillstyle=filled[cell.data],
                    markersize=7,
                    label=f"{cell.candidate.name}, {cell.data}" if metric == metrics[0] else None,
                )
            axes.set(ylabel=_METRICS[metric][0], xscale="log")
        axes.set(xlabel="tokens per second of video")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        figure.legend(loc="outside lower center", ncols=1 if len(cells) < 5 else 2, fontsize=8)
        page.figure(
            figure,
            "Reconstruction against tokens per second of video, with 95 % intervals. Up is better for PSNR, down for "
            "LPIPS. Tokenizers of other sizes of picture have other work to do.",
            alt="; ".join(
                f"{c.candidate.name} on {c.data}: {c.candidate.tokens_per_second(step_s):.0f} tokens/s, "
                f"{table[c.candidate.name, c.data, 'psnr'].value:.1f} dB"
                for c in cells
            ),
        )


def _time(page: Page, cells: Sequence[Cell], table: dict[tuple[str, str, str], Number]) -> None:
    if not cells:
        return
    page.section(
        "Over time",
        "Motion is the mean absolute difference of successive frames, in grey levels of 255. Reconstructions that "
        "flicker have more of it than their originals, blurred ones less. The error is that of the differences "
        "themselves.",
    )
    rows = []
    for cell in cells:
        of = [table[cell.candidate.name, cell.data, m] for m in ("motion_original", "motion", "motion_error")]
        rows.append([cell.candidate.name, cell.data, *(Estimate(n.value, n.low, n.high, 2) for n in of)])
    page.table(
        ["tokenizer", "data", "motion, original", "motion, reconstruction", "error"], rows, "Means over clips, 95 %."
    )
    with chart() as figure:
        axes = figure.subplots()
        for k, cell in enumerate(cells):
            values, tubelet = cell.measured.frame_psnr, cell.candidate.tokenizer.tubelet_size
            label = f"{cell.candidate.name}, {cell.data} ({tubelet} frames a slot)"
            axes.plot(
                np.arange(1, len(values) + 1),
                values,
                color=_COLOURS[k % len(_COLOURS)],
                marker=_MARKERS[k % len(_MARKERS)],
                markersize=4,
                label=label,
            )
        axes.set(xlabel="frame of the clip", ylabel="PSNR in dB")
        figure.legend(loc="outside lower center", fontsize=8)
        page.figure(
            figure,
            "PSNR of each frame. Frames early in a clip have less past to be made from, in a causal tokenizer.",
            alt="; ".join(
                f"{c.candidate.name} from {c.measured.frame_psnr[0]:.1f} to {c.measured.frame_psnr[-1]:.1f} dB"
                for c in cells
            ),
        )


def _codes(page: Page, cells: Sequence[Cell]) -> None:
    page.section(
        "Which codes are used",
        "Perplexity is the number of codes that, used evenly, would be as unpredictable. A code that these items "
        "never use may be used by others: few tokens cannot show many codes.",
    )
    rows, alarms = [], []
    for cell in cells:
        codes = cell.measured.codes
        found, size = codes.figures(), len(cell.measured.counts)
        rows.append(
            [cell.candidate.name, cell.data, codes.tokens, size]
            + [Estimate(100 * found["usage"]), Estimate(found["perplexity"], digits=0), int(found["dead"])]
        )
        alarm = collapse_line(found, size, codes.tokens)
        alarms += [f"{cell.candidate.name} on {cell.data}: {alarm}."] if alarm else []
    page.table(
        ["tokenizer", "data", "tokens", "codes", "used in %", "perplexity", "never used"],
        rows,
        "Counted over all tokens of the items.",
    )
    if alarms:
        page.bullets(alarms)


def _method(cells: Sequence[Cell], evaluators: Evaluators, step_s: float) -> list[str]:
    lines = [
        "Items are drawn by the seed, cut to the largest central crop and resampled once. Pixels are 8-bit, 0 to 255; "
        "no lossy file lies between original and number. Pictures on this page may be embedded as JPEG; those in "
        "pictures/ are PNG.",
        "PSNR: per frame, over pixels and channels; an exact copy counts as 100 dB. SSIM: Wang et al. 2004, 11 x 11 "
        "Gaussian window of 1.5 pixels inside the picture, mean over RGB. Of clips the mean over frames is one number.",
        "Intervals of means: 95 % percentile bootstrap over items (9,999 resamples). Frames of one recording are more "
        "alike than the bootstrap assumes, so that intervals for new recordings are longer.",
    ]
    if any(cell.candidate.is_video for cell in cells):
        lines.append(f"Frames of a clip are {step_s:.3g} s apart.")
    if evaluators.lpips is not None:
        lines.append(f"LPIPS: {evaluators.lpips_label}.")
    if evaluators.features is not None:
        lines.append(
            f"KID ({evaluators.features.label}): unbiased squared maximum mean discrepancy with the cubic kernel over "
            "all pairs of different items (an original and its own reconstruction are left out); interval from the "
            f"jackknife over items. FID on the same features from {FID_PICTURES:,} items on, of published weights "
            "only; it has no interval here. Of clips, one frame each. Neither may be compared across programs."
        )
    return lines


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
