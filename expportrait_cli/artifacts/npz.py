"""Artifacts on disk: each dataclass is an .npz file with a header of kind, version and origin."""

import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from io import BufferedReader
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast, get_type_hints

import numpy as np

from expportrait_cli.artifacts.files import atomic_path
from expportrait_cli.artifacts.texts import parse_json
from expportrait_cli.artifacts.types import Range
from expportrait_cli.errors import InputError

A = TypeVar("A")
S = TypeVar("S", str, int, float)
HEADER = "header"
ADVICE = {
    ("head", "track"): "A fitted head is given to fit as `head`, and to transfer before the .track.npz.",
    ("meshes", "track"): "Meshes go to render-normals, export and generate; give the driver's .track.npz here.",
    ("track", "head"): "Make a head of it with `expportrait fit`; in transfer, the head comes first.",
    ("meshes", "head"): "Give the .head.npz that it was made with.",
    ("track", "meshes"): "Make meshes with `expportrait transfer HEAD TRACK`.",
    ("head", "meshes"): "Make meshes with `expportrait transfer HEAD TRACK`.",
}
"""Advice in error messages, by the kind of artifact that was found and the kind that was expected."""
EPOCH = (1980, 1, 1, 0, 0, 0)
MEMBERS_BYTES = 1 << 24
"""Largest zip directory that is read, bytes: enough for 200,000 members, or three million frames of meshes."""
SMALL_BYTES, DENSEST = 1 << 27, 20
"""Arrays that unpack to more than `SMALL_BYTES` must occupy at least 1 / `DENSEST` of that on disk. Real ones occupy
half; an array of equal numbers could occupy a thousandth, so that a small file would fill the memory."""
HEADER_BYTES = 1 << 22
LONGEST_TEXT = 1 << 16
KINDS = {str: "U", int: "i", float: "f"}
BROKEN = (
    *(zipfile.BadZipFile, zlib.error, struct.error, ValueError, SyntaxError, OverflowError),
    *(EOFError, OSError, NotImplementedError, RuntimeError, MemoryError),
)
"""Exceptions that `zipfile` and numpy raise when a file is damaged."""


def save(artifact: Any, path: str | os.PathLike[str], made_by: Mapping[str, Any]) -> Path:
    """Write a frozen dataclass with KIND and VERSION; the same content gives the same bytes.

    `made_by`: tool version, settings and input hashes, serialisable to JSON.
    """
    with atomic_path(path) as partial, partial.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        write_header(archive, artifact.KIND, artifact.VERSION, made_by)
        for field in fields(artifact):
            write_member(archive, field.name, np.asarray(getattr(artifact, field.name)))
    return Path(path)


def load(cls: type[A], path: str | os.PathLike[str]) -> A:
    """Read an artifact and check kind, version, types, and that the shapes fit each other.

    Raises:
        InputError: the file is missing, damaged, of another kind, newer than this tool, or contains pickled objects.
    """
    kind, version = cast(Any, cls).KIND, cast(Any, cls).VERSION
    with open_archive(path) as archive:
        check_header(path, header_of(path, archive), kind, version)
        values = read_members(path, archive, [field.name for field in fields(cast(Any, cls))])
    return checked(path, kind, cls, values)


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read only the header: `kind`, `version` and `made_by`."""
    with open_archive(path) as archive:
        return header_of(path, archive)


def check_kind(path: str | os.PathLike[str], kind: str) -> None:
    """Raise InputError unless the file's header has this kind; reads nothing else."""
    _check_kind(path, read_header(path), kind)


def write_header(archive: zipfile.ZipFile, kind: str, version: int, made_by: Mapping[str, Any]) -> None:
    """Write the header, as JSON in an array of bytes."""
    text = json.dumps({"kind": kind, "version": version, "made_by": made_by}, sort_keys=True)
    write_member(archive, HEADER, np.frombuffer(text.encode(), np.uint8))


def write_member(archive: zipfile.ZipFile, name: str, array: np.ndarray, *, level: int = 6) -> None:
    """Write one array, without a time stamp; `level`: zlib's compression level, 0 for none."""
    member = zipfile.ZipInfo(f"{name}.npy", EPOCH)
    member.compress_type = zipfile.ZIP_DEFLATED if level else zipfile.ZIP_STORED
    member._compresslevel = level  # pyright: ignore[reportAttributeAccessIssue]
    with archive.open(member, "w", force_zip64=True) as file:
        np.lib.format.write_array(cast(BinaryIO, file), array, allow_pickle=False)


