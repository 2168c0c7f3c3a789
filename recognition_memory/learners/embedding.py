"""Embeddings as memory: how far study has moved a picture's, or how near it is to those that were stored.

    EmbeddingChange   study goes on with the objective's own loss (DINO, MAE), and a picture is familiar where its
                      embedding has moved far from that of the weights before study
    EmbeddingStore    nothing is learned: embeddings of studied pictures are stored, and a picture is familiar where
                      one of them is near

Before study either score is the same for every picture: their raw and calibrated scores decide alike.

What `EmbeddingChange` measures is indirect. Weights that were changed by some pictures change the embedding of every
picture; those of studied ones move farther only as far as the change is about them. A single picture that is studied
for long moves farther than others; of dozens, tiny networks here showed none that could be told from chance.

`EmbeddingStore` without bound finds every studied picture again, whatever the encoder, as long as its pixels are the
same: that is no memory but a look-up, an upper bound, and labelled so. It becomes a test with degraded test pictures
(`headcam.recognition_memory.stimuli.variants`) or a bounded store.

Shapes: B pictures of a batch, N tested, n stored, D width of an embedding; pixels are uint8 (N, 3, H, W) RGB.
"""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headcam.errors import InputError
from headcam.evaluation.features.encoders import EncoderExtractor, load_frozen, random_twin
from headcam.evaluation.protocols import EncoderFeatures
from headcam.recognition_memory.learners.learner import Bound, Learner
from headcam.recognition_memory.learners.store import PictureStore, bound_of_store, picture_keys
from headcam.ssl.dino import DINO
from headcam.ssl.dino_network import DINONetwork
from headcam.ssl.mae import MAE
from headcam.ssl.restore import load_objective
from headcam.ssl.weights import state_hash
from headcam.video.datasets import item_of_views
from headcam.video.sampling.plan import draw_views
from headcam.video.sampling.views import ViewLaw
from headcam.video.transforms import crop_array

Pool = Literal["avg", "cls"]
Weights = Literal["trained", "random"]


