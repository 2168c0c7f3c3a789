"""The token store: frames or clips encoded once, so that a model of tokens trains without pixels or tokenizer.

`make_token_store` writes one and `TokenStore` reads it. What a row is, and how it is cut, is in `token_rows.py`; what
lies on the disk in `token_shards.py`. Beside the tokens lies `tokenizer/`, the tokenizer that made them, so that what
is trained on them can be turned back into pictures.

Batches never cross a shard, and what a shard holds follows from the data, the tokenizer and the settings alone: so a
store that was killed and started again with the same words has the same bytes, and only what was left is done.
"""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from headcam.devices import usable_device
from headcam.errors import InputError
from headcam.files import write_json
from headcam.progress import Progress
from headcam.ssl.weights import save_weights
from headcam.tokenizers.autoencoders.tokenizer import Tokenizer, clip_step, load_tokenizer
from headcam.tokenizers.token_rows import RANDOM_SCALE, Rows, Skipped, clip_moments, frame_moments, open_source
from headcam.tokenizers.token_shards import (
    SCHEMA,
    TABLE,
    VERSION,
    Shard,
    dealt,
    finish,
    open_table,
    read_skipped,
    shard_path,
)
from headcam.video.datasets import VideoSource
from headcam.video.loader import TimedLoader, one_thread
from headcam.video.sampling.manifest import Manifest
from headcam.video.stores.reading import UNFINISHED, read_facts

TOKENIZER = "tokenizer"  # folder of the tokenizer within a store

_MOST_OF_UINT16 = 1 << 16  # codes


@dataclass(frozen=True)
class TokenStoreResult:
    """What making a token store came to.

    Attributes:
        folder: of the store.
        table: the file to open.
        samples: rows, each a grid of tokens.
        grid, vocab_size: of the tokens.
        recordings, hours: recordings that gave any, and the hours of video that the rows stand for.
        skipped: frames or clips that could not be decoded.
        verified: whether only seconds that `headcam scan` verified were used.
    """

    folder: Path
    table: Path
    samples: int
    grid: tuple[int, ...]
    vocab_size: int
    recordings: int
    hours: float
    skipped: tuple[Skipped, ...]
    verified: bool


