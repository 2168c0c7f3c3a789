"""How the wearer of the synthetic headcam moves: where the feet go, where the eyes go, and what the head adds.

The wearer picks an object, walks to a free spot near it by the cheapest way over the floor (Dijkstra on a grid whose
cells cost more near obstacles), looks at it for a while, often crouching or reaching out a hand, and picks the next.
The path keeps `_CLEARANCE` from furniture and walls and goes around low things, so the eye is never inside a solid. On
top come a vertical bob, roll and sway at step frequency, and slow drift. Entry point: `walk`.
"""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter1d
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, dijkstra

from headcam.video.synthetic.objects import solid
from headcam.video.synthetic.rooms import Home, Thing
from headcam.video.synthetic.scene import Camera, Primitive, gaze

_CELL = 0.08  # metres
_CLEARANCE = 0.3  # metres between the eye and what stands on the floor
_STEPS = 1.9  # per second


class View(NamedTuple):
    """One frame of a walk: the camera, and the solids of the wearer's own hand where it is raised."""

    camera: Camera
    hand: list[Primitive]


class _Floor:
    """The cells of a home's floor that the wearer can stand on, and the ways between them."""

    def __init__(self, home: Home):
        low = np.min([room.low for room in home.rooms], 0)
        high = np.max([room.high for room in home.rooms], 0)
        self._origin = low[[0, 2]]
        self._shape = tuple(np.ceil((high - low)[[0, 2]] / _CELL).astype(int))
        x, z = (self._origin[k] + (np.arange(self._shape[k]) + 0.5) * _CELL for k in range(2))
        x, z = np.meshgrid(x, z, indexing="ij")
        open_ = np.zeros(self._shape, bool)
        for room in home.rooms:
            open_ |= (x > room.low[0] + 0.06) & (x < room.high[0] - 0.06) & (z > room.low[2]) & (z < room.high[2])
        for door_x, door_z in home.doorways:
            open_ |= (abs(x - door_x) < 0.2) & (abs(z - door_z) < 0.42)
        for x0, x1, z0, z1 in home.blocked:
            open_ &= (x < x0) | (x > x1) | (z < z0) | (z > z1)
        distance = distance_transform_edt(np.pad(open_, 1))[1:-1, 1:-1] * _CELL
        self._free = distance > _CLEARANCE
        for x0, x1, z0, z1 in home.littered:
            self._free &= (x < x0) | (x > x1) | (z < z0) | (z > z1)
        self.points = np.stack([x[self._free], z[self._free]], 1)  # (cells, 2), x and z in metres
        self._graph = self._links(1 + (0.25 / np.maximum(distance, _CELL)) ** 2)

    def _links(self, cost: np.ndarray) -> coo_array:
        number = np.full(self._shape, -1)
        number[self._free] = np.arange(len(self.points))
        rows, columns, weights = [], [], []
        for dx, dz in ((1, 0), (0, 1), (1, 1), (1, -1)):
            here = number[: -dx or None, max(0, -dz) : -dz if dz > 0 else None]
            there = number[dx:, max(0, dz) : dz if dz < 0 else None]
            linked = (here >= 0) & (there >= 0)
            rows.append(here[linked])
            columns.append(there[linked])
            flat = cost[self._free]
            weights.append(np.hypot(dx, dz) * (flat[rows[-1]] + flat[columns[-1]]) / 2)
        n = len(self.points)
        return coo_array(
            (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))), shape=(n, n)
        ).tocsr()

    def start(self, rng: np.random.Generator) -> int:
        """Some cell of the largest piece of floor that hangs together."""
        piece = connected_components(self._graph, directed=False)[1]
        return int(rng.choice(np.flatnonzero(piece == np.bincount(piece).argmax())))

    def reach(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Cost of the way from cell `start` to every cell (infinite where there is none), and predecessors."""
        return dijkstra(self._graph, directed=False, indices=start, return_predecessors=True)

    def way(self, end: int, predecessors: np.ndarray) -> np.ndarray:
        """The smoothed way `(n, 2)` to cell `end`."""
        cells = [end]
        while predecessors[cells[-1]] >= 0:
            cells.append(predecessors[cells[-1]])
        return gaussian_filter1d(self.points[cells[::-1]], 2.5, axis=0, mode="nearest")


def walk(home: Home, rng: np.random.Generator, num_frames: int, fps: float) -> list[View]:
    """The first `num_frames` views, `1 / fps` seconds apart, of a walk through `home` drawn from `rng`."""
    feet, target, crouch, reach = _itinerary(home, rng, num_frames, fps)
    eye = rng.uniform(0.95, 1.45)
    feet = gaussian_filter1d(feet, 0.15 * fps, axis=0, mode="nearest")
    speed = np.linalg.norm(np.gradient(feet, axis=0), axis=1) * fps
    pace = gaussian_filter1d(np.clip(speed / 0.7, 0, 1), 0.25 * fps, mode="nearest")
    time = np.arange(num_frames) / fps
    phase = 2 * np.pi * _STEPS * time + rng.uniform(0, 6)
    crouch = gaussian_filter1d(crouch, 0.35 * fps, mode="nearest")

    height = eye * (1 - 0.4 * crouch) + 0.018 * pace * np.sin(phase)
    position = np.stack([feet[:, 0], height, feet[:, 1]], 1)
    toward = target - position
    yaw = np.unwrap(np.arctan2(toward[:, 0], toward[:, 2]))
    pitch = np.arctan2(toward[:, 1], np.maximum(np.hypot(toward[:, 0], toward[:, 2]), 0.25))
    drift = gaussian_filter1d(rng.standard_normal((3, num_frames)), 0.5 * fps, axis=1) * np.sqrt(fps)
    yaw = gaussian_filter1d(yaw, 0.2 * fps, mode="nearest") + 0.03 * drift[0] + 0.015 * pace * np.sin(phase / 2)
    pitch = gaussian_filter1d(np.clip(pitch, -1.0, 0.35), 0.2 * fps, mode="nearest")
    pitch += 0.025 * drift[1] + 0.012 * pace * np.sin(phase + 1)
    roll = 0.025 * drift[2] + 0.022 * pace * np.sin(phase / 2 + 0.5)
    exposure = np.exp(0.06 * drift[0])
    reach = gaussian_filter1d(reach, 0.2 * fps, mode="nearest")

    skin = np.array([0.93, 0.72, 0.58]) * rng.uniform(0.4, 1.0) ** np.array([0.8, 1.0, 1.15])
    sleeve = tuple(rng.uniform(0.1, 0.9, 3))
    views = []
    for k in range(num_frames):
        camera = Camera(position[k], gaze(yaw[k], pitch[k], roll[k]), 90.0, exposure[k])
        views.append(View(camera, _hand(camera, tuple(skin), sleeve, reach[k]) if reach[k] > 0.05 else []))
    return views


def _itinerary(
    home: Home, rng: np.random.Generator, num_frames: int, fps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Per frame: feet `(n, 2)`, the point looked at `(n, 3)`, how far crouched and how far the hand is out (0 to 1)."""
    floor = _Floor(home)
    cell = floor.start(rng)
    feet, target, crouch, reach = [], [], [], []
    while len(feet) < num_frames:
        cost, predecessors = floor.reach(cell)
        thing, cell = _next_stop(home, floor, rng, cost, cell)
        way = floor.way(cell, predecessors)
        length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(way, axis=0), axis=1))])
        moving = max(2, round(length[-1] / rng.uniform(0.55, 0.95) * fps))
        share = np.linspace(0, 1, moving)
        # Speed rises and falls at both ends.
        travelled = (share - np.sin(2 * np.pi * share) / (2 * np.pi) * 0.6) * length[-1]
        steps = np.stack([np.interp(travelled, length, way[:, k]) for k in range(2)], 1)
        ahead = np.stack([np.interp(travelled + 1.0, length, way[:, k]) for k in range(2)], 1)
        glance = rng.uniform(0.25, 0.7)  # from here on the eyes are on the goal
        on_goal = (share > glance) | (np.linalg.norm(ahead - steps, axis=1) < 0.4)
        look = np.where(on_goal[:, None], thing.centre, np.insert(ahead, 1, 0.75, axis=1))
        staying = round(rng.uniform(1.0, 2.8) * fps)
        low = float(thing.centre[1] < 0.5 and rng.random() < 0.7)
        feet += [*steps, *np.repeat(steps[-1:], staying, 0)]
        target += [*look, *np.repeat(thing.centre[None], staying, 0)]
        crouch += [*np.zeros(moving), *np.full(staying, low)]
        out = (np.arange(staying) > 0.25 * staying) & (np.arange(staying) < 0.8 * staying)
        reach += [*np.zeros(moving), *(out * float(rng.random() < 0.35))]
    cut = slice(0, num_frames)
    return np.array(feet[cut]), np.array(target[cut]), np.array(crouch[cut]), np.array(reach[cut])


