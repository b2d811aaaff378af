"""Reading of text, JSON and TOML files; too large ones, repeated keys and numbers that are not finite are refused."""

import codecs
import csv
import io
import json
import math
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# UTF-32 first: its byte order mark begins with that of UTF-16.
MARKED = (
    *((mark, "utf-32") for mark in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)),
    *((mark, "utf-16") for mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)),
)
LONGEST_JSON, LONGEST_TOML = 1 << 28, 1 << 22
"""Largest JSON and TOML files that are read, bytes. `dataset.json` has 1.5 KB a clip; TOML is parsed slowly."""


def read_text(path: str | os.PathLike[str], longest: int) -> str:
    """Read a text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark, as spreadsheets and PowerShell save it.

    Raises:
        OSError, ValueError: what is wrong, in one line.
    """
    with Path(path).open("rb") as file:
        content = file.read(longest + 1)
    if len(content) > longest:
        raise ValueError(f"it has more than {longest >> 20} MB, the most that is read")
    marked = next((encoding for mark, encoding in MARKED if content.startswith(mark)), "utf-8-sig")
    return content.decode(marked)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a file as `parse_json` does.

    Raises:
        OSError, ValueError: what is wrong, in one line.
    """
    return parse_json(read_text(path, LONGEST_JSON))


def table_rows(text: str) -> tuple[str, Iterator[tuple[int, list[str]]]]:
    """Delimiter of a text table (comma, semicolon or tab), and its rows as cells, with the number of the last line.

    The delimiter is found in the first line that is not blank, unless a line `sep=;` before it, as Excel writes, names
    it. Reading the rows may raise `csv.Error`.
    """
    named = re.match(r"sep=(.)\r?\n", text)
    text = "\n" + text[named.end() :] if named else text
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = named[1] if named else max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    return delimiter, ((reader.line_num, cells) for cells in reader)


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
    # Python refuses numbers of thousands of digits, and floats overflow at hundreds.
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
        return tomllib.loads(read_text(path, LONGEST_TOML))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
