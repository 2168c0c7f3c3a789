"""Features: preprocessing against an independent statement, pooling, invariance to batches, and the cache."""

import errno
import json
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from headcam.errors import InputError, StorageError
from headcam.evaluation.features import growing
from headcam.evaluation.features.encoders import EncoderExtractor, PixelExtractor
from headcam.evaluation.features.extraction import extract
from headcam.evaluation.features.pictures import load_picture, resize_and_crop
from headcam.evaluation.labelled.sets import Picture, read_labelled
from headcam.evaluation.protocols import EncoderFeatures, PixelFeatures
from headcam.files import sha256_file

CARD = {"name": "fake", "img_size": [16, 16], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


class FakeEncoder(nn.Module):
    """Two prefix tokens and 16 patch tokens; batch normalisation would betray a model that is not in eval mode."""

    num_prefix_tokens = 2
    embed_dim = 5

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 5, 4, stride=4)
        self.norm = nn.BatchNorm1d(5)
        self.prefix = nn.Parameter(torch.zeros(2, 5))
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(torch.linspace(-1, 1, p.numel()).view(p.shape) * (i + 1) / 30)

    def forward_features(self, images):
        tokens = self.norm(self.patches(images).flatten(2)).transpose(1, 2)
        prefix = self.prefix + tokens[:, :1].mean(dim=(1, 2), keepdim=True)
        return torch.cat([prefix, tokens], dim=1)


@pytest.fixture
def pictures(tmp_path, write_pictures):
    return read_labelled(write_pictures(tmp_path / "labelled", {"a": 9, "b": 6})).train


def extractor(pool="avg"):
    return EncoderExtractor(FakeEncoder(), CARD, EncoderFeatures(pool=pool), "cpu")


