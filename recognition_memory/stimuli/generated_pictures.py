"""The pictures of generated stimuli: how they are drawn from (seed, kind, number), and which files they go to.

What the kinds are, and how they differ from the published stimuli, is said in `generated.py` beside this file, which
calls `write_item` for each pair and filler. This module imports no torch, so that processes that only render start at
once.
"""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from headcam.files import atomic_file
from headcam.randomness import stream
from headcam.video.synthetic.objects import OBJECTS, place, turn
from headcam.video.synthetic.render import render
from headcam.video.synthetic.scene import Camera, Primitive, Room, Scene, cast, gaze

# (kind, number, size (H, W), seed) -> the two pictures of a pair, or the one of a filler: uint8 (H, W, 3) RGB
Draw = Callable[[str, int, tuple[int, int], int], list[np.ndarray]]

_FOV = 30.0  # degrees: from afar, as catalogues show things
_EXPOSURE = 0.6  # below 1, so that white things stand out from the white ground
_DIFFERENT = 12.0  # of 255: mean absolute difference of the two pictures of a pair, at least
_LYING = 0.5 * np.pi


def write_item(job: tuple[Draw, Path, str, int, tuple[int, int], int]) -> None:
    """Draw a pair or filler, job (draw, folder, kind, number, size, seed), and write it wherever it belongs.

    Nothing is drawn where all files are there.
    """
    draw, folder, kind, number, size, seed = job
    if kind == "filler":
        name = f"filler_{number:05d}.png"
        places = [[folder / f"set_{k}" / "study" / "study" / name for k in (1, 2)]]
    else:
        places = []
        for which in (1, 2):
            name = f"{kind}_{number:05d}_{which}.png"
            here, there = folder / f"set_{which}", folder / f"set_{3 - which}"
            tests = here / "test" / f"{kind}_seen", there / "test" / f"{kind}_unseen"
            places.append([here / "study" / "study" / name, *(test / f"{kind}_{which}" / name for test in tests)])
    if all(path.exists() for paths in places for path in paths):
        return
    for picture, paths in zip(draw(kind, number, size, seed), places, strict=True):
        data = BytesIO()
        Image.fromarray(picture).save(data, "PNG")
        for path in paths:
            with atomic_file(path) as file:
                file.write(data.getvalue())


def noise(kind: str, number: int, size: tuple[int, int], seed: int) -> list[np.ndarray]:
    """Pictures of independent pixels, uniform over 0 to 255 in each channel (a `Draw`)."""
    rng = stream(seed, f"memory:noise:{kind}", number)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(1 if kind == "filler" else 2)]


def rendered(kind: str, number: int, size: tuple[int, int], seed: int) -> list[np.ndarray]:
    """Pictures of objects on white (a `Draw`).

    Pairs are drawn again until their pictures differ clearly: a plain ball looks the same from all sides.
    """
    rng = stream(seed, f"memory:generated:{kind}", number)
    names = sorted(OBJECTS)
    while True:
        first, second = rng.choice(len(names), 2, replace=False)
        one = OBJECTS[names[first]](rng)
        light, pose = _light(rng), _pose(rng)
        if kind == "filler":
            return [_picture(one, *pose, light, size)]
        if kind == "state":
            others = one, *_other_pose(rng, *pose), light
        else:
            other = OBJECTS[names[second if kind == "novel" else first]](rng)
            others = other, *_pose(rng), _light(rng)
        pair = [_picture(one, *pose, light, size), _picture(*others, size)]
        if np.abs(pair[0].astype(np.float32) - pair[1]).mean() >= _DIFFERENT:
            return pair


def _pose(rng: np.random.Generator) -> tuple[np.ndarray, float, float]:
    """Rotation of an object that stands upright, pitch of the gaze in radians, and share of the picture's side."""
    return turn(rng.uniform(-np.pi, np.pi)), -rng.uniform(0.15, 0.7), rng.uniform(0.75, 0.92)


def _other_pose(
    rng: np.random.Generator, rotation: np.ndarray, pitch: float, share: float
) -> tuple[np.ndarray, float, float]:
    """Another view of what stands in the first pose: lying in half of the cases, else turned by 60 degrees or more."""
    if rng.random() < 0.5:
        rotation = turn(rng.uniform(-np.pi, np.pi)) @ turn(0, 0, _LYING * rng.choice([-1, 1])) @ rotation
    else:
        rotation = turn(rng.uniform(np.pi / 3, 5 * np.pi / 3)) @ rotation
        pitch = -rng.uniform(0.9, 1.2) if pitch > -0.45 else -rng.uniform(0.05, 0.15)
    return rotation, pitch, share


def _light(rng: np.random.Generator) -> Room:
    """A lamp above, to one side of the camera, and a bright window on the other."""
    side = rng.choice([-1, 1])
    lamp = np.array([side * rng.uniform(0.4, 1.4), rng.uniform(1.2, 2.2), -rng.uniform(0.8, 1.8)])
    return Room(
        low=np.full(3, -9.0),
        high=np.full(3, 9.0),
        lamp=lamp,
        lamp_colour=np.array([1.0, 0.97, 0.92]) * rng.uniform(0.8, 1.3),
        window=np.array([-side * 2.0, 1.0, -1.0]),
        window_normal=np.array([side * 1.0, 0.0, 0.0]),
        window_colour=np.array([0.9, 1.0, 1.15]) * rng.uniform(0.3, 0.8),
        ambient=np.full(3, 0.45),
    )


def _picture(
    parts: list[Primitive], rotation: np.ndarray, pitch: float, share: float, light: Room, size: tuple[int, int]
) -> np.ndarray:
    """One object on white, uint8 (H, W, 3): it fills `share` of the picture's narrower direction, in the middle."""
    parts = place(parts, np.zeros(3), rotation=rotation)
    corners = np.concatenate([p.corners() for p in parts])
    middle = (corners.min(0) + corners.max(0)) / 2
    view = gaze(0.0, pitch)
    right, up, forward = ((corners - middle) @ view).T
    across = (right.min() + right.max()) / 2, (up.min() + up.max()) / 2
    # The nearest place from which each corner is inside the wanted frame; the vertical field follows from the shape.
    tangent = share * np.tan(np.radians(_FOV) / 2)
    distance = max(
        np.max(np.abs(right - across[0]) / tangent - forward),
        np.max(np.abs(up - across[1]) / (tangent * size[0] / size[1]) - forward),
    )
    camera = Camera(middle + view @ [*across, -distance], view, _FOV, _EXPOSURE)
    scene = Scene(parts, [light])
    picture = render(scene, camera, size)
    # What no ray meets is black after rendering; white goes there, by the share of each pixel that the object leaves.
    empty = (cast(scene, camera, (2 * size[0], 2 * size[1])).primitive < 0).astype(np.float32)
    ground = cv2.resize(empty, size[::-1], interpolation=cv2.INTER_AREA)[..., None]
    return np.clip(picture + 255 * ground + 0.5, 0, 255).astype(np.uint8)
