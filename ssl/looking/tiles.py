"""Pictures of what models see: completions of masked autoencoders, and attention maps, as labelled tiles.

Everything is made of uint8 tiles on a white ground, one pixel for one pixel, so that no picture is resampled. A
completion is a column of three: the picture, what the model was shown of it, what it made of it. Of a clip, one frame
of each time slot is shown, in a row. An attention map lies over its darkened picture, on a scale of its own that goes
from 0 to its largest value; the tile's label says how many times that is what each patch would get if all got the same.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from headcam.files import atomic_file
from headcam.video.transforms import IMAGENET_MEAN, IMAGENET_STD

_GAP = 2  # pixels of white around a tile
_LABEL = 15  # pixels of a line of text
_ALPHA = 0.75  # of a map over its picture, where the map is at its largest


def to_uint8(images: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> np.ndarray:
    """Normalised (B, 3, H, W) float -> (B, H, W, 3) uint8."""
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (mean, std))
    pixels = (images.float() * std + mean).clamp(0, 1) * 255
    return pixels.round().byte().permute(0, 2, 3, 1).cpu().numpy()


def comparison(
    pictures: Sequence[Tensor],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    tubelet_size: int = 1,
) -> np.ndarray:
    """Versions of the same pictures, one below the other (say picture, masked picture, completion).

    Args:
        pictures: of each version a batch, normalised, (B, 3, H, W) or clips (B, 3, T, H, W).
        mean, std: that they were normalised by.
        tubelet_size: frames of a time slot, of which the first is shown.
    Returns:
        uint8 (height, width, 3): a column for each picture; for each clip a row for each version, with a column for
        each time slot.
    """

    def row(frames: Tensor) -> np.ndarray:
        return np.concatenate([_framed(tile) for tile in to_uint8(frames, mean, std)], axis=1)

    if pictures[0].ndim == 4:
        return np.concatenate([row(batch) for batch in pictures])
    rows = []
    for clip in range(len(pictures[0])):
        rows += [row(batch[clip, :, ::tubelet_size].transpose(0, 1)) for batch in pictures]
    return np.concatenate(rows)


def attention_tiles(
    images: Tensor,
    maps: Tensor,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    tubelet_size: int = 1,
) -> np.ndarray:
    """Attention over its pictures: a row for each picture (of a clip: each time slot), a column for each head.

    The first column is the picture, the second the mean of the heads.

    Args:
        images: normalised (B, 3, H, W) or (B, 3, T, H, W).
        maps: (B, heads, t, h, w), see `headcam.ssl.looking.attention_maps.class_attention`.
    Returns:
        uint8 (height, width, 3).
    """
    rows = []
    for k in range(len(images)):
        frames = images[k][:, None] if images.ndim == 4 else images[k][:, ::tubelet_size]  # (3, t, H, W)
        for slot, frame in enumerate(to_uint8(frames.transpose(0, 1), mean, std)):
            heads = maps[k, :, min(slot, maps.shape[2] - 1)]  # (heads, h, w)
            tiles = [_labelled(frame, "picture" if images.ndim == 4 else f"slot {slot + 1}")]
            even = 1 / maps[k, 0].numel()
            named = [("mean", heads.mean(0)), *((f"head {head + 1}", one) for head, one in enumerate(heads))]
            tiles += [
                _labelled(_over(frame, one), f"{name}, max {float(one.max()) / even:.1f} x") for name, one in named
            ]
            rows.append(np.concatenate(tiles, axis=1))
    return np.concatenate(rows)


def save_png(path: str | Path, picture: np.ndarray) -> None:
    """Write (H, W, 3) uint8 as PNG, whole or not at all."""
    with atomic_file(path) as file:
        Image.fromarray(picture).save(file, format="PNG")


def _over(frame: np.ndarray, values: Tensor) -> np.ndarray:
    """A map (h, w) over its picture (H, W, 3): the more attention, the more of the colour scale and the less of it."""
    size = frame.shape[:2]
    values = F.interpolate(values[None, None].float().cpu(), size=size, mode="nearest-exact")[0, 0]
    share = (values / values.max().clamp_min(1e-12)).numpy()
    colours = matplotlib.colormaps["inferno"](share)[..., :3] * 255
    grey = frame.mean(axis=2, keepdims=True) * 0.5
    alpha = _ALPHA * share[..., None] ** 0.5
    return np.rint(grey * (1 - alpha) + colours * alpha).astype(np.uint8)


def _framed(tile: np.ndarray) -> np.ndarray:
    return np.pad(tile, ((_GAP, _GAP), (_GAP, _GAP), (0, 0)), constant_values=255)


def _labelled(tile: np.ndarray, text: str) -> np.ndarray:
    """The tile in its frame, with a line of text above that is as wide as the tile allows."""
    tile = _framed(tile)
    height, width = tile.shape[:2]
    canvas = Image.new("RGB", (width, height + _LABEL), "white")
    canvas.paste(Image.fromarray(tile), (0, _LABEL))
    draw, font = ImageDraw.Draw(canvas), _font()
    while text and draw.textlength(text, font=font) > width - 2 * _GAP:
        text = text.rpartition(", ")[0] or text[:-1]
    draw.text((_GAP, 1), text, fill="black", font=font)
    return np.asarray(canvas)


def _font() -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib: the same on every machine."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 11)
