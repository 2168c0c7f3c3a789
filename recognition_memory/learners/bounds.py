"""What every learner is to be seen beside: a store of raw pixels, a score without memory, and a function of yours.

`PixelStore` finds every studied picture again as long as its pixels are the same, an upper bound; with degraded test
pictures or a bounded store it is the baseline that knows nothing of objects. `RandomScore` remembers nothing, a lower
bound: its accuracy shows how far chance carries with so many pairs. `FunctionLearner` scores by a plain function, for
models that are not of this house.

Shapes: B pictures of a batch, N tested, S studied; pixels are uint8 (N, 3, H, W) RGB.
"""

import importlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from headcam.errors import InputError
from headcam.randomness import hashed
from headcam.recognition_memory.learners.learner import Bound, Learner
from headcam.recognition_memory.learners.store import PictureStore, bound_of_store, picture_keys


class PixelStore(Learner):
    """Pictures in a store; the score is the mean squared difference to the nearest of them, in squared grey levels.

    While nothing is stored it is 255 squared, that of a picture as unlike as can be.

    Args:
        img_size: Pixels at which pictures are stored and compared, one side or [height, width].
        capacity: At most as many pictures are kept, a fair draw from all studied ones; null: all.
    Raises:
        InputError: a size or capacity below 1.
    """

    unit = "squared grey levels"

    def __init__(self, img_size: int | tuple[int, int] = 32, capacity: int | None = None):
        super().__init__()
        self.img_size = _sides(img_size)
        self._store = PictureStore(capacity)

    def begin(self, seed: int, pictures: Tensor) -> None:
        self._store.begin(seed, len(pictures))

    def study_loss(self, pixels: Tensor, rng: np.random.Generator) -> None:
        self._store.add(picture_keys(pixels), pixels.flatten(1))

    def scores(self, pixels: Tensor) -> Tensor:
        if not len(self._store.vectors):
            return torch.full((len(pixels),), 255.0**2, dtype=torch.float64)
        # All terms are whole numbers far below 2^53, so |a|^2 + |b|^2 - 2ab is exact, and 0 for equal pixels.
        tested, stored = pixels.cpu().flatten(1).double(), self._store.vectors.double()
        squares = [x.square().sum(dim=1) for x in (tested, stored)]
        distances = squares[0][:, None] + squares[1] - 2 * tested @ stored.T
        return distances.amin(dim=1) / tested.shape[1]

    def bound(self, test: str) -> Bound:
        return bound_of_store(self._store, test)

    def get_extra_state(self) -> dict[str, Tensor]:
        return self._store.state()

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        self._store.load(state)


class RandomScore(Learner):
    """A number uniform in [0, 1) for each picture, another one after every study: a lower bound.

    It follows from the seed, the pictures studied so far (whatever their order), and the picture's pixels. So it is
    independent between study sets and exposures, but for the exposure 0, where nothing tells sets apart.

    Args:
        img_size: Pixels of the pictures, one side or [height, width].
    Raises:
        InputError: a size below 1.
    """

    unit = "random number"

    def __init__(self, img_size: int | tuple[int, int] = 32):
        super().__init__()
        self.img_size = _sides(img_size)
        self._seed = self._studied = 0

    def begin(self, seed: int, pictures: Tensor) -> None:
        self._seed, self._studied = seed, 0

    def study_loss(self, pixels: Tensor, rng: np.random.Generator) -> None:
        self._studied += sum(picture_keys(pixels).tolist())

    def scores(self, pixels: Tensor) -> Tensor:
        drawn = hashed([picture_keys(pixels)], self._seed, f"random score after {self._studied}")
        return torch.from_numpy(drawn / 2.0**64)

    def bound(self, test: str) -> Bound:
        return "lower bound"

    def get_extra_state(self) -> dict[str, str]:
        return {"studied": str(self._studied)}  # grows beyond 64 bits

    def set_extra_state(self, state: dict[str, str]) -> None:
        self._studied = int(state["studied"])


class FunctionLearner(Learner):
    """Scores from a plain function of what was studied and what is tested.

    `f(studied, tested)` gets uint8 RGB arrays (S, H, W, 3), all pictures studied so far in the order of study (again
    for every exposure; S is 0 before study), and (N, H, W, 3), and returns (N,) numbers, lower for more familiar. It is
    called anew for every batch of tested pictures, and must not change what it gets.

    Args:
        function: Path of the function, such as `my_package.my_module.my_function`.
        img_size: Pixels of the pictures, one side or [height, width].
    Raises:
        InputError: no such function, or a size below 1; when it is called, another result than N finite numbers.
    """

    unit = "score of a function"

    def __init__(self, function: str, img_size: int | tuple[int, int] = 32):
        super().__init__()
        self.img_size = _sides(img_size)
        self._name, self._function = function, _imported(function)
        self.begin(0, torch.empty(0))

    def begin(self, seed: int, pictures: Tensor) -> None:
        self._rows: dict[int, int] = {}  # key of a picture -> its row in `_pictures`
        self._pictures: list[Tensor] = []  # every different one once, (3, H, W)
        self._order: list[int] = []  # rows, as studied
        self._studied: np.ndarray | None = None  # (S, H, W, 3), made when it is asked for

    def study_loss(self, pixels: Tensor, rng: np.random.Generator) -> None:
        self._studied = None
        for key, picture in zip(picture_keys(pixels).tolist(), pixels.cpu()):
            if key not in self._rows:
                self._rows[key] = len(self._pictures)
                self._pictures.append(picture)
            self._order.append(self._rows[key])

    def scores(self, pixels: Tensor) -> Tensor:
        if self._studied is None:
            self._studied = np.ascontiguousarray(self._stacked()[self._order].permute(0, 2, 3, 1).numpy())
        returned = self._function(self._studied, pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy())
        fix = "return a NumPy array of one finite number for each tested picture, lower for more familiar"
        try:
            scores = np.asarray(returned, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"{self._name} returned a {type(returned).__name__}: {error}", fix) from error
        if scores.shape != (len(pixels),):
            raise InputError(f"{self._name} returned the shape {scores.shape} for {len(pixels)} pictures", fix)
        bad = np.flatnonzero(~np.isfinite(scores))
        if bad.size:
            raise InputError(f"{self._name} returned {scores[bad[0]]} for tested picture {bad[0]} of a batch", fix)
        return torch.from_numpy(scores.copy())

    def get_extra_state(self) -> dict[str, Tensor]:
        return {"pictures": self._stacked(), "order": torch.tensor(self._order, dtype=torch.int64)}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        pictures = state["pictures"].cpu()
        self._pictures, self._studied = list(pictures), None
        self._rows = {key: row for row, key in enumerate(picture_keys(pictures).tolist())}
        self._order = state["order"].tolist()

    def _stacked(self) -> Tensor:
        return torch.stack(self._pictures) if self._pictures else torch.empty(0, 3, *self.img_size, dtype=torch.uint8)


def _sides(img_size: int | tuple[int, int]) -> tuple[int, int]:
    sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if len(sides) != 2 or min(sides) < 1:
        raise InputError(f"img_size is {img_size}", "give pixels from 1 on, one side or [height, width]")
    return sides


def _imported(path: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    module, _, name = path.rpartition(".")
    fix = "give the path of a function that Python can import, such as my_package.my_module.my_function"
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"the function {path!r} cannot be imported: {error}", fix) from error
    if not callable(function):
        raise InputError(f"{path!r} is a {type(function).__name__}, no function", fix)
    return function
