"""The next items are made while the present one is worked on."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

END = object()


def read_ahead(items: Iterable[T], depth: int) -> Iterator[T]:
    """Yield items, of which a thread makes up to `depth` before they are asked for.

    What goes wrong in making one is raised where it would have been yielded. Whoever leaves off waits for the one that
    is being made.
    """
    source = iter(items)
    with ThreadPoolExecutor(1) as pool:
        coming: deque[Future] = deque(pool.submit(next, source, END) for _ in range(depth))
        try:
            while (item := coming.popleft().result()) is not END:
                coming.append(pool.submit(next, source, END))
                yield item
        finally:
            for future in coming:
                future.cancel()


def ahead(make: Callable[[int], T], begin: int, end: int) -> Iterator[tuple[int, T]]:
    """Yield numbers and what `make` gives for them, which a thread makes one ahead."""
    return zip(range(begin, end), read_ahead(map(make, range(begin, end)), 1), strict=True)
