"""The embedded synthetic headcam world: videos and labelled pictures for runs with no data at hand.

`render_walks` writes videos of somebody who walks through furnished rooms and looks at the things in them;
`render_labelled` writes close-ups of the same kinds of things, sorted by class, as a probe set. Nothing is downloaded
and nothing is read: every pixel follows from the seed. Files are complete under their final name, those that are there
are kept, and the work may be spread over processes: none of this changes a byte.

The world from the outside in: this file (videos and pictures), `walk` (where the wearer goes and looks),
`rooms` (homes and furniture), `objects` (the kinds of things), `render` (light and
shadow), `scene` (the ray caster) and `textures` (patterns of surfaces).
"""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
import simplejpeg

from headcam.errors import InputError
from headcam.files import atomic_file, claim
from headcam.progress import Progress
from headcam.randomness import stream
from headcam.video.synthetic.objects import OBJECTS, height, place, radius, turn
from headcam.video.synthetic.render import render
from headcam.video.synthetic.rooms import Home, build_home
from headcam.video.synthetic.scene import Camera, Scene, cast, gaze
from headcam.video.synthetic.walk import walk

_VERSION = 1  # of the world; a folder that another version began is not continued
_SETTINGS = "synthetic.json"
_ROOMS = 3  # per walk
_CHUNK = 20  # labelled pictures per unit of work
_SHARE = (0.08, 0.6)  # of a labelled picture's pixels that its object covers


def render_walks(
    folder: str | Path,
    *,
    num_walks: int,
    seconds: float,
    fps: float,
    size: tuple[int, int],
    seed: int,
    processes: int = 1,
    progress: Progress | None = None,
) -> list[Path]:
    """Write `walk-000.mp4`, `walk-001.mp4`, ... to `folder`, each a walk through a home of its own.

    The videos are H.264 (MPEG-4 part 2 where this PyAV has no x264), yuv420p, a key frame every two seconds, with
    `round(seconds * fps)` frames of `size` (height, width; even pixels). Walk i follows from `(seed, i)` alone; files
    that exist are kept, so that an interrupted render goes on. `progress` advances once a walk.

    Returns:
        The paths, in order.
    Raises:
        InputError: for values that make no video, and for a folder that was begun with other settings.
        StorageError: where the disk is full or not writable.
    """
    if num_walks < 1 or seconds * fps < 1:
        given = f"{num_walks} walks of {seconds} s at {fps} frames/s"
        raise InputError(f"{given} hold no frame", "ask for at least one walk and one frame")
    _check_size(size, multiple=2)
    folder = Path(folder)
    settings = {"kind": "walks", "seed": seed, "num": num_walks, "seconds": float(seconds), "fps": float(fps)}
    claim(folder / _SETTINGS, {"version": _VERSION, **settings, "size": list(size)}, "a synthetic world")
    paths = [folder / f"walk-{i:03d}.mp4" for i in range(num_walks)]
    jobs = [(path, i, round(seconds * fps), fps, tuple(size), seed) for i, path in enumerate(paths)]
    _work(_write_walk, jobs, [1] * num_walks, processes, progress)
    return paths


def render_labelled(
    folder: str | Path,
    *,
    num_train: int,
    num_val: int,
    size: tuple[int, int],
    seed: int,
    processes: int = 1,
    progress: Progress | None = None,
) -> list[str]:
    """Write `train/CLASS/00000.jpg`, ... and `val/CLASS/00000.jpg`, ...: so many close-ups of each kind of object.

    Each shows one object of its class in a room of its own, of `size` (height, width), from a random side, distance and
    height, in random colours and light; other things may stand behind it. The two splits draw from different random
    streams. Files that exist are kept. `progress` advances once a picture.

    Returns:
        The names of the classes, sorted.
    Raises:
        InputError: for values that make no picture, and for a folder that was begun with other settings.
        StorageError: where the disk is full or not writable.
    """
    if num_train < 1 or num_val < 1:
        given = f"{num_train} training and {num_val} validation pictures a class"
        raise InputError(f"{given} are too few", "ask for at least one of each")
    _check_size(size, multiple=1)
    folder = Path(folder)
    settings = {"kind": "labelled", "seed": seed, "num": [num_train, num_val], "size": list(size)}
    claim(folder / _SETTINGS, {"version": _VERSION, **settings}, "a synthetic world")
    jobs = [
        (folder / split / name, split, name, range(start, min(start + _CHUNK, count)), tuple(size), seed)
        for split, count in (("train", num_train), ("val", num_val))
        for name in sorted(OBJECTS)
        for start in range(0, count, _CHUNK)
    ]
    _work(_write_pictures, jobs, [len(job[3]) for job in jobs], processes, progress)
    return sorted(OBJECTS)


