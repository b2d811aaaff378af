"""Work spread over processes that end cleanly: on Ctrl-C, when the parent dies, when one of them is killed.

Processes on several machines that share a disk share the work out by claims: a file each, with a sign of life. Locks of
the system would end with their process too, but not every shared disk has them.
"""

import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType, TracebackType
from typing import Generic, TypeVar

from expportrait_cli.errors import OutOfMemoryError
from expportrait_cli.runtime import THREADS, settle_threads

T = TypeVar("T")
R = TypeVar("R")

END_S = 10.0
"""Time that a process gets to remove its partial files."""

_ending = threading.Event()


class Notes(logging.Handler):
    """Warnings of the task that a process is at, which belong to its result rather than between progress bars."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line."""
        self.lines.append(record.getMessage())

    def take(self) -> list[str]:
        """Hand over the lines."""
        lines, self.lines = self.lines, []
        return lines


notes = Notes()


class Workers:
    """Processes of one thread each; a context manager."""

    def __init__(self, count: int) -> None:
        # Not forked: torch, mediapipe and Warp do not survive it.
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(count, mp_context=spawn, initializer=_begin)

    def __enter__(self) -> "Workers":
        """Start nothing yet: processes start with the work."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the processes go; after an error, stop what they are doing."""
        if kind is None:
            self._pool.shutdown()
            return
        processes = multiprocessing.active_children()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(END_S)
            if process.is_alive():
                process.kill()

    def run(self, work: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[T, R | Exception]]:
        """Yield every item with what `work` returned or raised, as they finish.

        Raises:
            OutOfMemoryError: a process was killed from outside, which only a full memory does by itself.
        """
        futures: dict[Future[R], T] = {self._pool.submit(_do, work, item): item for item in items}
        for future in as_completed(futures):
            item = futures.pop(future)
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                raise OutOfMemoryError(
                    "A worker process was killed, most likely because memory ran out. Run the same command again with "
                    "fewer `jobs`: it goes on where it stopped."
                ) from error
            if isinstance(error, BaseException) and not isinstance(error, Exception):
                raise error
            yield item, error if error is not None else future.result()


class WorkerProcess(Generic[T, R]):
    """One process that does tasks one after the other, and keeps what it has loaded; a new one where it was killed."""

    def __init__(self, work: Callable[[T], R], *, threads: int) -> None:
        """Prepare a process that does `work`, a function of a module, with so many threads."""
        self._work, self._threads = work, threads
        self._process: BaseProcess | None = None
        self._line: connection.Connection | None = None

    def run(self, task: T, *, timeout_s: float | None, is_over: Callable[[], bool]) -> R | int:
        """Return what `work` returns; or the signal that killed the process, or 0 if it took longer than `timeout_s`.

        Raises:
            Stopped: `is_over` became true.
        """
        self._start()
        assert self._line is not None and self._process is not None
        self._line.send(task)
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._line.poll(POLL_S):
            if is_over():
                self.stop()
                raise Stopped
            if until is not None and time.monotonic() > until:
                self.stop()
                return 0
            if not self._process.is_alive() and not self._line.poll(0):
                return self._killed()
        try:
            return self._line.recv()
        except (EOFError, OSError):
            return self._killed()

    def _start(self) -> None:
        if self._process is not None and self._process.is_alive():
            return
        # Not forked: torch, mediapipe and Warp do not survive it.
        spawn = multiprocessing.get_context("spawn")
        self._line, other = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(other, self._work, self._threads))
        self._process.start()
        other.close()

    def _killed(self) -> int:
        assert self._process is not None
        self._process.join(END_S)
        code = self._process.exitcode
        self.stop()
        return -code if code is not None and code < 0 else signal.SIGKILL

    def stop(self) -> None:
        """End the process; it gets some time to remove its partial files."""
        if self._process is not None:
            self._process.terminate()
            self._process.join(END_S)
            self._process.kill()
            self._process.join()
        self._process = None


class Stopped(Exception):
    """Work that was given up because the whole run is over."""


POLL_S = 0.1


def _serve(line: connection.Connection, work: Callable[[T], R], threads: int) -> None:
    _begin(threads)
    while True:
        try:
            task = line.recv()
        except EOFError:
            return
        line.send(_do(work, task))


def _begin(threads: int = 1) -> None:
    """Prepare a process, before anything heavy is imported."""
    os.environ[THREADS] = str(threads)
    settle_threads()
    # Away from the terminal: its Ctrl-C would stop this process's ffmpeg, and cut a clip short that looks whole.
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    threading.Thread(target=_watch_parent, daemon=True).start()
    log = logging.getLogger("expportrait_cli")
    log.propagate, log.handlers = False, [notes]


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        # Between two items the pool swallows what `_end` raises, and would wait for a next one for ever.
        time.sleep(END_S)
        os._exit(128 + signal.SIGTERM)


def _end(number: int, _: FrameType | None) -> None:
    # As an exception, so that partial files are removed and ffmpeg is stopped on the way out.
    _ending.set()
    # Native code that it meets on the way up ends the process at once, with a stack of its own on the terminal.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    raise SystemExit(128 + number)


def _do(work: Callable[[T], R], item: T) -> R:
    try:
        return work(item)
    finally:
        # The pool would hand over the exception and go on with the next item.
        if _ending.is_set():
            os._exit(128 + signal.SIGTERM)


def disk_clock(folder: Path) -> float:
    """Read the time from the disk's clock, which all machines that share the disk have in common."""
    probe = folder / f".clock-{uuid.uuid4().hex[:8]}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def this_process() -> str:
    """Name this process and its machine."""
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def claim(path: Path, *, heartbeat_s: float, stale_s: float) -> Iterator[bool]:
    """Claim what `path` stands for; yields False if another worker has it. A thread shows that this worker lives."""
    own = f"{this_process()} {uuid.uuid4().hex}"
    if not (_take(path, own) or (_forget_stale(path, stale_s) and _take(path, own))):
        yield False
        return
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(heartbeat_s):
            with suppress(OSError):
                if _read(path) == own:
                    os.utime(path)

    heart = threading.Thread(target=beat, daemon=True)
    heart.start()
    try:
        yield True
    finally:
        ended.set()
        heart.join()
        if _read(path) == own:
            path.unlink(missing_ok=True)


def _take(path: Path, own: str) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as file:
        file.write(own)
    return True


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except OSError:
        return None


def _forget_stale(path: Path, stale_s: float) -> bool:
    """Remove the claim of a worker that is gone; true if it was removed here, and by nobody else."""
    seen = _read(path)
    try:
        age_s = disk_clock(path.parent) - path.stat().st_mtime
    except OSError:
        return True
    if seen is None or (age_s <= stale_s and not _has_ended(seen)):
        return False
    # Of several that find it stale one moves it away; a fresh one, made in the meantime, is put back.
    away = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.rename(away)
    except OSError:
        return False
    is_it = _read(away) == seen
    if not is_it:
        with suppress(OSError):
            os.link(away, path)
    away.unlink(missing_ok=True)
    return is_it


def _has_ended(claimed: str) -> bool:
    """Tell whether a claim's worker was a process of this machine that has ended."""
    words = claimed.split()
    if len(words) < 5 or words[3] != socket.gethostname() or not words[1].isdecimal():
        return False
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
