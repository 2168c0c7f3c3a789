"""Folders as `headcam probe` writes them, of simulated models: who is right on which picture is known."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from headcam.evaluation import protocols
from headcam.evaluation.labelled.sets import LabelledSet, Picture
from headcam.evaluation.scoring.guesses import Guesses, guesses
from headcam.evaluation.scoring.items import write_items
from headcam.evaluation.scoring.scores import Score, write_scores
from headcam.evaluation.subjects import CHANCE, PIXELS
from headcam.files import write_json
from headcam.randomness import stream
from headcam.statistics import bootstrap_mean

CLASSES = tuple(f"class {k}" for k in range(8))


def labelled_set(per_class: int = 30, name: str = "pictures", first: int = 0, titles: bool = False) -> LabelledSet:
    """Test pictures that are names and hashes only."""
    test = tuple(
        Picture(Path(name), f"val/{CLASSES[label]}/{first + i}.png", label, f"{label:08x}{first + i:056x}")
        for label in range(len(CLASSES))
        for i in range(per_class)
    )
    train = tuple(
        Picture(Path(name), f"train/{CLASSES[label]}/{i}.png", label, f"{label:08x}{9999 + i:056x}")
        for label in range(len(CLASSES))
        for i in range(10)
    )
    more = {"titles": tuple(f"thing {k}" for k in range(len(CLASSES)))} if titles else {}
    return LabelledSet(name, CLASSES, train, test, "folders", (), **more)


def scores_of(data: LabelledSet, skill: float, seed: int) -> torch.Tensor:
    """(n, K) logits of a model: noise that is its own, a difficulty that all models share, and its skill."""
    labels = np.array([p.label for p in data.test])
    shared = stream(0, "difficulty", 0).normal(0, 1, (len(labels), len(data.classes)))
    own = stream(seed, "model", 0).normal(0, 0.5, shared.shape)
    logits = shared + own
    logits[np.arange(len(labels)), labels] += skill
    return torch.from_numpy(logits).float()


@pytest.fixture
def world() -> LabelledSet:
    return labelled_set()


@pytest.fixture
def write_probe() -> Callable[..., Path]:
    """Writes what a probe of one simulated checkpoint leaves."""

    def write(
        folder: Path,
        model: str,
        data: LabelledSet,
        skill: float = 1.0,
        *,
        seed: int = 1,
        weights: str | None = None,
        pool: str = "avg",
        stems: Sequence[str] = ("linear", "knn/k20_T0.07"),
        curve: Sequence[int] = (),
        layers: int = 0,
        draws: int = 0,
        hours: float | None = None,
        keep: slice = slice(None),
        extra: Sequence[Score] = (),
        details: dict | None = None,
        test_selection: Sequence[dict] = (),
    ) -> Path:
        folder.mkdir(parents=True)
        features = protocols.EncoderFeatures(pool=pool)
        used = protocols.LinearProbe(features)
        pixel = protocols.LinearProbe(protocols.PixelFeatures())
        test = data.test[keep]
        labels = np.array([p.label for p in test])
        skills = {stem: skill for stem in stems} | {f"label-curve/{n}": skill * n / max(curve) for n in curve}
        skills |= {f"linear-layers/layer{k + 1:02d}": skill * (k + 1) / layers for k in range(layers)}
        subjects = {
            model: (1.0, seed, weights or f"{seed:064x}", used),
            f"{model} (random weights)": (0.4, 1000, 64 * "0", used),
            PIXELS: (0.3, 1001, "", pixel),
        }
        found: dict[tuple[str, str], Guesses] = {}
        scores: list[Score] = []
        for name, (factor, own, digest, protocol) in subjects.items():  # baselines do not depend on the skill
            about = dict(data=data.identity, protocol=protocols.label(protocol))
            about |= dict(protocol_hash=protocols.protocol_hash(protocol), seed=0)
            for number, (stem, of) in enumerate(skills.items()):
                said = guesses(
                    scores_of(data, factor * of / skill if own >= 1000 else of, 100 * own + number)[keep], labels
                )
                found[name, stem] = said
                for k in (1, 5):
                    metric = f"{stem}/top{k}"
                    interval = bootstrap_mean(said.right(k), rng=stream(0, metric, 0), n_resamples=500).percent()
                    ends = (interval.estimate, interval.low, interval.high)
                    scores.append(_score(name, digest, about, metric, ends, len(labels)))
            if draws and name != PIXELS:
                hits = []
                for d in range(draws):
                    said = guesses(scores_of(data, factor if own >= 1000 else skill, 100 * own + 50 + d)[keep], labels)
                    found[name, f"fewshot/draw{d}"] = said
                    hits.append(said.right(1))
                mean = 100 * float(np.mean(hits))
                scores.append(_score(name, digest, about, "fewshot/top1", (mean, mean - 2, mean + 2), len(labels)))
        chance = dict(data=data.identity, protocol="chance-v1", protocol_hash="c" * 64, seed=0)
        for stem in skills:
            for k in (1, 5):
                value = 100 * k / len(data.classes)
                scores.append(_score(CHANCE, "", chance, f"{stem}/top{k}", (value, value, value), len(labels)))
        write_scores(folder / "scores.csv", [*scores, *extra])
        write_items(folder, data, test, found)
        outcome = {"model": model, "stem": "linear", "protocol": "linear-v2", "details": details or {}}
        facts = {
            "contract": "probe",
            "version": 2,
            "model": {"name": model, "weights_hash": weights or f"{seed:064x}", "hours": hours},
            "data": {
                "name": data.identity,
                "hash": data.hash,
                "media": "pictures",
                "classes": list(data.classes),
                "train": len(data.train),
                "test": len(test),
                "skipped": [],
                "test_pictures_also_in_train": [],
            },
            "protocols": {
                protocols.protocol_hash(p): json.loads(json.dumps({"label": protocols.label(p), **asdict(p)}))
                for p in (used, pixel)
            },
            "outcomes": [outcome],
            "left_out": [{"model": PIXELS, "protocol": "linear-aug-v2", "reason": "needs an encoder"}],
            "test_selection": list(test_selection),
            "environment": {"headcam": "0", "git_commit": None},
        }
        write_json(folder / "probe.json", facts)
        return folder

    return write


def _score(model: str, digest: str, about: dict, metric: str, ends: tuple[float, float, float], n: int) -> Score:
    value, low, high = ends
    return Score(model=model, weights_hash=digest, metric=metric, value=value, low=low, high=high, n=n, **about)
