"""What was said of every single test picture, as tables that other tools read.

    items.parquet      a row for each model, measurement and test picture: rank of the true class, the best classes, p
    pictures.parquet   a row for each test picture: its name, hash and class
    per_class.csv      a row for each model, measurement and class: accuracy with its interval

Two models are compared on the pictures that both were tested on, matched by hash: that is what paired differences,
confusions and error consistency need, and scores alone cannot give.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headcam.errors import InputError
from headcam.evaluation.labelled.sets import LabelledSet, Picture
from headcam.evaluation.scoring.guesses import Guesses
from headcam.files import atomic_file

CONTRACT = "items/1"
ITEMS, PICTURES = "items.parquet", "pictures.parquet"


@dataclass(frozen=True)
class Items:
    """What `read_items` found.

    Attributes:
        guesses: (model, stem) -> what was said of the test pictures; a stem is a metric without its `/top1`.
        names, sha256: of the n test pictures; labels: (n,) int64.
        classes: their names; titles: readable ones, or empty.
    """

    guesses: dict[tuple[str, str], Guesses]
    names: tuple[str, ...]
    sha256: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    titles: tuple[str, ...]


def write_items(
    folder: str | os.PathLike,
    data: LabelledSet,
    test: Sequence[Picture],
    found: dict[tuple[str, str], Guesses],
) -> None:
    """Write `items.parquet` and `pictures.parquet` into `folder`, each whole or not at all."""
    folder = Path(folder)
    about = {"contract": CONTRACT, "data": data.identity, "classes": list(data.classes), "titles": list(data.titles)}
    metadata = {"headcam": json.dumps(about)}
    pictures = pa.table(
        {
            "picture": pa.array(range(len(test)), pa.int32()),
            "name": [p.name for p in test],
            "sha256": [p.sha256 for p in test],
            "label": pa.array([p.label for p in test], pa.int32()),
        }
    ).replace_schema_metadata(metadata)
    with atomic_file(folder / PICTURES) as file:
        pq.write_table(pictures, file, compression="zstd")

    schema = pa.schema(
        [
            ("model", pa.dictionary(pa.int32(), pa.string())),
            ("stem", pa.dictionary(pa.int32(), pa.string())),
            ("picture", pa.int32()),
            ("label", pa.int32()),
            ("rank", pa.int32()),
            ("top", pa.list_(pa.int32())),
            ("p", pa.float32()),
        ],
        metadata=metadata,
    )
    labels = np.array([p.label for p in test], dtype=np.int32)
    with atomic_file(folder / ITEMS) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for (model, stem), guess in found.items():
            n, width = guess.top.shape
            top = pa.ListArray.from_arrays(
                pa.array(np.arange(n + 1, dtype=np.int32) * width), pa.array(guess.top.ravel())
            )
            columns = [
                pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([model])),
                pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([stem])),
                pa.array(np.arange(n, dtype=np.int32)),
                pa.array(labels),
                pa.array(guess.rank),
                top,
                pa.array(guess.p),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def read_items(folder: str | os.PathLike) -> Items:
    """Read what `write_items` wrote.

    Raises:
        InputError: a file is missing or damaged, or follows another contract.
    """
    folder = Path(folder)
    try:
        pictures, items = (pq.read_table(folder / name) for name in (PICTURES, ITEMS))
        about = json.loads(pictures.schema.metadata[b"headcam"])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the items of {folder} cannot be read: {' '.join(str(error).split())}",
            "give a folder that headcam probe wrote, or run it again",
        ) from error
    if about.get("contract") != CONTRACT:
        raise InputError(
            f"{folder / ITEMS} follows contract {about.get('contract')}, and this version reads {CONTRACT}",
            "probe again with this version of headcam",
        )
    n = pictures.num_rows
    rank, p = (items[name].to_numpy() for name in ("rank", "p"))
    top = items["top"].combine_chunks().flatten().to_numpy().reshape(items.num_rows, -1)
    found = {}
    for start in range(0, items.num_rows, n):
        rows = slice(start, start + n)
        found[items["model"][start].as_py(), items["stem"][start].as_py()] = Guesses(rank[rows], top[rows], p[rows])
    return Items(
        found,
        tuple(pictures["name"].to_pylist()),
        tuple(pictures["sha256"].to_pylist()),
        pictures["label"].to_numpy().astype(np.int64),
        tuple(about["classes"]),
        tuple(about["titles"]),
    )
