"""The things of the synthetic world: twelve kinds of objects, and furniture, each built from a few solids.

A builder draws one specimen from a generator: its proportions, colours and patterns. Colours are drawn alike for all
kinds, so that colour alone does not tell a kind. A specimen stands on y = 0 around the origin, in metres; `place` sets
it into a room. `OBJECTS` are the classes of the labelled pictures and stand about in the rooms of the walks as well.
"""

import colorsys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np

from headcam.video.synthetic.scene import Colour, Primitive

Builder = Callable[[np.random.Generator], list[Primitive]]


def turn(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """Rotation matrix: first `roll` about z, then `pitch` about x, then `yaw` about the vertical axis (radians)."""
    (cy, cx, cz), (sy, sx, sz) = np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_y @ about_x @ about_z


def solid(
    shape: str,
    at: tuple[float, float, float],
    half: tuple[float, float, float],
    colour: Colour,
    *,
    yaw: float = 0.0,
    pitch: float = 0.0,
    roll: float = 0.0,
    **surface,
) -> Primitive:
    """A `Primitive` from plain numbers; `surface` are its remaining fields."""
    surface.setdefault("colour2", tuple(0.55 * c for c in colour))
    rotation = turn(yaw, pitch, roll)
    return Primitive(shape, np.array(at, np.float64), np.array(half, np.float64), rotation, colour, **surface)


def place(
    parts: list[Primitive], at: np.ndarray, *, rotation: np.ndarray, scale: float = 1.0, owner: int = -1
) -> list[Primitive]:
    """`parts` scaled, turned and set to `at (3,)`, all marked as belonging to object number `owner`."""
    return [replace(p.moved(rotation, np.asarray(at, np.float64), scale), owner=owner) for p in parts]


def radius(parts: list[Primitive]) -> float:
    """Radius in metres of the upright cylinder about the origin that holds `parts`."""
    corners = np.concatenate([p.corners() for p in parts])
    return float(np.hypot(corners[:, 0], corners[:, 2]).max())


def height(parts: list[Primitive]) -> float:
    """The highest point of `parts` in metres."""
    return float(np.concatenate([p.corners() for p in parts])[:, 1].max())


def any_colour(rng: np.random.Generator) -> Colour:
    """Any hue, mostly saturated, sometimes nearly grey, white or dark."""
    saturation = rng.uniform(0.5, 0.9) if rng.random() < 0.75 else rng.uniform(0, 0.2)
    return colorsys.hsv_to_rgb(rng.random(), saturation, rng.uniform(0.3, 0.95))


def wood_colours(rng: np.random.Generator) -> dict:
    """Surface fields of some wood, from birch to walnut, or of a painted board."""
    if rng.random() < 0.25:
        tone = rng.uniform(0.75, 0.95)
        return {"colour": (tone, tone, 0.96 * tone), "colour2": (0.85 * tone,) * 3, "texture": "wood", "tile": 0.6}
    tone = rng.uniform(0.35, 0.88)
    light = colorsys.hsv_to_rgb(rng.uniform(0.06, 0.11), rng.uniform(0.4, 0.65), tone)
    return {"colour": light, "colour2": tuple(0.6 * c for c in light), "texture": "wood", "tile": 0.6}


def _pattern(rng: np.random.Generator, tile: float) -> dict:
    """Surface fields: some pattern in two colours."""
    texture = rng.choice(["plain", "plain", "stripes", "checker", "dots", "flowers", "carpet"])
    return {"colour": any_colour(rng), "colour2": any_colour(rng), "texture": str(texture), "tile": tile}


def _ball(rng: np.random.Generator) -> list[Primitive]:
    r = rng.uniform(0.08, 0.15)
    tilt = {"yaw": rng.uniform(0, 6), "pitch": rng.uniform(0, 3)}
    return [solid("sphere", (0, r, 0), (r, r, r), **_pattern(rng, rng.choice([0.5, 1.0]) * np.pi * r), **tilt)]


def _book(rng: np.random.Generator) -> list[Primitive]:
    w, h, thick = rng.uniform(0.09, 0.14), rng.uniform(0.13, 0.18), rng.uniform(0.015, 0.03)
    cover = any_colour(rng)
    front = {"colour": cover, "colour2": any_colour(rng), "texture": "page"}
    parts = [
        solid("box", (0.005, h, 0), (w - 0.004, h - 0.006, thick - 0.006), (0.93, 0.9, 0.8), texture="wood", tile=0.05),
        solid("box", (0, h, thick - 0.003), (w, h, 0.003), **front),
        solid("box", (0, h, 0.003 - thick), (w, h, 0.003), **front),
        solid("box", (-w, h, 0), (0.004, h, thick), cover),
    ]
    if rng.random() < 0.6:  # lying on its back
        parts = [p.moved(turn(0, -np.pi / 2), np.array([0, thick, h])) for p in parts]
    return parts


def _bottle(rng: np.random.Generator) -> list[Primitive]:
    r, body, neck = rng.uniform(0.035, 0.055), rng.uniform(0.13, 0.2), rng.uniform(0.05, 0.09)
    glass, slim = any_colour(rng), rng.uniform(0.3, 0.42)
    return [
        solid("frustum", (0, body / 2, 0), (r, body / 2, r), glass),
        solid(
            "frustum", (0, 0.5 * body, 0), (1.02 * r, rng.uniform(0.2, 0.35) * body, 1.02 * r), **_pattern(rng, 0.06)
        ),
        solid("frustum", (0, body + 0.03, 0), (r, 0.03, r), glass, top=slim),
        solid("frustum", (0, body + 0.06 + neck / 2, 0), (slim * r, neck / 2, slim * r), glass),
        solid("frustum", (0, body + neck + 0.07, 0), (1.15 * slim * r, 0.016, 1.15 * slim * r), any_colour(rng)),
    ]


def _box(rng: np.random.Generator) -> list[Primitive]:
    """A parcel with a ribbon and a bow."""
    w, h, d = rng.uniform(0.09, 0.2), rng.uniform(0.07, 0.16), rng.uniform(0.09, 0.2)
    ribbon = any_colour(rng)
    parts = [
        solid("box", (0, h, 0), (w, h, d), **_pattern(rng, 0.12)),
        solid("box", (0, 1.85 * h, 0), (w + 0.008, 0.16 * h, d + 0.008), **_pattern(rng, 0.12)),
        solid("box", (0, h, 0), (0.018, h + 0.006, d + 0.012), ribbon),
        solid("box", (0, h, 0), (w + 0.012, h + 0.006, 0.018), ribbon),
    ]
    for side in (-1, 1):
        parts.append(solid("sphere", (0.04 * side, 2 * h + 0.03, 0), (0.042, 0.018, 0.024), ribbon, roll=0.5 * side))
    return parts


def _car(rng: np.random.Generator) -> list[Primitive]:
    length, width, r = rng.uniform(0.12, 0.17), rng.uniform(0.055, 0.075), rng.uniform(0.028, 0.038)
    paint, tyre, cabin = any_colour(rng), rng.uniform(0.05, 0.2), rng.uniform(0.4, 0.6) * length
    glass = (0.55, 0.75, 0.85)
    at = rng.uniform(-0.25, 0.1) * length
    parts = [
        solid("box", (0, 0.065, 0), (length, 0.032, width), paint),
        solid("box", (at, 0.12, 0), (cabin, 0.03, 0.86 * width), glass),
        solid("box", (at, 0.153, 0), (0.95 * cabin, 0.006, 0.86 * width), paint),
        solid("box", (at, 0.12, 0), (0.06 * length, 0.031, 0.88 * width), paint),
    ]
    for x in (-0.6, 0.6):
        for z in (-1, 1):
            axle = {"pitch": np.pi / 2}
            wheel = (x * length, r, z * width)
            parts.append(solid("frustum", wheel, (r, 0.014, r), (tyre,) * 3, **axle))
            parts.append(solid("frustum", wheel, (0.5 * r, 0.016, 0.5 * r), (0.8, 0.8, 0.8), **axle))
        parts.append(solid("sphere", (length * np.sign(x), 0.07, 0.6 * width), (0.008, 0.012, 0.012), (0.95, 0.9, 0.6)))
        parts.append(
            solid("sphere", (length * np.sign(x), 0.07, -0.6 * width), (0.008, 0.012, 0.012), (0.95, 0.9, 0.6))
        )
    return parts


def _chair(rng: np.random.Generator) -> list[Primitive]:
    w, seat, back = rng.uniform(0.17, 0.22), rng.uniform(0.28, 0.44), rng.uniform(0.3, 0.45)
    frame = {"colour": any_colour(rng)} if rng.random() < 0.5 else wood_colours(rng)
    leg = rng.uniform(0.014, 0.024)
    parts = [solid("box", (0, seat, 0), (w, 0.02, w), **(frame if rng.random() < 0.5 else _pattern(rng, 0.2)))]
    for x in (-1, 1):
        for z in (-1, 1):
            parts.append(solid("frustum", (x * (w - leg), seat / 2, z * (w - leg)), (leg, seat / 2, leg), **frame))
        parts.append(solid("frustum", (x * (w - leg), seat + back / 2, leg - w), (leg, back / 2, leg), **frame))
    if rng.random() < 0.5:
        parts.append(solid("box", (0, seat + 0.72 * back, leg - w), (w, 0.28 * back, 0.012), **frame))
    else:
        for share in (0.35, 0.65, 0.95):
            parts.append(solid("box", (0, seat + share * back, leg - w), (w, 0.08 * back, 0.012), **frame))
    return parts


def _cone(rng: np.random.Generator) -> list[Primitive]:
    """A traffic cone with bands."""
    r, h = rng.uniform(0.08, 0.12), rng.uniform(0.24, 0.4)
    main, band = any_colour(rng), any_colour(rng) if rng.random() < 0.5 else (0.95, 0.95, 0.95)
    parts = [solid("box", (0, 0.012, 0), (1.35 * r, 0.012, 1.35 * r), main)]
    edges, widths = np.array([0, 0.3, 0.5, 0.66, 0.82, 1.0]), lambda share: r * (1 - 0.85 * share)
    for i, (low, high) in enumerate(pairwise(edges)):
        a = widths(low)
        at, half = (0, 0.024 + h * (low + high) / 2, 0), (a, h * (high - low) / 2, a)
        parts.append(solid("frustum", at, half, main if i % 2 == 0 else band, top=widths(high) / a))
    return parts


def _cup(rng: np.random.Generator) -> list[Primitive]:
    r, h, flare = rng.uniform(0.035, 0.05), rng.uniform(0.07, 0.12), rng.uniform(1.0, 1.35)
    colour = _pattern(rng, 0.07)
    rim = r * flare
    parts = [
        solid("frustum", (0, h / 2, 0), (r, h / 2, r), top=flare, **colour),
        solid("frustum", (0, h, 0), (0.88 * rim, 0.0015, 0.88 * rim), (0.25, 0.13, 0.06)),
    ]
    # The handle: a ring of short rods beside the cup.
    size, mean = 0.3 * h, (r + rim) / 2
    for angle in np.linspace(-1.9, 1.9, 7):
        at = (mean + size * (0.15 + np.cos(angle)), h / 2 + size * np.sin(angle), 0)
        parts.append(solid("frustum", at, (0.008, 0.3 * size, 0.008), colour["colour"], roll=angle))
    return parts


def _lamp(rng: np.random.Generator) -> list[Primitive]:
    """A table lamp: foot, stem and a shade that glows a little."""
    stem, shade, slim = rng.uniform(0.16, 0.3), rng.uniform(0.08, 0.13), rng.uniform(0.4, 0.8)
    body, high = any_colour(rng), rng.uniform(0.07, 0.1)
    cloth = {
        "colour": any_colour(rng),
        "colour2": any_colour(rng),
        "texture": str(rng.choice(["plain", "stripes", "dots"])),
    }
    parts = [
        solid("frustum", (0, 0.012, 0), (0.07, 0.012, 0.07), body, top=0.8),
        solid("frustum", (0, stem / 2, 0), (0.01, stem / 2, 0.01), body),
        solid(
            "frustum",
            (0, stem + high, 0),
            (shade, high, shade),
            top=slim,
            tile=0.08,
            glow=rng.uniform(0.1, 0.8),
            **cloth,
        ),
    ]
    if rng.random() < 0.5:
        parts.append(solid("sphere", (0, 0.35 * stem, 0), (0.05, 0.3 * stem, 0.05), body))
    return parts


def _plant(rng: np.random.Generator) -> list[Primitive]:
    r, h = rng.uniform(0.07, 0.12), rng.uniform(0.1, 0.18)
    hue = rng.uniform(0.2, 0.42)
    leaf = colorsys.hsv_to_rgb(hue, rng.uniform(0.4, 0.8), rng.uniform(0.3, 0.75))
    green = {"colour": leaf, "colour2": tuple(0.4 * c for c in leaf), "texture": "leaves"}
    parts = [
        solid("frustum", (0, h / 2, 0), (0.75 * r, h / 2, 0.75 * r), top=1.3, **_pattern(rng, 0.1)),
        solid("frustum", (0, h, 0), (0.9 * r, 0.004, 0.9 * r), (0.2, 0.13, 0.08)),
    ]
    long = rng.uniform(0.12, 0.22)
    if rng.random() < 0.4:  # a little tree
        parts.append(solid("frustum", (0, h + long / 2, 0), (0.012, long / 2, 0.012), (0.35, 0.24, 0.15)))
        for angle in np.arange(4) * np.pi / 2 + rng.uniform(0, 1):
            at = (0.06 * np.cos(angle), h + long + 0.04 + 0.05 * rng.random(), 0.06 * np.sin(angle))
            parts.append(solid("sphere", at, tuple(rng.uniform(0.07, 0.1, 3)), tile=0.2, **green))
        return parts
    for i in range(9):  # leaves that spread from the pot
        yaw, lean = 2.4 * i + rng.uniform(-0.3, 0.3), rng.uniform(0.1, 1.1)
        along = turn(yaw, lean) @ np.array([0, long * rng.uniform(0.8, 1.1), 0])
        at = tuple(np.array([0, h, 0]) + along)
        parts.append(solid("sphere", at, (0.035, long, 0.008), yaw=yaw, pitch=lean, tile=0.2, **green))
    return parts


def _rings(rng: np.random.Generator) -> list[Primitive]:
    """The toddler's stacking rings: fat discs that get smaller upwards, and a knob."""
    count, r, thick = int(rng.integers(3, 6)), rng.uniform(0.08, 0.12), rng.uniform(0.018, 0.026)
    parts = [solid("frustum", (0, 0.01, 0), (1.1 * r, 0.01, 1.1 * r), any_colour(rng))]
    for i in range(count):
        size = r * (1 - 0.6 * i / count)
        parts.append(solid("sphere", (0, 0.02 + thick * (2 * i + 1), 0), (size, 1.15 * thick, size), any_colour(rng)))
    top = 0.02 + 2 * thick * count
    parts.append(solid("sphere", (0, top + 0.02, 0), (0.025, 0.025, 0.025), any_colour(rng)))
    return parts


def _teddy(rng: np.random.Generator) -> list[Primitive]:
    fur = {"colour": any_colour(rng), "texture": "carpet", "tile": 0.15}
    light = {"colour": tuple(min(1, 1.25 * c + 0.1) for c in fur["colour"]), "texture": "carpet", "tile": 0.15}
    parts = [
        solid("sphere", (0, 0.12, 0), (0.095, 0.12, 0.085), **fur),
        solid("sphere", (0, 0.12, 0.03), (0.065, 0.085, 0.065), **light),
        solid("sphere", (0, 0.29, 0.01), (0.085, 0.08, 0.075), **fur),
        solid("sphere", (0, 0.27, 0.075), (0.038, 0.03, 0.035), **light),
        solid("sphere", (0, 0.282, 0.108), (0.014, 0.01, 0.008), (0.08, 0.06, 0.06)),
    ]
    lift = rng.uniform(-0.4, 0.9)
    for side in (-1, 1):
        parts += [
            solid("sphere", (0.065 * side, 0.355, 0), (0.034, 0.034, 0.02), **fur),
            solid("sphere", (0.034 * side, 0.31, 0.078), (0.011, 0.011, 0.009), (0.05, 0.04, 0.04)),
            solid("sphere", (0.115 * side, 0.17 + 0.04 * lift, 0.03), (0.075, 0.035, 0.04), roll=side * lift, **fur),
            solid("sphere", (0.07 * side, 0.045, 0.1), (0.042, 0.042, 0.085), yaw=0.35 * side, **fur),
            solid("sphere", (0.1 * side, 0.05, 0.178), (0.03, 0.034, 0.012), yaw=0.35 * side, **light),
        ]
    stature = np.array([rng.uniform(0.85, 1.2), rng.uniform(0.85, 1.15), 1.0])
    return [replace(p, centre=stature * p.centre, half=stature * p.half) for p in parts]


OBJECTS: dict[str, Builder] = {
    "ball": _ball,
    "book": _book,
    "bottle": _bottle,
    "box": _box,
    "car": _car,
    "chair": _chair,
    "cone": _cone,
    "cup": _cup,
    "lamp": _lamp,
    "plant": _plant,
    "rings": _rings,
    "teddy": _teddy,
}
