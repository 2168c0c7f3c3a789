"""Hashes of pictures: right, remembered, and read anew exactly where a file may have changed."""

import hashlib
import os

import pytest

from headcam.errors import InputError
from headcam.evaluation.labelled import hashes
from headcam.evaluation.labelled.hashes import hash_pictures
from headcam.evaluation.labelled.listing import Item


@pytest.fixture
def read(monkeypatch):
    """Names of the files whose bytes are read."""
    names = []
    original = hashes.read_bytes

    def counted(path, *where):
        names.append(os.path.basename(path))
        return original(path, *where)

    monkeypatch.setattr(hashes, "read_bytes", counted)
    return names


def _files(root, count=7):
    root.mkdir()
    for i in range(count):
        (root / f"{i}.png").write_bytes(b"x" * i)
    return [Item(f"{i}.png") for i in range(count)]


def _expected(root, items):
    return [hashlib.sha256((root / item.name).read_bytes()).hexdigest() for item in items]


def test_files_and_members(tmp_path):
    items = _files(tmp_path / "set")
    (tmp_path / "set/all.tar").write_bytes(b"0123456789")
    items += [Item("all.tar/a", "all.tar", 2, 3), Item("all.tar/b", "all.tar", 8, 3), Item("gone.png")]
    found, reasons = hash_pictures(tmp_path / "set", items)
    assert found[:7] == _expected(tmp_path / "set", items[:7])
    assert found[7] == hashlib.sha256(b"234").hexdigest()
    assert found[8:] == ["", ""]
    assert reasons == {8: "the archive ends 1 bytes before the picture does", 9: "No such file or directory"}


def test_a_second_call_reads_what_changed(tmp_path, read, monkeypatch):
    monkeypatch.setattr(hashes, "_CHUNK", 2)
    items, remember = _files(tmp_path / "set"), tmp_path / "deep/hashes.parquet"
    first = hash_pictures(tmp_path / "set", items, remember)
    assert sorted(read) == [f"{i}.png" for i in range(7)]
    read.clear()
    assert hash_pictures(tmp_path / "set", items[::-1], remember) == (first[0][::-1], {})
    assert read == []

    (tmp_path / "set/3.png").write_bytes(b"yyy")  # as many bytes, another time
    os.utime(tmp_path / "set/3.png", ns=(0, 1_600_000_000_000_000_001))
    (tmp_path / "set/4.png").write_bytes(b"longer")
    (tmp_path / "set/new.png").write_bytes(b"new")
    items.append(Item("new.png"))
    assert hash_pictures(tmp_path / "set", items, remember) == (_expected(tmp_path / "set", items), {})
    assert sorted(read) == ["3.png", "4.png", "new.png"]


def test_one_file_serves_two_sets(tmp_path, read):
    remember = tmp_path / "hashes.parquet"
    for name in ("one", "two"):
        items = _files(tmp_path / name)
        (tmp_path / name / "3.png").write_bytes(name.encode())
        os.utime(tmp_path / name / "3.png", ns=(0, 0))  # same name, bytes and time: told apart by the root
        hash_pictures(tmp_path / name, items, remember)
    read.clear()
    for name in ("one", "two"):
        assert hash_pictures(tmp_path / name, items, remember)[0] == _expected(tmp_path / name, items)
    assert read == []


def test_a_call_that_was_killed_goes_on(tmp_path, read, monkeypatch):
    monkeypatch.setattr(hashes, "_CHUNK", 1)
    monkeypatch.setattr(hashes, "_READERS", 1)
    monkeypatch.setattr(hashes, "_SECONDS_BETWEEN_SAVES", -1.0)
    items, remember = _files(tmp_path / "set", 40), tmp_path / "hashes.parquet"
    save, calls = hashes._save, []

    def killed(*arguments):
        save(*arguments)
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(hashes, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        hash_pictures(tmp_path / "set", items, remember)
    monkeypatch.setattr(hashes, "_save", save)
    read.clear()
    assert hash_pictures(tmp_path / "set", items, remember)[0] == _expected(tmp_path / "set", items)
    assert len(read) == 20


@pytest.mark.parametrize("content", [b"", b"PAR1 no"])
def test_a_file_that_is_none(tmp_path, content):
    items, remember = _files(tmp_path / "set"), tmp_path / "hashes.parquet"
    remember.write_bytes(content)
    with pytest.raises(InputError, match=r"hashes\.parquet cannot be used .*Fix: remove it"):
        hash_pictures(tmp_path / "set", items, remember)


def test_a_parquet_file_of_something_else(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    items, remember = _files(tmp_path / "set"), tmp_path / "hashes.parquet"
    pq.write_table(pa.table({"name": ["0.png"]}), remember)
    with pytest.raises(InputError, match=r"not of the contract picture-hashes/1"):
        hash_pictures(tmp_path / "set", items, remember)
