"""The stored losses of Orhan 2022 on the stimuli of Brady et al. 2008, packed small: 306,000 rows in 1.3 MB.

Origin: Orhan, "Can deep learning match the efficiency of human visual long-term memory in storing object details?",
arXiv 2204.13061; github.com/eminorhan/igpt-memory at commit 899345eb, folder results/losses_on_test. Mean loss in nats
per pixel of a studied picture and of its foil, rounded to six decimals: two role-swapped study sets x two seeds, three
conditions of 100 pairs, after every exposure (none before study).

The packed file is xz: a line of JSON that says what is in it, then 32-bit integers in four byte planes (all low bytes
first). In millionths of a nat, what a loss changes from one exposure to the next is written as the median change of the
100 pairs and each pair's difference from it, signs folded into the lowest bit. What is left is noise of the losses.

    python tests/recognition_memory/igpt_brady.py LOSSES.csv.gz     packs the table anew
"""

import json
import lzma
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from headcam.recognition_memory.scoring.table import read_losses

PACKED = Path(__file__).with_name("igpt_brady_losses.xz")
ORIGIN = "Orhan 2022, arXiv 2204.13061, github.com/eminorhan/igpt-memory commit 899345eb; nats per pixel x 1e6"
CONDITIONS = ("novel", "exemplar", "state")
SETS, SEEDS, PAIRS = ("1", "2"), (0, 1), 100


def pack(frame: pd.DataFrame) -> bytes:
    """The packed file of a memory table in the order of its columns."""
    models, planes = [], []
    for (model, pretraining), rows in frame.groupby(["model", "pretraining"]):
        exposures = int(rows.exposures.max())
        rows = rows.assign(condition=pd.Categorical(rows.condition, CONDITIONS))
        rows = rows.sort_values(["study_set", "seed", "condition", "exposures", "pair"])
        losses = np.rint(rows[["loss_seen", "loss_unseen"]].to_numpy() * 1e6).astype(np.int64)
        changes = np.diff(losses.reshape(_shape(exposures)), axis=3, prepend=0)
        medians = np.median(changes, axis=4, keepdims=True).astype(np.int64)
        models.append([model, pretraining, exposures])
        planes += [medians.ravel(), (changes - medians).ravel()]
    values = np.concatenate(planes)
    folded = ((values << 1) ^ (values >> 63)).astype("<u4")
    header = json.dumps({"origin": ORIGIN, "models": models}) + "\n"
    return lzma.compress(
        header.encode() + folded.view(np.uint8).reshape(-1, 4).T.tobytes(), preset=9 | lzma.PRESET_EXTREME
    )


def unpack(packed: bytes) -> pd.DataFrame:
    """The table: columns of the memory table, sorted by model, pretraining, set, seed, condition, exposures, pair."""
    header, _, body = lzma.decompress(packed).partition(b"\n")
    folded = np.ascontiguousarray(np.frombuffer(body, np.uint8).reshape(4, -1).T).view("<u4").ravel().astype(np.int64)
    values = (folded >> 1) ^ -(folded & 1)
    frames = []
    for model, pretraining, exposures in json.loads(header)["models"]:
        shape = _shape(exposures)
        medians, values = np.split(values, [np.prod(shape) // PAIRS])
        changes, values = np.split(values, [np.prod(shape)])
        changes = changes.reshape(shape) + medians.reshape(*shape[:4], 1, 2)
        losses = changes.cumsum(axis=3).reshape(-1, 2) / 1e6
        index = pd.MultiIndex.from_product(
            [[model], [pretraining], SETS, SEEDS, CONDITIONS, range(1, exposures + 1), range(PAIRS)],
            names=["model", "pretraining", "study_set", "seed", "condition", "exposures", "pair"],
        )
        frames.append(index.to_frame(index=False).assign(loss_seen=losses[:, 0], loss_unseen=losses[:, 1]))
    return pd.concat(frames, ignore_index=True)


def _shape(exposures: int) -> tuple[int, ...]:
    return len(SETS), len(SEEDS), len(CONDITIONS), exposures, PAIRS, 2


if __name__ == "__main__":
    PACKED.write_bytes(pack(read_losses(sys.argv[1])))
