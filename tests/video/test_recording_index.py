"""The memory-mapped companion of an index: it says what the Parquet file says, is remade when stale, never torn."""

import os
import pickle
from datetime import date

import numpy as np
import pytest

from headcam.errors import InputError
from headcam.video import recording_index
from headcam.video.recording_index import RecordingIndex, recording_facts, write_companion
from headcam.video.recordings import read_recordings, recordings_hash, recordings_table, write_recordings


def row(recording: str, **facts) -> dict:
    usual = {"path": f"/videos/{recording}.mp4", "bytes": 1, "duration_s": 2.0, "keyframes": [0, 12], "status": "ok"}
    return {"recording": recording} | usual | facts


ROWS = [
    row("c", source="saycam", age_days=200.5, keyframes=list(range(0, 900, 30))),
    row("a", source=None, recorded_on=date(2013, 4, 17)),
    row("", status="unreadable", keyframes=None, duration_s=None),
    row("b", source="babyview", keyframes=[], duration_s=0.0),
    row("a", status="duplicate"),
]


@pytest.fixture
def index_file(tmp_path):
    write_recordings(recordings_table(ROWS), tmp_path / "recordings.parquet")
    return tmp_path / "recordings.parquet"


def companion(file):
    return file.with_name(".recordings.parquet.arrow")


def test_the_companion_says_what_the_table_says(index_file):
    index, table = RecordingIndex.open(index_file), read_recordings(index_file)
    assert len(index) == 5 and companion(index_file).exists()
    assert [index.path(k) for k in range(5)] == table["path"].to_pylist()
    assert [index.keyframes(k).tolist() for k in (0, 1, 3)] == [list(range(0, 900, 30)), [0, 12], []]
    assert index.keyframes(0).dtype == np.int64
    assert [index.table["recording"][k].as_py() for k in index.usable()] == ["a", "b", "c"]
    assert recordings_hash(index.table) == recordings_hash(table)
    for name in table.schema.names:
        assert index.table[name].to_pylist() == table[name].to_pylist()


def test_it_is_made_once_and_again_when_the_table_changed(index_file):
    RecordingIndex.open(index_file)
    made = companion(index_file).stat().st_mtime_ns
    assert len(RecordingIndex.open(index_file)) == 5 and companion(index_file).stat().st_mtime_ns == made
    write_recordings(recordings_table(ROWS[:2]), index_file)
    assert len(RecordingIndex.open(index_file)) == 2 and companion(index_file).stat().st_mtime_ns > made
    companion(index_file).write_bytes(b"torn")
    assert len(RecordingIndex.open(index_file)) == 2


def test_who_wrote_the_table_can_write_the_companion_too(index_file):
    assert write_companion(read_recordings(index_file), index_file) == companion(index_file)
    made = companion(index_file).stat().st_ino
    assert len(RecordingIndex.open(index_file)) == 5 and companion(index_file).stat().st_ino == made


def test_where_the_folder_cannot_be_written_it_goes_elsewhere(index_file, tmp_path, monkeypatch):
    other = tmp_path / "tmp" / "headcam-index.arrow"  # (permissions do not stop the tests of an administrator)
    monkeypatch.setattr(recording_index, "_places", lambda file: (index_file / "no folder" / "x.arrow", other))
    assert len(RecordingIndex.open(index_file)) == 5 and other.exists()
    made = other.stat().st_ino
    assert RecordingIndex.open(index_file).keyframes(1).tolist() == [0, 12] and other.stat().st_ino == made
    assert sorted(os.listdir(tmp_path)) == ["recordings.parquet", "tmp"]


def test_it_travels_to_workers_as_a_path_and_notices_another_table(index_file):
    index = RecordingIndex.open(index_file)
    assert len(pickle.dumps(index)) < 500
    assert pickle.loads(pickle.dumps(index)).keyframes(0).tolist() == list(range(0, 900, 30))
    sent = pickle.dumps(index)
    write_recordings(recordings_table(ROWS[:1]), index_file)
    with pytest.raises(InputError, match=r"recordings\.parquet was written anew while it was in use"):
        pickle.loads(sent)
    assert index.path(4) == "/videos/a.mp4"  # who has it open keeps it


def test_facts_of_recordings_are_arrays_with_nan_for_unknown():
    facts = recording_facts(recordings_table(ROWS))
    assert facts.ids.tolist() == ["c", "a", "", "b", "a"]
    assert [facts.source_names[k] for k in facts.source] == ["saycam", "", "", "babyview", ""]
    assert facts.source_names == ("", "babyview", "saycam")
    assert facts.age_days[0] == 200.5 and np.isnan(facts.age_days[1:]).all()
    assert facts.recorded_on[1] == date(2013, 4, 17).toordinal() and np.isnan(facts.recorded_on[[0, 2, 3, 4]]).all()


def test_no_index_and_another_version_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.parquet does not exist"):
        RecordingIndex.open(tmp_path / "nowhere.parquet")
    (tmp_path / "x.parquet").write_bytes(b"no table")
    with pytest.raises(InputError, match="not a Parquet file"):
        RecordingIndex.open(tmp_path / "x.parquet")
