"""Basics of every run: checked settings, processor threads, the device, a prefetching thread, progress reports."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import islice
from math import inf, isfinite
from numbers import Integral, Real
from threading import Event, RLock
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from expportrait_cli.errors import UsageError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")

END = object()
MOST_AT_ONCE = 4
"""Most items that are made at once: each holds pictures."""


def cpu_count() -> int:
    """Count the processors that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Shield:
    """Short moments that no signal may cut in two, such as that between a file's making and its noting.

    Whoever handles signals waits while one `is_up`, and sets what is called at its end.
    """

    is_up = False
    at_end: Callable[[], None] = staticmethod(lambda: None)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold it up; not within itself."""
        self.is_up = True
        try:
            yield
        finally:
            self.is_up = False
        self.at_end()


shield = Shield()


DEVICE = "EXPPORTRAIT_DEVICE"
"""Names the device of a run, for the processes that it starts too: auto, cpu, cuda, or cuda:N."""


def best_device() -> "torch.device":
    """The device of this run: the one that was chosen, else CUDA where torch finds it, otherwise the CPU.

    Raises:
        UsageError: torch finds no such device.
    """
    import torch

    name = os.environ.get(DEVICE) or "auto"
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, index = name.partition(":")
    is_known = name == "cpu" or (kind == "cuda" and (not colon or index.isdecimal()))
    if not is_known:
        raise UsageError(f"`device={name[:60]}`: expected auto, cpu, cuda, or cuda:N for the N-th GPU from 0.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(index or 0) >= count:
        raise UsageError(
            f"`device={name}`: torch {torch.__version__} finds {count or 'no'} GPU{'s' * (count != 1)}. Choose "
            "`device=auto`, or install torch for CUDA; `expportrait doctor` says what it finds."
        )
    return torch.device(name)


def choose_device(name: str) -> None:
    """Choose the device of this run, and of the processes that it starts.

    Raises:
        UsageError: as `best_device`.
    """
    os.environ[DEVICE] = name
    best_device()


THREADS = "EXPPORTRAIT_THREADS"
"""Number of threads of a training and of a large network, for the processes that a run starts too."""
LIBRARIES = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
    *("NUMEXPR_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"),
)
"""Variables from which torch, numpy, scipy and OpenCV take their number of threads when they are imported."""


def settle_threads() -> None:
    """Give every library one thread; call it before torch, numpy and OpenCV are imported.

    The work is shared out frame by frame and stage by stage instead: the matrices are small, threads that wait for them
    take more time than they save, and sums depend on how many threads share them. What torch computes with more
    (`use_threads`) is asked for the same sums whatever their number, and wherever the numbers lie in memory.
    """
    os.environ.setdefault(THREADS, os.environ.get("OMP_NUM_THREADS") or str(cpu_count()))
    os.environ.update(dict.fromkeys(LIBRARIES, "1"))
    # Threads that spin while they wait slow torch tenfold beside a busy neighbour.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def thread_count() -> int:
    """Count the threads of a training or of a large network: what the user set, else one for each processor."""
    named = os.environ.get(THREADS, "")
    return int(named) if named.isdecimal() and int(named) > 0 else cpu_count()


def use_threads() -> None:
    """Let torch take `thread_count` threads: for trainings and diffusion, whose matrices are large."""
    import torch

    torch.set_num_threads(thread_count())


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


def late(items: Iterable[tuple[T, Future]], depth: int) -> Iterator[tuple[T, Future]]:
    """Yield what a thread has done; what it has not, up to `depth` items later, so that nobody waits for it."""
    waiting: deque[tuple[T, Future]] = deque()
    for item in items:
        waiting.append(item)
        while waiting and (len(waiting) > depth or waiting[0][1].done()):
            yield waiting.popleft()
    yield from waiting


def in_order(make: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield what `make` gives for each item, in their order, while `thread_count` threads make the next ones.

    The first is made alone: what it loads is not loaded twice.
    """
    source, workers = iter(items), min(thread_count(), MOST_AT_ONCE)
    for item in islice(source, 1):
        yield make(item)
    with ThreadPoolExecutor(workers) as pool:
        coming: deque[Future[R]] = deque()
        try:
            for item in source:
                coming.append(pool.submit(make, item))
                if len(coming) > workers:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            for future in coming:
                future.cancel()


