"""What a view's law says of itself, and what it refuses."""

import pytest

from headcam.errors import InputError
from headcam.video.sampling.views import ColourLaw, ViewLaw

SIZE = (32, 48)


def test_the_last_law_of_colours_holds_for_all_views_that_are_left():
    first, second = ColourLaw(), ColourLaw(solarize=0.2)
    law = ViewLaw("global", SIZE, 4, colours=(first, second))
    assert [law.colour(v) for v in range(4)] == [first, second, second, second]
    assert ViewLaw("global", SIZE, 4).colour(3) is None and law.views == 4 and ViewLaw("image", SIZE).views == 1


def test_only_what_is_left_open_is_taken_from_the_data():
    law = ViewLaw("local", SIZE, scale=(0.05, 0.4)).with_defaults((0.2, 1.0), 0.25)
    assert law.scale == (0.05, 0.4) and law.flip == 0.25
    assert ViewLaw("local", SIZE, flip=0.0).with_defaults((0.2, 1.0), 0.25).flip == 0.0


def test_the_noise_of_the_usual_views_has_a_short_name():
    names = {name: ViewLaw(name, SIZE).noise_key for name in ("image", "clip", "local")}
    assert names == {"image": "noise", "clip": "noise", "local": "local_noise"}


@pytest.mark.parametrize(
    ("settings", "telling"),
    [
        ({"size": (0, 32)}, r"view global has size \(0, 32\)"),
        ({"count": 0}, "count 0"),
        ({"scale": (0.0, 1.0)}, r"crop scale \(0.0, 1.0\) is no range in \(0, 1\]"),
        ({"scale": (0.5, 0.2)}, "crop scale"),
        ({"scale": (0.2, 1.1)}, "crop scale"),
        ({"ratio": (0.0, 1.0)}, "crop ratio"),
        ({"ratio": (2.0, 1.0)}, "crop ratio"),
        ({"flip": -0.1}, "flip is -0.1, no probability"),
    ],
)
def test_laws_out_of_range_are_refused(settings, telling):
    with pytest.raises(InputError, match=telling):
        ViewLaw(**({"name": "global", "size": SIZE} | settings))


@pytest.mark.parametrize(
    ("settings", "telling"),
    [
        ({"jitter": 1.1}, "colour jitter is 1.1, no probability"),
        ({"grayscale": float("nan")}, "colour grayscale is nan"),
        ({"blur": -1}, "colour blur is -1"),
        ({"solarize": 2}, "colour solarize is 2"),
        ({"brightness": -0.1}, "colour brightness is -0.1. Fix: give a number from 0 on"),
        ({"hue": 0.6}, "colour hue is 0.6. Fix: give a number from 0 to 0.5"),
        ({"blur_sigma": (0.0, 1.0)}, r"colour blur_sigma \(0.0, 1.0\) is no range above 0"),
        ({"blur_sigma": (2.0, 1.0)}, "colour blur_sigma"),
    ],
)
def test_colours_out_of_range_are_refused(settings, telling):
    with pytest.raises(InputError, match=telling):
        ColourLaw(**settings)


def test_laws_at_their_bounds_are_accepted():
    ViewLaw("global", (1, 1), 1, (1.0, 1.0), (1.0, 1.0), 0.0)
    ColourLaw(jitter=0, brightness=0, hue=0.5, grayscale=1, blur=1, blur_sigma=(2.0, 2.0), solarize=1)
