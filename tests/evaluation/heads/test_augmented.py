"""The probe with augmentation: views through the frozen encoder, statistics and choice on the pictures as they are."""

import numpy as np
import pytest
import torch

from headcam.evaluation.features.augmented import AugmentedPictures
from headcam.evaluation.features.encoders import EncoderExtractor, load_frozen
from headcam.evaluation.features.extraction import extract
from headcam.evaluation.heads.augmented import AugmentedRows, augmented_linear_probe
from headcam.evaluation.heads.linear import in_top, linear_probe
from headcam.evaluation.heads.normalisation import Moments, Normalisation
from headcam.evaluation.labelled.sets import labels_of, read_labelled, selection_mask
from headcam.evaluation.protocols import EncoderFeatures, LinearProbe

PROTOCOL = LinearProbe(epochs=4, base_lr_per_256=(0.1, 1.0), batch_size=8, augmentation="crop and flip")


@pytest.fixture
def material(tmp_path, write_pictures, checkpoint):
    """A small encoder, a labelled set of five colours, and cached features of its pictures."""
    classes = {f"class{k}": 8 for k in range(5)}
    write_pictures(tmp_path / "set" / "train", classes)
    write_pictures(tmp_path / "set" / "val", classes, first=100)
    data = read_labelled(tmp_path / "set")
    extractor = EncoderExtractor(*load_frozen(checkpoint), EncoderFeatures(), "cpu")
    tables = [extract(extractor, part, tmp_path / "cache", quiet=True).values for part in (data.train, data.test)]
    return data, extractor, *tables


def test_views_reach_the_head_in_order_and_once(material):
    data, extractor, train, _ = material
    labels, rows = labels_of(data.train), np.flatnonzero(~selection_mask(labels_of(data.train)))
    norm = Normalisation.of(Moments.of(train, np.arange(len(train)), products=False), PROTOCOL)
    views = AugmentedPictures(data.train, (32, 32), seed=5)
    batches = AugmentedRows(views, extractor, labels, rows, norm, batch_size=8, seed=5)
    epoch = list(batches.batches(1))
    assert len(epoch) == batches.steps == 5 and sum(len(x) for x, _ in epoch) == len(rows) == 35
    expected = extractor.compute(views.batch(rows, 1).permute(0, 2, 3, 1).numpy())
    found, truth = torch.cat([x for x, _ in epoch]), torch.cat([y for _, y in epoch])
    distance = torch.cdist(found, norm(expected), compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distance.argmin(dim=1)
    assert distance.amin(dim=1).max() < 1e-3 and sorted(nearest.tolist()) == list(range(35))
    assert truth.tolist() == labels[rows][nearest].tolist()
    other = torch.cat([x for x, _ in batches.batches(2)])
    assert not torch.allclose(other.sum(dim=0), found.sum(dim=0), atol=1e-3)  # other views in another epoch


def test_it_learns_and_says_the_same_again(material):
    data, extractor, train, test = material
    labels, truth = labels_of(data.train), torch.from_numpy(labels_of(data.test))
    given = (extractor, data.train, train, labels, selection_mask(labels), test, 5, PROTOCOL)
    found = augmented_linear_probe(*given, seed=0, quiet=True)
    assert in_top(found.logits, truth, 1).double().mean() > 0.5  # chance is 0.2
    assert not extractor.encoder.training
    again = augmented_linear_probe(*given, seed=0, quiet=True)
    assert torch.equal(found.logits, again.logits) and found.selection_top1 == again.selection_top1
    assert not torch.equal(found.logits, augmented_linear_probe(*given, seed=1, quiet=True).logits)
    cached = linear_probe(train, labels, selection_mask(labels), test, 5, PROTOCOL, seed=0, quiet=True)
    assert torch.equal(found.head.normalisation.mean, cached.head.normalisation.mean)  # of the pictures as they are
    assert not torch.allclose(found.logits, cached.logits, atol=1e-2)
