"""Work spread over processes that end cleanly: on Ctrl-C, when the parent dies, when one of them is killed."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from types import FrameType, TracebackType
from typing import TypeVar

from expportrait_cli.errors import OutOfMemoryError

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


def _begin() -> None:
    """Prepare a process, before anything heavy is imported."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
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
