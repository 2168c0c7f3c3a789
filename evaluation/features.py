"""Pictures to frozen features, once: decoding, preprocessing, batched extraction, and a cache on disk.

    pictures ──load──▶ RGB ──extractor.prepare──▶ uint8 (B, ...) ──extractor.compute──▶ float16 (n, D) in <hash>.npy

Two extractors exist: `EncoderExtractor` (a frozen encoder in eval mode, see `load_frozen`) and `PixelExtractor` (the
baseline that needs no model). The cache is a plain .npy file of float16 that is memory-mapped, with a .json beside it
that says what it holds. Its name is a hash over the protocol, the weights themselves, the model's card and the content
of the pictures in their order; change any of them and other features are computed. Decoding runs in threads, one batch
ahead of the encoder, and the rows do not depend on their number.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from headcam.errors import InputError
from headcam.evaluation.labelled import Picture
from headcam.evaluation.protocols import EncoderFeatures, PixelFeatures
from headcam.files import atomic_file, sha256_json, write_json
from headcam.progress import Progress
from headcam.ssl.weights import ARCHITECTURES, build_encoder, load_encoder, state_hash
from headcam.tokenizers.autoregression.encoder import TokenEncoder, as_token_encoder, token_architectures

VERSION = 1  # of the contract "features"
_BATCH_SIZE = 64  # pictures; a ViT-L at 224 pixels then needs about 1 GiB for its activations
_DECODERS = min(8, os.cpu_count() or 1)  # threads; Pillow releases the interpreter's lock while it decodes and resizes


@dataclass(frozen=True)
class FeatureTable:
    """Features of a list of pictures.

    Attributes:
        values: (n, D) float16, memory-mapped, row i of picture i; zeros where the picture could not be read.
        unreadable: row -> reason.
        file: the cache file.
    """

    values: np.ndarray
    unreadable: dict[int, str]
    file: Path

    @property
    def readable(self) -> np.ndarray:
        """(n,) bool."""
        mask = np.ones(len(self.values), dtype=bool)
        mask[list(self.unreadable)] = False
        return mask


class Extractor(Protocol):
    """What `extract` needs to know of a way to get features."""

    @property
    def dim(self) -> int:
        """Number of features D."""

    @property
    def identity(self) -> dict[str, Any]:
        """All that the features follow from, apart from the pictures; JSON."""

    def prepare(self, image: Image.Image) -> np.ndarray:
        """One RGB picture as a uint8 array, of the same shape for every picture."""

    def compute(self, batch: np.ndarray) -> np.ndarray:
        """Prepared pictures (B, ...) as float32 features (B, D)."""


def load_frozen(source: str | os.PathLike, layer: str | None = None) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Whatever was trained, as an encoder of pictures in eval mode, and its card.

    Args:
        source: run folder, weights with their card beside them, or checkpoint, of an encoder, a GPT or a tokenizer.
        layer: of a GPT or tokenizer, see `headcam.tokenizers.autoregression.encoder`; None: its default one.
    Raises:
        InputError: nothing there that pictures can be encoded by, or no such layer.
    """
    model, card = load_encoder(source, {**ARCHITECTURES, **token_architectures()})
    if card["architecture"]["class"] not in ARCHITECTURES:
        return as_token_encoder(model, card, source, layer)
    if layer is not None:
        raise InputError(f"layer {layer}: {card['name']} is neither a GPT nor a tokenizer", "leave --layer out")
    return model, card


def random_twin(encoder: torch.nn.Module, card: dict[str, Any], seed: int) -> torch.nn.Module:
    """The encoder of `load_frozen` at random initialisation, which follows from `seed` alone.

    Of a GPT the tokenizer is kept: what is compared is what the GPT learned of the tokens.
    """
    return encoder.random_twin(seed) if isinstance(encoder, TokenEncoder) else build_encoder(card, seed)