class CloseUp(NamedTuple):
    """What a labelled picture shows: the solids of the labelled object carry the number `owner`."""

    scene: Scene
    camera: Camera
    owner: int

    def shares(self) -> tuple[float, float]:
        """Shares of the picture that the object covers, as it is seen and as it would be if nothing stood before it."""
        side = (48, 48)
        seen = cast(self.scene, self.camera, side).primitive
        alone = Scene([p for p in self.scene.primitives if p.owner == self.owner], self.scene.rooms)
        visible = (seen >= 0) & (self.scene.owner[seen] == self.owner)
        return float(visible.mean()), float((cast(alone, self.camera, side).primitive >= 0).mean())


def close_up(split: str, name: str, index: int, seed: int) -> CloseUp:
    """What picture `index` of class `name` in `split` ("train", "val") shows.

    Views are drawn until the object covers between 8 and 60 % of the picture, and four fifths of it are not hidden.
    """
    rng = stream(seed, f"synthetic:labelled:{split}:{name}", index)
    while True:
        home = build_home(rng, 1)
        parts = OBJECTS[name](rng)
        spot = _spot(home, rng, radius(parts), height(parts))
        if spot is None:
            continue
        owner = len(home.things)
        # Other things keep their distance, so that there is no doubt about what the picture shows.
        near = {t.owner for t in home.things if np.hypot(*(t.centre - spot)[[0, 2]]) < radius(parts) + 0.35}
        home.parts = [part for part in home.parts if part.owner not in near]
        home.parts += place(parts, spot, rotation=turn(rng.uniform(-np.pi, np.pi)), owner=owner)
        scene = home.scene()
        for _ in range(6):
            camera = _look_at(rng, spot + [0, height(parts) / 2, 0], np.hypot(radius(parts), height(parts) / 2))
            room, eye = home.rooms[0], camera.position
            if np.any(eye < room.low + 0.08) or np.any(eye > room.high - 0.08) or scene.inside(eye[None], 0.08)[0]:
                continue
            view = CloseUp(scene, camera, owner)
            seen, whole = view.shares()
            if _SHARE[0] <= seen <= _SHARE[1] and seen >= 0.8 * whole:
                return view


def _check_size(size: tuple[int, int], multiple: int) -> None:
    """Refuse pictures that are too small, or that the video format (colour at half the resolution) cannot hold."""
    if min(size) < 16 or any(side % multiple for side in size):
        fix = "use at least 16 pixels a side" + (f", and a multiple of {multiple}" if multiple > 1 else "")
        raise InputError(f"pictures of {size[0]} x {size[1]} pixels cannot be rendered", fix)


def _work(function: Callable, jobs: list[tuple], steps: list[int], processes: int, progress: Progress | None) -> None:
    """Call `function(*job)` for all jobs, in this process or in some others."""

    def done(k: int) -> None:
        if progress is not None:
            progress.advance(steps[k], current=Path(jobs[k][0]).name)

    if processes <= 1 or len(jobs) == 1:
        for k, job in enumerate(jobs):
            function(*job)
            done(k)
        return
    # Not forked: the caller may hold threads (torch, OpenCV) that do not survive it.
    context = multiprocessing.get_context("spawn")
    workers = {"mp_context": context, "initializer": cv2.setNumThreads, "initargs": (1,)}
    with ProcessPoolExecutor(min(processes, len(jobs)), **workers) as pool:
        futures = {pool.submit(function, *job): k for k, job in enumerate(jobs)}
        try:
            for future in as_completed(futures):
                future.result()
                done(futures[future])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def walk_frames(index: int, num_frames: int, fps: float, size: tuple[int, int], seed: int) -> Iterator[np.ndarray]:
    """Yield the frames of walk `index`: uint8 `(H, W, 3)` RGB, with the noise of a small sensor."""
    rng = stream(seed, "synthetic:walk", index)
    home = build_home(rng, _ROOMS)
    scene = home.scene()
    for view in walk(home, rng, num_frames, fps):
        yield _with_noise(render(scene.with_primitives(view.hand), view.camera, size), rng)


