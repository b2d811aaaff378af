"""Worker processes that end cleanly: on Ctrl-C, if the parent dies, if one of them is killed.

Processes on machines that share a disk divide work by claims: files whose time stamp is renewed as a heartbeat. File
locks of the system would also be released when a process ends, but not every shared disk supports them.
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
"""Time, s, that a process gets to remove its partial files when it is ended."""

_ending = threading.Event()


class Notes(logging.Handler):
    """Collects the warnings of a process's current task, so that they are returned with its result."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Store the message."""
        self.lines.append(record.getMessage())

    def take(self) -> list[str]:
        """Return the stored messages, and forget them."""
        lines, self.lines = self.lines, []
        return lines


notes = Notes()


class Workers:
    """Context manager of a pool of processes with one thread each."""

    def __init__(self, count: int) -> None:
        # Not forked: torch, mediapipe and Warp do not survive it.
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(count, mp_context=spawn, initializer=_begin)

    def __enter__(self) -> "Workers":
        """Return the pool; processes start with the work."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Shut the pool down; after an error, terminate its processes."""
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
        """Yield every item with what `work` returned or raised, in the order in which they finish.

        Raises:
            OutOfMemoryError: a process was killed, most likely because memory ran out.
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
    """One process that runs tasks one after the other, and keeps what it has loaded; restarted if it was killed."""

    def __init__(self, work: Callable[[T], R], *, threads: int) -> None:
        """Prepare a process with `threads` threads that runs `work`, a function of a module."""
        self._work, self._threads = work, threads
        self._process: BaseProcess | None = None
        self._line: connection.Connection | None = None

    def run(self, task: T, *, timeout_s: float | None, is_over: Callable[[], bool]) -> R | int:
        """Return the result of `work`; or the signal that killed it, or 0 if it took longer than `timeout_s`.

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
    """Raised where work is given up because the whole run is over."""


POLL_S = 0.1
"""Time, s, between two checks whether a task is to be stopped."""


def _serve(line: connection.Connection, work: Callable[[T], R], threads: int) -> None:
    _begin(threads)
    while True:
        try:
            task = line.recv()
        except EOFError:
            return
        line.send(_do(work, task))


def _begin(threads: int = 1) -> None:
    """Prepare a worker process, before heavy modules are imported."""
    os.environ[THREADS] = str(threads)
    settle_threads()
    # In a session of its own: Ctrl-C in the terminal would end this process's ffmpeg, and leave a truncated clip.
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
        # Between two items the pool catches the exception of `_end`, and would wait for the next item for ever.
        time.sleep(END_S)
        os._exit(128 + signal.SIGTERM)


def _end(number: int, _: FrameType | None) -> None:
    # Ends by an exception, so that partial files are removed and ffmpeg is stopped.
    _ending.set()
    # stderr goes to /dev/null first: native code through which SystemExit unwinds may abort, and print a stack trace.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    raise SystemExit(128 + number)


def _do(work: Callable[[T], R], item: T) -> R:
    try:
        return work(item)
    finally:
        # The pool would return the exception as a result, and go on with the next item.
        if _ending.is_set():
            os._exit(128 + signal.SIGTERM)


def disk_clock(folder: Path) -> float:
    """Return the time by the clock of the disk, which is the same for all machines that share it."""
    probe = folder / f".clock-{uuid.uuid4().hex[:8]}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def this_process() -> str:
    """Return a name of this process, with its machine."""
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def claim(path: Path, *, heartbeat_s: float, stale_s: float) -> Iterator[bool]:
    """Context in which this worker has the claim on `path`; yields False if another worker has it.

    `path` is a folder with a file for each worker that has claimed it, numbered from 0; the highest number is the valid
    claim. A thread renews its time stamp every `heartbeat_s`. A claim older than `stale_s` is not removed: the next
    worker creates the next number, which only one worker can do.
    """
    own = _take(path, stale_s)
    if own is None:
        yield False
        return
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(heartbeat_s):
            with suppress(OSError):
                os.utime(own)

    heart = threading.Thread(target=beat, daemon=True)
    heart.start()
    try:
        yield True
    finally:
        ended.set()
        heart.join()
        # Stale claims are removed first: without this one above them they could be taken over.
        is_highest = _numbers(path)[-1:] == [int(own.name)]
        for number in _numbers(path) if is_highest else [int(own.name)]:
            (path / str(number)).unlink(missing_ok=True)
        with suppress(OSError):
            path.rmdir()


def _take(path: Path, stale_s: float) -> Path | None:
    """Create this worker's claim, and return its file; None if another worker has the claim."""
    path.mkdir(exist_ok=True)
    earlier = _numbers(path)
    last = path / str(earlier[-1]) if earlier else None
    seen = _read(last) if last else None
    if last and not _is_stale(last, seen, stale_s):
        return None
    own = path / str(earlier[-1] + 1 if earlier else 0)
    try:
        descriptor = os.open(own, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except OSError:
        # Another worker was faster, or has just ended and removed the folder.
        return None
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{this_process()} {uuid.uuid4().hex}")
    # In the meantime the last claim may have been removed, and another worker may have created a lower number.
    if _numbers(path)[-1:] == [int(own.name)] and (last is None or _read(last) == seen):
        return own
    own.unlink(missing_ok=True)
    with suppress(OSError):
        path.rmdir()
    return None


def _numbers(path: Path) -> list[int]:
    """Numbers of all claims, in rising order."""
    with suppress(OSError):
        return sorted(int(child.name) for child in path.iterdir() if child.name.isdecimal())
    return []


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except OSError:
        return None


def _is_stale(path: Path, seen: str | None, stale_s: float) -> bool:
    """True if the worker of a claim is gone; False for a claim that has been removed in the meantime."""
    try:
        age_s = disk_clock(path.parent.parent) - path.stat().st_mtime
    except OSError:
        return False
    return seen is not None and (age_s > stale_s or _has_ended(seen))


def _has_ended(claimed: str) -> bool:
    """True if a claim's worker was a process of this machine that has ended."""
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
