"""Pictures of samples: labelled sheets, film strips, animations (GIF, MP4), and maps of surprise beside their photo.

Samples are shown as they are: nothing is drawn into them, neither lines nor marks. What is to be said stands in white
margins around them. Small ones are enlarged by a whole factor, each pixel to a square of equal pixels.

Shapes: tiles (H, W, 3) uint8, animations (T, H, W, 3) uint8; `grid` (h, w) or (t, h, w).
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from headcam.files import atomic_file
from headcam.video.transforms import Box

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GAP = 4  # pixels of white between tiles
_LINE = 18  # pixels of a line of text
_LEAST_SIDE = 128  # pixels; smaller tiles are enlarged to at least that
_FONT_SIZE = 12
_LN2 = math.log(2)


def sheet(rows: Sequence[Sequence[np.ndarray]], labels: Sequence[str] = (), names: Sequence[str] = ()) -> np.ndarray:
    """Tiles of one size in rows, with a label above each column and a name left of each row.

    Args:
        rows: of (H, W, 3) uint8; they may differ in length.
        labels: as many as the longest row has tiles, or none; cut where they are wider than a tile.
        names: as many as there are rows, or none.
    Returns:
        (height, width, 3) uint8; `tile_box` says where a tile lies.
    """
    side, columns, font = rows[0][0].shape[:2], max(len(row) for row in rows), _font()
    margin = math.ceil(max((font.getlength(name) for name in names), default=-_GAP)) + _GAP
    boxes = [[tile_box(i, j, side, bool(labels), margin) for j in range(columns)] for i in range(len(rows))]
    last = boxes[-1][-1]
    canvas = np.full((last.top + last.height + _GAP, last.left + last.width + _GAP, 3), 255, np.uint8)
    for row, places in zip(rows, boxes):
        for tile, box in zip(row, places):
            factor = box.width // side[1]
            enlarged = tile.repeat(factor, 0).repeat(factor, 1)
            canvas[box.top : box.top + box.height, box.left : box.left + box.width] = enlarged
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    for text, box in zip(labels, boxes[0]):
        while font.getlength(text) > box.width:
            text = text[:-1]
        draw.text((box.left, _GAP), text, fill="black", font=font)
    for name, (box, *_) in zip(names, boxes):
        draw.text((_GAP, box.top), name, fill="black", font=font)
    return np.asarray(image)


def tile_box(row: int, column: int, side: tuple[int, int], labelled: bool, margin: int = 0) -> Box:
    """Where tile (row, column) of a `sheet` of tiles (H, W) lies, in pixels of the sheet; `margin` is for names."""
    factor = max(1, -(-_LEAST_SIDE // max(side)))
    height, width = side[0] * factor, side[1] * factor
    top = _GAP + labelled * _LINE + row * (height + _GAP)
    return Box(margin + _GAP + column * (width + _GAP), top, width, height)


def animation(rows: Sequence[Sequence[np.ndarray]], labels: Sequence[Sequence[str]]) -> np.ndarray:
    """Clips of one size and length in rows, playing together: (T, height, width, 3) uint8.

    Args:
        rows: of clips (T, H, W, 3) uint8.
        labels: for each frame, one for each column.
    """
    return np.stack(
        [sheet([[clip[frame] for clip in row] for row in rows], named) for frame, named in enumerate(labels)]
    )


def write_gif(path: str | Path, frames: np.ndarray, step_s: float) -> None:
    """Write (T, H, W, 3) uint8 as a GIF that repeats, whole or not at all.

    Args:
        step_s: seconds that a frame is shown; the format counts hundredths.
    """
    first, *rest = (Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames)
    with atomic_file(path) as file:
        first.save(file, "GIF", save_all=True, append_images=rest, duration=max(20, round(step_s * 1000)), loop=0)


def write_mp4(path: str | Path, frames: np.ndarray, step_s: float) -> None:
    """Write (T, H, W, 3) uint8 as MP4, whole or not at all: H.264 where PyAV has libx264, else MPEG-4 part 2.

    Args:
        step_s: seconds that a frame is shown.
    """
    # Half of the colour samples in each direction: sides have to be even.
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), constant_values=255)
    x264 = "libx264" in av.codecs_available
    with atomic_file(path) as file, av.open(file, "w", format="mp4") as container:
        rate = Fraction(1 / step_s).limit_denominator(1000)
        stream = container.add_stream("libx264" if x264 else "mpeg4", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        if x264:
            stream.options = {"crf": "16"}
        else:
            stream.bit_rate = 8_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def surprise_figure(pixels: np.ndarray, nats: np.ndarray) -> "Figure":
    """Photos beside their maps of surprise, on one scale in bits per token.

    Args:
        pixels: (B, H, W, 3) uint8, or clips (B, T, H, W, 3), of which the first frame of each slot is shown above its
            map.
        nats: (B, *grid) of each token; NaN, where the model has no say, is drawn hatched.
    """
    from matplotlib.figure import Figure

    bits = nats / _LN2
    clips = nats.ndim == 4
    top = float(np.nanmax(bits))
    rows, columns = (2 * len(bits), bits.shape[1]) if clips else (len(bits), 2)
    shape = pixels.shape[-3] / pixels.shape[-2]
    width = 2.0 if clips else 3.0
    figure = Figure(figsize=(columns * width + 1.4, rows * (width * shape + 0.42) + 0.3), layout="constrained", dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False)
    drawn = None
    for k, one in enumerate(bits):
        total = f"{np.nansum(one):.0f} bits, {np.nanmean(one):.2f} per token"
        if clips:
            stride = pixels.shape[1] // bits.shape[1]
            for slot in range(columns):
                photo, chart = axes[2 * k, slot], axes[2 * k + 1, slot]
                photo.imshow(pixels[k, slot * stride])
                photo.set_title(f"slot {slot + 1}", fontsize=9)
                drawn = _map(chart, one[slot], top, shape)
                chart.set_title(f"{np.nanmean(one[slot]):.2f} bits per token", fontsize=9)
            axes[2 * k, 0].set_ylabel(f"clip {k + 1}: {total}", fontsize=8)
        else:
            axes[k, 0].imshow(pixels[k])
            drawn = _map(axes[k, 1], one, top, shape)
            axes[k, 1].set_title(total, fontsize=9)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(drawn, ax=axes, label="surprise, bits per token", shrink=min(1.0, 0.25 + 0.75 / rows))
    return figure


def _map(axis: "matplotlib.axes.Axes", bits: np.ndarray, top: float, shape: float) -> "matplotlib.image.AxesImage":
    """One map (h, w), stretched to the shape of its photo."""
    axis.patch.set(hatch="xxxx", facecolor="0.85", edgecolor="0.5")
    drawn = axis.imshow(np.ma.masked_invalid(bits), cmap="viridis", vmin=0, vmax=top, interpolation="nearest")
    axis.set_aspect(shape * bits.shape[1] / bits.shape[0])
    return drawn


def save_figure(path: str | Path, figure: "Figure") -> None:
    """Write a figure as PNG, whole or not at all."""
    with atomic_file(path) as file:
        figure.savefig(file, format="png")


def _font() -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib: the same on every machine."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), _FONT_SIZE)
