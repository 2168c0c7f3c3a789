"""Scenes of boxes, balls and (cut) cones, and what each pixel of a pinhole camera sees of them: a small ray caster.

Every solid is an affine picture of a unit shape, so a ray is taken into the solid's own frame once and meets `|x| = 1`,
the unit sphere or a cone of height 2 there. With a pinhole camera and rays that are not normalised, the direction in
that frame is *affine* in the pixel's column and row: three broadcast additions a solid, whatever its rotation. Each
solid is tried only on the rectangle of the screen that its corners span, nearest first, and not at all where that
rectangle is already filled with something nearer. Units are metres, y points up.

Entry points: `Primitive`, `Room`, `Scene`, `Camera`; `cast` (what each pixel sees). `render` colours it in.
"""

from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np

from headcam.video.synthetic.textures import NAMES

_NEAR = 0.02  # metres; solids nearer than that are cut off the screen rectangles
SHAPES = ("box", "sphere", "frustum")
_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)

Colour = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Primitive:
    """One convex solid.

    `shape` is "box", "sphere" (an ellipsoid where the half extents differ) or "frustum": a cone about its y axis, cut
    so that the upper radius is `top` times the lower one (1: a cylinder, 0: a pointed cone). `centre (3,)` and `half`
    (half extents along its own axes, `(3,)`) are metres; `rotation (3, 3)` has the solid's own axes as columns. The
    pattern `texture` runs from `colour` to `colour2` (sRGB in [0, 1]) and repeats every `tile` metres, or is stretched
    once over each face where `tile` is None. `glow` is light of its own. `owner` says which object it is a part of.
    """

    shape: str
    centre: np.ndarray
    half: np.ndarray
    rotation: np.ndarray
    colour: Colour
    colour2: Colour = (0.0, 0.0, 0.0)
    texture: str = "plain"
    tile: float | None = None
    top: float = 1.0
    glow: float = 0.0
    owner: int = -1
    casts_shadow: bool = True

    def moved(self, rotation: np.ndarray, offset: np.ndarray, scale: float = 1.0) -> "Primitive":
        """The same solid scaled, turned by `rotation (3, 3)` about the origin and then shifted by `offset (3,)`."""
        return replace(
            self,
            centre=rotation @ (scale * self.centre) + offset,
            half=scale * self.half,
            rotation=rotation @ self.rotation,
            tile=None if self.tile is None else scale * self.tile,
        )

    def corners(self) -> np.ndarray:
        """The corners of the box around the solid, `(8, 3)` metres."""
        return self.centre + (_CORNERS * self.half) @ self.rotation.T


