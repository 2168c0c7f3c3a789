"""Likelihood as familiarity: a GPT on the tokens of pictures, as in the published experiment (Orhan 2022).

    pixels ──tokenizer, frozen──▶ tokens, once for study and test ─┬─ studied: GPT's mean loss, all weights trained
                                                                   └─ scored:  mean of -ln p(token | tokens before it)

A score is in nats per predicted token; a picture that the model has learned is more likely, and scores lower. GPTs come
trained, with the tokenizer whose tokens they know, or start from random weights on colours of a palette: one that
`headcam tokenize palette` has fitted to frames, or, where nothing but the pictures is at hand, one of their own.

Shapes: N pictures, B of a batch, `grid` (h, w) of tokens; pixels uint8 (N, 3, H, W).
"""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from headcam.errors import InputError
from headcam.randomness import stream
from headcam.recognition_memory.learners.learner import Learner
from headcam.ssl.vit import Size
from headcam.ssl.weights import build_encoder, state_hash
from headcam.tokenizers.autoencoders.palette import PaletteTokenizer
from headcam.tokenizers.autoencoders.tokenizer import Tokenizer, load_tokenizer
from headcam.tokenizers.autoregression.gpt import GPT, PRESETS, Positions, load_gpt
from headcam.tokenizers.autoregression.loading import check_fit, tokenizer_of
from headcam.tokenizers.autoregression.sampling import Sampling, draw
from headcam.tokenizers.autoregression.scoring import token_nats
from headcam.tokenizers.published import zoo
from headcam.tokenizers.quantizers.kmeans import kmeans
from headcam.tokenizers.quantizers.projected import full_precision

_ZOO = "zoo:"
_PIXELS_PER_PICTURE = 32  # that a palette is fitted to, as in `headcam tokenize palette`
_ITERATIONS = 50  # of k-means, as there
_KEPT_TOKENS = 1 << 26  # that are remembered at most: 256 MB, 16,384 pictures of 64 x 64 tokens
_AT_ONCE = 8  # pictures that are completed together: 3.2 GB of cache for iGPT-S at 64 x 64


