"""The surfaces of the synthetic world: small tileable patterns, drawn once and looked up by the renderer.

A pattern is an RGB picture of weights in [0, 1]: 0 shows a surface's first colour, 1 its second, channel by channel.
So one wood grain serves oak and walnut, and a pattern that has colours of its own (books, paintings, the view from a
window) is shown as it is between black and white. All patterns stand one after the other in one flat table, each in
six sizes (a "mip map"), because a lookup in the size that fits the distance neither shimmers nor costs more.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from headcam.randomness import stream

SIDE = 128  # texels; a power of two, so that tiling is a bit mask
LEVELS = 6  # 128, 64, ..., 4 texels


class Atlas(NamedTuple):
    """All patterns: `texels (n, 3)` float32 in [0, 1] and `offset (pattern, level)`, the row where each begins."""

    texels: np.ndarray
    offset: np.ndarray


def _noise(rng: np.random.Generator, cells_y: int, cells_x: int) -> np.ndarray:
    """Smooth tileable noise `(SIDE, SIDE)` in about [0, 1] with so many bumps along each side."""
    grid = np.pad(rng.random((cells_y, cells_x), dtype=np.float32), 2, mode="wrap")
    scale_y, scale_x = SIDE // cells_y, SIDE // cells_x
    fine = cv2.resize(grid, None, fx=scale_x, fy=scale_y, interpolation=cv2.INTER_CUBIC)
    return np.clip(fine[2 * scale_y : -2 * scale_y, 2 * scale_x : -2 * scale_x], 0, 1)


def _plain(rng: np.random.Generator) -> np.ndarray:
    return np.zeros((SIDE, SIDE), np.float32)


def _plaster(rng: np.random.Generator) -> np.ndarray:
    return 0.5 * _noise(rng, 4, 4) + 0.3 * _noise(rng, 32, 32) + 0.2 * _noise(rng, 128, 128)


def _wood(rng: np.random.Generator) -> np.ndarray:
    grain = 0.55 * _noise(rng, 64, 2) + 0.25 * _noise(rng, 128, 4) + 0.2 * _noise(rng, 8, 2)
    return np.clip(1.5 * grain - 0.3, 0, 1)


def _planks(rng: np.random.Generator) -> np.ndarray:
    picture = np.empty((SIDE, SIDE), np.float32)
    for row in range(4):
        grain = _wood(rng)[:32]
        tone = 0.35 * rng.random(2)
        seam = int(rng.integers(16, 112))
        plank = 0.55 * np.roll(grain, seam, axis=1) + np.where(np.arange(SIDE) < seam, tone[0], tone[1])
        plank[:1], plank[:, seam : seam + 1], plank[:, :1] = 1, 1, 1
        picture[32 * row : 32 * row + 32] = plank
    return np.clip(picture, 0, 1)


def _tiles(rng: np.random.Generator) -> np.ndarray:
    tone = np.kron(0.3 * rng.random((2, 2)), np.ones((64, 64)))
    y, x = np.mgrid[:SIDE, :SIDE] % 64
    return np.where((y < 3) | (x < 3), 1, tone + 0.1 * _noise(rng, 32, 32)).astype(np.float32)


def _carpet(rng: np.random.Generator) -> np.ndarray:
    return 0.75 * rng.random((SIDE, SIDE), dtype=np.float32) + 0.25 * _noise(rng, 8, 8)


def _stripes(rng: np.random.Generator) -> np.ndarray:
    return np.broadcast_to((np.arange(SIDE) // 32 % 2).astype(np.float32), (SIDE, SIDE))


def _checker(rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE] // 32
    return ((y + x) % 2).astype(np.float32)


def _dots(rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE] % 64 - 31.5
    return (np.hypot(y, x) < 17).astype(np.float32)


def _flowers(rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    shifted = np.where(y < 64, x, x + 32) % 64 - 31.5
    down = y % 64 - 31.5
    petals = np.hypot(shifted, down) < 12 + 8 * np.cos(5 * np.arctan2(down, shifted))
    return 0.8 * petals.astype(np.float32) + 0.2 * _noise(rng, 64, 64)


def _leaves(rng: np.random.Generator) -> np.ndarray:
    return np.clip(2.5 * _noise(rng, 16, 16) - 0.8, 0, 1)


def _books(rng: np.random.Generator) -> np.ndarray:
    """Spines side by side, some lower than the others, before the dark back of a shelf."""
    picture = np.full((SIDE, SIDE, 3), 0.05, np.float32)
    x = 0
    while x < SIDE:
        width, top = int(rng.integers(5, 14)), int(rng.integers(2, 44))
        spine = rng.random(3) ** 1.5 * rng.uniform(0.3, 0.95)
        picture[top:, x : x + width - 1] = spine
        band = top + int(rng.integers(8, 28))
        picture[band : band + 5, x : x + width - 1] = 1 - 0.7 * spine
        x += width
    return picture


def _painting(rng: np.random.Generator) -> np.ndarray:
    """A frame, a passe-partout and a few bold shapes."""
    picture = np.full((SIDE, SIDE, 3), rng.uniform(0.1, 0.9, 3), np.float32)
    for _ in range(6):
        colour = tuple(float(c) for c in rng.random(3))
        a, b = (tuple(int(v) for v in rng.integers(0, SIDE, 2)) for _ in range(2))
        if rng.random() < 0.5:
            cv2.circle(picture, a, int(rng.integers(8, 40)), colour, -1)
        else:
            cv2.rectangle(picture, a, b, colour, -1)
    picture[:16], picture[-16:], picture[:, :16], picture[:, -16:] = (0.92,) * 4
    frame = rng.choice([[0.12, 0.07, 0.03], [0.03, 0.03, 0.03], [0.55, 0.4, 0.15]])
    picture[:7], picture[-7:], picture[:, :7], picture[:, -7:] = (frame,) * 4
    return picture


def _window(rng: np.random.Generator) -> np.ndarray:
    """Sky, hills and a cross of white bars."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    picture = np.stack([0.45 + 0.4 * y, 0.65 + 0.3 * y, np.ones_like(y)], -1).astype(np.float32)
    picture += 0.35 * np.clip(2 * _noise(rng, 4, 2) - 1, 0, 1)[..., None]
    hills = y > 0.68 + 0.1 * np.sin(5 * x + 6 * rng.random()) + 0.05 * np.sin(13 * x)
    picture[hills] = np.array([0.18, 0.36, 0.12]) * (0.6 + 0.6 * _noise(rng, 32, 32)[hills, None])
    for at in (0, 61, 122):
        picture[at : at + 6] = picture[:, at : at + 6] = (0.85, 0.85, 0.82)
    return np.clip(picture, 0, 1)


