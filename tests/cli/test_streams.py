"""Streams that are closed, signals that get lost, names of any bytes."""

import os
import signal
import subprocess
import sys

import pytest

from expportrait_cli.artifacts.files import atomic_path, film_name
from expportrait_cli.cli.boundary import Display, command_line

COMMAND = f"{sys.executable} -m expportrait_cli"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_like_an_empty_one(closed):
    done = subprocess.run(f"{COMMAND} --version {closed}", shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    wrong = subprocess.run(f"{COMMAND} track nothing.png {closed}", shell=True, capture_output=True, text=True)
    assert wrong.returncode == 3 and "Traceback" not in wrong.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_that_a_callback_swallowed_ends_the_next_step(number, code, monkeypatch):
    monkeypatch.setattr(command_line, "ended_by", None)
    with Display() as display:
        progress = display.stage("paint")
        progress(1, 9)
        command_line.ended_by = number
        with pytest.raises(SystemExit) as end:
            progress(2, 9)
        assert end.value.code == code
        command_line.ended_by = signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            progress(3, 9)
        command_line.ended_by = None


@pytest.mark.parametrize("name", ["视" * 83 + ".npz", os.fsdecode(b"caf\xe9.npz"), "a" * 251 + ".npz"])
def test_names_that_the_file_system_takes_are_taken(tmp_path, name):
    path = tmp_path / name
    with atomic_path(path) as partial:
        partial.write_text("x")
    assert path.read_text() == "x" and [each.name for each in tmp_path.iterdir()] == [name]


def test_a_films_usual_name_is_no_longer_than_a_name_may_be(tmp_path):
    name = film_name(tmp_path / ("人" * 80 + ".jpg"), tmp_path / ("物" * 80 + ".mp4"))
    assert len(os.fsencode(name)) < 230 and name.endswith(".mp4") and "人--物" in name


def test_a_name_that_is_no_text_is_told(tmp_path):
    path = os.fsencode(tmp_path / os.fsdecode(b"caf\xe9.png"))
    done = subprocess.run([sys.executable, "-m", "expportrait_cli", "track", path], capture_output=True)
    assert done.returncode == 3 and b"caf\xe9.png does not exist" in done.stderr and b"Traceback" not in done.stderr
