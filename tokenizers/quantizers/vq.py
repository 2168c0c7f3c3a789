"""Vector quantization: the nearest of K learned codes (van den Oord et al. 2017, "Neural discrete representation
learning"), with a codebook that learns by gradients or by moving averages.

What keeps codes in use, each by itself an option, all on by default:
- codes of few dimensions on the unit sphere (`code_dim`, `l2_normalize`; Yu et al. 2022, "Vector-quantized image
  modeling with improved VQGAN", section 3.2);
- k-means: after the first training step the codes take their places among its latents (`kmeans`);
- revival: a code that is used less than a tenth as often as the mean one moves to a latent of the step at hand
  (`threshold_ema_dead_code`; as in Dhariwal et al. 2020, "Jukebox", section 3.1, but by share of use).
`rotation_trick` exchanges the straight-through gradient for a rotated one (Fifty et al. 2024).

Codes move in `after_step` (`headcam.tokenizers.quantizers.latents`).

Shapes: M places of a batch, K codes, d their width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import distribute_tensor

from headcam.errors import InputError
from headcam.randomness import stream
from headcam.ssl.training.distributed import is_sharded, whole
from headcam.tokenizers.quantizers.latents import LearnsFromLatents, StepLatents, k_means_places
from headcam.tokenizers.quantizers.nearest import nearest_code
from headcam.tokenizers.quantizers.projected import ProjectedQuantizer
from headcam.tokenizers.quantizers.quantizer import straight_through

_USAGE_DECAY = 0.99  # of the gradient codebook's record of use; EMAVQ has its own
_SEED = 0  # of what is drawn here; what is drawn from differs by run


class _RotationTrick(torch.autograd.Function):
    """`codes` bit for bit; backward turns the gradient by the rotation (and scaling) that takes each code to its row.

    With unit vectors r and c of row and code and w that between them, the code is |code| / |row| * R row, where
    R x = x - 2 (x.w) w + 2 (x.r) c is held constant (Fifty et al. 2024, "Restructuring vector quantization with the
    rotation trick", section 4.2).
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, codes: Tensor) -> Tensor:
        ctx.save_for_backward(rows, codes)
        return codes.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        rows, codes = ctx.saved_tensors
        scale = codes.norm(dim=1, keepdim=True) / rows.norm(dim=1, keepdim=True).clamp(min=1e-6)
        r, c = F.normalize(rows, dim=1, eps=1e-6), F.normalize(codes, dim=1, eps=1e-6)
        w = F.normalize(r + c, dim=1, eps=1e-6)
        along_w, along_c = ((gradient * unit).sum(1, keepdim=True) for unit in (w, c))
        return scale * (gradient - 2 * along_w * w + 2 * along_c * r), None


