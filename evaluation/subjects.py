"""What is measured: the trained model, and beside it what its numbers have to be compared with.

    trained    the encoder of a checkpoint
    random     its twin: the same network at random initialisation, which follows from the seed alone
    pixels     the picture itself, no network (probes of frozen features only)

Chance, the fourth line of every table, is not measured: it is known.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from headcam.evaluation import protocols
from headcam.evaluation.features.clip_pixels import ClipPixelExtractor
from headcam.evaluation.features.clips import ClipExtractor
from headcam.evaluation.features.encoders import (
    EncoderExtractor,
    Extractor,
    PixelExtractor,
    load_frozen,
    random_twin,
)
from headcam.evaluation.features.layers import LayersExtractor
from headcam.ssl.weights import state_hash

PIXELS = "raw pixels"
CHANCE = "chance"
Kind = Literal["trained", "random", "pixels"]
Media = Literal["pictures", "videos"]


@dataclass(frozen=True)
class Subject:
    """One thing to be measured.

    Attributes:
        name: as tables call it.
        kind: see the module.
        weights_hash: of its weights; empty of pixels.
        card: of the model; empty of pixels.
        open: gives the encoder anew (finetuning changes it) and its card; None of pixels.
    """

    name: str
    kind: Kind
    weights_hash: str
    card: dict[str, Any]
    open: Callable[[], tuple[torch.nn.Module, dict[str, Any]]] | None

    def extractor(
        self,
        features: protocols.EncoderFeatures | protocols.PixelFeatures,
        device: torch.device,
        media: Media = "pictures",
    ) -> Extractor:
        """How its features are computed, of pictures or of videos."""
        if media == "pictures":
            return PixelExtractor(features) if self.open is None else EncoderExtractor(*self.open(), features, device)
        clips = features.clips or protocols.Clips()
        if self.open is None:
            return ClipPixelExtractor(features, clips)
        return ClipExtractor(*self.open(), features, clips, device)

    def layers_extractor(self, features: protocols.EncoderFeatures, device: torch.device) -> LayersExtractor:
        """How the features of each of its blocks are computed, in one pass."""
        return LayersExtractor(*self.open(), features, device)

    def applies(self, protocol: protocols.Protocol) -> protocols.Protocol | None:
        """The protocol as it is on this subject, None where it cannot be."""
        return protocols.on_pixels(protocol) if self.kind == "pixels" else protocol


def subjects_of(source: str | os.PathLike, layer: str | None, seed: int) -> list[Subject]:
    """The encoder of `source`, its random twin under `seed`, and raw pixels.

    Raises:
        InputError: see `load_frozen`.
    """

    def trained() -> tuple[torch.nn.Module, dict[str, Any]]:
        return load_frozen(source, layer)

    def random() -> tuple[torch.nn.Module, dict[str, Any]]:
        encoder, card = load_frozen(source, layer)
        return random_twin(encoder, card, seed), card

    card = trained()[1]
    return [
        Subject(card["name"], "trained", card["weights_hash"], card, trained),
        Subject(f"{card['name']} (random weights)", "random", state_hash(random()[0]), card, random),
        Subject(PIXELS, "pixels", "", {}, None),
    ]
