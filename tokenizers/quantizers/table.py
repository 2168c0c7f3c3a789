"""The quantizers by the names that configs give them."""

import inspect
from collections.abc import Mapping
from typing import Any

from headcam.errors import InputError
from headcam.tokenizers.quantizers.fsq import FSQ
from headcam.tokenizers.quantizers.gumbel import GumbelVQ
from headcam.tokenizers.quantizers.lfq import LFQ
from headcam.tokenizers.quantizers.quantizer import Quantizer
from headcam.tokenizers.quantizers.vq import EMAVQ, GradientVQ

QUANTIZERS: dict[str, type[Quantizer]] = {
    "vq": GradientVQ,
    "ema": EMAVQ,
    "fsq": FSQ,
    "lfq": LFQ,
    "gumbel": GumbelVQ,
}


def build_quantizer(name: str, codebook_size: int, dim: int, options: Mapping[str, Any] | None = None) -> Quantizer:
    """The quantizer of that name.

    Args:
        name: a key of `QUANTIZERS`.
        codebook_size: K.
        dim: D of the latents.
        options: further arguments of its class; null: its defaults.
    Raises:
        InputError: no such quantizer or option, or a value that it cannot work with.
    """
    if name not in QUANTIZERS:
        raise InputError(f"there is no quantizer {name!r}", f"take one of {', '.join(QUANTIZERS)}")
    taken = list(inspect.signature(QUANTIZERS[name]).parameters)[2:]
    for option in options or {}:
        if option not in taken:
            raise InputError(f"the quantizer {name} has no option {option!r}", f"its options are {', '.join(taken)}")
    return QUANTIZERS[name](codebook_size, dim, **(options or {}))
