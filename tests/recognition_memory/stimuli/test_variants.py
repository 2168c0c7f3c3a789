"""Changed test pictures against their definitions, where their randomness comes from, and study-time augmentation."""

import hashlib

import cv2
import jsonargparse
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from headcam.errors import InputError
from headcam.randomness import stream
from headcam.recognition_memory.stimuli.variants import Augmentation, Variant, is_degraded, parse_variant

EVERY = ("noise:25", "blur:2", "occluded:0.25", "coarse:8", "foil:mirror", "foil:shift:4", "foil:hue:0.1",
         "foil:crop:0.9")  # fmt: skip


def pictures(count: int, height: int = 24, width: int = 32, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 5, 6, 3), dtype=np.uint8)
    large = [cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC) for picture in small]
    return torch.from_numpy(np.stack(large)).permute(0, 3, 1, 2).contiguous()


def keys(count: int, start: int = 0) -> list[str]:
    return [hashlib.sha256(str(start + k).encode()).hexdigest() for k in range(count)]


def shown(text: str, seen: torch.Tensor, unseen: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    unseen = pictures(len(seen), *seen.shape[-2:], seed=1) if unseen is None else unseen
    return parse_variant(text).pictures(seen, unseen, keys(2 * len(seen)))


def hwc(pictures: torch.Tensor) -> np.ndarray:
    return pictures.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("text", EVERY)
def test_every_variant_keeps_shape_and_type_and_leaves_its_arguments_alone(text):
    seen, unseen = pictures(3), pictures(3, seed=1)
    kept = seen.clone(), unseen.clone()
    out = parse_variant(text).pictures(seen, unseen, keys(6))
    assert [x.dtype for x in out] == [torch.uint8] * 2 and [x.shape for x in out] == [seen.shape] * 2
    assert torch.equal(seen, kept[0]) and torch.equal(unseen, kept[1])
    if text.startswith("foil"):
        assert torch.equal(out[0], seen)  # the studied picture is tested as it is
        assert all((a != b).any() for a, b in zip(out[1], seen))
    else:
        assert all((a != b).any() for a, b in zip(torch.cat(out), torch.cat([seen, unseen])))


@pytest.mark.parametrize("text", EVERY)
def test_names_are_those_of_the_table_and_read_back(text):
    variant = parse_variant(text)
    assert variant.name == text.replace(":", " ")
    assert parse_variant(variant.name) == variant
    assert is_degraded(variant.name) == (not text.startswith("foil"))


def test_plain_tests_and_later_ones_are_not_degraded():
    assert not is_degraded("") and not is_degraded("after 64 updates")


def test_a_picture_is_degraded_by_its_own_key_alone():
    """As studied picture or foil, first or last, alone or among others: the same pixels, so sets can be compared."""
    a, b = pictures(2), pictures(2, seed=1)
    for text in ("noise:25", "occluded:0.1"):
        variant = parse_variant(text)
        seen, unseen = variant.pictures(a, b, keys(4))
        swapped = variant.pictures(b, a, [*keys(2, start=2), *keys(2)])
        assert torch.equal(swapped[1], seen) and torch.equal(swapped[0], unseen)
        alone = variant.pictures(a[1:], b[1:], [keys(4)[1], keys(4)[3]])
        assert torch.equal(alone[0], seen[1:]) and torch.equal(alone[1], unseen[1:])
        other = variant.pictures(a, b, keys(4, start=9))
        assert not torch.equal(other[0], seen)
    with pytest.raises(ValueError, match="2 keys"):
        variant.pictures(a, b, keys(2))


def test_noise_has_its_deviation_and_grows_from_the_same_numbers():
    grey = torch.full((2, 3, 64, 64), 128, dtype=torch.uint8)
    weak, strong = (shown(f"noise:{sd}", grey, grey)[0].double() - 128 for sd in (10, 30))
    assert abs(weak.std().item() - 10) < 0.3 and abs(weak.mean().item()) < 0.3
    assert (strong - 3 * weak).abs().max() <= 2  # 1.5 from rounding the weak one, 0.5 from the strong one
    assert not torch.equal(weak[0], weak[1])
    white = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    assert shown("noise:30", white, white)[0].min() > 60  # cut off at white, not carried over to black


def test_blur_is_scipy_s():
    seen = pictures(2)
    blurred = shown("blur:1.5", seen)[0]
    expected = gaussian_filter(hwc(seen).astype(float), (0, 1.5, 1.5, 0), mode="mirror")
    error = np.abs(hwc(blurred) - expected)
    assert error.max() < 1.5 and error.mean() < 0.5  # OpenCV's weights are 8-bit numbers


def test_a_grey_square_covers_the_fraction():
    black = torch.zeros(40, 3, 20, 30, dtype=torch.uint8)
    covered = shown("occluded:0.24", black)[0][:, 0] == 128  # 12 x 12 of 20 x 30
    assert (covered.sum(dim=(1, 2)) == 144).all()
    tops, lefts = (covered.any(dim=axis).int().argmax(dim=1) for axis in (2, 1))
    assert (covered.any(dim=2).sum(dim=1) == 12).all() and (covered.any(dim=1).sum(dim=1) == 12).all()
    assert tops.min() < 2 and tops.max() > 6 and lefts.min() < 4 and lefts.max() > 14  # all over the picture
    everything_outside = torch.where(covered[:, None], black, shown("occluded:0.24", black)[0])
    assert not everything_outside.any()
    with pytest.raises(InputError, match=r"occluded 0\.9 does not fit pictures of 20 x 30"):
        shown("occluded:0.9", black)


def test_coarse_pictures_are_means_of_blocks_brought_back():
    seen = pictures(1, 32, 32)
    coarse = hwc(shown("coarse:4", seen)[0])[0].astype(float)
    means = hwc(seen)[0].reshape(4, 8, 4, 8, 3).mean(axis=(1, 3))
    expected = cv2.resize(means, (32, 32), interpolation=cv2.INTER_LINEAR)
    assert np.abs(coarse - expected).max() < 1.5  # rounded twice
    with pytest.raises(InputError, match="give 31 at most"):
        shown("coarse:32", seen)


def test_foils_are_what_they_are_called():
    seen = pictures(3)
    picture = hwc(seen)
    mirrored = hwc(shown("foil:mirror", seen)[1])
    assert np.array_equal(mirrored[:, :, ::-1], picture)
    shifted = hwc(shown("foil:shift:4", seen)[1])
    assert np.array_equal(shifted[:, :, 4:], picture[:, :, :-4])
    assert (shifted[:, :, :4] == picture[:, :, :1]).all()
    cropped = hwc(shown("foil:crop:0.75", seen)[1])  # 18 x 24 of 24 x 32
    assert np.array_equal(cropped[0], np.asarray(_resized(picture[0, 3:21, 4:28], 32, 24)))
    with pytest.raises(InputError, match="give 31 at most"):
        shown("foil:shift:32", seen)


def _resized(array: np.ndarray, width: int, height: int):
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(array)).resize((width, height), Image.Resampling.BICUBIC)


