"""Tokens through the plan: the right rows, whole clips only, hours, classes, and stores that do not belong together."""

import json
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from headcam.errors import InputError
from headcam.tokenizers.token_data import TokenDataModule, TokenSource
from headcam.tokenizers.token_shards import SCHEMA
from headcam.video.recordings import recordings_table, write_recordings
from headcam.video.sampling.manifest import Manifest
from headcam.video.sampling.views import ViewLaw

GRID, CODES, CROPS = (2, 3), 50, 2


def write_store(
    folder: Path,
    recordings: dict[str, str],
    seconds: int = 60,
    grid: tuple[int, ...] = GRID,
    span_s: float = 0.0,
    stride_s: float = 1.0,
    **metadata,
) -> Path:
    """A token store as the contract has it: `recordings` (id -> source) of some seconds, two crops of each moment."""
    folder.mkdir()
    times = np.arange(0, seconds - max(span_s, stride_s) + 1e-9, stride_s)
    names = np.repeat(list(recordings), len(times) * CROPS)
    n = len(names)
    columns = {name: np.zeros(n) for name in SCHEMA.names} | {
        "recording": names.tolist(),
        "time_s": np.tile(np.repeat(times, CROPS), len(recordings)),
        "seconds": np.full(n, stride_s / CROPS),
        "span_s": np.full(n, span_s),
        "sample": np.arange(n),
        "crop": np.arange(n) % CROPS,
        "row": np.arange(n),
    }
    table = pa.table({name: pa.array(columns[name]).cast(SCHEMA.field(name).type) for name in SCHEMA.names})
    made_of = {
        "grid": list(grid),
        "vocab_size": CODES,
        "tokenizer_hash": "ab" * 32,
        "hours": n * stride_s / CROPS / 3600,
        "settings": {"crops": CROPS},
        "recordings_hash": "cd" * 32,
        "quarantine_hash": "ef" * 32,
    } | metadata
    labels = {"contract": "token store", "version": "1", "store": json.dumps(made_of)}
    pq.write_table(
        table.replace_schema_metadata({f"headcam.{k}": v for k, v in labels.items()}), folder / "tokens.parquet"
    )
    facts = [
        {"recording": name, "source": source, "age_days": 100.0 - k, "status": "ok", "bytes": 1, "duration_s": 60.0}
        for k, (name, source) in enumerate(recordings.items())
    ]
    write_recordings(recordings_table(facts), folder / "recordings.parquet")
    np.save(folder / "tokens-000000.npy", tokens_of(np.arange(n), grid).astype(np.uint16))
    return folder