@pytest.mark.parametrize("size", [(64, 64), (90, 61), (30, 200), (8, 9)])
def test_preprocessing_is_that_of_torchvision(size):
    """Resize(256/224 x size, bicubic) and CenterCrop(size) on PIL pictures, the usual evaluation transform."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    usual = v2.Compose([v2.Resize(37, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(32)])
    ours, theirs = resize_and_crop(image, (32, 32), 256 / 224), np.asarray(usual(image))
    assert ours.shape == (32, 32, 3)
    # torchvision truncates the long side where we round; that moves its grid by less than a pixel
    if size[0] == size[1]:
        assert np.array_equal(ours, theirs)
    else:
        assert np.abs(ours.astype(int).mean((0, 1)) - theirs.astype(int).mean((0, 1))).max() < 6


def test_image_sizes_need_not_be_square():
    image = Image.fromarray(np.zeros((50, 40, 3), dtype=np.uint8))
    assert resize_and_crop(image, (16, 48), 256 / 224).shape == (16, 48, 3)


@pytest.mark.parametrize("pool", ["avg", "cls"])
def test_values_are_those_of_one_picture_at_a_time(pictures, tmp_path, pool):
    encoder = FakeEncoder().eval()
    table = extract(extractor(pool), pictures, tmp_path / "cache", quiet=True)
    for row, picture in zip(table.values, pictures):
        pixels = resize_and_crop(Image.open(picture.path).convert("RGB"), (16, 16), 256 / 224) / 255.0
        image = torch.from_numpy((pixels - np.array(CARD["mean"])) / np.array(CARD["std"])).permute(2, 0, 1)[None]
        with torch.inference_mode():
            tokens = encoder.forward_features(image.float())[0]
        expected = tokens[2:].mean(dim=0) if pool == "avg" else tokens[0]
        assert row == pytest.approx(expected.numpy(), abs=3e-3)  # float16
    assert table.values.dtype == np.float16 and isinstance(table.values, np.memmap)
    assert not table.unreadable and table.readable.all()


def test_batch_size_does_not_matter(pictures, tmp_path):
    one, many = (
        extract(extractor(), pictures, tmp_path / str(size), batch_size=size, quiet=True).values for size in (1, 5)
    )
    assert one == pytest.approx(many, abs=2e-3)  # one step of float16 at values near 1


def test_the_mode_of_the_encoder_is_eval(pictures, tmp_path):
    encoder = FakeEncoder().train()
    before = encoder.norm.running_mean.clone()
    extract(EncoderExtractor(encoder, CARD, EncoderFeatures(), "cpu"), pictures, tmp_path, quiet=True)
    assert torch.equal(encoder.norm.running_mean, before)


def test_pixels_are_area_means(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    values = extract(PixelExtractor(PixelFeatures()), (picture(path),), tmp_path, quiet=True).values
    means = pixels.reshape(16, 4, 16, 2, 3).mean(axis=(1, 3)) / 255
    assert values.shape == (1, 768)
    assert values[0].reshape(16, 16, 3) == pytest.approx(means, abs=1.01 / 255 + 5e-4)  # rounded to 8 bits twice


def test_cache_is_used_again_until_something_changes(pictures, tmp_path, monkeypatch):
    first = extract(extractor(), pictures, tmp_path, quiet=True)
    assert sorted(p.suffix for p in tmp_path.iterdir() if p.is_file()) == [".json", ".npy"]
    written = first.file.stat().st_mtime_ns

    def fail(self, batch):
        raise AssertionError("features were computed again")

    with monkeypatch.context() as patch:
        patch.setattr(EncoderExtractor, "compute", fail)
        again = extract(extractor(), pictures, tmp_path, quiet=True)
    assert again.file == first.file and first.file.stat().st_mtime_ns == written

    other_weights = extractor()
    with torch.no_grad():
        other_weights.encoder.prefix[0, 0] += 1e-3
    other_card = EncoderExtractor(FakeEncoder(), CARD | {"std": [0.2, 0.3, 0.5]}, EncoderFeatures(), "cpu")
    changed = [
        extract(other_weights, pictures, tmp_path, quiet=True),
        extract(other_card, pictures, tmp_path, quiet=True),
        extract(extractor("cls"), pictures, tmp_path, quiet=True),
        extract(extractor(), pictures[::-1], tmp_path, quiet=True),
    ]
    assert len({table.file for table in [first, *changed]}) == 5
    assert np.array_equal(changed[-1].values[::-1], first.values)


class Stopping(PixelExtractor):
    """Is interrupted when it has given features for `after` pictures; counts them."""

    def __init__(self, after=None, wait_s=0.0):
        super().__init__(PixelFeatures(side=4))
        self.after, self.wait_s, self.computed = after, wait_s, 0

    def compute(self, batch):
        if self.after is not None and self.computed >= self.after:
            raise KeyboardInterrupt
        time.sleep(self.wait_s)
        self.computed += len(batch)
        return super().compute(batch)


def test_what_was_interrupted_goes_on_and_ends_with_the_same_bytes(pictures, tmp_path):
    pictures[2].path.write_bytes(b"no picture")
    whole = extract(Stopping(), pictures, tmp_path / "whole", batch_size=2, quiet=True)
    for after in (6, 0, 4):  # of 13 pictures, in steps of two, one of which cannot be read
        stopped = Stopping(after)
        with pytest.raises(KeyboardInterrupt):
            extract(stopped, pictures, tmp_path / "cache", batch_size=2, quiet=True)
        assert not list((tmp_path / "cache").glob("*.npy"))
    last = Stopping()
    table = extract(last, pictures, tmp_path / "cache", batch_size=2, quiet=True)
    assert last.computed == 1
    assert table.file.read_bytes() == whole.file.read_bytes()
    assert table.unreadable == whole.unreadable and list(table.unreadable) == [2]
    assert len(list((tmp_path / "cache").iterdir())) == 2  # nothing beside the table and what it holds


def test_what_a_killed_process_left_is_gone_on_with(pictures, tmp_path):
    """Killed at a moment when more had been written than was known to be on the disk."""
    script = f"""
import os, signal
from headcam.evaluation.features import extraction, growing
from headcam.evaluation.features.encoders import PixelExtractor
from headcam.evaluation.labelled.sets import read_labelled
from headcam.evaluation.protocols import PixelFeatures

