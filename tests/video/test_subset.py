"""Manifests: one meaning of "so many hours", with a hash that follows from content alone."""

import dataclasses
import json

import numpy as np
import pytest

from headcam.errors import InputError
from headcam.video.plan import Units
from headcam.video.subset import Manifest


def some_units(names=("b", "a"), seconds=(1.0, 0.5, 1.0, 0.0)) -> Units:
    n = len(seconds)
    return Units(
        recording=(np.arange(n) % len(names)).astype(np.int32),
        time_s=np.arange(n, dtype=float),
        seconds=np.asarray(seconds, dtype=float),
        width=np.full(n, 8, np.int32),
        height=np.full(n, 8, np.int32),
        recordings=names,
    )


def test_seconds_and_frames_are_counted_for_each_recording():
    manifest = Manifest.of(some_units())
    assert manifest.seconds == {"a": 0.5, "b": 2.0} and manifest.frames == {"a": 2, "b": 2}
    assert manifest.hours == pytest.approx(2.5 / 3600)


def test_the_hash_does_not_depend_on_the_order_of_sources_but_on_all_content():
    a, b = some_units(), some_units(names=("c", "d"), seconds=(1 / 3,) * 6)
    one, other = (Manifest.of(Units.concatenate(parts)) for parts in ([a, b], [b, a]))
    assert one.hash == other.hash and list(one.seconds) == list("abcd")
    changes = ({"seed": 1}, {"rule": "first"}, {"fraction": 0.5}, {"frames": one.frames | {"a": 3}})
    hashes = {one.hash} | {dataclasses.replace(one, **change).hash for change in changes}
    assert len(hashes) == 5


def test_written_and_read_back(tmp_path):
    manifest = Manifest.of(some_units(seconds=(1 / 3, 0.1, 29.97, 0.0)))
    manifest.write(tmp_path / "data.json")
    assert Manifest.read(tmp_path / "data.json") == manifest
    written = json.loads((tmp_path / "data.json").read_text())
    assert written["contract"] == "manifest" and written["version"] == 1
    assert written["hash"] == manifest.hash and written["hours"] == manifest.hours


@pytest.mark.parametrize(
    "content, telling",
    [
        (None, "cannot be read as a manifest"),
        (b"{half", "cannot be read as a manifest"),
        (b"\xff\xfe", "cannot be read as a manifest"),
        (b"[1]", "is no manifest"),
        (b"{}", "is no manifest"),
        (b'{"contract": "manifest", "version": 2}', "is a manifest of version 2, not a manifest of version 1"),
        (b'{"contract": "card", "version": 1}', "is a card of version 1"),
        (b'{"contract": "manifest", "version": 1}', "was changed after it was written"),
    ],
)
def test_what_is_no_manifest_is_refused_by_name(tmp_path, content, telling):
    path = tmp_path / "data.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"data.json {telling}"):
        Manifest.read(path)


def test_an_edited_manifest_is_refused(tmp_path):
    path = tmp_path / "data.json"
    Manifest.of(some_units()).write(path)
    path.write_text(path.read_text().replace('"a": 0.5', '"a": 5000'))
    with pytest.raises(InputError, match="its hash does not match"):
        Manifest.read(path)
