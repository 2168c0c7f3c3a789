"""Colour palette tokens: every pixel is the number of the nearest of K colours (iGPT, Chen et al. 2020, section 3.1).

The simplest tokenizer there is: a picture of 64 x 64 pixels is a grid of 64 x 64 tokens, and the codebook is a table of
512 colours. Nothing is learned but the table, by k-means over pixels of the frames (`fit_palette`); squared distances
are those of 8-bit RGB, as in the original. What it loses is said as the mean squared error of pixels of frames that
the palette was not fitted on.

    fit_palette("frames", "runs/palette") -> weights.safetensors + card.json, which load_tokenizer("runs/palette") reads
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import headcam
from headcam.errors import DecodeError, InputError
from headcam.progress import Progress
from headcam.randomness import permuted, stream
from headcam.ssl.weights import save_weights
from headcam.tokenizers.autoencoders.tokenizer import Tokenizer
from headcam.tokenizers.quantizers.kmeans import kmeans
from headcam.tokenizers.quantizers.quantizer import Quantized, Quantizer, places_back, places_last, straight_through
from headcam.tokenizers.token_rows import Skipped, open_source
from headcam.video.sampling.manifest import Manifest
from headcam.video.transforms import Cut, center_box

_CHUNK = 1 << 12  # pixels whose distances to all colours are kept at a time: 8 MB at 512 colours
_HELD_OUT = 10  # every tenth frame is kept for the error
_ITERATIONS = 50  # of k-means


class PaletteTokenizer(Tokenizer):
    """Pictures as one token a pixel. Its weights are the colours, `quantizer.codebook` (K, 3) float32 in 0..255.

    Args:
        img_size: side in pixels, or (H, W); also the grid of the tokens.
        codebook_size: K, number of colours.
    """

    def __init__(self, img_size: int | Sequence[int] = 64, codebook_size: int = 512):
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if min(size) < 1 or codebook_size < 1:
            raise InputError(f"a palette of {codebook_size} colours for {size} pixels", "give at least 1 of each")
        super().__init__(size, size, NearestColour(codebook_size, 3), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self.arguments = {"img_size": list(size), "codebook_size": codebook_size}

    def latents(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> 0..255, whole numbers again, whichever way they were divided by 255."""
        return (images.float() * 255).round()

    def pixels(self, quantized: Tensor) -> Tensor:
        return quantized / 255


class NearestColour(Quantizer):
    """The nearest colour of a table, by squared distance in float32; the first of several that are equally near.

    Differences are squared, not expanded: with three numbers that costs nothing, and keeps colours apart that differ by
    less than the rounding of |x|^2. The table is a buffer: it is fitted before, not trained.
    """

    def __init__(self, codebook_size: int, dim: int = 3):
        super().__init__(codebook_size, dim)
        self.register_buffer("codebook", torch.zeros(codebook_size, dim))

    def forward(self, latents: Tensor, noise: Tensor | None = None) -> Quantized:
        rows = places_last(latents.detach())
        indices = places_back(nearest_colour(rows, self.codebook)[:, None], latents)[:, 0]
        quantized = straight_through(latents.float(), self.dequantize(indices))
        return Quantized(quantized, indices, torch.zeros((), device=latents.device))

    def dequantize(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.codebook).movedim(-1, 1)


def nearest_colour(colours: Tensor, palette: Tensor) -> Tensor:
    """Number of the nearest colour of `palette` (K, D) for each of `colours` (N, D), float32: (N,) int64."""
    palette = palette.float()
    out = torch.empty(len(colours), dtype=torch.int64, device=colours.device)
    for start in range(0, len(colours), _CHUNK):
        some = colours[start : start + _CHUNK].float()
        distances = (some[:, :1] - palette[:, 0]).square_()
        for d in range(1, palette.shape[1]):
            difference = some[:, d : d + 1] - palette[:, d]
            distances.addcmul_(difference, difference)
        out[start : start + _CHUNK] = distances.argmin(1)
    return out


@dataclass(frozen=True)
class PaletteResult:
    """What fitting a palette came to.

    Attributes:
        folder: with `weights.safetensors` and `card.json`.
        frames, pixels: that the palette was fitted on.
        held_out_frames: further frames, whose pixels the error is of; 0 where there are too few frames to keep any
            apart, and the error is of the fitted pixels.
        mse: mean over these pixels of the squared error, per channel, in units of 8-bit RGB.
        mse_one_colour: the same with the mean colour of the fitted pixels for all of them.
        skipped: frames that could not be decoded, with the reason.
    """

    folder: Path
    frames: int
    pixels: int
    held_out_frames: int
    mse: float
    mse_one_colour: float
    skipped: tuple[Skipped, ...]


