"""Human figures as the reference has them, and the correlation of people's items with a model's."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from headcam.errors import InputError
from headcam.recognition_memory.human import _parse_figures, human_figures, human_level, item_correlation

SHARED = Path(__file__).resolve().parents[2] / "../shared/reference/data/human_recognition_memory.csv"
NAMES = {
    "Standing Conezio Haber": "Standing, Conezio and Haber",
    "pooled (mean of three)": "pooled",
    "16 exemplars studied per category": "16_exemplar",
    "different pictures (median)": "different pictures",
    "different pictures (second source)": "different pictures",
}


def test_the_levels_are_the_published_ones():
    levels = {c: human_level(c) for c in ("novel", "exemplar", "state", "pooled", "16_exemplar")}
    # Brady et al. 2008 (igpt-memory, plot_test_acc.py), Konkle et al. 2010 (abstract).
    assert {c: f.accuracy for c, f in levels.items()} == {
        "novel": 0.925,
        "exemplar": 0.876,
        "state": 0.872,
        "pooled": 0.891,
        "16_exemplar": 0.82,
    }
    assert [levels[c].sem for c in ("novel", "exemplar", "state", "pooled")] == [0.016, 0.018, 0.018, None]
    mean = np.mean([levels[c].accuracy for c in ("novel", "exemplar", "state")])
    assert levels["pooled"].accuracy == round(float(mean), 3) and levels["pooled"].certainty == "computed"
    assert (levels["novel"].n_items, levels["novel"].participants, levels["novel"].exposure_s) == (2500, 14, 3)
    assert human_level("8_exemplar") is None and human_level("noise") is None


def test_only_figures_that_need_no_further_checking_are_levels():
    figures = human_figures()
    assert len(figures) == 24 and len({(f.study, f.year, f.condition, f.delay, f.accuracy) for f in figures}) == 24
    for condition in {f.condition for f in figures}:
        if level := human_level(condition):
            assert level.certainty in ("A", "computed")
    assert {f.certainty for f in figures} == {"A", "B", "C", "computed", "inference"}


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="../shared/reference is not here")
def test_every_row_of_the_reference_is_there():
    for row in pd.read_csv(SHARED).itertuples():
        study, condition = (NAMES.get(name, name) for name in (row.study, row.condition))
        wanted = (study, row.year, condition, row.n_items, row.certainty.split(" (")[0])
        numbers = [row.participants, row.accuracy_pct, row.sem_pct]
        ours = [
            [f.participants or np.nan, 100 * f.accuracy, 100 * f.sem if f.sem else np.nan]
            for f in human_figures()
            if (f.study, f.year, f.condition, f.n_items, f.certainty) == wanted
        ]
        assert any(np.allclose(numbers, one, equal_nan=True) for one in ours), row


@pytest.mark.parametrize(
    "row, problem",
    [
        ("X,2000,novel,10,,,now,92.5,,here,A", "line 2: accuracy is 92.5.*fraction"),
        ("X,2000,novel,10,,,now,0.9,1.6,here,A", "line 2: sem is 1.6.*fraction"),
        ("X,2000,novel,ten,,,now,0.9,,here,A", "line 2: n_items is 'ten'"),
        ("X,2000,novel,10,,,now,0.9,,here,D", "certainty is 'D'.*inference"),
    ],
)
def test_a_wrong_row_is_named(row, problem):
    header = "study,year,condition,n_items,participants,exposure_s,delay,accuracy,sem,source,certainty"
    with pytest.raises(InputError, match=problem):
        _parse_figures(f"{header}\n{row}\n")


def model_items(margin, condition="novel") -> pd.DataFrame:
    correct = (np.asarray(margin) > 0).astype(float)
    return pd.DataFrame({"condition": condition, "pair": range(len(margin)), "margin": margin, "correct": correct})


def write_people(path: Path, accuracy, n=None, condition="novel", **columns) -> Path:
    frame = pd.DataFrame({"condition": condition, "pair": range(len(accuracy)), "accuracy": accuracy, **columns})
    (frame if n is None else frame.assign(n=n)).to_csv(path, index=False)
    return path


def test_the_correlation_is_scipys_and_its_interval_holds_it(tmp_path):
    rng = np.random.default_rng(0)
    skill = rng.normal(size=80)
    accuracy = np.round(1 / (1 + np.exp(-skill - 1.5)), 1)  # with ties
    margin = skill + rng.normal(size=80)
    people = write_people(tmp_path / "people.csv", accuracy)
    found = item_correlation(people, model_items(margin), rng=np.random.default_rng(1))
    assert found.rho == pytest.approx(stats.spearmanr(accuracy, margin).statistic, abs=1e-12)
    assert found.low < found.rho < found.high and 0.1 < found.high - found.low < 0.5
    # A slow bootstrap with scipy's own correlation, other draws.
    draws = [
        stats.spearmanr(accuracy[index], margin[index]).statistic
        for index in np.random.default_rng(2).integers(80, size=(1000, 80))
    ]
    assert [found.low, found.high] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.03)
    assert found.reliability is None and found.ceiling is None
    shuffled = item_correlation(people, model_items(rng.permutation(margin)), rng=np.random.default_rng(1))
    assert shuffled.low < 0 < shuffled.high


def test_the_reliability_is_that_of_split_halves(tmp_path):
    """Two halves of the people correlate, stepped up, as the formula says; and a perfect model reaches the ceiling."""
    rng = np.random.default_rng(0)
    probability = rng.beta(6, 2, size=4000)
    answers = rng.random((4000, 20)) < probability[:, None]
    halves = np.corrcoef(answers[:, :10].mean(1), answers[:, 10:].mean(1))[0, 1]
    people = write_people(tmp_path / "people.csv", answers.mean(1), n=20)
    found = item_correlation(people, model_items(probability), rng=rng, n_resamples=100)
    assert found.reliability == pytest.approx(2 * halves / (1 + halves), abs=0.02)
    assert found.ceiling == pytest.approx(np.corrcoef(answers.mean(1), probability)[0, 1], abs=0.02)


def test_sets_are_averaged_by_the_number_of_people_and_lone_pairs_are_counted(tmp_path):
    accuracy = np.linspace(0.5, 1, 12)
    one = pd.DataFrame({"condition": "novel", "pair": range(12), "study_set": "1", "accuracy": accuracy, "n": 30})
    two = one.assign(study_set="2", accuracy=0.5, n=10)
    pd.concat([one, two]).to_csv(tmp_path / "people.csv", index=False)
    model = model_items(np.arange(11.0))
    found = item_correlation(tmp_path / "people.csv", model, rng=np.random.default_rng(0), n_resamples=200)
    assert (found.n_items, found.n_human_only, found.n_model_only) == (11, 1, 0) and found.rho == pytest.approx(1)
    pooled = (30 * accuracy[:11] + 10 * 0.5) / 40
    noise = (pooled * (1 - pooled) / 39).mean()
    assert found.reliability == pytest.approx(1 - noise / pooled.var(ddof=1))


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda f: f.head(9), "9 pairs in common"),
        (lambda f: f.assign(accuracy=90), "line 2: accuracy is '90'.*fraction"),
        (lambda f: f.assign(accuracy=0.9), "0.9 for all 12 common pairs"),
        (lambda f: f.assign(n=0), "line 2: n is '0'"),
        (lambda f: f.assign(pair=f.pair + 0.5), "line 2: pair is '0.5'"),
        (lambda f: f.assign(condition=None), "line 2: condition is nan"),
        (lambda f: pd.concat([f, f]), "novel 0 twice"),
        (lambda f: f.drop(columns="accuracy"), "lacks accuracy"),
    ],
)
def test_people_that_cannot_be_used_are_named(tmp_path, change, problem):
    path = write_people(tmp_path / "people.csv", np.linspace(0.4, 1, 12))
    change(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(InputError, match=problem):
        item_correlation(path, model_items(np.arange(12.0)), rng=np.random.default_rng(0))


def test_models_that_cannot_be_used_are_named(tmp_path):
    path, rng = write_people(tmp_path / "people.csv", np.linspace(0.4, 1, 12)), np.random.default_rng(0)
    items = model_items(np.arange(12.0) + 1)
    with pytest.raises(InputError, match="correct of the model's items is 1 for all 12"):
        item_correlation(path, items, rng=rng, measure="correct")
    two = pd.concat([items.assign(rule="raw", exposures=1), items.assign(rule="calibrated", exposures=1)])
    with pytest.raises(InputError, match="more than one run: rule differ"):
        item_correlation(path, two, rng=rng)
    with pytest.raises(InputError, match="lack margin"):
        item_correlation(path, items.drop(columns="margin"), rng=rng)
    with pytest.raises(InputError, match="cannot be read"):
        item_correlation(tmp_path / "none.csv", items, rng=rng)
