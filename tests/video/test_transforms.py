"""The crops: the law of the boxes, parity with torchvision on the same boxes, the fallback, and the errors."""

import io

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as TF

from headcam.errors import DecodeError, InputError
from headcam.randomness import stream
from headcam.video import transforms
from headcam.video.transforms import Box, Cut, center_box, crop_array, crop_box, decode_crop, decode_cuts, normalize

SIZE = (224, 224)


def natural(width: int, height: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 with the spectrum of natural pictures: amplitude 1/f, mostly luma, and some edges."""
    rng = stream(seed, "test texture", 0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    spectrum = np.exp(2j * np.pi * rng.random((3, *frequency.shape))) / frequency**1.3
    planes = np.fft.irfft2(spectrum, (height, width))
    planes /= planes.std(axis=(1, 2), keepdims=True)
    image = 128 + 40 * planes[0, ..., None] + 10 * planes.transpose(1, 2, 0)
    image[height // 3 : height // 2, width // 4 : width // 2] += 60
    return np.clip(image, 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=90, colorsubsampling="420")


def by_pillow(data: bytes, format: str, mode: str = "RGB", **options) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(data)).convert(mode).save(out, format, **options)
    return out.getvalue()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB; equal pictures count as 100."""
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b.astype(float)) ** 2), 255**2 / 1e10)))


