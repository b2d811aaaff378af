"""Whose a table of curves is: the tool's own is written anew, the user's is used and never lost."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from expportrait_cli.artifacts.meshes import MeshesWriter
from expportrait_cli.artifacts.types import Curves
from expportrait_cli.pipeline.performance import CurvesFile

NAMES = [f"unit{index}" for index in range(4)]


def curves(value: float) -> Curves:
    rows = [np.full((2, width), value, np.float32) for width in (4, 3, 4, 3, 3, 3, 3)]
    return Curves(*rows)


def run(table, meshes, value: float, *, stopped: str = "") -> bool:
    """What a run does with the table, up to where it is stopped; whether it takes it for an edit."""
    found = CurvesFile.of(table, meshes)
    if found.edited():
        return True
    rows = curves(value)
    if stopped == "before the meshes":
        return False
    with MeshesWriter(
        meshes,
        faces=np.array([[0, 1, 2]]),
        focal_px=1.0,
        rate=Fraction(25),
        head_model="anny",
        head_hash="",
        made_by={"curves_written": found.with_table(rows, NAMES)},
    ) as writer:
        for _ in range(2):
            writer.write(np.zeros((3, 3), np.float32), np.zeros(3, np.float32), np.zeros(3, np.float32))
        writer.finish(rows)
    if stopped != "before the table":
        found.write(rows, NAMES)
    return False


@pytest.fixture
def meshes(tmp_path):
    return tmp_path / "film.work" / "driving.meshes.npz"


@pytest.fixture
def table(tmp_path):
    return tmp_path / "c.csv"


@pytest.mark.parametrize("stopped", ["before the meshes", "before the table", ""])
def test_the_own_table_is_written_anew_after_an_interruption_with_other_settings(stopped, table, meshes):
    assert not run(table, meshes, 0.1)
    first = table.read_text()
    assert not run(table, meshes, 0.2, stopped=stopped)
    assert not run(table, meshes, 0.3)
    assert "0.3" in table.read_text() and table.read_text() != first
    assert not run(table, meshes, 0.1)
    assert table.read_text() == first


def test_an_edited_table_is_used_and_stays(table, meshes):
    run(table, meshes, 0.1)
    edited = table.read_text().replace("0.1", "0.15")
    table.write_text(edited)
    assert run(table, meshes, 0.2) and table.read_text() == edited


def test_a_table_that_is_edited_while_a_run_is_under_way_stays(table, meshes, caplog):
    run(table, meshes, 0.1)
    found = CurvesFile.of(table, meshes)
    assert not found.edited()
    edited = table.read_text().replace("0.1", "0.15")
    table.write_text(edited)
    found.write(curves(0.2), NAMES)
    assert table.read_text() == edited and "edited meanwhile" in caplog.text


def test_a_copy_elsewhere_is_the_users(table, meshes, tmp_path):
    run(table, meshes, 0.1)
    copy = tmp_path / "mine.csv"
    copy.write_bytes(table.read_bytes())
    assert CurvesFile.of(copy, meshes).edited() and not CurvesFile.of(table, meshes).edited()
    other = tmp_path / "other.work" / "driving.meshes.npz"
    assert CurvesFile.of(table, other).edited()


def test_what_the_record_knows_counts_when_the_meshes_are_gone(table, meshes):
    run(table, meshes, 0.1)
    known = CurvesFile.of(table, meshes).written
    meshes.write_bytes(meshes.read_bytes()[:100])
    assert CurvesFile.of(table, meshes).edited()
    assert not CurvesFile.of(table, meshes, known).edited()
    meshes.unlink()
    assert not CurvesFile.of(table, meshes, known).edited()
    assert not replace(CurvesFile.of(None, meshes), path=None).edited()