class EncoderExtractor:
    """Frozen features of an encoder.

    Args:
        encoder: module with `forward_features(images (B, 3, H, W)) -> (B, P + L, D)`, `num_prefix_tokens` and
            `embed_dim`. It is moved to `device` and put into eval mode.
        card: its card; `img_size` ([H, W] in pixels), `mean` and `std` (of pixels in [0, 1]) are used.
    Raises:
        InputError: the class token is asked of an encoder without one.
    """

    def __init__(
        self, encoder: torch.nn.Module, card: dict[str, Any], protocol: EncoderFeatures, device: str | torch.device
    ):
        if protocol.pool == "cls" and encoder.num_prefix_tokens < 1:
            raise InputError(f"pool cls: {card['name']} has no class token", "use --pool avg")
        self.encoder = encoder.to(device).eval()
        self.card, self.protocol, self.device = card, protocol, torch.device(device)
        self._mean = torch.tensor(card["mean"], dtype=torch.float32, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(card["std"], dtype=torch.float32, device=self.device).view(1, 3, 1, 1)

    @property
    def dim(self) -> int:
        return self.encoder.embed_dim

    @cached_property
    def weights_hash(self) -> str:
        """See `headcam.ssl.weights.state_hash`."""
        return state_hash(self.encoder)

    @property
    def identity(self) -> dict[str, Any]:
        # Weights do not tell everything (the number of heads, the normalisation): the card does.
        return {"protocol": asdict(self.protocol), "weights": self.weights_hash, "card": sha256_json(self.card)}

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Resize and centre crop to the encoder's image size: (H, W, 3)."""
        return resize_and_crop(image, tuple(self.card["img_size"]), self.protocol.resize_ratio)

    @torch.inference_mode()
    def compute(self, batch: np.ndarray) -> np.ndarray:
        """Pictures (B, H, W, 3) uint8 to pooled features (B, D) float32."""
        images = torch.from_numpy(batch).to(self.device).permute(0, 3, 1, 2).float().div_(255)
        tokens = self.encoder.forward_features((images - self._mean) / self._std)  # (B, P + L, D)
        if self.protocol.pool == "cls":
            pooled = tokens[:, 0]
        else:
            pooled = tokens[:, self.encoder.num_prefix_tokens :].mean(dim=1)
        return pooled.float().cpu().numpy()


class PixelExtractor:
    """The picture itself, averaged over area to `side` x `side`, as side * side * 3 values in [0, 1]."""

    def __init__(self, protocol: PixelFeatures):
        self.protocol = protocol

    @property
    def dim(self) -> int:
        return self.protocol.side**2 * 3

    @property
    def identity(self) -> dict[str, Any]:
        return {"protocol": asdict(self.protocol)}

    def prepare(self, image: Image.Image) -> np.ndarray:
        """The whole picture, its sides changed independently: (side, side, 3)."""
        return np.asarray(image.resize((self.protocol.side, self.protocol.side), Image.Resampling.BOX))

    def compute(self, batch: np.ndarray) -> np.ndarray:
        """(B, side, side, 3) uint8 to (B, side * side * 3) float32."""
        return batch.reshape(len(batch), -1).astype(np.float32) / 255


def load_picture(path: str | os.PathLike) -> Image.Image:
    """Decode a picture to 8-bit RGB; grey is repeated, transparency dropped, 16-bit grey scaled to 8 bits.

    Raises whatever Pillow raises on a broken file.
    """
    with Image.open(path) as image:
        if image.mode.startswith("I;16"):  # Pillow would clip it at 255
            return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
        return image.convert("RGBA" if "transparency" in image.info else "RGB").convert("RGB")


def resize_and_crop(image: Image.Image, img_size: tuple[int, int], resize_ratio: float) -> np.ndarray:
    """Scale a picture so that it just covers round(`resize_ratio` * `img_size`), keeping its shape; crop the middle.

    For a square `img_size` the short side becomes round(resize_ratio * img_size). Bicubic; Pillow widens the filter
    where it shrinks (antialiasing). Small pictures are scaled up.

    Args:
        image: RGB picture.
        img_size: (H, W) in pixels.
    Returns:
        (H, W, 3) uint8.
    """
    height, width = img_size
    scale = max(round(height * resize_ratio) / image.height, round(width * resize_ratio) / image.width)
    resized = image.resize(
        (max(width, round(image.width * scale)), max(height, round(image.height * scale))), Image.Resampling.BICUBIC
    )
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    return np.asarray(resized.crop((left, top, left + width, top + height)))


def extract(
    extractor: Extractor,
    pictures: tuple[Picture, ...],
    cache: str | os.PathLike,
    *,
    description: str = "features",
    batch_size: int = _BATCH_SIZE,
    quiet: bool = False,
) -> FeatureTable:
    """Features of `pictures`, from the folder `cache` where they are there already, else computed and put there.

    Args:
        extractor: what turns pictures into features.
        pictures: n pictures; row i of the result is that of picture i.
        cache: folder of `<hash>.npy` and `<hash>.json`, made where missing.
        batch_size: pictures at a time; changes memory and speed, not results beyond rounding.
    Raises:
        InputError: not one picture can be decoded, or a feature is not finite in float16.
        StorageError: the cache cannot be written.
    """
    about = {
        "contract": "features",
        "version": VERSION,
        **extractor.identity,
        "pictures": sha256_json([p.sha256 for p in pictures]),
    }
    key = sha256_json(about)
    values_file, about_file = Path(cache, f"{key}.npy"), Path(cache, f"{key}.json")
    if not (values_file.is_file() and about_file.is_file()):
        unreadable = _write(extractor, pictures, values_file, description, batch_size, quiet)
        # Last: where the .json stands, the .npy is complete and belongs to it.
        about |= {"shape": [len(pictures), extractor.dim], "unreadable": unreadable}
        write_json(about_file, about)
    return _open(values_file, about_file)


def _open(values_file: Path, about_file: Path) -> FeatureTable:
    try:
        about = json.loads(about_file.read_text("utf-8"))
        values = np.load(values_file, mmap_mode="r", allow_pickle=False)
        if list(values.shape) != about["shape"]:
            raise ValueError(f"shape {values.shape} is not {about['shape']}")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"feature cache {values_file} is damaged: {error}", "remove it and run again") from error
    return FeatureTable(values, {int(row): reason for row, reason in about["unreadable"].items()}, values_file)