class _VQ(LearnsFromLatents, ProjectedQuantizer):
    """What both ways of learning a codebook share: nearest code, gradient of the latents, start and revival.

    A subclass makes `codebook` and implements `_start` and `_follow`.
    """

    codebook: Tensor

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        *,
        code_dim: int | None,
        l2_normalize: bool,
        commitment_weight: float,
        kmeans: bool,
        threshold_ema_dead_code: float,
        rotation_trick: bool,
        **options: Any,
    ):
        _check(
            codebook_size=codebook_size,
            code_dim=code_dim,
            commitment_weight=commitment_weight,
            threshold_ema_dead_code=threshold_ema_dead_code,
        )
        super().__init__(
            codebook_size,
            dim,
            dim if code_dim is None else code_dim,
            l2_normalize=l2_normalize,
            commitment_weight=commitment_weight,
            kmeans=kmeans,
            threshold_ema_dead_code=threshold_ema_dead_code,
            rotation_trick=rotation_trick,
            **options,
        )
        self.arguments["code_dim"] = code_dim
        self.l2_normalize, self.commitment_weight = l2_normalize, commitment_weight
        self.threshold_ema_dead_code, self.rotation_trick = threshold_ema_dead_code, rotation_trick
        self._keep_latents(kmeans)

    def _random_codes(self) -> Tensor:
        """(K, d) to start from: on the unit sphere, or near zero as in the published code."""
        if self.l2_normalize:
            return F.normalize(torch.randn(self.codebook_size, self.code_dim), dim=1)
        return torch.empty(self.codebook_size, self.code_dim).uniform_(-1 / self.codebook_size, 1 / self.codebook_size)

    def codes(self) -> Tensor:
        """What the tokens stand for, before the way up: (K, d)."""
        return F.normalize(self.codebook, dim=1) if self.l2_normalize else self.codebook

    def lookup(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.codes())

    def round(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.l2_normalize:
            rows = F.normalize(rows, dim=1)
        codebook = self.codes()
        indices = nearest_code(rows.detach(), codebook.detach())
        codes = F.embedding(indices, codebook)
        if self.training:
            self._note(rows.detach(), indices)
        gradient = _RotationTrick.apply if self.rotation_trick else straight_through
        return gradient(rows, codes.detach()), indices, self._loss(rows, codes)

    def _loss(self, rows: Tensor, codes: Tensor) -> Tensor:
        return self.commitment_weight * F.mse_loss(rows, codes.detach())

    def _learns_from_latents(self) -> bool:
        return self.threshold_ema_dead_code > 0 or super()._learns_from_latents()

    def _place(self, latents: StepLatents) -> None:
        """Codes that got no place stay where they are, without any use on record: revival is next."""
        centres, found = k_means_places(latents, self.codebook_size)
        codebook = whole(self.codebook).detach().clone()
        counts = codebook.new_zeros(self.codebook_size)
        codebook[: len(centres)] = F.normalize(centres, dim=1) if self.l2_normalize else centres
        counts[: len(centres)] = found
        self._start(codebook, counts)

    def _start(self, codebook: Tensor, counts: Tensor) -> None:
        """Take the first codes, (K, d), and how many of a step's latents are nearest to each, (K,)."""
        raise NotImplementedError

    def _revive(self, latents: StepLatents, step: int, usage: Tensor) -> tuple[Tensor, Tensor]:
        """Which codes get a new place, (K,) bool, and the places, (K, d), given each one's use over the mean one's.

        Places are different latents of the step; where there are more dead codes than latents, the rest has to wait.
        """
        dead = usage < self.threshold_ema_dead_code
        places = latents.rows(stream(_SEED, "code revival", step).permutation(len(latents))[: self.codebook_size])
        turn = dead.cumsum(0) - 1
        return dead & (turn < len(places)), places[turn.clamp(0, len(places) - 1)]


class GradientVQ(_VQ):
    """VQ whose codes are weights that the optimizer trains (van den Oord et al. 2017, equation 3; Esser et al. 2021).

    With `code_dim=None, l2_normalize=False`, the quantizer of the published VQGANs; with `kmeans=False` and
    `threshold_ema_dead_code=0` too, `codebook` is its whole state.

    Args:
        codebook_size: K.
        dim: D of the latents.
        code_dim: d, width in which codes are compared; null: D, without linear layers.
        l2_normalize: compare directions only: latents and codes have length 1.
        commitment_weight: of the term that draws latents to their codes.
        codebook_weight: of the term that draws codes to their latents, above 0.
        kmeans: place the codes by k-means after the first step.
        threshold_ema_dead_code: use, as a fraction of the mean code's, below which a code is moved; 0: never.
        rotation_trick: gradient of the latents by rotation instead of straight through.

    Attributes:
        codebook: (K, d), a parameter.
        usage: (K,) buffer, where there is revival: moving average of each code's use over the mean one's.
        initialized: int64 buffer, where there is k-means: whether it was done.
    """

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        code_dim: int | None = 8,
        l2_normalize: bool = True,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        kmeans: bool = True,
        threshold_ema_dead_code: float = 0.1,
        rotation_trick: bool = False,
    ):
        if not codebook_weight > 0:
            raise InputError(
                f"codebook_weight is {codebook_weight}", "give a number above 0, or take the quantizer ema"
            )
        super().__init__(
            codebook_size,
            dim,
            code_dim=code_dim,
            l2_normalize=l2_normalize,
            commitment_weight=commitment_weight,
            codebook_weight=codebook_weight,
            kmeans=kmeans,
            threshold_ema_dead_code=threshold_ema_dead_code,
            rotation_trick=rotation_trick,
        )
        self.codebook_weight = codebook_weight
        self.codebook = nn.Parameter(self._random_codes())
        if threshold_ema_dead_code:
            self.register_buffer("usage", torch.ones(codebook_size))

    def _loss(self, rows: Tensor, codes: Tensor) -> Tensor:
        return super()._loss(rows, codes) + self.codebook_weight * F.mse_loss(codes, rows.detach())

    def _start(self, codebook: Tensor, counts: Tensor) -> None:
        self._set_codebook(codebook)
        if self.threshold_ema_dead_code:
            self.usage.copy_(counts > 0)

    def _follow(self, latents: StepLatents, step: int, skip: Tensor) -> None:
        counts = latents.counts(self.codebook_size)
        usage = torch.lerp(counts * (self.codebook_size / len(latents)), self.usage, _USAGE_DECAY)
        revived, places = self._revive(latents, step, usage)
        usage = usage.masked_fill(revived, 1.0)
        codebook = whole(self.codebook)
        self._set_codebook(torch.where((revived & ~skip)[:, None], places, codebook))
        self.usage.copy_(torch.where(skip, self.usage, usage))

    def _set_codebook(self, value: Tensor) -> None:
        if is_sharded(self.codebook):
            value = distribute_tensor(value, self.codebook.device_mesh, self.codebook.placements)
        self.codebook.copy_(value)

    def _records_of(self, codebook: Tensor) -> dict[str, Tensor]:
        usage = {"usage": codebook.new_ones(len(codebook))} if "usage" in self._buffers else {}
        return super()._records_of(codebook) | usage