@dataclass(frozen=True, eq=False)
class Room:
    """The space between `low` and `high (3,)`, and its light: a lamp, and a window with the normal into the room.

    Rooms of a scene stand side by side along x. Colours are linear RGB and carry the strength.
    """

    low: np.ndarray
    high: np.ndarray
    lamp: np.ndarray
    lamp_colour: np.ndarray
    window: np.ndarray
    window_normal: np.ndarray
    window_colour: np.ndarray
    ambient: np.ndarray


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole: `position (3,)`, `rotation (3, 3)` with the columns right, up, forward; `fov` is the horizontal field
    of view in degrees; `exposure` multiplies the light (1 is right)."""

    position: np.ndarray
    rotation: np.ndarray
    fov: float = 90.0
    exposure: float = 1.0


def gaze(yaw: float, pitch: float, roll: float = 0.0) -> np.ndarray:
    """The rotation of a `Camera` that looks along `yaw` (0 is +z, radians towards +x), `pitch` up, head rolled."""
    forward = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    right = np.array([np.cos(yaw), 0.0, -np.sin(yaw)])
    up = np.cross(forward, right)
    right, up = np.cos(roll) * right + np.sin(roll) * up, np.cos(roll) * up - np.sin(roll) * right
    return np.stack([right, up, forward], axis=1)


class Scene:
    """Solids and rooms, with the solids' geometry as arrays (one row a solid)."""

    def __init__(self, primitives: list[Primitive], rooms: list[Room]):
        self.primitives, self.rooms = list(primitives), list(rooms)
        self.centre = np.array([p.centre for p in primitives], np.float64)
        half = np.array([p.half for p in primitives], np.float64)
        rotation = np.array([p.rotation for p in primitives], np.float64)
        self.to_local = np.swapaxes(rotation, 1, 2) / half[:, :, None]  # (N, 3, 3), world vector -> unit shape
        self.corners = self.centre[:, None] + np.einsum("nij,kj,nj->nki", rotation, _CORNERS, half)
        self.half = half
        self.kind = [SHAPES.index(p.shape) for p in primitives]
        self.top = [p.top for p in primitives]
        self.owner = np.array([p.owner for p in primitives], np.int64)
        # The rest is a column per property of the surface; colours become linear by squaring (a gamma of 2).
        first = np.array([p.colour for p in primitives], np.float32) ** 2
        second = np.array([p.colour2 for p in primitives], np.float32) ** 2
        self.surface = np.concatenate([first, second - first, [[p.glow] for p in primitives]], 1).T.astype(np.float32)
        self.texture = np.array([NAMES.index(p.texture) for p in primitives], np.int32)
        self.tile = np.array([0.0 if p.tile is None else p.tile for p in primitives], np.float32)
        self.room = self.room_of(self.centre[:, 0])

    def with_primitives(self, extra: list[Primitive]) -> "Scene":
        """This scene with some more solids."""
        return Scene(self.primitives + extra, self.rooms) if extra else self

    def room_of(self, x: np.ndarray) -> np.ndarray:
        """Which room the points with these x lie in (the nearest one, outside)."""
        return np.searchsorted([room.high[0] for room in self.rooms[:-1]], x)

    def inside(self, points: np.ndarray, margin: float = 0.0) -> np.ndarray:
        """How many solids, grown by `margin` metres, hold each of `points (n, 3)`: int64 `(n,)`."""
        count = np.zeros(len(points), np.int64)
        for n, (shape, top) in enumerate(zip(self.kind, self.top)):
            grown = self.half[n] / (self.half[n] + margin)
            x, y, z = ((points - self.centre[n]) @ self.to_local[n].T * grown).T
            if SHAPES[shape] == "box":
                count += np.maximum(np.maximum(abs(x), abs(y)), abs(z)) < 1
            elif SHAPES[shape] == "sphere":
                count += x * x + y * y + z * z < 1
            else:
                count += (abs(y) < 1) & (np.hypot(x, z) < (1 + top) / 2 + (top - 1) / 2 * y)
        return count


class Hits(NamedTuple):
    """What each pixel sees: `depth (H, W)` float32, metres along the camera's forward axis, infinite where nothing is
    met; `primitive (H, W)` int16, the index in the scene, -1 where nothing is."""

    depth: np.ndarray
    primitive: np.ndarray


def _meet_box(o: np.ndarray, d: list[np.ndarray], top: float) -> np.ndarray:
    """Where rays `o + t d` enter `|x|, |y|, |z| <= 1`; only the (at most three) faces that look at `o` are tried."""
    best = np.full(d[0].shape, np.inf, np.float32)
    for axis in range(3):
        if abs(o[axis]) <= 1:
            continue
        t = np.float32(np.sign(o[axis]) - o[axis]) / d[axis]
        a, b = (axis + 1) % 3, (axis + 2) % 3
        hit = np.abs(o[a] + t * d[a]) <= 1.00001
        hit &= np.abs(o[b] + t * d[b]) <= 1.00001
        hit &= t > 0
        np.copyto(best, t, where=hit)
    return best


def _meet_sphere(o: np.ndarray, d: list[np.ndarray], top: float) -> np.ndarray:
    a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    b = o[0] * d[0] + o[1] * d[1] + o[2] * d[2]
    t = -(b + np.sqrt(b * b - a * np.float32(o @ o - 1))) / a  # a miss is the root of a negative number, NaN
    return np.where(t > 0, t, np.float32(np.inf))


def _meet_frustum(o: np.ndarray, d: list[np.ndarray], top: float) -> np.ndarray:
    """The cone x^2 + z^2 = (m + k y)^2 between y = -1 (radius 1) and y = 1 (radius `top`), and the cap towards `o`."""
    m, k = np.float32((1 + top) / 2), np.float32((top - 1) / 2)
    radius = m + k * o[1]
    a = d[0] * d[0] + d[2] * d[2] - (k * k) * d[1] * d[1]
    b = o[0] * d[0] + o[2] * d[2] - (k * radius) * d[1]
    root = np.sqrt(b * b - a * np.float32(o[0] ** 2 + o[2] ** 2 - radius**2))
    best = np.full(d[0].shape, np.inf, np.float32)
    for t in ((-b - root) / a, (-b + root) / a):
        np.copyto(best, t, where=(np.abs(o[1] + t * d[1]) <= 1) & (t > 0) & (t < best))
    if abs(o[1]) > 1:
        t = np.float32(np.sign(o[1]) - o[1]) / d[1]
        x, z = o[0] + t * d[0], o[2] + t * d[2]
        np.copyto(best, t, where=(x * x + z * z <= (1 if o[1] < 0 else top * top)) & (t > 0) & (t < best))
    return best


