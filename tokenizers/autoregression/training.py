"""Training a GPT on the tokens of a token store, as a Lightning module.

    token store ──TokenDataModule──▶ tokens (B, 1, *grid) ─▶ GPT ─▶ mean of -ln p(token | tokens before it)

The loss is in nats per token. Beside it stand `bits_per_token`, and `bits_per_pixel`: the bits of all tokens of a
picture or clip over its pixels as the tokenizer cuts it, which models on one tokenizer can be compared by (bits of two
tokenizers cannot: each says how well its own code is predicted, not how well that code tells the picture).

When a run starts, its folder gets a copy of the tokenizer, so that it can score and draw pictures with no other file,
and `baselines.json`: what models without any context, and with one token of it, reach on the held-out tokens after the
same training tokens (`headcam.tokenizers.ngrams`). A GPT that is not below them has learned nothing.

Shapes: B batch, N tokens of a grid, P of them predicted.
"""

import math
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from headcam.errors import InputError
from headcam.files import atomic_file, write_json
from headcam.ssl.objective import ComputeSettings, Objective, OptimizerSettings
from headcam.tokenizers.autoregression.gpt import GPT, PRESETS, Positions, StartToken, load_gpt
from headcam.tokenizers.ngrams import held_out_bits
from headcam.tokenizers.published.zoo import open_source
from headcam.tokenizers.token_data import TokenDataModule
from headcam.tokenizers.token_store import TOKENIZER, TokenStore
from headcam.video.datasets import FrameSource, JoinedSource
from headcam.video.sampling.views import ViewLaw

_ROWS = 1024  # of a store, read at a time


