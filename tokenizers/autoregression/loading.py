"""A trained GPT together with the tokenizer whose tokens it speaks.

The run folder of a GPT carries a copy of its tokenizer in `tokenizer/`, so that pixels can be scored, and samples
looked at, with no other file. Weights from elsewhere come without: then the tokenizer is named. Either way the two have
to fit, by the hash of the tokenizer's weights where the GPT's card tells it, and always by grid and vocabulary.
"""

from pathlib import Path
from typing import Any

import torch

from headcam.devices import usable_device
from headcam.errors import InputError
from headcam.tokenizers.autoencoders.tokenizer import Tokenizer, load_tokenizer
from headcam.tokenizers.autoregression.gpt import GPT, load_gpt


def load_gpt_and_tokenizer(
    source: str | Path, tokenizer: str | Path | None = None, device: str | torch.device = "cpu"
) -> tuple[GPT, Tokenizer, dict[str, Any]]:
    """A trained GPT and its tokenizer, both in eval mode on `device`, and the GPT's card.

    Args:
        source: run folder of a GPT, weights with their card beside them, or a checkpoint.
        tokenizer: what `load_tokenizer` takes; None: the copy in the run folder.
        device: as torch names it.
    Raises:
        InputError: no GPT, no tokenizer, or one that does not fit the GPT; a device that is not there.
    """
    device = usable_device(device)
    gpt, card = load_gpt(source)
    found = tokenizer_of(gpt, card, source, tokenizer)
    return gpt.to(device).eval(), found.to(device).eval(), card


def tokenizer_of(gpt: GPT, card: dict[str, Any], source: str | Path, tokenizer: str | Path | None = None) -> Tokenizer:
    """The tokenizer of a GPT that is loaded already; arguments and errors as of `load_gpt_and_tokenizer`."""
    found, tokenizer_card = load_tokenizer(_copy_beside(Path(source)) if tokenizer is None else tokenizer)
    expected = (card.get("tokenizer") or {}).get("hash")
    if expected is not None and expected != tokenizer_card["weights_hash"]:
        raise InputError(
            f"the model of {source} was trained on tokens of another tokenizer: weights {expected[:12]}, here "
            f"{tokenizer_card['weights_hash'][:12]}",
            "use the tokenizer/ of its run folder, or the weights.safetensors that it is a copy of",
        )
    check_fit(gpt, found)
    return found


def class_number(card: dict[str, Any], label: str | None) -> int | None:
    """The number of a class that is given by its number or by the name that a GPT's card has for it.

    Raises:
        InputError: a name that the card does not hold.
    """
    if label is None or label.isdigit():
        return None if label is None else int(label)
    names = card.get("classes") or []
    if label not in names:
        known = f"one of {', '.join(names)}" if names else "a number, if it has classes at all"
        raise InputError(f"the model knows no class {label}", f"give {known}")
    return names.index(label)


def check_fit(gpt: GPT, tokenizer: Tokenizer) -> None:
    """Raise `InputError` where a tokenizer makes other grids, or has another vocabulary, than a GPT."""
    for what, ours, theirs in (
        ("grids of", _size(gpt.grid), _size(tokenizer.grid)),
        ("a vocabulary of", str(gpt.vocab_size), str(tokenizer.vocab_size)),
    ):
        if ours != theirs:
            raise InputError(
                f"the tokenizer does not fit the model: {what} {theirs}, where the model has {ours}",
                "use the tokenizer whose tokens the model was trained on",
            )


def _copy_beside(source: Path) -> Path:
    """The folder that holds `tokenizer/`: a run folder, that of its weights, or the parent of its checkpoints."""
    folders = [source] if source.is_dir() else [source.parent, source.parent.parent]
    for folder in folders:
        if (folder / "tokenizer").is_dir():
            return folder / "tokenizer"
    raise InputError(f"{folders[0]} holds no tokenizer", "name the tokenizer that the model was trained with")


def _size(grid: tuple[int, ...]) -> str:
    return " x ".join(map(str, grid))
