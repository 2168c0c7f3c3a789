"""Files of participants become a memory table and a summary; whatever does not fit is named."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from headcam.errors import InputError
from headcam.recognition_memory.people.data import read_people
from headcam.recognition_memory.scoring.scores import score
from headcam.recognition_memory.scoring.table import write_losses


def record(participant=1, wrong=(), hits=3, false_alarms=1, **changes) -> dict:
    """What the page saves: 4 repeats among 20 new pictures, 2 conditions of 3 pairs; `wrong` are places in the test."""
    study = [{"kind": "filler", "pressed": k < false_alarms} for k in range(20)]
    study += [{"kind": "repeat", "pressed": k < hits} for k in range(4)]
    pairs = [(condition, pair) for condition in ("state", "novel") for pair in (2, 0, 1)]
    return {
        "contract": "memory_people/1",
        "page": "p" * 64,
        "manifest": {"name": "pictures", "hash": "m" * 64},
        "settings": {"study_ms": 3000, "seed": 0},
        "participant": participant,
        "study_set": str(2 - participant % 2),
        "speed": 1,
        "complete": True,
        "started": "2026-01-31T10:00:00.000Z",
        "finished": "2026-01-31T10:07:30.000Z",
        "interruptions": 0,
        "planned": {"study": 24, "test": 6},
        "study": [{"position": k, "picture": f"{k:016x}", "rt_ms": None, **row} for k, row in enumerate(study)],
        "test": [
            {"position": k, "condition": c, "pair": p, "correct": k not in wrong, "rt_ms": 1000 + 100 * k}
            for k, (c, p) in enumerate(pairs)
        ],
        **changes,
    }


@pytest.fixture
def save(tmp_path):
    def write(*records) -> list[Path]:
        paths = [tmp_path / f"memory-{k}.json" for k in range(len(records))]
        for path, one in zip(paths, records):
            path.write_text(json.dumps(one))
        return paths

    return write


def test_choices_become_zeros_and_ones(save):
    losses, _ = read_people(save(record(2), record(1, wrong=(0, 4))))
    assert list(losses.columns) == [
        *("model", "pretraining", "study_set", "seed", "condition", "exposures", "pair", "loss_seen", "loss_unseen")
    ]
    assert set(losses.model) == {"people"} and set(losses.pretraining) == {""} and set(losses.exposures) == {1}
    first = losses[losses.seed == 1]
    assert set(first.study_set) == {"1"} and set(losses[losses.seed == 2].study_set) == {"2"}
    wrong = first[first.loss_seen > first.loss_unseen]
    assert list(zip(wrong.condition, wrong.pair)) == [("novel", 0), ("state", 2)]
    assert (losses.loss_seen + losses.loss_unseen == 1).all() and len(losses) == 12


def test_the_order_of_the_files_does_not_matter(save):
    paths = save(record(1, wrong=(1,)), record(2), record(3, hits=0))
    for ours, other in zip(read_people(paths), read_people(paths[::-1])):
        assert ours.equals(other)


def test_people_are_scored_as_a_model_is(save, tmp_path):
    """Three people on one set and one on the other: numbers are not the same in both, and sets count alike."""
    losses, _ = read_people(save(record(1, wrong=(0, 1, 2)), record(3), record(5), record(2, wrong=(0, 1, 2, 3, 4, 5))))
    write_losses(tmp_path / "losses.csv", losses)
    scored = score(tmp_path / "losses.csv", tmp_path / "scores", n_resamples=200, quiet=True)
    assert set(scored.accuracy.rule) == {"raw"}
    pooled = scored.accuracy[scored.accuracy.condition == "pooled"].iloc[0]
    assert pooled.accuracy == pytest.approx(((0.5 + 1 + 1) / 3 + 0) / 2) and pooled.n_runs == 4


def test_the_summary_says_who_did_what(save):
    _, summary = read_people(save(record(1, wrong=(0,), hits=3, false_alarms=1, interruptions=2), record(4, hits=4)))
    row = summary.iloc[0]
    assert (row.participant, row.study_set, row.file, row.included, row.reason) == (1, "1", "memory-0.json", True, "")
    assert (row.n_trials, row.accuracy, row.rt_ms, row.interruptions, row.minutes) == (6, 5 / 6, 1250, 2, 7.5)
    assert (row.repeats, row.hits, row.new, row.false_alarms) == (4, 3, 20, 1)
    assert row.d_prime == pytest.approx(norm.ppf(3.5 / 5) - norm.ppf(1.5 / 21))
    assert np.isfinite(summary.d_prime).all()


def test_who_stopped_is_left_out_with_the_reason(save):
    stopped = record(5, complete=False)
    stopped["test"] = stopped["test"][:2]
    losses, summary = read_people(save(record(1), stopped))
    assert set(losses.seed) == {1}
    assert list(summary.included) == [True, False] and summary.accuracy[1] == 1
    assert summary.reason[1] == "stopped after 24 of 24 pictures of the study and 2 of 6 of the test"
    nothing = record(5, complete=False, study=[], test=[])
    _, summary = read_people(save(record(1), nothing))
    assert np.isnan(summary.d_prime[1]) and np.isnan(summary.accuracy[1])


def changed(**changes):
    return lambda: {**record(2), **changes}


@pytest.mark.parametrize(
    "second, problem",
    [
        (changed(participant=1), "memory-1.json and .*memory-0.json are both of participant 1"),
        (changed(manifest={"name": "others", "hash": "x"}), "is of the manifest 'others', not 'pictures'"),
        (changed(page="q", settings={"study_ms": 500, "seed": 0}), r"another page \(study_ms 500 instead of 3000\)"),
        (changed(page="q"), "another page (other pairs or fillers)"),
        (changed(speed=10), "was made at 10 times the speed"),
        (changed(contract="memory_people/0"), "has the contract 'memory_people/0'.*memory_people/1"),
        (changed(participant="two"), "participant is 'two'"),
        (changed(participant=True), "participant is True"),
        (changed(test=[{"condition": "novel", "pair": 0, "rt_ms": 1}]), "test, entry 0: correct is None"),
    ],
)
def test_a_file_that_does_not_fit_is_named(save, second, problem):
    problem = problem if "\\" in problem or ".*" in problem else re.escape(problem)
    with pytest.raises(InputError, match=problem):
        read_people(save(record(1), second()))


def test_what_is_no_file_of_ours_is_named(tmp_path, save):
    with pytest.raises(InputError, match="no data files"):
        read_people([])
    (tmp_path / "x.json").write_text("no json")
    for path in (tmp_path / "x.json", tmp_path / "none.json"):
        with pytest.raises(InputError, match=rf"{path.name} cannot be read"):
            read_people([path])
    with pytest.raises(InputError, match="contract None"):
        read_people(save([1, 2]))
