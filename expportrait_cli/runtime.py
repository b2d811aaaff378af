"""What the machine gives this process: processors, a device, a thread that works ahead."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

END = object()


def cpu_count() -> int:
    """Count the processors that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def best_device() -> "torch.device":
    """Choose CUDA where torch finds it, otherwise the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def settle_threads() -> None:
    """Give torch the processors that this process may really use; call it before torch is imported.

    Threads that spin while they wait slow torch tenfold beside a busy neighbour, hence the passive wait.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(cpu_count()))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


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
