"""Files: their names, their hashes, how texts are read, and how all are written: whole or not at all."""

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from expportrait_cli.errors import InputError, OutputError


def sha256(path: Path) -> str:
    """Hash of a file's content in hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    # `hashlib.file_digest` does this, from Python 3.11 on.
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new empty file beside `path` to write to; rename it to `path` at the end.

    Creates missing folders. The partial file is `.name.XXXX.partial` with a random part, so that two jobs never
    share one, and is removed on any exception, Ctrl-C included. A link is followed: its target is replaced.

    Raises:
        OutputError: what the system said when the file could not be written, in one line.
    """
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{_short(target.name)}.{secrets.token_hex(4)}.partial")
    if target.is_dir():
        raise OutputError(f"{path} is a folder. Name a file to write to.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refusal(path, error) from error
    try:
        # Within the outer `try`: Ctrl-C may come as soon as the file is there.
        try:
            partial.touch(exist_ok=False)
        except OSError as error:
            raise _refusal(path, error) from error
        yield partial
        _settle(partial)
        partial.replace(target)
    except OSError as error:
        # Other errors may come from what the caller reads meanwhile.
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS):
            raise _refusal(path, error) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def _settle(path: Path) -> None:
    """Have the disk hold a file before its name does: after a power cut there is the old one or the new, never half."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _short(name: str, length: int = 120) -> str:
    """The beginning of a name, of at most so many bytes: a file system takes 255, with all that is added to it."""
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
    """Raise InputError unless `path` is a file with something in it."""
    file = Path(path)
    try:
        if file.is_dir():
            raise InputError(f"{path} is a folder. Name a photo or a clip.")
        if not file.exists():
            raise InputError(f"{path} does not exist. Check the name and the folder.")
        if file.is_file() and file.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes). Copy or download it again.")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} could not be read: {error}.") from error


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new folder beside `path` to fill; rename it to `path` at the end, or remove it on any exception.

    A folder that is there is replaced: look before at what it holds.

    Raises:
        OutputError: the folder cannot be made.
    """
    target = Path(path).absolute()
    token = secrets.token_hex(4)
    partial, old = (target.with_name(f".{_short(target.name)}.{token}.{end}") for end in ("partial", "old.partial"))
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"{path} could not be made: {error.strerror}. Name another folder with -o.") from error
    try:
        yield partial
        if target.exists():
            target.rename(old)
        partial.rename(target)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)


LONGEST_JSON, LONGEST_TOML = 1 << 28, 1 << 22
"""Bytes. The largest that is written, `dataset.json`, has 1.5 KB a clip; TOML is read by slow code."""


def read_text(path: str | os.PathLike[str], longest: int) -> str:
    """Read a text in UTF-8, with or without a byte order mark.

    Raises:
        OSError, ValueError: what is wrong, in one line.
    """
    with Path(path).open("rb") as file:
        content = file.read(longest + 1)
    if len(content) > longest:
        raise ValueError(f"it has more than {longest >> 20} MB, the most that is read")
    return content.decode("utf-8-sig")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a file as `parse_json` does.

    Raises:
        OSError, ValueError: what is wrong, in one line.
    """
    return parse_json(read_text(path, LONGEST_JSON))


def parse_json(content: str | bytes) -> Any:
    """Read JSON in UTF-8 in which numbers are finite and fit 64 bits, and no object has a key twice.

    Raises:
        ValueError: what is wrong, in one line.
    """
    text = content if isinstance(content, str) else content.decode()
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_int=_whole, parse_float=_finite, parse_constant=_finite
        )
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it has the key '{next(key for key in keys if keys.count(key) > 1)[:60]}' twice")
    return found


def _whole(digits: str) -> int:
    # Python refuses to read thousands of digits, and no float holds hundreds.
    if len(digits) > 20:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"it holds {number[:20]}, which is no number that can be used")
    return value


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file of TOML.

    Raises:
        OSError, ValueError: what is wrong, in one line.
    """
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    try:
        return tomllib.loads(read_text(path, LONGEST_TOML))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


KINDS = (".track", ".head", ".meshes")


def stem(path: Path) -> str:
    """Name without its last suffix, and without the kind of an artifact: `a.track.npz` is `a`."""
    name = path.stem
    return name.rpartition(".")[0] if path.suffix == ".npz" and name.endswith(KINDS) else name


def film_name(reference: Path, driving: Path) -> str:
    """Name of a film when the user gives none."""
    return f"{_short(stem(reference), 100)}--{_short(stem(driving), 100)}.mp4"
