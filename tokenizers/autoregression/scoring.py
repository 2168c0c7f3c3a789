"""Exact likelihood of pictures and clips under a GPT on their tokens, and where in them the surprise lies.

    pixels (uint8) ──tokenizer──▶ x_0 .. x_N-1 ──GPT──▶ -ln p(x_i | x_0 .. x_i-1), nats ──sum──▶ nats per picture

The score of a picture is -ln p of its tokens: the sum of the nats of all tokens, logits and their logarithms in
float32, sums in float64. Low is familiar. It is the likelihood of the tokens, not of the pixels: scores compare
pictures under one tokenizer, and models on one tokenizer, never one tokenizer with another.

A score is the same, bit for bit, whatever else is in the list, since pictures go through one at a time; `batch_size`
above 1 gives that up (matrix products of other shapes round differently, by some 1e-6 of a nat per token) for speed.

A model without a start token has no say about the first token: it is NaN in maps, missing in scores, and `omitted`
says so. Scores with and without it are not to be compared.

Shapes: B batch, `grid` (h, w) or (t, h, w), N tokens of a grid.
"""

from pathlib import Path

import torch
from torch import Tensor

from headcam.tokenizers.autoencoders.tokenizer import Tokenizer
from headcam.tokenizers.autoregression.gpt import GPT
from headcam.tokenizers.autoregression.loading import check_fit, load_gpt_and_tokenizer


@torch.inference_mode()
def token_nats(gpt: GPT, tokens: Tensor, labels: Tensor | None = None, batch_size: int = 1) -> Tensor:
    """-ln p of each token given those before it.

    Args:
        gpt: in eval mode, on the device that is to be used.
        tokens: (B, *grid) integers.
        labels: (B,) integers, for models with a class token.
        batch_size: sequences at a time; 1 makes every row independent of the others, bit for bit.
    Returns:
        (B, *grid) float64 on the CPU; NaN where the model has no say (the first token, without a start token).
    Raises:
        InputError: tokens of another grid or outside the vocabulary, labels that are missing or not taken.
    """
    gpt.check(tokens, labels)
    device = gpt.tok_embed.weight.device
    nats = torch.full((len(tokens), gpt.num_tokens), torch.nan, dtype=torch.float64)
    for start in range(0, len(tokens), batch_size):
        rows = slice(start, start + batch_size)
        some = gpt.nats(tokens[rows].long().to(device), None if labels is None else labels[rows].to(device))
        nats[rows, gpt.num_tokens - some.shape[1] :] = some.double().cpu()
    return nats.view(len(tokens), *gpt.grid)


class Scorer:
    """A GPT with its tokenizer: pixels to nats.

    Args:
        gpt, tokenizer: in eval mode, on one device; they have to fit.
        batch_size: pictures at a time, see the module.

    Attributes:
        scored_tokens: tokens of a picture that the score covers.
        omitted: one line that says what the score leaves out, or None.

    Raises:
        InputError: a tokenizer of another grid or vocabulary than the GPT's.
    """

    def __init__(self, gpt: GPT, tokenizer: Tokenizer, batch_size: int = 1):
        check_fit(gpt, tokenizer)
        self.gpt, self.tokenizer, self.batch_size = gpt, tokenizer, batch_size
        self.scored_tokens, self.omitted = gpt.num_positions, None
        if gpt.start == "none":
            covered = f"{self.scored_tokens} of {gpt.num_tokens} tokens, not the first"
            self.omitted = f"the model has no start token: scores cover {covered}"

    def tokens(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) or (B, 3, T, H, W) -> int64 (B, *grid) on the CPU.

        Raises:
            InputError: pictures or clips of another size than the tokenizer's.
        """
        self.tokenizer.check(pixels)
        device = self.gpt.tok_embed.weight.device
        parts = pixels.split(self.batch_size)
        return torch.cat([self.tokenizer.encode(part.to(device)).cpu() for part in parts])

    def surprise(self, pixels: Tensor, labels: Tensor | None = None) -> Tensor:
        """Nats of each token: uint8 (B, 3, ...) -> (B, *grid) float64, see `token_nats`."""
        return token_nats(self.gpt, self.tokens(pixels), labels, self.batch_size)

    def score(self, pixels: Tensor, labels: Tensor | None = None) -> Tensor:
        """Nats of each picture or clip: uint8 (B, 3, ...) -> (B,) float64."""
        # Row by row, since the order in which many rows are summed may depend on their number.
        return torch.stack([nats.flatten().nansum() for nats in self.surprise(pixels, labels)])


def load_scorer(
    source: str | Path,
    tokenizer: str | Path | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 1,
) -> Scorer:
    """The scorer of a trained GPT.

    Args:
        source: run folder of a GPT, weights with their card beside them, or a checkpoint.
        tokenizer: of weights that come without a copy of theirs.
        device: where both run.
        batch_size: pictures at a time, see the module.
    Raises:
        InputError: see `load_gpt_and_tokenizer`.
    """
    gpt, found, _ = load_gpt_and_tokenizer(source, tokenizer, device)
    return Scorer(gpt, found, batch_size)
