"""The demo's page, made from the files that the demo left and from nothing else: `headcam.demo` runs, this file shows.

What the files say is read by `headcam.demo_results`; here it is put on a `headcam.pages.Page`, in the order of a
reader's questions: what did it see, what did it have to do, did it learn, what can it do now, what was left out, what
does that mean.
"""

import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from headcam.demo_memory import draw_section
from headcam.demo_results import METRIC, SCAN_REPORT, Demo, caveats, load_demo
from headcam.evaluation.subjects import CHANCE, PIXELS
from headcam.pages import BLUE, MUTED, ORANGE, Estimate, Page, chart
from headcam.randomness import permuted
from headcam.video.stores.frame_store import FrameStore

_INPUT_FRAMES, _COMPLETIONS = 12, 6  # pictures shown
_SHOWN_SKIPS = 40  # rows of the table of skipped files


def write_report(folder: str | os.PathLike, path: str | os.PathLike, frames: bool = True) -> None:
    """Write the page of the finished demo in `folder` to `path`; without pictures where `frames` is False."""
    demo = load_demo(folder)
    where = "a synthetic world" if demo.synthetic_video else "your own recordings"
    page = Page(f"headcam demo: an encoder that grew up in {where}", demo.headline, frames=frames)
    page.facts(
        [
            (
                demo.video.replace("minutes", "min").removesuffix(" of video"),
                f"unique, in {demo.num_recordings['train']} recordings",
            ),
            (f"{demo.card['samples_seen']:,}", f"images seen, {demo.passes:.0f} passes"),
            (f"{demo.training_minutes:.1f} min", f"of training at {demo.images_per_second:.0f} images/s"),
            (f"{100 * demo.data_wait:.0f} %", "of that time spent waiting for data"),
        ]
    )
    _inputs(page, demo)
    _completions(page, demo)
    _learning(page, demo)
    _probe(page, demo)
    draw_section(page, demo.folder / "memory")
    _skips(page, demo)
    page.section("What these numbers do and do not show")
    page.bullets(caveats(demo))
    page.provenance(_provenance(demo))
    page.write(path)


