"""Loaders: steps become sample numbers, errors arrive whole from workers, waiting is counted."""

from itertools import islice

import pytest
from torch.utils.data import Dataset

from headcam.errors import InputError
from headcam.video.loader import StepSampler, TimedLoader


def test_accumulation_counts_micro_steps():
    assert list(islice(StepSampler(2, 0, 1, lambda: 3 * 2), 2)) == [[12, 13], [14, 15]]


class Failing(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> int:
        if i == 2:
            raise InputError("picture 2 is broken", "mend it")
        return i


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_ours_arrives_as_it_was_raised(workers):
    loader = TimedLoader(Failing(), batch_size=2, num_workers=workers)
    with pytest.raises(InputError) as error:
        list(loader)
    assert str(error.value) == "picture 2 is broken. Fix: mend it"


def test_a_loader_counts_the_seconds_that_it_was_waited_for():
    loader = TimedLoader(range(4), batch_size=2)
    assert loader.wait_seconds == 0.0
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3]]
    assert loader.wait_seconds > 0
