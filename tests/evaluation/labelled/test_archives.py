"""Pictures in tars: read by offset, whole shards or cut ones, and an index that is remembered."""

import io
import tarfile

import pytest

from headcam.errors import InputError
from headcam.evaluation.labelled import archives
from headcam.evaluation.labelled.archives import read_archives
from headcam.evaluation.labelled.classes import imagenet_classes
from headcam.evaluation.labelled.sets import read_labelled

NUMBERS = {"n01440764": "0", "n02012849": "1", "n03126707": "12"}


def _write(path, files, **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_members_lie_where_the_index_says(tmp_path):
    pictures = {f"{'long/' * 40}{i}.png": bytes([i]) * (700 + i) for i in range(3)}  # names that need more headers
    inner = tmp_path / "inner.tar"
    _write(inner, pictures, format=tarfile.PAX_FORMAT)
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        outer = tmp_path / "outer.tar"
        files = {"./a.JPG": b"picture", "._a.JPG": b"macOS", "readme.txt": b"none", "zero.png": b""}
        _write(outer, files | {"deep/n1.tar": inner.read_bytes()}, format=form)
        (contents,) = read_archives(tmp_path, [outer])
        assert contents.fault == "" and set(contents.labels) == {""}
        found = {i.name: outer.read_bytes()[i.offset : i.offset + i.length] for i in contents.items}
        assert found == {"outer.tar/a.JPG": b"picture", "outer.tar/zero.png": b""} | {
            f"outer.tar/deep/n1.tar/{name}": data for name, data in pictures.items()
        }


@pytest.mark.parametrize("json_labels", [False, True])
def test_shards_are_the_same_set_as_folders(tmp_path, layouts, json_labels):
    plain = layouts.folders(tmp_path / "plain")
    for part in ("train", "val"):
        for wnid, number in NUMBERS.items():
            (plain / part / wnid).rename(plain / part / number)
    root = layouts.shards(tmp_path / "shards", NUMBERS.get, json_labels)
    data = read_labelled(root)
    assert data.classes == ("0", "1", "12") and data.titles == ()  # by number, not as text ("12" < "2")
    assert (data.layout, data.skipped) == ("shards", ())
    assert data.hash == read_labelled(plain).hash
    with data.train[3].open() as file, tarfile.open(data.train[3].path) as tar:
        member = data.train[3].name.removeprefix(f"{data.train[3].archive}/")
        assert file.read() == tar.extractfile(member).read()


def test_a_thousand_numbers_are_imagenet(tmp_path):
    wnids = [known.wnid for known in imagenet_classes()]
    for part in ("train", "validation"):
        _write(
            tmp_path / f"imagenet1k-{part}-0000.tar",
            {
                f"{i:04d}.{suffix}": data
                for i in reversed(range(1000))
                for suffix, data in (("jpg", f"{part} {i}".encode()), ("cls", b"%d\n" % i))
            },
        )
    data = read_labelled(tmp_path)
    assert data.classes == tuple(wnids)
    assert data.titles[:2] == ("tench", "goldfish")
    with data.test[517].open() as file:
        assert file.read() == b"validation 517"


def test_pattern_of_shards(tmp_path, layouts):
    root = layouts.shards(tmp_path / "shards", NUMBERS.get)
    whole = read_labelled(root)
    assert read_labelled(f"{root}/imagenet1k-train-{{0000..0001}}.tar").hash == whole.hash
    assert read_labelled(f"{root}/imagenet1k-{{train-{{0000..0001}},validation-{{0000..0001}}}}.tar").hash == whole.hash
    more = read_labelled(f"{root}/imagenet1k-train-{{0000..0002}}.tar")
    assert more.skipped == (("imagenet1k-train-0002.tar", "No such file or directory"),)
    for path in root.glob("*-validation-*"):
        path.unlink()
    with pytest.raises(InputError, match=r"one part only, of imagenet1k-train-0000\.tar, \.\.\.\. Fix: add shards"):
        read_labelled(root)
    alone = read_labelled(f"{root}/imagenet1k-train-{{0000..0001}}.tar")
    assert alone.layout == "shards, hash"
    assert (len(alone.train), len(alone.test)) == (4, 3)  # one of each class is held out
    with pytest.raises(InputError, match=r"no sample .*; nothing-0\.tar: No such file"):
        read_labelled(f"{root}/nothing-{{0..3}}.tar")


def test_samples_that_cannot_be_used_are_named(tmp_path):
    good = {f"{k}.{suffix}": data for k in range(4) for suffix, data in (("png", b"%d" % k), ("cls", b"%d" % (k // 2)))}
    bad = {
        "none.png": b"a",
        "text.png": b"b",
        "text.cls": b"cat",
        "minus.png": b"c",
        "minus.cls": b"-1",
        "big.jpeg": b"d",
        "big.cls": b"1000",
        "list.webp": b"e",
        "list.json": b"[1]",
        "broken.webp": b"f",
        "broken.json": b"{",
        "only.cls": b"0",
    }
    _write(tmp_path / "imagenet1k-train-00.tar", good | bad)
    _write(tmp_path / "imagenet1k-validation-00.tar", good)
    data = read_labelled(tmp_path)
    assert len(data.train) == len(data.test) == 4
    reasons = {name.removeprefix("imagenet1k-train-00.tar/"): reason for name, reason in data.skipped}
    assert reasons == {
        "none.png": "its sample has no class (.cls, or .json with label or cls)",
        "text.png": "its class 'cat' is no number",
        "minus.png": "its class -1 is out of range",
        "big.jpeg": "its class 1000 is out of range",
        "list.webp": "its sample has no class (.cls, or .json with label or cls)",
        "broken.webp": "its sample has no class (.cls, or .json with label or cls)",
    }


def test_cls_goes_before_json_and_samples_end_at_the_first_dot(tmp_path):
    for part in ("train", "val"):
        _write(
            tmp_path / f"my-{part}-0.tar",
            {
                "d.1/a.x.jpg": b"0",
                "d.1/a.cls": b"5",
                "d.1/a.json": b'{"label": 7}',
                "b.jpg": b"1",
                "b.json": b'{"cls": 6}',
            },
        )
    assert read_labelled(tmp_path).classes == ("5", "6")


@pytest.mark.parametrize("cut", ["within a picture", "between members", "a header"])
def test_a_cut_shard_is_used_up_to_there_and_named(tmp_path, layouts, cut):
    root = layouts.shards(tmp_path / "shards", NUMBERS.get)
    whole = read_labelled(root)
    shard = root / "imagenet1k-train-0000.tar"
    with tarfile.open(shard) as tar:
        last = [info for info in tar.getmembers() if info.name.endswith(".jpg")][-1]
    data = shard.read_bytes()
    if cut == "a header":
        shard.write_bytes(data[: last.offset] + b"\xff" * 512 + data[last.offset + 512 :])
    else:
        shard.write_bytes(data[: last.offset_data + 100 if cut == "within a picture" else last.offset])
    (contents,) = read_archives(root, [shard])
    assert "ends too early" in contents.fault and len(contents.items) == len(contents.labels) == 3
    remember = tmp_path / "hashes.parquet"
    for _ in range(2):  # also where the index is remembered
        try:
            found = read_labelled(root, hashes=remember)
        except InputError as error:  # the class's only pictures were in the rest
            assert "differ" in str(error) and "1 skipped" in str(error)
        else:
            assert [name for name, _ in found.skipped] == [shard.name]
            assert len(found.train) == len(whole.train) - 1


def test_a_compressed_archive_is_named(tmp_path):
    with tarfile.open(tmp_path / "a-train-0.tar", "w:gz"):
        pass
    (contents,) = read_archives(tmp_path, [tmp_path / "a-train-0.tar"])
    assert contents.items == [] and "compressed" in contents.fault


def test_a_second_start_reads_no_header(tmp_path, layouts, monkeypatch):
    root, remember = layouts.archives(tmp_path / "archives"), tmp_path / "cache/hashes.parquet"
    remember.parent.mkdir()
    other = layouts.shards(tmp_path / "shards", NUMBERS.get)
    first, shards = read_labelled(root, hashes=remember), read_labelled(other, hashes=remember)
    walked = []
    walk = archives._walk
    monkeypatch.setattr(archives, "_walk", lambda root, path: walked.append(path.name) or walk(root, path))
    assert read_labelled(root, hashes=remember) == first and read_labelled(other, hashes=remember) == shards
    assert walked == []
    with open(root / "ILSVRC2012_img_val.tar", "ab") as file:
        file.write(b"\0" * 512)
    assert read_labelled(root, hashes=remember).hash == first.hash
    assert walked == ["ILSVRC2012_img_val.tar"]
    index = tmp_path / "cache/hashes-archives.parquet"
    index.write_bytes(b"?")
    with pytest.raises(InputError, match=r"hashes-archives\.parquet cannot be used"):
        read_labelled(root, hashes=remember)


def test_an_archive_that_shrinks_is_no_picture(tmp_path, layouts):
    data = read_labelled(layouts.archives(tmp_path / "archives"))
    path = data.test[0].path
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(OSError, match="the archive ends"):
        data.test[-1].open()
