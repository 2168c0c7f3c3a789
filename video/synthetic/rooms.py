"""Homes of the synthetic world: a row of furnished rooms with doorways, and the floor that one can walk on.

Rooms stand side by side along x and share walls with a doorway. Furniture stands with its back to a wall and leaves the
doorways free; objects (`objects.OBJECTS`) lie about on the floor and stand on tables, cabinets and sofas.
Entry point: `build_home`.
"""

import colorsys
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from headcam.video.synthetic.objects import OBJECTS, any_colour, height, place, radius, solid, turn, wood_colours
from headcam.video.synthetic.scene import Primitive, Room, Scene

_THICK = 0.06  # metres; half of a wall between two rooms, the whole of what a room sees
_LOW = 0.42  # metres; what is lower stays below the eyes, even of a crouching child
_DOOR = (0.48, 2.0)  # half width and height of a doorway


class Surface(NamedTuple):
    """A place that an object can stand on: centre of the plane (3,) and its half extents along x and z."""

    centre: np.ndarray
    half: tuple[float, float]


class Thing(NamedTuple):
    """An object of a room: its kind, the middle of its body `(3,)`, and the number that its solids carry as `owner`."""

    kind: str
    centre: np.ndarray
    owner: int


@dataclass
class Home:
    """What a home consists of.

    Rectangles of floor are (x from, to, z from, to) in metres: furniture stands on `blocked`, and `littered` is what
    one can step around, objects below the eyes.
    """

    rooms: list[Room] = field(default_factory=list)
    parts: list[Primitive] = field(default_factory=list)
    blocked: list[tuple[float, float, float, float]] = field(default_factory=list)
    littered: list[tuple[float, float, float, float]] = field(default_factory=list)
    doorways: list[tuple[float, float]] = field(default_factory=list)  # x of the wall, z of the middle
    surfaces: list[Surface] = field(default_factory=list)
    things: list[Thing] = field(default_factory=list)

    def scene(self) -> Scene:
        return Scene(self.parts, self.rooms)

    def is_free(self, x0: float, x1: float, z0: float, z1: float) -> bool:
        """Whether this rectangle of floor touches neither furniture nor a passage."""
        passages = [(x - 0.75, x + 0.75, z - 0.6, z + 0.6) for x, z in self.doorways]
        taken = self.blocked + self.littered + passages
        return all(x1 <= a or x0 >= b or z1 <= c or z0 >= d for a, b, c, d in taken)


def build_home(rng: np.random.Generator, num_rooms: int) -> Home:
    """A furnished home of `num_rooms` rooms in a row, drawn from `rng`."""
    home = Home()
    ceiling = rng.uniform(2.35, 2.7)
    widths = rng.uniform(3.2, 4.6, num_rooms)
    depths = rng.uniform(1.6, 2.3, num_rooms)  # half extents along z
    edges = np.concatenate([[0], np.cumsum(widths)])
    home.doorways = [(x, rng.uniform(-0.8, 0.8)) for x in edges[1:-1]]
    for i, depth in enumerate(depths):
        doors = [at for at in home.doorways if at[0] in (edges[i], edges[i + 1])]
        _build_room(home, rng, edges[i], edges[i + 1], depth, ceiling, doors)
    return home


