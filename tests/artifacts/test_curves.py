import csv
from dataclasses import fields

import numpy as np
import pytest

from expportrait_cli.artifacts.curves_csv import read_csv, write_csv
from expportrait_cli.artifacts.types import Curves
from expportrait_cli.errors import InputError

NAMES = ["browInnerUp", "mouthSmileLeft"]


@pytest.fixture
def curves() -> Curves:
    random = np.random.default_rng(0)
    return Curves(*(random.normal(0, 0.5, (6, width)).astype(np.float32) for width in (2, 3, 4, 3, 3, 3, 3)))


@pytest.fixture
def table(tmp_path, curves):
    return write_csv(curves, NAMES, tmp_path / "new" / "curves.csv")


def cells(path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def put(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def test_read_undoes_write(table, curves):
    read = read_csv(table, NAMES)
    for field in fields(Curves):
        a, b = getattr(read, field.name), getattr(curves, field.name)
        assert a.dtype == np.float32
        assert np.abs(a - b).max() < 1e-6


def test_columns_say_what_they_are_and_angles_are_degrees(table, curves):
    header, first, *rest = cells(table)
    assert header[:4] == ["frame", *NAMES, "jaw_x"]
    assert {"gaze_left_pitch", "gaze_right_yaw", "head_rx", "head_tz", "torso_rx", "torso_tz"} <= set(header)
    assert len(rest) == 5
    row = dict(zip(header, map(float, first), strict=True))
    assert row["frame"] == 0
    assert row["browInnerUp"] == pytest.approx(curves.expression[0, 0])
    assert row["jaw_x"] == pytest.approx(np.rad2deg(curves.jaw[0, 0]))
    assert row["gaze_right_pitch"] == pytest.approx(np.rad2deg(curves.gaze[0, 2]))
    assert row["head_ty"] == pytest.approx(curves.translation[0, 1])


def test_what_spreadsheets_do_is_read(table, curves):
    rows = cells(table)
    turned = [row[::-1] for row in rows]
    put(table, turned)
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes() + b"\r\n,,,\r\n")
    assert np.abs(read_csv(table, NAMES).torso_rotation - curves.torso_rotation).max() < 1e-6


def refused(path) -> str:
    with pytest.raises(InputError) as error:
        read_csv(path, NAMES)
    assert "\n" not in str(error.value)
    assert "curves.csv" in str(error.value)
    return str(error.value)


def test_errors_name_line_and_column(table):
    rows = cells(table)
    for line, column, value, said in [
        (3, 4, "x", "line 3, column jaw_y: 'x'"),
        (4, 1, "", "line 4, column browInnerUp: ''"),
        (5, 6, "nan", "line 5, column gaze_left_pitch"),
        (2, 9, "1e99", "line 2, column gaze_right_yaw"),
        (4, 0, "7", "line 4, column frame: found 7, expected 2"),
        (1, 2, "mouthSmilRight", "column 'mouthSmileLeft' is missing"),
    ]:
        broken = [list(row) for row in rows]
        broken[line - 1][column] = value
        put(table, broken)
        assert said in refused(table)


def test_tables_as_spreadsheets_save_them(table):
    expected, rows = read_csv(table, NAMES), cells(table)
    text = "\r\n".join(";".join(cell.replace(".", ",") for cell in row) for row in rows)
    for start, encoding in (("\ufeff", "utf-8"), ("sep=;\r\n", "utf-8"), ("", "utf-16")):
        table.write_text(start + text, encoding)
        found = read_csv(table, NAMES)
        same = [np.array_equal(getattr(found, field.name), getattr(expected, field.name)) for field in fields(Curves)]
        assert all(same)


def test_wrong_tables(table):
    rows = cells(table)
    put(table, [[*row, row[1]] for row in rows])
    assert "twice" in refused(table)
    put(table, [[*rows[0], "smile"], *([*row, "0"] for row in rows[1:])])
    assert "'smile' is unknown" in refused(table)
    put(table, [*rows[:3], rows[3][:-1]])
    assert "line 4:" in refused(table)
    put(table, rows[:1])
    assert "no frames" in refused(table)
    table.write_bytes(b"\xff\x00\x80")
    assert "not a table" in refused(table)
    table.write_text("")
    assert "missing" in refused(table)
    table.unlink()
    assert "does not exist" in refused(table)