def _write_walk(path: Path, index: int, num_frames: int, fps: float, size: tuple[int, int], seed: int) -> None:
    if path.exists():
        return
    rate = Fraction(fps).limit_denominator(1001)
    has_x264 = "libx264" in av.codec.codecs_available
    with atomic_file(path) as file, av.open(file, "w", format="mp4") as container:
        video = container.add_stream("libx264" if has_x264 else "mpeg4", rate=rate)
        video.height, video.width = size
        video.pix_fmt = "yuv420p"
        video.gop_size = max(1, round(2 * fps))
        video.codec_context.thread_count = 1  # the bytes would depend on the number of threads
        if has_x264:
            # Without x264's macroblock tree, which on AVX-512 gives other bytes from run to run (av 18.1).
            video.codec_context.options = {"crf": "23", "preset": "veryfast", "x264-params": "mbtree=0"}
        else:
            video.bit_rate = round(0.3 * size[0] * size[1] * fps)  # bits a second, for about the same quality
        for picture in walk_frames(index, num_frames, fps, size, seed):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))


def _write_pictures(folder: Path, split: str, name: str, indices: range, size: tuple[int, int], seed: int) -> None:
    for index in indices:
        path = folder / f"{index:05d}.jpg"
        if path.exists():
            continue
        noise = stream(seed, f"synthetic:noise:{split}:{name}", index)
        view = close_up(split, name, index, seed)
        picture = _with_noise(render(view.scene, view.camera, size), noise)
        with atomic_file(path) as file:
            file.write(simplejpeg.encode_jpeg(picture, quality=92))


def _with_noise(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add the sensor's noise, of about 1.5 % of full scale."""
    noise = rng.standard_normal(picture.shape, dtype=np.float32)
    return np.clip(picture + 4 * noise + 0.5, 0, 255).astype(np.uint8)


def _spot(home: Home, rng: np.random.Generator, size: float, tall: float) -> np.ndarray | None:
    """A place for an object: on a piece of furniture where there is one that it fits on, else on the floor."""
    room = home.rooms[0]
    tops = [s for s in home.surfaces if min(s.half) > 0.5 * size and s.half[0] + s.half[1] > 0.4 and tall < 0.6]
    if tops and rng.random() < 0.6:
        top = tops[rng.integers(len(tops))]
        return top.centre + [(2 * rng.random() - 1) * max(0, top.half[0] - size), 0, 0]
    for _ in range(20):
        low, high = room.low + size + 0.1, room.high - size - 0.1
        x, z = rng.uniform(low[0], high[0]), rng.uniform(low[2], high[2])
        if all(x + size < a or x - size > b or z + size < c or z - size > d for a, b, c, d in home.blocked):
            return np.array([x, 0.012, z])
    return None


def _look_at(rng: np.random.Generator, centre: np.ndarray, extent: float) -> Camera:
    """A camera that has a ball of radius `extent` about `centre` in view, from any side and mostly from above."""
    fov = rng.uniform(48, 65)
    rotation = gaze(rng.uniform(-np.pi, np.pi), -rng.uniform(0.05, 0.95), rng.normal(0, 0.06))
    distance = extent / np.sin(np.radians(fov) / 2 * rng.uniform(0.5, 1.05))
    aside = rng.uniform(-0.25, 0.25, 2) * extent
    position = centre - distance * rotation[:, 2] + rotation[:, :2] @ aside
    return Camera(position, rotation, fov, float(np.exp(rng.normal(0, 0.15))))