class EmbeddingChange(Learner):
    """A trained objective goes on training on the studied pictures; the score is minus the way of the embedding.

    Views (crops, flips, colours, masks) are drawn by the objective's own laws. Of DINO the network that gradients move,
    the student, is compared to itself before study: the teacher trails behind it by its momentum and would show study
    late. Its schedules stand where training ended them (temperature at `teacher_temp`, prototypes free), except the
    teacher's momentum, which ends at 1, a teacher that stays: it goes on with `momentum_teacher`, where it began.
    Gradients are not clipped.

    Args:
        source: Run folder of `headcam fit` with DINO or MAE, or one of its checkpoints.
        weights: `trained`, those of the run; `random`, others for every seed, the control without pretraining.
        pool: What of the encoder is the embedding: `avg`, mean of the patches, or `cls`, the class token.
        scale: Area of crops as a fraction of the picture, where the objective leaves it to the data (MAE).
        flip: Probability of mirroring, where the objective leaves it to the data (MAE).
    Raises:
        InputError: nothing there that can be studied with; no class token to pool; a crop or flip out of range.
    """

    unit = "minus cosine distance"

    def __init__(
        self,
        source: str,
        weights: Weights = "trained",
        pool: Pool = "avg",
        scale: tuple[float, float] = (0.2, 1.0),
        flip: float = 0.5,
    ):
        super().__init__()
        objective, card = load_objective(source)
        if not isinstance(objective, (MAE, DINO)):
            raise InputError(
                f"{source} was trained with {objective.name}, whose loss needs more than a single picture",
                "give a run of MAE or DINO; EmbeddingStore takes whatever has an encoder",
            )
        if isinstance(objective, DINO):
            objective.warmup_teacher_temp_steps = objective.freeze_last_layer_steps = 0
        self.objective = objective
        self.weights = weights
        self.img_size = objective.img_size
        self.card = card if weights == "trained" else None
        self.origins = {"source": state_hash(objective.network)}
        self._embed = _Embedding({"name": str(source), **card}, pool)
        self._laws = tuple(law.with_defaults(tuple(scale), flip) for law in objective.views)
        # Not touched by study: what `begin` goes back to, and what embeddings are compared to.
        self.before = copy.deepcopy(objective.network).requires_grad_(False)
        self._embed.check(self.before.encoder)

    def begin(self, seed: int, pictures: Tensor) -> None:
        if self.weights == "random":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.before.load_state_dict(self.objective.build().state_dict())
        self.objective.network.load_state_dict(self.before.state_dict())

    def study_loss(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        batch = _views_of(pixels, self._laws, seed=int(rng.integers(1 << 62)))
        self.objective.train()
        return self.objective.losses(batch)["loss"]

    def after_update(self) -> None:
        if isinstance(self.objective, DINO):
            self.objective.network.update_center(self.objective.center_momentum)
            self.objective.network.update_teacher(self.objective.momentum_teacher)

    def scores(self, pixels: Tensor) -> Tensor:
        now, before = (self._embed(_moving(n), pixels) for n in (self.objective.network, self.before))
        # Of unit vectors, 1 - cos = |a - b|^2 / 2; this form keeps its digits where the two are close.
        return 0.0 - (now - before).square().sum(dim=1) / 2


class EmbeddingStore(Learner):
    """Embeddings of studied pictures in a store; the score is minus the cosine similarity to the nearest of them.

    The encoder is frozen, so one exposure is as good as many. While nothing is stored the score is 1, that of a picture
    as unlike as can be.

    Args:
        source: Run folder, weights with their card, or checkpoint: an encoder, a GPT or a tokenizer.
        weights: `trained`, those of the run; `random`, others for every seed, the control without pretraining (of a
            GPT its tokenizer is kept).
        pool: What of the encoder is the embedding: `avg`, mean of the patches, or `cls`, the class token.
        layer: Of a GPT or tokenizer, see `headcam.tokenizers.autoregression.encoder`; null: its default one.
        capacity: At most as many embeddings are kept, a fair draw from all studied ones; null: all.
    Raises:
        InputError: nothing there that pictures can be encoded by; no class token to pool; a capacity below 1.
    """

    unit = "minus cosine similarity"

    def __init__(
        self,
        source: str,
        weights: Weights = "trained",
        pool: Pool = "avg",
        layer: str | None = None,
        capacity: int | None = None,
    ):
        super().__init__()
        encoder, card = load_frozen(source, layer)
        self.encoder = encoder.requires_grad_(False)
        self.weights = weights
        self.img_size = tuple(card["img_size"])
        self.card = card if weights == "trained" else None
        self.origins = {"source": state_hash(self.encoder)}
        self._embed = _Embedding({"name": str(source), **card}, pool)
        self._embed.check(self.encoder)
        self._store = PictureStore(capacity)

    def begin(self, seed: int, pictures: Tensor) -> None:
        self._store.begin(seed, len(pictures))
        if self.weights == "random":
            self.encoder.load_state_dict(random_twin(self.encoder, self._embed.card, seed).state_dict())

    def study_loss(self, pixels: Tensor, rng: np.random.Generator) -> None:
        self._store.add(picture_keys(pixels), self._embed(self.encoder, pixels))

    def scores(self, pixels: Tensor) -> Tensor:
        stored = self._store.vectors
        if not len(stored):
            return torch.ones(len(pixels), dtype=torch.float64)
        return -(self._embed(self.encoder, pixels) @ stored.T).amax(dim=1)

    def bound(self, test: str) -> Bound:
        return bound_of_store(self._store, test)

    def get_extra_state(self) -> dict[str, Tensor]:
        return self._store.state()

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        self._store.load(state)


class _Embedding:
    """Pictures to unit vectors, as probes embed them (`EncoderExtractor`)."""

    def __init__(self, card: dict[str, Any], pool: Pool):
        self.card, self.protocol = card, EncoderFeatures(pool=pool)

    def check(self, encoder: nn.Module) -> None:
        """Refuse an encoder without what is to be pooled."""
        EncoderExtractor(encoder, self.card, self.protocol, "cpu")

    def __call__(self, encoder: nn.Module, pixels: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> (N, D) float64 of length 1, on the CPU."""
        extractor = EncoderExtractor(encoder, self.card, self.protocol, pixels.device)
        features = extractor.compute(pixels.permute(0, 2, 3, 1).cpu().numpy())
        return F.normalize(torch.from_numpy(features).double(), dim=1)


def _moving(network: nn.Module) -> nn.Module:
    """The encoder that gradients move."""
    return network.student_encoder if isinstance(network, DINONetwork) else network.encoder


def _views_of(pixels: Tensor, laws: Sequence[ViewLaw], seed: int) -> dict[str, Tensor]:
    """What a data set makes of pictures: `law.name` uint8 (B, 3, h, w) or (B, V, 3, h, w), `law.noise_key` float32.

    Args:
        pixels: uint8 (B, 3, H, W).
        laws: with nothing left open.
        seed: of all draws; picture b has the counter b.
    """
    items = [_item(picture, laws, seed, b) for b, picture in enumerate(pixels.permute(0, 2, 3, 1).cpu().numpy())]
    return {key: torch.stack([item[key] for item in items]).to(pixels.device) for key in items[0]}


def _item(picture: np.ndarray, laws: Sequence[ViewLaw], seed: int, counter: int) -> dict[str, Tensor]:
    height, width = picture.shape[:2]
    views = draw_views(laws, width, height, seed, counter)
    cuts = (crop_array(picture, view.crop, law.size, view.flip) for law, group in zip(laws, views) for view in group)
    return item_of_views(cuts, laws, views)