MEET = (_meet_box, _meet_sphere, _meet_frustum)  # in the order of SHAPES
_PAIRS = {k: np.array(list(combinations(range(k), 2))).T for k in (8, 16)}


def screen_rectangles(points: np.ndarray, camera: Camera, size: tuple[int, int]) -> np.ndarray:
    """Rows and columns `(N, 4)` (row from, to, column from, to) that hold the convex hulls of `points (N, K, 3)`.

    Hulls that reach behind the camera are cut at the near plane, by cutting the segment between every two points.
    """
    height, width = size
    tangent = np.tan(np.radians(camera.fov) / 2)

    def edges(seen: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Lowest and highest row and column of the points (right, up, forward) that count."""
        depth = np.where(counts, seen[..., 2], 1)
        column = width / 2 * (1 + seen[..., 0] / (depth * tangent))
        row = height / 2 - width / 2 * seen[..., 1] / (depth * tangent)
        low = [np.where(counts, k, np.inf).min(1) for k in (row, column)]
        high = [np.where(counts, k, -np.inf).max(1) for k in (row, column)]
        return np.stack([low[0], high[0], low[1], high[1]], 1)

    seen = (points - camera.position) @ camera.rotation
    before = seen[..., 2] > _NEAR
    result = edges(seen, before)
    partly = np.flatnonzero(before.any(1) & ~before.all(1))
    if partly.size:
        one, other = (seen[partly][:, k] for k in _PAIRS[points.shape[1]])
        crosses = (one[..., 2] > _NEAR) != (other[..., 2] > _NEAR)
        share = (_NEAR - one[..., 2]) / np.where(crosses, other[..., 2] - one[..., 2], 1)
        cut = edges(one + share[..., None] * (other - one), crosses)
        result[partly, 0::2] = np.minimum(result[partly, 0::2], cut[:, 0::2])
        result[partly, 1::2] = np.maximum(result[partly, 1::2], cut[:, 1::2])
    return np.clip(result + [-1, 1, -1, 1], 0, [height, height, width, width]).astype(np.int64)


def screen_axes(camera: Camera, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Tangents of the rays of the columns `(W,)` and rows `(H,)`: ray = forward + column * right + row * up."""
    height, width = size
    tangent = np.tan(np.radians(camera.fov) / 2)
    columns = (2 * (np.arange(width) + 0.5) / width - 1) * tangent
    rows = (1 - 2 * (np.arange(height) + 0.5) / height) * tangent * height / width
    return columns.astype(np.float32), rows.astype(np.float32)


def cast(scene: Scene, camera: Camera, size: tuple[int, int]) -> Hits:
    """The first solid on the ray through the centre of each pixel of a picture of `size` (height, width)."""
    columns, rows = screen_axes(camera, size)
    depth = np.full(size, np.inf, np.float32)
    primitive = np.full(size, -1, np.int16)
    origin = np.einsum("nij,nj->ni", scene.to_local, camera.position - scene.centre).astype(np.float32)
    axes = np.einsum("nij,jk->nik", scene.to_local, camera.rotation).astype(np.float32)
    rectangles = screen_rectangles(scene.corners, camera, size)
    nearest = np.maximum((scene.corners - camera.position) @ camera.rotation[:, 2], 0).min(1)
    with np.errstate(all="ignore"):  # rays beside a solid divide by zero or take roots of negative numbers
        for n in np.argsort(nearest, kind="stable"):
            r0, r1, c0, c1 = rectangles[n]
            if r0 >= r1 or c0 >= c1:
                continue
            window = depth[r0:r1, c0:c1]
            if nearest[n] >= window.max():
                continue
            right, up, forward = axes[n].T
            d = [(f + rows[r0:r1] * u)[:, None] + columns[c0:c1] * r for r, u, f in zip(right, up, forward)]
            t = MEET[scene.kind[n]](origin[n], d, scene.top[n])
            closer = t < window
            np.copyto(window, t, where=closer)
            np.copyto(primitive[r0:r1, c0:c1], np.int16(n), where=closer)
    return Hits(depth, primitive)
