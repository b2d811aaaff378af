"""Artifacts on disk: one .npz a dataclass, with a header that says what it is and how it was made."""

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast, get_type_hints

import numpy as np
from jaxtyping import jaxtyped

from expportrait_cli.artifacts.files import atomic_path
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
"""What to do with one kind of artifact where another was expected."""
EPOCH = (1980, 1, 1, 0, 0, 0)
BROKEN = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, NotImplementedError, RuntimeError, MemoryError)


def save(artifact: Any, path: str | os.PathLike[str], made_by: Mapping[str, Any]) -> Path:
    """Write a frozen dataclass with KIND and VERSION; the same content gives the same bytes.

    `made_by` is what JSON can hold: tool version, settings, input hashes.
    """
    with atomic_path(path) as partial, partial.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        write_header(archive, artifact.KIND, artifact.VERSION, made_by)
        for field in fields(artifact):
            write_member(archive, field.name, np.asarray(getattr(artifact, field.name)))
    return Path(path)


def load(cls: type[A], path: str | os.PathLike[str]) -> A:
    """Read an artifact and check kind, version, types, and that the shapes fit each other.

    Raises:
        InputError: the file is missing, damaged, something else, newer than this tool, or would run code.
    """
    kind, version = cast(Any, cls).KIND, cast(Any, cls).VERSION
    with open_archive(path) as archive:
        check_header(path, header_of(path, archive), kind, version)
        values = {field.name: read_member(path, archive, field.name) for field in fields(cast(Any, cls))}
    return checked(path, kind, cls, values)


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read `kind`, `version` and `made_by` alone."""
    with open_archive(path) as archive:
        return header_of(path, archive)


def check_kind(path: str | os.PathLike[str], kind: str) -> None:
    """Raise InputError unless the file's header says that it is of this kind; reads nothing else."""
    _check_kind(path, read_header(path), kind)


def write_header(archive: zipfile.ZipFile, kind: str, version: int, made_by: Mapping[str, Any]) -> None:
    """Put the header in, as JSON in an array of bytes."""
    text = json.dumps({"kind": kind, "version": version, "made_by": made_by}, sort_keys=True)
    write_member(archive, HEADER, np.frombuffer(text.encode(), np.uint8))


def write_member(archive: zipfile.ZipFile, name: str, array: np.ndarray, *, level: int = 6) -> None:
    """Add one array, without a time stamp; `level` is zlib's."""
    member = zipfile.ZipInfo(f"{name}.npy", EPOCH)
    member.compress_type = zipfile.ZIP_DEFLATED
    member._compresslevel = level  # pyright: ignore[reportAttributeAccessIssue]
    with archive.open(member, "w", force_zip64=True) as file:
        np.lib.format.write_array(cast(BinaryIO, file), array, allow_pickle=False)


def open_archive(path: str | os.PathLike[str]) -> zipfile.ZipFile:
    """Open an .npz for reading, or say why it is none."""
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist. Check the name and the folder.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, expected an .npz artifact.") from None
    except BROKEN:
        is_named = Path(path).suffix == ".npz"
        remedy = "or it is cut off. Make it again." if is_named else "they end in .npz. Check the name."
        raise InputError(f"{path} is not an artifact of this tool, {remedy}") from None


def header_of(path: str | os.PathLike[str], archive: zipfile.ZipFile) -> dict[str, Any]:
    """Read the header of an open artifact."""
    if f"{HEADER}.npy" not in archive.namelist():
        raise InputError(f"{path} has no header: it is not an artifact of this tool.")
    try:
        header = json.loads(read_member(path, archive, HEADER).tobytes())
    except ValueError:
        header = None
    if not isinstance(header, dict) or not {"kind", "version", "made_by"} <= header.keys():
        raise InputError(f"{path} has a damaged header. Make it again.")
    return header


def check_header(path: str | os.PathLike[str], header: Mapping[str, Any], kind: str, version: int) -> None:
    """Raise InputError unless the file is of the kind and version that the caller reads."""
    _check_kind(path, header, kind)
    if header["version"] != version:
        found = header["version"]
        is_newer = isinstance(found, int) and found > version
        remedy = "Update the tool." if is_newer else "Make it again."
        raise InputError(f"{path} is version {found} of '{kind}', this tool reads version {version}. {remedy}")


def _check_kind(path: str | os.PathLike[str], header: Mapping[str, Any], kind: str) -> None:
    found = header["kind"]
    if found != kind:
        advice = ADVICE.get((str(found), kind), f"Give a .{kind}.npz file.")
        raise InputError(f"{path} is a '{found}' artifact, expected '{kind}'. {advice}")


def read_member(path: str | os.PathLike[str], archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Read one array; never one that holds pickled objects."""
    try:
        with archive.open(f"{name}.npy") as file:
            return np.lib.format.read_array(cast(BinaryIO, file), allow_pickle=False)
    except KeyError:
        raise InputError(f"{path} lacks '{name}'. Make it again.") from None
    except BROKEN as error:
        is_pickle = "allow_pickle" in str(error)
        found = "holds pickled objects, which could run code; they are not read" if is_pickle else "is damaged"
        raise InputError(f"{path} {found} ('{name}'). Make it again.") from error


def checked(path: str | os.PathLike[str], kind: str, cls: type[A], values: Mapping[str, np.ndarray]) -> A:
    """Build a dataclass from arrays whose types and shapes fit its annotations and each other."""
    hints = get_type_hints(cls)
    plain: dict[str, Any] = {}
    for name, hint in hints.items():
        if hint in (str, int, float):
            plain[name] = scalar(path, name, values[name], cast(Any, hint))
    check_arrays(path, kind, values, {name: hints[name] for name in values if name not in plain})
    return cls(**{**values, **plain})


def scalar(path: str | os.PathLike[str], name: str, value: np.ndarray, kind: type[S]) -> S:
    """Take a single str, int or float out of its array."""
    if value.shape != () or value.dtype.kind != {str: "U", int: "i", float: "f"}[kind]:
        raise InputError(f"{path} holds '{name}' as {_form(value)}, expected one {kind.__name__}. Make it again.")
    return kind(value[()])


def check_arrays(
    path: str | os.PathLike[str], kind: str, values: Mapping[str, np.ndarray], hints: Mapping[str, Any]
) -> None:
    """Raise InputError unless each array has the type and shape of its annotation."""
    # One context for all of them: the letters of the shapes must mean the same number in each.
    with jaxtyped("context"):
        for name, hint in hints.items():
            if not isinstance(values[name], hint):
                expected = f"{hint.dtypes[0]} {'x'.join(hint.dim_str.split())}"
                raise InputError(
                    f"{path} holds '{name}' as {_form(values[name])}, which does not fit {expected} of a '{kind}' "
                    "artifact. Make it again."
                )


def _form(value: np.ndarray) -> str:
    return f"{value.dtype} {'x'.join(map(str, value.shape)) or 'scalar'}"
