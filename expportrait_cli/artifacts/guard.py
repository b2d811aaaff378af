"""The guard before the work: nothing that a command writes, replaces or removes is one of its inputs, or a stranger's.

Every command passes through it before it starts; a batch with all its rows at once.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from expportrait_cli.artifacts.files import special
from expportrait_cli.artifacts.texts import read_json
from expportrait_cli.errors import UsageError

MARK = b"expportrait"
RECORD = b'{\n  "output": '
"""First bytes of every run record."""
LOOK = 1 << 20
"""Bytes at either end of a film or page in which it says what made it."""

PathLike = str | os.PathLike[str]


def check_outputs(outputs: Iterable[PathLike], inputs: Iterable[PathLike]) -> None:
    """Refuse outputs that are inputs, or each other, under whatever name: links and letter case included.

    Raises:
        UsageError: names the file.
    """
    read = {key: path for path in inputs for key in _keys(path)}
    written: dict[tuple[object, ...], PathLike] = {}
    for path in outputs:
        keys = _keys(path)
        for key in keys:
            if key in read:
                also = "" if Path(read[key]) == Path(path) else f" ({read[key]})"
                raise UsageError(f"{path} would be written, and is also an input{also}. Name another file with -o.")
            if key in written:
                raise UsageError(f"{path} would be written twice, also as {written[key]}. Name another file with -o.")
        written |= dict.fromkeys(keys, path)


def _keys(path: PathLike) -> list[tuple[object, ...]]:
    """Keys that two names of one file share: the path without links, and the file's number where it exists."""
    # The file system tells letter case apart or not, and finds hard links by their number.
    keys: list[tuple[object, ...]] = [(os.path.realpath(path),)]
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return keys
    return [*keys, (status.st_dev, status.st_ino)]


def check_foreign(outputs: Iterable[Path]) -> None:
    """Refuse to replace a film, page, record or artifact that no run of this tool made; an empty file gives way.

    Raises:
        UsageError: names the file.
    """
    for path in outputs:
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else special(path.stat().st_mode)
            raise UsageError(f"{path} is {kind}, and a file would be written there. Name another file with -o.")
        if path.is_file() and path.stat().st_size > 0 and not is_own(path):
            raise UsageError(
                f"{path} would be replaced, and no run of this tool made it. Move it away, or name another with -o."
            )


def is_own(path: Path) -> bool:
    """Tell whether a run of this tool wrote a film, page, record or artifact; files of other kinds pass.

    One that was cut off or damaged since then is still its own.
    """
    with path.open("rb") as file:
        # Films are tagged, pages name what made them, artifacts their first member: all near their beginning or end.
        start = file.read(LOOK)
        file.seek(max(0, path.stat().st_size - LOOK))
        ends = (start, file.read(LOOK))
        match path.suffix.lower():
            case ".mp4" | ".html" | ".htm":
                return any(MARK in end for end in ends)
            case ".json":
                file.seek(0)
                try:
                    content = read_json(path)
                except ValueError:
                    return start.startswith(RECORD)
                return isinstance(content, dict) and {"key", "settings"} <= content.keys()
            case ".npz":
                return any(b"header.npy" in end for end in ends)
    return True
