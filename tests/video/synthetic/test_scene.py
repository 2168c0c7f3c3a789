"""The ray caster against an independent statement (inside or not, found by marching), and its light and shadow."""

import numpy as np
import pytest

from headcam.randomness import stream
from headcam.video.synthetic import scene as ray_caster
from headcam.video.synthetic.objects import OBJECTS, height, place, solid, turn
from headcam.video.synthetic.render import render
from headcam.video.synthetic.rooms import build_home
from headcam.video.synthetic.scene import Camera, Room, Scene, cast, gaze, screen_rectangles
from headcam.video.synthetic.textures import LEVELS, NAMES, SIDE, atlas

SOLIDS = [
    solid("box", (0.0, 0.4, 3.0), (0.5, 0.4, 0.2), (1, 0, 0), yaw=0.6, pitch=0.3),
    solid("sphere", (-0.9, 0.6, 2.2), (0.3, 0.5, 0.4), (0, 1, 0), yaw=0.4, roll=0.8),
    solid("frustum", (0.9, 0.5, 2.4), (0.35, 0.5, 0.3), (0, 0, 1), top=0.0),
    solid("frustum", (0.5, 1.3, 2.6), (0.2, 0.4, 0.2), (0, 0, 1), pitch=1.3, yaw=0.9),
    solid("frustum", (-0.4, 1.2, 2.0), (0.2, 0.25, 0.2), (0, 0, 1), top=1.6, roll=0.5),
    solid("box", (0.0, -0.1, 2.0), (4.0, 0.1, 6.0), (1, 1, 1)),
]


def room(size=3.0):
    low, high = np.array([-size, 0, -size]), np.array([size, 2.5, size])
    lamp, window = np.array([0.0, 2.2, 0.0]), np.array([-size, 1.5, 0.0])
    white, none = np.full(3, 1.5), np.zeros(3)
    return Room(low, high, lamp, white, window, np.array([1.0, 0, 0]), none, np.full(3, 0.1))


def is_inside(p, points):
    """Whether world points `(n, 3)` lie in a solid: from its definition, in float64, without the module's maps."""
    axes = [np.asarray(p.rotation[:, k], np.float64) for k in range(3)]
    x, y, z = (((points - p.centre) * axis).sum(1) / h for axis, h in zip(axes, p.half))
    if p.shape == "box":
        return (abs(x) <= 1) & (abs(y) <= 1) & (abs(z) <= 1)
    if p.shape == "sphere":
        return x**2 + y**2 + z**2 <= 1
    share = (y + 1) / 2  # of the way from the bottom to the top
    return (share >= 0) & (share <= 1) & (np.sqrt(x**2 + z**2) <= 1 - share + share * p.top)


def marched_depth(solids, camera, row, column, size, step=0.004, far=9.0):
    """Depth along the forward axis and index of the first solid on one ray: small steps, then bisection."""
    tangent = np.tan(np.radians(camera.fov) / 2)
    a = (2 * (column + 0.5) / size[1] - 1) * tangent
    b = (1 - 2 * (row + 0.5) / size[0]) * tangent * size[0] / size[1]
    direction = camera.rotation @ np.array([a, b, 1.0])
    best = (np.inf, -1)
    for n, p in enumerate(solids):
        t = np.arange(step, far, step)
        hits = np.flatnonzero(is_inside(p, camera.position + t[:, None] * direction))
        if hits.size:
            low, high = t[hits[0]] - step, t[hits[0]]
            for _ in range(30):
                middle = (low + high) / 2
                if is_inside(p, (camera.position + middle * direction)[None])[0]:
                    high = middle
                else:
                    low = middle
            best = min(best, (high, n))
    return best


@pytest.mark.parametrize("pose", [((0.1, 1.0, 0.0), 0.0, -0.15), ((-1.6, 1.7, 0.9), 0.9, -0.5)])
def test_depths_agree_with_marching_rays(pose):
    at, yaw, pitch = pose
    camera, size = Camera(np.array(at), gaze(yaw, pitch, 0.1), 80.0), (18, 26)
    hits = cast(Scene(SOLIDS, [room()]), camera, size)
    expected = [[marched_depth(SOLIDS, camera, r, c, size) for c in range(size[1])] for r in range(size[0])]
    depth, index = np.array(expected)[..., 0], np.array(expected)[..., 1].astype(int)
    assert len(set(index.ravel())) == 7  # every solid and the void are in the picture
    near = depth < 8
    same = hits.primitive == np.where(near, index, hits.primitive)
    assert same.mean() > 0.99  # marching steps over a corner now and then
    np.testing.assert_allclose(
        hits.depth[same & near], depth[same & near], rtol=1e-4
    )  # float32, worst where a ray grazes
    assert np.isinf(hits.depth[index < 0]).all()


