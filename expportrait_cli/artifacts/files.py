"""Names, hashes and locks of files, and atomic writing of files and folders."""

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from expportrait_cli.errors import InputError, OutputError
from expportrait_cli.runtime import deferral

try:
    import fcntl
except ImportError:
    # Windows has no such locks.
    fcntl = None

log = logging.getLogger(__name__)


def sha256(path: Path) -> str:
    """Hash of a file's content in hexadecimal, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def note_of(path: Path) -> Path:
    """Path of the file with the hash of a first download, in `sha256sum`'s format; for files without published hash."""
    return path.with_name(f"{path.name}.sha256")


def noted(path: Path) -> str:
    """SHA-256 of a file at its first download; empty if there is no note of it (`note_of`)."""
    try:
        found = note_of(path).read_text("utf-8")[:64]
    except (OSError, UnicodeDecodeError):
        return ""
    return found if re.fullmatch("[0-9a-f]{64}", found) else ""


@contextmanager
def alone(path: str | os.PathLike[str], *, wait: bool = False) -> Iterator[None]:
    """Lock an output while it is made. With `wait`, a second run waits for the first one instead of an error.

    The lock is the file `.NAME.lock` beside the output, which names its owner. The system's lock on that file ends with
    the process, so that a killed run leaves none. On a file system without locks the file itself is the lock, and is
    taken over if its owner was a process of this machine that has ended. Not reentrant.

    Raises:
        OutputError: another run has the lock, or nothing can be written there.
    """
    target = Path(os.path.realpath(path))
    lock = target.with_name(f".{_short(target.name)}.lock")
    made = [folder for folder in lock.parents if not folder.exists()]
    descriptor, said = None, False
    try:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            while True:
                with deferral.section():
                    descriptor = _hold(lock)
                if descriptor is not None:
                    break
                said = _waited(lock, path, wait=wait, said=said)
        except OSError as error:
            raise _refusal(path, error) from error
        yield
    finally:
        with deferral.section():
            if descriptor is not None:
                lock.unlink(missing_ok=True)
                os.close(descriptor)
            # Remove the folders that were made for a result that was never written.
            with suppress(OSError):
                for folder in made:
                    folder.rmdir()


def _waited(lock: Path, path: str | os.PathLike[str], *, wait: bool, said: bool) -> bool:
    """Wait a moment for the owner of a lock, or raise OutputError; True if the waiting was logged, now or before."""
    try:
        holder = lock.read_text("utf-8", "replace")[:400]
    except FileNotFoundError:
        # The other run has ended.
        return said
    if not wait:
        raise OutputError(
            f"{path} is being made by another run ({holder or 'which has just begun'}). Wait until that has ended, "
            "or name another output."
        )
    if not said:
        log.warning("%s is being made by another run (%s): waiting for it.", path, holder)
    time.sleep(0.2)
    return True


def _hold(lock: Path) -> int | None:
    """Open and lock a lock file, and write this process into it; None if another process has it, or just removed it."""
    is_new = not lock.exists()
    try:
        descriptor = os.open(lock, os.O_RDWR | (os.O_CREAT | os.O_EXCL if is_new else 0), 0o666)
    except (FileExistsError, FileNotFoundError):
        # Another process has created or removed the file since `is_new` was set.
        return None
    holder = os.read(descriptor, 400).decode(errors="replace")
    has = _take(descriptor)
    if has is None:
        has = is_new or _is_gone(holder)
    # The previous owner may have removed the file after it was opened here.
    if has and lock.exists() and os.path.samestat(os.fstat(descriptor), lock.stat()):
        os.ftruncate(descriptor, 0)
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {since}".encode())
        return descriptor
    os.close(descriptor)
    return None