_stderr = RLock()
"""Held while stderr leads nowhere: of two threads, the second would take that for where it leads to."""


@contextmanager
def silenced() -> Iterator[None]:
    """Keep what native libraries write to stderr away from the terminal: only the file descriptor can be muted."""
    with _stderr:
        sys.stderr.flush()
        kept = os.dup(2)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


class _Abandoned(Exception):
    """Work that nobody waits for any more."""


@contextmanager
def beside(work: Callable[["Progress"], T]) -> Iterator[Callable[[], T]]:
    """Do work in a thread beside the block, which is given what waits for the result.

    When the block is left, work that is still under way ends at its next report of progress.
    """
    is_over = Event()

    def progress(done: int, total: int | None) -> None:
        if is_over.is_set():
            raise _Abandoned

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work, progress)
        try:
            yield future.result
        finally:
            is_over.set()


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


def cpu_seconds() -> float:
    """Processor time of this process and of those that it started and that have ended, s."""
    return sum(os.times()[:4])


class Stages:
    """Stages of one run, one after the other: each is announced, and the seconds that it took are kept."""

    def __init__(self, begin: Stage = silent) -> None:
        """`begin` is told the name of each stage that really runs."""
        self._begin = begin
        self.seconds: dict[str, float] = {}
        """Seconds by the stage's name, in the order of running, without stages whose results were there already."""
        self.cpu_seconds: dict[str, float] = {}
        """Processor time of the same, of all threads and of the processes of ffmpeg that ended meanwhile."""

    def run(self, name: str, work: Callable[[Progress], T]) -> T:
        """Run one stage; `work` is given what to report its progress to."""
        progress, since, before = self._begin(name), perf_counter(), cpu_seconds()
        done = work(progress)
        self.seconds[name] = round(self.seconds.get(name, 0.0) + perf_counter() - since, 3)
        self.cpu_seconds[name] = round(self.cpu_seconds.get(name, 0.0) + cpu_seconds() - before, 3)
        return done


MANY = 10**9
"""Above any count that means something."""


class Between(NamedTuple):
    """Lowest and highest value of a number, for its annotation."""

    low: float
    high: float


Count = Annotated[int, Between(0, MANY)]
Positive = Annotated[int, Between(1, MANY)]
Share = Annotated[float, Between(0, 1)]
Seed = Annotated[int, Between(0, 2**63 - 1)]
Rate = Annotated[float, Between(0, 1000)]


class Checked:
    """A dataclass whose fields are checked by their annotations: the type, a `Literal`'s choices, `Between`."""

    def __post_init__(self) -> None:
        """Raise UsageError at the first value that does not fit."""
        for name in _forms(type(self)):
            value = getattr(self, name)
            if wanted := expected(type(self), name, value):
                raise UsageError(f"`{name}={str(value)[:60]}`: expected {wanted}.")


def between(cls: type, name: str) -> Between | None:
    """Bounds of a setting, if it has any."""
    return _forms(cls)[name][1]


def expected(cls: type, name: str, value: Any) -> str:
    """Describe in words what a setting should be; empty if the value fits."""
    kind, limits = _forms(cls)[name]
    if get_origin(kind) is Literal:
        return "" if value in get_args(kind) else f"one of {', '.join(map(str, get_args(kind)))}"
    if kind in (bool, str):
        return "" if isinstance(value, kind) else {bool: "true or false", str: "a text"}[kind]
    if value is None and type(None) in get_args(kind):
        return ""
    if kind not in (int, float, float | None):
        return ""
    low, high = limits or (-inf, inf)
    is_number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if is_number and isfinite(number := float(value)) and low <= number <= high:  # pyright: ignore[reportArgumentType]
        return ""
    word = "a whole number" if kind is int else "a number"
    return f"{word} from {low:g} to {high:g}" if limits else word


@cache
def _forms(cls: type) -> dict[str, tuple[Any, Between | None]]:
    """Type and bounds of each field."""
    found = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        kind, *details = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        found[name] = kind, next((each for each in details if isinstance(each, Between)), None)
    return found
