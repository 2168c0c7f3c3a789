"""One small labelled set in every layout that ImageNet comes in; all hold the same bytes."""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

WNIDS = ("n02012849", "n01440764", "n03126707")  # not in their sorted order; two of them are cranes
_IDS = (3, 2, 1)  # ILSVRC2012_ID of each: neither this order nor the sorted one
_INNER = 1001  # a node of WordNet's tree that is no class


@dataclass(frozen=True)
class Layouts:
    """Writes the set below `root` in a layout; `train` and `test` are (wnid, bytes) of all pictures."""

    train: tuple[tuple[str, bytes], ...]
    test: tuple[tuple[str, bytes], ...]

    def folders(self, root: Path) -> Path:
        self.training_folders(root / "train")
        for i, (wnid, data) in enumerate(self.test):
            _put(root / "val" / wnid / f"{i}.JPEG", data)
        return root

    def training_folders(self, folder: Path, below: str = "") -> None:
        for i, (wnid, data) in enumerate(self.train):
            _put(folder / wnid / below / f"{wnid}_{i}.JPEG", data)

    def flat(self, root: Path, kit: str = "folder") -> Path:
        """`train/<wnid>/*`, flat `val/*`, and the development kit as a folder or as an archive."""
        self.training_folders(root / "train")
        for i, (_, data) in enumerate(self.test, 1):
            _put(root / f"val/ILSVRC2012_val_{i:08d}.JPEG", data)
        self.kit(root, kit)
        return root

    def kit(self, root: Path, kind: str = "folder", lines: str | None = None) -> None:
        identity = dict(zip(WNIDS, _IDS))
        fields = ("ILSVRC2012_ID", "WNID", "words", "num_children")
        rows = [(i, w, "words", 0) for i, w in sorted(zip(_IDS, WNIDS))] + [(_INNER, "n00001740", "entity", 3)]
        synsets = np.array(rows, dtype=[(name, object) for name in fields]).reshape(-1, 1)
        meta = io.BytesIO()
        savemat(meta, {"synsets": synsets})
        truth = "".join(f"{identity[wnid]}\n" for wnid, _ in self.test) if lines is None else lines
        files = {"meta.mat": meta.getvalue(), "ILSVRC2012_validation_ground_truth.txt": truth.encode()}
        for name, data in files.items():
            if kind == "folder":
                _put(root / "ILSVRC2012_devkit_t12/data" / name, data)
        if kind == "archive":
            root.mkdir(parents=True, exist_ok=True)
            with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
                write_tar(tar, {f"ILSVRC2012_devkit_t12/data/{name}": data for name, data in files.items()})

    def kaggle(self, root: Path) -> Path:
        base = root / "ILSVRC/Data/CLS-LOC"
        self.training_folders(base / "train")
        rows = [("ImageId", "PredictionString")]
        for i, (wnid, data) in enumerate(self.test, 1):
            _put(base / f"val/ILSVRC2012_val_{i:08d}.JPEG", data)
            _put(base / f"test/ILSVRC2012_test_{i:08d}.JPEG", b"of no class")
            rows.append((f"ILSVRC2012_val_{i:08d}", f"{wnid} 1 2 3 4 {wnid} 5 6 7 8 "))
        with open(root / "LOC_val_solution.csv", "w", newline="") as file:
            csv.writer(file).writerows([rows[0], *reversed(rows[1:])])
        return root

    def archives(self, root: Path) -> Path:
        """The original archives: a tar of one tar a class, a flat tar, the kit."""
        root.mkdir(parents=True)
        with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as outer:
            for wnid in WNIDS:
                inner = io.BytesIO()
                with tarfile.open(fileobj=inner, mode="w") as tar:
                    own = [(i, data) for i, (of, data) in enumerate(self.train) if of == wnid]
                    write_tar(tar, {f"{wnid}_{i}.JPEG": data for i, data in own})
                write_tar(outer, {f"{wnid}.tar": inner.getvalue()})
        with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as tar:
            write_tar(tar, {f"ILSVRC2012_val_{i:08d}.JPEG": data for i, (_, data) in enumerate(self.test, 1)})
        self.kit(root, "archive")
        return root

    def tiny(self, root: Path) -> Path:
        self.training_folders(root / "train", below="images")
        for wnid in WNIDS:
            _put(root / f"train/{wnid}/{wnid}_boxes.txt", b"")
        lines = []
        for i, (wnid, data) in enumerate(self.test):
            _put(root / f"val/images/val_{i}.JPEG", data)
            _put(root / f"test/images/test_{i}.JPEG", b"of no class")
            lines.append(f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n")
        _put(root / "val/val_annotations.txt", "".join(lines).encode())
        _put(root / "wnids.txt", WNIDS[0].encode())
        return root

    def shards(self, root: Path, name_of: Callable[[str], str], json_labels: bool = False) -> Path:
        """Two shards of each part; `name_of`: what a sample says its class is."""
        root.mkdir(parents=True)
        for part, pictures in (("train", self.train), ("validation", self.test)):
            for shard in range(2):
                with tarfile.open(root / f"imagenet1k-{part}-{shard:04d}.tar", "w") as tar:
                    for i, (wnid, data) in list(enumerate(pictures))[shard::2]:
                        label = name_of(wnid)
                        text = {"json": json.dumps({"label": int(label)})} if json_labels else {"cls": label}
                        write_tar(tar, {f"{wnid}_{i}.jpg": data})
                        write_tar(tar, {f"{wnid}_{i}.{suffix}": value.encode() for suffix, value in text.items()})
        return root


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_tar(tar: tarfile.TarFile, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def layouts(tmp_path_factory, write_pictures) -> Iterator[Layouts]:
    folder = tmp_path_factory.mktemp("bytes")
    write_pictures(folder / "train", dict(zip(WNIDS, (3, 2, 2))))
    write_pictures(folder / "val", dict(zip(WNIDS, (2, 1, 2))), first=50)
    parts = []
    for part in ("train", "val"):
        found = [(p.parent.name, p.read_bytes()) for p in (folder / part).rglob("*.png")]
        parts.append(tuple(sorted(found, key=lambda pair: pair[1])))  # classes mixed, as in the flat layouts
    return Layouts(*parts)