def open_archive(path: str | os.PathLike[str]) -> zipfile.ZipFile:
    """Open an .npz for reading; raises InputError if it is not one of this tool's."""
    try:
        with Path(path).open("rb") as file:
            if _table_bytes(file) > MEMBERS_BYTES:
                raise zipfile.BadZipFile
        archive = zipfile.ZipFile(path)
        rows = sorted(archive.infolist(), key=lambda row: row.header_offset)
        is_layered = any(a.header_offset + a.compress_size >= b.header_offset for a, b in pairwise(rows))
        if is_layered or len(set(archive.namelist())) < len(rows):
            archive.close()
            raise InputError(f"{path} is damaged: members of the archive occur twice or overlap. Make it again.")
        return archive
    except FileNotFoundError:
        raise InputError(f"{path} does not exist. Check the name and the folder.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, expected an .npz artifact.") from None
    except BROKEN:
        is_named = Path(path).suffix == ".npz"
        remedy = "or it is cut off. Make it again." if is_named else "they end in .npz. Check the name."
        raise InputError(f"{path} is not an artifact of this tool, {remedy}") from None


def _table_bytes(file: BufferedReader) -> int:
    """Size of a zip file's directory, as stated in its last bytes; `zipfile` reads all of it at once."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 66_000))
    tail = file.read()
    end, large = tail.rfind(b"PK\5\6"), tail.rfind(b"PK\6\6")
    found = int.from_bytes(tail[end + 12 : end + 16], "little")
    return max(found, int.from_bytes(tail[large + 40 : large + 48], "little") if large >= 0 else 0)


def header_of(path: str | os.PathLike[str], archive: zipfile.ZipFile) -> dict[str, Any]:
    """Read the header of an open artifact."""
    if f"{HEADER}.npy" not in archive.namelist():
        raise InputError(f"{path} has no header: it is not an artifact of this tool.")
    try:
        if archive.getinfo(f"{HEADER}.npy").file_size > HEADER_BYTES:
            raise ValueError(f"it has more than {HEADER_BYTES >> 20} MB")
        header = parse_json(read_member(path, archive, HEADER).tobytes())
    except ValueError as error:
        raise InputError(f"{path} has a damaged header: {error}. Make it again.") from error
    if not isinstance(header, dict) or not {"kind", "version", "made_by"} <= header.keys():
        raise InputError(f"{path} has a damaged header: expected kind, version and made_by. Make it again.")
    return header


def check_header(path: str | os.PathLike[str], header: Mapping[str, Any], kind: str, version: int) -> None:
    """Raise InputError unless the header has the kind and version that the caller reads."""
    _check_kind(path, header, kind)
    if header["version"] != version:
        found = header["version"] if isinstance(header["version"], int) else str(header["version"])[:80]
        is_newer = isinstance(found, int) and found > version
        remedy = "Update the tool." if is_newer else "Make it again."
        raise InputError(f"{path} is version {found} of '{kind}', this tool reads version {version}. {remedy}")


def _check_kind(path: str | os.PathLike[str], header: Mapping[str, Any], kind: str) -> None:
    found = str(header["kind"])[:80]
    if found != kind:
        advice = ADVICE.get((found, kind), f"Give a .{kind}.npz file.")
        raise InputError(f"{path} is a '{found}' artifact, expected '{kind}'. {advice}")


def read_member(path: str | os.PathLike[str], archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Read one array; raises InputError for damaged ones and for pickled objects."""
    return read_members(path, archive, [name])[name]