class GPTLearner(Learner):
    """A GPT that studies pictures as strings of tokens.

    The tokenizer never learns. It sees pictures one at a time, so that the tokens of a picture, in study and in test,
    before and after a restart, are the same.

    Args:
        source: Trained GPT: run folder, weights.safetensors with its card, .ckpt, or zoo:NAME of a published one (such
            as zoo:igpt/iGPT-S-ImageNet). Null: a GPT of random weights, which follow from the run's seed; only then
            the arguments after `tokenizer` are looked at.
        tokenizer: With `source`: the tokenizer, where no copy comes with the weights. Without: a trained tokenizer of
            pictures, on whose tokens the GPT starts, in place of a palette.
        img_size: Pixels, one side or [height, width], each of which is a token of a palette.
        colours: Of a palette that is fitted, by k-means, to pixels of the experiment's pictures, studied and foils
            alike; it is the same for all runs.
        palette: Run of `headcam tokenize palette` whose colours are taken instead.
        embed_dim: Width of the GPT.
        depth: Its blocks.
        num_heads: Its attention heads.
        positions: `learned` or `rotary`.
        start_token: `learned`, or `none` as in the published models: then the first token is never predicted.
        preset: Named size (`tiny`, `igpt_s`, ...) in place of `embed_dim`, `depth` and `num_heads`.
    Raises:
        InputError: nothing of that name there, a GPT or tokenizer of clips, a GPT with classes, two tokenizers.
    """

    unit = "nats per token"

    def __init__(
        self,
        source: str | None = None,
        tokenizer: str | None = None,
        img_size: int | tuple[int, int] = 32,
        colours: int = 64,
        palette: str | None = None,
        embed_dim: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        positions: Positions = "learned",
        start_token: Literal["learned", "none"] = "learned",
        preset: Literal["tiny", "mini", "alef", "bet", "gimel", "dalet", "igpt_mini", "igpt_s"] | None = None,
    ):
        super().__init__()
        if palette is not None and (source or tokenizer):
            raise InputError(
                f"palette {palette} is given beside {source or tokenizer}, which has tokens of its own",
                "leave one of them out",
            )
        self._source, self._tokenizer_source = source, tokenizer
        self._fits_palette = source is None and tokenizer is None and palette is None
        self._kept: dict[bytes, Tensor] = {}  # digest of a picture's pixels -> its tokens, (*grid) int32 on the CPU
        if source is not None:
            self.gpt, self.tokenizer, self.card = _open(source, tokenizer)
        else:
            self.tokenizer = _coder(img_size, colours, palette, tokenizer)
            if len(self.tokenizer.grid) != 2:
                raise _clips(tokenizer)
            size = Size(embed_dim, depth, num_heads) if preset is None else PRESETS[preset]
            self._arguments = {
                "vocab_size": self.tokenizer.vocab_size,
                "grid": list(self.tokenizer.grid),
                **asdict(size),
                "start_token": start_token,
                "positions": positions,
            }
            self.gpt = self._unstudied(seed=0)
        self.tokenizer.requires_grad_(False)
        if source is not None:
            self.origins = {"source": state_hash(self.gpt), "tokenizer": state_hash(self.tokenizer)}
        elif not self._fits_palette:
            self.origins = {"palette" if palette else "tokenizer": state_hash(self.tokenizer)}
        self.img_size, self.predictions = self.tokenizer.img_size, self.gpt.num_positions

    def _unstudied(self, seed: int) -> GPT:
        """The GPT before study."""
        if self._source is not None:
            return _open(self._source, self._tokenizer_source)[0]
        return build_encoder({"architecture": {"class": "GPT", "arguments": self._arguments}}, seed, {"GPT": GPT})

    def begin(self, seed: int, pictures: Tensor) -> None:
        """As of `Learner`.

        Raises:
            InputError: pictures of another size, or of fewer colours than a palette is to have.
        """
        self.tokenizer.check(pictures)
        self.gpt.load_state_dict(self._unstudied(seed).state_dict())
        if self._fits_palette:
            palette = _fit_palette(pictures, self.tokenizer.vocab_size)
            self.tokenizer.quantizer.codebook.copy_(palette)
        self._kept.clear()

    def train(self, mode: bool = True) -> "GPTLearner":
        super().train(mode)
        self.tokenizer.eval()
        return self

    def study_loss(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        return self.gpt.loss(self._tokens(pixels))

    def scores(self, pixels: Tensor) -> Tensor:
        """Mean nats per predicted token, see `headcam.tokenizers.autoregression.scoring`: (N,) float64."""
        tokens = self._tokens(pixels)
        with full_precision(pixels):
            nats = token_nats(self.gpt, tokens, batch_size=len(tokens))  # (N, *grid), NaN where nothing is predicted
        return nats.flatten(1).nanmean(dim=1)

    @torch.no_grad()
    def complete(
        self, pixels: Tensor, rows: int, rng: np.random.Generator, temperature: float = 1.0, top_k: int | None = 128
    ) -> Tensor:
        """Lower rows drawn token by token, given the tokens of the upper ones; the upper rows stay as they are.

        What is not given is covered by copies of the last given row before tokens are made, so that no token knows of
        it, however far its tokenizer looks.

        Args:
            pixels, rng: as of `Learner`.
            rows: of pixels, whole rows of tokens, at least one and not all.
            temperature, top_k: see `headcam.tokenizers.autoregression.sampling.Sampling`.
        Raises:
            InputError: rows that end within a row of tokens, or that give nothing or everything.
        """
        check_rows(rows, self.img_size[0], self.img_size[0] // self.tokenizer.grid[0], "tokens")
        settings = Sampling(temperature, top_k)
        covered = pixels.clone()
        covered[:, :, rows:] = pixels[:, :, rows - 1 : rows]
        prompts = self._tokens(covered).flatten(1)
        prompts = prompts[:, : prompts.shape[1] * rows // self.img_size[0]]
        uniforms = torch.from_numpy(rng.random((len(prompts), self.gpt.num_tokens - prompts.shape[1])))  # float64
        made = []
        with full_precision(pixels):
            for some, numbers in zip(prompts.split(_AT_ONCE), uniforms.split(_AT_ONCE)):
                made.append(self.tokenizer.decode(_continued(self.gpt, some, numbers, settings)).cpu())
        completed = torch.cat(made)
        completed[:, :, :rows] = pixels[:, :, :rows].cpu()
        return completed

    def _tokens(self, pixels: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> (N, *grid) int64 on the same device.

        Remembered by content: every exposure and test asks for the same pictures, and a VQGAN is slower than a small
        GPT. Once full, the store takes no more, since pictures that come round in turn would push each other out.
        """
        self.tokenizer.check(pixels)
        rows = []
        for one, copy in zip(pixels, pixels.cpu()):
            key = hashlib.blake2b(copy.numpy().tobytes(), digest_size=16).digest()
            tokens = self._kept.get(key)
            if tokens is None:
                with full_precision(pixels):  # autocast of the study must not change a token
                    tokens = self.tokenizer.encode(one[None])[0].to("cpu", torch.int32)
                if (len(self._kept) + 1) * tokens.numel() <= _KEPT_TOKENS:
                    self._kept[key] = tokens
            rows.append(tokens)
        return torch.stack(rows).to(pixels.device, torch.int64)


def check_rows(rows: int, height: int, step: int, of: str) -> None:
    """Raise `InputError` where the first `rows` of a picture's `height` pixels are no whole rows of `of`.

    Args:
        step: height of a row of `of` in pixels.
    """
    if rows % step or not 0 < rows < height:
        raise InputError(
            f"{rows} of {height} rows of pixels cannot be given to a model whose {of} are {step} high",
            f"give a multiple of {step}, {step} to {height - step}",
        )


def _open(source: str, tokenizer: str | None) -> tuple[GPT, Tokenizer, dict[str, Any]]:
    """A trained GPT of pictures, its tokenizer and its card."""
    name, path = source.removeprefix(_ZOO), Path(source)
    if name == source and (path.is_dir() or path.suffix in (".ckpt", ".safetensors") or not path.exists()):
        gpt, card = load_gpt(source)
        _check(gpt, source)
        return gpt, tokenizer_of(gpt, card, source, tokenizer), card
    gpt, card, coder = zoo.load(name, tokenizer=tokenizer)
    if not isinstance(gpt, GPT):
        raise InputError(f"{source} is a {type(gpt).__name__}, not a GPT", "name a GPT; headcam zoo lists all names")
    if coder is None:
        raise InputError(f"{source} comes without a tokenizer", "name the one that it was trained with")
    check_fit(gpt, coder[0])
    return gpt, coder[0], card


def _check(gpt: GPT, source: str) -> None:
    if len(gpt.grid) != 2:
        raise _clips(source)
    if gpt.start == "class":
        raise InputError(
            f"{source} is a GPT with classes, under each of which a picture has another likelihood",
            "use a GPT that was trained with start_token learned or none",
        )


def _clips(source: str | None) -> InputError:
    return InputError(f"{source} is a model of clips", "use one of pictures, which are what is studied")


def _coder(img_size: int | tuple[int, int], colours: int, palette: str | None, tokenizer: str | None) -> Tokenizer:
    """The tokenizer of a GPT that starts from random weights; without a source of colours they are zeros as yet."""
    if tokenizer is not None:
        return zoo.open_source(tokenizer, load_tokenizer)[0]
    if palette is None:
        return PaletteTokenizer(img_size, colours).eval()
    fitted, _ = load_tokenizer(palette)
    if not isinstance(fitted, PaletteTokenizer):
        raise InputError(
            f"palette {palette} is a {type(fitted).__name__}",
            "name a run of headcam tokenize palette, or use tokenizer",
        )
    coder = PaletteTokenizer(img_size, fitted.vocab_size)
    coder.quantizer.codebook.copy_(fitted.quantizer.codebook)
    return coder.eval()


def _fit_palette(pictures: Tensor, colours: int) -> Tensor:
    """(colours, 3) float32 in 0..255 for pictures uint8 (N, 3, H, W): k-means of some pixels of each.

    Both follow from seed 0, not from the seed of a run.
    """
    N, places = len(pictures), pictures.shape[2] * pictures.shape[3]
    per_picture = min(places, max(_PIXELS_PER_PICTURE, -(-4 * colours // N)))  # more of each where there are few
    where = np.stack([stream(0, "memory palette", k).choice(places, per_picture, replace=False) for k in range(N)])
    index = torch.from_numpy(where)[:, None].expand(-1, 3, -1)  # (N, 3, n)
    points = pictures.cpu().flatten(2).gather(2, index).transpose(1, 2).reshape(-1, 3)
    found = len(points.unique(dim=0))
    if found < colours:
        raise InputError(
            f"{len(points)} pixels of {N} pictures have {found} different colours, too few for a palette of {colours}",
            "lower colours, or name a palette that was fitted to other frames",
        )
    return kmeans(points.float(), colours, iterations=_ITERATIONS).centres


def _continued(gpt: GPT, prompts: Tensor, uniforms: Tensor, settings: Sampling) -> Tensor:
    """Grids that begin with `prompts` (B, n): each further token is drawn by its number in [0, 1): (B, *grid) int64.

    Args:
        uniforms: (B, tokens of a grid - n) float64 on the CPU.
    """
    uniforms = uniforms.to(prompts.device, torch.float32 if prompts.device.type == "mps" else torch.float64)
    cache = gpt.new_cache(len(prompts))
    logits, grids = gpt.advance(prompts, cache), [prompts]
    for k in range(uniforms.shape[1]):
        if k:
            logits = gpt.advance(grids[-1], cache)
        grids.append(draw(logits, uniforms[:, k], settings)[:, None])
    return torch.cat(grids, dim=1).view(-1, *gpt.grid)
