"""Suites: pairs of a photo and a clip, and the choice of frames."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expportrait_cli.artifacts.files import film_name
from expportrait_cli.artifacts.texts import read_toml
from expportrait_cli.config import SIZES
from expportrait_cli.errors import InputError, UsageError
from expportrait_cli.evaluation.scores import Mode

KEYS: dict[Mode, set[str]] = {"self": {"clip", "name"}, "cross": {"reference", "driving", "name"}}
"""Keys of a pair in a list, by mode."""
NUMBER, TEXT = (int, "a whole number"), (str, "a text")
KINDS = {
    "name": TEXT,
    "stride": NUMBER,
    "frames": NUMBER,
    "size": NUMBER,
    "cross_absolute": (bool, "true or false"),
    "rule": TEXT,
}
"""Settings that a list may have for all its pairs, with their types."""
NAME = re.compile(r"(?!\.{1,2}$)[^/\\\0\ud800-\udc7f\udd00-\udfff]+")
LONGEST_NAME = 200
"""Longest name of a pair, bytes: file systems take 255, and suffixes are added to the name."""
MOST = 10**9
"""Largest number of frames, and largest stride, of a suite."""


@dataclass(frozen=True)
class Pair:
    """A pair of photo and clip, for which a film is made and measured; paths as in the list."""

    name: str
    """Stem of its film."""
    mode: Mode
    """self: the clip is the ground truth, its first frame the photo. cross: the clip drives another person's photo."""
    driving: str
    reference: str = ""
    """The photo; empty in self mode."""


@dataclass(frozen=True)
class Suite:
    """Pairs, and settings for the choice of frames from all of them."""

    name: str
    folder: Path
    """Folder that the pairs' files are relative to."""
    pairs: tuple[Pair, ...]
    stride: int = 1
    """Step between the frames of a clip that are used; the frame rate is divided by it."""
    frames: int = 0
    """Largest number of frames of a clip, after the stride; 0 for all."""
    size: int = 512
    """Side of the square crop around the face, px."""
    cross_absolute: bool = False
    """True if cross mode takes the driver's own pose and expression, not their change from its neutral frame."""
    rule: str = "as listed"
    """Rule by which the pairs were chosen."""

    def path(self, name: str) -> Path:
        """Path of a pair's file."""
        return self.folder / name

    def settings(self) -> dict[str, Any]:
        """All settings, except the folder, as plain JSON types."""
        return {
            "name": self.name,
            "rule": self.rule,
            "stride": self.stride,
            "frames": self.frames,
            "size": self.size,
            "self": "the clip's first frame is the photo, the whole clip the truth",
            "cross": "the clip drives the photo; there is no truth; our films take the driver's "
            + (
                "own pose and expression"
                if self.cross_absolute
                else "own expression, and change of pose from its neutral frame"
            ),
            "crop": "one square around the face for the whole clip, as `expportrait track` takes it",
        }


def read_suite(path: Path) -> Suite:
    """Read a list of pairs in TOML: `[[self]]` with clip, `[[cross]]` with reference and driving, all with a name.

    Before these, the list may have name, stride, frames, size, cross_absolute, rule, and root: the folder that files
    are relative to, by default the list's own; variables like $HOME are expanded.

    Raises:
        InputError: the list is not valid, a file is missing, or a name is used twice.
    """
    rows = _parse(path)
    known = {*KINDS, "root", *KEYS}
    _refuse(path, "the list", set(rows) - known, known)
    chosen = {key: rows[key] for key in KINDS if key in rows}
    for key, value in chosen.items():
        kind, words = KINDS[key]
        # `bool` is a subclass of `int`.
        if type(value) is not kind:
            raise InputError(f"{path}: {key} is {str(value)[:60]!r}, expected {words}.")
    if not isinstance(rows.get("root", "."), str):
        raise InputError(f"{path}: root is no text, expected a folder.")
    folder = _root(path, rows.get("root", "."))
    chosen.setdefault("name", path.name.removesuffix(".toml").removesuffix(".suite"))
    return check(Suite(folder=folder, pairs=tuple(_pairs(path, rows)), **chosen), path)


