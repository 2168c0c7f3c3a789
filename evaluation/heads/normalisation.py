"""What stands before the linear layer: features made comparable by the exact statistics of a training set.

| normalisation | each picture's features x become | after it, over the training set |
| --- | --- | --- |
| batchnorm | (x - mean) / sqrt(variance + eps), feature by feature | mean 0, variance 1 |
| whitening | (x - mean) V (Λ + eps λ̄)^-1/2 Vᵀ with covariance V Λ Vᵀ, λ̄ the mean of Λ | also uncorrelated |

The first is batch normalisation without affine parameters, as He et al. (2022, appendix A.1) put it before the layer.
The features are frozen, so the mean and variance that running averages of batch statistics would drift toward are known
before training: it is the classifier that BatchNorm has become when its momentum goes to zero, without the noise of
batches and without a gap between training and test.

Features of real encoders vary a hundred times more in some directions than in others, and gradient descent spends its
passes on the small ones. Whitening (the symmetric form, ZCA: Bell and Sejnowski 1997) makes all directions alike, so
that a few passes are enough. It does not change which classifiers a linear layer can be, only how soon it is there and
what weight decay means. A direction in which the training set does not vary is left out.
"""

from dataclasses import dataclass

import numpy as np
import torch

from headcam.errors import InputError
from headcam.evaluation.protocols import LinearProbe

READ_ROWS = 4096  # rows of a table converted at a time
_ROUNDING = 1e-20  # variance as a share of the squared mean, below which values in float64 are equal
_SINGULAR = 1e-12  # eigenvalue as a share of the largest, below which it is rounding


@dataclass(frozen=True)
class Moments:
    """Number, mean and scatter of some rows, in float64; of two disjoint sets they can be `merged`.

    Attributes:
        n: rows.
        mean: (D,).
        scatter: sum of squared deviations from the mean (D,), or of their products (D, D).
    """

    n: int
    mean: torch.Tensor
    scatter: torch.Tensor

    @classmethod
    def of(
        cls, features: np.ndarray, rows: np.ndarray, *, products: bool, device: str | torch.device = "cpu"
    ) -> "Moments":
        """Those of `features[rows]`, in one pass, block by block (Chan, Golub and LeVeque 1983).

        Args:
            features: (n, D), any float type, may be memory-mapped.
            rows: (r,) row numbers, at least one; ascending is fastest.
            products: whether the scatter is (D, D).
        Raises:
            InputError: a feature is not finite.
        """
        total = None
        for start in range(0, len(rows), READ_ROWS):
            block = as_tensor(features[rows[start : start + READ_ROWS]], torch.float64, device)
            mean = block.mean(dim=0)
            if not torch.isfinite(mean).all():
                raise _not_finite(block, rows[start : start + READ_ROWS])
            block -= mean
            scatter = block.T @ block if products else block.square_().sum(dim=0)
            found = cls(len(block), mean, scatter)
            total = found if total is None else total.merged(found)
        return total

    def merged(self, other: "Moments") -> "Moments":
        """The moments of both sets of rows together."""
        n = self.n + other.n
        apart = other.mean - self.mean
        between = torch.outer(apart, apart) if self.scatter.ndim == 2 else apart.square()
        return Moments(
            n,
            self.mean + apart * (other.n / n),
            self.scatter + other.scatter + between * (self.n * other.n / n),
        )


@dataclass(frozen=True)
class Normalisation:
    """An affine map of features, by the moments of a training set.

    Attributes:
        mean: (D,) float32.
        scale: (D,) float32, a factor for each feature (batchnorm), or (D, D), symmetric (whitening).
    """

    mean: torch.Tensor
    scale: torch.Tensor

    @classmethod
    def of(cls, moments: Moments, protocol: LinearProbe) -> "Normalisation":
        """That of `protocol`, on the device of the moments; variances are those of the population (divided by n).

        Raises:
            InputError: no feature differs between the rows.
        """
        whitening = moments.scatter.ndim == 2
        variance = (moments.scatter.diagonal() if whitening else moments.scatter) / moments.n
        if not (variance > _ROUNDING * moments.mean.square()).any():
            raise InputError(
                f"features do not differ between the {moments.n} pictures: there is nothing to read classes from",
                "check the encoder's weights and that the pictures differ",
            )
        if whitening:
            # On the CPU: the same on every device, and a matter of a second at most.
            share, directions = torch.linalg.eigh((moments.scatter / moments.n).cpu())
            factor = (share + protocol.eps * share.mean()).rsqrt()
            factor[share <= _SINGULAR * share[-1]] = 0
            scale = (directions * factor) @ directions.T
            scale = ((scale + scale.T) / 2).to(moments.mean.device)
        else:
            scale = (variance + protocol.eps).rsqrt()
        return cls(moments.mean.float(), scale.float())

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def to(self, device: str | torch.device) -> "Normalisation":
        """The same on another device."""
        return Normalisation(self.mean.to(device), self.scale.to(device))

    def __call__(self, features: np.ndarray | torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Features (B, D) of any float type, normalised, with a last column of ones: (B, D + 1) float32.

        The ones make the bias of a linear layer one more weight.
        """
        x = as_tensor(features, torch.float32, self.device) - self.mean
        if out is None:
            out = torch.empty(len(x), x.shape[1] + 1, device=self.device)
        out[:, -1] = 1
        inner = out[:, :-1]
        if self.scale.ndim == 2:
            torch.mm(x, self.scale, out=inner)
        else:
            torch.mul(x, self.scale, out=inner)
        return out


def as_tensor(features: np.ndarray | torch.Tensor, dtype: torch.dtype, device: str | torch.device) -> torch.Tensor:
    """Rows of a table as a tensor of another type; never a view of a file."""
    if isinstance(features, np.ndarray):
        features = torch.from_numpy(features if features.flags.writeable else features.copy())
    return features.to(device).to(dtype)


def _not_finite(block: torch.Tensor, rows: np.ndarray) -> InputError:
    bad = rows[int((~torch.isfinite(block)).any(dim=1).nonzero()[0])]
    return InputError(
        f"features of picture {bad} are not finite (NaN or infinity)",
        "check the weights for NaN, and remove the cached features",
    )
