"""Curves as a table that a spreadsheet or a script can edit: one row a frame."""

import csv
import io
import math
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from expportrait_cli.artifacts.files import atomic_path
from expportrait_cli.artifacts.texts import read_text, table_rows
from expportrait_cli.artifacts.types import Curves
from expportrait_cli.errors import InputError

COLUMNS = {
    "jaw": ("jaw_x", "jaw_y", "jaw_z"),
    "gaze": ("gaze_left_pitch", "gaze_left_yaw", "gaze_right_pitch", "gaze_right_yaw"),
    "rotation": ("head_rx", "head_ry", "head_rz"),
    "translation": ("head_tx", "head_ty", "head_tz"),
    "torso_rotation": ("torso_rx", "torso_ry", "torso_rz"),
    "torso_translation": ("torso_tx", "torso_ty", "torso_tz"),
}
"""Column names of each field of `Curves` except `expression`, whose columns are the head model's expression names."""

LONGEST = 1 << 28
"""Largest table that is read, bytes: three hours at 30 frames a second."""
ANGLES = ("jaw", "gaze", "rotation", "torso_rotation")
"""Fields that are in degrees in the table; the others are as in `Curves`: coefficients and metres."""


def csv_of(curves: Curves, names: Sequence[str]) -> str:
    """Format curves as the text of a CSV table; `names` are the head model's expression names."""
    columns = ["frame", *names, *(column for group in COLUMNS.values() for column in group)]
    blocks = [np.asarray(getattr(curves, field), np.float64) for field in _order()]
    table = np.concatenate(
        [np.rad2deg(block) if field in ANGLES else block for field, block in zip(_order(), blocks, strict=True)], 1
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([frame, *(f"{value:.9g}" for value in row)] for frame, row in enumerate(table))
    return text.getvalue()


def write_csv(curves: Curves, names: Sequence[str], path: str | os.PathLike[str]) -> Path:
    """Write the table of `csv_of` to a file."""
    with atomic_path(path) as partial:
        partial.write_bytes(csv_of(curves, names).encode())
    return Path(path)


def read_csv(path: str | os.PathLike[str], names: Sequence[str]) -> Curves:
    """Read a table with exactly the columns of `write_csv`, in any order, frames counted from 0.

    Cells may be separated by semicolons or tabs, as spreadsheets save them; numbers may have decimal commas then.

    Raises:
        InputError: the table cannot be read or does not fit; names file, line and column.
    """
    columns = ["frame", *names, *(column for group in COLUMNS.values() for column in group)]
    lines = _rows(path)
    header = [name.strip() for name in lines[0][1]] if lines else []
    _check_header(path, header, columns)
    table = np.empty((len(lines) - 1, len(columns)))
    place = [columns.index(name) for name in header]
    for frame, (line, cells) in enumerate(lines[1:]):
        if len(cells) != len(columns):
            raise InputError(f"{path}, line {line}: {len(cells)} cells, expected {len(columns)}.")
        table[frame, place] = [_number(path, line, name, cell) for name, cell in zip(header, cells, strict=True)]
        if table[frame, 0] != frame:
            raise InputError(f"{path}, line {line}, column frame: found {table[frame, 0]:g}, expected {frame}.")
    if not len(table):
        raise InputError(f"{path} has no frames: only the header is there.")
    return _curves(table[:, 1:], len(names))


def _rows(path: str | os.PathLike[str]) -> list[tuple[int, list[str]]]:
    """Line number and cells of each line that is not blank."""
    try:
        delimiter, lines = table_rows(read_text(path, LONGEST))
        # Where commas separate no cells, they are those of decimal numbers.
        rows = [
            (line, cells if delimiter == "," else [cell.replace(",", ".") for cell in cells]) for line, cells in lines
        ]
        return [(line, cells) for line, cells in rows if any(cell.strip() for cell in cells)]
    except FileNotFoundError:
        raise InputError(f"{path} does not exist. Check the name and the folder.") from None
    except OSError as error:
        raise InputError(f"{path} could not be read: {error.strerror}.") from error
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} is not a table of comma-separated values ({error}).") from error


def _check_header(path: str | os.PathLike[str], header: list[str], columns: list[str]) -> None:
    for name in columns:
        if name not in header:
            raise InputError(f"{path}, line 1: column '{name}' is missing.")
    for name in header:
        if name not in columns:
            raise InputError(f"{path}, line 1: column '{name}' is unknown. This head has: {', '.join(columns)}.")
        if header.count(name) > 1:
            raise InputError(f"{path}, line 1: column '{name}' is there twice.")


def _number(path: str | os.PathLike[str], line: int, column: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    # A million is far above any meaningful angle or length, and fits float32.
    if not abs(value) < 1e6:
        raise InputError(f"{path}, line {line}, column {column}: '{cell}' is not a number that can be used.")
    return value


def _order() -> list[str]:
    return [field.name for field in fields(Curves)]


def _curves(table: np.ndarray, expressions: int) -> Curves:
    widths = [expressions if field == "expression" else len(COLUMNS[field]) for field in _order()]
    blocks = np.split(table, np.cumsum(widths)[:-1], axis=1)
    values = {
        field: (np.deg2rad(block) if field in ANGLES else block).astype(np.float32)
        for field, block in zip(_order(), blocks, strict=True)
    }
    return Curves(**values)
