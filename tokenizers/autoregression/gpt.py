"""A GPT on the tokens of pictures and clips: the probability of each token given those before it, in raster order.

One decoder-only transformer (Radford et al. 2019, GPT-2; as in minGPT, whose names of sizes the published models of
vqgan-gpt have) for grids (h, w) and (t, h, w), read time, row, column. By the chain rule it is an exact likelihood:

    -ln p(x) = sum over i of -ln p(x_i | x_0 .. x_{i-1})        `nats` gives the terms, in nats

        input     start   x_0   x_1  ...  x_{N-2}               with a start token, learned or of a class
                    │      │     │          │                   (no code of the vocabulary: it is never predicted)
        predicts   x_0    x_1   x_2  ...  x_{N-1}

Without one (`start_token` none, as the published models are) the first token is given, never predicted: such a model
has N - 1 positions, and its likelihood is that of the other tokens given the first.

`nats` and `loss` score whole sequences at once (`headcam.tokenizers.autoregression.likelihood`); `advance` goes on
token by token with a cache of what was seen, which sampling lives on; `features` are hidden states for probes.

Shapes: B batch, N tokens of a grid, P positions (N with a start token, N - 1 without), K tokens of the vocabulary, D
width.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from headcam.errors import InputError
from headcam.ssl.attention import Attention, attend
from headcam.ssl.vit import Mlp, Size, run_block
from headcam.ssl.weights import load_encoder
from headcam.tokenizers.autoencoders.tokenizer import check_vocabulary
from headcam.tokenizers.autoregression.cache import KVCache, LayerCache, empty_cache
from headcam.tokenizers.autoregression.likelihood import mean_nats, nats_of
from headcam.tokenizers.autoregression.rotary import rotary_table, rotate

StartToken = Literal["learned", "class", "none"]
Positions = Literal["learned", "rotary"]

PRESETS = {
    "tiny": Size(192, 6, 3),  # ours, for a CPU
    "mini": Size(384, 6, 6),  # ours
    "alef": Size(768, 12, 12),  # vqgan-gpt, whose file of models has these four
    "bet": Size(1024, 24, 16),
    "gimel": Size(1280, 36, 20),
    "dalet": Size(1600, 48, 25),
    "igpt_mini": Size(512, 6, 8),  # igpt-memory; its depth is inferred from the size of the file
    "igpt_s": Size(512, 24, 8),  # Chen et al. 2020, "Generative pretraining from pixels", ICML
}


class CausalAttention(Attention):
    """Self-attention of a token to itself and those before it, with rotary positions and a cache where wanted."""

    def forward(self, x: Tensor, table: Tensor | None = None, past: LayerCache | None = None) -> Tensor:
        """(B, n, D) -> (B, n, D).

        Args:
            table: rotary positions of these n tokens, (2, 2, n, R).
            past: keys and values of the tokens before them, to which theirs are added.
        """
        B, n, D = x.shape
        qkv = self.qkv(x).view(B, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # (3, B, heads, n, head_dim)
        if table is not None:
            qkv = torch.cat([rotate(qkv[:2], table), qkv[2:]])
        if past is None:
            q, k, v = qkv.unbind(0)
        else:
            k, v = past.append(qkv[1:])
            q = qkv[0].to(k.dtype)
        x = attend(q, k, v, "causal", self.backend)  # (B, heads, n, head_dim)
        return self.proj(x.transpose(1, 2).reshape(B, n, D))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then MLP, each added to its input."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.attn = CausalAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, table: Tensor | None = None, past: LayerCache | None = None) -> Tensor:
        """(B, n, D) -> (B, n, D); arguments as of `CausalAttention.forward`."""
        x = x + self.attn(self.norm1(x), table, past)
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Decoder-only transformer on grids of tokens; usable without Lightning.

    Args:
        vocab_size: K.
        grid: of the tokens, (h, w) or (t, h, w).
        embed_dim: D, a multiple of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads.
        start_token: what stands before the first token: a `learned` vector, one of each `class`, or `none`.
        num_classes: for `class`, else 0.
        positions: `learned`, one vector a position, or `rotary` (`headcam.tokenizers.autoregression.rotary`).
        mlp_ratio: hidden width of the MLP over D.

    Attributes:
        arguments: with which the class makes this model again; JSON values.
        num_tokens, num_positions: N, P.
        img_size: rows and columns of the grid, where models of pixels have those of the picture.
    Raises:
        InputError: sizes that do not fit each other.
    """

    checkpointing_part = "encoder"
    tubelet_size = 1  # a time slot of tokens is what a frame is to models of pixels

    def __init__(
        self,
        vocab_size: int,
        grid: Sequence[int],
        embed_dim: int,
        depth: int,
        num_heads: int,
        start_token: StartToken = "learned",
        num_classes: int = 0,
        positions: Positions = "learned",
        mlp_ratio: float = 4.0,
    ):
        super().__init__()
        self.vocab_size, self.grid, self.embed_dim, self.depth = vocab_size, tuple(grid), embed_dim, depth
        self.num_heads, self.start, self.num_classes = num_heads, start_token, num_classes
        self.num_tokens = math.prod(self.grid)
        self.num_positions = self.num_tokens - (start_token == "none")
        self.img_size = self.grid[-2:]
        self._check_settings(positions)
        self.arguments: dict[str, Any] = {
            "vocab_size": vocab_size,
            "grid": list(self.grid),
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "start_token": start_token,
            "num_classes": num_classes,
            "positions": positions,
            "mlp_ratio": mlp_ratio,
        }
        self.tok_embed = nn.Embedding(vocab_size, embed_dim)
        if start_token == "learned":
            self.start_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        elif start_token == "class":
            self.class_embed = nn.Embedding(num_classes, embed_dim)
        if positions == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, self.num_positions, embed_dim))
            table = None
        else:
            table = rotary_table(self.grid, embed_dim // num_heads, start_token != "none")
        self.register_buffer("rotary", table, persistent=False)  # (2, 2, P, R)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-5)
        self.head = nn.Linear(embed_dim, vocab_size, bias=False)
        self.checkpointing = False  # keep no block's inner activations for backward, compute them again
        self._init_weights()

    def _check_settings(self, positions: str) -> None:
        if len(self.grid) not in (2, 3) or min(self.grid) < 1 or self.num_tokens < 2:
            raise InputError(
                f"grid {list(self.grid)} is none of a picture or clip",
                "give rows and columns, or time slots, rows and columns, of 2 tokens or more",
            )
        if self.vocab_size < 1 or self.depth < 1:
            raise InputError(f"vocab_size is {self.vocab_size} and depth {self.depth}", "give 1 or more of each")
        if self.num_heads < 1 or self.embed_dim % self.num_heads:
            raise InputError(
                f"{self.num_heads} heads do not divide embed_dim {self.embed_dim}", "choose a divisor as num_heads"
            )
        if self.start not in ("learned", "class", "none") or positions not in ("learned", "rotary"):
            raise InputError(
                f"there is no start_token {self.start!r} with positions {positions!r}",
                "use learned, class or none with learned or rotary",
            )
        if (self.start == "class") != (self.num_classes > 0):
            raise InputError(
                f"start_token {self.start} does not go with {self.num_classes} classes",
                "use start_token class with 1 class or more, another one with 0",
            )

    def _init_weights(self) -> None:
        """Normal with standard deviation 0.02, biases zero (minGPT); what is added to the stream, less with depth.

        The last layer of each residual branch is scaled by 1 / sqrt(number of branches) (Radford et al. 2019, section
        2.3; minGPT).
        """
        branches = 2 * self.depth
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                last = name.endswith(("attn.proj", "mlp.fc2"))
                nn.init.normal_(module.weight, std=0.02 / math.sqrt(branches) if last else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for _, parameter in self.named_parameters(recurse=False):  # start token, learned positions
            nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        """Scores of the token that comes next, after each of those given.

        Args:
            tokens: (B, n) integers, the first n of a sequence.
            labels: (B,) int64, for `start_token` class.
        Returns:
            (B, n', K) with n' = n + 1 with a start token (the first are those of token 0), n without.
        Raises:
            InputError: more tokens than the model has positions for, labels missing or not asked for.
        """
        return self.head(self._hidden(tokens, labels, self.depth))

    def nats(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        """-ln p of every token that the model predicts.

        Args:
            tokens: (B, N) or (B, *grid) integers.
            labels: (B,) int64, for `start_token` class.
        Returns:
            (B, P) float32, in raster order; without a start token the first token of the grid is left out.
        Raises:
            InputError: another number of tokens, labels missing or not asked for.
        """
        tokens = self._flat(tokens)
        hidden = self._hidden(tokens[:, :-1], labels, self.depth)
        return nats_of(hidden, self.head.weight, tokens[:, -self.num_positions :])

    def loss(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mean of `nats` over batch and positions, a scalar, at a training step's cost in time and memory."""
        tokens = self._flat(tokens)
        hidden = self._hidden(tokens[:, :-1], labels, self.depth)
        return mean_nats(hidden, self.head.weight, tokens[:, -self.num_positions :])

    def features(self, tokens: Tensor, layer: int, labels: Tensor | None = None) -> Tensor:
        """Hidden states for probes.

        Args:
            tokens: (B, N) or (B, *grid) integers.
            layer: the block after which they are taken, 1 .. depth, or -1 .. -depth from the end; those of the last
                block are taken after the final norm.
            labels: (B,) int64, for `start_token` class.
        Returns:
            (B, P, D); position i has seen the tokens before the one that it predicts.
        Raises:
            InputError: no such layer, another number of tokens, labels missing or not asked for.
        """
        wanted = self.depth + 1 + layer if layer < 0 else layer
        if not 1 <= wanted <= self.depth:
            raise InputError(
                f"there is no layer {layer} in a model of {self.depth} blocks",
                f"give 1 to {self.depth}, or -1 to -{self.depth} from the end",
            )
        return self._hidden(self._flat(tokens)[:, :-1], labels, wanted)

    def block_outputs(self, tokens: Tensor, labels: Tensor | None = None) -> Iterator[Tensor]:
        """`features` of layers 1, 2, .. depth in turn, in one pass; the next block runs when it is asked for.

        Arguments and errors as of `features`.
        """
        x, table = self._embed(self._flat(tokens)[:, :-1], labels, 0)
        for k, block in enumerate(self.blocks, start=1):
            x = run_block(block, x, self.checkpointing, table=table)
            yield self.norm(x) if k == self.depth else x

    def new_cache(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> KVCache:
        """An empty cache for `advance`; where `device` or `dtype` are not given, those of the weights."""
        weight = self.head.weight
        size = (self.depth, batch, self.num_heads, self.num_positions, self.embed_dim // self.num_heads)
        return empty_cache(*size, device=torch.device(device or weight.device), dtype=dtype or weight.dtype)

    @torch.no_grad()
    def advance(self, tokens: Tensor, cache: KVCache, labels: Tensor | None = None) -> Tensor:
        """Take in some tokens, and score what comes after the last of them.

        Args:
            tokens: (B, n) integers, those that follow what the cache has seen. Where it is empty and the model has a
                start token, that is put in first, and n may be 0.
            cache: of B samples, see `new_cache`; it is longer by these tokens afterwards.
            labels: (B,) int64, for `start_token` class while the cache is empty.
        Returns:
            (B, K) scores.
        Raises:
            InputError: more tokens than the model has positions for, none at all, labels missing or not asked for.
        """
        if len(tokens) != cache.batch:
            raise ValueError(f"tokens of {len(tokens)} samples do not fit a cache of {cache.batch}")
        x, table = self._embed(tokens, labels, cache.length)
        for k, block in enumerate(self.blocks):
            x = block(x, table, cache.layer(k))
        cache.length += x.shape[1]
        return self.head(self.norm(x[:, -1]))

    def check(self, tokens: Tensor, labels: Tensor | None = None) -> None:
        """Raise `InputError` for tokens or labels that come from outside and do not fit this model.

        Looks at every number, which makes a GPU wait: for data at the border, not for the steps of a loop.

        Args:
            tokens: (B, *grid) whole grids, or (B, n) the first n tokens of them.
            labels: (B,).
        """
        if tokens.ndim == 2:
            self._check_length(tokens.shape[1], self.num_tokens)
        else:
            self._flat(tokens)
        check_vocabulary(tokens, self.vocab_size)
        self._check_labels(labels)
        if labels is not None and labels.numel():
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= self.num_classes:
                raise InputError(
                    f"label {high if high >= self.num_classes else low} is none of the {self.num_classes} classes",
                    f"give labels from 0 to {self.num_classes - 1}",
                )

    def _flat(self, tokens: Tensor) -> Tensor:
        """(B, N) of whole grids."""
        found = tuple(tokens.shape[1:])
        if found not in (self.grid, (self.num_tokens,)):
            raise InputError(
                f"tokens of {_size(found)} do not fit a model of {_size(self.grid)}",
                "use the tokenizer that the model was trained with",
            )
        return tokens.flatten(1)

    def _check_length(self, found: int, most: int) -> None:
        if found > most:
            raise InputError(
                f"{found} tokens are longer than the context of a model of {_size(self.grid)}, which takes {most}",
                "give fewer tokens, or use a model of a larger grid",
            )

    def _check_labels(self, labels: Tensor | None) -> None:
        if (labels is None) == (self.start == "class"):
            given, wanted = ("no label", "is") if labels is None else ("labels", "is not")
            fix = f"give labels from 0 to {self.num_classes - 1}" if labels is None else "leave them out"
            raise InputError(f"{given} given to a model that {wanted} conditioned on a class", fix)

    def _embed(self, tokens: Tensor, labels: Tensor | None, first: int) -> tuple[Tensor, Tensor | None]:
        """What enters the blocks from position `first` on, (B, n', D), and the rotary table of these positions."""
        x = self.tok_embed(tokens)
        if first == 0:
            self._check_labels(labels)
            if self.start == "learned":
                x = torch.cat([self.start_token.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
            elif self.start == "class":
                x = torch.cat([self.class_embed(labels).unsqueeze(1), x], dim=1)
        end = first + x.shape[1]
        if end > self.num_positions:
            started = int(self.start != "none")
            self._check_length(end - started, self.num_positions - started)
        if end == first:
            raise InputError("no token was given to a model without a start token", "give it the first one")
        if self.rotary is not None:
            return x, self.rotary[:, :, first:end]
        return x + self.pos_embed[:, first:end], None

    def _hidden(self, tokens: Tensor, labels: Tensor | None, layer: int) -> Tensor:
        """(B, n) first tokens -> (B, n', D) after block `layer`; after the last, normed."""
        x, table = self._embed(tokens, labels, 0)
        for k in range(layer):
            x = run_block(self.blocks[k], x, self.checkpointing, table=table)
        return self.norm(x) if layer == self.depth else x


def load_gpt(source: str | Path) -> tuple[GPT, dict[str, Any]]:
    """A trained GPT in eval mode, and its card.

    Args:
        source: a run folder, weights with their card beside them, or a checkpoint.
    Raises:
        InputError: nothing there, or no GPT.
    """
    return load_encoder(source, {"GPT": GPT})


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