def test_another_hue_turns_red_to_green_and_leaves_grey():
    red = torch.tensor([200, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    turned = shown("foil:hue:0.3333333", red)[1]
    assert (turned.float() - torch.tensor([0.0, 200, 0]).view(3, 1, 1)).abs().max() <= 1
    grey = torch.full((1, 3, 8, 8), 90, dtype=torch.uint8)
    assert torch.equal(shown("foil:hue:0.2", grey)[1], grey)


@pytest.mark.parametrize(
    ("text", "telling"),
    [
        ("fog:3", "noise:25, blur:2"),
        ("noise", "there is no test"),
        ("foil:mirror:2", "there is no test"),
        ("foil", "there is no test"),
        ("", "there is no test"),
        ("noise:loud", "a number of grey levels above 0"),
        ("noise:nan", "grey levels above 0"),
        ("blur:0", "pixels above 0"),
        ("occluded:1", "fraction above 0 and below 1"),
        ("coarse:2.5", "a whole number of pixels"),
        ("foil:hue:1", "colour circle"),
    ],
)
def test_other_variants_are_refused_with_what_there_is(text, telling):
    with pytest.raises(InputError, match=telling):
        parse_variant(text)


def test_no_augmentation_gives_the_very_tensor():
    seen, rng = pictures(2), stream(0, "test", 0)
    assert Augmentation().apply(seen, rng) is seen
    assert rng.random() == stream(0, "test", 0).random()  # and draws nothing


def test_augmentation_flips_and_crops_as_often_and_as_far_as_asked():
    seen = pictures(64)
    flipped = Augmentation(flip=0.5).apply(seen, stream(0, "test", 0))
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, seen)]
    assert all(was or torch.equal(a, b) for was, a, b in zip(mirrored, flipped, seen)) and 20 < sum(mirrored) < 44
    assert torch.equal(Augmentation(flip=1.0).apply(seen, stream(0, "test", 0)), seen.flip(-1))
    # A ramp shows where a crop was: its middle and its spread.
    ramp = torch.arange(200, dtype=torch.uint8).view(1, 1, 1, 200).expand(40, 3, 200, 200).contiguous()
    cropped = Augmentation(scale=(0.25, 0.25)).apply(ramp, stream(0, "test", 1)).double()
    widths = (cropped[..., -1] - cropped[..., 0]).mean(dim=(1, 2))
    assert 80 < widths.min() and widths.max() < 120  # half the side, times the root of a ratio from 3/4 to 4/3
    assert cropped.mean(dim=(1, 2, 3)).std() > 10
    again = Augmentation(scale=(0.25, 0.25)).apply(ramp, stream(0, "test", 1)).double()
    assert torch.equal(again, cropped)


def test_augmentation_is_read_from_a_config_and_checked():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--augmentation", type=Augmentation, default=Augmentation())
    instantiate = parser.instantiate if hasattr(parser, "instantiate") else parser.instantiate_classes
    read = instantiate(parser.parse_args(["--augmentation.flip=0.5", "--augmentation.scale=[0.5, 1.0]"])).augmentation
    assert read == Augmentation(0.5, (0.5, 1.0))
    for settings in ({"flip": 1.5}, {"scale": (0.0, 1.0)}, {"scale": (0.9, 0.5)}):
        with pytest.raises(InputError, match=f"augmentation.{next(iter(settings))}"):
            Augmentation(**settings)


def test_variants_can_be_built_and_compared_as_values():
    assert parse_variant("noise:25") == Variant("noise", 25.0)