def _inputs(page: Page, demo: Demo) -> None:
    store = FrameStore(demo.folder / "frames" / "train")
    rate = store.metadata["settings"]["frames_per_second"]
    kind = "rendered: walks through furnished rooms, seen from a bobbing head" if demo.synthetic_video else "yours"
    num_train, num_held_out = demo.num_recordings["train"], demo.num_recordings["held_out"]
    page.section(
        "What it saw",
        f"{len(store):,} frames of {num_train} recordings, at most {rate:g} a second. The recordings are {kind}. "
        f"{num_held_out or 'No'} other recording{'s were' if num_held_out != 1 else ' was'} held out. "
        "Every frame of the files was decoded beforehand, and only what was found good was used; "
        f"{SCAN_REPORT} beside this page says more.",
    )
    _time(page, demo)
    chosen = permuted(np.arange(min(_INPUT_FRAMES, len(store))), len(store), 0, "frames of the report")
    pictures = [simplejpeg.decode_jpeg(store.jpeg(int(k))) for k in sorted(chosen)]
    store.close()
    half = -(-len(pictures) // 2)
    rows = [("", pictures[:half])] + ([("", pictures[half:])] if len(pictures) > half else [])
    page.tiles(rows, "Frames of the training recordings, drawn at random.")
    sources = demo.card["by_source"]
    if len(sources) > 1:
        rows = [
            [name, f"{60 * of['hours']:.1f} of {60 * of['hours_available']:.1f}", of["samples"], f"{of['passes']:.1f}"]
            for name, of in sources.items()
        ]
        caption = "What each source gave: unique minutes of video, images drawn, passes over its frames."
        page.table(["source", "minutes lived", "images seen", "passes"], rows, caption)


def _time(page: Page, demo: Demo) -> None:
    """Where the time of the files went; still pictures have none."""
    total = sum(demo.seconds.values())
    if not total:
        return
    unit, name = next(u for u in ((3600, "hours"), (60, "minutes"), (1, "seconds")) if total >= 2 * u[0] or u[0] == 1)
    places = {
        "train": "trained on",
        "held_out": "held out",
        "quarantine": "in quarantine, not used",
        "store": "verified, but could not be stored",
    }
    used = [place for place in places if place != "store" or demo.seconds["store"]]
    rows = [[places[p], demo.num_recordings[p], Estimate(demo.seconds[p] / unit, digits=2)] for p in used]
    rows.append(["claimed by the files", demo.num_recordings["claimed"], Estimate(total / unit, digits=2)])
    page.table(
        ["time", "recordings", name], rows, "Where the time of the files went. A recording can stand in two rows."
    )


def _completions(page: Page, demo: Demo) -> None:
    files = sorted((demo.folder / "mae" / "pictures").glob("step-*.png"))
    hidden = demo.config["model"]["init_args"]["mask_ratio"]
    text = (
        f"The encoder gets a random {100 - 100 * hidden:.0f} % of each picture's patches; a small decoder completes "
        f"the other {100 * hidden:.0f} % from what the encoder makes of them. Doing that well takes knowing what "
        "things look like."
    )
    if not files:
        page.section("What it had to fill in", text, "No recording was held out, so no completions were kept.")
        return
    page.section("What it had to fill in", text)
    first, last = (_strips(file, demo.card["img_size"]) for file in (files[0], files[-1]))
    steps = [int(file.stem.removeprefix("step-")) for file in (files[0], files[-1])]
    rows = [("frame", last[0]), ("what the encoder is given", last[1])]
    if len(files) > 1:
        rows.append((f"completed after {steps[0]:,} steps", first[2]))
    rows.append((f"completed at the end, after {steps[1]:,} steps", last[2]))
    page.tiles(
        rows,
        "Frames of held-out recordings. The model predicts each patch relative to that patch's own mean and contrast, "
        "which it does not know; both are put back from the true picture here. So completions show the structure that "
        "it expects, not that it knows colours or brightness.",
    )


def _strips(file: Path, img_size: list[int]) -> list[list[np.ndarray]]:
    """The tiles of a run's picture (`headcam.ssl.looking.tiles.comparison`): three rows of (H, W, 3), no gaps."""
    picture = np.asarray(Image.open(file).convert("RGB"))
    height, width = img_size
    cell = picture.shape[0] // 3
    gap = (cell - height) // 2
    count = min(_COMPLETIONS, picture.shape[1] // (width + 2 * gap))
    lefts = [k * (width + 2 * gap) + gap for k in range(count)]
    return [[picture[r * cell + gap :][:height, left : left + width] for left in lefts] for r in range(3)]


def _learning(page: Page, demo: Demo) -> None:
    samples = [(float(r["samples"]) / 1000, float(r["train/loss"])) for r in demo.metrics if "train/loss" in r]
    per_step = demo.card["samples_seen"] / demo.card["step"] / 1000
    held_out = [(int(r["step"]) * per_step, float(r["val/loss"])) for r in demo.metrics if "val/loss" in r]
    page.section(
        "How it learned",
        f"The loss is the mean squared error of the hidden patches, each normalised to mean 0 and variance 1: "
        f"predicting plain grey costs 1. The loss of the last training batch is {samples[-1][1]:.3f}"
        + (f", that on held-out recordings {held_out[-1][1]:.3f}." if held_out else "."),
    )
    with chart() as figure:
        axes = figure.subplots()
        axes.plot(*zip(*samples), color=BLUE, label="training (random crops)")
        if held_out:
            axes.plot(*zip(*held_out), color=ORANGE, marker="o", markersize=4, label="held out (centre crops)")
        axes.set(xlabel="images seen (thousands)", ylabel="loss on hidden patches", xlim=(0, None))
        axes.legend()
        page.figure(
            figure,
            "Loss over the training. Held-out frames are cut at their centre and not enlarged, which makes "
            "them another task: compare the shapes of the lines, not their heights.",
            alt=f"loss from {samples[0][1]:.2f} to {samples[-1][1]:.2f} over {samples[-1][0]:.1f} thousand images",
        )


def _probe(page: Page, demo: Demo) -> None:
    data, ours = demo.probe["data"], demo.card["name"]
    metrics = [s.metric for s in demo.scores if s.model == ours and s.metric.endswith("/top1")]
    metrics.sort(key=lambda metric: metric != METRIC)
    names = {
        ours: "encoder, pretrained",
        demo.untrained: "encoder, random weights",
        PIXELS: "raw pixels",
        CHANCE: "chance",
    }
    kind = "synthetic close-ups of single things, not real photographs" if demo.synthetic_labels else "yours"
    page.section(
        "What it can do now",
        f"The encoder is frozen and asked to tell {len(data['classes'])} classes apart: {data['train']:,} labelled "
        f"pictures to learn from, {data['test']:,} others as test. The pictures are {kind}. Beside it stand the same "
        "network before any training, and raw pixels (16 x 16, no network at all).",
    )
    rows = []
    for model, name in names.items():
        found = [demo.score(model, metric) for metric in metrics]
        exact = model == CHANCE
        rows.append([name, *(Estimate(s.value) if exact else Estimate(s.value, s.low, s.high) for s in found)])
    page.table(
        ["% of test pictures right", *(_metric_name(m) for m in metrics)],
        rows,
        f"Top-1 accuracy in percent with 95 % bootstrap intervals over {demo.score(ours, METRIC).n:,} test pictures.",
        highlight=0,
    )
    page.figure(*_interval_chart(demo, metrics, names))
    page.table(
        ["percentage points above", *(_metric_name(m) for m in metrics)],
        [[names[b], *(demo.difference(b, metric) for metric in metrics)] for b in (demo.untrained, PIXELS)],
        "Pretrained encoder minus baseline on the same test pictures (paired), with 95 % intervals. An interval that "
        "spans 0 says that the test cannot tell the two apart.",
    )


def _interval_chart(demo: Demo, metrics: list[str], names: dict[str, str]) -> tuple[Any, str, str]:
    chance = demo.score(CHANCE, METRIC).value
    models = [model for model in names if model != CHANCE]
    with chart(height=0.9 + 0.5 * len(models)) as figure:
        axes = figure.subplots()
        for k, (metric, colour, marker) in enumerate(zip(metrics, (BLUE, ORANGE), ("o", "s"))):
            scores = [demo.score(model, metric) for model in models]
            value = np.array([s.value for s in scores])
            ends = [value - [s.low for s in scores], [s.high for s in scores] - value]
            y = np.arange(len(models)) + 0.22 * (k - (len(metrics) - 1) / 2)
            axes.errorbar(value, y, xerr=ends, fmt=marker, color=colour, markersize=6, label=_metric_name(metric))
        axes.axvline(chance, color=MUTED, linestyle="--", linewidth=1.2, label="chance")
        axes.set(xlabel="% of test pictures right", xlim=(0, None), ylim=(len(models) - 0.5, -0.5))
        axes.set_yticks(range(len(models)), [names[model] for model in models])
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside lower center", ncols=len(metrics) + 1)
    return figure, "The same numbers as a picture: points and their 95 % intervals.", demo.headline


def _metric_name(metric: str) -> str:
    return {"linear": "linear probe", "knn": "nearest neighbours"}[metric.split("/")[0]]


def _skips(page: Page, demo: Demo) -> None:
    if not demo.skipped:
        return
    page.section("What was left out", f"{'; '.join(demo.skipped_kinds).capitalize()}. Nothing else was.")
    shown = demo.skipped[:_SHOWN_SKIPS]
    more = len(demo.skipped) - len(shown)
    page.table(
        ["file", "step", "reason"],
        [[Path(file).name if where != "probe" else file, where, reason] for file, where, reason in shown],
        "Everything that could not be used, with its reason."
        + (
            f" {more} more are listed in recordings.parquet, recordings.quarantine.parquet, frames/*/skipped.csv and "
            "probe/probe.json."
            if more
            else ""
        ),
    )


def _provenance(demo: Demo) -> dict[str, str]:
    environment, settings = demo.environment, demo.settings
    command = ["headcam", "demo", f"--minutes={settings['minutes']:g}", f"--out={demo.folder}"]
    command += [f"--{key}={settings[key]}" for key in ("videos", "labelled") if settings[key]]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items() if version)
    return {
        "command": shlex.join(command),
        "commit": environment["git_commit"] or "none (installed package)",
        "versions": f"headcam {environment['headcam']}, Python {environment['python']}, {packages}",
        "machine": f"{environment['cpu']}, {environment['cores']} cores, {environment['platform']}",
        "begun": environment["started"],
        "recordings": f"manifest {demo.card['manifest_hash']}",
        "scan": f"{demo.folder / SCAN_REPORT}",
        "training": f"config {demo.card['config_hash']}",
        "weights": demo.card["weights_hash"],
        "test pictures": demo.probe["data"]["hash"],
        "scores": f"{demo.folder / 'probe' / 'scores.csv'}",
    }
