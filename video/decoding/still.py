"""Still pictures as recordings: one frame with time stamp 0, on screen at every time. Read with Pillow, upright."""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import cv2
import numpy as np
from PIL import Image, ImageOps

from headcam.errors import DecodeError
from headcam.video.metadata import one_line, read_metadata
from headcam.video.readers import Frame, Reader, ReaderInfo, scaled_size


class ImageReader(Reader):
    """Reader of a JPEG, PNG, WebP, BMP or TIFF file (the first picture of an animated one)."""

    def __init__(self, path: str, *, threads: int, short_side: int | None, keyframes: Sequence[int] | None):
        facts = read_metadata(path)
        width, height = facts.width, facts.height
        if facts.rotation % 180:
            width, height = height, width
        self.info = ReaderInfo(path, "pillow", facts.codec, width, height, facts.rotation, Fraction(0), Fraction(1), 0)
        self._size = scaled_size(width, height, short_side)

    def iter_frames(self, times_s: Iterable[float]) -> Iterator[Frame]:
        frame = None
        for _ in times_s:
            frame = frame or Frame(self._image(), 0, 0.0)
            yield frame

    def close(self) -> None:
        pass  # the file is open only while its picture is read

    def _image(self) -> np.ndarray:
        try:
            with Image.open(self.info.path) as picture:
                upright = ImageOps.exif_transpose(picture)
                if upright.mode.startswith("I"):  # 16 bits a pixel, which Pillow's conversion would clip
                    image = np.repeat((np.asarray(upright) >> 8).astype(np.uint8)[..., None], 3, axis=2)
                else:
                    image = np.asarray(upright.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise DecodeError(f"{self.info.path} cannot be read: {one_line(error)}", "repair or remove it") from error
        if self._size != (image.shape[1], image.shape[0]):
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        return image
