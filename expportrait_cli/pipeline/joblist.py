"""Lists of jobs: a table with a header line (CSV, spreadsheet), JSON lines, or patterns of file names."""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from glob import glob
from pathlib import Path
from typing import Any, TypeVar, get_args
from zipfile import BadZipFile

from expportrait_cli.artifacts.files import film_name
from expportrait_cli.artifacts.texts import parse_json, read_text, table_rows
from expportrait_cli.config import (
    CHANGES,
    PAPER,
    SECTIONS,
    SIZES,
    FitConfig,
    GenerateConfig,
    Stretch,
    TrackConfig,
    TransferConfig,
    WanConfig,
)
from expportrait_cli.errors import InputError, UsageError, WeightsError
from expportrait_cli.head import HeadName
from expportrait_cli.pipeline.job import Job
from expportrait_cli.runtime import expected

T = TypeVar("T")

WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
LONGEST = 1 << 26
"""Largest list that is read, bytes: a million rows."""
PATHS = ("reference", "driving", "output", "curves")
"""Columns that are paths, relative to the list."""
REFUSED: dict[Any, tuple[str, ...]] = {
    TrackConfig: ("several", "stretch"),
    FitConfig: ("supervision", "recenter", "detail", "rounds", "iterations", "descent"),
    TransferConfig: ("folds",),
    GenerateConfig: ("wan",),
}
"""Settings of each section that are no columns. `several`: in a batch, several faces without a choice are always an
error. `stretch` and `wan` have columns of their own. `folds` needs the driver's head, which a row does not have. Of the
fit, columns are those that are options of `generate`."""


def read_jobs(
    path: Path, folder: Path, *, shared: Path | None = None, defaults: Mapping[str, Any] | None = None
) -> list[Job]:
    """Read the jobs of a list; films of rows without an output go to `folder`, as REF--DRIVING.mp4.

    `shared`: folder of the jobs' trackings, so that a clip that drives many photos is tracked once. `defaults`: values
    of columns for rows that have none.

    Raises:
        InputError: a row is not valid, or two rows would write one film; the message has the line.
    """
    jobs = _distinct(_rows(path), path, path.parent, folder, shared, defaults or {})
    if not jobs:
        raise InputError(f"{path} holds no jobs. Expected columns reference, driving and output.")
    return jobs


def is_pattern(text: str) -> bool:
    """True if a text is a pattern of file names: it has one of the signs *?[, and is no file's name itself."""
    return any(sign in text for sign in "*?[") and not Path(text).exists()


def pattern_jobs(
    references: str, driving: str, folder: Path, *, shared: Path, defaults: Mapping[str, Any] | None = None
) -> list[Job]:
    """Pair every file of the pattern `references` with every clip of the pattern `driving`.

    Raises:
        InputError: no file matches a pattern.
    """
    found = []
    for pattern in (references, driving):
        paths = sorted(Path(name) for name in glob(pattern, recursive=True) if Path(name).is_file())  # noqa: PTH207
        if not paths:
            raise InputError(f"No file matches {pattern}. Put the pattern in quotes, and check the folder.")
        found.append(paths)
    pairs = [(str(photo), str(clip)) for photo in found[0] for clip in found[1]]
    rows = ((number, {"reference": photo, "driving": clip}) for number, (photo, clip) in enumerate(pairs, 1))
    return _distinct(rows, Path(f"{references} with {driving}"), Path(), folder, shared, defaults or {})


def _distinct(
    rows: Iterable[tuple[int, dict[str, Any]]],
    path: Path,
    base: Path,
    folder: Path,
    shared: Path | None,
    defaults: Mapping[str, Any],
) -> list[Job]:
    """Make the jobs of rows; raise InputError if two would write the same film."""
    jobs: dict[Path, Job] = {}
    for number, row in rows:
        job = replace(_job({**defaults, **row}, base, folder, f"{path}, line {number}"), shared=shared)
        if job.out.absolute() in jobs:
            raise InputError(f"{path}, line {number}: an earlier line writes {job.out} too. Name another output.")
        jobs[job.out.absolute()] = job
    return list(jobs.values())