def make_token_store(
    data: str | os.PathLike,
    tokenizer: str | os.PathLike,
    out: str | os.PathLike,
    *,
    crops: int = 1,
    scale: tuple[float, float] | None = None,
    flip: float = 0.0,
    step_s: float | None = None,
    stride_s: float | None = None,
    manifest: str | os.PathLike | None = None,
    batch_size: int = 16,
    seed: int = 0,
    num_workers: int = 2,
    device: str = "cpu",
    quiet: bool = False,
) -> TokenStoreResult:
    """Encode frames or clips into a token store in folder `out`; whether it is clips, the tokenizer says.

    Args:
        data: frame store (clip store for a tokenizer of clips), or file of `headcam index`.
        tokenizer: what `load_tokenizer` takes.
        out: folder; an unfinished store of the same words there is completed, a finished one is left as it is.
        crops: rows of each frame or clip.
        scale: range of a crop's area as a fraction of the frame's; None: the largest central crop where `crops` is 1,
            else 0.2 to 1.
        flip: probability of mirroring.
        step_s: seconds between two frames of a clip; None for those that the tokenizer was trained on.
        stride_s: seconds from the start of one clip to the next; None for a clip's span, so that clips touch.
        manifest: file of `headcam subset`; only its seconds are encoded.
        batch_size: rows that are encoded together.
        seed: of the crops and flips.
        num_workers: processes that decode; no byte depends on it.
        device: where the tokenizer runs, as torch names it.
        quiet: show no progress.
    Raises:
        InputError: a setting out of range, nothing to encode, or `out` holds something else.
        StorageError: the disk is full or not writable.
    """
    for name, value, least in (("crops", crops, 1), ("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if value < least:
            raise InputError(f"{name} is {value}", f"give at least {least}")
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder} is a file", "give a folder")
    model, card = load_tokenizer(tokenizer)
    step_s = clip_step(card, step_s)
    place = usable_device(device)
    parent = None if manifest is None else Manifest.read(manifest)
    source = open_source(data, model.num_frames, step_s, parent)
    clips = model.num_frames > 1
    moments = clip_moments(source, stride_s) if clips else frame_moments(source)
    if scale is None and crops > 1:
        scale = RANDOM_SCALE
    rows = Rows(source, moments, model.img_size, crops, scale, flip, seed)
    with tempfile.TemporaryDirectory() as scratch:
        # Of the weights alone: where they come from a checkpoint, its card has the hash of that file.
        save_weights(scratch, model, card)
        tokenizer_hash = json.loads(Path(scratch, "card.json").read_text("utf-8"))["weights_hash"]
    made_of = {
        "version": VERSION,
        **source.origin(),
        "manifest_hash": None if parent is None else parent.hash,
        "tokenizer_hash": tokenizer_hash,
        "source_settings": None if isinstance(source, VideoSource) else source.store.metadata["settings"],
        "samples": len(rows),
        "settings": {
            "crops": crops,
            "scale": None if scale is None else list(scale),
            "flip": flip,
            "step_s": step_s if clips else None,
            "stride_s": stride_s if clips else None,
            "seed": seed,
            # Sums over a batch are rounded in another order for other batches and devices, which may tip a code.
            "batch_size": batch_size,
            "device": place.type,
        },
        "tokenizer": card["architecture"]["class"],
        "grid": list(model.grid),
        "vocab_size": model.vocab_size,
        "img_size": list(model.img_size),
        "num_frames": model.num_frames,
    }
    if (folder / TABLE).exists():
        _check_same(folder, made_of, open_table(folder)[1])
        return _result(folder)
    if (folder / UNFINISHED).exists():
        _check_same(folder, made_of, json.loads((folder / UNFINISHED).read_text("utf-8")))
    else:
        if folder.is_dir() and any(folder.glob("tokens-*.npy")):
            raise InputError(f"{folder} holds shards of unknown origin", "give another folder, or empty this one")
        write_json(folder / UNFINISHED, made_of)
    if not (folder / TOKENIZER / "card.json").exists():
        save_weights(folder / TOKENIZER, model, card)
    shards = dealt(folder, rows)
    _encode(shards, rows, model.to(place), place, batch_size, num_workers, quiet)
    finish(folder, made_of, shards, source)
    return _result(folder)


def _encode(
    shards: list[Shard],
    rows: Rows,
    tokenizer: Tokenizer,
    device: torch.device,
    batch_size: int,
    num_workers: int,
    quiet: bool,
) -> None:
    """Make the shards that are not complete."""
    dtype = np.uint16 if tokenizer.vocab_size <= _MOST_OF_UINT16 else np.uint32
    todo = [shard for shard in shards if not shard.is_complete]
    done = len(rows) - sum(len(shard.samples) for shard in todo)
    loader = TimedLoader(
        rows,
        batch_sampler=[batch for shard in todo for batch in shard.batches(batch_size)],
        num_workers=num_workers,
        worker_init_fn=one_thread,
    )
    batches = iter(loader)
    with Progress("tokenizing", total=len(rows), unit="samples", quiet=quiet, done=done) as progress:
        for shard in todo:
            tokens, boxes, flips, failed = [], [], [], len(loader.undecoded)
            for batch in shard.batches(batch_size):
                found = next(batches)
                tokens.append(tokenizer.encode(found["pixels"].to(device)).cpu().numpy().astype(dtype))
                boxes.append(found["box"].numpy())
                flips.append(found["flip"].numpy())
                progress.advance(len(batch), current=shard.path.name)
            reasons = {lost.sample // rows.crops: lost.reason for lost in loader.undecoded[failed:]}
            shard.write(rows, *map(np.concatenate, (tokens, boxes, flips)), reasons)


_SAME = (  # what must be equal for a store to be the one that is wanted, beside its settings
    ("recordings_hash", "index"),
    ("quarantine_hash", "scan"),
    ("manifest_hash", "manifest"),
    ("tokenizer_hash", "tokenizer"),
    ("tokenizer", "tokenizer"),
    ("grid", "tokenizer"),
    ("source_settings", "frame or clip store"),
    ("samples", "frame or clip store"),
)


def _check_same(folder: Path, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    """Raise `InputError` unless the store in `folder`, made of `found`, is the one that is wanted."""
    fix = "give another folder, or remove this one"
    if found.get("version") != wanted["version"]:
        theirs = found.get("version")
        raise InputError(f"{folder} holds a token store of version {theirs}, this headcam writes {VERSION}", fix)
    for name, value in wanted["settings"].items():
        had = found["settings"].get(name)
        if had != value:
            raise InputError(
                f"{folder} holds a token store with {name} {had}, not {value}", fix + ", or use its settings"
            )
    for key, what in _SAME:
        ours, theirs = wanted[key], found[key]
        if ours != theirs:
            of = f"of another {what}" if ours and theirs else f"made {'with' if theirs else 'without'} a {what}"
            raise InputError(f"{folder} holds a token store {of}", fix)


def _result(folder: Path) -> TokenStoreResult:
    store = TokenStore(folder)
    return TokenStoreResult(
        folder=folder,
        table=folder / TABLE,
        samples=len(store),
        grid=store.grid,
        vocab_size=store.vocab_size,
        recordings=len(store.recordings),
        hours=store.hours,
        skipped=read_skipped(folder),
        verified=store.metadata["quarantine_hash"] is not None,
    )


class TokenStore:
    """A finished token store, for reading: one row a crop, in NumPy arrays, and the tokens by number.

    Attributes:
        recordings: ids of recordings, a tuple of str; `recording` holds positions in it.
        recording, time_s, seconds, span_s, sample, crop, left, top, width, height, flip, shard, row: arrays of shape
            (N,), see `headcam.tokenizers.token_shards.SCHEMA`.
        grid: (h, w) or (t, h, w) of the tokens.
        vocab_size: K; tokens are 0 .. K - 1.
        tokenizer_hash: of the weights of the tokenizer that made the tokens, in `folder / "tokenizer"`.
        hours: hours of video that the rows stand for.
        facts: rows of the index, one for each of `recordings` (without key frames); None where the data had none.
        metadata: what the store was made of: settings, shapes, hashes.

    It can be pickled and forked: every process maps the shards for itself, when it first reads from one.

    Raises:
        InputError: the folder holds no finished token store, or one of another version.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        table, self.metadata = open_table(self.folder)
        self.grid: tuple[int, ...] = tuple(self.metadata["grid"])
        self.vocab_size: int = self.metadata["vocab_size"]
        self.tokenizer_hash: str = self.metadata["tokenizer_hash"]
        self.hours: float = self.metadata["hours"]
        recording = table["recording"].cast(SCHEMA.field("recording").type).unify_dictionaries().chunk(0)
        self.recordings: tuple[str, ...] = tuple(recording.dictionary.to_pylist())
        self.recording = recording.indices.to_numpy()
        self.time_s, self.seconds, self.span_s, self.sample, self.crop = _columns(table, 1, 6)
        self.left, self.top, self.width, self.height, self.flip, self.shard, self.row = _columns(table, 6, 13)
        self.facts: pa.Table | None = read_facts(self.folder, self.recordings)
        self._shards: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.row)

    def tokens(self, i: int) -> np.ndarray:
        """The tokens of row `i`: int32 (*grid), of its own."""
        number = int(self.shard[i])
        if number not in self._shards:
            path = shard_path(self.folder, number)
            try:
                self._shards[number] = np.load(path, mmap_mode="r")
            except (OSError, ValueError) as error:
                state = "is cut short or damaged" if path.exists() else "is missing"
                raise InputError(f"{path} {state}", "copy the whole folder of the store, or make it again") from error
        return np.array(self._shards[number][int(self.row[i])], np.int32)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": {}}


def _columns(table: pa.Table, first: int, last: int) -> list[np.ndarray]:
    return [table[name].to_numpy() for name in SCHEMA.names[first:last]]
