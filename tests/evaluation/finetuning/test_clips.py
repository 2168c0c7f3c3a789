"""Clips of labelled videos: random by their keys alone in training, never in a test, mirrored where that is right."""

import dataclasses

import av
import numpy as np
import pytest
import torch

from headcam.errors import InputError
from headcam.evaluation.finetuning.clips import ClipExamples, flips
from headcam.evaluation.finetuning.train import finetune
from headcam.evaluation.labelled.sets import labels_of
from headcam.evaluation.labelled.videos import read_videos
from headcam.evaluation.protocols import Clips, Finetune
from headcam.ssl.vit import VisionTransformer

PROTOCOL = Finetune(
    pool="avg", lr=(3e-3,), epochs=8, schedule="cosine", batch_size=4, resize=4, crop_scale=(0.5, 1.0),
    clips=Clips(step_seconds=0.2, num_frames=3, test_clips=2), name="video",
)  # fmt: skip
CARD = {"name": "small", "img_size": [16, 16], "mean": [0.45] * 3, "std": [0.225] * 3}


def write_video(path, colour, seed):
    """Two seconds at 10 frames a second that grow brighter, with a bar at the left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10, options={"preset": "ultrafast", "crf": "10"})
        video.width, video.height, video.pix_fmt = 48, 32, "yuv420p"
        for k in range(20):
            pixels = np.full((32, 48, 3), 20 + 5 * k) + np.array(colour) + rng.normal(0, 8, (32, 48, 3))
            pixels[:, :12] = 250
            frame = np.clip(pixels, 0, 255).astype(np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos") / "set"
    for label, (name, colour) in enumerate({"red": (100, 0, 0), "blue": (0, 0, 100)}.items()):
        for part, count in (("train", 6), ("val", 4)):
            for k in range(count):
                write_video(root / part / name / f"{k}.mp4", colour, seed=100 * label + 10 * count + k)
    return read_videos(root)


def image_vit():
    torch.manual_seed(0)
    return VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=2), CARD


def video_vit():
    torch.manual_seed(0)
    arguments = {"num_frames": 4, "tubelet_size": 2, "positions": "separable"}
    return VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=2, **arguments), CARD


def test_views_follow_from_seed_epoch_and_row(data):
    examples = ClipExamples(data.train, data.classes, PROTOCOL, 3, (16, 16), seed=1)
    together = next(examples.views([np.array([4, 2, 9])], epoch=1))
    assert together.shape == (3, 3, 3, 16, 16) and together.dtype == torch.uint8  # (B, 3, T, H, W)
    alone = list(examples.views([np.array([9]), np.array([2, 4])], epoch=1))
    assert torch.equal(together, torch.cat([alone[1][1:], alone[1][:1], alone[0]]))
    assert not torch.equal(next(examples.views([np.array([4, 2, 9])], epoch=2)), together)
    brightness = together.float().mean(dim=(1, 3, 4))  # of each frame
    assert (brightness.diff(dim=1) > 0).all()  # in the order of time


def test_test_clips_are_spaced_evenly_and_not_random(data):
    examples = ClipExamples(data.train, data.classes, PROTOCOL, 3, (16, 16), seed=1)
    views = examples.prepare(data.test[0])
    assert views.shape == (2, 3, 3, 16, 16) and views.dtype == np.uint8
    assert np.array_equal(
        views, ClipExamples(data.train, data.classes, PROTOCOL, 3, (16, 16), seed=7).prepare(data.test[0])
    )
    first, last = views.astype(float).mean(axis=(1, 3, 4))
    assert first[0] < first[-1] < last[-1] and first[0] + 30 < last[0]  # begins at 0 s, ends at 2 s


def test_mirror_images_only_where_no_class_speaks_of_left_and_right(data):
    sides = ("pushing something from left to right", "dropping something")
    assert flips("always", sides) and not flips("never", ("walking",))
    assert flips("by class names", ("walking", "brightening")) and not flips("by class names", sides)

    def left_bars(classes):
        protocol = dataclasses.replace(PROTOCOL, crop_scale=(1.0, 1.0))
        views = next(ClipExamples(data.train, classes, protocol, 3, (16, 16), seed=1).views([np.arange(12)], 0))
        views = views.float().mean(dim=(1, 2, 3))  # (B, W)
        return (views[:, 0] > views[:, -1]).tolist()

    assert all(left_bars(sides))
    assert 2 <= sum(left_bars(("walking", "running"))) <= 10


@pytest.mark.parametrize("build", [image_vit, video_vit])
def test_learns_from_clips(data, tmp_path, build):
    found = finetune(build, data, np.arange(12), PROTOCOL, num_classes=2, seed=0, out=tmp_path / "out", quiet=True)
    assert (found.scores.argmax(dim=1).numpy() == labels_of(data.test)).mean() >= 7 / 8
    torch.testing.assert_close(found.scores.exp().sum(dim=1), torch.ones(8))  # the mean of two clips' probabilities


def test_clips_and_heavy_augmentation_do_not_go_together(data, tmp_path):
    heavy = dataclasses.replace(PROTOCOL, augmentation="heavy")
    with pytest.raises(InputError, match="augmentation heavy is for pictures"):
        finetune(image_vit, data, np.arange(12), heavy, num_classes=2, seed=0, out=tmp_path / "out")
    with pytest.raises(InputError, match="video-v1 is for pictures, and set holds videos"):
        still = dataclasses.replace(PROTOCOL, clips=None)
        finetune(image_vit, data, np.arange(12), still, num_classes=2, seed=0, out=tmp_path / "out")