class TokenModel(nn.Module):
    """What is trained: the GPT, and the loss as a `forward`, which sharded and compiled networks are called by."""

    def __init__(self, **arguments: Any):
        super().__init__()
        self.encoder = GPT(**arguments)

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, *grid) tokens, (B,) labels of a model with classes -> mean nats per token, a scalar."""
        return self.encoder.loss(tokens, labels)


class TokenGPT(Objective):
    """A GPT on tokens as a Lightning module.

    Args:
        preset: named size: tiny, mini, alef, bet, gimel, dalet, igpt_mini or igpt_s. `embed_dim`, `depth` and
            `num_heads` override it one by one.
        vocab_size: Codes of the tokenizer.
        grid: Tokens of a picture, [rows, columns], or of a clip, [time slots, rows, columns].
        positions: `learned`, one vector a position (published), or `rotary`.
        start_token: `learned`; `class`, one for each of `classes`; or `none` as in the published models, which then
            never predict the first token.
        classes: With `start_token` class: names of the sources of recordings (such as children) that a model is told
            apart by, each a class.
        embed_dim: Width; null takes that of `preset`.
        depth: Blocks; null takes that of `preset`.
        num_heads: Attention heads; null takes that of `preset`.
        optimizer: AdamW and its schedule.
        compute: Attention backend, checkpointing, compilation.
    Raises:
        InputError: settings that do not fit each other; in `setup`, data that are no tokens.
    """

    name = "gpt"

    def __init__(
        self,
        preset: Literal["tiny", "mini", "alef", "bet", "gimel", "dalet", "igpt_mini", "igpt_s"] = "tiny",
        vocab_size: int = 1024,
        grid: tuple[int, ...] = (8, 8),
        positions: Positions = "learned",
        start_token: StartToken = "learned",
        classes: list[str] | None = None,
        embed_dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        optimizer: OptimizerSettings | None = None,
        compute: ComputeSettings | None = None,
    ):
        named = PRESETS[preset]
        build = partial(
            TokenModel,
            vocab_size=vocab_size,
            grid=grid,
            embed_dim=embed_dim or named.embed_dim,
            depth=depth or named.depth,
            num_heads=num_heads or named.num_heads,
            start_token=start_token,
            num_classes=len(classes or ()),
            positions=positions,
        )
        super().__init__(build, optimizer, compute)
        self.vocab_size, self.grid, self.classes = vocab_size, tuple(grid), classes
        self.tokens_per_sample = self.skeleton.encoder.num_positions
        # Crops and flips were drawn when the tokens were made.
        self.views = (ViewLaw("tokens", self.img_size, scale=(1, 1), flip=0.0),)
        self.store: TokenStore | None = None

    def setup(self, stage: str) -> None:
        """Take notice of the tokenizer behind the data; Lightning calls it when the data module is ready."""
        super().setup(stage)
        data = self.trainer.datamodule
        if not isinstance(data, TokenDataModule):
            raise InputError(
                f"a GPT learns from tokens, which {type(data).__name__} does not give",
                "set data.class_path to headcam.tokenizers.token_data.TokenDataModule",
            )
        self.store = _parts(data.train_source)[0].store  # the data module has made sure that all have one tokenizer

    def open_initial(self, source: str) -> tuple[nn.Module, dict[str, Any]]:
        """A GPT of a run, or `zoo:NAME`, or a published file; `InputError` where it knows other tokens than these."""
        gpt, card = open_source(source, load_gpt)
        theirs = (card.get("tokenizer") or {}).get("hash")
        if self.store is not None and theirs not in (None, self.store.tokenizer_hash):
            raise InputError(
                f"{source} was trained on tokens of another tokenizer: weights {theirs[:12]}, those of the data are of "
                f"{self.store.tokenizer_hash[:12]}",
                "make the store with the tokenizer/ that the model carries with it",
            )
        return gpt, card

    def on_fit_start(self) -> None:
        """Put the tokenizer and the baselines into the run folder."""
        if not self.trainer.is_global_zero or self.trainer.fast_dev_run:
            return
        folder, data = Path(self.trainer.default_root_dir), self.trainer.datamodule
        _copy_files(self.store.folder / TOKENIZER, folder / TOKENIZER)
        path = folder / "baselines.json"
        if data.validates and not path.exists():
            write_json(path, self._baselines(data.train_source, data.val_data.source))

    def _baselines(self, train: FrameSource, held: FrameSource) -> dict[str, Any]:
        found = held_out_bits(_tokens_of(train), _tokens_of(held), self.vocab_size)
        nats = {"uniform": math.log(self.vocab_size), **found}
        return {
            "what": "held-out nats and bits per token of models fitted on the training tokens; compare with val/loss",
            "samples": {"train": len(train.units), "held_out": len(held.units)},
            "tokens_per_sample": math.prod(self.grid),
            "nats_per_token": nats,
            "bits_per_token": {name: value / math.log(2) for name, value in nats.items()},
        }

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        """-ln p of each token: (B, *grid) -> (B, P) nats."""
        return self.encoder.nats(tokens, labels)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One batch: `tokens` integers (B, 1, *grid); with classes `label` (B,) int64."""
        loss = self.network(batch["tokens"].squeeze(1), batch["label"] if self.classes else None)
        bits = loss.detach() / math.log(2)
        values = {"loss": loss, "bits_per_token": bits}
        if self.store is not None and not self.training:
            values["bits_per_pixel"] = bits * self.tokens_per_sample / _pixels(self.store)
        return values

    def example_batch(self, batch_size: int, device: str | torch.device = "meta") -> dict[str, Tensor]:
        batch = {"tokens": torch.zeros(batch_size, 1, *self.grid, dtype=torch.int32, device=device)}
        if self.classes:
            batch["label"] = torch.zeros(batch_size, dtype=torch.int64, device=device)
        return batch

    def masked_flops(self, batch_size: int) -> dict[str, float]:
        """Half of the two N x N products of width D in each block: a token does not look at those behind it."""
        gpt = self.skeleton.encoder
        return {"encoder.blocks": batch_size * gpt.depth * 2.0 * gpt.num_positions**2 * gpt.embed_dim}

    def card(self) -> dict[str, Any]:
        """As of all objectives, less what is of pixels, with `classes` and, where data are there, `tokenizer`."""
        card = {name: value for name, value in super().card().items() if name not in ("mean", "std")}
        card["classes"] = self.classes
        if self.store is None:
            return card
        made_of = self.store.metadata
        tokenizer = {"hash": self.store.tokenizer_hash, "class": made_of["tokenizer"]}
        tokenizer |= {name: made_of[name] for name in ("img_size", "num_frames")}
        return card | {"tokenizer": tokenizer | {"step_s": made_of["settings"]["step_s"]}}


def _parts(source: FrameSource) -> list[FrameSource]:
    return source.sources if isinstance(source, JoinedSource) else [source]


def _pixels(store: TokenStore) -> int:
    """Pixels of the picture or clip that a grid of tokens stands for."""
    return math.prod(store.metadata["img_size"]) * store.metadata["num_frames"]


def _tokens_of(source: FrameSource) -> Iterator[np.ndarray]:
    """All grids of a source, in the order of recordings and times, as (n, N) arrays.

    So the last ones are of other recordings than most, which is what `headcam.tokenizers.ngrams` tunes on.
    """
    units = len(source.units)
    for first in range(0, units, _ROWS):
        numbers = range(first, min(first + _ROWS, units))
        yield np.stack([source.views(unit, 0.0, [None])[0].ravel() for unit in numbers])


def _copy_files(source: Path, target: Path) -> None:
    """Copy the files of a folder, each whole or not; those that are there already are left."""
    for path in sorted(source.iterdir()):
        if path.is_file() and not (target / path.name).exists():
            with open(path, "rb") as original, atomic_file(target / path.name) as copy:
                shutil.copyfileobj(original, copy)
