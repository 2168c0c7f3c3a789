"""Protocols: what exactly was done to get a number, as frozen values with a name, a version and a hash.

Every number in `scores.csv` carries the label and the hash of its protocol. Two numbers may be compared where the
hashes are equal; where a setting differs, so does the hash. A change of the code that changes numbers without changing
a setting raises the protocol's version.
"""

from dataclasses import asdict, dataclass

from headcam.files import sha256_json


@dataclass(frozen=True)
class EncoderFeatures:
    """Frozen features of an encoder: resize, centre crop, one forward pass in eval mode, pool.

    The picture is scaled (bicubic, antialiased, up or down) so that it covers `resize_ratio` times the encoder's
    image size, then cropped in the middle: for 224 pixels the short side becomes 256, as in the evaluations of
    He et al. (2016) and most papers since. EXIF rotation is not applied, as in the usual ImageNet loaders.

    Attributes:
        pool: "avg", mean of the patch tokens, or "cls", the class token; both after the encoder's last norm.
    """

    pool: str = "avg"
    resize_ratio: float = 256 / 224
    interpolation: str = "bicubic, antialiased"
    dtype: str = "float16"
    name: str = "encoder-features"
    version: int = 1


@dataclass(frozen=True)
class PixelFeatures:
    """The baseline that needs no model: the whole picture, averaged over area to `side` x `side` x 3 values in [0, 1].

    The mean of the training pictures is taken off: all pixels are positive, and without that the cosine between any
    two pictures is close to 1. It makes the baseline stronger and does not change what a linear probe can reach.
    """

    side: int = 16
    centre: str = "mean of the training pictures removed"
    dtype: str = "float16"
    name: str = "pixel-features"
    version: int = 1


@dataclass(frozen=True)
class KNN:
    """Weighted k-nearest-neighbour vote of Wu et al. (2018), set as in the evaluation of DINO (Caron et al. 2021).

    Nothing is tuned: k and the temperature are fixed.
    """

    features: EncoderFeatures | PixelFeatures
    k: int = 20
    temperature: float = 0.07
    similarity: str = "cosine"
    name: str = "knn"
    version: int = 1

    @property
    def metric(self) -> str:
        """Stem of its metrics' names, such as `knn/k20_T0.07`."""
        return f"knn/k{self.k}_T{self.temperature:g}"


@dataclass(frozen=True)
class LinearProbe:
    """Batch normalisation without affine parameters, then one linear layer, on frozen features.

    Attributes:
        base_lr_per_256: learning rates that are tried, for a batch of 256; the actual one is rate x batch / 256.
        epochs: passes over the training set, the same in the search and in the final fit.
        batch_size: pictures a step (all of them where there are fewer).
        momentum: of stochastic gradient descent; no weight decay (He et al. 2022, appendix A.1).
        eps: added to the variance in the normalisation.
        selection: the part of the training set that the learning rate is chosen on.
    """

    features: EncoderFeatures | PixelFeatures
    base_lr_per_256: tuple[float, ...] = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)
    epochs: int = 50
    batch_size: int = 256
    momentum: float = 0.9
    schedule: str = "cosine to 0, each step"
    eps: float = 1e-6
    normalisation: str = "mean and variance of the training set"
    start: str = "zeros"
    selection: str = "first fifth of each class by SHA-256 of content"
    name: str = "linear"
    version: int = 1

    @property
    def metric(self) -> str:
        """Stem of its metrics' names."""
        return "linear"


@dataclass(frozen=True)
class Chance:
    """What guessing gets: every class with the same probability, exact, no interval."""

    rule: str = "uniform guess"
    name: str = "chance"
    version: int = 1


Protocol = EncoderFeatures | PixelFeatures | KNN | LinearProbe | Chance


def label(protocol: Protocol) -> str:
    """Name and version, such as `linear-v1`."""
    return f"{protocol.name}-v{protocol.version}"


def protocol_hash(protocol: Protocol) -> str:
    """SHA-256 over all settings, those of the features included."""
    return sha256_json(asdict(protocol))