def part_of(jobs: Sequence[T], part: str) -> Sequence[T]:
    """Take every N-th job from the I-th on, for `part` I/N, such as the share of one of N GPUs.

    Raises:
        UsageError: `part` is not of that form.
    """
    index, _, count = part.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UsageError(f"`part={part}`: expected I/N with I from 1 to N, e.g. 2/4.")
    return jobs[int(index) - 1 :: int(count)]


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix.lower() == ".xlsx":
        yield from _named(path, _sheet(path))
        return
    try:
        text = read_text(path, LONGEST)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} could not be read as text: {error}. Save it as CSV or JSONL in UTF-8.") from error
    if "\0" in text:
        raise InputError(f"{path} holds zero bytes, which no text has. Save it as CSV or JSONL in UTF-8.")
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        # Not `splitlines`: JSON strings may hold its other line separators, such as U+2028.
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield number, _object(path, number, line)
    else:
        yield from _table(path, text)


def _table(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of CSV by the names of their columns, with the line of each."""
    number = 0
    try:
        for number, row in _named(path, table_rows(text)[1]):
            yield number, row
    except csv.Error as error:
        raise InputError(f"{path}, after line {number}: no table of cells ({error}). Expected CSV.") from error


def _named(path: Path, lines: Iterable[tuple[int, list[str]]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield rows by column name; the first line that is not blank has the names."""
    header: list[str] | None = None
    for number, line in lines:
        cells = [cell.strip() for cell in line]
        if not any(cells):
            continue
        if header is None:
            header = ["_".join(cell.lower().replace("-", " ").split()) for cell in cells]
            if twice := sorted({name for name in header if name and header.count(name) > 1}):
                raise InputError(f"{path}, line {number}: column {twice[0][:60]} is there twice.")
            continue
        if any(cells[len(header) :]):
            raise InputError(f"{path}, line {number}: more cells than the header has columns.")
        yield number, {key: cell for key, cell in zip(header, cells, strict=False) if key and cell}


def _sheet(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield rows of the first sheet of a spreadsheet, as texts; formulas give the values that were saved with them."""
    try:
        from openpyxl import load_workbook
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError:
        raise WeightsError(
            f"{path}: spreadsheets need openpyxl. Install the tool with its extra, pip install '.[sheets]', or save it "
            "as .csv."
        ) from None
    try:
        book = load_workbook(path, read_only=True, data_only=True)
        for number, row in enumerate(book.worksheets[0].iter_rows(values_only=True), 1):
            # Spreadsheets store every number as a float: 256.0 means 256.
            yield number, ["" if v is None else f"{v:g}" if isinstance(v, float) else str(v) for v in row]
    except (InvalidFileException, BadZipFile, KeyError, ValueError, OSError) as error:
        raise InputError(f"{path} could not be read as a spreadsheet: {error}. Save it as .xlsx or .csv.") from error


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise InputError(f"{path}, line {number}: no JSON ({error}).") from error
    if not isinstance(row, dict):
        raise InputError(f"{path}, line {number}: expected an object with reference and driving.")
    return row


def _job(row: dict[str, Any], base: Path, folder: Path, place: str) -> Job:
    row = dict(row)
    for name in ("reference", "driving"):
        if not row.get(name):
            unknown = ", ".join(sorted(set(row) - set(columns())))[:60]
            found = f", found {unknown}" if unknown else ""
            raise InputError(f"{place}: no {name}. Expected at least reference and driving{found}.")
    strange = next((name for name, cell in row.items() if isinstance(cell, (dict, list)) or "\0" in str(cell)), None)
    if strange is not None:
        raise InputError(f"{place}: {strange[:60]} is not a text, a number, true or false.")
    named = {name: Path(str(row.pop(name))) for name in PATHS if name in row}
    reference, driving = base / named["reference"], base / named["driving"]
    out = base / named["output"] if "output" in named else folder / film_name(reference, driving)
    if out.suffix.lower() != ".mp4":
        raise InputError(f"{place}: the output's name must end in .mp4, found {out.name}.")
    grid = _value(row.pop("grid", False), False, "grid", place)
    driving_face = str(row.pop("driving_face", TrackConfig.face))
    head_model = row.pop("head_model", None)
    if head_model not in (None, *get_args(HeadName)):
        raise InputError(
            f"{place}: head_model is {str(head_model)[:60]!r}, expected one of {', '.join(get_args(HeadName))}."
        )
    stretches = [_stretch(row, prefix, place) for prefix in ("", "reference_")]
    _short_forms(row, place)
    sections = {section: _section(cls, row, place) for section, cls in SECTIONS.items()}
    sections["track"] = replace(sections["track"], stretch=stretches[1])
    if sections["transfer"].network:
        sections["transfer"] = replace(sections["transfer"], network=str(base / sections["transfer"].network))
    sections["generate"] = replace(sections["generate"], wan=_wan(row, base, place))
    if row:
        close = get_close_matches(min(row), columns(), 1)
        hint = f" Did you mean {close[0]}?" if close else f" Columns are: {', '.join(columns())}."
        raise InputError(f"{place}: unknown column {', '.join(sorted(row))}.{hint}")
    curves = base / named["curves"] if "curves" in named else None
    return Job(
        reference,
        driving,
        out,
        driving_face=driving_face,
        driving_stretch=stretches[0],
        head_model=head_model,
        curves=curves,
        grid=grid,
        **sections,
    )


def columns() -> list[str]:
    """List every column that a list may have."""
    sections = (*SECTIONS.values(), WanConfig)
    own = [field.name for cls in sections for field in fields(cls) if field.name not in REFUSED.get(cls, ())]
    trims = [f"{prefix}{field.name}" for prefix in ("", "reference_") for field in fields(Stretch)]
    names = [*PATHS, "driving_face", "head_model", *trims, "grid", "absolute", *own]
    return list(dict.fromkeys(names))


def _stretch(row: dict[str, Any], prefix: str, place: str) -> Stretch:
    """Range of the driver's frames, or with prefix `reference_` of the reference's."""
    chosen = {}
    for field in fields(Stretch):
        if (name := f"{prefix}{field.name}") in row:
            chosen[field.name] = _value(row.pop(name), field.default, name, place)
            if wanted := expected(Stretch, field.name, chosen[field.name]):
                raise InputError(f"{place}: {name} is {chosen[field.name]!r}, expected {wanted}.")
    return Stretch(**chosen)


def _short_forms(row: dict[str, Any], place: str) -> None:
    """Replace the column `absolute` by the settings that it stands for, in place."""
    if "absolute" not in row:
        return
    meant = PAPER if _value(row.pop("absolute"), False, "absolute", place) else CHANGES
    for name in ("expression", "pose"):
        if name in row:
            raise InputError(f"{place}: the column `absolute` sets `{name}` too. Leave one of them out.")
        row[name] = getattr(meant, name)
    row.setdefault("neutral_frame", meant.neutral_frame)


def _wan(row: dict[str, Any], base: Path, place: str) -> WanConfig:
    """Settings of a Wan transformer; its paths are relative to the list."""
    config = _section(WanConfig, row, place)
    loras = ",".join(f"{base / file}{'' if scale == 1 else f':{scale:g}'}" for file, scale in config.loras())
    # A path is relative to the list; a plain name may be that of fetched weights.
    is_path = len(Path(config.weights).parts) > 1 or (config.weights and (base / config.weights).is_dir())
    weights = str(base / config.weights) if is_path else config.weights
    return replace(config, weights=weights, lora=loras)


def _section(cls: Any, row: dict[str, Any], place: str) -> Any:
    """Read a stage's settings from a row, and remove them from it."""
    chosen: dict[str, Any] = {"several": "fail"} if cls is TrackConfig else {}
    for field in fields(cls):
        if field.name not in row or field.name in REFUSED.get(cls, ()) or is_dataclass(field.default_factory):
            continue
        cell = row.pop(field.name)
        value = _value(cell, field.default, field.name, place)
        wanted = expected(cls, field.name, value)
        if field.name == "size" and value not in SIZES:
            wanted = f"one of {', '.join(map(str, SIZES))}"
        if wanted:
            raise InputError(f"{place}: {field.name} is {str(cell)[:60]!r}, expected {wanted}.")
        chosen[field.name] = value
    return cls(**chosen)


def _value(value: Any, default: Any, name: str, place: str) -> Any:
    """Convert a cell to the type of the setting's default."""
    text = str(value).strip()
    try:
        match default:
            case bool():
                return WORDS[text.lower()]
            case int():
                # As spreadsheets write whole numbers.
                return int(text.removesuffix(".0"))
            case float() | None:
                # A comma before three digits may be one of thousands.
                return float(re.sub(r"(?<=\d),(?!\d{3}$)(?=\d+$)", ".", text))
        return text
    except (KeyError, ValueError):
        kind = {bool: "yes or no", int: "a whole number"}.get(type(default), "a number")
        raise InputError(f"{place}: {name} is {text[:60]!r}, expected {kind}.") from None
