"""What a finished demo found: its files in one object, and the words that its numbers allow.

`load_demo` reads OUT (settings, recordings, run folder, probe) into one `Demo`. Words follow the numbers: whether the
encoder beats its baselines is said as the interval of the paired difference says it, and a gain that is not there is
called that. The page around them is made by `headcam.demo_report`.
"""

import csv
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from headcam.evaluation.scoring.scores import Score, read_scores
from headcam.evaluation.subjects import CHANCE, PIXELS
from headcam.pages import Estimate
from headcam.runs import MetricsFile
from headcam.video.quarantine import quarantine_of
from headcam.video.recordings import DUPLICATE, UNREADABLE, read_recordings, usable
from headcam.video.stores.frame_store import FrameStore
from headcam.video.stores.shards import SKIPPED

SCAN_REPORT = "recordings.scan.html"  # in OUT, where `headcam scan OUT/recordings.parquet` would write it too
METRIC = "linear/top1"  # the number of the headline, fixed before any was seen


@dataclass(frozen=True)
class Demo:
    """A finished demo, as its files tell it.

    Attributes:
        folder: OUT.
        settings: demo.json.
        config: config.yaml of the run.
        card, data, environment: of the run folder, see `headcam.ssl.training.run_folder`.
        metrics: rows of metrics.csv.
        scores, probe: scores.csv and probe.json.
        seconds: where the time of the files went; `train`, `held_out` (as stored), `quarantine` and `store` (verified,
            but skipped by the store) add up to what the files claim to hold.
        num_recordings: the same in recordings, where one may stand in several places, and `claimed`: all of them.
        skipped: (file, where, reason) of everything that could not be used.
    """

    folder: Path
    settings: dict[str, Any]
    config: dict[str, Any]
    card: dict[str, Any]
    data: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, str]]
    scores: list[Score]
    probe: dict[str, Any]
    seconds: dict[str, float]
    num_recordings: dict[str, int]
    skipped: list[tuple[str, str, str]]

    @property
    def synthetic_video(self) -> bool:
        return self.settings["videos"] is None

    @property
    def synthetic_labels(self) -> bool:
        return self.settings["labelled"] is None

    @property
    def passes(self) -> float:
        """How often the video was lived through: samples drawn for each stored frame."""
        return self.card["samples_seen"] / sum(self.data["frames"].values())

    @property
    def video(self) -> str:
        """The amount of video in words."""
        hours = self.card["hours"]
        if hours == 0:
            return f"{sum(self.data['frames'].values()):,} still pictures"
        return f"{60 * hours:.1f} minutes of video" if hours < 1 else f"{hours:.1f} hours of video"

    @property
    def untrained(self) -> str:
        return f"{self.card['name']} (random weights)"

    @property
    def training_minutes(self) -> float:
        """Time in training steps, validation not counted."""
        samples = np.diff([0.0] + [float(row["samples"]) for row in self._speeds])
        return float(sum(n / float(row["images_per_second"]) for n, row in zip(samples, self._speeds)) / 60)

    @property
    def images_per_second(self) -> float:
        return float(np.median([float(row["images_per_second"]) for row in self._speeds]))

    @property
    def data_wait(self) -> float:
        """Share of the training time spent waiting for data."""
        return float(np.mean([float(row["data_wait"]) for row in self._speeds]))

    @property
    def _speeds(self) -> list[dict[str, str]]:
        return [row for row in self.metrics if "images_per_second" in row]

    def score(self, model: str, metric: str) -> Score:
        return next(s for s in self.scores if s.model == model and s.metric == metric)

    def difference(self, minus: str, metric: str = METRIC) -> Estimate:
        """Percentage points of the pretrained encoder above a baseline, on the same pictures."""
        found = next(d for d in self.probe["differences"] if d["minus"] == minus and d["metric"] == metric)
        return Estimate(found["estimate"], found["low"], found["high"], signed=True)

    @property
    def headline(self) -> str:
        """The result in plain words."""
        ours, guess = self.score(self.card["name"], METRIC), self.score(CHANCE, METRIC)
        return (
            f"After {self.video}, lived {self.passes:.0f} times over, a linear probe on the encoder names "
            f"{ours.value:.1f} % of {ours.n:,} test pictures right "
            f"({len(self.probe['data']['classes'])} classes; guessing gets {guess.value:.1f} %). "
            f"That is {_against(self.difference(self.untrained), 'the same network untrained')}, "
            f"and {_against(self.difference(PIXELS), 'raw pixels')}."
        )

    @property
    def skipped_kinds(self) -> list[str]:
        """What was skipped, one phrase a kind; empty where nothing was."""
        kinds = {
            "unreadable files": "index",
            "copies of other files": "index, copy",
            "stretches of video in quarantine": "scan",
            "stretches of video that cannot be decoded": "store",
            "labelled pictures with a fault": "probe",
        }
        counts = {phrase: sum(where == w for _, w, _ in self.skipped) for phrase, where in kinds.items()}
        return [f"{phrase}: {n}" for phrase, n in counts.items() if n]


