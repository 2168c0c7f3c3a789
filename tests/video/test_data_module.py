"""The data module: batches follow from the step, views and sides are those asked for, bad sources are named."""

import shutil
from dataclasses import replace
from itertools import chain, islice, pairwise
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from headcam.errors import InputError
from headcam.video.data_module import FrameDataModule
from headcam.video.index import index
from headcam.video.quarantine import quarantine_path, write_quarantine
from headcam.video.recordings import read_recordings, recordings_hash
from headcam.video.sampling.manifest import Manifest
from headcam.video.sampling.subset import subset
from headcam.video.sampling.views import ColourLaw, ViewLaw
from headcam.video.stores.clip_store import store_clips
from headcam.video.stores.frame_store import FrameStore, store

IMAGE = (ViewLaw("image", (32, 32), noise=16),)
CROPS = (
    ViewLaw("global", (32, 32), 2, (0.4, 1), colours=(ColourLaw(),), held_out="same"),
    ViewLaw("local", (16, 16), 3),
)


def model(views=IMAGE, stages=None, num_frames=1, episode_seconds=None) -> SimpleNamespace:
    """What an objective tells the data module."""
    return SimpleNamespace(
        views=views,
        view_stages=stages or [(0, views)],
        num_frames=num_frames,
        episode_seconds=episode_seconds,
    )


