"""Labelled videos as finetuning sees them: a random clip in every epoch, always the same clips in a test.

In training the clip's start, one crop for all of its frames, and their mirror image are drawn by (seed, epoch, row). In
a test, clips are evenly spaced over the video and cropped in the middle; class probabilities of a video's clips are
averaged. (The "validation" of the originals drew clip, crop and flip at random, and the best epoch was kept: noise on
top of bias.)

Mirror images turn "pushing something from left to right" into another class: where class names speak of left or right,
training does without.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from headcam.evaluation.features.ahead import loaded_ahead
from headcam.evaluation.features.clips import clip_places, read_clip, read_test_clip
from headcam.evaluation.finetuning.data import resize_ratio
from headcam.evaluation.labelled.videos import Video, direction_sensitive
from headcam.evaluation.protocols import Finetune
from headcam.randomness import stream
from headcam.video.transforms import crop_array, crop_box


class ClipExamples:
    """Videos, see `headcam.evaluation.finetuning.data.Examples`.

    Args:
        train: the videos that rows number, all of the set's.
        classes: their names.
        num_frames: T of a clip.
        size: (H, W) in pixels.
    """

    def __init__(
        self,
        train: Sequence[Video],
        classes: Sequence[str],
        protocol: Finetune,
        num_frames: int,
        size: tuple[int, int],
        seed: int,
    ):
        self.train, self.protocol, self.num_frames, self.size, self.seed = train, protocol, num_frames, size, seed
        self.flip = flips(protocol.clips.flip, classes)

    def views(self, batches: Sequence[np.ndarray], epoch: int) -> Iterator[Tensor]:
        for views in loaded_ahead(batches, lambda row: self._view(int(row), epoch)):
            yield torch.from_numpy(np.stack(views))

    def prepare(self, item: Video) -> np.ndarray:
        clips, ratio = self.protocol.clips, resize_ratio(self.protocol, self.size)
        views = [
            read_test_clip(item, self.num_frames, clips.step_seconds, self.size, ratio, at=at)
            for at in clip_places(clips.test_clips)
        ]
        return np.stack(views).transpose(0, 4, 1, 2, 3)  # (V, 3, T, H, W)

    def _view(self, row: int, epoch: int) -> np.ndarray:
        """(3, T, H, W) uint8."""
        rng = stream(self.seed, "finetune, clip", epoch * len(self.train) + row)
        video = self.train[row]
        frames = read_clip(
            video.path,
            video.start_seconds,
            video.end_seconds,
            self.num_frames,
            self.protocol.clips.step_seconds,
            at=rng.random(),
            short_side=min(self.size) + self.protocol.resize,
        )
        box = crop_box(rng, frames.shape[2], frames.shape[1], self.protocol.crop_scale)
        flip = self.flip and bool(rng.random() < 0.5)
        return np.stack([crop_array(frame, box, self.size, flip) for frame in frames]).transpose(3, 0, 1, 2)


def flips(rule: str, classes: Sequence[str]) -> bool:
    """Whether training clips are mirrored, by `Clips.flip`."""
    return rule == "always" or (rule == "by class names" and not direction_sensitive(classes))
