"""What one protocol found of one subject, kept on disk: a probe that is stopped goes on after the last one.

    OUT/outcomes/<key>.npz     `about` (JSON: contract, protocol, subject, details), and what was said of each picture

The key is a hash over the subject's weights, the protocol, the pictures, the seed and the draw, so an outcome is found
again where all of them are the same, and another is computed where one is not.
"""

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headcam.errors import InputError
from headcam.evaluation import protocols
from headcam.evaluation.scoring.guesses import Guesses
from headcam.files import atomic_file, sha256_json

CONTRACT = "outcome/1"


@dataclass(frozen=True)
class Measured:
    """One measurement: a guess for every test picture.

    Attributes:
        stem: of its metrics' names, such as `linear` or `linear-layers/layer03`.
        guesses: of the test pictures.
        details: JSON values that a reader needs to trust it: what was chosen, on what, and what was tried.
        draw: number of the draw of labels that it is of; None where there are no draws.
    """

    stem: str
    guesses: Guesses
    details: dict[str, Any]
    draw: int | None = None

    @property
    def full_stem(self) -> str:
        """With the draw, such as `fewshot-1pct/draw3`."""
        return self.stem if self.draw is None else f"{self.stem}/draw{self.draw}"


def outcome_key(subject: dict[str, Any], protocol: protocols.Protocol, **more: Any) -> str:
    """The name of an outcome's file: a hash over all that it follows from."""
    return sha256_json({"subject": subject, "protocol": asdict(protocol), **more})[:32]


def write_outcome(path: Path, protocol: protocols.Protocol, measured: list[Measured]) -> None:
    """Write an outcome, whole or not at all."""
    about = {
        "contract": CONTRACT,
        "protocol": protocols.label(protocol),
        "protocol_hash": protocols.protocol_hash(protocol),
        "measured": [{"stem": m.stem, "draw": m.draw, "details": m.details} for m in measured],
    }
    arrays = {f"{k}/{name}": getattr(m.guesses, name) for k, m in enumerate(measured) for name in ("rank", "top", "p")}
    with atomic_file(path) as file:
        np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)


def read_outcome(path: Path, protocol: protocols.Protocol) -> list[Measured] | None:
    """What `write_outcome` wrote; None where it is not there.

    Raises:
        InputError: damaged, of another contract, or of a protocol of another version.
    """
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            if about["contract"] != CONTRACT or about["protocol_hash"] != protocols.protocol_hash(protocol):
                raise InputError(
                    f"{path} follows {about['contract']} and protocol {about['protocol']}, where {CONTRACT} and "
                    f"{protocols.label(protocol)} are wanted",
                    "choose another --out, or use the version of headcam that wrote it",
                )
            return [
                Measured(
                    found["stem"],
                    Guesses(*(file[f"{k}/{name}"] for name in ("rank", "top", "p"))),
                    found["details"],
                    found["draw"],
                )
                for k, found in enumerate(about["measured"])
            ]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged: {error}", "remove it and run the same command again") from error
