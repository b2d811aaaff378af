"""Artifacts bring their head model along, and do not mix with those of another."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.types import HeadFit, Tracking
from expportrait_cli.cli import app
from expportrait_cli.config import TrackConfig
from expportrait_cli.errors import InputError
from expportrait_cli.pipeline.heads import head_behind
from expportrait_cli.pipeline.steps import track_header

pytest_plugins = ("support.astronaut",)


@pytest.fixture
def saved(photo_tracking, fitted, tmp_path) -> dict[str, Path]:
    """The same tracking and head, as the default model made them and as another one."""
    other = {"head_model": "smplx-01234567"}
    paths = {name: tmp_path / f"{name}.npz" for name in ("own.track", "other.track", "own.head", "other.head")}
    npz.save(photo_tracking, paths["own.track"], {})
    npz.save(replace(photo_tracking, **other), paths["other.track"], {})
    npz.save(fitted, paths["own.head"], {})
    npz.save(replace(fitted, **other), paths["other.head"], {})
    return paths


@pytest.mark.parametrize(
    "command",
    [
        ["transfer", "own.head", "other.track"],
        ["transfer", "other.head", "own.track"],
        ["generate", "own.head", "other.track"],
        ["fit", "own.track", "--driver", "other.track"],
    ],
)
def test_artifacts_of_two_models_are_refused(saved, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    assert app.run([str(saved.get(word, word)) for word in command]) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "'anny'" in error and "'smplx-01234567'" in error and "--head-model" in error


def test_a_model_whose_file_is_missing_is_asked_for(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EXPPORTRAIT_SMPLX", str(tmp_path / "none.npz"))
    assert app.run(["transfer", str(saved["other.head"]), str(saved["other.track"]), "-o", str(tmp_path)]) == 4
    assert "smpl-x.is.tue.mpg.de" in capsys.readouterr().err


def test_an_unknown_model_and_other_sizes_are_refused(photo_tracking: Tracking, fitted: HeadFit):
    path = Path("a.npz")
    with pytest.raises(InputError, match="'flame'"):
        head_behind(path, replace(photo_tracking, head_model="flame"))
    with pytest.raises(InputError, match=r"81 \+ 40"):
        head_behind(path, replace(fitted, identity=np.zeros(81, np.float32)))
    assert head_behind(path, fitted).name == "anny"


def test_the_head_model_is_part_of_what_a_tracking_depends_on():
    keys = {track_header(TrackConfig(), name, "hash")["key"] for name in ("anny", "smplx-01234567", "smplx-76543210")}
    assert len(keys) == 3
