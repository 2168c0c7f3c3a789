"""The recordings contract: what is written is read, other versions are refused by name, the hash names content."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headcam.errors import InputError
from headcam.video.recordings import (
    SCHEMA,
    read_recordings,
    recordings_hash,
    recordings_table,
    usable,
    write_recordings,
)

GOOD = {"status": "ok", "reason": ""}
ROWS = [
    {"recording": "b", "path": "/x/1.mp4", "bytes": 10, "duration_s": 2.5, "keyframes": [0, 30], **GOOD},
    {"recording": "a", "path": "/x/2.mp4", "bytes": 11, "duration_s": 1.0, "keyframes": [0], **GOOD},
    {"recording": "", "path": "/x/3.mp4", "bytes": 0, "status": "unreadable", "reason": "is a folder"},
]


def test_what_is_written_is_read(tmp_path):
    table = recordings_table(ROWS)
    write_recordings(table, tmp_path / "r.parquet")
    read = read_recordings(tmp_path / "r.parquet")
    assert read.schema.equals(SCHEMA) and read.to_pylist() == table.to_pylist()
    assert usable(read)["recording"].to_pylist() == ["a", "b"]


def test_other_files_and_versions_are_refused_by_name(tmp_path):
    path = tmp_path / "r.parquet"
    with pytest.raises(InputError, match=r"r.parquet does not exist. Fix: make it with: headcam index"):
        read_recordings(path)
    path.write_text("no table")
    with pytest.raises(InputError, match="not a Parquet file"):
        read_recordings(path)
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(InputError, match="was not written by headcam"):
        read_recordings(path)
    write_recordings(recordings_table(ROWS), path)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"headcam.version": b"7"}), path)
    with pytest.raises(InputError, match="version 7, this headcam reads version 2"):
        read_recordings(path)


def test_a_table_of_version_1_is_read_with_nulls(tmp_path):
    path = tmp_path / "r.parquet"
    write_recordings(recordings_table(ROWS), path)
    table = pq.read_table(path).drop_columns(["session", "camera"])
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"headcam.version": b"1"}), path)
    read = read_recordings(path)
    assert read.schema.equals(SCHEMA) and read.to_pylist() == recordings_table(ROWS).to_pylist()
    assert recordings_hash(read) == recordings_hash(recordings_table(ROWS))


def test_who_and_where_do_not_change_the_hash():
    told = [row | {"source": "x", "wearer": "S", "session": "1", "camera": "GoPro", "age_days": 3.0} for row in ROWS]
    assert recordings_hash(recordings_table(told)) == recordings_hash(recordings_table(ROWS))


def test_the_hash_covers_content_and_neither_paths_nor_order():
    moved = [row | {"path": f"/elsewhere/{k}"} for k, row in enumerate(reversed(ROWS))]
    whole = recordings_hash(recordings_table(ROWS))
    assert recordings_hash(recordings_table(moved)) == whole
    changes = ({"recording": "c"}, {"bytes": 12}, {"duration_s": 2.5000001}, {"status": "quarantined"})
    hashes = {recordings_hash(recordings_table([ROWS[0] | change, *ROWS[1:]])) for change in changes}
    assert len(hashes | {whole}) == 5
