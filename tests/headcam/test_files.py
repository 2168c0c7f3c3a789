"""Files that are whole or not there, ids that follow from content, errors that name the disk's trouble."""

import errno
import hashlib
import json
import os
import threading

import numpy as np
import pytest

from headcam.errors import InputError, StorageError
from headcam.files import (
    atomic_file,
    claim,
    free_bytes,
    partial_path,
    recording_id,
    sha256_file,
    sha256_json,
    storage_errors,
    write_json,
)


def id_as_documented(content: bytes) -> str:
    """DESIGN.md section 4: SHA-256 over the size and 64 evenly spaced 64-KiB blocks, first and last included."""
    block, blocks = 65536, 64
    text = f"{len(content)}\n".encode()
    if len(content) > block * blocks:
        last = len(content) - block
        starts = [k * last // (blocks - 1) for k in range(blocks)]
        assert starts[0] == 0 and starts[-1] == last
        content = b"".join(content[s : s + block] for s in starts)
    return hashlib.sha256(text + content).hexdigest()[:16]


@pytest.mark.parametrize("size", [0, 1, 65536, 64 * 65536, 64 * 65536 + 1, 5_000_003])
def test_recording_id_is_the_documented_one(tmp_path, size):
    content = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    (tmp_path / "a").write_bytes(content)
    assert recording_id(tmp_path / "a") == id_as_documented(content)


def test_recording_id_follows_from_content_not_from_the_path(tmp_path):
    content = bytes(range(256)) * 20000  # longer than the sampled blocks
    for name in ("a.mp4", "b.mkv"):
        (tmp_path / name).write_bytes(content)
    assert recording_id(tmp_path / "a.mp4") == recording_id(tmp_path / "b.mkv")
    (tmp_path / "b.mkv").write_bytes(content[:-1] + b"x")  # the last block is among those that count
    assert recording_id(tmp_path / "a.mp4") != recording_id(tmp_path / "b.mkv")
    (tmp_path / "b.mkv").write_bytes(content + b"\0")  # so does the size
    assert recording_id(tmp_path / "a.mp4") != recording_id(tmp_path / "b.mkv")


@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt])
def test_an_exception_in_the_body_leaves_the_old_file_and_no_part(tmp_path, raised):
    path = tmp_path / "new folder" / "x.json"
    write_json(path, {"old": True})
    with pytest.raises(raised), atomic_file(path) as file:
        file.write(b"half of it")
        raise raised
    assert json.loads(path.read_text()) == {"old": True}
    assert os.listdir(path.parent) == ["x.json"]


def test_a_reader_sees_the_old_or_the_new_content_never_a_part(tmp_path):
    path = tmp_path / "x"
    contents = {bytes([k]) * 300_000 for k in range(8)}
    path.write_bytes(bytes([0]) * 300_000)
    seen, stop = [], threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.append(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for content in sorted(contents):
        with atomic_file(path) as file:
            for k in range(0, len(content), 1000):
                file.write(content[k : k + 1000])
    stop.set()
    reader.join()
    assert seen and set(seen) <= contents


def test_the_part_lies_beside_the_file_so_that_the_rename_is_atomic(tmp_path):
    with atomic_file(tmp_path / "x") as file:
        assert file.name == str(partial_path(tmp_path / "x")) == str(tmp_path / ".x.part")
        assert not (tmp_path / "x").exists()
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line_that_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    import headcam.files

    monkeypatch.setattr(headcam.files, "open", lambda *a, **k: open("/dev/full", "wb"), raising=False)
    with pytest.raises(StorageError, match=r"x\.tar could not be written: No space left.*Fix: free some space"):
        with atomic_file(tmp_path / "x.tar") as file:
            file.write(b"x" * 100_000)
    assert os.listdir(tmp_path) == []


def test_a_file_where_a_folder_is_wanted_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/x\.json could not be written: .*Fix: choose another place") as error:
        write_json(tmp_path / "file" / "x.json", {})
    assert "\n" not in str(error.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"folder could not be written: Is a directory"):
        write_json(tmp_path / "folder", {})
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_other_errors_of_the_system_are_not_called_disk_trouble():
    with pytest.raises(FileNotFoundError), storage_errors("x"):
        raise FileNotFoundError(errno.ENOENT, "gone")


def test_hashes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_json({"b": 1, "a": "é"}) == hashlib.sha256('{"a":"é","b":1}'.encode()).hexdigest()
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1})
    with pytest.raises(ValueError):
        sha256_json(float("nan"))  # no JSON: other readers would refuse it


def test_free_bytes_of_a_folder_that_does_not_exist_yet(tmp_path):
    assert free_bytes(tmp_path / "not" / "there") > 0


def test_a_claimed_folder_is_gone_on_with_only_with_the_same_settings(tmp_path):
    note = tmp_path / "out" / "demo.json"
    assert not claim(note, {"minutes": 4, "size": (2, 3)}, "a demo")
    assert claim(note, {"size": [2, 3], "minutes": 4}, "a demo"), "lists and tuples are one in JSON"
    for other, telling in (
        ({"minutes": 5, "size": (2, 3)}, "minutes is 4 there, 5 here"),
        ({"minutes": 4, "size": (2, 3), "seed": 0}, "seed is None there, 0 here"),
        ({"minutes": 4}, r"size is \[2, 3\] there, None here"),
    ):
        with pytest.raises(InputError, match=f"out holds a demo of other settings: {telling}"):
            claim(note, other, "a demo")
    note.write_text("{")
    with pytest.raises(InputError, match="holds a demo of other settings"):
        claim(note, {"minutes": 4}, "a demo")
