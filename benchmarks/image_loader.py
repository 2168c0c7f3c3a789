"""Training crops from pictures on disk: ours beside torchvision's ImageFolder with the usual Pillow transforms.

`jpeg720`: 720p JPEG files on both sides. `store`: a frame store (short side 256) on ours, the 720p files on theirs;
that is what making the store once buys in every epoch after.

Both sides read files from the page cache in one process on one thread and return a normalised float batch. The peer
is ImageFolder, RandomResizedCrop(224, scale 0.2 to 1, bicubic), RandomHorizontalFlip, ToTensor and Normalize, with
boxes and flips handed to it that were drawn by our law before the clock starts. Our `jpeg720` output must agree with
the peer's at 38 dB or better on average, so that the ratio cannot be bought with blur. The store cannot: it was made
with a smaller picture; its agreement is printed beside, with a bound that a shifted or wrong picture would break.

The frames are made here: a camera moves over textures whose amplitude falls as 1/f^1.3, like that of natural
pictures, past shapes with sharp edges, with sensor noise; quality 90, 4:2:0, about 200 kB each.
"""

import math
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
from footage import texture
from harness import Bench, Fidelity, Measured, main
from torchvision import transforms as peers
from torchvision.datasets import ImageFolder

from headcam.files import recording_id
from headcam.randomness import stream
from headcam.video.index import index
from headcam.video.stores.frame_store import FrameStore, store
from headcam.video.transforms import IMAGENET_MEAN, IMAGENET_STD, Box, crop_box, decode_crop, normalize

_FRAMES = 16
_CROPS = 4  # of every frame in one turn
_WIDTH, _HEIGHT = 1280, 720
_SIZE = (224, 224)
_SCALE = (0.2, 1.0)

Crops = list[tuple[int, Box, bool]]  # number of the frame, box, mirrored


class GivenCrop(peers.RandomResizedCrop):
    """RandomResizedCrop with boxes that were drawn before; `flip` below takes its flag from the same list."""

    crops: list[tuple[Box, bool]]

    def get_params(self, img: object, scale: object, ratio: object) -> tuple[int, int, int, int]:
        left, top, width, height = self.crops[-1][0]
        return top, left, height, width

    def flip(self, img: object) -> object:
        _, flip = self.crops.pop()
        return peers.functional.hflip(img) if flip else img


class Peer:
    """ImageFolder and its transforms over `folder`, a batch at a time."""

    def __init__(self, folder: Path, crops: Crops):
        self.crops = crops
        self.crop = GivenCrop(_SIZE, scale=_SCALE, interpolation=peers.InterpolationMode.BICUBIC)
        self.data = ImageFolder(
            str(folder),
            peers.Compose(
                [
                    self.crop,
                    peers.Lambda(self.crop.flip),
                    peers.ToTensor(),
                    peers.Normalize(IMAGENET_MEAN, IMAGENET_STD),
                ]
            ),
        )

    def __call__(self) -> torch.Tensor:
        self.crop.crops = [(box, flip) for _, box, flip in reversed(self.crops)]
        return torch.stack([self.data[frame][0] for frame, _, _ in self.crops])


def jpeg720(bench: Bench) -> Measured:
    """720p JPEG files on both sides."""
    folder = Path(frame_folder().name)
    paths = sorted((folder / "frames").iterdir())
    crops = draw_crops()

    def ours() -> torch.Tensor:
        pictures = (decode_crop(paths[frame].read_bytes(), box, _SIZE, flip) for frame, box, flip in crops)
        return normalize(as_batch(pictures))

    peer = Peer(folder, crops)
    fidelity = {"mean PSNR to the peer": Fidelity(mean_psnr(ours(), peer()), "dB", least=38)}
    return bench.compare(ours, peer, bar=1.8, items=len(crops), unit="image", fidelity=fidelity)