def module(stores, step=0, rank=0, world_size=1, accumulate=1, wants=None, **settings) -> FrameDataModule:
    """A data module beside a trainer that stands at `step`."""
    usual = {"train": [str(stores[0])], "val": [*map(str, stores[1:])], "batch_size": 4, "num_workers": 0}
    data = FrameDataModule(**(usual | settings))
    data.trainer = SimpleNamespace(
        lightning_module=wants or model(),
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


def test_several_views_are_the_same_from_any_number_of_workers(stores):
    found = []
    for workers in (0, 2):
        batches = list(islice(module(stores, wants=model(CROPS), num_workers=workers).train_dataloader(), 6))
        found.append([(key, value.numpy().tobytes()) for batch in batches for key, value in sorted(batch.items())])
    assert found[0] == found[1]
    assert batches[0]["global"].shape == (4, 2, 3, 32, 32) and batches[0]["local"].shape == (4, 3, 3, 16, 16)
    assert batches[1]["sample"].tolist() == [4, 5, 6, 7]
    held_out = next(iter(module(stores, wants=model(CROPS)).val_dataloader()))
    assert held_out["global"].shape == (4, 2, 3, 32, 32) and held_out["local"].shape == (4, 3, 16, 16)


@pytest.mark.parametrize("how", [{"batch_size": 8}, {"batch_size": 4, "accumulate": 2}, {"world_size": 2}])
def test_stages_start_at_their_optimizer_step_whatever_the_batch_is_made_of(stores, how):
    wants = model(stages=[(0, IMAGE), (3, (ViewLaw("image", (48, 48), noise=36),))])
    data = module(stores, wants=wants, **how)
    sides = [data.plan.laws(i)[0].size[0] for i in range(40)]
    assert sides == [32] * 24 + [48] * 16
    accumulate = how.get("accumulate", 1)
    loader = module(stores, step=2, wants=wants, **how).train_dataloader()
    shapes = [batch["image"].shape[-1] for batch in islice(loader, 2 * accumulate)]
    assert shapes == [32] * accumulate + [48] * accumulate and batch_noise(loader) == 16


def batch_noise(loader) -> int:
    return next(iter(loader))["noise"].shape[1]


def test_defaults_of_the_data_hold_where_a_view_leaves_them_open(stores):
    views = (ViewLaw("image", (32, 32)), ViewLaw("own", (32, 32), scale=(0.9, 1.0), flip=0.0))
    laws = module(stores, wants=model(views), scale=(0.1, 0.2), flip=1.0).plan.laws(0)
    assert [(law.scale, law.flip) for law in laws] == [((0.1, 0.2), 1.0), ((0.9, 1.0), 0.0)]


def test_a_view_that_is_larger_than_every_frame_is_said(stores, capsys):
    module(stores)
    assert capsys.readouterr().err == ""
    module(stores, wants=model((ViewLaw("image", (96, 48)),)))
    said = capsys.readouterr().err
    assert said.startswith(
        "headcam: view image of 48 x 96 pixels is larger than every frame of data.train (up to 96 x 72)"
    )
    assert said.count("\n") == 1
    module(stores, wants=model((ViewLaw("image", (96, 48)),)), rank=1, world_size=2)
    assert capsys.readouterr().err == ""


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
        assert all(set(batch) == {"image", "noise", "sample"} for batch in batches)
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
        ({"step_s": 0.0}, "data.step_s is 0.0"),
        ({"hold_out": 1.0}, "data.hold_out is 1.0, no share below 1"),
        ({"hold_out_block_s": 0.0}, "data.hold_out_block_s is 0.0"),
        ({"hold_out": 0.1, "val": ["store"]}, "data.hold_out is 0.1 and data.val names store"),
        ({"hold_out": 0.1}, r"data.hold_out 0.1 leaves no seconds to train on: there are 0 blocks"),
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


@pytest.fixture(scope="module")
def long_video(tmp_path_factory, write_video) -> Path:
    """The index of recordings of 45 s and 30 s, five frames a second."""
    folder = tmp_path_factory.mktemp("long")
    (folder / "videos").mkdir()
    write_video(folder / "videos" / "a.mp4", frames=225, rate=5)
    write_video(folder / "videos" / "b.mp4", frames=150, rate=5, first_number=300)
    index(folder / "videos", folder / "recordings.parquet", processes=1, quiet=True)
    store(folder / "recordings.parquet", folder / "store", processes=1, quiet=True)
    return folder / "recordings.parquet"


def seconds_of(units) -> set[tuple[str, int]]:
    """Recording and second of every unit."""
    i = np.arange(len(units))
    return {(units.recordings[r], round(float(t))) for r, t in zip(units.recording_of(i), units.time_of(i))}


def test_what_is_held_out_is_in_no_sample_of_training(long_video):
    everything = seconds_of(module([long_video]).plan.units)
    held = []
    for train in (long_video, long_video.parent / "store"):
        data = module([train], hold_out=0.25)
        ours, theirs = seconds_of(data.plan.units), seconds_of(data.val_data.source.units)
        assert not ours & theirs and ours | theirs == everything
        blocks = {(recording, second // 10) for recording, second in theirs}
        assert all((recording, second // 10) not in blocks for recording, second in ours) and len(blocks) == 2
        facts = data.manifest.settings["hold_out"]
        assert facts["share"] == 0.25 and facts["block_seconds"] == 10 and facts["units"] == len(theirs)
        assert facts["hours"] * 3600 == pytest.approx(len(theirs), abs=0.3)
        assert data.manifest.hours * 3600 == pytest.approx(len(ours), abs=0.3)
        assert data.validates and len(next(iter(data.val_dataloader()))["image"]) == 4
        held.append((theirs, facts["stretches_hash"]))
    assert held[0] == held[1], "a store holds out the seconds that its recordings do"
    again = module([long_video], hold_out=0.25, seed=9)
    assert seconds_of(again.val_data.source.units) == held[0][0], "whatever the run's seed"
    assert not module([long_video]).validates


def test_holding_out_respects_the_manifest(long_video, tmp_path):
    subset(long_video, tmp_path, fractions=[0.6])
    (path,) = tmp_path.glob("*60pct*.json")
    drawn = seconds_of(module([long_video], manifest=str(path)).plan.units)
    data = module([long_video], manifest=str(path), hold_out=0.3)
    sides = [data.plan.units, data.val_data.source.units]  # a manifest's stretches may start within a second
    spans = sorted(
        (units.recordings[r], t, t + s)
        for units in sides
        for r, t, s in zip(
            *(look_up(np.arange(len(units))) for look_up in (units.recording_of, units.time_of, units.seconds_of))
        )
    )
    assert all(a[0] != b[0] or a[2] <= b[1] + 1e-9 for a, b in pairwise(spans)) and all(map(len, sides))
    assert data.manifest.parent == Manifest.read(path).hash and data.manifest.settings["absent"]["recordings"] == 0
    hours = data.plan.units.hours + data.val_data.source.units.hours
    assert hours == pytest.approx(module([long_video], manifest=str(path)).plan.units.hours) and drawn


def test_clips_come_from_recordings_and_from_clip_stores(long_video, tmp_path):
    wants = model((ViewLaw("clip", (32, 32), 2, noise=8),), num_frames=4)
    store_clips(long_video, tmp_path / "clips", processes=1, quiet=True)
    batches = []
    for train in (long_video, tmp_path / "clips"):
        data = module([train], wants=wants, step_s=0.5, hold_out=0.2)
        batch = next(iter(data.train_dataloader()))
        assert batch["clip"].shape == (4, 2, 3, 4, 32, 32) and batch["noise"].shape == (4, 2, 8)
        held_out = next(iter(data.val_dataloader()))
        assert held_out["clip"].shape == (4, 3, 4, 32, 32) and held_out["noise"].shape == (4, 8)
        batches.append(batch)
    near = (batches[0]["clip"].float() - batches[1]["clip"].float()).abs().mean()
    assert near < 12 and torch.equal(batches[0]["noise"], batches[1]["noise"])
    with pytest.raises(
        InputError, match=r"a clip of 20 s does not fit into the blocks of 10 s that data\.hold_out keeps"
    ):
        module([long_video], wants=wants, step_s=5.0, hold_out=0.2)


def test_recordings_that_are_shorter_than_a_clip_are_said(long_video, index_of_video, capsys):
    wants = model((ViewLaw("clip", (32, 32)),), num_frames=10)
    module([long_video], wants=wants, step_s=3.5)
    said = capsys.readouterr().err
    assert (
        "headcam: left out: 0.01 h in 1 recordings lie in stretches shorter than a clip of 10 frames (35.00 s)\n"
        in said
    )


def test_no_episode_is_held_out_whole(long_video):
    wants = model(episode_seconds=12.0)
    data = module([long_video], wants=wants, hold_out=0.3)
    assert data.manifest.settings["hold_out"]["block_seconds"] == 3
    labels = {int(data.val_data[i]["label"]) for i in range(len(data.val_data))}
    trained = {data.train_data.label_of(unit) for unit in range(len(data.train_source.units))}
    assert labels and labels <= trained == set(range(len(data.episodes)))
    with pytest.raises(InputError, match=r"blocks of 4 s would hold out most of an episode.*to 3 or less"):
        module([long_video], wants=wants, hold_out=0.3, hold_out_block_s=4.0)


def test_items_say_their_episode_on_both_sides_of_the_held_out(long_video):
    wants = model(episode_seconds=15.0)
    data = module([long_video], wants=wants, hold_out=0.25)
    assert len(data.episodes) == 5  # of 45 s and 30 s
    recordings = module([long_video]).plan.units.recordings
    for items, units in ((data.train_data, data.plan.units), (data.val_data, data.val_data.source.units)):
        of = items.label_of
        for unit in range(len(units)):
            name, time_s = units.recordings[units.recording_of(unit)], float(units.time_of(unit))
            episode = of(unit)
            assert recordings[data.episodes.recording[episode]] == name
            assert data.episodes.start_s[episode] <= time_s < data.episodes.end_s[episode]
    batch = next(iter(data.train_dataloader()))
    assert batch["label"].dtype == torch.int64 and batch["label"].shape == (4,)
    wanted = [data.train_data.label_of(data.plan.sample(i).unit) for i in batch["sample"].tolist()]
    assert batch["label"].tolist() == wanted
    assert "label" not in next(iter(module([long_video]).train_dataloader()))


def test_episodes_of_other_recordings_have_no_label(long_video, index_of_video):
    with pytest.raises(InputError, match=r"predicts episodes of the training recordings.*data\.hold_out"):
        module([long_video], val=[str(index_of_video)], wants=model(episode_seconds=15.0))
