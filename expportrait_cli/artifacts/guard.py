"""The guard before the work: nothing that a command writes, replaces or removes is one of its inputs, or a stranger's.

Every command passes through it before it starts; a batch with all its rows at once.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from expportrait_cli.artifacts.files import special
from expportrait_cli.errors import UsageError

MARKS = {
    ".npz": (b"header.npy",),
    ".json": (b'{\n  "output": ', b'"made_by": "expportrait ', b'"tool": "expportrait '),
    ".csv": (b"id,output,state,",),
}
"""What files of the tool hold near their beginning or end: artifacts their first member, JSON what made it or
the first words of a run record, tables the heads of a batch's."""
MARK = b"expportrait"
"""What all others hold: films in their tags, pictures in theirs, pages, meshes and weights in their heads."""
LOOK = 1 << 20
"""Bytes at either end of a file in which the mark is looked for."""

PathLike = str | os.PathLike[str]


def check(outputs: Iterable[PathLike], inputs: Iterable[PathLike] = ()) -> None:
    """Refuse outputs that are inputs, or each other, and to replace what no run of this tool made.

    Raises:
        UsageError: names the file.
    """
    outputs = [*outputs]
    check_outputs(outputs, inputs)
    check_foreign(map(Path, outputs))


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
    real = os.path.realpath(path)
    # A file that exists is known by its number, hard links too, whatever the letter case.
    keys: list[tuple[object, ...]] = [(real.casefold() if _ignores_case(Path(real).parent) else real,)]
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return keys
    return [*keys, (status.st_dev, status.st_ino)]


def _ignores_case(folder: Path) -> bool:
    """Tell whether the file system of a folder takes a name in other letter case for the same, as far as names show."""
    for place in (folder, *folder.parents):
        other = place.with_name(place.name.swapcase()) if place.name else place
        if other != place and place.exists():
            return other.exists() and other.samefile(place)
    return False


def check_foreign(outputs: Iterable[Path]) -> None:
    """Refuse to replace a file that no run of this tool made; an empty one gives way.

    Raises:
        UsageError: names the file.
    """
    for path in outputs:
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else special(path.stat().st_mode)
            raise UsageError(f"{path} is {kind}, and a file would be written there. Name another file with -o.")
        if path.is_file() and not is_own(path):
            raise UsageError(
                f"{path} would be replaced, and no run of this tool made it. Move it away, or name another with -o."
            )


def is_own(path: Path) -> bool:
    """Tell whether a run of this tool wrote a file, or nothing is in it: a power cut may leave zeros.

    One that was cut off or damaged since then is still the tool's own.
    """
    with path.open("rb") as file:
        start = file.read(LOOK)
        file.seek(max(0, path.stat().st_size - LOOK))
        ends = start + file.read(LOOK)
    marks = MARKS.get(path.suffix.lower(), (MARK,))
    return not ends.strip(b"\0") or any(mark in ends for mark in marks)