def _take(descriptor: int) -> bool | None:
    """Lock an open file; False if another process has the lock, None if locks are not supported."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_gone(holder: str) -> bool:
    """True if a lock's owner was a process of this machine that has ended."""
    named = re.match(r"process (\d+) on (.*), since", holder)
    if named is None or named[2] != socket.gethostname():
        return False
    try:
        os.kill(int(named[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


PARTIAL = re.compile(r"\.(.+)\.([0-9a-f]{8})\.(?:film\.|old\.)?partial", re.DOTALL)
"""Names of files and folders that are being written (`.partial`), of films without their sound yet (`.film.partial`),
and of folders that are being replaced (`.old.partial`)."""


def forget_partials(path: str | os.PathLike[str]) -> None:
    """Remove partial files and folders of a target that killed runs left.

    Those of running processes are locked, and stay. A folder that was moved away is moved back if its place is empty.
    """
    target = Path(os.path.realpath(path))
    for left in sorted(target.parent.iterdir()) if target.parent.is_dir() else []:
        found = PARTIAL.fullmatch(left.name)
        if found is None or found[1] != _short(target.name):
            continue
        own = target.with_name(f".{found[1]}.{found[2]}.partial")
        with suppress(OSError), _claimed(own) as is_free:
            if is_free and left.name.endswith(".old.partial") and not target.exists():
                left.rename(target)
            elif is_free and left.is_dir():
                shutil.rmtree(left)
            elif is_free:
                left.unlink()


@contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Lock a partial file or folder while it is written; yields False if another process has the lock."""
    if not path.exists():
        yield True
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        yield bool(_take(descriptor))
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new empty file beside `path` to write to; rename it to `path` at the end.

    Creates missing folders. The partial file is `.name.XXXX.partial` with a random part, so that two jobs never
    share one, and is removed on any exception, Ctrl-C included; partial files of killed runs are removed first. A link
    is followed: its target is replaced.

    Raises:
        OutputError: the file could not be written; contains the system's reason.
    """
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{_short(target.name)}.{secrets.token_hex(4)}.partial")
    if target.is_dir():
        raise OutputError(f"{path} is a folder. Name a file to write to.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        forget_partials(target)
    except OSError as error:
        raise _refusal(path, error) from error
    try:
        # Within the outer `try`, because Ctrl-C may come as soon as the file exists.
        try:
            partial.touch(exist_ok=False)
        except OSError as error:
            raise _refusal(path, error) from error
        with _claimed(partial):
            yield partial
            _settle(partial)
            partial.replace(target)
    except OSError as error:
        # Other errors may come from files that the caller reads meanwhile.
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS):
            raise _refusal(path, error) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text in UTF-8, atomically; bytes of file names that are no text become question marks."""
    with atomic_path(path) as partial:
        partial.write_text(text, "utf-8", "replace")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON with an indent of two, atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def _settle(path: Path) -> None:
    """Flush a file to the disk before it is renamed, so that a power cut leaves the old or the new file, whole."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _short(name: str, length: int = 120) -> str:
    """Shorten a name to at most `length` bytes: file systems allow 255, including prefix and suffix."""
    while len(os.fsencode(name)) > length:
        name = name[:-1]
    return name


def _refusal(path: str | os.PathLike[str], error: OSError) -> OutputError:
    return OutputError(f"{path} could not be written: {error.strerror or error}. Free space or choose another folder.")


def content_hash(path: str | os.PathLike[str]) -> str:
    """Hash the content with sha256, in hexadecimal."""
    check_file(path)
    try:
        return sha256(Path(path))
    except OSError as error:
        raise InputError(f"{path} could not be read: {error.strerror}.") from error


def check_file(path: str | os.PathLike[str]) -> None:
    """Raise InputError unless `path` is a regular file that is not empty."""
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        if ADDRESS.match(str(path)):
            remedy = "The tool opens no addresses: download it, and give the file."
        else:
            remedy = "Check the name and the folder."
        raise InputError(f"{path} does not exist. {remedy}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} could not be read: {error}.") from error
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{path} is a folder. Name a file.")
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is {special(found.st_mode)}, expected a file. Save what it gives, and give the file.")
    if found.st_size == 0:
        raise InputError(f"{path} is empty (0 bytes). Copy or make it again.")


ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""Beginning of a web address. One slash is enough, because `Path` removes the second one."""


def special(mode: int) -> str:
    """Text for the kind of a path that is neither a file nor a folder, by its `st_mode`."""
    kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new folder beside `path` to fill; rename it to `path` at the end, or remove it on any exception.

    An existing folder is replaced: check its content before. Partial folders of killed runs are removed first.

    Raises:
        OutputError: the folder cannot be made.
    """
    target = Path(path).absolute()
    token = secrets.token_hex(4)
    partial, old = (target.with_name(f".{_short(target.name)}.{token}.{end}") for end in ("partial", "old.partial"))
    try:
        # Within the outer `try`, because Ctrl-C may come as soon as the folder exists.
        try:
            forget_partials(target)
            partial.mkdir(parents=True)
        except OSError as error:
            raise OutputError(f"{path} could not be made: {error.strerror}. Name another folder with -o.") from error
        with _claimed(partial):
            yield partial
            if target.exists():
                target.rename(old)
            partial.rename(target)
    finally:
        with deferral.section():
            if old.exists() and not target.exists():
                old.rename(target)
            for leftover in (partial, old):
                shutil.rmtree(leftover, ignore_errors=True)


KINDS = (".track", ".head", ".meshes")


def stem(path: Path) -> str:
    """File name without suffix, and without the kind of an artifact: `a` for `a.track.npz`."""
    name = path.stem
    return name.rpartition(".")[0] if path.suffix == ".npz" and name.endswith(KINDS) else name


def film_name(reference: Path, driving: Path) -> str:
    """Default file name of a film."""
    return f"{_short(stem(reference), 100)}--{_short(stem(driving), 100)}.mp4"