def pre_resized(bench: Bench) -> Measured:
    """A frame store on our side, the 720p files that it was made from on theirs."""
    folder = Path(frame_folder().name)
    with tempfile.TemporaryDirectory() as made:
        index(folder, Path(made) / "recordings.parquet", processes=1, quiet=True)
        store(Path(made) / "recordings.parquet", Path(made) / "store", processes=1, quiet=True)
        frames = FrameStore(Path(made) / "store")
        # The store is in the order of recording ids, ImageFolder in that of names.
        ids = [recording_id(path) for path in sorted((folder / "frames").iterdir())]
        row_of = {frames.recordings[recording]: row for row, recording in enumerate(frames.recording)}
        rows = [row_of[i] for i in ids]

        crops = draw_crops()
        sizes = [(int(frames.width[row]), int(frames.height[row])) for row in rows]
        small = [(rows[frame], rescaled(box, *sizes[frame]), flip) for frame, box, flip in crops]

        def ours() -> torch.Tensor:
            pictures = (decode_crop(frames.jpeg(row), box, _SIZE, flip) for row, box, flip in small)
            return normalize(as_batch(pictures))

        peer = Peer(folder, crops)
        fidelity = {"mean PSNR to the peer": Fidelity(mean_psnr(ours(), peer()), "dB", least=30)}
        result = bench.compare(ours, peer, bar=4, items=len(crops), unit="image", fidelity=fidelity)
        frames.close()
    return result


def draw_crops() -> Crops:
    """Boxes and flips for one turn, by the plan's law."""
    crops = []
    for i in range(_FRAMES * _CROPS):
        rng = stream(0, "benchmark crop", i)
        crops.append((i % _FRAMES, crop_box(rng, _WIDTH, _HEIGHT, _SCALE), bool(rng.random() < 0.5)))
    return crops


def rescaled(box: Box, width: int, height: int) -> Box:
    """The box of a 720p frame in the same frame at `width` x `height` pixels."""
    x, y = width / _WIDTH, height / _HEIGHT
    return Box(box.left * x, box.top * y, box.width * x, box.height * y)


def as_batch(pictures: Iterable[np.ndarray]) -> torch.Tensor:
    """(H, W, 3) uint8 arrays -> (B, 3, H, W) uint8, as a loader's workers hand them over."""
    return torch.stack([torch.from_numpy(np.ascontiguousarray(p.transpose(2, 0, 1))) for p in pictures])


def mean_psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB, on a scale of 0 to 255; (B, 3, H, W) normalised."""
    errors = ((a - b) * torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255).square().mean(dim=(1, 2, 3))
    return float((10 * torch.log10(255**2 / errors.clamp_min(1e-5))).mean())


@cache
def frame_folder() -> tempfile.TemporaryDirectory:
    """A folder with `frames/NN.jpg`, as ImageFolder wants it; it goes when the process ends."""
    folder = tempfile.TemporaryDirectory()
    (Path(folder.name) / "frames").mkdir()
    for i, image in enumerate(natural_frames(_FRAMES)):
        data = simplejpeg.encode_jpeg(image, quality=90, colorsubsampling="420")
        (Path(folder.name) / "frames" / f"{i:02d}.jpg").write_bytes(data)
    return folder


def natural_frames(count: int) -> list[np.ndarray]:
    """Frames of a camera that moves over textured ground with textured shapes on it: (720, 1280, 3) uint8 each."""
    rng = stream(0, "benchmark frames", 0)
    ground, cloth = texture(rng), texture(rng)
    shapes = [(rng.uniform(0, 1, 2), rng.uniform(60, 400, 2), rng.uniform(0, 180), k % 2) for k in range(8)]
    frames = []
    for i in range(count):
        angle = 2 * math.pi * i / count
        shift = np.array([300 * math.cos(angle), 120 * math.sin(2 * angle)])
        image = cv2.getRectSubPix(ground, (_WIDTH, _HEIGHT), tuple(np.array([1024.0, 512.0]) + shift))
        overlay = cv2.getRectSubPix(cloth, (_WIDTH, _HEIGHT), tuple(np.array([1024.0, 512.0]) - shift))
        mask = np.zeros((_HEIGHT, _WIDTH), np.uint8)
        for place, extent, turn, round_ in shapes:
            center = tuple(place * (_WIDTH, _HEIGHT) - 0.7 * shift)
            if round_:
                cv2.ellipse(mask, (center, tuple(extent), turn), 255, -1, cv2.LINE_AA)
            else:
                cv2.fillPoly(mask, [cv2.boxPoints((center, tuple(extent), turn)).astype(np.int32)], 255, cv2.LINE_AA)
        alpha = (mask / np.float32(255))[..., None]
        image = image * (1 - alpha) + (0.5 * overlay + 90) * alpha
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        frames.append(np.clip(image + 1.6 * noise, 0, 255).astype(np.uint8))
    return frames


if __name__ == "__main__":
    main(
        "image_loader",
        {"jpeg720": jpeg720, "store": pre_resized},
        threads=1,
        packages=("torchvision", "pillow", "simplejpeg"),
    )
