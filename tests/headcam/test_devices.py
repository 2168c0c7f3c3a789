"""Devices by name: what is there comes back, what is not is refused on one line."""

import pytest
import torch

from headcam.devices import usable_device
from headcam.errors import InputError


def test_the_processor_is_always_there():
    assert usable_device("cpu") == usable_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["abacus", "cuda:97"])
def test_what_is_not_there_is_refused(name):
    with pytest.raises(InputError, match=f"device {name} cannot be used: .*Fix: use --device cpu") as caught:
        usable_device(name)
    assert "\n" not in str(caught.value)