def read_members(path: str | os.PathLike[str], archive: zipfile.ZipFile, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read arrays, after a check that their unpacked size is plausible (`DENSEST`)."""
    rows = {}
    for name in names:
        try:
            rows[name] = archive.getinfo(f"{name}.npy")
        except KeyError:
            raise InputError(f"{path} lacks '{name}'. Make it again.") from None
    total, packed = (sum(each) for each in zip(*((r.file_size, r.compress_size) for r in rows.values()), strict=True))
    if total > max(SMALL_BYTES, DENSEST * packed):
        raise InputError(f"{path} would unpack from {packed} bytes to {total}, which no array does. Make it again.")
    return {name: _read(path, archive, name, row) for name, row in rows.items()}


def _read(path: str | os.PathLike[str], archive: zipfile.ZipFile, name: str, row: zipfile.ZipInfo) -> np.ndarray:
    try:
        if row.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("a compression that numpy does not write")
        with archive.open(row) as file:
            _check_form(cast(zipfile.ZipExtFile, file), row.file_size)
            file.seek(0)
            return np.lib.format.read_array(cast(BinaryIO, file), allow_pickle=False)
    except BROKEN as error:
        is_pickle = "allow_pickle" in str(error)
        found = "holds pickled objects, which could run code; they are not read" if is_pickle else "is damaged"
        raise InputError(f"{path} {found} ('{name}'). Make it again.") from error


def _check_form(file: zipfile.ZipExtFile, size: int) -> None:
    """Raise ValueError unless an array's header fits the member's size: numpy allocates the size in the header."""
    # Only version 1.0, which numpy writes for plain numbers: its header has 64 KB at most.
    stream = cast(BinaryIO, file)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("not the first version of the format")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject:
        raise ValueError("allow_pickle is never given")
    if dtype.kind not in "biufU" or len(shape) > 8 or min(shape, default=0) < 0:
        raise ValueError("no plain array")
    if math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError("an array of another size")


def checked(path: str | os.PathLike[str], kind: str, cls: type[A], values: Mapping[str, np.ndarray]) -> A:
    """Build a dataclass from arrays; raises InputError unless types, shapes and values fit annotations and ranges."""
    hints = get_type_hints(cls)
    plain: dict[str, Any] = {}
    for name, hint in hints.items():
        if hint in (str, int, float):
            plain[name] = scalar(path, name, values[name], cast(Any, hint))
    check_arrays(path, kind, values, {name: hints[name] for name in values if name not in plain})
    check_values(path, values, getattr(cls, "RANGES", {}))
    artifact = cls(**{**values, **plain})
    fault = artifact.fault() if hasattr(artifact, "fault") else ""  # pyright: ignore[reportAttributeAccessIssue]
    if fault:
        raise InputError(f"{path} holds {fault}. Make it again.")
    return artifact


def scalar(path: str | os.PathLike[str], name: str, value: np.ndarray, kind: type[S]) -> S:
    """Convert an array of a single value to str, int or float."""
    if value.shape != () or value.dtype.kind != KINDS[kind] or (kind is str and value.itemsize > 4 * LONGEST_TEXT):
        raise InputError(f"{path} holds '{name}' as {_form(value)}, expected one {kind.__name__}. Make it again.")
    try:
        found = kind(value[()])
    except (ValueError, SystemError) as error:
        raise InputError(f"{path} holds '{name}', which is no text. Make it again.") from error
    if kind is str and "\0" in cast(str, found):
        raise InputError(f"{path} holds '{name}' with a zero byte, which no text has. Make it again.")
    return found


def check_values(path: str | os.PathLike[str], values: Mapping[str, np.ndarray], ranges: Mapping[str, Range]) -> None:
    """Raise InputError unless numbers are in their ranges, or finite where there is no range."""
    for name, value in values.items():
        limits = ranges.get(name)
        if value.dtype.kind not in "iuf" or (limits is None and value.dtype.kind != "f"):
            continue
        low, high, has_nan = limits or Range(-math.inf, math.inf)
        # A bound beyond the array's type becomes infinite.
        with np.errstate(over="ignore"):
            is_right = np.isfinite(value) if limits is None else (value >= low) & (value <= high)
        if has_nan:
            is_right |= np.isnan(value)
        if not is_right.all():
            place = tuple(np.argwhere(~is_right)[0].tolist())
            least, most = (float(np.broadcast_to(bound, value.shape)[place]) for bound in (low, high))
            expected = f"{least:g} to {most:g}" if limits else "finite numbers"
            at = f" at {list(place)}" if place else ""
            raise InputError(f"{path} holds '{name}' with {value[place]:g}{at}, expected {expected}. Make it again.")


def check_arrays(
    path: str | os.PathLike[str], kind: str, values: Mapping[str, np.ndarray], hints: Mapping[str, Any]
) -> None:
    """Raise InputError unless each array has the type and shape of its annotation.

    A letter has the same size in all shapes. `jaxtyped("context")` would check this too, but imports jax.
    """
    sizes: dict[str, int] = {}
    for name, hint in hints.items():
        value, shape = values[name], hint.dim_str.split()
        is_right = value.dtype.name in hint.dtypes and value.ndim == len(shape)
        for word, size in zip(shape, value.shape, strict=False):
            is_right &= size == (int(word) if word.isdigit() else sizes.setdefault(word, size))
        if not is_right:
            raise InputError(
                f"{path} holds '{name}' as {_form(value)}, which does not fit {hint.dtypes[0]} {'x'.join(shape)} of a "
                f"'{kind}' artifact. Make it again."
            )


def _form(value: np.ndarray) -> str:
    return f"{value.dtype} {'x'.join(map(str, value.shape)) or 'scalar'}"
