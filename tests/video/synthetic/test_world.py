"""The synthetic world's files: the same bytes however they are made, and pictures of what their folder says."""

import itertools
import json

import av
import numpy as np
import pytest
import simplejpeg

from headcam.errors import InputError
from headcam.randomness import stream
from headcam.video.synthetic import world
from headcam.video.synthetic.objects import OBJECTS
from headcam.video.synthetic.rooms import build_home
from headcam.video.synthetic.walk import walk
from headcam.video.synthetic.world import close_up, render_labelled, render_walks, walk_frames

WALKS = {"num_walks": 2, "seconds": 1.5, "fps": 6, "size": (48, 64), "seed": 3}
LABELLED = {"num_train": 2, "num_val": 1, "size": (32, 40), "seed": 3}


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walks")
    render_walks(folder, **WALKS)
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    assert render_labelled(folder, **LABELLED) == sorted(OBJECTS)
    return folder


class Counter:
    def __init__(self):
        self.steps = 0

    def advance(self, steps=1, current=""):
        self.steps += steps


def test_frames_follow_from_the_seed_and_the_index():
    def frames(index, seed):
        return np.stack(list(walk_frames(index, 4, 5.0, (32, 40), seed)))

    first = frames(0, 0)
    assert first.shape == (4, 32, 40, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, frames(0, 0))
    for other in (frames(1, 0), frames(0, 1)):
        assert np.abs(first.astype(int) - other).mean() > 10


def test_videos_hold_the_stated_frames(walks):
    for name in ("walk-000.mp4", "walk-001.mp4"):
        with av.open(str(walks / name)) as container:
            stream_ = container.streams.video[0]
            frames = list(container.decode(stream_))
            assert stream_.average_rate == 6
            assert len(frames) == 9
            assert {(f.height, f.width, f.format.name) for f in frames} == {(48, 64, "yuv420p")}
            assert [float(f.pts * f.time_base) for f in frames] == pytest.approx([k / 6 for k in range(9)])
            rendered = next(iter(walk_frames(int(name[5:8]), 9, 6, (48, 64), 3)))
            difference = frames[0].to_ndarray(format="rgb24").astype(float) - rendered
            assert np.sqrt((difference**2).mean()) < 20  # compressed, but the same picture


def test_processes_do_not_change_a_byte(walks, labelled, tmp_path):
    counter = Counter()
    render_walks(tmp_path / "walks", **WALKS, processes=2, progress=counter)
    assert contents(tmp_path / "walks") == contents(walks)
    assert counter.steps == 2
    render_labelled(tmp_path / "labelled", **LABELLED, processes=2, progress=counter)
    assert contents(tmp_path / "labelled") == contents(labelled)
    assert counter.steps == 2 + 3 * len(OBJECTS)


