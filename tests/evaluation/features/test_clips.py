"""Clips of labelled videos: which frames they are, and what models of clips and of pictures make of them."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from headcam.errors import DecodeError
from headcam.evaluation.features.clips import ClipExtractor, clip_places, read_clip, read_test_clip
from headcam.evaluation.features.encoders import EncoderExtractor
from headcam.evaluation.features.extraction import extract
from headcam.evaluation.labelled.videos import Video
from headcam.evaluation.protocols import Clips, EncoderFeatures
from headcam.files import recording_id
from headcam.ssl.vit import VisionTransformer

CARD = {"name": "small", "img_size": [16, 16], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
RATE = 10
STEP = 4  # grey levels from one frame to the next


def write_video(path: Path, frames: int, size: tuple[int, int] = (48, 32)) -> Path:
    """Frame k is of the one grey level 20 + 4 k, so that a frame says which one it is."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "1", "g": "12"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for k in range(frames):
            picture = np.full((size[1], size[0], 3), 20 + STEP * k, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbers(clip: np.ndarray) -> list[int]:
    """Which frames of the video those of a clip are."""
    return [round((float(frame.mean()) - 20) / STEP) for frame in clip]


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """50 frames, 5 seconds."""
    return write_video(tmp_path_factory.mktemp("video") / "a.mp4", 50)


def labelled(path: Path, **stretch) -> Video:
    return Video(path.parent, path.name, 0, recording_id(path), **stretch)


def encoder(num_frames: int) -> VisionTransformer:
    how = {"num_frames": num_frames, "tubelet_size": 2, "positions": "separable"} if num_frames > 1 else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, **how).eval()


@pytest.mark.parametrize(
    "stretch, at, expected",
    [
        ((0.0, None), 0.0, [0, 2, 4, 6]),
        ((0.0, None), 1.0, [42, 44, 46, 48]),
        ((0.0, None), 0.5, [21, 23, 25, 27]),
        ((1.0, 3.0), 0.0, [10, 12, 14, 16]),
        ((1.0, 3.0), 1.0, [22, 24, 26, 28]),
        ((1.0, 99.0), 1.0, [42, 44, 46, 48]),  # lists claim more than files have
    ],
)
def test_a_clip_lies_in_its_stretch(video, stretch, at, expected):
    # A hundredth of a second later than the frames' own times, which containers round.
    start, end = stretch
    clip = read_clip(video, start + 0.01 * (at == 0), end, 4, 0.2, at=at)
    assert clip.dtype == np.uint8 and clip.shape == (4, 32, 48, 3)
    assert numbers(clip) == pytest.approx(expected, abs=0 if at == 0 else 1)
    assert np.diff(numbers(clip)).tolist() == [2, 2, 2]


def test_a_short_video_is_shown_whole(tmp_path):
    path = write_video(tmp_path / "short.mp4", 8)
    for at in (0.0, 0.5, 1.0):
        assert numbers(read_clip(path, 0.0, None, 4, 0.5, at=at)) == [1, 3, 5, 7]
    assert numbers(read_clip(path, 0.4, None, 2, 0.5, at=0.0)) == [5, 7]
    assert numbers(read_clip(path, 0.0, 0.3, 6, 0.5, at=0.0)) == [0, 0, 1, 1, 2, 2]


def test_frames_are_scaled_while_they_are_read(video):
    assert read_clip(video, 0.0, None, 2, 0.2, at=0.0, short_side=16).shape == (2, 16, 24, 3)


def test_test_clips_are_fixed_and_spread_evenly(video):
    assert clip_places(1) == [0.5] and clip_places(3) == [0.0, 0.5, 1.0]
    one, again = (read_test_clip(labelled(video), 4, 0.2, (16, 16), 256 / 224, at=0.5) for _ in range(2))
    assert one.shape == (4, 16, 16, 3) and np.array_equal(one, again)


def test_a_test_clip_is_cropped_in_the_middle(tmp_path):
    path = tmp_path / "halves.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 96, 32, "yuv420p"
        picture = np.zeros((32, 96, 3), np.uint8)
        picture[:, 48:] = 255  # dark left half, bright right half
        picture[:, :24] = picture[:, 72:] = 128  # and both outer quarters, which the crop leaves out
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    clip = read_test_clip(labelled(path), 2, 0.2, (16, 16), 1.0, at=0.5)[0].astype(float).mean(axis=(0, 2))
    assert clip[:6].max() < 40 and clip[-6:].min() > 215


def test_what_is_no_video(tmp_path, video):
    still, broken = tmp_path / "still.png", tmp_path / "broken.mp4"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(still)
    broken.write_bytes(video.read_bytes()[:100])
    with pytest.raises(DecodeError, match=r"still\.png has nothing to show from 0 s on: it lasts 0 s"):
        read_clip(still, 0.0, None, 4, 0.2, at=0.5)
    with pytest.raises(DecodeError, match=r"a\.mp4 has nothing to show from 7 s on: it lasts 5 s"):
        read_clip(video, 7.0, 9.0, 4, 0.2, at=0.5)
    with pytest.raises(DecodeError, match=r"broken\.mp4"):
        read_clip(broken, 0.0, None, 4, 0.2, at=0.5)


def test_features_of_a_model_of_clips(video, tmp_path):
    """The mean over test clips of what the model gives for each."""
    model, clips = encoder(4), Clips(step_seconds=0.2, test_clips=3)
    extractor = ClipExtractor(model, CARD, EncoderFeatures(), clips, "cpu")
    videos = (labelled(video), labelled(video, start_seconds=3.0))
    found = extract(extractor, videos, tmp_path / "cache", quiet=True).values
    for row, item in zip(found, videos):
        each = []
        for at in (0.0, 0.5, 1.0):
            clip = read_test_clip(item, 4, 0.2, (16, 16), 256 / 224, at=at)
            pixels = torch.from_numpy((clip / 255.0 - np.array(CARD["mean"])) / np.array(CARD["std"])).float()
            with torch.inference_mode():
                each.append(model.forward_features(pixels.permute(3, 0, 1, 2)[None])[0, 1:].mean(0))
        assert row == pytest.approx(torch.stack(each).mean(0).numpy(), abs=3e-3)  # float16
    assert not np.array_equal(found[0], found[1])


def test_a_model_of_pictures_sees_the_frames_one_by_one(video, tmp_path):
    model, clips = encoder(1), Clips(step_seconds=0.1, num_frames=6)
    found = extract(
        ClipExtractor(model, CARD, EncoderFeatures(pool="cls"), clips, "cpu"), [labelled(video)], tmp_path, quiet=True
    ).values
    frames = read_test_clip(labelled(video), 6, 0.1, (16, 16), 256 / 224, at=0.5)
    alone = EncoderExtractor(model, CARD, EncoderFeatures(pool="cls"), "cpu").compute(frames).mean(axis=0)
    assert found[0] == pytest.approx(alone, abs=3e-3)


def test_videos_that_cannot_be_read_are_named(video, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(video.read_bytes()[:3000])
    good = [write_video(tmp_path / f"{k}.mp4", 12 + k) for k in range(2)]
    extractor = ClipExtractor(encoder(1), CARD, EncoderFeatures(), Clips(), "cpu")
    table = extract(extractor, [labelled(p) for p in (good[0], broken, good[1])], tmp_path / "cache", quiet=True)
    assert list(table.unreadable) == [1] and "the file" in table.unreadable[1]
    assert str(tmp_path) not in table.unreadable[1]
    other = ClipExtractor(encoder(1), CARD, EncoderFeatures(), Clips(test_clips=2), "cpu")
    assert other.identity != extractor.identity