def test_counting_solids_around_a_point_agrees_with_their_definition():
    points = stream(0, "test", 0).uniform([-2, -0.3, 0.5], [2, 2, 4], (4000, 3))
    expected = sum(is_inside(p, points).astype(int) for p in SOLIDS)
    assert expected.max() >= 1
    np.testing.assert_array_equal(Scene(SOLIDS, [room()]).inside(points), expected)


def test_screen_rectangles_leave_nothing_out(monkeypatch):
    rng = stream(1, "test", 0)
    home = build_home(rng, 2)
    scene = home.scene()
    middle = (home.rooms[0].low + home.rooms[0].high) / 2
    cameras = [Camera(middle, gaze(yaw, -0.4, 0.2), 90.0) for yaw in (0.3, 1.6, 4.0)]
    culled = [cast(scene, camera, (60, 80)) for camera in cameras]
    everything = np.array([0, 60, 0, 80])
    monkeypatch.setattr(ray_caster, "screen_rectangles", lambda p, *_: np.tile(everything, (len(p), 1)))
    for camera, hits in zip(cameras, culled):
        full = cast(scene, camera, (60, 80))
        np.testing.assert_array_equal(hits.depth, full.depth)
        assert np.isfinite(full.depth).all()  # a home is closed


def test_rectangle_of_a_hull_behind_the_camera_is_empty():
    camera = Camera(np.zeros(3), gaze(0, 0), 90.0)
    corners = np.stack([p.corners() for p in [solid("box", (0, 0, z), (1, 1, 1), (1, 1, 1)) for z in (-3, 0, 3)]])
    behind, around, ahead = screen_rectangles(corners, camera, (100, 100))
    assert behind[0] >= behind[1] or behind[2] >= behind[3]
    assert list(around) == [0, 100, 0, 100]
    # The front face is 2 m away: it spans half of the field of view of 90 degrees, and a pixel of margin.
    assert ahead == pytest.approx([24, 76, 24, 76], abs=1)


def test_ball_under_the_lamp_casts_a_shadow():
    floor = solid("box", (0, -0.1, 0), (3, 0.1, 3), (0.8, 0.8, 0.8))
    ball = solid("sphere", (0, 0.8, 0), (0.25, 0.25, 0.25), (0.8, 0.2, 0.2))
    camera = Camera(np.array([0, 1.2, -2.0]), gaze(0, -0.55), 70.0)
    with_ball, without = (render(Scene(s, [room()]), camera, (80, 100)) for s in ([floor, ball], [floor]))
    below = camera.rotation.T @ (np.array([0, 0, 0]) - camera.position)  # the point of the floor under the ball
    focal = 50 / np.tan(np.radians(35))
    r, c = round(40 - focal * below[1] / below[2]), round(50 + focal * below[0] / below[2])
    assert with_ball[r, c].mean() < 0.6 * without[r, c].mean()
    assert (
        abs(float(with_ball[r, 4].mean()) - float(without[r, 4].mean())) < 20
    )  # far from it: only the exposure differs


@pytest.mark.parametrize("kind", sorted(OBJECTS))
def test_objects_stand_on_the_ground_and_are_drawn_anew(kind):
    first, again, other = (OBJECTS[kind](stream(seed, "test", 0)) for seed in (0, 0, 1))
    assert [p.colour for p in first] == [p.colour for p in again]
    assert [tuple(p.half) for p in first] != [tuple(p.half) for p in other]
    lowest = min(_lowest_point(p) for p in first)
    assert -0.02 < lowest < 0.012
    assert 0.02 < height(first) < 1.2
    moved = place(first, np.array([1.0, 2.0, 3.0]), rotation=turn(0.7), scale=2.0, owner=5)
    assert {p.owner for p in moved} == {5}
    assert height(moved) == pytest.approx(2 + 2 * height(first))


def _lowest_point(p):
    """The lowest y of a solid, from its support function (for a frustum, its two rims)."""
    down = p.rotation[1]  # y of the solid's axes
    if p.shape == "box":
        return p.centre[1] - np.abs(down) @ p.half
    if p.shape == "sphere":
        return p.centre[1] - np.linalg.norm(down * p.half)
    rim = np.hypot(down[0] * p.half[0], down[2] * p.half[2])
    return p.centre[1] + min(-down[1] * p.half[1] - rim, down[1] * p.half[1] - p.top * rim)


def test_patterns_keep_their_mean_in_every_size():
    texels, offset = atlas()
    assert offset.shape == (len(NAMES), LEVELS)
    assert texels.min() >= 0
    assert texels.max() <= 1
    for starts in offset:
        means = [texels[s : s + (SIDE >> k) ** 2].mean(0) for k, s in enumerate(starts)]
        np.testing.assert_allclose(means, np.tile(means[0], (LEVELS, 1)), atol=1e-4)
