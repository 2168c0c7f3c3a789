"""The data module: batches follow from the step, errors arrive whole from workers, bad sources are named."""

import shutil
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from headcam.errors import InputError
from headcam.video.data_module import FrameDataModule, StepSampler, TimedLoader
from headcam.video.index import index
from headcam.video.quarantine import quarantine_path, write_quarantine
from headcam.video.recordings import read_recordings, recordings_hash
from headcam.video.sampling.manifest import Manifest
from headcam.video.sampling.subset import subset
from headcam.video.stores.frame_store import FrameStore, store


def module(stores, step=0, rank=0, world_size=1, accumulate=1, num_patches=16, **settings) -> FrameDataModule:
    """A data module beside a trainer that stands at `step`."""
    usual = {"train": [str(stores[0])], "val": [str(stores[1])], "batch_size": 4, "num_workers": 0}
    data = FrameDataModule(**(usual | settings))
    data.trainer = SimpleNamespace(
        lightning_module=SimpleNamespace(img_size=(32, 32), num_patches=num_patches),
        global_step=step,
        global_rank=rank,
        world_size=world_size,
        accumulate_grad_batches=accumulate,
    )
    data.setup("fit")
    return data


def noises(batches) -> list[tuple[float, ...]]:
    """What identifies a sample."""
    return [tuple(row) for batch in batches for row in batch["noise"].tolist()]


def test_a_loader_that_starts_at_a_step_goes_on_as_one_that_never_stopped(stores):
    straight = list(islice(module(stores).train_dataloader(), 30))  # 40 frames, 4 a batch: three epochs
    resumed = list(islice(module(stores, step=13).train_dataloader(), 17))
    for a, b in zip(straight[13:], resumed, strict=True):
        assert torch.equal(a["image"], b["image"]) and torch.equal(a["noise"], b["noise"])
    assert a["image"].shape == (4, 3, 32, 32) and a["image"].dtype == torch.uint8


def test_two_processes_share_the_global_batches_of_one(stores):
    one = noises(islice(module(stores, step=3, batch_size=8).train_dataloader(), 5))
    two = [noises(islice(module(stores, step=3, rank=rank, world_size=2).train_dataloader(), 5)) for rank in range(2)]
    for k in range(5):
        assert one[8 * k : 8 * k + 8] == [*two[0][4 * k : 4 * k + 4], *two[1][4 * k : 4 * k + 4]]


def test_accumulation_counts_micro_steps():
    assert list(islice(StepSampler(2, 0, 1, lambda: 3 * 2), 2)) == [[12, 13], [14, 15]]


def test_validation_is_split_over_processes_without_padding_and_free_of_the_seed(stores):
    alone = noises(module(stores).val_dataloader())
    assert len(alone) == 10 and len(set(alone)) == 10
    split = [noises(module(stores, rank=rank, world_size=3, seed=5).val_dataloader()) for rank in range(3)]
    assert [len(part) for part in split] == [4, 3, 3]
    assert sorted(chain(*split)) == sorted(alone)


@pytest.fixture
def torn_store(stores, tmp_path):
    """The store of 40 pictures with the data of five of them overwritten."""
    folder = shutil.copytree(stores[0], tmp_path / "torn")
    frames = FrameStore(folder)
    for k in range(0, 40, 8):
        with open(folder / f"frames-{frames.shard[k]:06d}.tar", "r+b") as file:
            file.seek(int(frames.offset[k]))
            file.write(bytes(int(frames.length[k])))
    return folder


def test_workers_are_forked_safely_from_a_process_in_which_opencv_has_threads(stores):
    """A forked process in which OpenCV is told to use another number of threads waits for ever for its parent's."""
    cv2.setNumThreads(2)
    cv2.GaussianBlur(np.zeros((1000, 1000, 3), np.uint8), (9, 9), 2)  # starts the threads
    loader = module(stores, num_workers=1).train_dataloader()
    loader.timeout = 60
    assert next(iter(loader))["image"].shape == (4, 3, 32, 32)


def test_what_was_replaced_is_collected_the_same_from_any_number_of_workers(stores, torn_store):
    found = []
    for workers in (0, 1):
        loader = module(stores, train=[str(torn_store)], num_workers=workers).train_dataloader()
        batches = list(islice(loader, 20))
        assert all(set(batch) == {"image", "noise"} for batch in batches)
        undecoded = sorted(replace(u, reason=u.reason.split(":")[0]) for u in loader.undecoded if u.sample < 80)
        found.append((undecoded, noises(batches)))
    assert found[0] == found[1]
    own = [u for u in found[0][0] if u.attempt == 0]
    assert len(own) == 10 and len({u.recording for u in own}) == 5  # two epochs
    assert all("could not be decoded" in u.reason for u in own)


