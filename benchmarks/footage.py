"""Generated footage for the decoding benchmarks: what a walking camera sees, encoded as phones and cameras do.

Ground whose amplitude spectrum falls as 1/f^1.3, like that of natural pictures, passes under a swaying, turning view;
textured things with sharp edges move before it, and the sensor adds noise. x264, preset medium, CRF 23, three
B-frames, a key frame every 250 frames at most: about half of the frames are references of no other frame.
"""

import math
import os
from collections.abc import Iterator

import av
import cv2
import numpy as np

from headcam.randomness import stream

_TEXTURE = (1024, 2048)  # height, width; period of the ground, which is a torus
_NOISE = 1.6  # standard deviation of the sensor's noise, of 255
_NOISES = 8  # noise pictures that are drawn; each frame takes one, shifted anew


def write_footage(path: str | os.PathLike, width: int, height: int, seconds: float, fps: int = 30) -> None:
    """Write `seconds` of footage, `width` x `height` (even numbers of pixels); the suffix names the container."""
    with av.open(os.fspath(path), "w") as container:
        video = container.add_stream("libx264", rate=fps)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.options = {"preset": "medium", "crf": "23", "x264-params": "bframes=3:keyint=250"}
        for image in walking_frames(width, height, round(seconds * fps), fps):
            for packet in video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in video.encode():
            container.mux(packet)


def walking_frames(width: int, height: int, count: int, fps: int) -> Iterator[np.ndarray]:
    """Yield `count` frames, (height, width, 3) uint8 RGB."""
    rng = stream(0, "benchmark footage", 0)
    ground, cloth = texture(rng), texture(rng)
    noises = (rng.standard_normal((_NOISES, height, width, 1)) * _NOISE).round().astype(np.int16)
    shapes = [(rng.uniform(0, 1, 2), rng.uniform(0.05, 0.3, 2), rng.uniform(0, 180), k % 2) for k in range(8)]
    zoom = _TEXTURE[1] / 1.6 / width  # the view is some 1280 texels wide whatever its pixels
    for i in range(count):
        t = i / fps
        # A step a second, a slow look around, and a walk forward.
        place = np.array([300 * math.sin(0.31 * t) + 80 * t, 120 * math.sin(0.47 * t) + 9 * math.sin(6.3 * t)])
        turn = 4 * math.sin(0.9 * t) + 0.8 * math.sin(5.9 * t)
        image = _view(ground, place, turn, zoom, width, height)
        cover = _view(cloth, -1.5 * place, -turn, zoom, width, height)
        mask = np.zeros((height, width), np.uint8)
        for where, extent, angle, is_round in shapes:
            center = (where * (width, height) - 1.7 * place / zoom) % (1.3 * width, 1.3 * height)
            box = tuple(center.tolist()), tuple((extent * width).tolist()), angle + turn
            if is_round:
                cv2.ellipse(mask, box, 255, -1, cv2.LINE_AA)
            else:
                cv2.fillPoly(mask, [cv2.boxPoints(box).astype(np.int32)], 255, cv2.LINE_AA)
        image = np.where(mask[..., None] > 127, cover // 2 + 90, image)
        noise = np.roll(noises[i % _NOISES], rng.integers(0, (height, width)), axis=(0, 1))
        yield np.clip(image + noise, 0, 255).astype(np.uint8)


def texture(rng: np.random.Generator) -> np.ndarray:
    """(1024, 2048, 3) uint8 on a torus, with amplitude 1/f^1.3 and mostly luma contrast."""
    height, width = _TEXTURE
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    planes = np.fft.irfft2(np.exp(2j * np.pi * rng.random((3, *frequency.shape))) / frequency**1.3, (height, width))
    planes /= planes.std(axis=(1, 2), keepdims=True)
    luma, blue, red = planes
    return np.clip(np.stack([luma + 0.25 * red, luma, luma + 0.25 * blue], axis=-1) * 45 + 120, 0, 255).astype(np.uint8)


def _view(ground: np.ndarray, place: np.ndarray, turn: float, zoom: float, width: int, height: int) -> np.ndarray:
    """What a camera at `place` (texels) turned by `turn` degrees sees of a torus; `zoom` texels a pixel."""
    cos, sin = zoom * math.cos(math.radians(turn)), zoom * math.sin(math.radians(turn))
    x, y = place - (cos * width / 2 - sin * height / 2, sin * width / 2 + cos * height / 2)
    matrix = np.array([[cos, -sin, x], [sin, cos, y]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(ground, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_WRAP)