def _next_stop(home: Home, floor: _Floor, rng: np.random.Generator, cost: np.ndarray, cell: int) -> tuple[Thing, int]:
    """An object, and a cell near it that can be reached; now and then in another room."""
    here = floor.points[cell][0]
    for _ in range(50):
        thing = home.things[rng.integers(len(home.things))]
        at = thing.centre[[0, 2]]
        same_room = any(r.low[0] <= here <= r.high[0] and r.low[0] <= at[0] <= r.high[0] for r in home.rooms)
        if not same_room and rng.random() < 0.6:
            continue
        distance = np.linalg.norm(floor.points - at, axis=1)
        near = np.flatnonzero((distance < rng.uniform(0.5, 1.1)) & (distance > 0.35) & np.isfinite(cost))
        if near.size:
            return thing, int(rng.choice(near))
    return thing, cell  # shut in by furniture: stay and look about


def _hand(camera: Camera, skin: tuple, sleeve: tuple, out: float) -> list[Primitive]:
    """Forearm, fist and thumb, `out` of the way from below the picture to before the eyes."""
    lift = np.array([0.0, -0.24 * (1 - out), 0.0])
    arm = {"yaw": -0.35, "pitch": np.pi / 2 - 0.5}
    parts = [
        solid("frustum", (0.2, -0.3, 0.28), (0.05, 0.11, 0.05), sleeve, **arm),
        solid("frustum", (0.15, -0.22, 0.42), (0.036, 0.1, 0.036), skin, top=0.85, **arm),
        solid("sphere", (0.115, -0.165, 0.53), (0.045, 0.04, 0.055), skin),
        solid("sphere", (0.085, -0.14, 0.545), (0.014, 0.04, 0.014), skin, roll=0.5),
    ]
    return [p.moved(camera.rotation, camera.position + camera.rotation @ lift) for p in parts]
