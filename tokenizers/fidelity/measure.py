"""One tokenizer on one data set: every item through encoder and decoder, and what comes out of it measured.

Measurements are kept as arrays with one number an item, so that intervals, tables and charts are made from them later
(`headcam.tokenizers.report`), and are written to a file whose name is a hash of all that they follow from: a report
that was killed, or that gets another tokenizer, measures only what is missing.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headcam.errors import InputError
from headcam.files import atomic_file, sha256_json
from headcam.progress import Progress
from headcam.tokenizers.autoencoders.tokenizer import Tokenizer
from headcam.tokenizers.fidelity.features import Features
from headcam.tokenizers.fidelity.pictures import (
    SSIM_WINDOW,
    cell_means,
    frames_of,
    motion,
    motion_error,
    perceptual,
    psnr,
    ssim,
)
from headcam.tokenizers.quantizers.usage import CodeCounts
from headcam.video.items import Items

VERSION = 1  # of the files; part of their names


@dataclass(frozen=True)
class Evaluators:
    """The networks that measure, where there are any; each with the label that its numbers carry."""

    lpips: nn.Module | None = None
    lpips_label: str = ""
    features: Features | None = None
    device: str = "cpu"

    @property
    def labels(self) -> dict[str, str]:
        return {"lpips": self.lpips_label, "features": "" if self.features is None else self.features.label}


@dataclass(frozen=True)
class Measured:
    """What was measured; n items, T frames each.

    Attributes:
        items: metric -> (n,) float64: `psnr` (dB), `ssim`, `lpips`; `psnr_cells`, that of one mean colour for each
            token; of clips `motion`, `motion_original` and `motion_error` (grey levels). What could not be measured is
            absent.
        frame_psnr: (T,) mean PSNR of frame t of all items, dB.
        counts: (K,) int64, how often each code was used.
        features: (n, D) of originals and of reconstructions; both empty without a network. Of clip i, frame i mod T.
        skipped: (item, reason) of what could not be decoded.
    """

    items: dict[str, np.ndarray]
    frame_psnr: np.ndarray
    counts: np.ndarray
    features: tuple[np.ndarray, np.ndarray]
    skipped: list[tuple[str, str]] = field(default_factory=list)

    @property
    def n(self) -> int:
        return len(self.items["psnr"])

    @property
    def codes(self) -> CodeCounts:
        codes = CodeCounts(len(self.counts))
        codes.counts += torch.from_numpy(self.counts)
        return codes


def measure(
    tokenizer: Tokenizer,
    weights_hash: str,
    held_out: Items,
    evaluators: Evaluators,
    cache: Path,
    *,
    batch_size: int = 8,
    quiet: bool = False,
) -> Measured:
    """Measure a tokenizer, or read what was measured before.

    Args:
        tokenizer: in eval mode, on `evaluators.device`.
        weights_hash: of its card.
        held_out: items of its size.
        cache: folder of the measurements' files.
        batch_size: items at a time.
    Raises:
        InputError: no item could be decoded.
    """
    facts = {
        "version": VERSION,
        "weights": weights_hash,
        "data": held_out.hash,
        "size": list(held_out.size),
        "num_frames": held_out.num_frames,
        "step_s": held_out.step_s,
        "evaluators": evaluators.labels,
    }
    path = cache / f"{sha256_json(facts)[:16]}.npz"
    if not path.is_file():
        measured = _measure(tokenizer, held_out, evaluators, batch_size, quiet)
        _write(path, measured)
    return _read(path)


def _measure(tokenizer: Tokenizer, held_out: Items, evaluators: Evaluators, batch_size: int, quiet: bool) -> Measured:
    items: dict[str, list[Tensor]] = {}
    frame_psnr, features = [], ([], [])
    codes = CodeCounts(tokenizer.vocab_size)
    done = 0
    with Progress(f"measuring on {held_out.name}", len(held_out), "items", quiet) as progress:
        for originals in _batches(held_out, batch_size):
            tokens, reconstructions = reconstruct(tokenizer, originals, evaluators.device)
            codes.add(tokens)
            of_frames = psnr(frames_of(originals), frames_of(reconstructions)).view(len(originals), -1)
            frame_psnr.append(of_frames)
            for name, values in _of_batch(originals, reconstructions, of_frames, tokenizer.grid, evaluators).items():
                items.setdefault(name, []).append(values)
            if evaluators.features is not None:
                for kept, pixels in zip(features, (originals, reconstructions)):
                    kept.append(evaluators.features(_one_frame_each(pixels, done)).astype(np.float32))
            done += len(originals)
            progress.advance(len(originals))
    if not done:
        raise held_out.none_decoded()
    return Measured(
        {name: torch.cat(values).numpy() for name, values in items.items()},
        torch.cat(frame_psnr).mean(dim=0).numpy(),
        codes.counts.numpy(),
        tuple(np.concatenate(kept) if kept else np.empty((0, 0), np.float32) for kept in features),
        held_out.skipped,
    )


def reconstruct(tokenizer: Tokenizer, originals: Tensor, device: str) -> tuple[Tensor, Tensor]:
    """Tokens (B, *grid) int64 and reconstructions (uint8, as `originals`), both on the CPU."""
    tokens = tokenizer.encode(originals.to(device))
    return tokens.cpu(), tokenizer.decode(tokens).cpu()


def _of_batch(
    originals: Tensor, reconstructions: Tensor, of_frames: Tensor, grid: tuple[int, ...], evaluators: Evaluators
) -> dict[str, Tensor]:
    a, b = frames_of(originals), frames_of(reconstructions)
    per_item = len(originals), -1
    found = {"psnr": of_frames.mean(dim=1)}
    if grid[-2:] != a.shape[-2:]:
        found["psnr_cells"] = psnr(a, frames_of(cell_means(originals, grid))).view(per_item).mean(dim=1)
    if min(a.shape[-2:]) >= SSIM_WINDOW:
        found["ssim"] = ssim(a, b).view(per_item).mean(dim=1)
    if evaluators.lpips is not None:
        with suppress(InputError):  # pictures too small for the network: absent, which the report says
            of_frames = perceptual(evaluators.lpips, a.to(evaluators.device), b.to(evaluators.device))
            found["lpips"] = of_frames.view(per_item).mean(dim=1).cpu()
    if originals.ndim == 5:
        found["motion"], found["motion_original"] = motion(reconstructions), motion(originals)
        found["motion_error"] = motion_error(originals, reconstructions)
    return found


def _one_frame_each(pixels: Tensor, first: int) -> Tensor:
    """Item `first` + i of a batch by its frame (first + i) mod T: independent pictures that cover all times."""
    if pixels.ndim == 4:
        return pixels
    return torch.stack([clip[:, (first + i) % clip.shape[1]] for i, clip in enumerate(pixels)])


def _batches(held_out: Items, batch_size: int) -> Iterator[Tensor]:
    batch: list[Tensor] = []
    for pixels in held_out:
        batch.append(pixels)
        if len(batch) == batch_size:
            yield torch.stack(batch)
            batch = []
    if batch:
        yield torch.stack(batch)


def _write(path: Path, measured: Measured) -> None:
    arrays: dict[str, Any] = {f"item_{name}": values for name, values in measured.items.items()}
    with atomic_file(path) as file:
        np.savez(
            file,
            frame_psnr=measured.frame_psnr,
            counts=measured.counts,
            features_originals=measured.features[0],
            features_reconstructions=measured.features[1],
            skipped=np.array(measured.skipped, dtype=np.str_).reshape(-1, 2),
            **arrays,
        )


def _read(path: Path) -> Measured:
    with np.load(path) as file:
        return Measured(
            {name.removeprefix("item_"): file[name] for name in file.files if name.startswith("item_")},
            file["frame_psnr"],
            file["counts"],
            (file["features_originals"], file["features_reconstructions"]),
            [tuple(map(str, row)) for row in file["skipped"]],
        )
