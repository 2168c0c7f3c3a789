"""`headcam subset`: exact hours, nested sizes, one held-out part for a study, nothing from quarantine."""

import json
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from headcam.cli import VERBS, main
from headcam.errors import InputError
from headcam.video.quarantine import quarantine_path, write_quarantine
from headcam.video.recordings import read_recordings, recordings_hash, recordings_table, write_recordings
from headcam.video.sampling.manifest import Manifest
from headcam.video.sampling.subset import RULES, subset
from headcam.video.stretches import common, total_s, without


def recording(k: int, **facts) -> dict:
    return {"recording": f"{k * 0x9E3779B97F4A7C15 % 2**64:016x}", "bytes": 1, "status": "ok", "reason": ""} | facts


def childhood(pictures: int = 0) -> list[dict]:
    """Three children over some days, recordings of uneven length, and what nobody knows anything of."""
    rng = np.random.default_rng(0)
    rows = []
    for k in range(90):
        child = "SSSSSAAYY-"[k % 10]
        facts = {"path": f"/films/{child}/{k:03d}.mp4", "duration_s": float(rng.uniform(3, 400))}
        if child != "-":
            day = date(2013, 5, 1) + timedelta(k // 12)
            facts |= {"source": "saycam", "wearer": child, "recorded_on": day, "session": f"{child}_{day}"}
        rows.append(recording(k, **facts))
    for k in range(pictures):
        rows.append(recording(1000 + k, path=f"/stills/{k:03d}.jpg", duration_s=0.0, source=f"album{k % 2}"))
    rows.append(recording(2000, path="/films/bad.mp4", duration_s=None) | {"status": "unreadable", "recording": ""})
    return rows


def write(path: Path, rows: list[dict]) -> Path:
    write_recordings(recordings_table(rows), path)
    return path


@pytest.fixture
def index(tmp_path) -> Path:
    return write(tmp_path / "recordings.parquet", childhood())


def lies_inside(inner: Manifest, outer: Manifest) -> bool:
    return all(not without(have, outer.stretches.get(k, ())) for k, have in inner.stretches.items())


def overlap_s(one: Manifest, other: Manifest) -> float:
    return sum(total_s(common(have, other.stretches.get(k, ()))) for k, have in one.stretches.items())


@pytest.mark.parametrize("rule", RULES)
def test_hours_are_exact_and_small_lies_inside_large(tmp_path, index, rule):
    found = subset(index, tmp_path / "out", hours=[0.35, 1 / 3, 2.7], fractions=[1, 0.1], seeds=[0, 1], rule=rule)
    durations = {r["recording"]: r["duration_s"] for r in childhood() if r["status"] == "ok"}
    there = sum(durations.values())
    assert len(found.manifests) == 10
    for seed in (0, 1):
        names = ["0.333333h", "0.35h", "10pct", "2.7h", "100pct"]
        chain = [found.manifests[f"{rule}-{name}-seed{seed}.json"] for name in names]
        for manifest, wanted in zip(chain, (1200, 1260, 0.1 * there, 9720, there)):
            seconds = sum(total_s(s) for s in manifest.stretches.values())
            assert seconds == pytest.approx(manifest.hours * 3600, abs=1e-9 * there)
            if rule == "recordings":
                assert all(s == ((0.0, pytest.approx(durations[k])),) for k, s in manifest.stretches.items())
                assert abs(seconds - wanted) < 400 and manifest.fraction == pytest.approx(seconds / there)
            else:
                slack = 1e-6 if manifest.name.split("-")[1].endswith("h") else 1e-6 * len(durations)
                assert seconds == pytest.approx(wanted, abs=slack, rel=0)
                assert manifest.fraction == pytest.approx(wanted / there, abs=1e-8)
            assert (manifest.rule, manifest.seed) == (rule, seed)
            assert list(manifest.stretches) == sorted(manifest.stretches) == list(manifest.seconds)
            assert Manifest.read(tmp_path / "out" / f"{manifest.name}.json") == manifest
        order = sorted(chain, key=lambda m: m.hours)
        assert all(lies_inside(small, large) for small, large in pairwise(order))
        assert set(chain[-1].stretches) == set(durations)
    one, other = (found.manifests[f"{rule}-2.7h-seed{seed}.json"] for seed in (0, 1))
    assert one.stretches != other.stretches and one.hash != other.hash


@pytest.mark.parametrize("rule", ["stratified", "recordings"])
def test_neither_row_order_nor_moved_files_change_a_draw(tmp_path, index, rule):
    rows = [row | {"path": f"/moved/{k}.mp4"} for k, row in enumerate(childhood())]
    moved = write(tmp_path / "moved.parquet", [rows[k] for k in np.random.default_rng(3).permutation(len(rows))])
    options = {"fractions": [0.05, 0.5], "seeds": [7], "rule": rule, "held_out": 0.1}
    one, other = (subset(file, tmp_path / file.stem, **options).manifests for file in (index, moved))
    assert one == other and len(one) == 3
    for name in one:
        assert (tmp_path / "recordings" / name).read_bytes() == (tmp_path / "moved" / name).read_bytes()


def test_strata_keep_their_shares(tmp_path, index):
    found = subset(index, tmp_path / "out", fractions=[0.2, 1], seeds=range(5), segment_s=20).table
    found = found.set_index("file")
    for column in ("wearer=S", "wearer=A", "wearer=Y", "wearer=unknown", "source=unknown"):
        share = found.loc["stratified-100pct-seed0.json", column]
        for seed in range(5):
            drawn = found.loc[f"stratified-20pct-seed{seed}.json"]
            assert abs(drawn[column] - share) * drawn["hours"] * 3600 < 5 * 20  # some segments of 20 s
    contiguous = subset(index, tmp_path / "blocks", fractions=[0.2], seeds=range(5), rule="contiguous").table
    assert contiguous["wearer=S"].max() > 0.95  # what the original papers' subsets were like
    written = pd.read_csv(tmp_path / "out" / "subsets.csv").set_index("file")
    pd.testing.assert_frame_equal(written, found)


def test_a_contiguous_subset_is_one_block_in_the_order_of_paths_and_any_block_can_be_drawn(tmp_path, index):
    there = sorted((r["path"], r["recording"], r["duration_s"]) for r in childhood() if r["status"] == "ok")
    found = subset(index, tmp_path / "out", hours=[1.0], seeds=range(60), rule="contiguous").manifests
    starts, wrapped = [], 0
    for manifest in found.values():
        at, pieces = 0.0, []
        for _, name, duration in there:
            pieces += [(at + a, at + b) for a, b in manifest.stretches.get(name, ())]
            at += duration
        blocks = []
        for a, b in sorted(pieces):
            if blocks and a - blocks[-1][1] < 1e-4:
                blocks[-1][1] = b
            else:
                blocks.append([a, b])
        if len(blocks) == 2:
            assert blocks[0][0] == 0 and blocks[1][1] == pytest.approx(at, abs=1e-3)
            wrapped += 1
        starts.append(blocks[-1][0] / at)
        assert len(blocks) <= 2 and sum(b - a for a, b in blocks) == pytest.approx(3600, abs=1e-4)
    assert wrapped > 3
    assert np.histogram(starts, 4, (0, 1))[0].min() > 5


def test_what_is_held_out_is_one_part_for_the_study_and_never_in_a_subset(tmp_path, index):
    options = {"held_out": 0.2, "seeds": [0, 1], "fractions": [0.1, 1]}
    found = subset(index, tmp_path / "out", **options).manifests
    apart = found["held_out.json"]
    assert apart.rule == "held_out" and apart.fraction == pytest.approx(0.2, abs=0.05)
    everything = {r["recording"]: r["duration_s"] for r in childhood() if r["status"] == "ok"}
    for name, manifest in found.items():
        if name != "held_out.json":
            assert not set(manifest.stretches) & set(apart.stretches)
            assert manifest.settings["held_out"] == apart.hash
    union = set(found["stratified-100pct-seed1.json"].stretches) | set(apart.stretches)
    assert union == set(everything)
    again = subset(index, tmp_path / "other", held_out=0.2, seeds=[5], hours=[0.5], rule="contiguous").manifests
    assert again["held_out.json"] == apart  # whatever seeds, sizes and rule are
    again = subset(index, tmp_path / "other", held_out=0.2, hours=[1], strata=["camera"], segment_s=9).manifests
    assert again["held_out.json"] == apart
    other = subset(index, tmp_path / "third", held_out=0.2, held_out_seed=1, hours=[0.5]).manifests
    assert other["held_out.json"].stretches != apart.stretches


def test_sessions_are_held_out_whole(tmp_path):
    rows = [row for row in childhood() if row.get("session")]
    index = write(tmp_path / "r.parquet", rows)
    apart = subset(index, tmp_path / "out", held_out=0.3, by="session", hours=[0.1]).manifests["held_out.json"]
    session = {row["recording"]: row["session"] for row in rows}
    out = {session[k] for k in apart.stretches}
    assert {k for k in session if session[k] in out} == set(apart.stretches) and 1 < len(out) < 24


def test_leaving_one_child_out(tmp_path):
    rows = [row for row in childhood() if row.get("wearer")]
    index = write(tmp_path / "r.parquet", rows)
    wearer = {row["recording"]: row["wearer"] for row in rows}
    found = subset(index, tmp_path / "s", hold_out=["S"], by="wearer", fractions=[1]).manifests
    assert {wearer[k] for k in found["held_out.json"].stretches} == {"S"}
    assert {wearer[k] for k in found["stratified-100pct-seed0.json"].stretches} == {"A", "Y"}
    found = subset(index, tmp_path / "each", leave_one_out=True, by="wearer", fractions=[1]).manifests
    assert len(found) == 6
    for child in "SAY":
        assert {wearer[k] for k in found[f"without-{child}/held_out.json"].stretches} == {child}
        kept = {wearer[k] for k in found[f"without-{child}/stratified-100pct-seed0.json"].stretches}
        assert kept == set("SAY") - {child}
        assert (tmp_path / "each" / f"without-{child}" / "held_out.json").exists()


def test_quarantined_seconds_are_never_drawn(tmp_path, index):
    table = read_recordings(index)
    rng = np.random.default_rng(5)
    rows = [r for r in childhood() if r["status"] == "ok"]
    bad = [
        {"recording": r["recording"], "start_s": (a := rng.uniform(0, r["duration_s"])), "end_s": a + 50.0}
        | {"reason": "black", "measure": 0.0, "detail": ""}
        for r in rows[::2]
    ]
    bad.append(bad[0] | {"recording": rows[1]["recording"], "start_s": 0.0, "end_s": 1e6})
    write_quarantine(bad, quarantine_path(index), recordings_hash(table), {})
    found = subset(index, tmp_path / "out", fractions=[0.3, 1], seeds=[0, 1]).manifests
    for manifest in found.values():
        for row in bad:
            have = manifest.stretches.get(row["recording"], ())
            assert not common(have, [(row["start_s"], row["end_s"])])
        assert len(manifest.quarantine_hash) == 64
    holes = {b["recording"]: b["start_s"] for b in bad[:-1]}
    left = sum(r["duration_s"] - min(50.0, r["duration_s"] - holes.get(r["recording"], r["duration_s"])) for r in rows)
    left -= rows[1]["duration_s"]
    whole = found["stratified-100pct-seed0.json"]
    assert whole.hours * 3600 == pytest.approx(left, abs=1e-3) and rows[1]["recording"] not in whole.stretches
    without_it = subset(index, tmp_path / "all", fractions=[1], quarantine="none").manifests
    assert without_it["stratified-100pct-seed0.json"].hours > whole.hours
    assert without_it["stratified-100pct-seed0.json"].quarantine_hash is None
    write_recordings(recordings_table(childhood()[:-5]), index)
    with pytest.raises(InputError, match="was made for another state"):
        subset(index, tmp_path / "out", hours=[0.1])


@pytest.mark.parametrize("rule", RULES)
def test_still_pictures_are_drawn_by_count(tmp_path, rule):
    index = write(tmp_path / "r.parquet", childhood(pictures=40))
    found = subset(index, tmp_path / "out", fractions=[0.25, 0.5], rule=rule).manifests
    drawn = [{k for k, s in m.stretches.items() if s == ((0.0, 0.0),)} for m in found.values()]
    assert [len(d) for d in drawn] == [10, 20] and drawn[0] < drawn[1]
    stills = write(tmp_path / "stills.parquet", [r for r in childhood(40) if r["path"].startswith("/stills")])
    found = subset(stills, tmp_path / "stills", fractions=[0.5], rule=rule, held_out=0.25)
    assert found.table["pictures"].tolist() == [10, 15] and found.table["hours"].tolist() == [0, 0]
    if rule != "contiguous":
        assert found.table["source=album0"].iloc[1] == pytest.approx(0.5, abs=0.15)
    with pytest.raises(InputError, match=r"still pictures only, which last no time. Fix: give --fractions"):
        subset(stills, tmp_path / "x", hours=[0.1])


@pytest.mark.parametrize(
    "options, telling",
    [
        ({}, "no size is given"),
        ({"hours": [99]}, r"99h are wanted and 5.\d+ h can be drawn. Fix: ask for less"),
        ({"hours": [0]}, "hours holds 0"),
        ({"hours": [float("nan")]}, "hours holds nan"),
        ({"fractions": [1.1]}, "fractions holds 1.1"),
        ({"hours": [1, 0.5, 1.0000001]}, "two sizes would be called 1h"),
        ({"hours": [1], "seeds": []}, r"seeds is \[\]"),
        ({"hours": [1], "seeds": [1, 1]}, r"seeds is \[1, 1\]"),
        ({"hours": [1], "rule": "random"}, "rule knows no 'random'. Fix: use one of stratified, contiguous"),
        ({"hours": [1], "strata": ["child"]}, "strata knows no 'child'. Fix: use one of source, wearer, recorded_on"),
        ({"hours": [1], "by": "frame"}, "by knows no 'frame'. Fix: use one of recording, wearer, session, source"),
        ({"hours": [1], "segment_s": 0}, "segment_s is 0"),
        ({"hours": [1], "held_out": 1.0}, "held_out is 1.0, no fraction"),
        ({"hours": [1], "held_out": 0.1, "hold_out": ["S"]}, "exclude each other"),
        (
            {"hours": [1], "held_out": 0.1, "by": "wearer"},
            "9 of 90 recordings have no wearer, such as /films/-/009.mp4",
        ),
        (
            {"hours": [1], "hold_out": ["x"], "by": "recording"},
            "no recording has the recording 'x'. Fix: hold out some",
        ),
        ({"hours": [0.0001], "rule": "recordings"}, "rule recordings with seed 0 draws nothing for 0.0001h"),
    ],
)
def test_bad_options_are_one_line(tmp_path, index, options, telling):
    with pytest.raises(InputError, match=telling):
        subset(index, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_index_with_nothing_to_draw_is_refused(tmp_path):
    bad = write(tmp_path / "r.parquet", [r for r in childhood() if r["status"] != "ok"])
    with pytest.raises(InputError, match="holds no verified second of video and no picture"):
        subset(bad, tmp_path / "out", hours=[1])
    one = write(tmp_path / "one.parquet", childhood()[:1])
    with pytest.raises(InputError, match="there is one recording only"):
        subset(one, tmp_path / "out", fractions=[1], held_out=0.1)
    with pytest.raises(InputError, match="holding out wearer S leaves nothing"):
        subset(one, tmp_path / "out", fractions=[1], hold_out=["S"], by="wearer")


def test_a_folder_holds_one_study(tmp_path, index):
    subset(index, tmp_path / "out", fractions=[0.1], held_out=0.1)
    subset(index, tmp_path / "out", fractions=[0.2], seeds=[4], held_out=0.1)  # the same study: another size and seed
    (tmp_path / "out" / "notes.json").write_text("{}")
    for other in ({}, {"held_out": 0.2}, {"held_out": 0.1, "held_out_seed": 1}):
        with pytest.raises(InputError, match=r"drawn from another index or with another held-out part. Fix: choose"):
            subset(index, tmp_path / "out", fractions=[0.3], **other)


def test_the_command(tmp_path, index, capsys, monkeypatch):
    monkeypatch.setitem(VERBS, "subset", ("headcam.cli.subset", ""))
    out = tmp_path / "out"
    command = ["subset", str(index), "--out", str(out), "--hours", "[0.1,1]", "--seeds", "[0,1]", "--held_out", "0.1"]
    assert main(command) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"table: {out / 'subsets.csv'}" and len(said) == 7
    files = {p.name: p.read_bytes() for p in out.iterdir()}
    assert sorted(files) == sorted(
        ["held_out.json", "subsets.csv", *(f"stratified-{h}h-seed{s}.json" for h in ("0.1", "1") for s in (0, 1))]
    )
    first = Manifest.read(out / "stratified-0.1h-seed0.json")
    assert first.hours == pytest.approx(0.1, abs=1e-9) and said[2].split()[0] == "stratified-0.1h-seed0.json"
    assert first.hash.startswith(said[2].split()[-1])
    assert json.loads(files["stratified-0.1h-seed0.json"])["settings"]["segment_s"] == 60
    assert main(command) == 0  # the same words again: the same bytes
    assert files == {p.name: p.read_bytes() for p in out.iterdir()}
    capsys.readouterr()
    for bad, telling in (
        (["--hours", "[99]"], "99h are wanted"),
        (["--hours", "ten"], "hours"),
        (["--hours", "[1]", "--hold_out", "[S]", "--by", "wearer"], "have no wearer"),
    ):
        assert main(["subset", str(index), "--out", str(tmp_path / "no"), *bad]) == 2
        said = capsys.readouterr().err
        assert telling in said and said.count("\n") == 1
    assert not (tmp_path / "no").exists()
