"""The next item is made while the present one is worked on."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(make: Callable[[int], T], begin: int, end: int) -> Iterator[tuple[int, T]]:
    """Yield numbers and what `make` gives for them, which a thread makes one ahead."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(make, begin) if begin < end else None
        for number in range(begin, end):
            assert coming is not None
            item = coming.result()
            coming = pool.submit(make, number + 1) if number + 1 < end else None
            yield number, item
