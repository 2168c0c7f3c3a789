"""Tokens for training: a token store as a source of samples, and the data module that `headcam fit` takes for it.

To the plan a row of a token store is a picture of h x w tokens: order, account, hold-out and manifests are those of
frames (`headcam.video.data_module`), and only what comes out of a sample differs: `tokens` int32 (1, h, w), or (1, t,
h, w) for clips. A row of a clip is drawn only where all of its frames lie in the seconds that may be drawn from.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from headcam.errors import InputError
from headcam.tokenizers.token_shards import TABLE
from headcam.tokenizers.token_store import TokenStore
from headcam.video.data_module import FrameDataModule
from headcam.video.datasets import FrameSource, JoinedSource, UnitEpisodes
from headcam.video.recording_index import recording_facts
from headcam.video.sampling.manifest import Manifest
from headcam.video.sampling.units import FrameUnits, RecordingFacts, Units
from headcam.video.stretches import merged
from headcam.video.transforms import Cut

_HAIR_S = 1e-6  # by which a clip may reach beyond a stretch, from rounding


class TokenSource:
    """Grids of tokens of a token store, as the units of a plan; crops and times do not matter any more.

    Args:
        folder: of `headcam tokenize store`.
        manifest: draw only from rows within its stretches: frames that stand for seconds of which more than half lies
            in there (`FrameUnits.restricted`), clips that lie in one of them from the first frame to the last.

    Attributes:
        units: rows that can be drawn.
        torn: (clips, hours) that `manifest` holds the start or end of, but not the whole.
    """

    def __init__(self, folder: str | Path, manifest: Manifest | None = None):
        self.store = store = TokenStore(folder)
        facts = RecordingFacts.unknown(store.recordings) if store.facts is None else recording_facts(store.facts)
        height, width = store.grid[-2:]
        crops = store.metadata["settings"]["crops"]
        units = FrameUnits(
            recording=store.recording,
            time_s=store.time_s,
            seconds=store.seconds * crops,
            width=np.full(len(store), width, np.int32),
            height=np.full(len(store), height, np.int32),
            row=np.arange(len(store)),
            facts=facts,
        )
        self.torn = (0, 0.0)
        if manifest is not None:
            units = units.restricted(manifest.stretches)
            whole = _whole(store, units, manifest)
            self.torn = (int((~whole).sum()) // crops, float(units.seconds[~whole].sum()) / crops / 3600)
            units = _some(units, whole)
        # Only now those of the row itself: whether a frame is in a stretch does not depend on how often it was cut.
        self.units = replace(units, seconds=units.seconds / crops)

    def views(self, unit: int, time_s: float, cuts: list[Cut]) -> list[np.ndarray]:
        """The tokens of a unit, (h, w, 1) or (t, h, w, 1) int32, for each of `cuts`."""
        tokens = self.store.tokens(int(self.units.row[unit]))[..., None]
        return [tokens for _ in cuts]

    def origin(self) -> dict[str, Any]:
        """Hashes of the recordings and of the quarantine table (None: not scanned) that the tokens come from."""
        return {name: self.store.metadata[name] for name in ("recordings_hash", "quarantine_hash")}


def _whole(store: TokenStore, units: FrameUnits, manifest: Manifest) -> np.ndarray:
    """(n,) bool: the units whose whole span lies in one stretch of the manifest."""
    start = store.time_s[units.row]
    end = start + store.span_s[units.row]
    whole = end == start  # single frames
    edges = np.searchsorted(units.recording, np.arange(len(units.facts.ids) + 1))
    for k, name in enumerate(units.facts.ids.tolist()):
        here = slice(edges[k], edges[k + 1])
        stretches = np.array(merged(manifest.stretches.get(name, ()))).reshape(-1, 2)
        if len(stretches):
            at = np.maximum(np.searchsorted(stretches[:, 0], start[here] + _HAIR_S, side="right") - 1, 0)
            inside = (stretches[at, 0] <= start[here] + _HAIR_S) & (end[here] <= stretches[at, 1] + _HAIR_S)
            whole[here] |= inside
    return whole


def _some(units: FrameUnits, chosen: np.ndarray) -> FrameUnits:
    """The units `chosen` (bool), and the recordings that have any."""
    recordings, recording = np.unique(units.recording[chosen], return_inverse=True)
    columns = {name: getattr(units, name)[chosen] for name in ("time_s", "seconds", "width", "height", "row")}
    return FrameUnits(recording=recording.astype(np.int32), facts=units.facts.take(recordings), **columns)


class TokenDataModule(FrameDataModule):
    """Tokens of token stores, for models of tokens; what was drawn, cut and mirrored is written in the stores.

    Args:
        train: Folders of token stores (`headcam tokenize store`), all by one tokenizer.
        val: The same for validation; null trains without, unless hold_out is set.
        batch_size: Samples (grids of tokens) per step and process.
        num_workers: Loader processes (0: in the training process). Changes speed only, never a sample.
        seed: Of the plan; other seeds draw in another order.
        manifest: File of `headcam subset`; training draws from its seconds alone.
        val_manifest: The same for validation, such as the held-out part of the same index.
        hold_out: Share of the training seconds that are held out for validation, in blocks inside the training
            recordings; clips that reach across the border of a block are in neither. Only where val is null.
        hold_out_block_s: Seconds of such a block; null: 10. Longer ones lose fewer clips at their borders.
        order: shuffled, or lived: by the wearer's age (or the date), in windows.
        window_hours: Hours of video in a window of the order lived; samples are shuffled within a window.
        max_replaced: Share of samples that may be replaced; tokens can be read or not, so none is.
    """

    def __init__(
        self,
        train: list[str],
        val: list[str] | None = None,
        batch_size: int = 64,
        num_workers: int = 2,
        seed: int = 0,
        manifest: str | None = None,
        val_manifest: str | None = None,
        hold_out: float = 0.0,
        hold_out_block_s: float | None = None,
        order: str = "shuffled",
        window_hours: float = 10.0,
        max_replaced: float = 0.01,
    ):
        super().__init__(
            train,
            val,
            batch_size,
            num_workers=num_workers,
            seed=seed,
            manifest=manifest,
            val_manifest=val_manifest,
            hold_out=hold_out,
            hold_out_block_s=hold_out_block_s,
            order=order,
            window_hours=window_hours,
            max_replaced=max_replaced,
        )
        self._first: TokenStore | None = None

    def setup(self, stage: str) -> None:
        first_time = self.plan is None
        super().setup(stage)
        if first_time and self.trainer.global_rank == 0:
            self._say_torn()

    def _open(self, path: str, manifest: Manifest | None) -> FrameSource:
        if not Path(path, TABLE).is_file() and not Path(path).is_dir():
            raise InputError(f"{path} does not exist", "make a token store with headcam tokenize store")
        source = TokenSource(path, manifest)
        self._first = self._first or source.store
        _refuse_other_tokens(source.store, self._first)
        _refuse_other_model(source.store, self.trainer.lightning_module)
        return source

    def _label_of(self, units: Units, whole: Units) -> "UnitClasses | UnitEpisodes | None":
        classes = getattr(self.trainer.lightning_module, "classes", None)
        if not classes:
            return super()._label_of(units, whole)
        known = {name: k for k, name in enumerate(classes)}
        other = sorted({name for name in units.sources if name not in known})
        if other:
            raise InputError(
                f"source {other[0]!r} of the data is none of model.classes ({', '.join(classes)})",
                "name all sources of the data in model.classes (headcam index --metadata gives them)",
            )
        return UnitClasses(units, np.array([known[name] for name in units.sources], np.int64))

    def _say_torn(self) -> None:
        """Say in one line how many clips the manifest or the hold-out cuts through."""
        sides = [self.train_source] + ([self.val_data.source] if self.hold_out else [])
        sources = [one for side in sides for one in (side.sources if isinstance(side, JoinedSource) else [side])]
        clips, hours = (sum(source.torn[k] for source in sources) for k in (0, 1))
        if clips:
            why = "the seconds held out" if self.hold_out else self.manifest_path
            print(f"headcam: left out: {clips} clips ({hours:.2f} h) lie across a border of {why}", file=sys.stderr)


@dataclass(frozen=True)
class UnitClasses:
    """Number of a unit -> the class of its recording.

    Args:
        units: the units.
        classes: (R,) int64, of each recording of `units`.
    """

    units: Units
    classes: np.ndarray

    def __call__(self, unit: int) -> int:
        return int(self.classes[self.units.recording_of(np.int64(unit))])


def _refuse_other_tokens(store: TokenStore, first: TokenStore) -> None:
    """Tokens of two tokenizers have nothing in common but being numbers."""
    fix = "encode all data with one tokenizer: headcam tokenize store --tokenizer"
    for what in ("grid", "vocab_size", "tokenizer_hash"):
        ours, theirs = getattr(store, what), getattr(first, what)
        if ours != theirs:
            raise InputError(f"{store.folder} has {what} {_shown(ours)}, {first.folder} has {_shown(theirs)}", fix)


def _refuse_other_model(store: TokenStore, model: Any) -> None:
    """The grid and vocabulary that a model is built for; which tokenizer it has seen, where it began with weights."""
    wanted = model.skeleton.encoder
    for what in ("grid", "vocab_size"):
        ours, theirs = getattr(store, what), getattr(wanted, what)
        if ours != theirs:
            raise InputError(
                f"{store.folder} has tokens of {what} {_shown(ours)}, the model is for {_shown(theirs)}",
                f"set model.{what} to {list(ours) if what == 'grid' else ours}, or use another tokenizer",
            )


def _shown(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)