def check(suite: Suite, source: Path) -> Suite:
    """Return the suite; raise InputError unless all files exist, and names are valid and unique. `source`: the list."""
    if not suite.pairs:
        raise InputError(f"{source} holds no pairs. Expected [[self]] with a clip, or [[cross]] with two files.")
    if suite.size not in SIZES:
        raise InputError(f"{source}: size is {suite.size}, expected one of {', '.join(map(str, SIZES))}.")
    if not 1 <= suite.stride <= MOST or not 0 <= suite.frames <= MOST or suite.frames == 1:
        raise InputError(f"{source}: stride must be 1 to {MOST:.0e}, and frames 2 to {MOST:.0e}, or 0 for all.")
    seen: set[str] = set()
    for pair in suite.pairs:
        if not NAME.fullmatch(pair.name) or len(os.fsencode(pair.name)) > LONGEST_NAME or pair.name in seen:
            raise InputError(
                f"{source}: {pair.name[:60]!r} is used twice, or cannot be a file name of at most {LONGEST_NAME} "
                "bytes. Give each pair a name of its own."
            )
        seen.add(pair.name)
        for name in (pair.driving, pair.reference):
            if name and not _is_file(suite.path(name)):
                raise InputError(f"{source}: {suite.path(name)} does not exist. Correct the list, or its root.")
    return suite


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # A name that no file can have: too long, or not encodable.
        return False


def write_list(suite: Suite, path: Path) -> None:
    """Write a suite as a list for `read_suite`."""
    # JSON strings are valid TOML strings.
    lines = [
        f"{key} = {json.dumps(value, ensure_ascii=False)}"
        for key, value in (
            ("name", suite.name),
            ("rule", suite.rule),
            ("root", str(suite.folder.resolve())),
            ("stride", suite.stride),
            ("frames", suite.frames),
            ("size", suite.size),
            ("cross_absolute", suite.cross_absolute),
        )
    ]
    for pair in suite.pairs:
        files = (
            {"clip": pair.driving} if pair.mode == "self" else {"reference": pair.reference, "driving": pair.driving}
        )
        rows = {"name": pair.name, **files}
        lines += ["", f"[[{pair.mode}]]", *(f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in rows.items())]
    path.write_text("\n".join(["# Written by expportrait.", *lines]) + "\n", "utf-8")


def _parse(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} could not be read as TOML: {error}.") from error


def _root(path: Path, root: str) -> Path:
    filled = os.path.expandvars(root)
    if "$" in filled:
        raise InputError(f"{path}: the root {root} names a variable that is not set. Set it to the clips' folder.")
    return path.parent / filled


def _pairs(path: Path, rows: Mapping[str, Any]) -> list[Pair]:
    pairs = []
    for mode, keys in KEYS.items():
        entries = rows.get(mode, [])
        if not isinstance(entries, list):
            raise InputError(f"{path}: write [[{mode}]] with two brackets, once for each pair.")
        for entry in entries:
            if not isinstance(entry, dict) or not isinstance(entry.get("name", ""), str):
                raise InputError(
                    f"{path}: a [[{mode}]] entry is no table, or its name is no text. Write name = '...' below it."
                )
            _refuse(path, f"[[{mode}]]", set(entry) - keys, keys)
            needed = sorted(keys - {"name"})
            if any(not isinstance(entry.get(key), str) or not entry[key] for key in needed):
                raise InputError(f"{path}: a [[{mode}]] without {' and '.join(needed)}.")
            driving, reference = entry.get("clip") or entry["driving"], entry.get("reference", "")
            usual = Path(film_name(Path(reference), Path(driving))).stem if reference else Path(driving).stem
            pairs.append(Pair(entry.get("name", usual), mode, driving, reference))
    return pairs


def _refuse(path: Path, place: str, unknown: set[str], known: set[str]) -> None:
    if unknown:
        raise InputError(
            f"{path}: {place} has {', '.join(sorted(unknown))}, which is unknown. "
            f"Expected are {', '.join(sorted(known))}."
        )


def given_films(methods: list[str]) -> dict[str, Path]:
    """Parse `NAME=FOLDER` of films of other methods.

    Raises:
        UsageError: a text is not of that form, a name is used twice, or a folder does not exist.
    """
    given: dict[str, Path] = {}
    for text in methods:
        name, _, folder = text.partition("=")
        if not name or not folder or name in given or not NAME.fullmatch(name):
            raise UsageError(f"`method={text}`: expected NAME=FOLDER, each name once.")
        if not Path(folder).is_dir():
            raise UsageError(
                f"`method={text}`: {folder} is no folder. Give a folder of films that have the names of the pairs."
            )
        given[name] = Path(folder)
    return given