def load_demo(folder: str | os.PathLike) -> Demo:
    """Read a finished demo."""
    folder = Path(folder)
    seconds, num_recordings, skipped = _footage(folder)
    probe = _json(folder / "probe" / "probe.json")
    skipped += [(s["picture"], "probe", s["reason"]) for s in probe["data"]["skipped"]]
    skipped += [
        (name, "probe", "used, but the same picture is also in the training set of the probe")
        for name in probe["data"]["test_pictures_also_in_train"]
    ]
    run = folder / "mae"
    return Demo(
        folder=folder,
        settings=_json(folder / "demo.json"),
        config=yaml.safe_load((run / "config.yaml").read_text("utf-8")),
        card=_json(run / "card.json"),
        data=_json(run / "data.json"),
        environment=_json(run / "environment.json"),
        metrics=MetricsFile(run / "metrics.csv").rows(),
        scores=read_scores(folder / "probe" / "scores.csv"),
        probe=probe,
        seconds=seconds,
        num_recordings=num_recordings,
        skipped=skipped,
    )


def caveats(demo: Demo) -> list[str]:
    """What a reader must know to judge the numbers, as the numbers require it; sentences."""
    untrained, pixels = demo.difference(demo.untrained), demo.difference(PIXELS)
    n = demo.score(demo.card["name"], METRIC).n
    knn = next(s.metric for s in demo.scores if s.metric.startswith("knn/") and s.metric.endswith("/top1"))
    parameters, samples = demo.card["parameters"], demo.card["samples_seen"]
    out = [
        {
            1: "The video did teach the encoder something: its gain over its own untrained state is larger than chance "
            "over test pictures explains.",
            0: "On this test the pretrained encoder cannot be told from its own untrained state. Whatever the training "
            "taught it does not show here.",
            -1: "The training made the features worse for this test than random ones are.",
        }[_sign(untrained)],
        {
            1: "It also beats raw pixels, which use no network at all. That is the least an encoder has to do.",
            0: "It cannot be told from raw pixels, which use no network at all: for this test the encoder is not worth "
            "its cost yet.",
            -1: "Raw pixels, which use no network at all, do better: for this test the encoder is not worth its cost "
            "yet.",
        }[_sign(pixels)]
        + f" By nearest neighbours it is {_against(demo.difference(PIXELS, knn), 'raw pixels')}.",
    ]
    if demo.synthetic_labels:
        out.append(
            "The test pictures are rendered"
            + (", and so is the video: " if demo.synthetic_video else ", while the video is real: ")
            + "nothing here says how well an encoder sees real things. Real labelled pictures say that: --labelled DIR."
        )
    out += [
        f"The encoder is tiny ({parameters / 1e6:.1f} million parameters, {demo.card['img_size'][0]} x "
        f"{demo.card['img_size'][1]} pixels) and saw {samples:,} images. The published masked autoencoders (He et al. "
        f"2022) have {86e6 / parameters:.0f} to {632e6 / parameters:.0f} times as many parameters and saw "
        f"{float(f'{1600 * 1.28e6 / samples:.1g}'):,.0f} times as many images. This page shows that the way from video "
        "to number works; it is no measure of what the method can do.",
        f"Intervals are about the choice of the {n:,} test pictures. They do not cover another seed of the training: "
        "one encoder was trained, and a second one would get somewhat other numbers.",
        "Nothing was chosen on test pictures. The learning rate of each linear probe was chosen on a fifth of the "
        "training pictures set aside; the recipe of the training was chosen on other synthetic homes and pictures.",
    ]
    held_out = [float(r["val/loss"]) for r in demo.metrics if "val/loss" in r]
    if not held_out:
        out.append(
            "With a single usable recording none was held out: whether the loss falls on new video was not measured."
        )
    elif held_out[-1] > 1.01 * min(held_out):
        out.append(
            f"The loss on held-out recordings ended above its lowest ({held_out[-1]:.3f}, lowest {min(held_out):.3f}): "
            "a sign that the model was learning its recordings by heart, and that more video would help."
        )
    return out