def _build_room(
    home: Home, rng: np.random.Generator, x0: float, x1: float, depth: float, ceiling: float, doors: list
) -> None:
    low, high = np.array([x0, 0.0, -depth]), np.array([x1, ceiling, depth])
    middle = (low + high) / 2
    _shell(home, rng, low, high, doors)

    lamp = np.array([middle[0] + rng.uniform(-0.5, 0.5), ceiling - 0.45, rng.uniform(-0.5, 0.5)])
    warm = colorsys.hsv_to_rgb(rng.uniform(0.07, 0.13), rng.uniform(0.1, 0.35), 1.0)
    cord = (lamp[1] + ceiling) / 2
    home.parts += [
        solid("frustum", (lamp[0], cord, lamp[2]), (0.008, ceiling - cord, 0.008), (0.2, 0.2, 0.2), casts_shadow=False),
        solid("sphere", tuple(lamp), (0.15, 0.11, 0.15), (1, 0.95, 0.85), glow=2.5, casts_shadow=False),
    ]
    window, inwards = _walls_hung(home, rng, low, high)
    day = rng.uniform(0.3, 1.0)
    home.rooms.append(
        Room(
            low=low + [_THICK, 0, _THICK],
            high=high - [0 if doors and x1 == doors[-1][0] else _THICK, 0, _THICK],
            lamp=lamp,
            lamp_colour=np.array(warm) * rng.uniform(1.0, 2.0),
            window=window,
            window_normal=inwards,
            window_colour=np.array([0.85, 1.0, 1.25]) * 2.2 * day,
            ambient=np.array([0.24, 0.25, 0.27]) * (0.7 + 0.6 * day),
        )
    )
    builders = [_bookcase, _cabinet, _sofa, _table, _bed, _cabinet, _table]
    for builder in rng.permutation(np.array(builders, dtype=object))[: rng.integers(3, 6)]:
        _against_a_wall(home, rng, low, high, *builder(rng))
    if rng.random() < 0.7:
        half = rng.uniform(0.6, 1.0, 2)
        style = str(rng.choice(["carpet", "checker", "stripes", "flowers", "dots"]))
        rug = {"colour": any_colour(rng), "colour2": any_colour(rng), "texture": style, "tile": rng.uniform(0.3, 0.8)}
        at = (middle[0] + rng.uniform(-0.4, 0.4), 0.006, rng.uniform(-0.4, 0.4))
        home.parts.append(solid("box", at, (half[0], 0.006, half[1]), casts_shadow=False, **rug))
    _scatter(home, rng, low, high)


def _shell(home: Home, rng: np.random.Generator, low: np.ndarray, high: np.ndarray, doors: list) -> None:
    """Floor, ceiling, walls (around the doorways), skirting boards and door frames of a room."""
    (x0, _, z0), (x1, ceiling, z1) = low, high
    middle = (x0 + x1) / 2
    if rng.random() < 0.6:
        floor = {**wood_colours(rng), "texture": "planks", "tile": rng.uniform(0.9, 1.5)}
    else:
        tone = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.05, 0.4), rng.uniform(0.4, 0.85))
        style, tile = [("tiles", 0.6), ("carpet", 0.5), ("checker", 0.9)][rng.integers(3)]
        floor = {"colour": tone, "colour2": tuple(0.72 * c for c in tone), "texture": style, "tile": tile}
    home.parts.append(solid("box", (middle, -0.1, 0), ((x1 - x0) / 2, 0.1, z1), casts_shadow=False, **floor))
    home.parts.append(
        solid("box", (middle, ceiling + 0.1, 0), ((x1 - x0) / 2, 0.1, z1), (0.93, 0.92, 0.9), casts_shadow=False)
    )

    hue, saturation, value = rng.random(), rng.uniform(0.05, 0.45), rng.uniform(0.65, 0.92)
    paint = colorsys.hsv_to_rgb(hue, saturation, value)
    second = colorsys.hsv_to_rgb(hue, saturation + 0.08, value * rng.uniform(0.84, 0.93))
    style = str(rng.choice(["plaster", "plaster", "stripes", "flowers", "dots"]))
    wall = {"colour": paint, "colour2": second, "texture": style, "tile": 1.0 if style == "plaster" else 0.35}
    board = wood_colours(rng)

    def add_wall(at: tuple, half: tuple) -> None:
        home.parts.append(solid("box", at, half, casts_shadow=False, **wall))
        if at[1] - half[1] <= 0:
            grown = tuple(h + 0.012 if h == _THICK / 2 else h for h in (half[0], 0.05, half[2]))
            home.parts.append(solid("box", (at[0], 0.05, at[2]), grown, casts_shadow=False, **board))

    for z, side in ((z0, 1), (z1, -1)):
        add_wall((middle, ceiling / 2, z + side * _THICK / 2), ((x1 - x0) / 2, ceiling / 2, _THICK / 2))
    for x, side in ((x0, 1), (x1, -1)):
        at = x + side * _THICK / 2
        opening = [z for door_x, z in doors if door_x == x]
        if not opening:
            add_wall((at, ceiling / 2, 0), (_THICK / 2, ceiling / 2, z1))
            continue
        left, right = opening[0] - _DOOR[0], opening[0] + _DOOR[0]
        add_wall((at, ceiling / 2, (z0 + left) / 2), (_THICK / 2, ceiling / 2, (left - z0) / 2))
        add_wall((at, ceiling / 2, (z1 + right) / 2), (_THICK / 2, ceiling / 2, (z1 - right) / 2))
        add_wall((at, (ceiling + _DOOR[1]) / 2, opening[0]), (_THICK / 2, (ceiling - _DOOR[1]) / 2, _DOOR[0]))
        for z in (left, right):
            home.parts.append(solid("box", (at, _DOOR[1] / 2, z), (_THICK / 2 + 0.02, _DOOR[1] / 2, 0.035), **board))
        home.parts.append(
            solid("box", (at, _DOOR[1], opening[0]), (_THICK / 2 + 0.02, 0.035, _DOOR[0] + 0.035), **board)
        )


