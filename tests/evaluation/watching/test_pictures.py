"""Labelled pictures of an online probe: which, in which order, kept or decoded anew, and what cannot be read."""

import numpy as np
import pytest

from headcam.errors import InputError
from headcam.evaluation.features.encoders import PixelExtractor
from headcam.evaluation.features.extraction import extract
from headcam.evaluation.labelled.sets import labels_of, read_labelled
from headcam.evaluation.protocols import PixelFeatures
from headcam.evaluation.watching import pictures as module
from headcam.evaluation.watching.pictures import PreparedPictures, first_of_each_class

PIXELS = PixelExtractor(PixelFeatures(side=4))


@pytest.fixture
def data(tmp_path, write_pictures):
    write_pictures(tmp_path / "set" / "train", {"a": 9, "b": 4})
    write_pictures(tmp_path / "set" / "val", {"a": 2, "b": 2}, first=100)
    return read_labelled(tmp_path / "set")


def test_the_first_of_each_class_in_the_order_of_the_set(data):
    found = first_of_each_class(data.train, 3)
    assert labels_of(found).tolist() == [0, 0, 0, 1, 1, 1]
    assert found[:3] == data.train[:3] and found[3:] == data.train[9:12]
    assert first_of_each_class(data.train, None) == data.train


@pytest.mark.parametrize("kept_bytes", [1 << 20, 0])
def test_features_are_those_of_the_cache_whether_pictures_are_kept_or_decoded_anew(
    data, tmp_path, kept_bytes, monkeypatch
):
    monkeypatch.setattr(module, "_BATCH", 5)
    prepared = PreparedPictures(data.train, PIXELS.prepare, kept_bytes)
    expected = extract(PIXELS, data.train, tmp_path / "cache", quiet=True).values
    for _ in range(2):
        found = prepared.features(PIXELS)
        assert found.dtype == np.float16 and np.array_equal(found, expected)
    data.train[0].path.unlink()  # only who decodes anew needs the files
    if kept_bytes:
        assert np.array_equal(prepared.features(PIXELS), expected)
    else:
        with pytest.raises(InputError, match="cannot any more"):
            prepared.features(PIXELS)


def test_pictures_that_cannot_be_read_are_named_and_left_out(data):
    broken = data.train[3]
    broken.path.write_bytes(b"no picture")
    prepared = PreparedPictures(data.train, PIXELS.prepare)
    assert prepared.pictures == (*data.train[:3], *data.train[4:])
    assert prepared.labels.tolist() == [0] * 8 + [1] * 4
    [(name, reason)] = prepared.unreadable
    assert name == broken.name and "UnidentifiedImageError" in reason
    assert len(prepared.features(PIXELS)) == 12


def test_a_class_without_a_picture_is_an_error(data):
    for picture in data.train:
        if picture.label == 1:
            picture.path.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"not one picture of 1 classes can be decoded; .*b/"):
        PreparedPictures(data.train, PIXELS.prepare)
