"""The quarantine table: what is left of an index, whose table it is, and refusals by name."""

import shutil

import pyarrow.parquet as pq
import pytest

from headcam.errors import InputError
from headcam.video.quarantine import (
    SCHEMA,
    quarantine_of,
    quarantine_path,
    read_quarantine,
    verified_stretches,
    write_quarantine,
)
from headcam.video.recordings import read_recordings, recordings_hash, recordings_table, write_recordings


def row(recording, duration, status="ok"):
    return {"recording": recording, "path": f"/v/{recording}", "bytes": 10, "duration_s": duration, "status": status}


@pytest.fixture
def indexed(tmp_path):
    rows = [row("b", 20.0), row("a", 10.0), row("c", 5.0, "duplicate"), row("p", 0.0), row("q", 0.0), row("d", 3.0)]
    write_recordings(recordings_table(rows), tmp_path / "recordings.parquet")
    return tmp_path / "recordings.parquet"


def hole(recording, start, end, reason="black"):
    return {"recording": recording, "start_s": start, "end_s": end, "reason": reason, "measure": 0.5, "detail": "x"}


def test_what_is_left(indexed):
    table = read_recordings(indexed)
    holes = [hole("a", 2.0, 3.0), hole("a", 2.5, 4.0, "frozen"), hole("b", 18.0, 25.0), hole("q", 0.0, 0.0)]
    write_quarantine([*holes, hole("d", 0.0, 3.0)], quarantine_path(indexed), recordings_hash(table), {"x": 1})
    found = quarantine_of(indexed, table)
    assert found.settings == {"x": 1} and len(found.table) == 5
    assert verified_stretches(table, found) == {
        "a": ((0.0, 2.0), (4.0, 10.0)),
        "b": ((0.0, 18.0),),
        "p": ((0.0, 0.0),),
    }
    everything = {"a": ((0.0, 10.0),), "b": ((0.0, 20.0),), "d": ((0.0, 3.0),), "p": ((0.0, 0.0),), "q": ((0.0, 0.0),)}
    assert verified_stretches(table, None) == everything
    assert list(verified_stretches(table, None)) == ["a", "b", "d", "p", "q"]
    assert quarantine_of(indexed, table, None) is None is quarantine_of(indexed, table, "none")


def test_without_a_scan_there_is_none(indexed):
    assert quarantine_of(indexed, read_recordings(indexed)) is None
    with pytest.raises(InputError, match=r"away.parquet does not exist. Fix: make it with: headcam scan"):
        quarantine_of(indexed, read_recordings(indexed), indexed.with_name("away.parquet"))


def test_order_of_findings_changes_neither_bytes_nor_hash(tmp_path):
    holes = [hole("b", 1.0, 2.0), hole("a", 5.0, 6.0), hole("a", 1.0, 2.0)]
    write_quarantine(holes, tmp_path / "1.parquet", "h", {})
    write_quarantine(holes[::-1], tmp_path / "2.parquet", "h", {})
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()
    one = read_quarantine(tmp_path / "1.parquet")
    assert one.hash == read_quarantine(tmp_path / "2.parquet").hash
    write_quarantine(holes, tmp_path / "3.parquet", "another index", {})
    assert one.hash != read_quarantine(tmp_path / "3.parquet").hash


def test_a_table_of_another_index_is_refused(indexed, tmp_path):
    table = read_recordings(indexed)
    write_quarantine([], quarantine_path(indexed), "0" * 64, {})
    with pytest.raises(InputError, match=r"recordings.quarantine.parquet was made for another state of .* Fix: run"):
        quarantine_of(indexed, table)


def test_other_files_and_versions_are_refused_by_name(indexed, tmp_path):
    shutil.copy(indexed, tmp_path / "r.parquet")
    with pytest.raises(InputError, match="is no quarantine table: it holds 'recordings'"):
        read_quarantine(tmp_path / "r.parquet")
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(InputError, match="is not a Parquet file"):
        read_quarantine(tmp_path / "text.parquet")
    write_quarantine([], tmp_path / "q.parquet", "h", {})
    metadata = pq.read_schema(tmp_path / "q.parquet").metadata | {b"headcam.version": b"99"}
    pq.write_table(SCHEMA.empty_table().replace_schema_metadata(metadata), tmp_path / "q.parquet")
    with pytest.raises(InputError, match="quarantine table of version 99, this headcam reads version 1"):
        read_quarantine(tmp_path / "q.parquet")
