"""The linear probe with augmentation: every epoch sees other crops and mirror images, through the frozen encoder.

Cached features are of one view of each picture. Here the encoder, in eval mode and without gradients, computes the
features of a random resized crop of every picture anew in each epoch, and the linear layer is trained on those; it is
what most papers call the linear probe, and the costly one. Search and fit differ in their pictures, so they are two
trainings. Normalisation, the choice of the learning rate and the test are on the pictures as they are, from the cache.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch

from headcam.evaluation.features.augmented import AugmentedPictures
from headcam.evaluation.features.encoders import EncoderExtractor
from headcam.evaluation.heads.linear import LinearResult, choose_and_fit
from headcam.evaluation.heads.normalisation import Normalisation
from headcam.evaluation.heads.rows import evenly
from headcam.evaluation.labelled.sets import Picture
from headcam.evaluation.protocols import LinearProbe
from headcam.randomness import permuted


class AugmentedRows:
    """Batches of normalised features of random views, another view of each picture in each epoch.

    Args:
        views: of the training pictures.
        extractor: whose features they are.
        labels: (n,) int64; rows: (r,) of `views` that are used.
        normalisation: of the features; batches lie on its device.
        batch_size: the most pictures in a batch; seed: of their order.

    Attributes:
        normalisation, batch_size: as given; no more than there are rows.
        steps: batches in an epoch.
    """

    def __init__(
        self,
        views: AugmentedPictures,
        extractor: EncoderExtractor,
        labels: np.ndarray,
        rows: np.ndarray,
        normalisation: Normalisation,
        *,
        batch_size: int,
        seed: int,
    ):
        self._views, self._extractor, self._labels, self._rows, self._seed = views, extractor, labels, rows, seed
        self.normalisation, self.batch_size = normalisation, min(batch_size, len(rows))
        self.steps = -(-len(rows) // self.batch_size)

    def batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Normalised features with a column of ones (B, D + 1) float32, and labels (B,)."""
        n = len(self._rows)
        order = self._rows[permuted(np.arange(n), n, self._seed, f"linear probe with augmentation, epoch {epoch}")]
        bounds = evenly(n, self.steps)
        batches = [order[start:stop] for start, stop in pairwise(bounds)]
        at_once = self._extractor.batch_size
        parts = [batch[k : k + at_once] for batch in batches for k in range(0, len(batch), at_once)]
        pictures = self._views.iterate(parts, epoch)  # one after the other, decoded ahead
        for batch in batches:
            features = [
                self._extractor.compute(next(pictures).permute(0, 2, 3, 1).numpy())
                for _ in range(0, len(batch), at_once)
            ]
            labels = torch.from_numpy(self._labels[batch]).to(self.normalisation.device)
            yield self.normalisation(np.concatenate(features)), labels


def augmented_linear_probe(
    extractor: EncoderExtractor,
    pictures: Sequence[Picture],
    train: np.ndarray,
    train_labels: np.ndarray,
    selection: np.ndarray,
    test: np.ndarray,
    num_classes: int,
    protocol: LinearProbe,
    *,
    seed: int,
    device: str | torch.device = "cpu",
    description: str = "linear probe with augmentation",
    quiet: bool = False,
    all_rates: bool = False,
) -> LinearResult:
    """As `linear_probe`, trained on random views of `pictures`; all learning rates read the same views.

    Args:
        extractor: the frozen encoder.
        pictures: the n training pictures, all of which can be read.
        train: (n, D) features of them as they are: for the statistics, and for the choice on those set aside.
        train_labels: (n,) int64; selection: (n,) bool, True where a picture is set aside.
        test: (m, D) features.
        seed: of the views and of their order.
    Raises:
        DecodeError: a picture cannot be read; and what `linear_probe` raises.
    """
    views = AugmentedPictures(pictures, tuple(extractor.card["img_size"]), seed=seed)

    def batches_of(rows: np.ndarray, normalisation: Normalisation) -> AugmentedRows:
        return AugmentedRows(
            views, extractor, train_labels, rows, normalisation, batch_size=protocol.batch_size, seed=seed
        )

    return choose_and_fit(
        batches_of,
        train,
        train_labels,
        selection,
        test,
        num_classes,
        protocol,
        device=device,
        description=description,
        quiet=quiet,
        all_rates=all_rates,
    )
