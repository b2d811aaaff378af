"""What a run stands on: processors, a device, a thread that works ahead, and how it says how far it has come."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
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
    """Give torch the processors that this process may really use; call it before torch and numpy are imported.

    Threads that spin while they wait slow torch tenfold beside a busy neighbour, hence the passive wait. The linear
    algebra of numpy and scipy gets one: its sums depend on how many threads share them, and its matrices are small.
    That of torch is asked for the same sums whatever their number, and wherever the numbers lie in memory.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(cpu_count()))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


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


Progress = Callable[[int, int | None], None]
"""Called with the number of finished steps and the number of all steps, None where that is not known."""

Stage = Callable[[str], Progress]
"""Begin a stage of this name; the result is called as the stage goes on."""


def silent(name: str) -> Progress:
    """Begin a stage that nobody watches."""
    return lambda done, total: None


def counted(items: Iterable[T], total: int | None, progress: Progress) -> Iterator[T]:
    """Yield the items, and report each one once it was used."""
    for done, item in enumerate(items, 1):
        yield item
        progress(done, total)


class Stages:
    """Stages of one run, one after the other: each is announced, and the seconds that it took are kept."""

    def __init__(self, begin: Stage = silent) -> None:
        """`begin` is told the name of each stage that really runs."""
        self._begin = begin
        self.seconds: dict[str, float] = {}
        """By name, in the order of running; what was read from an earlier run is absent."""

    def run(self, name: str, work: Callable[[Progress], T]) -> T:
        """Run one stage; `work` is given what to report its progress to."""
        progress, since = self._begin(name), perf_counter()
        done = work(progress)
        self.seconds[name] = round(self.seconds.get(name, 0.0) + perf_counter() - since, 3)
        return done
