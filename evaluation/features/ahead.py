"""Loading in threads, one batch ahead of whoever computes on it; Pillow and FFmpeg work without Python's lock."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item, Loaded = TypeVar("Item"), TypeVar("Loaded")
_THREADS = min(8, os.cpu_count() or 1)


def loaded_ahead(batches: Iterable[Sequence[Item]], load: Callable[[Item], Loaded]) -> Iterator[list[Loaded]]:
    """`[load(item) for item in batch]` of each batch in turn, while the next one is being loaded.

    What `load` raises is raised where its batch would be given. Results do not depend on the number of threads.
    """
    pool = ThreadPoolExecutor(_THREADS)
    try:
        ahead = None
        for batch in batches:
            futures = [pool.submit(load, item) for item in batch]
            if ahead is not None:
                yield [future.result() for future in ahead]
            ahead = futures
        if ahead is not None:
            yield [future.result() for future in ahead]
    finally:
        pool.shutdown(cancel_futures=True)  # who stops early does not wait for what nobody wants
