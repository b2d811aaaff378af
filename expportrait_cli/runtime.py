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
from threading import Event, RLock, current_thread, main_thread
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from expportrait_cli.errors import UsageError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")

END = object()
MOST_AT_ONCE = 4
"""Largest number of items that are computed at once, because each contains pictures."""


def cpu_count() -> int:
    """Number of processors that this process may use, possibly fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class SignalDeferral:
    """Short sections that no signal may interrupt, such as between creating a file and recording it.

    While `is_active`, signal handlers only record their signal; they set `at_end`, which is called after the section.
    Signals interrupt the main thread alone: in others nothing is deferred.
    """

    is_active = False
    at_end: Callable[[], None] = staticmethod(lambda: None)

    @contextmanager
    def section(self) -> Iterator[None]:
        """Mark the block as such a section; it may contain others."""
        if self.is_active or current_thread() is not main_thread():
            yield
            return
        self.is_active = True
        try:
            yield
        finally:
            self.is_active = False
        self.at_end()


deferral = SignalDeferral()


DEVICE = "EXPPORTRAIT_DEVICE"
"""Environment variable with the device of a run and of its child processes: auto, cpu, cuda, or cuda:N."""


def has_bf16(device: "torch.device") -> bool:
    """True if a device computes in bfloat16; others, such as most CPUs, emulate it, which is slower than float32."""
    import torch

    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def best_device() -> "torch.device":
    """The device of this run: the chosen one (`DEVICE`), else CUDA if available, else the CPU.

    Raises:
        UsageError: torch has no such device.
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
    """Choose the device of this run and of its child processes.

    Raises:
        UsageError: as `best_device`.
    """
    os.environ[DEVICE] = name
    best_device()


THREADS = "EXPPORTRAIT_THREADS"
"""Environment variable with the number of threads of trainings and large networks, also for child processes."""
LIBRARIES = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
    *("NUMEXPR_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"),
)
"""Environment variables with the number of threads that torch, numpy, scipy and OpenCV read when imported."""


def settle_threads() -> None:
    """Give every library one thread; call it before torch, numpy and OpenCV are imported.

    Frames and stages run in parallel instead: the matrices are small, so that waiting threads cost more time than they
    save, and rounding depends on the number of threads. MKL is set to give equal results for any number of threads and
    any memory alignment where torch uses more (`use_threads`).
    """
    os.environ.setdefault(THREADS, os.environ.get("OMP_NUM_THREADS") or str(cpu_count()))
    os.environ.update(dict.fromkeys(LIBRARIES, "1"))
    # Threads that spin while waiting slow torch down tenfold when other processes are busy.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def thread_count() -> int:
    """Number of threads of trainings and large networks: the user's (`THREADS`), else one for each processor."""
    named = os.environ.get(THREADS, "")
    return int(named) if named.isdecimal() and int(named) > 0 else cpu_count()


def use_threads() -> None:
    """Set torch to `thread_count` threads, for trainings and diffusion, whose matrices are large."""
    import torch

    torch.set_num_threads(thread_count())


def read_ahead(items: Iterable[T], depth: int) -> Iterator[T]:
    """Yield items that a thread computes up to `depth` in advance.

    An exception while computing an item is raised where the item would be yielded. A consumer that stops early waits
    for the item in progress.
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
    """Yield items in order, delayed by up to `depth` items while their futures are not done."""
    waiting: deque[tuple[T, Future]] = deque()
    for item in items:
        waiting.append(item)
        while waiting and (len(waiting) > depth or waiting[0][1].done()):
            yield waiting.popleft()
    yield from waiting


def in_order(make: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield the result of `make` for each item, in order, while up to `MOST_AT_ONCE` threads compute the next ones.

    The first one is computed alone, so that what it loads is not loaded twice.
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
"""Lock while stderr is redirected: a second thread would save and restore the redirected descriptor."""


@contextmanager
def silenced() -> Iterator[None]:
    """Discard stderr, also of native libraries, by redirecting its file descriptor."""
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
    """Raised in work whose result is no longer needed, to end it."""


@contextmanager
def beside(work: Callable[["Progress"], T]) -> Iterator[Callable[[], T]]:
    """Run work in a thread during the block; yields a function that waits for the result and returns it.

    When the block is left, unfinished work ends at its next report of progress.
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
    """Yield each number from `begin` to before `end` with the result of `make`, which a thread computes one ahead."""
    return zip(range(begin, end), read_ahead(map(make, range(begin, end)), 1), strict=True)


Progress = Callable[[int, int | None], None]
"""Function that is called with the number of finished steps, and the total, None if unknown."""

Stage = Callable[[str], Progress]
"""Function that begins a stage of a given name, and returns the stage's `Progress`."""


def silent(name: str) -> Progress:
    """Begin a stage without progress reports."""
    return lambda done, total: None


def counted(items: Iterable[T], total: int | None, progress: Progress) -> Iterator[T]:
    """Yield the items, and report each one after the consumer has used it."""
    for done, item in enumerate(items, 1):
        yield item
        progress(done, total)


def cpu_seconds() -> float:
    """Processor time of this process and of its ended child processes, s."""
    return sum(os.times()[:4])


class Stages:
    """Runs the stages of a run one after the other, and measures their time."""

    def __init__(self, begin: Stage = silent) -> None:
        """`begin` is called with the name of each stage that runs."""
        self._begin = begin
        self.seconds: dict[str, float] = {}
        """Seconds by stage name, in order of running, without stages whose results existed already."""
        self.cpu_seconds: dict[str, float] = {}
        """Processor seconds by stage name, of all threads and of ffmpeg processes that ended in the stage."""

    def run(self, name: str, work: Callable[[Progress], T]) -> T:
        """Run one stage: call `work` with a progress function, and return its result."""
        progress, since, before = self._begin(name), perf_counter(), cpu_seconds()
        done = work(progress)
        self.seconds[name] = round(self.seconds.get(name, 0.0) + perf_counter() - since, 3)
        self.cpu_seconds[name] = round(self.cpu_seconds.get(name, 0.0) + cpu_seconds() - before, 3)
        return done


MANY = 10**9
"""Upper bound of counts in settings."""


class Between(NamedTuple):
    """Lowest and highest value of a number, for use in annotations."""

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
    """Bounds of the field `name` of a settings class; None without any."""
    return _forms(cls)[name][1]


def expected(cls: type, name: str, value: Any) -> str:
    """Text that describes the allowed values of the field `name`; empty if `value` is allowed."""
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
    """Type and bounds of each field of a settings class."""
    found = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        kind, *details = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        found[name] = kind, next((each for each in details if isinstance(each, Between)), None)
    return found
