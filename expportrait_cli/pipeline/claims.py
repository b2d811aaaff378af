"""Claims of workers on several machines that share a disk: a file each, with a sign of life.

Locks of the system end with their process, but not every shared disk has them.
"""

import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def disk_clock(folder: Path) -> float:
    """Time as the disk knows it, which all machines that share it have in common."""
    probe = folder / f".clock-{uuid.uuid4().hex[:8]}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def whose() -> str:
    """This process, and its machine."""
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def claim(path: Path, *, heartbeat_s: float, stale_s: float) -> Iterator[bool]:
    """Keep what `path` stands for to this worker; false if another one has it. A thread shows that this one lives."""
    own = f"{whose()} {uuid.uuid4().hex}"
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
    """Whether a claim's worker was a process of this machine that is there no more."""
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
