"""Manifests: one meaning of "so many hours", with a hash that follows from content alone."""

import dataclasses
import json

import numpy as np
import pytest

from headcam.errors import InputError
from headcam.video.sampling.manifest import Manifest


class SomeUnits:
    """What a manifest asks of units."""

    def __init__(self, recordings, seconds, counts):
        self.recordings, self._seconds, self._counts = recordings, np.array(seconds), np.array(counts)

    def seconds_by_recording(self):
        return self._seconds

    def counts_by_recording(self):
        return self._counts


DRAWN = Manifest(
    seconds={"a": 60.0, "b": 29.97, "p": 0.0},
    stretches={"a": ((0.0, 20.0), (30.5, 70.5)), "b": ((1 / 3, 1 / 3 + 29.97),), "p": ((0.0, 0.0),)},
    name="stratified-1h-seed0",
    rule="stratified",
    fraction=0.1,
    seed=3,
    recordings_hash="r" * 64,
    quarantine_hash=None,
    settings={"strata": ["source"], "segment_s": 60.0},
)


def test_an_account_counts_seconds_and_units_and_knows_its_parent():
    units = SomeUnits(("b", "a", "b", "c"), [2.0, 1 / 3, 0.5, 0.0], [2, 1, 1, 0])
    account = Manifest.of(units)
    assert account.seconds == {"a": 0.333333, "b": 2.5} and account.frames == {"a": 1, "b": 3}
    assert account.hours == pytest.approx(2.833333 / 3600) and account.parent is None and account.rule == "all"
    child = Manifest.of(units, parent=DRAWN)
    assert child.parent == DRAWN.hash and child.stretches is None and child.frames == account.frames
    assert (child.name, child.rule, child.fraction, child.seed) == ("stratified-1h-seed0", "stratified", 0.1, 3)
    assert (child.recordings_hash, child.quarantine_hash) == ("r" * 64, None)


def test_the_hash_does_not_depend_on_order_or_name_but_on_all_else():
    backwards = {
        "seconds": dict(reversed(DRAWN.seconds.items())),
        "stretches": dict(reversed(DRAWN.stretches.items())),
        "name": "mine",
    }
    assert dataclasses.replace(DRAWN, **backwards).hash == DRAWN.hash
    changes = (
        {"seed": 1},
        {"rule": "first"},
        {"fraction": 0.5},
        {"frames": {"a": 3}},
        {"stretches": DRAWN.stretches | {"a": ((0.0, 20.0), (30.5, 70.500001))}},
        {"seconds": DRAWN.seconds | {"a": 60.000001}},
        {"recordings_hash": None},
        {"quarantine_hash": "q"},
        {"parent": "p"},
        {"settings": {}},
    )
    assert len({DRAWN.hash} | {dataclasses.replace(DRAWN, **change).hash for change in changes}) == 11


@pytest.mark.parametrize("manifest", [DRAWN, Manifest.of(SomeUnits(("é",), [1.0], [1]), DRAWN)])
def test_written_and_read_back(tmp_path, manifest):
    manifest.write(tmp_path / "m.json")
    assert Manifest.read(tmp_path / "m.json") == manifest
    written = json.loads((tmp_path / "m.json").read_text("utf-8"))
    assert written["contract"] == "manifest" and written["version"] == 2
    assert written["hash"] == manifest.hash and written["hours"] == manifest.hours


def test_restricting_cuts_stretches_and_drops_recordings():
    have = {"a": ((10.0, 40.0),), "b": ((40.0, 50.0),), "p": ((0.0, 0.0),), "q": ((0.0, 0.0),), "x": ((0.0, 9.0),)}
    assert DRAWN.restrict(have) == {"a": ((10.0, 20.0), (30.5, 40.0)), "p": ((0.0, 0.0),)}
    with pytest.raises(InputError, match=r"is a run's account of its data .* Fix: give a file that headcam subset"):
        Manifest.of(SomeUnits(("a",), [1.0], [1])).restrict(have)


@pytest.mark.parametrize(
    "content, telling",
    [
        (None, "cannot be read as a manifest"),
        (b"{half", "cannot be read as a manifest"),
        (b"\xff\xfe", "cannot be read as a manifest"),
        (b"[1]", "is no manifest"),
        (b"{}", "is no manifest"),
        (b'{"contract": "manifest", "version": 1}', "is a manifest of version 1, not a manifest of version 2"),
        (b'{"contract": "card", "version": 2}', "is a card of version 2"),
        (b'{"contract": "manifest", "version": 2}', "was changed after it was written"),
    ],
)
def test_what_is_no_manifest_is_refused_by_name(tmp_path, content, telling):
    path = tmp_path / "data.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"data.json {telling}"):
        Manifest.read(path)


@pytest.mark.parametrize(
    "old, new",
    [('"a": 60.0', '"a": 61.0'), ("[30.5, 70.5]", "[30.5, 71.5]"), ("[30.5, 70.5]", "30"), ('"seed": 3', '"seed": 4')],
)
def test_an_edited_manifest_is_refused(tmp_path, old, new):
    path = tmp_path / "m.json"
    DRAWN.write(path)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match="its hash does not match"):
        Manifest.read(path)
