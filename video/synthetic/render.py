"""How a scene of the synthetic world looks: patterns, light and shadow on what the ray caster found.

All pixels are shaded in one pass, sorted by the solid that they show: a looked-up pattern (`textures`) times
the light of the room that the point lies in, which is a ceiling lamp with cast shadows, a window, and an ambient term
that is darker near the edges where walls meet. Four rays make a pixel. Entry point: `render`.
"""

import cv2
import numpy as np

from headcam.video.synthetic.scene import MEET, SHAPES, Camera, Scene, cast, screen_axes, screen_rectangles
from headcam.video.synthetic.textures import LEVELS, SIDE, atlas

_OVERSAMPLE = 2  # rays per pixel and axis; their mean is the pixel


def render(scene: Scene, camera: Camera, size: tuple[int, int]) -> np.ndarray:
    """The picture of `scene`: uint8 `(H, W, 3)` sRGB for `size` (height, width). A pure function of its arguments."""
    fine = (size[0] * _OVERSAMPLE, size[1] * _OVERSAMPLE)
    hits = cast(scene, camera, fine)
    columns, rows = screen_axes(camera, fine)

    # Pixels are taken in the order of the solid that they show, so that each solid's pixels are one slice.
    order = np.argsort(hits.primitive, axis=None, kind="stable")
    found = hits.primitive.ravel()[order]
    start = int(np.searchsorted(found, 0))
    order, found = order[start:].astype(np.int32), found[start:]
    counts = np.bincount(found, minlength=len(scene.primitives))
    depth = hits.depth.ravel()[order]
    x, y = columns[order % fine[1]], rows[order // fine[1]]
    rotation = camera.rotation.astype(np.float32)
    ray = [r * x + u * y + f for r, u, f in rotation]
    point = [np.float32(p) + depth * d for p, d in zip(camera.position, ray)]

    normal, u, v = _surfaces(scene, camera.position, counts, point)
    slant = np.abs(normal[0] * ray[0] + normal[1] * ray[1] + normal[2] * ray[2])
    texel = depth * np.float32(2 * np.tan(np.radians(camera.fov) / 2) / fine[1]) / np.sqrt(np.maximum(slant, 0.05))
    albedo = _albedo(scene, counts, u, v, texel)
    glow = np.repeat(scene.surface[6], counts)

    light = _light(scene, camera, fine, point, normal, order)
    linear = np.zeros((fine[0] * fine[1], 3), np.float32)
    for c in range(3):
        linear[order, c] = albedo[c] * (light[c] + glow)
    linear = cv2.resize(linear.reshape(*fine, 3), size[::-1], interpolation=cv2.INTER_AREA)
    # The camera's exposure follows the picture's mean half-way, as automatic exposure does; highlights roll off.
    gain = camera.exposure * 0.62 * (0.22 / max(float(linear.mean(dtype=np.float64)), 0.02)) ** 0.6
    toned = 1.08 * (1 - np.exp(linear * np.float32(-2.2 * gain)))
    return np.clip(255 * np.sqrt(toned) + 0.5, 0, 255).astype(np.uint8)


def _surfaces(
    scene: Scene, eye: np.ndarray, counts: np.ndarray, point: list[np.ndarray]
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """World normals (3 arrays) and pattern coordinates in tiles at the hit points, sorted by solid."""
    u, v = np.empty_like(point[0]), np.empty_like(point[0])
    normal = [np.empty_like(u) for _ in range(3)]
    ends = np.cumsum(counts)
    for n in np.flatnonzero(counts):
        part = slice(ends[n] - counts[n], ends[n])
        half, tile = scene.half[n].astype(np.float32), scene.tile[n]
        to_local = scene.to_local[n].astype(np.float32)
        shift = (scene.to_local[n] @ scene.centre[n]).astype(np.float32)
        local = [
            m[0] * point[0][part] + m[1] * point[1][part] + m[2] * point[2][part] - s for m, s in zip(to_local, shift)
        ]
        if SHAPES[scene.kind[n]] == "box":
            facing = np.flatnonzero(np.abs(scene.to_local[n] @ (eye - scene.centre[n])) > 1)
            if len(facing) == 1:  # walls and floors: one face is all that can be seen
                axis = int(facing[0])
                gradient = [np.sign(local[k][:1]) if k == axis else np.float32(0) for k in range(3)]
                a, b = (2 if axis == 0 else 0), (2 if axis == 1 else 1)
                across, along = local[a], local[b]
                if tile:
                    across, along = across * (half[a] / tile), along * (half[b] / tile)
            else:
                axis = np.abs(local).argmax(0)
                gradient = [np.where(axis == k, np.sign(local[k]), np.float32(0)) for k in range(3)]
                across, along = np.where(axis == 0, local[2], local[0]), np.where(axis == 1, local[2], local[1])
                if tile:
                    across = across * (np.where(axis == 0, half[2], half[0]) / tile)
                    along = along * (np.where(axis == 1, half[2], half[1]) / tile)
        else:
            k = np.float32(0)
            if SHAPES[scene.kind[n]] == "frustum":
                k = np.float32((scene.top[n] - 1) / 2)
                level = -k * (1 + k + k * local[1])
                cap = np.abs(local[1]) > 0.9999
                gradient = [
                    np.where(cap, 0, local[0]),
                    np.where(cap, np.sign(local[1]), level),
                    np.where(cap, 0, local[2]),
                ]
            else:
                gradient = local
            angle = np.arctan2(local[0], local[2]) / np.float32(np.pi)
            turns = max(1, round(2 * np.pi * float(half[0]) / tile)) if tile else 1  # whole tiles fit around
            across, along = angle * turns / (2 if tile else 1), local[1] * (half[1] / tile if tile else 1)
        if not tile:
            across, along = (across + 1) / 2, (along + 1) / 2
        u[part], v[part] = across, -along  # pictures have their first row on top
        for k in range(3):
            normal[k][part] = gradient[0] * to_local[0, k] + gradient[1] * to_local[1, k] + gradient[2] * to_local[2, k]
    length = np.sqrt(normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2)
    return [k / length for k in normal], u, v


def _albedo(scene: Scene, counts: np.ndarray, u: np.ndarray, v: np.ndarray, texel: np.ndarray) -> list[np.ndarray]:
    """Linear reflectance (3 arrays): the pattern in the size whose texels cover `texel` metres, between two colours."""
    texels, offset = atlas()
    tile = np.where(scene.tile > 0, scene.tile, 2 * np.sqrt(scene.half[:, 0] * scene.half[:, 1])).astype(np.float32)
    level = np.log2(np.maximum(texel * np.repeat(SIDE / tile, counts), 1)) + np.float32(0.3)
    level = np.minimum(level, LEVELS - 1).astype(np.int32)
    column = np.floor(u * SIDE).astype(np.int32) & (SIDE - 1)
    row = np.floor(v * SIDE).astype(np.int32) & (SIDE - 1)
    start = offset.ravel()[np.repeat(scene.texture * LEVELS, counts) + level]
    weight = texels[start + ((row >> level) * (SIDE >> level)) + (column >> level)]
    return [
        np.repeat(scene.surface[c], counts) + weight[:, c] * np.repeat(scene.surface[3 + c], counts) for c in range(3)
    ]


def _light(
    scene: Scene,
    camera: Camera,
    fine: tuple[int, int],
    point: list[np.ndarray],
    normal: list[np.ndarray],
    order: np.ndarray,
) -> list[np.ndarray]:
    """Linear light (3 arrays) that falls on the hit points: lamp, window and ambient of the room they lie in."""
    result = [np.zeros_like(point[0]) for _ in range(3)]
    rooms = scene.room_of(point[0])
    for index, room in enumerate(scene.rooms):
        here = np.flatnonzero(rooms == index)
        if not here.size:
            continue
        p, n = [k[here] for k in point], [k[here] for k in normal]
        clear = _lamp_visibility(scene, index, camera, fine, p, order[here])
        lamp = _falloff(p, n, room.lamp, 0.18) * clear
        window = _falloff(p, n, room.window + 0.05 * room.window_normal, 0.12, room.window_normal)
        open_ = np.float32(0.75) + np.float32(0.25) * n[1]
        for axis in range(3):
            # An edge of the room is darker; a surface is not darkened by the wall that it lies in.
            for sign, wall in ((1, room.low[axis]), (-1, room.high[axis])):
                distance = np.abs(p[axis] - np.float32(wall))
                open_ *= 1 - np.float32(0.25) * (1 - sign * n[axis]) / (1 + np.square(distance * np.float32(4)))
        for c in range(3):
            result[c][here] = (
                np.float32(room.ambient[c]) * open_
                + np.float32(room.lamp_colour[c]) * lamp
                + np.float32(room.window_colour[c]) * window
            )
    return result


def _falloff(
    p: list[np.ndarray], n: list[np.ndarray], source: np.ndarray, fade: float, facing: np.ndarray | None = None
) -> np.ndarray:
    """Lambert's cosine over 1 + fade * distance^2, times the cosine at a source that faces one way."""
    d = [np.float32(s) - k for s, k in zip(source, p)]
    square = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    cosine = np.maximum(n[0] * d[0] + n[1] * d[1] + n[2] * d[2], 0) / np.sqrt(square)
    if facing is not None:
        out = sum(np.float32(-f) * k for f, k in zip(facing, d) if f)
        cosine *= np.sqrt(np.maximum(out, 0) / np.sqrt(square))
    return cosine / (1 + np.float32(fade) * square)


def _lamp_visibility(
    scene: Scene, index: int, camera: Camera, fine: tuple[int, int], p: list[np.ndarray], order: np.ndarray
) -> np.ndarray:
    """Share of the lamp that is seen from the points `p` at the pixels `order`, in [0, 1].

    Shadow rays run from the lamp to the points, at every other row and column; spreading them to all pixels makes the
    edges soft. A solid is tried where its shadow can fall: on the screen rectangle of the hull of the solid and its
    enlarged copy beyond the floor, as seen from the lamp.
    """
    room = scene.rooms[index]
    small = (fine[0] // 2, fine[1] // 2)
    row, column = order // fine[1], order % fine[1]
    taken = (row % 2 == 0) & (column % 2 == 0)
    at = (row[taken] // 2) * small[1] + column[taken] // 2
    target = np.full((3, small[0] * small[1]), np.nan, np.float32)
    for k in range(3):
        target[k, at] = p[k][taken] - np.float32(room.lamp[k])
    target = target.reshape(3, *small)

    casts = np.array([q.casts_shadow for q in scene.primitives]) & (scene.room == index)
    casters = np.flatnonzero(casts & (scene.corners[:, :, 1].max(1) < room.lamp[1] - 0.05))
    if not casters.size or not at.size:
        return np.ones_like(p[0])
    corners = scene.corners[casters]
    reach = room.lamp[1] / (room.lamp[1] - corners[:, :, 1].max(1))  # where the shadow of the top meets the floor
    beyond = room.lamp + reach[:, None, None] * (corners - room.lamp)
    rectangles = screen_rectangles(np.concatenate([corners, beyond], 1), camera, small)
    seen_rows, seen_columns = at // small[1], at % small[1]  # the part of the screen that shows this room
    rectangles[:, 0::2] = np.maximum(rectangles[:, 0::2], [seen_rows.min(), seen_columns.min()])
    rectangles[:, 1::2] = np.minimum(rectangles[:, 1::2], [seen_rows.max() + 1, seen_columns.max() + 1])
    origin = np.einsum("nij,nj->ni", scene.to_local, room.lamp - scene.centre).astype(np.float32)
    clear = np.ones(small, np.float32)
    with np.errstate(all="ignore"):
        for n, (r0, r1, c0, c1) in zip(casters, rectangles):
            if r1 - r0 <= 3 or c1 - c0 <= 3:  # rectangles are generous by a pixel on each side
                continue
            tx, ty, tz = target[:, r0:r1, c0:c1]
            d = [a * tx + b * ty + c * tz for a, b, c in scene.to_local[n].astype(np.float32)]
            t = MEET[scene.kind[n]](origin[n], d, scene.top[n])
            np.copyto(clear[r0:r1, c0:c1], np.float32(0), where=t < 0.995)
    clear = cv2.blur(clear, (3, 3))
    return cv2.resize(clear, fine[::-1], interpolation=cv2.INTER_LINEAR).ravel()[order]