def manifest_of(store, tmp_path, positions) -> str:
    ids = [FrameStore(store).recordings[k] for k in positions]
    manifest = Manifest(seconds=dict.fromkeys(ids, 0.0), stretches=dict.fromkeys(ids, ((0.0, 0.0),)), name="some")
    manifest.write(tmp_path / f"{len(ids)}.json")
    return str(tmp_path / f"{len(ids)}.json")


def test_a_manifest_restricts_training_and_another_validation(stores, tmp_path, capsys):
    one, other = manifest_of(stores[0], tmp_path, range(5)), manifest_of(stores[0], tmp_path, range(5, 13))
    data = module(stores, val=[str(stores[0])], manifest=one, val_manifest=other)
    assert data.plan.units.recordings == FrameStore(stores[0]).recordings[:5]
    assert data.val_data.source.units.recordings == FrameStore(stores[0]).recordings[5:13]
    assert data.manifest.parent == Manifest.read(one).hash and len(data.manifest.frames) == 5
    assert data.manifest.name == "some" and data.manifest.settings["absent"] == {"recordings": 0, "hours": 0}
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match=r"5 recordings stand in data\.train and in data\.val"):
        module(stores, val=[str(stores[0])], manifest=one)


def test_recordings_of_a_manifest_that_the_data_lack_are_said(stores, tmp_path, capsys):
    part = module(stores, train=[str(stores[0])], manifest=_with_another(stores, tmp_path))
    assert "headcam: 1 recordings (0.50 h) of " in capsys.readouterr().err
    assert part.manifest.settings["absent"] == {"recordings": 1, "hours": 0.5}
    with pytest.raises(InputError, match=r"data\.val holds nothing of manifest 'some'"):
        module(stores, val_manifest=manifest_of(stores[0], tmp_path, range(3)))
    Manifest.of(part.plan.units).write(tmp_path / "data.json")
    with pytest.raises(InputError, match=r"data\.json is a run's account of its data"):
        module(stores, manifest=str(tmp_path / "data.json"))


def _with_another(stores, tmp_path) -> str:
    known = FrameStore(stores[0]).recordings[0]
    stretches = {known: ((0.0, 0.0),), "x": ((0.0, 1800.0),)}
    Manifest(seconds={known: 0.0, "x": 1800.0}, stretches=stretches).write(tmp_path / "more.json")
    return str(tmp_path / "more.json")


def test_the_account_of_the_data_says_where_it_is_from_and_whether_it_was_scanned(stores):
    data, metadata = module(stores), FrameStore(stores[0]).metadata
    assert data.manifest.recordings_hash == metadata["recordings_hash"] and data.manifest.quarantine_hash is None
    assert data.manifest.settings["data"] == [{"recordings_hash": metadata["recordings_hash"], "quarantine_hash": None}]
    assert data.manifest.settings["sources"] == {"train": {"hours": 0.0, "units": 40}}
    both = module(stores, train=[str(stores[0]), str(stores[1])], val=None)
    assert both.manifest.settings["sources"] == {k: {"hours": 0.0, "units": n} for k, n in (("train", 40), ("val", 10))}
    assert len(both.manifest.settings["data"]) == 2 and both.manifest.recordings_hash is None


@pytest.fixture(scope="module")
def index_of_video(tmp_path_factory, write_video) -> Path:
    """The index of a recording of 4 s that was never scanned."""
    folder = tmp_path_factory.mktemp("unscanned")
    (folder / "videos").mkdir()
    write_video(folder / "videos" / "a.mp4")
    index(folder / "videos", folder / "recordings.parquet", processes=1, quiet=True)
    return folder / "recordings.parquet"


def _with_another_video(index_of_video: Path, tmp_path: Path) -> Path:
    """The index of a copy that an empty box at its end makes another recording."""
    (tmp_path / "more").mkdir()
    padded = (index_of_video.parent / "videos" / "a.mp4").read_bytes() + b"\0\0\0\x08free"
    (tmp_path / "more" / "b.mp4").write_bytes(padded)
    index(tmp_path / "more", tmp_path / "more.parquet", processes=1, quiet=True)
    return tmp_path / "more.parquet"