class Killed(PixelExtractor):
    calls = 0
    def compute(self, batch):
        self.calls += 1
        growing._SECONDS_BETWEEN_SAVES = -1 if self.calls <= 3 else 1e9
        if self.calls == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().compute(batch)

pictures = read_labelled({str(tmp_path / "labelled")!r}).train
extraction.extract(Killed(PixelFeatures(side=4)), pictures, {str(tmp_path / "cache")!r}, batch_size=2, quiet=True)
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    second = Stopping()
    table = extract(second, pictures, tmp_path / "cache", batch_size=2, quiet=True)
    assert 0 < second.computed < len(pictures)
    whole = extract(Stopping(), pictures, tmp_path / "whole", batch_size=2, quiet=True)
    assert table.file.read_bytes() == whole.file.read_bytes()


def test_two_at_once_compute_it_once(pictures, tmp_path):
    """Locks are of open files, so threads compete for them as processes do."""
    both = [Stopping(wait_s=0.02), Stopping(wait_s=0.02)]
    with ThreadPoolExecutor(2) as pool:
        tables = list(pool.map(lambda e: extract(e, pictures, tmp_path / "cache", batch_size=2, quiet=True), both))
    assert sorted(e.computed for e in both) == [0, len(pictures)]
    assert tables[0].file == tables[1].file
    whole = extract(Stopping(), pictures, tmp_path / "whole", batch_size=2, quiet=True)
    assert tables[0].file.read_bytes() == whole.file.read_bytes()
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_full_disk_is_said_and_nothing_is_lost(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(growing, "_SECONDS_BETWEEN_SAVES", -1)
    flushed = []

    def fsync(handle):
        flushed.append(handle)
        if len(flushed) > 8:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(growing.os, "fsync", fsync)
        with pytest.raises(StorageError, match=r"\.npy could not be written: No space left on device"):
            extract(Stopping(), pictures, tmp_path / "cache", batch_size=2, quiet=True)
    second = Stopping()
    table = extract(second, pictures, tmp_path / "cache", batch_size=2, quiet=True)
    assert 0 < second.computed < len(pictures) and np.isfinite(table.values).all()


def test_a_damaged_cache_is_named(pictures, tmp_path):
    table = extract(extractor(), pictures, tmp_path, quiet=True)
    table.file.write_bytes(b"garbage")
    with pytest.raises(InputError, match=r"\.npy is damaged"):
        extract(extractor(), pictures, tmp_path, quiet=True)


def test_unreadable_pictures_are_named_and_the_others_unharmed(pictures, tmp_path):
    expected = extract(extractor(), pictures, tmp_path / "whole", quiet=True).values
    pictures[3].path.write_bytes(pictures[3].path.read_bytes()[:90])
    pictures[7].path.write_bytes(b"no picture at all")
    broken = tuple(picture(p.path, p.label) for p in pictures)
    for _ in range(2):  # computed, then from the cache
        table = extract(extractor(), broken, tmp_path / "broken", quiet=True)
        assert sorted(table.unreadable) == [3, 7]
        assert "cannot identify" in table.unreadable[7] and str(tmp_path) not in table.unreadable[7]
        assert np.flatnonzero(~table.readable).tolist() == [3, 7]
        assert np.array_equal(table.values[table.readable], expected[table.readable])


def test_no_readable_picture_at_all(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"garbage")
    with pytest.raises(InputError, match=r"none of the 1 pictures can be decoded; .*a\.png"):
        extract(extractor(), (picture(path),), tmp_path / "cache", quiet=True)
    assert not list((tmp_path / "cache").iterdir())


def test_more_than_a_share_unreadable_stops_the_run(tmp_path, write_pictures):
    pictures = read_labelled(write_pictures(tmp_path / "labelled", {"a": 50, "b": 50})).train  # 80
    for number, p in enumerate(pictures[:12]):
        p.path.write_bytes(b"broken %d" % number)
    first = extract(Stopping(), pictures[3:], tmp_path / "few", quiet=True)  # nine are unreadable: 11.7 %, and few
    assert len(first.unreadable) == 9
    with pytest.raises(InputError, match=r"12 of the first \d+ pictures \(of 80\) cannot be decoded") as caught:
        extract(Stopping(), pictures, tmp_path / "cache", quiet=True)
    assert "1.00% of all" in str(caught.value) and str(caught.value).count("cannot identify") == 3
    assert pictures[0].name in str(caught.value)
    assert not list((tmp_path / "cache").iterdir())  # what is mended will be looked at again
    allowed = extract(Stopping(), pictures, tmp_path / "cache", quiet=True, share_unreadable=0.15)
    assert len(allowed.unreadable) == 12


def test_a_picture_that_is_gone_is_not_held_against_its_content(pictures, tmp_path):
    kept = pictures[6].path.read_bytes()
    pictures[6].path.unlink()
    with pytest.raises(InputError, match=rf"{pictures[6].path.name} is gone"):
        extract(Stopping(), pictures, tmp_path / "cache", batch_size=2, quiet=True)
    pictures[6].path.write_bytes(kept)
    second = Stopping()
    assert not extract(second, pictures, tmp_path / "cache", batch_size=2, quiet=True).unreadable
    assert second.computed < len(pictures)


@pytest.mark.parametrize("value, said", [(0.0, "are zeros"), (0.3, "are the same for all of them")])
def test_an_encoder_that_says_nothing(pictures, tmp_path, value, said):
    dead = extractor()
    with torch.no_grad():
        dead.encoder.norm.weight.zero_()
        dead.encoder.norm.bias.fill_(value)
    with pytest.raises(InputError, match=f"features of the first 13 pictures {said}"):
        extract(dead, pictures, tmp_path / "cache", quiet=True)
    assert not list((tmp_path / "cache").iterdir())
    assert extract(dead, pictures[:1], tmp_path / "cache", quiet=True).values.shape == (1, 5)


def test_members_of_an_archive_are_read_by_offset(pictures, tmp_path):
    expected = extract(extractor(), pictures, tmp_path / "files", quiet=True).values
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        for p in pictures:
            archive.add(p.path, p.name)
    with tarfile.open(tmp_path / "all.tar") as archive:
        members = [archive.getmember(p.name) for p in pictures]
    inside = tuple(
        replace(p, root=tmp_path, name=f"all.tar/{p.name}", archive="all.tar", offset=m.offset_data, length=m.size)
        for p, m in zip(pictures, members)
    )
    assert np.array_equal(extract(extractor(), inside, tmp_path / "members", quiet=True).values, expected)


def test_features_that_are_not_finite(pictures, tmp_path):
    diverged = extractor()
    with torch.no_grad():
        diverged.encoder.patches.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        extract(diverged, pictures, tmp_path, quiet=True)


def test_the_class_token_of_an_encoder_without_one():
    encoder = FakeEncoder()
    encoder.num_prefix_tokens = 0
    with pytest.raises(InputError, match="fake has no class token"):
        EncoderExtractor(encoder, CARD, EncoderFeatures(pool="cls"), "cpu")


def test_all_kinds_of_pictures_become_rgb(tmp_path):
    grey = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
    kinds = {
        "grey.png": Image.fromarray(grey),
        "deep.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "alpha.png": Image.fromarray(np.dstack([grey] * 3 + [grey])),
        "palette.gif": Image.fromarray(grey).convert("P"),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
        loaded = load_picture(tmp_path / name)
        assert loaded.mode == "RGB"
        assert np.array_equal(np.asarray(loaded), np.dstack([grey] * 3)), name


def test_the_cache_says_what_it_holds(pictures, tmp_path):
    table = extract(extractor(), pictures, tmp_path, quiet=True)
    about = json.loads(table.file.with_suffix(".json").read_text())
    assert (about["contract"], about["version"], about["shape"]) == ("features", 2, [len(pictures), 5])
    assert about["protocol"]["pool"] == "avg"


def picture(path: Path, label: int = 0) -> Picture:
    return Picture(path.parent, path.name, label, sha256_file(path))