def _write(
    extractor: Extractor,
    pictures: tuple[Picture, ...],
    file: Path,
    description: str,
    batch_size: int,
    quiet: bool,
) -> dict[int, str]:
    """Compute all rows into `file`; returns row -> reason of the pictures that cannot be decoded."""
    unreadable: dict[int, str] = {}
    header = {"descr": "<f2", "fortran_order": False, "shape": (len(pictures), extractor.dim)}
    with (
        Progress(description, len(pictures), "pictures", quiet) as progress,
        atomic_file(file) as out,
    ):
        np.lib.format.write_array_header_1_0(out, header)
        for start, loaded in _batches(extractor, pictures, batch_size):
            rows = np.zeros((len(loaded), extractor.dim), dtype="<f2")
            good = [i for i, item in enumerate(loaded) if isinstance(item, np.ndarray)]
            unreadable |= {start + i: item for i, item in enumerate(loaded) if isinstance(item, str)}
            if good:
                with np.errstate(over="ignore"):  # found and named below
                    rows[good] = extractor.compute(np.stack([loaded[i] for i in good]))
                _check_finite(rows, start, pictures)
            out.write(rows.tobytes())
            progress.advance(len(loaded), pictures[start].name)
        if len(unreadable) == len(pictures):
            raise InputError(
                f"none of the {len(pictures)} pictures can be decoded; {pictures[0].path}: {unreadable[0]}",
                "check that the files are pictures",
            )
    return unreadable


def _batches(
    extractor: Extractor, pictures: tuple[Picture, ...], batch_size: int
) -> Iterator[tuple[int, list[np.ndarray | str]]]:
    """(first row, prepared pictures or reasons) of one batch after the other, decoded one batch ahead."""

    def load(picture: Picture) -> np.ndarray | str:
        try:
            image = load_picture(picture.path)
        except Exception as error:  # on garbage, Pillow's decoders raise anything from OSError to struct.error
            return f"{type(error).__name__}: {error}".replace(str(picture.path), "the file")
        return extractor.prepare(image)

    with ThreadPoolExecutor(_DECODERS) as pool:
        ahead = None
        for start in range(0, len(pictures), batch_size):
            futures = [pool.submit(load, picture) for picture in pictures[start : start + batch_size]]
            if ahead is not None:
                yield ahead[0], [future.result() for future in ahead[1]]
            ahead = (start, futures)
        if ahead is not None:
            yield ahead[0], [future.result() for future in ahead[1]]


def _check_finite(rows: np.ndarray, start: int, pictures: tuple[Picture, ...]) -> None:
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        raise InputError(
            f"features of {pictures[start + bad[0]].name} are not finite in float16",
            "check the weights for NaN and the training log for a loss that diverged",
        )