def tokens_of(row: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """What the generated stores hold: every row can be told from its tokens."""
    return (row.reshape(-1, *(1,) * len(grid)) * 7 + np.arange(np.prod(grid)).reshape(grid)) % CODES


def model(grid=GRID, vocab_size=CODES, classes=None) -> SimpleNamespace:
    """What a model of tokens tells the data module."""
    views = (ViewLaw("tokens", grid[-2:], scale=(1, 1), flip=0.0),)
    skeleton = SimpleNamespace(encoder=SimpleNamespace(grid=grid, vocab_size=vocab_size))
    return SimpleNamespace(views=views, view_stages=[(0, views)], num_frames=1, skeleton=skeleton, classes=classes)


def module(train: list[Path], step: int = 0, wants=None, **settings) -> TokenDataModule:
    usual = {"batch_size": 8, "num_workers": 0}
    data = TokenDataModule([str(path) for path in train], **(usual | settings))
    data.trainer = SimpleNamespace(
        lightning_module=wants or model(),
        global_step=step,
        global_rank=0,
        world_size=1,
        accumulate_grad_batches=1,
    )
    data.setup("fit")
    return data


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> Path:
    """120 rows of frames: two recordings of 30 s."""
    return write_store(tmp_path_factory.mktemp("tokens") / "frames", {"a": "left", "b": "right"}, seconds=30)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Clips of 2 s, one a second, of two recordings of 60 s."""
    root = tmp_path_factory.mktemp("tokens")
    return write_store(root / "clips", {"a": "left", "b": "right"}, grid=(2, 2, 3), span_s=2.0)


def test_an_epoch_gives_every_row_once_with_its_own_tokens(frames):
    data = module([frames])
    batches = list(islice(data.train_dataloader(), 15))
    tokens = torch.cat([batch["tokens"] for batch in batches])
    assert tokens.shape == (120, 1, 2, 3) and tokens.dtype == torch.int32
    rows = data.plan.unit(torch.cat([batch["sample"] for batch in batches]).numpy())
    assert sorted(rows.tolist()) == list(range(120)) and rows.tolist() != list(range(120))
    assert np.array_equal(tokens[:, 0].numpy(), tokens_of(rows, GRID))


def test_clips_come_with_their_slots(clips):
    batch = next(iter(module([clips], wants=model((2, 2, 3))).train_dataloader()))
    assert batch["tokens"].shape == (8, 1, 2, 2, 3)


def test_samples_depend_on_neither_workers_nor_where_a_run_begins(frames):
    straight = list(islice(module([frames]).train_dataloader(), 12))
    resumed = list(islice(module([frames], step=7, num_workers=1).train_dataloader(), 5))
    for a, b in zip(straight[7:], resumed, strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert module([frames]).plan.digest(0, 50) == module([frames], num_workers=2).plan.digest(0, 50)
    assert module([frames]).plan.digest(0, 50) != module([frames], seed=1).plan.digest(0, 50)


def test_the_account_counts_hours_once_and_names_sources(frames):
    manifest = module([frames]).manifest
    assert manifest.hours == pytest.approx(60 / 3600) and manifest.frames == {"a": 60, "b": 60}
    assert manifest.recordings_hash == "cd" * 32 and manifest.quarantine_hash == "ef" * 32
    assert manifest.settings["sources"]["left"] == {"hours": pytest.approx(30 / 3600), "units": 60}


def test_the_order_lived_goes_by_age(frames):
    data = module([frames], order="lived", window_hours=10 / 3600)
    recordings = data.plan.units.recording_of(data.plan.unit(np.arange(120)))
    assert recordings.tolist() == [1] * 60 + [0] * 60, "the second recording was made a day before"


@pytest.fixture
def manifest(tmp_path):
    """Function that writes a manifest of stretches and returns its path."""

    def write(stretches: dict[str, tuple[tuple[float, float], ...]]) -> str:
        seconds = {name: sum(b - a for a, b in own) for name, own in stretches.items()}
        Manifest(seconds, stretches, recordings_hash="cd" * 32, quarantine_hash="ef" * 32).write(tmp_path / "m.json")
        return str(tmp_path / "m.json")

    return write


def test_a_manifest_takes_frames_by_their_second_and_clips_only_whole(frames, clips, manifest, capsys):
    file = manifest({"a": ((3.0, 7.5), (10.0, 11.0))})
    units = module([frames], manifest=file).plan.units
    assert units.recordings == ("a",)
    # Half of the second from 7 s on lies inside, not more.
    assert units.time_s.tolist() == np.repeat([3.0, 4, 5, 6, 10], CROPS).tolist()
    assert units.hours * 3600 == pytest.approx(5)
    assert capsys.readouterr().err == ""
    units = module([clips], wants=model((2, 2, 3)), manifest=file).plan.units
    assert units.time_s.tolist() == np.repeat([3.0, 4, 5], CROPS).tolist()  # that at 6 s ends at 8 s
    err = capsys.readouterr().err
    assert err == f"headcam: left out: 2 clips (0.00 h) lie across a border of {file}\n"


def test_a_frame_a_little_before_its_second_stays_however_often_it_was_cut(tmp_path, manifest):
    folder = write_store(tmp_path / "t", {"a": "x"}, seconds=10)
    table = pq.read_table(folder / "tokens.parquet")
    early = pa.array(table["time_s"].to_numpy() - 0.3)
    table = table.set_column(1, "time_s", early)
    pq.write_table(table, folder / "tokens.parquet")
    units = module([folder], manifest=manifest({"a": ((4.0, 6.0),)})).plan.units
    assert units.time_s.tolist() == np.repeat([3.7, 4.7], CROPS).tolist()


@pytest.mark.parametrize("block_s", [None, 20.0])
def test_held_out_clips_share_no_second_with_training(block_s, clips, capsys):
    data = module([clips], wants=model((2, 2, 3)), hold_out=0.3, hold_out_block_s=block_s)
    sides = []
    for source in (data.train_source, data.val_data.source):
        units = source.units
        i = np.arange(len(units))
        sides.append(
            {
                (units.recordings[units.recording_of(k)], second)
                for k in i
                for second in (int(units.time_of(k)), int(units.time_of(k)) + 1)
            }
        )
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    kept = len(data.train_source.units) + len(data.val_data)
    assert kept < 2 * 59 * CROPS and f"left out: {2 * 59 - kept // CROPS} clips" in capsys.readouterr().err
    batch = next(iter(data.val_dataloader()))
    assert batch["tokens"].shape == (8, 1, 2, 2, 3)


def test_labels_are_the_classes_of_the_sources(frames):
    data = module([frames], wants=model(classes=["right", "middle", "left"]))
    batch = next(iter(data.train_dataloader()))
    units = data.plan.units
    expected = [2 - 2 * int(units.recording_of(unit)) for unit in data.plan.unit(batch["sample"].numpy())]
    assert batch["label"].tolist() == expected and batch["label"].dtype == torch.int64 and set(expected) == {0, 2}
    assert "label" not in next(iter(module([frames]).train_dataloader()))
    with pytest.raises(InputError, match=r"source 'left' of the data is none of model.classes \(right\)"):
        module([frames], wants=model(classes=["right"]))


@pytest.mark.parametrize(
    "metadata, wants, telling",
    [
        ({"grid": (3, 3)}, None, "other has grid 3 x 3, .*frames has 2 x 3"),
        ({"vocab_size": 60}, None, "other has vocab_size 60, .*frames has 50"),
        ({"tokenizer_hash": "00" * 32}, None, "other has tokenizer_hash 0000"),
        (
            None,
            model((4, 4)),
            r"frames has tokens of grid 2 x 3, the model is for 4 x 4. Fix: set model.grid to \[2, 3\]",
        ),
        (None, model(vocab_size=512), "frames has tokens of vocab_size 50, the model is for 512"),
    ],
)
@pytest.mark.parametrize("side", ["train", "val"])
def test_tokens_that_do_not_belong_together_are_refused(side, metadata, wants, telling, frames, tmp_path):
    if metadata is None:
        with pytest.raises(InputError, match=telling):
            module([frames], wants=wants)
        return
    other = write_store(tmp_path / "other", {"c": "x"}, **metadata)
    with pytest.raises(InputError, match=telling):
        if side == "train":
            module([frames, other])
        else:
            module([frames], val=[str(other)])


def test_what_is_no_token_store_is_named(stores, frames, tmp_path):
    with pytest.raises(
        InputError, match=r"nowhere does not exist\. Fix: make a token store with headcam tokenize store"
    ):
        module([Path("nowhere")])
    with pytest.raises(InputError, match=r"holds no token store \(tokens\.parquet is missing\)"):
        module([stores[0]])
    with pytest.raises(InputError, match=r"2 recordings stand in data\.train and in data\.val"):
        module([frames], val=[str(frames)])
    with pytest.raises(InputError, match=r"2 recordings stand in several sources of data\.train"):
        module([frames, frames])


def test_a_source_gives_the_tokens_of_its_rows(frames):
    source = TokenSource(frames)
    (tokens,) = source.views(17, 0.0, [None])
    assert np.array_equal(tokens[..., 0], tokens_of(np.array([17]), GRID)[0]) and tokens.dtype == np.int32
    assert source.units.hours == pytest.approx(60 / 3600)
