"""Writing a folder of frames so that it is there in full or not at all."""

import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from expportrait_cli.errors import OutputError

FRAME = re.compile(r"frame_\d{5,}\.(obj|ply)")


def frame_name(index: int, form: str) -> str:
    """Name of a frame's file."""
    return f"frame_{index:05d}.{form}"


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path` to fill; rename it to `path` at the end, or remove it on any exception.

    An earlier folder of frames is replaced; one with anything else in it is refused before any work.

    Raises:
        OutputError: the folder holds other files, is a file, or cannot be made.
    """
    target = path.absolute()
    check_folder(path)
    token = secrets.token_hex(4)
    partial, old = (target.with_name(f".{target.name}.{token}.{end}") for end in ("partial", "old.partial"))
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"{path} could not be made: {error.strerror}. Choose another folder.") from error
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


def check_folder(path: Path) -> None:
    """Raise OutputError unless frames can go there without harm to what is there."""
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file, expected a folder for the frames. Name a folder with -o.")
    others = [entry.name for entry in path.iterdir() if not FRAME.fullmatch(entry.name)] if path.exists() else []
    if others:
        raise OutputError(f"{path} holds other files ({sorted(others)[0]}). Name a new folder with -o.")