def _footage(folder: Path) -> tuple[dict[str, float], dict[str, int], list[tuple[str, str, str]]]:
    """`seconds`, `num_recordings` and `skipped` of a `Demo`, as far as the video goes."""
    recordings = read_recordings(folder / "recordings.parquet")
    unused = {UNREADABLE: "index", DUPLICATE: "index, copy"}
    rows = recordings.select(["path", "status", "reason"]).to_pylist()
    skipped = [(r["path"], unused[r["status"]], r["reason"]) for r in rows if r["status"] in unused]
    quarantine = quarantine_of(folder / "recordings.parquet", recordings).table.to_pylist()
    path = dict(zip(*(usable(recordings)[name].to_pylist() for name in ("recording", "path"))))
    quarantine.sort(key=lambda r: (path[r["recording"]], r["start_s"]))
    skipped += [(path[r["recording"]], "scan", _stretch(r, f"{r['reason']}, {r['detail']}")) for r in quarantine]
    seconds = {"quarantine": sum(r["end_s"] - r["start_s"] for r in quarantine), "store": 0.0}
    num_recordings = {"claimed": len(path), "quarantine": len({r["recording"] for r in quarantine}), "store": 0}
    for name in ("train", "held_out"):
        seconds[name], num_recordings[name] = 0.0, 0
        table = folder / "frames" / name / SKIPPED
        if table.exists():
            store = FrameStore(folder / "frames" / name)
            seconds[name], num_recordings[name] = 3600 * store.hours, len(store.recordings)
            with open(table, encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            skipped += [(r["path"], "store", _stretch(r, r["reason"])) for r in rows]
            seconds["store"] += sum(float(r["end_s"]) - float(r["start_s"]) for r in rows)
            num_recordings["store"] += len({r["recording"] for r in rows})
    return seconds, num_recordings, skipped


def _stretch(row: Mapping[str, Any], reason: str) -> str:
    """Which seconds are out, and why; a still picture is out as a whole."""
    start, end = float(row["start_s"]), float(row["end_s"])
    return f"{start:.1f} to {end:.1f} s: {reason}" if end > start else reason


def _against(difference: Estimate, baseline: str) -> str:
    points = f"{abs(difference.value):.1f} points"
    low_high = f"95 % interval {difference.parts()[1]}"
    return {
        1: f"{points} more than {baseline} ({low_high})",
        0: f"not to be told from {baseline} ({difference.parts()[0]} points, {low_high})",
        -1: f"{points} fewer than {baseline} ({low_high})",
    }[_sign(difference)]


def _sign(difference: Estimate) -> int:
    """1 where the whole interval is above 0, -1 where it is below, else 0."""
    return 1 if difference.low > 0 else -1 if difference.high < 0 else 0


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))