def by_torchvision(data: bytes, box: Box, size: tuple[int, int]) -> np.ndarray:
    """Full decoding and torchvision's crop and resize on a Pillow picture: what the fast path stands for."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    left, top, width, height = box
    out = TF.resized_crop(image, top, left, height, width, list(size), InterpolationMode.BICUBIC, antialias=True)
    return np.asarray(out)


@pytest.fixture(scope="module")
def frame() -> bytes:
    return jpeg(natural(1280, 720))


# The law of the boxes


@pytest.mark.parametrize(
    ("width", "height", "scale"), [(1280, 720, (0.2, 1.0)), (455, 256, (0.08, 1.0)), (640, 200, (0.2, 1.0))]
)
def test_boxes_follow_torchvisions_law(width, height, scale):
    draws = 3000
    ours = np.array([crop_box(stream(1, "law", i), width, height, scale) for i in range(draws)])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        picture = torch.empty(3, height, width)
        theirs = np.array([RandomResizedCrop.get_params(picture, scale, (3 / 4, 4 / 3)) for _ in range(draws)])
    theirs = theirs[:, [1, 0, 3, 2]]  # (top, left, height, width) -> ours
    for k, what in enumerate(Box._fields):
        assert ks_2samp(ours[:, k], theirs[:, k]).pvalue > 1e-3, what
    assert ks_2samp(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3]).pvalue > 1e-3
    assert ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue > 1e-3


def test_boxes_are_whole_pixels_inside_and_repeat():
    for i in range(500):
        box = crop_box(stream(3, "inside", i), 97, 61)
        assert all(isinstance(value, int) for value in box)
        assert box.left >= 0 and box.top >= 0 and box.left + box.width <= 97 and box.top + box.height <= 61
        assert box == crop_box(stream(3, "inside", i), 97, 61)


@pytest.mark.parametrize(("width", "height"), [(1000, 10), (10, 1000)])
def test_a_box_that_never_fits_becomes_the_central_one(width, height):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        top, left, h, w = RandomResizedCrop.get_params(torch.empty(3, height, width), (0.9, 1.0), (3 / 4, 4 / 3))
    assert crop_box(stream(0, "never", 0), width, height, scale=(0.9, 1.0)) == Box(left, top, w, h)


# Parity of the pixels


@pytest.mark.parametrize(
    ("box", "least"),
    [
        (Box(0, 0, 1280, 720), 44),  # 3/8
        (Box(301, 103, 600, 560), 44),  # 4/8, an odd corner: half-pixel errors show
        (Box(77, 211, 451, 383), 44),  # 5/8
        (Box(501, 17, 300, 260), 44),  # 7/8
        (Box(640, 301, 224, 224), 60),  # full size, not resampled
        (Box(1101, 601, 119, 101), 60),  # enlarged
        (Box(1280 - 331, 720 - 333, 331, 333), 44),  # against the far corner
    ],
)
def test_decode_crop_agrees_with_torchvision(frame, box, least):
    ours = decode_crop(frame, box, SIZE)
    assert ours.shape == (*SIZE, 3) and ours.dtype == np.uint8 and ours.flags.c_contiguous
    assert psnr(ours, by_torchvision(frame, box, SIZE)) > least


def test_decode_crop_agrees_on_average_over_the_law(frame):
    boxes = [crop_box(stream(5, "parity", i), 1280, 720) for i in range(40)]
    assert np.mean([psnr(decode_crop(frame, b, SIZE), by_torchvision(frame, b, SIZE)) for b in boxes]) > 45


def test_sizes_that_eighths_do_not_divide():
    image = natural(1277, 715, seed=2)
    box = Box(1277 - 701, 715 - 699, 701, 699)
    assert psnr(decode_crop(jpeg(image), box, SIZE), by_torchvision(jpeg(image), box, SIZE)) > 40


def test_the_result_need_not_be_square(frame):
    box = Box(100, 60, 700, 500)
    ours = decode_crop(frame, box, (96, 160))
    assert ours.shape == (96, 160, 3)
    assert psnr(ours, by_torchvision(frame, box, (96, 160))) > 40


def test_a_box_at_full_size_is_cut_out_exactly():
    image = natural(320, 240)
    assert np.array_equal(crop_array(image, Box(11, 7, 64, 48), (48, 64)), image[7:55, 11:75])


def test_crop_of_decoded_pixels_is_torchvisions():
    """Frames straight from video: the same filter on the same box, to the last bit."""
    image = natural(640, 360)
    box = Box(31, 17, 401, 299)
    theirs = TF.resized_crop(Image.fromarray(image), 17, 31, 299, 401, [112, 112], InterpolationMode.BICUBIC)
    assert np.array_equal(crop_array(image, box, (112, 112)), np.asarray(theirs))


def test_fractions_of_a_pixel_move_the_picture():
    """On a ramp of 2 grey levels a pixel, a box moved by half a pixel is one level brighter."""
    ramp = np.broadcast_to((2 * np.arange(100, dtype=np.uint8))[None, :, None], (40, 100, 3)).copy()
    still = crop_array(ramp, Box(20, 5, 30, 30), (30, 30)).astype(int)
    moved = crop_array(ramp, Box(20.5, 5, 30, 30), (30, 30)).astype(int)
    assert np.all((moved - still)[2:-2, 2:-2] == 1)


def test_flip_is_exact(frame):
    box = Box(33, 41, 500, 444)
    straight = decode_crop(frame, box, SIZE)
    flipped = decode_crop(frame, box, SIZE, flip=True)
    assert np.array_equal(flipped, straight[:, ::-1]) and not np.array_equal(flipped, straight)
    assert flipped.flags.c_contiguous and flipped.flags.writeable and straight.flags.writeable


@pytest.mark.parametrize(
    ("box", "size", "eighths"),
    [
        (Box(0, 0, 224, 224), SIZE, 8),
        (Box(0, 0, 448, 448), SIZE, 4),
        (Box(0, 0, 447, 448), SIZE, 5),  # one pixel below: the next scale
        (Box(0, 0, 448, 447), SIZE, 5),
        (Box(0, 0, 1792, 1792), SIZE, 1),
        (Box(0, 0, 9000, 9000), SIZE, 1),
        (Box(0, 0, 50, 50), SIZE, 8),
    ],
)
def test_the_scale_is_the_smallest_that_covers_the_wanted_size(box, size, eighths):
    assert transforms._eighths(box, size) == eighths


def test_only_a_scaled_picture_is_decoded(frame, monkeypatch):
    shapes = []
    decode = simplejpeg.decode_jpeg

    def spy(*arguments, **options):
        out = decode(*arguments, **options)
        shapes.append(out.shape)
        return out

    monkeypatch.setattr(transforms.simplejpeg, "decode_jpeg", spy)
    decode_crop(frame, Box(0, 0, 720, 720), SIZE)
    assert shapes == [(270, 480, 3)]  # 3/8


def test_several_cuts_share_one_decoding_that_serves_them_all(frame, monkeypatch):
    cuts = [
        Cut(Box(0, 0, 720, 720), SIZE),  # 3/8
        Cut(Box(301, 103, 600, 560), SIZE, True),  # 4/8
        Cut(Box(77, 211, 451, 383), SIZE),  # 5/8
        Cut(Box(501, 17, 300, 260), (96, 96)),  # 3/8
    ]
    shapes = []
    decode = simplejpeg.decode_jpeg

    def spy(*arguments, **options):
        out = decode(*arguments, **options)
        shapes.append(out.shape)
        return out

    monkeypatch.setattr(transforms.simplejpeg, "decode_jpeg", spy)
    together = decode_cuts(frame, cuts)
    assert shapes == [(450, 800, 3)]  # 5/8
    for cut, ours in zip(cuts, together):
        assert ours.shape == (*cut.size, 3) and ours.flags.c_contiguous and ours.flags.writeable
        theirs = by_torchvision(frame, cut.box, cut.size)
        assert psnr(ours, theirs[:, ::-1] if cut.flip else theirs) > 44
    assert np.array_equal(together[2], decode_crop(frame, *cuts[2]))  # the one that decides alone
    assert np.array_equal(decode_cuts(frame, cuts[:1])[0], decode_crop(frame, *cuts[0]))


def test_cuts_of_another_format_are_cut_as_well(frame):
    cuts = [Cut(Box(0, 0, 720, 720), SIZE), Cut(Box(301, 103, 600, 560), (96, 96), True)]
    data = by_pillow(frame, "PNG")
    for cut, ours in zip(cuts, decode_cuts(data, cuts)):
        assert np.array_equal(ours, decode_crop(data, *cut))
    data = by_pillow(frame, "JPEG", "CMYK", quality=95)
    for cut, ours in zip(cuts, decode_cuts(data, cuts)):
        assert psnr(ours, decode_crop(data, *cut)) > 35  # of another scale
    with pytest.raises(InputError, match="leaves the picture of 1280 x 720"):
        decode_cuts(frame, [*cuts, Cut(Box(1, 0, 1280, 720), SIZE)])


# What the scaled decoder does not read


@pytest.mark.parametrize(
    ("format", "mode", "options", "least"),
    [
        ("PNG", "RGB", {}, 40),
        ("PNG", "P", {}, 40),
        ("PNG", "RGBA", {}, 40),
        ("WEBP", "RGB", {"lossless": True}, 40),
        ("JPEG", "L", {"quality": 95}, 40),
        ("JPEG", "CMYK", {"quality": 95}, 40),
        ("JPEG", "RGB", {"quality": 95, "progressive": True}, 40),
        ("JPEG", "RGB", {"quality": 95, "subsampling": 0}, 40),
        ("JPEG", "RGB", {"quality": 95, "keep_rgb": True}, 40),
    ],
)
def test_other_formats_give_the_same_picture(frame, format, mode, options, least):
    data = by_pillow(frame, format, mode, **options)
    box = Box(301, 103, 600, 560)
    assert psnr(decode_crop(data, box, SIZE), by_torchvision(data, box, SIZE)) > least


def test_a_grey_jpeg_has_three_equal_channels(frame):
    out = decode_crop(by_pillow(frame, "JPEG", "L"), Box(0, 0, 720, 720), SIZE)
    assert np.array_equal(out[..., 0], out[..., 1]) and np.array_equal(out[..., 0], out[..., 2])


# Evaluation


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (720, 1280), (500, 375), (200, 150), (224, 224)])
def test_the_central_box_is_resize_then_centre_crop(width, height):
    data = jpeg(natural(width, height, seed=4))
    image = Image.open(io.BytesIO(data))
    theirs = TF.center_crop(TF.resize(image, 224, InterpolationMode.BICUBIC), [224, 224])
    ours = decode_crop(data, center_box(width, height, SIZE), SIZE)
    # torchvision rounds the long side and the corner to whole pixels of the small picture, so half a pixel may remain.
    assert psnr(ours, np.asarray(theirs)) > 36


def test_the_central_box_touches_two_sides():
    assert center_box(1280, 720, (224, 224)) == Box(280, 0, 720, 720)
    assert center_box(720, 1280, (224, 224)) == Box(0, 280, 720, 720)
    assert center_box(1280, 720, (224, 448)) == Box(0, 40, 1280, 640)


# Normalisation


def test_normalize_is_the_textbook_formula():
    batch = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    expected = TF.normalize(batch.double() / 255, transforms.IMAGENET_MEAN, transforms.IMAGENET_STD)
    out = normalize(batch)
    assert out.dtype == torch.float32 and out.shape == (2, 3, 16, 16)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(normalize(batch, (0, 0, 0), (1, 1, 1)).max(), torch.tensor(1.0))


# Errors


@pytest.mark.parametrize("kept", [0, 3, 500, 20_000])
def test_truncated_bytes_are_named(frame, kept):
    with pytest.raises(DecodeError, match=rf"frame 7 \({kept} bytes\) could not be decoded: .* Fix: "):
        decode_crop(frame[:kept], Box(0, 0, 720, 720), SIZE, name="frame 7")


def test_garbage_and_truncated_png_are_named(frame):
    for data in (b"no picture at all" * 100, by_pillow(frame, "PNG")[:30_000]):
        with pytest.raises(DecodeError, match=f"{len(data)} bytes"):
            decode_crop(data, Box(0, 0, 720, 720), SIZE)


@pytest.mark.parametrize(
    ("box", "problem"),
    [
        (Box(0, 0, 1281, 720), "leaves the picture of 1280 x 720"),
        (Box(0, 1, 1280, 720), "leaves the picture of 1280 x 720"),
        (Box(-1, 0, 100, 100), "leaves the picture of 1280 x 720"),
        (Box(0, 0, 0, 100), "is empty"),
    ],
)
def test_boxes_outside_are_refused(frame, box, problem):
    with pytest.raises(InputError, match=problem):
        decode_crop(frame, box, SIZE)
