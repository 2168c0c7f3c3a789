"""Tables of single test pictures are read as they were written, and others are refused."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from headcam.errors import InputError
from headcam.evaluation.labelled.sets import LabelledSet, Picture
from headcam.evaluation.scoring.guesses import guesses
from headcam.evaluation.scoring.items import ITEMS, read_items, write_items


@pytest.fixture
def written(tmp_path):
    test = tuple(Picture(root=Path("x"), name=f"val/{k}.png", label=k % 3, sha256=f"{k:064x}") for k in range(7))
    data = LabelledSet("set", ("a", "b", "c"), test, test, "folders", (), titles=("A", "B", "C"))
    labels = np.array([p.label for p in test])
    generator = torch.Generator().manual_seed(0)
    found = {
        (model, stem): guesses(torch.randn(7, 3, generator=generator), labels)
        for model in ("m", "m (random weights)")
        for stem in ("linear", "fewshot/draw0")
    }
    write_items(tmp_path, data, test, found)
    return tmp_path, test, found


def test_round_trip(written):
    folder, test, found = written
    items = read_items(folder)
    assert items.names == tuple(p.name for p in test) and items.sha256 == tuple(p.sha256 for p in test)
    assert items.labels.tolist() == [p.label for p in test]
    assert (items.classes, items.titles) == (("a", "b", "c"), ("A", "B", "C"))
    assert list(items.guesses) == list(found)
    for key, guess in found.items():
        for name in ("rank", "top", "p"):
            assert np.array_equal(getattr(items.guesses[key], name), getattr(guess, name))


def test_plain_pandas_reads_it(written):
    folder, _, found = written
    table = pq.read_table(folder / ITEMS).to_pandas()
    own = table[(table.model == "m") & (table.stem == "linear")]
    assert (own["rank"] == 1).sum() == found["m", "linear"].right(1).sum()


def test_what_cannot_be_read(written, tmp_path):
    folder, _, _ = written
    (folder / ITEMS).write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot be read"):
        read_items(folder)
    with pytest.raises(InputError, match="cannot be read"):
        read_items(tmp_path / "nothing")
    table = pq.read_table(folder / "pictures.parquet").replace_schema_metadata({"headcam": '{"contract": "items/0"}'})
    for name in ("pictures.parquet", ITEMS):
        pq.write_table(table, folder / name)
    with pytest.raises(InputError, match="contract items/0"):
        read_items(folder)
