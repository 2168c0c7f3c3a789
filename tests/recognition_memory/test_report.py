"""The memory report: its numbers are the score's, nothing is silent, pictures are checked, harder tests have room."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from headcam.errors import InputError
from headcam.recognition_memory.people.page import DATA_CONTRACT
from headcam.recognition_memory.report import Source, _models, _positions, report
from headcam.recognition_memory.reporting.charts import marked_points, percent, published
from headcam.recognition_memory.running.claim import CONTRACT
from headcam.recognition_memory.scoring.table import read_losses, write_losses
from headcam.recognition_memory.stimuli.manifest import MemoryManifest
from headcam.recognition_memory.stimuli.prepare import prepare

PAIRS = 10
CONDITIONS = ("novel", "exemplar", "state")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
COLUMNS = ["model", "pretraining", "study_set", "seed", "condition", "exposures", "pair", "loss_seen", "loss_unseen"]


def losses(
    model: str = "tiny",
    pretraining: str = "none",
    *,
    memory: float = 0.05,
    exposures=range(4),
    sets=("1", "2"),
    seeds=(0, 1),
) -> pd.DataFrame:
    """Of an observer: complexity of a picture + damage of study - memory of the studied one + noise."""
    rng = np.random.default_rng(0)
    complexity = {condition: rng.normal(2, 0.4, (PAIRS, 2)) for condition in CONDITIONS}
    rows = []
    for k, study_set in enumerate(sets):
        for seed in seeds:
            for exposure in exposures:
                for condition, of in complexity.items():
                    now = of + 0.01 * exposure + rng.normal(0, 0.01, of.shape)
                    now[:, k] -= memory * exposure
                    rows += [
                        [model, pretraining, study_set, seed, condition, exposure, p, now[p, k], now[p, 1 - k]]
                        for p in range(PAIRS)
                    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def stimuli(folder: Path) -> Path:
    """Two role-swapped sets of generated pictures in the published layout, and their manifest."""
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (len(CONDITIONS), PAIRS, 2, 16, 16, 3), dtype=np.uint8)
    for study_set in (1, 2):
        home = folder / f"set_{study_set}"
        for c, condition in enumerate(CONDITIONS):
            for p in range(PAIRS):
                for version in (0, 1):
                    seen = version == study_set - 1
                    places = [home / f"test/{condition}_{'seen' if seen else 'unseen'}/{condition}"]
                    for place in places + ([home / "study/study"] if seen else []):
                        place.mkdir(parents=True, exist_ok=True)
                        Image.fromarray(pictures[c, p, version]).save(place / f"{condition}{p:03d}.png")
    return prepare(folder, quiet=True).manifest


def run_folder(folder: Path, table: pd.DataFrame, manifest: Path | None = None, **facts) -> Path:
    """What `headcam memory run` leaves, as far as the report reads it."""
    folder.mkdir()
    write_losses(folder / "losses.csv", table)
    named = {"name": "made", "path": None, "hash": None}
    if manifest is not None:
        named |= {"path": str(manifest), "hash": MemoryManifest.read(manifest).hash}
    experiment = {
        "contract": CONTRACT,
        "model": table["model"].iloc[0],
        "pretraining": table["pretraining"].iloc[0],
        "unit": "nats per token",
        "predictions": 143,
        "bounds": {"": ""},
        "complete": True,
        "parameters": 812_345,
        "hours": None,
        "manifest": named,
        "updates_per_exposure": {"1": 1, "2": 1},
        "study_pictures": {"1": 30, "2": 30},
        "lr": 5e-4,
        "lr_chosen": "highest d' on other pictures, see selection.csv",
        "notes": [],
    }
    (folder / "experiment.json").write_text(json.dumps(experiment | facts))
    return folder


def page_text(path: Path) -> str:
    """What a reader sees, on one line, without charts."""
    text = re.sub(r"<(style|svg).*?</\1>", " ", path.read_text("utf-8"), flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", text)).split())


def sections(path: Path) -> list[str]:
    return [unescape(title) for title in re.findall(r"<h2>(.*?)</h2>", path.read_text("utf-8"))]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """A run with a manifest and a table of another model; report and run folder."""
    folder = tmp_path_factory.mktemp("report")
    manifest = stimuli(folder / "stimuli")
    run = run_folder(folder / "run", losses(), manifest, notes=["two seeds only"])
    table = folder / "other.csv"
    write_losses(table, losses("elsewhere", "video_1h", memory=0.0, exposures=range(1, 4)))
    return report([run, table], folder / "out", quiet=True), run


def test_the_headline_has_the_scores_numbers_and_says_what_they_are_of(made):
    page, _ = made
    accuracy = pd.read_csv(page.parent / "accuracy.csv", keep_default_na=False, na_values=[""])
    lead = re.search(r'<p class="lead">(.*?)</p>', page.read_text("utf-8"))[1]
    pooled = accuracy[
        (accuracy["model"] == "tiny") & (accuracy["condition"] == "pooled") & (accuracy["exposures"] == 1)
    ]
    for rule in ("calibrated", "raw"):
        row = pooled[pooled["rule"] == rule].iloc[0]
        assert f"{100 * row['accuracy']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" in lead
    assert "30 pairs, 4 runs" in lead
    assert "elsewhere (video_1h)" in lead
    assert "89.1 %" in lead, "the human figure stands beside it"


def test_sections_come_in_the_order_of_a_readers_questions(made):
    titles = sections(made[0])
    order = [
        "Accuracy against exposures",
        "The numbers",
        "When is the human figure reached?",
        "Why the rules differ",
        "Pretraining, size and amount of data",
        "Easiest and hardest pairs",
        "What it cost",
        "What may and may not be concluded",
        "What was left out, and notes",
        "How it was measured",
    ]
    assert [title for title in titles if title in order] == order


def test_what_a_table_does_not_allow_is_said(made):
    text = page_text(made[0])
    assert "learning rate 0.0005 (highest d' on other pictures, see selection.csv)" in text
    assert "no exposure 0 is in the table" in text  # the table made elsewhere has no calibrated rule
    assert "two seeds only" in text.lower()
    assert "> 3" in text, "the human level that a model without memory never reaches"


def test_pairs_are_shown_from_the_manifest_and_left_out_on_wish(made, tmp_path):
    page, run = made
    html = page.read_text("utf-8")
    assert html.count("<img") == 4 * 6  # easiest and hardest, each studied and foil
    bare = report([run], tmp_path / "bare", frames=False, quiet=True)
    assert "<img" not in bare.read_text("utf-8")
    assert "Pictures are left out of this report" in page_text(bare)


def test_a_changed_picture_is_not_shown_but_said(tmp_path):
    manifest = stimuli(tmp_path / "stimuli")
    run = run_folder(tmp_path / "run", losses(), manifest)
    for file in (tmp_path / "stimuli").rglob("*.png"):
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(file)
    page = report([run], tmp_path / "out", quiet=True)
    assert "<img" not in page.read_text("utf-8")
    assert "Pictures of the easiest pairs" in page_text(page)


def test_a_manifest_of_other_pictures_is_refused_by_its_hash(tmp_path):
    manifest = stimuli(tmp_path / "stimuli")
    run = run_folder(tmp_path / "run", losses(), manifest)
    facts = json.loads((run / "experiment.json").read_text())
    facts["manifest"]["hash"] = 64 * "0"
    (run / "experiment.json").write_text(json.dumps(facts))
    page = report([run], tmp_path / "out", quiet=True)
    assert "has changed since the run" in page_text(page) and "<img" not in page.read_text("utf-8")


def test_harder_tests_have_their_sections(tmp_path):
    plain = losses()
    tests = [plain.assign(test="")]
    tests.append(losses(memory=0.02).assign(test="noise 25"))
    tests += [losses(memory=0.05 / n).query("exposures in (0, 3)").assign(test=f"after {n} updates") for n in (1, 2, 4)]
    run = run_folder(tmp_path / "run", pd.concat(tests, ignore_index=True))
    cells = [
        {"lr": lr, "batch_size": 32, "list_length": n, "study_pictures": n, "updates_per_exposure": n // 32}
        | {"condition": "pooled", "exposures": 1, "rule": rule, "accuracy": a, "low": a - 0.1, "high": a + 0.05}
        | {"d_prime": 1.0, "bits_2afc": 0.3, "capacity_bits": 0.3 * n, "n_pairs": 24, "n_runs": 4, "cell": f"{lr}-{n}"}
        for lr in (1e-4, 1e-3)
        for n in (64, 128)
        for rule, a in (("calibrated", 0.8), ("raw", 0.55))
    ]
    failed = {"lr": 1.0, "batch_size": 32, "list_length": 64, "cell": "lr_1", "reason": "the loss became nan"}
    (run / "sweep").mkdir()
    pd.DataFrame([*cells, failed]).to_csv(run / "sweep/sweep.csv", index=False)
    recalled = [
        {
            "study_set": "",
            "seed": "",
            "exposures": 3,
            "role": role,
            "rule": "raw",
            "recalled": value,
            "low": value - 0.05,
        }
        | {
            "high": value + 0.05,
            "mean_rank": 9.5,
            "chance": 1 / 48,
            "chance_rank": 24.5,
            "n_pictures": 20,
            "candidates": 48,
        }
        for role, value in (("studied", 0.4), ("foil", 0.1), ("studied minus foil", 0.3))
    ]
    pd.DataFrame(recalled).to_csv(run / "recall.csv", index=False)
    page = report([run], tmp_path / "out", quiet=True)
    titles, text = sections(page), page_text(page)
    for title in (
        "Degraded pictures and closer foils",
        "Retention",
        "Learning rate, batch and list length: run",
        "Recall: run",
    ):
        assert title in titles
    assert "lr_1 has no figures: the loss became nan" in text
    assert "studied minus foil raw 3 30.0 [25.0, 35.0]" in text
    retained = re.search(r"tiny \(not pretrained\) calibrated 4 ([\d.]+) \[", text)
    assert retained, "the table of retention has a row a re-test"


def test_the_place_in_an_exposure_is_joined_to_the_margin(tmp_path):
    """A planted recency effect: the later in the exposure, the larger the margin."""
    table = losses(memory=0.0)
    rng = np.random.default_rng(3)
    rows = []
    for k, row in table[table["exposures"] > 0].iterrows():
        position = int(rng.integers(0, 100))
        table.loc[k, "loss_seen"] -= 0.001 * position
        keys = ["study_set", "seed", "exposures", "condition", "pair"]
        rows.append([*row[keys], position])
    run = run_folder(tmp_path / "run", table)
    places = pd.DataFrame(rows, columns=["study_set", "seed", "exposures", "condition", "pair", "position"])
    places.to_csv(run / "positions.csv", index=False)
    out = report([run], tmp_path / "out", quiet=True)
    assert "Place in the exposure" in sections(out)

    source = Source(run, run / "losses.csv", {}, {"positions": places.astype({"study_set": str})})
    accuracy = pd.read_csv(tmp_path / "out/accuracy.csv", keep_default_na=False)
    found = _positions(_models(source, read_losses(run / "losses.csv"), accuracy), [])
    assert len(found) == 2 * 2 * len(CONDITIONS) * PAIRS * 2  # sets, seeds, pairs; first and last exposure
    assert found["place"].between(0, 1).all()
    assert np.corrcoef(found["place"], found["margin"])[0, 1] > 0.8


def participant(folder: Path, number: int, right: float) -> Path:
    """A data file of the browser experiment, as far as `read_people` asks."""
    rng = np.random.default_rng(number)
    record = {
        "contract": DATA_CONTRACT,
        "page": "one page",
        "manifest": {"name": "made", "hash": "abc"},
        "settings": {},
        "participant": number,
        "study_set": "1" if number % 2 else "2",
        "speed": 1,
        "complete": True,
        "started": "2026-01-01T10:00:00Z",
        "finished": "2026-01-01T10:30:00Z",
        "interruptions": 0,
        "study": [
            {"position": k, "picture": "x", "kind": "repeat" if k < 5 else "new", "pressed": k < 4} for k in range(30)
        ],
        "test": [
            {"condition": condition, "pair": p, "correct": bool(rng.random() < right), "rt_ms": 900.0}
            for condition in CONDITIONS
            for p in range(PAIRS)
        ],
    }
    path = folder / f"memory-{number}.json"
    path.write_text(json.dumps(record))
    return path


def test_people_stand_beside_the_models_pair_by_pair(tmp_path):
    table = tmp_path / "model.csv"
    write_losses(table, losses(memory=0.02))
    files = [participant(tmp_path, number, 0.85) for number in (1, 2, 3, 4)]
    human = tmp_path / "known.csv"
    items = [(c, p, 0.5 + 0.04 * p) for c in CONDITIONS for p in range(PAIRS)]
    pd.DataFrame(items, columns=["condition", "pair", "accuracy"]).to_csv(human, index=False)
    page = report([table], tmp_path / "out", people=files, human_items=human, quiet=True)
    text = page_text(page)
    of_people = pd.read_csv(tmp_path / "out/people/accuracy.csv").query("condition == 'pooled'").iloc[0]
    right = [row["correct"] for file in files for row in json.loads(file.read_text())["test"]]
    assert of_people["accuracy"] == pytest.approx(np.mean(right))
    assert f"pooled {100 * np.mean(right):.1f} [" in text
    assert "4 of 5 1 of" not in text and "4 of 5 0 of 25" in text, "repeats noticed, false alarms"
    own = pd.read_csv(tmp_path / "out/people/human_items.csv")
    assert len(own) == PAIRS * len(CONDITIONS) and (own["n"] == 4).all()
    assert "Are the same pairs hard for people?" in sections(page)
    assert "known.csv novel" in text


def test_item_data_without_a_common_pair_is_an_error(tmp_path):
    table, human = tmp_path / "model.csv", tmp_path / "known.csv"
    write_losses(table, losses())
    human.write_text("condition,pair,accuracy\nscenes,0,0.5\nscenes,1,0.7\n")
    with pytest.raises(InputError, match=r"known\.csv.*0 pairs in common"):
        report([table], tmp_path / "out", human_items=human, quiet=True)


def test_halves_are_rounded_up_and_axes_marked_at_round_numbers():
    row = pd.Series({"accuracy": 0.5125, "low": 0.5, "high": 0.53})
    assert percent(row).parts() == ("51.3", "[50.0, 53.0]")
    assert marked_points(range(1, 4)) == [0, 1, 2]
    assert [k + 1 for k in marked_points(range(1, 101))] == [1, 2, 5, 10, 20, 50, 100]


def test_the_human_mean_is_shown_only_beside_the_conditions_that_it_is_of():
    assert published("pooled", ("novel", "exemplar", "state")).accuracy == pytest.approx(0.891)
    assert published("pooled", ("novel", "exemplar")) is None
    assert published("noise", ("noise",)) is None


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH: the report is not looked at")
def test_the_page_fits_a_phone_and_fetches_nothing(made, tmp_path):
    html = made[0].read_text("utf-8")
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    script = """<script>onload = () => setTimeout(() => {
      const frame = document.querySelector("iframe"), page = frame.contentDocument;
      const outside = e => e.getBoundingClientRect().right > frame.clientWidth + 0.5 && !e.closest(".scroll");
      const over = [...page.querySelectorAll("body *")].filter(outside).map(e => e.tagName);
      document.body.textContent = JSON.stringify({over, wide: page.documentElement.scrollWidth});
    }, 200);</script>"""
    wrapper = tmp_path / "wrapper.html"
    frame = f'<iframe style="border:0;width:400px;height:2000px" srcdoc="{escape(html)}"></iframe>'
    wrapper.write_text(f'<!DOCTYPE html><meta charset="utf-8"><body>{frame}{script}</body>', "utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --dump-dom".split()
    done = subprocess.run(
        [BROWSER, *flags, "--virtual-time-budget=4000", f"--user-data-dir={tmp_path / 'profile'}", wrapper.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = json.loads(re.search(r'\{"over".*?\}', done.stdout)[0])
    assert found == {"over": [], "wide": 400}


def test_a_single_run_is_flagged(tmp_path):
    table = tmp_path / "one.csv"
    write_losses(table, losses(sets=("1",), seeds=(0,)))
    assert "one run only" in page_text(report([table], tmp_path / "out", quiet=True))


def test_a_bound_is_labelled_wherever_it_stands(tmp_path):
    run = run_folder(tmp_path / "run", losses("pixel store"), bounds={"": "upper bound"})
    text = page_text(report([run], tmp_path / "out", quiet=True))
    assert "pixel store (not pretrained, upper bound) tells" in text


def test_names_cannot_inject_markup(tmp_path):
    run = run_folder(tmp_path / "run", losses("<script>alert(1)</script>"))
    assert "<script" not in report([run], tmp_path / "out", quiet=True).read_text("utf-8")


def test_what_is_no_run_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="no run was given"):
        report([], tmp_path / "out")
    with pytest.raises(InputError, match=r"nowhere does not exist.*folder of headcam memory run"):
        report([tmp_path / "nowhere"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty has no experiment\.json"):
        report([tmp_path / "empty"], tmp_path / "out")
    (tmp_path / "empty/experiment.json").write_text('{"contract": "memory_experiment/0"}')
    with pytest.raises(InputError, match="contract memory_experiment/0, not memory_experiment/1"):
        report([tmp_path / "empty"], tmp_path / "out")
    (tmp_path / "empty/experiment.json").write_text(json.dumps({"contract": CONTRACT}))
    with pytest.raises(InputError, match="empty is not finished"):
        report([tmp_path / "empty"], tmp_path / "out")


def test_models_are_compared_by_one_rule_that_says_something_of_all(tmp_path):
    """Before study the second model costs every picture the same: its drop still is the picture's complexity."""
    blind = losses("blind")
    start = blind["exposures"] == 0
    noise = np.random.default_rng(0).normal(0, 1e-3, (int(start.sum()), 2))
    blind.loc[start, ["loss_seen", "loss_unseen"]] = 3.0 + noise
    tables = [tmp_path / "known.csv", tmp_path / "blind.csv"]
    for table, frame in zip(tables, (losses("known"), blind)):
        write_losses(table, frame.assign(test=""))
    text = page_text(report(tables, tmp_path / "out", quiet=True))
    pooled = pd.read_csv(tmp_path / "out" / "accuracy.csv", keep_default_na=False).query(
        "condition == 'pooled' and exposures == 1"
    )
    found = {(row.model, row.rule): f"{100 * row.accuracy:.1f} %" for row in pooled.itertuples()}
    assert f"After one exposure, known (not pretrained) tells {found['known', 'calibrated']}" in text
    unstudied = "unstudied_reference"
    assert f"By the unstudied reference rule, which suits all models here, it has {found['known', unstudied]}" in text
    assert f"Of the other models, blind (not pretrained) has {found['blind', unstudied]}" in text
    assert "losses before study hardly know which pictures are complex" in text


def test_a_store_whose_plain_scores_are_constant_before_study_has_a_page(tmp_path):
    """Only its degraded tests have a memory signal beside a spread of complexity."""
    plain = losses("store").query("exposures < 2")
    plain[["loss_seen", "loss_unseen"]] = 1.0
    plain.loc[plain["exposures"] == 1, "loss_seen"] = 0.0
    degraded = losses("store").query("exposures < 2").assign(test="noise 25")
    write_losses(tmp_path / "store.csv", pd.concat([plain.assign(test=""), degraded], ignore_index=True))
    page = report([tmp_path / "store.csv"], tmp_path / "out", quiet=True)
    assert "Why the rules differ" not in sections(page) and "Degraded pictures and closer foils" in sections(page)