def test_training_on_what_was_never_scanned_is_said_once(stores, index_of_video, tmp_path, capsys):
    def said(*train, **how) -> str:
        module(stores, train=[*map(str, train)], **how)
        return capsys.readouterr().err

    def line(what: str, fix: str) -> str:
        return f"headcam: not verified: no scan was used for {what} ({fix})\n"

    assert said(index_of_video) == line(f"{index_of_video}", f"headcam scan {index_of_video}")
    assert said(index_of_video, rank=1, world_size=2) == "", "one process speaks"
    assert said(stores[0]) == "", "pictures without time"
    assert said(stores[0], index_of_video) == said(index_of_video), "names the video, not the pictures"
    store(index_of_video, tmp_path / "store", processes=1, quiet=True)
    assert said(tmp_path / "store") == line(
        f"{tmp_path / 'store'}", "headcam scan recordings.parquet, then store in a new folder"
    )

    both = said(tmp_path / "store", _with_another_video(index_of_video, tmp_path))
    assert both.count("\n") == 1 and f"for {tmp_path / 'store'} and 1 more of data.train (" in both

    subset(index_of_video, tmp_path / "unverified", fractions=[1.0])
    scanned = shutil.copytree(index_of_video.parent, tmp_path / "scanned") / "recordings.parquet"
    write_quarantine([], quarantine_path(scanned), recordings_hash(read_recordings(scanned)), {})
    subset(scanned, tmp_path / "verified", fractions=[1.0])
    file = "stratified-100pct-seed0.json"
    assert said(index_of_video, manifest=str(tmp_path / "unverified" / file)) == said(index_of_video)
    assert said(index_of_video, manifest=str(tmp_path / "verified" / file)) == "", "its seconds were"
    assert said(scanned, manifest=str(tmp_path / "unverified" / file)) == ""
    assert said(scanned) == ""


class Failing(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> int:
        if i == 2:
            raise InputError("picture 2 is broken", "mend it")
        return i


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_ours_arrives_as_it_was_raised(workers):
    loader = TimedLoader(Failing(), batch_size=2, num_workers=workers)
    with pytest.raises(InputError) as error:
        list(loader)
    assert str(error.value) == "picture 2 is broken. Fix: mend it"


def test_a_loader_counts_the_seconds_that_it_was_waited_for():
    loader = TimedLoader(range(4), batch_size=2)
    assert loader.wait_seconds == 0.0
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3]]
    assert loader.wait_seconds > 0


def test_recordings_on_both_sides_are_refused(stores):
    data = FrameDataModule([str(stores[0])], [str(stores[0])], num_workers=0)
    data.trainer = module(stores).trainer
    with pytest.raises(InputError, match=r"40 recordings stand in data.train and in data.val, first [0-9a-f]{16}"):
        data.setup("fit")


@pytest.mark.parametrize(
    "change, telling",
    [
        ({"train": []}, "names no source"),
        ({"train": ["nowhere"]}, "nowhere does not exist. Fix: make a frame store"),
        ({"val": ["nowhere"]}, "nowhere does not exist"),
        ({"scale": (0.0, 1.0)}, "crop scale"),
        ({"flip": 2.0}, "flip is 2.0"),
        ({"batch_size": 0}, "data.batch_size is 0"),
        ({"num_workers": -1}, "data.num_workers is -1"),
        ({"max_replaced": 1.5}, "data.max_replaced is 1.5, no share"),
        ({"max_replaced": float("nan")}, "data.max_replaced is nan"),
        ({"order": "aged"}, "order 'aged' is unknown"),
        ({"order": "lived"}, "40 of 40 recordings have neither age nor date"),
        ({"manifest": "nowhere.json"}, r"nowhere\.json cannot be read as a manifest"),
    ],
)
def test_settings_that_cannot_work_are_refused(stores, change, telling):
    with pytest.raises(InputError, match=telling):
        data = FrameDataModule(**({"train": [str(stores[0])], "val": None} | change))
        data.trainer = module(stores).trainer
        data.setup("fit")


def test_a_recording_in_two_sources_of_training_is_refused(stores):
    with pytest.raises(
        InputError, match=r"40 recordings stand in several sources of data\.train, first [0-9a-f]{16} in"
    ):
        module(stores, train=[str(stores[0]), str(stores[0])])


def test_a_folder_that_is_no_store_is_named(stores, tmp_path):
    data = FrameDataModule([str(tmp_path)])
    data.trainer = module(stores).trainer
    with pytest.raises(InputError, match="holds no frame store"):
        data.setup("fit")