def fit_palette(
    data: str | Path,
    out: str | Path,
    *,
    codebook_size: int = 512,
    img_size: int = 64,
    pixels_per_frame: int = 32,
    max_frames: int = 10_000,
    seed: int = 0,
    manifest: str | Path | None = None,
    quiet: bool = False,
) -> PaletteResult:
    """Fit a palette to pixels of frames and save it as a tokenizer. Called again, it finds it made.

    Args:
        data: frame store, or file of `headcam index`.
        out: folder for `weights.safetensors` and `card.json`.
        codebook_size: number of colours.
        img_size: side in pixels of the central crops that pixels are drawn from, and of the tokenizer's pictures.
        pixels_per_frame: drawn from each frame, all different (32 in the reimplementation of iGPT that comes first).
        max_frames: frames drawn from the data, where they hold more; every tenth is kept for the error.
        seed: of the draws and of k-means.
        manifest: file of `headcam subset`; only its seconds are drawn from.
    Raises:
        InputError: a setting out of range, too few colours in the data, or `out` holds something else.
    """
    settings = {
        "codebook_size": codebook_size,
        "img_size": img_size,
        "pixels_per_frame": pixels_per_frame,
        "max_frames": max_frames,
        "seed": seed,
    }
    for name, value in settings.items():
        if name != "seed" and value < 1:
            raise InputError(f"{name} is {value}", "give at least 1")
    if pixels_per_frame > img_size**2:
        raise InputError(
            f"pixels_per_frame is {pixels_per_frame}, and a frame has {img_size**2} pixels",
            f"give at most {img_size**2}",
        )
    parent = None if manifest is None else Manifest.read(manifest)
    source = open_source(data, 1, manifest=parent)
    made_of = {
        **settings,
        **source.origin(),
        "manifest_hash": None if parent is None else parent.hash,
        "units": len(source.units),
    }
    folder = Path(out)
    found = _made_before(folder, made_of)
    if found is not None:
        return found

    units = source.units
    chosen = permuted(np.arange(min(max_frames, len(units))), len(units), seed, "palette frames")
    held_out = set(chosen[_HELD_OUT - 1 :: _HELD_OUT].tolist())
    fitted, held, skipped = [], [], []
    with Progress("drawing pixels", total=len(chosen), unit="frames", quiet=quiet) as progress:
        for unit in sorted(chosen.tolist()):  # in the order of the file
            recording = str(units.facts.ids[units.recording_of(np.int64(unit))])
            time_s = float(units.time_of(np.int64(unit)))
            try:
                pixels = _pixels(source, unit, time_s, img_size, pixels_per_frame, seed)
                (held if unit in held_out else fitted).append(pixels)
            except DecodeError as error:
                seconds = float(units.seconds_of(np.int64(unit)))
                skipped.append(Skipped(recording, time_s, seconds, " ".join(error.problem.split())))
            progress.advance(current=recording)
    points = np.concatenate(fitted) if fitted else np.empty((0, 3), np.uint8)
    colours = len(np.unique(points, axis=0))
    if colours < codebook_size:
        raise InputError(
            f"{len(points)} pixels of {len(fitted)} frames have {colours} different colours, too few for "
            f"codebook_size {codebook_size}",
            "lower codebook_size, raise pixels_per_frame, or give more frames",
        )
    palette = kmeans(torch.from_numpy(points).float(), codebook_size, seed=seed, iterations=_ITERATIONS)[0].float()

    tokenizer = PaletteTokenizer(img_size, codebook_size)
    tokenizer.quantizer.codebook.copy_(palette)
    test = torch.from_numpy(np.concatenate(held) if held else points).float()
    mean = torch.from_numpy(points).double().mean(0)
    result = PaletteResult(
        folder=folder,
        frames=len(fitted),
        pixels=len(points),
        held_out_frames=len(held),
        mse=float((test - palette[nearest_colour(test, palette)]).double().square().mean()),
        mse_one_colour=float((test.double() - mean).square().mean()),
        skipped=tuple(skipped),
    )
    save_weights(folder, tokenizer, _card(tokenizer, folder.name, made_of, result))
    return result


def _pixels(source: Any, unit: int, time_s: float, img_size: int, count: int, seed: int) -> np.ndarray:
    """(count, 3) uint8: different pixels of a frame's largest central square."""
    width, height = (int(side) for side in source.units.size_of(np.int64(unit)))
    size = (img_size, img_size)
    (image,) = source.views(unit, time_s, [Cut(center_box(width, height, size), size)])
    where = stream(seed, "palette pixels", unit).choice(img_size**2, size=count, replace=False)
    return image.reshape(-1, 3)[where]


def _card(tokenizer: PaletteTokenizer, name: str, made_of: dict[str, Any], result: PaletteResult) -> dict[str, Any]:
    facts = {key: getattr(result, key) for key in ("frames", "pixels", "held_out_frames", "mse", "mse_one_colour")}
    return {
        "contract": "card",
        "version": 1,
        "headcam": headcam.__version__,
        "name": name,
        "objective": "palette",
        "architecture": {"class": "PaletteTokenizer", "arguments": tokenizer.arguments},
        "parameters": 0,
        "parameters_total": 0,
        "img_size": list(tokenizer.img_size),
        "mean": list(tokenizer.mean),
        "std": list(tokenizer.std),
        "manifest_hash": made_of["manifest_hash"],
        "palette": made_of | facts | {"skipped": [vars(skip) for skip in result.skipped]},
    }


def _made_before(folder: Path, made_of: dict[str, Any]) -> PaletteResult | None:
    """The palette that `folder` holds, if it is the one that is wanted; None where it holds none."""
    if not (folder / "card.json").exists():
        return None
    found = json.loads((folder / "card.json").read_text("utf-8")).get("palette", {})
    other = [key for key, value in made_of.items() if found.get(key, ...) != value]
    if other:
        raise InputError(
            f"{folder} holds {'a palette of another ' + other[0] if found else 'other weights'}",
            "give another folder, or remove this one",
        )
    facts = {key: found[key] for key in ("frames", "pixels", "held_out_frames", "mse", "mse_one_colour")}
    return PaletteResult(folder=folder, skipped=tuple(Skipped(**skip) for skip in found["skipped"]), **facts)