def test_interrupted_render_leaves_nothing_half_written_and_goes_on(walks, tmp_path, monkeypatch):
    rendered, real = itertools.count(), world.render

    def interrupted(*arguments):
        if next(rendered) == 12:  # in the middle of the second of two walks of 9 frames
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(world, "render", interrupted)
    with pytest.raises(KeyboardInterrupt):
        render_walks(tmp_path, **WALKS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["synthetic.json", "walk-000.mp4"]
    paths = render_walks(tmp_path, **WALKS)
    assert next(rendered) == 13 + 9  # the first walk was not rendered again
    assert [p.name for p in paths] == ["walk-000.mp4", "walk-001.mp4"]
    assert contents(tmp_path) == contents(walks)


def test_labelled_render_makes_only_what_is_missing(labelled, tmp_path):
    render_labelled(tmp_path, **LABELLED)
    kept, lost = tmp_path / "train/ball/00000.jpg", tmp_path / "val/cup/00000.jpg"
    lost.unlink()
    before = kept.stat().st_mtime_ns
    render_labelled(tmp_path, **LABELLED)
    assert kept.stat().st_mtime_ns == before
    assert contents(tmp_path) == contents(labelled)


def test_labelled_folder_is_complete_and_its_pictures_differ(labelled):
    files = {k: v for k, v in contents(labelled).items() if k.endswith(".jpg")}
    expected = {
        f"{split}/{name}/{i:05d}.jpg" for split, n in (("train", 2), ("val", 1)) for name in OBJECTS for i in range(n)
    }
    assert set(files) == expected
    assert len(set(files.values())) == len(files)
    assert {simplejpeg.decode_jpeg(data).shape for data in files.values()} == {(32, 40, 3)}


@pytest.mark.parametrize("name", sorted(OBJECTS))
def test_labelled_pictures_show_their_object(name):
    for split, index in (("train", 0), ("train", 1), ("val", 0)):
        view = close_up(split, name, index, seed=5)
        seen, whole = view.shares()
        assert 0.08 <= seen <= 0.6
        assert seen >= 0.8 * whole
        assert view.scene.inside(view.camera.position[None])[0] == 0


def test_eye_stays_out_of_all_solids_and_gets_about():
    travelled = []
    for seed in range(6):
        rng = stream(seed, "test", 0)
        home = build_home(rng, 3)
        eyes = np.array([view.camera.position for view in walk(home, rng, 900, 10.0)])
        assert not home.scene().inside(eyes, margin=0.05).any()
        step = np.linalg.norm(np.diff(eyes, axis=0), axis=1)
        assert step.max() < 0.2  # metres in a tenth of a second: nobody jumps
        travelled.append(np.ptp(eyes[:, 0]))
    assert np.median(travelled) > 3  # metres along the row of rooms: through doorways, not on the spot


def test_gaze_rests_on_objects():
    rng = stream(0, "test", 0)
    home = build_home(rng, 3)
    centres = np.array([thing.centre for thing in home.things])
    cameras = [view.camera for view in walk(home, rng, 900, 10.0)]

    def share_on_object(forward):
        """Share of the frames with an object within 1.6 m and 10 degrees of the direction of gaze."""
        toward = centres - np.array([camera.position for camera in cameras])[:, None]  # (frames, objects, 3)
        distance = np.linalg.norm(toward, axis=2)
        cosine = (toward * forward[:, None]).sum(2) / distance
        return ((distance < 1.6) & (cosine > np.cos(np.radians(10)))).any(1).mean()

    forward = np.array([camera.rotation[:, 2] for camera in cameras])
    elsewhere = forward[rng.permutation(len(forward))]  # the same gazes at other moments
    assert share_on_object(forward) > 0.35
    assert share_on_object(forward) > 2 * share_on_object(elsewhere)


@pytest.mark.parametrize("change", [{"seed": 4}, {"seconds": 2.0}, {"size": (64, 64)}, {"num_walks": 3}])
def test_a_folder_of_other_settings_is_refused(walks, change):
    before = contents(walks)
    with pytest.raises(InputError, match=r"other settings.*Fix: use another folder"):
        render_walks(walks, **{**WALKS, **change})
    assert contents(walks) == before


def test_a_damaged_note_is_refused(tmp_path):
    (tmp_path / "synthetic.json").write_text("{")
    with pytest.raises(InputError, match="other settings"):
        render_labelled(tmp_path, **LABELLED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (47, 64)}, "47 x 64"),
        ({"size": (48, 8)}, "48 x 8"),
        ({"num_walks": 0}, "0 walks"),
        ({"seconds": 0}, "0 s"),
    ],
)
def test_walks_that_cannot_be_are_refused(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        render_walks(tmp_path, **{**WALKS, **change})
    assert not list(tmp_path.iterdir())


def test_too_few_pictures_are_refused(tmp_path):
    with pytest.raises(InputError, match="0 validation"):
        render_labelled(tmp_path, **{**LABELLED, "num_val": 0})


def test_note_names_the_settings(walks):
    note = json.loads((walks / "synthetic.json").read_text())
    assert note == {"version": 1, "kind": "walks", "seed": 3, "num": 2, "seconds": 1.5, "fps": 6.0, "size": [48, 64]}
