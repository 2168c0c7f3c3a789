"""Loading ahead: order, errors where they belong, and no work that nobody waits for."""

import threading
import time

import pytest

from headcam.evaluation.features.ahead import loaded_ahead


def test_batches_come_in_order_whatever_finishes_first():
    def load(k: int) -> int:
        time.sleep(0.002 * (5 - k % 5))
        return 10 * k

    batches = [range(0, 5), range(5, 7), range(7, 7), range(7, 12)]
    assert list(loaded_ahead(batches, load)) == [[10 * k for k in batch] for batch in batches]
    assert list(loaded_ahead([], load)) == []


def test_the_next_batch_is_loaded_while_this_one_is_worked_on():
    started = threading.Event()
    batches = loaded_ahead([[0], [1], [2]], lambda k: started.set() if k == 1 else None)
    next(batches)
    assert started.wait(5)
    batches.close()


def test_an_error_is_raised_at_its_own_batch_and_ends_the_threads():
    def load(k: int) -> int:
        if k == 1:
            raise ValueError("one")
        return k

    before = threading.active_count()
    batches = loaded_ahead([[0], [1], [2]], load)
    assert next(batches) == [0]
    with pytest.raises(ValueError, match="one"):
        next(batches)
    assert threading.active_count() == before


def test_who_stops_early_waits_for_nothing():
    loaded = []

    def load(k: int) -> None:
        time.sleep(0.01)
        loaded.append(k)

    batches = loaded_ahead([[0], list(range(1, 500))], load)
    next(batches)
    batches.close()
    assert len(loaded) < 100
