"""The data module: batches follow from the step, errors arrive whole from workers, bad sources are named."""

from itertools import chain, islice
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset

from headcam.errors import InputError
from headcam.video.data_module import FrameDataModule, StepSampler, TimedLoader


def module(stores, step=0, rank=0, world_size=1, accumulate=1, num_patches=16, **settings) -> FrameDataModule:
    """A data module beside a trainer that stands at `step`."""
    data = FrameDataModule([str(stores[0])], [str(stores[1])], **({"batch_size": 4, "num_workers": 0} | settings))
    data.trainer = SimpleNamespace(
        lightning_module=SimpleNamespace(img_size=(32, 32), num_patches=num_patches),
        global_step=step,
        global_rank=rank,
        world_size=world_size,
        accumulate_grad_batches=accumulate,
    )
    data.setup("fit")
    return data


def noises(batches) -> list[tuple[float, ...]]:
    """What identifies a sample."""
    return [tuple(row) for batch in batches for row in batch["noise"].tolist()]


def test_a_loader_that_starts_at_a_step_goes_on_as_one_that_never_stopped(stores):
    straight = list(islice(module(stores).train_dataloader(), 30))  # 40 frames, 4 a batch: three epochs
    resumed = list(islice(module(stores, step=13).train_dataloader(), 17))
    for a, b in zip(straight[13:], resumed, strict=True):
        assert torch.equal(a["image"], b["image"]) and torch.equal(a["noise"], b["noise"])
    assert a["image"].shape == (4, 3, 32, 32) and a["image"].dtype == torch.uint8


def test_two_processes_share_the_global_batches_of_one(stores):
    one = noises(islice(module(stores, step=3, batch_size=8).train_dataloader(), 5))
    two = [noises(islice(module(stores, step=3, rank=rank, world_size=2).train_dataloader(), 5)) for rank in range(2)]
    for k in range(5):
        assert one[8 * k : 8 * k + 8] == [*two[0][4 * k : 4 * k + 4], *two[1][4 * k : 4 * k + 4]]


def test_accumulation_counts_micro_steps():
    assert list(islice(StepSampler(2, 0, 1, lambda: 3 * 2), 2)) == [[12, 13], [14, 15]]


def test_validation_is_split_over_processes_without_padding_and_free_of_the_seed(stores):
    alone = noises(module(stores).val_dataloader())
    assert len(alone) == 10 and len(set(alone)) == 10
    split = [noises(module(stores, rank=rank, world_size=3, seed=5).val_dataloader()) for rank in range(3)]
    assert [len(part) for part in split] == [4, 3, 3]
    assert sorted(chain(*split)) == sorted(alone)


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


def test_recordings_on_both_sides_are_refused(stores):
    data = FrameDataModule([str(stores[0])], [str(stores[0])], num_workers=0)
    data.trainer = module(stores).trainer
    with pytest.raises(InputError, match=r"40 recordings stand in data.train and in data.val, first [0-9a-f]{16}"):
        data.setup("fit")


@pytest.mark.parametrize(
    "change, telling",
    [
        ({"train": []}, "names no source"),
        ({"train": ["nowhere"]}, "nowhere does not exist. Fix: make a frame store"),
        ({"val": ["nowhere"]}, "nowhere does not exist"),
        ({"scale": (0.0, 1.0)}, "crop scale"),
        ({"flip": 2.0}, "flip is 2.0"),
        ({"batch_size": 0}, "data.batch_size is 0"),
        ({"num_workers": -1}, "data.num_workers is -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(stores, change, telling):
    with pytest.raises(InputError, match=telling):
        data = FrameDataModule(**({"train": [str(stores[0])], "val": None} | change))
        data.trainer = module(stores).trainer
        data.setup("fit")


def test_a_folder_that_is_no_store_is_named(stores, tmp_path):
    data = FrameDataModule([str(tmp_path)])
    data.trainer = module(stores).trainer
    with pytest.raises(InputError, match="holds no frame store"):
        data.setup("fit")
