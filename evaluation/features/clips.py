"""Labelled videos to clips, and frozen features of them, from a model of clips or from one of pictures.

    video ──where(at)──▶ times ──one pass of a reader──▶ (T, h, w, 3) ──resize, centre crop──▶ (T, H, W, 3) ──encoder──▶

A clip is T frames, `step_seconds` apart. Where it lies in the labelled stretch is a number `at` from 0 (it begins at
the start of the stretch) to 1 (it ends at its end): whoever trains draws it, and test clips are evenly spaced
(`clip_places`), the only one in the middle. Nothing of a test clip is random: random crops and times there, as in the
published video finetuning, make an accuracy that is another one every time, and whose best epoch is too good.

A stretch that is shorter than a clip is shown whole, its frames spread evenly over it, so that each action is seen from
beginning to end, only faster in steps.
"""

import os
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from headcam.errors import DecodeError
from headcam.evaluation.features.encoders import EncoderExtractor
from headcam.evaluation.features.pictures import resize_and_crop
from headcam.evaluation.labelled.videos import Video
from headcam.evaluation.protocols import Clips, EncoderFeatures
from headcam.tokenizers.autoregression.encoder import TokenEncoder
from headcam.video.clips import clip_times
from headcam.video.metadata import Metadata, read_metadata
from headcam.video.readers import open_reader


def read_clip(
    path: str | os.PathLike,
    start_seconds: float,
    end_seconds: float | None,
    num_frames: int,
    step_seconds: float,
    *,
    at: float,
    short_side: int | None = None,
    backend: str = "pyav",
) -> np.ndarray:
    """One clip of a labelled stretch of video.

    Args:
        path: of the file.
        start_seconds, end_seconds: the stretch; None: to the end of the file.
        num_frames: T.
        step_seconds: between two frames; less where the stretch is shorter than T of them (see the module).
        at: where in the stretch the clip lies, 0 to 1.
        short_side: scale frames down so that their shorter side has so many pixels (see `open_reader`).
        backend: of the reader.
    Returns:
        (T, H, W, 3) uint8 RGB, upright.
    Raises:
        DecodeError: the file is no video, is damaged there, or ends before the stretch begins.
    """
    facts = _facts(os.fspath(path))
    end = facts.duration_s if end_seconds is None else min(end_seconds, facts.duration_s)
    room = end - start_seconds
    if room <= 0:
        raise DecodeError(
            f"{path} has nothing to show from {start_seconds:g} s on: it lasts {facts.duration_s:g} s",
            "give a video, and a stretch inside of it",
        )
    span = num_frames * step_seconds
    if span <= room:
        times = clip_times(start_seconds + at * (room - span), num_frames, step_seconds)
    else:  # each frame from the middle of its share of the stretch
        times = start_seconds + (np.arange(num_frames) + 0.5) * room / num_frames
    with open_reader(path, backend, short_side=short_side, keyframes=facts.keyframes) as reader:
        return np.stack([frame.image for frame in reader.iter_frames(times.tolist())])


def clip_places(clips: int) -> list[float]:
    """`at` of so many clips of a test video, evenly spaced over it; a single one is in the middle."""
    return [0.5] if clips == 1 else [k / (clips - 1) for k in range(clips)]


def read_test_clip(
    video: Video, num_frames: int, step_seconds: float, img_size: tuple[int, int], resize_ratio: float, *, at: float
) -> np.ndarray:
    """A clip of a test video as the model wants it, each frame cropped in the middle as a picture is.

    Frames are averaged over area down to the size that is cropped while they are read; what is smaller is enlarged as
    pictures are.

    Args:
        img_size: (H, W) in pixels.
        resize_ratio: see `EncoderFeatures`.
    Returns:
        (T, H, W, 3) uint8.
    Raises:
        DecodeError: see `read_clip`.
    """
    short_side = max(round(side * resize_ratio) for side in img_size)
    frames = read_clip(
        video.path, video.start_seconds, video.end_seconds, num_frames, step_seconds, at=at, short_side=short_side
    )
    return np.stack([resize_and_crop(Image.fromarray(frame), img_size, resize_ratio) for frame in frames])


class ClipExtractor(EncoderExtractor):
    """Frozen features of videos: the mean over test clips, and with a model of pictures over their frames.

    A model of clips sees clips of its own length; one of pictures sees the `num_frames` frames of each clip one by one.
    Arguments as of `EncoderExtractor`, and:

    Args:
        clips: how clips are cut; flips are for training.
    """

    def __init__(
        self,
        encoder: torch.nn.Module,
        card: dict[str, Any],
        protocol: EncoderFeatures,
        clips: Clips,
        device: str | torch.device,
    ):
        super().__init__(encoder, card, protocol, device)
        self.clips = clips
        length = getattr(encoder.tokenizer if isinstance(encoder, TokenEncoder) else encoder, "num_frames", 1)
        self.of_clips = length > 1
        self.num_frames = length if self.of_clips else clips.num_frames

    @property
    def batch_size(self) -> int:
        return max(1, super().batch_size // (self.clips.test_clips * self.num_frames))

    @property
    def identity(self) -> dict[str, Any]:
        cut = {"num_frames": self.num_frames, "step": self.clips.step_seconds, "test_clips": self.clips.test_clips}
        return {**super().identity, "clips": cut}

    def load(self, video: Video) -> np.ndarray:
        """All test clips of a video: (clips, T, H, W, 3) uint8."""
        size, ratio = tuple(self.card["img_size"]), self.protocol.resize_ratio
        step, places = self.clips.step_seconds, clip_places(self.clips.test_clips)
        return np.stack([read_test_clip(video, self.num_frames, step, size, ratio, at=at) for at in places])

    def prepare(self, clips: np.ndarray) -> np.ndarray:
        """They are as the encoder wants them."""
        return clips

    @torch.inference_mode()
    def compute(self, batch: np.ndarray) -> np.ndarray:
        """(B, clips, T, H, W, 3) uint8 to (B, D) float32."""
        B, clips, T = batch.shape[:3]
        images = self.normalized(batch.reshape(-1, *batch.shape[3:]))  # (B * clips * T, 3, H, W)
        if self.of_clips:
            images = images.unflatten(0, (B * clips, T)).movedim(1, 2)  # (B * clips, 3, T, H, W)
        return self.pooled(images).unflatten(0, (B, -1)).mean(dim=1).cpu().numpy()


@lru_cache(maxsize=1 << 17)  # a training set is read once in every epoch
def _facts(path: str) -> Metadata:
    return read_metadata(path)
