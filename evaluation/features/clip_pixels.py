"""Raw pixels of videos: the baseline that needs no model, for labelled clips."""

from typing import Any

import numpy as np
from PIL import Image

from headcam.evaluation.features.clips import clip_places, read_clip
from headcam.evaluation.features.encoders import PixelExtractor
from headcam.evaluation.labelled.videos import Video
from headcam.evaluation.protocols import Clips, PixelFeatures


class ClipPixelExtractor(PixelExtractor):
    """Frames averaged over area as `PixelExtractor` does with pictures, and then over the frames of the test clips."""

    batch_size = 32

    def __init__(self, protocol: PixelFeatures, clips: Clips):
        super().__init__(protocol)
        self.clips = clips

    @property
    def identity(self) -> dict[str, Any]:
        cut = {"frames": self.clips.num_frames, "step": self.clips.step_seconds, "clips": self.clips.test_clips}
        return {**super().identity, "clips": cut}

    def load(self, video: Video) -> np.ndarray:
        """All frames of the test clips: (frames, H, W, 3) uint8."""
        places = clip_places(self.clips.test_clips)
        return np.concatenate([self._clip(video, at) for at in places])

    def prepare(self, frames: np.ndarray) -> np.ndarray:
        """Each frame averaged over area: (frames, side, side, 3)."""
        prepare = super().prepare
        return np.stack([prepare(Image.fromarray(frame)) for frame in frames])

    def compute(self, batch: np.ndarray) -> np.ndarray:
        """(B, frames, side, side, 3) uint8 to (B, side * side * 3) float32."""
        return super().compute(batch.reshape(-1, *batch.shape[2:])).reshape(*batch.shape[:2], -1).mean(axis=1)

    def _clip(self, video: Video, at: float) -> np.ndarray:
        return read_clip(
            video.path,
            video.start_seconds,
            video.end_seconds,
            self.clips.num_frames,
            self.clips.step_seconds,
            at=at,
            short_side=4 * self.protocol.side,
        )