class EMAVQ(_VQ):
    """VQ whose codes are moving averages of their latents (van den Oord et al. 2017, appendix A.1).

    Args:
        codebook_size, dim, code_dim, l2_normalize, commitment_weight, kmeans, threshold_ema_dead_code, rotation_trick:
            see `GradientVQ`.
        decay: what the averages keep of themselves in a step (published: 0.99).
        eps: Laplace smoothing of the counts.

    Attributes:
        codebook: (K, d) buffer; no gradient.
        cluster_size: (K,) buffer, moving average of the latents of a step nearest to each code.
        embed_avg: (K, d) buffer, moving average of their sum.
        initialized: int64 buffer, where there is k-means: whether it was done.
    """

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        code_dim: int | None = 8,
        l2_normalize: bool = True,
        commitment_weight: float = 0.25,
        decay: float = 0.99,
        eps: float = 1e-5,
        kmeans: bool = True,
        threshold_ema_dead_code: float = 0.1,
        rotation_trick: bool = False,
    ):
        if not 0 <= decay < 1:
            raise InputError(f"decay is {decay}", "give a number in [0, 1), such as 0.99")
        if not eps > 0:
            raise InputError(f"eps is {eps}", "give a number above 0, such as 1e-5")
        super().__init__(
            codebook_size,
            dim,
            code_dim=code_dim,
            l2_normalize=l2_normalize,
            commitment_weight=commitment_weight,
            decay=decay,
            eps=eps,
            kmeans=kmeans,
            threshold_ema_dead_code=threshold_ema_dead_code,
            rotation_trick=rotation_trick,
        )
        self.decay, self.eps = decay, eps
        self.register_buffer("codebook", self._random_codes())
        self.register_buffer("cluster_size", torch.ones(codebook_size))
        self.register_buffer("embed_avg", self.codebook.clone())

    def _learns_from_latents(self) -> bool:
        return True

    def _start(self, codebook: Tensor, counts: Tensor) -> None:
        self.codebook.copy_(codebook)
        self.cluster_size.copy_(counts)
        self.embed_avg.copy_(codebook * counts[:, None])

    def _follow(self, latents: StepLatents, step: int, skip: Tensor) -> None:
        counts, sums = latents.counts(self.codebook_size), latents.sums(self.codebook_size)
        cluster_size = torch.lerp(counts, self.cluster_size, self.decay)
        embed_avg = torch.lerp(sums, self.embed_avg, self.decay)
        total = cluster_size.sum()
        smoothed = (cluster_size + self.eps) / (total + self.codebook_size * self.eps) * total
        codebook = embed_avg / smoothed[:, None]
        if self.l2_normalize:
            codebook = F.normalize(codebook, dim=1)
        if self.threshold_ema_dead_code:
            mean = cluster_size.mean()
            revived, places = self._revive(latents, step, cluster_size / mean)
            cluster_size = torch.where(revived, mean, cluster_size)
            codebook = torch.where(revived[:, None], places, codebook)
            embed_avg = torch.where(revived[:, None], places * mean, embed_avg)
        for own, new in ((self.codebook, codebook), (self.cluster_size, cluster_size), (self.embed_avg, embed_avg)):
            own.copy_(torch.where(skip, own, new))

    def _records_of(self, codebook: Tensor) -> dict[str, Tensor]:
        averages = {"cluster_size": codebook.new_ones(len(codebook)), "embed_avg": codebook.clone()}
        return super()._records_of(codebook) | averages


def _check(**options: float | None) -> None:
    """Refuse values that no VQ can work with."""
    for name in ("codebook_size", "code_dim"):
        if options[name] is not None and options[name] < 1:
            raise InputError(f"{name} is {options[name]}", "give a number from 1 on")
    if options["commitment_weight"] < 0:
        raise InputError(
            f"commitment_weight is {options['commitment_weight']}", "give a number from 0 on, such as 0.25"
        )
    if not 0 <= options["threshold_ema_dead_code"] < 1:
        raise InputError(
            f"threshold_ema_dead_code is {options['threshold_ema_dead_code']}",
            "give the least use of a code as a fraction of the mean one's, such as 0.1; 0 moves none",
        )
