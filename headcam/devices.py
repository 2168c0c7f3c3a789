"""The device that an option names, checked before any work is done on it."""

import torch

from headcam.errors import InputError


def usable_device(name: str | torch.device) -> torch.device:
    """The device called `name`, such as "cpu", "cuda:1" or "mps".

    Raises:
        InputError: torch knows no such device, or it is not there.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises AssertionError where it was built without CUDA
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name} cannot be used: {reason}", "use --device cpu") from error
    return device