def _door(rng: np.random.Generator) -> np.ndarray:
    picture = 0.15 * _wood(rng).T
    for top, bottom in ((10, 52), (64, 118)):
        for left, right in ((14, 58), (70, 114)):
            picture[top:bottom, left:right] = 0.8
            picture[top + 3 : bottom - 3, left + 3 : right - 3] = 0.25
    return picture


def _page(rng: np.random.Generator) -> np.ndarray:
    """A cover: a plain field with a title bar and a round picture."""
    picture = np.zeros((SIDE, SIDE), np.float32)
    picture[14:30, 20:108] = 1
    cv2.circle(picture, (64, 80), 26, 1.0, -1)
    return picture


_PATTERNS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "plain": _plain,
    "plaster": _plaster,
    "wood": _wood,
    "planks": _planks,
    "tiles": _tiles,
    "carpet": _carpet,
    "stripes": _stripes,
    "checker": _checker,
    "dots": _dots,
    "flowers": _flowers,
    "leaves": _leaves,
    "door": _door,
    "page": _page,
    **{f"books{i}": _books for i in range(4)},
    **{f"painting{i}": _painting for i in range(8)},
    **{f"window{i}": _window for i in range(3)},
}

NAMES = tuple(_PATTERNS)


@lru_cache(maxsize=1)
def atlas() -> Atlas:
    """Draw all patterns (some milliseconds, once a process); the same on every call and in every process."""
    texels, offset, start = [], np.zeros((len(NAMES), LEVELS), np.int32), 0
    for i, name in enumerate(NAMES):
        picture = np.asarray(_PATTERNS[name](stream(0, f"texture:{name}", i)), np.float32)
        if picture.ndim == 2:
            picture = np.repeat(picture[..., None], 3, axis=2)
        for level in range(LEVELS):
            offset[i, level] = start
            texels.append(picture.reshape(-1, 3))
            start += len(texels[-1])
            picture = picture.reshape(len(picture) // 2, 2, len(picture) // 2, 2, 3).mean((1, 3))
    return Atlas(np.ascontiguousarray(np.concatenate(texels), dtype=np.float32), offset)