def _walls_hung(
    home: Home, rng: np.random.Generator, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Hang a window with curtains and some paintings on the long walls; return the window's place and normal."""
    x0, x1 = low[0] + 0.3, high[0] - 0.3
    side = int(rng.choice([-1, 1]))
    face = high[2] - _THICK
    at = np.array([rng.uniform(x0 + 0.8, x1 - 0.8), 1.5, side * face])
    view = {"texture": f"window{rng.integers(3)}", "colour2": (1.0, 1.0, 1.0), "glow": 0.9, "casts_shadow": False}
    home.parts.append(solid("box", tuple(at), (0.55, 0.55, 0.03), (0, 0, 0), **view))
    cloth = {
        "colour": any_colour(rng),
        "colour2": any_colour(rng),
        "texture": "stripes",
        "tile": rng.uniform(0.12, 0.3),
    }
    for end in (-0.66, 0.66):
        home.parts.append(
            solid("box", (at[0] + end, 1.45, at[2] - side * 0.03), (0.13, 0.75, 0.035), casts_shadow=False, **cloth)
        )
    for wall in (-1, 1):
        for x in np.arange(x0 + 0.4, x1 - 0.3, 0.95):
            if rng.random() < 0.45 or (wall == side and abs(x - at[0]) < 1.2):
                continue
            half = (rng.uniform(0.18, 0.36), rng.uniform(0.18, 0.3), 0.02)
            picture = {"texture": f"painting{rng.integers(8)}", "colour2": (1.0, 1.0, 1.0), "casts_shadow": False}
            home.parts.append(solid("box", (x, rng.uniform(1.45, 1.65), wall * face), half, (0, 0, 0), **picture))
    return at, np.array([0.0, 0.0, -side])


def _against_a_wall(
    home: Home,
    rng: np.random.Generator,
    low: np.ndarray,
    high: np.ndarray,
    parts: list[Primitive],
    half: tuple[float, float],
    tops: list[tuple[float, float, float, float]],
) -> None:
    """Try some places along the walls; `half` is the footprint, `tops` are (height, z, half width, half depth)."""
    for _ in range(12):
        wall = int(rng.integers(4))
        yaw = (0, np.pi, np.pi / 2, -np.pi / 2)[wall]
        extent = half if wall < 2 else half[::-1]
        x = rng.uniform(low[0] + _THICK + extent[0], high[0] - _THICK - extent[0])
        z = rng.uniform(low[2] + _THICK + extent[1], high[2] - _THICK - extent[1])
        gap = _THICK + 0.025
        if wall < 2:
            z = (low[2] + gap + extent[1]) if wall == 0 else (high[2] - gap - extent[1])
        else:
            x = (low[0] + gap + extent[0]) if wall == 2 else (high[0] - gap - extent[0])
        rectangle = (x - extent[0], x + extent[0], z - extent[1], z + extent[1])
        if not home.is_free(*rectangle):
            continue
        home.blocked.append(rectangle)
        rotation = turn(yaw)
        home.parts += place(parts, np.array([x, 0, z]), rotation=rotation)
        for top, forward, wide, deep in tops:
            centre = np.array([x, 0, z]) + rotation @ np.array([0, top, forward])
            home.surfaces.append(Surface(centre, (wide, deep) if wall < 2 else (deep, wide)))
        return


def _scatter(home: Home, rng: np.random.Generator, low: np.ndarray, high: np.ndarray) -> None:
    """Put objects on the room's surfaces and on its floor, clear of each other."""
    kinds = list(OBJECTS)
    here = [s for s in home.surfaces if low[0] < s.centre[0] < high[0]]
    for surface in here:
        long = 0 if surface.half[0] > surface.half[1] else 1
        slots = max(1, int(2 * surface.half[long] / 0.34))
        for slot in rng.permutation(slots)[: rng.integers(1, 4)]:
            kind = kinds[rng.integers(len(kinds))]
            if kind == "chair":  # does not stand on a table
                continue
            centre = surface.centre.copy()
            centre[2 * long] += (2 * (slot + 0.5) / slots - 1) * surface.half[long]
            _add_thing(home, rng, kind, OBJECTS[kind](rng), centre)
    for _ in range(int(rng.integers(5, 10))):
        kind = kinds[rng.integers(len(kinds))]
        parts = OBJECTS[kind](rng)
        size = radius(parts) + 0.03
        for _ in range(8):
            x = rng.uniform(low[0] + _THICK + size, high[0] - _THICK - size)
            z = rng.uniform(low[2] + _THICK + size, high[2] - _THICK - size)
            if home.is_free(x - size, x + size, z - size, z + size):
                ground = home.littered if height(parts) < _LOW else home.blocked
                ground.append((x - size, x + size, z - size, z + size))
                _add_thing(home, rng, kind, parts, np.array([x, 0.012, z]))
                break


def _add_thing(home: Home, rng: np.random.Generator, kind: str, parts: list[Primitive], at: np.ndarray) -> None:
    owner = len(home.things)
    home.parts += place(parts, at, rotation=turn(rng.uniform(-np.pi, np.pi)), owner=owner)
    home.things.append(Thing(kind, at + [0, height(parts) / 2, 0], owner))


def _table(rng: np.random.Generator) -> tuple:
    w, d, h = rng.uniform(0.4, 0.7), rng.uniform(0.28, 0.42), rng.uniform(0.42, 0.74)
    wood, leg = wood_colours(rng), rng.uniform(0.02, 0.035)
    parts = [solid("box", (0, h - 0.02, 0), (w, 0.02, d), **wood)]
    for x in (-1, 1):
        for z in (-1, 1):
            parts.append(solid("box", (x * (w - leg), h / 2 - 0.02, z * (d - leg)), (leg, h / 2 - 0.02, leg), **wood))
    return parts, (w, d), [(h, 0.0, w - 0.05, d - 0.05)]


def _cabinet(rng: np.random.Generator) -> tuple:
    w, d, h = rng.uniform(0.35, 0.6), rng.uniform(0.2, 0.26), rng.uniform(0.5, 0.95)
    wood, front = wood_colours(rng), wood_colours(rng)
    parts = [solid("box", (0, h / 2, 0), (w, h / 2, d - 0.02), **wood), solid("box", (0, h, 0), (w, 0.015, d), **wood)]
    rows = int(rng.integers(2, 4))
    for row in range(rows):
        y, half = (row + 0.5) / rows * (h - 0.06) + 0.03, (h - 0.06) / rows / 2 - 0.01
        for x in (-w / 2, w / 2):
            parts.append(solid("box", (x, y, d - 0.02), (w / 2 - 0.012, half, 0.012), **front))
            parts.append(solid("sphere", (x, y, d), (0.016, 0.016, 0.016), (0.75, 0.7, 0.55)))
    return parts, (w, d + 0.02), [(h + 0.015, 0.0, w - 0.05, d - 0.04)]


def _bookcase(rng: np.random.Generator) -> tuple:
    w, d, h = rng.uniform(0.35, 0.6), 0.15, rng.uniform(1.1, 1.9)
    wood = wood_colours(rng)
    rows = round(h / 0.36)
    parts = [solid("box", (0, h / 2, 0.02 - d), (w, h / 2, 0.02), **wood)]
    parts += [solid("box", (x, h / 2, 0), (0.015, h / 2, d), **wood) for x in (-w, w)]
    for row in range(rows + 1):
        parts.append(solid("box", (0, 0.02 + row / rows * (h - 0.04), 0), (w, 0.012, d), **wood))
    for row in range(rows):
        if row == 1:
            continue  # left for an object
        y = 0.02 + (row + 0.48) / rows * (h - 0.04)
        spines = {"texture": f"books{rng.integers(4)}", "colour2": (1.0, 1.0, 1.0)}
        parts.append(solid("box", (0, y, -0.04), (w - 0.015, 0.45 * h / rows, 0.09), (0, 0, 0), **spines))
    return parts, (w + 0.015, d), [(0.032 + 1 / rows * (h - 0.04), 0.0, w - 0.1, 0.1)]


def _sofa(rng: np.random.Generator) -> tuple:
    w, colour = rng.uniform(0.65, 0.9), any_colour(rng)
    cloth = {"colour": colour, "colour2": tuple(0.8 * c for c in colour), "texture": "carpet", "tile": 0.3}
    parts = [
        solid("box", (0, 0.2, 0.02), (w, 0.14, 0.38), **cloth),
        solid("box", (0, 0.48, -0.32), (w, 0.32, 0.08), **cloth),
    ]
    for side in (-1, 1):
        parts += [
            solid("box", (side * (w - 0.08), 0.32, 0), (0.08, 0.26, 0.4), **cloth),
            solid("frustum", (side * (w - 0.08), 0.58, 0), (0.09, 0.4, 0.09), pitch=np.pi / 2, **cloth),
            solid("box", (side * (w - 0.16) / 2, 0.38, 0.06), ((w - 0.17) / 2, 0.06, 0.32), **cloth),
        ]
    pillow = {
        "colour": any_colour(rng),
        "colour2": any_colour(rng),
        "texture": str(rng.choice(["dots", "stripes", "checker"])),
    }
    parts.append(solid("sphere", (0.55 * w, 0.58, -0.16), (0.19, 0.17, 0.08), pitch=-0.35, tile=0.2, **pillow))
    return parts, (w + 0.02, 0.42), [(0.44, 0.12, 0.35 * w, 0.15)]


def _bed(rng: np.random.Generator) -> tuple:
    w, d = rng.uniform(0.4, 0.6), rng.uniform(0.8, 0.95)
    wood, sheet = wood_colours(rng), (0.93, 0.92, 0.9)
    quilt = {
        "colour": any_colour(rng),
        "colour2": any_colour(rng),
        "texture": str(rng.choice(["checker", "stripes", "dots", "flowers"])),
    }
    parts = [
        solid("box", (0, 0.16, 0), (w, 0.1, d), **wood),
        solid("box", (0, 0.4, 0.02 - d), (w, 0.4, 0.02), **wood),
        solid("box", (0, 0.32, 0), (w - 0.02, 0.07, d - 0.03), sheet),
        solid("box", (0, 0.36, 0.24), (w + 0.005, 0.06, d - 0.25), tile=rng.uniform(0.2, 0.5), **quilt),
        solid("sphere", (0, 0.42, 0.25 - d), (0.7 * w, 0.07, 0.17), sheet),
    ]
    return parts, (w + 0.01, d), [(0.42, 0.3, w - 0.15, 0.4)]
