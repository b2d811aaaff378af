"""Streams that are closed, signals that get lost, names of any bytes."""

import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from expportrait_cli.artifacts.files import alone, atomic_path, film_name
from expportrait_cli.cli import app, boundary
from expportrait_cli.cli.boundary import Display, command_line
from expportrait_cli.errors import WeightsError
from expportrait_cli.runtime import deferral

COMMAND = f"{sys.executable} -m expportrait_cli"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_like_an_empty_one(closed):
    done = subprocess.run(f"{COMMAND} --version {closed}", shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    wrong = subprocess.run(f"{COMMAND} track nothing.png {closed}", shell=True, capture_output=True, text=True)
    assert wrong.returncode == 3 and "Traceback" not in wrong.stderr


def test_a_script_without_stderr_runs_the_tool(tmp_path):
    """Bash has then opened the script as descriptor 2, which can be read and not written to."""
    script = tmp_path / "run.sh"
    script.write_text(f'exec {COMMAND} "$@"\n')
    done = subprocess.run(f"bash {script} --version 2>&-", shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout
    wrong = subprocess.run(f"bash {script} track nothing.png 2>&-", shell=True, capture_output=True, text=True)
    assert wrong.returncode == 3


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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_that_a_library_turns_into_an_error_still_ends_the_command(number, code, monkeypatch, capsys):
    """safetensors, interrupted while it reads, says that the file is none."""
    monkeypatch.setattr(command_line, "ended_by", None)

    def library(**_):
        try:
            app._end(number, None)
        except (KeyboardInterrupt, SystemExit):
            raise WeightsError("a.safetensors cannot be read") from None

    monkeypatch.setattr(app, "app", library)
    assert app.run(["doctor"]) == code
    assert "cannot be read" not in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_that_a_library_takes_for_itself_ends_the_command(number, code, monkeypatch):
    """Gradio's page ends at Ctrl-C as if it had come to its end."""

    def library(**_):
        with suppress(KeyboardInterrupt, SystemExit):
            app._end(number, None)

    monkeypatch.setattr(app, "app", library)
    assert app.run(["ui"]) == code


@pytest.mark.parametrize("moment", ["open", "unlink"])
def test_a_signal_while_a_lock_is_made_or_removed_leaves_none(moment, tmp_path, monkeypatch):
    """A busy disk takes long for both."""
    plain = getattr(os, moment)

    def slow(path, *arguments, **named):
        found = plain(path, *arguments, **named)
        if str(path).endswith(".lock"):
            signal.raise_signal(signal.SIGTERM)
        return found

    before = signal.signal(signal.SIGTERM, app._end)
    monkeypatch.setattr(command_line, "ended_by", None)
    monkeypatch.setattr(deferral, "at_end", command_line.check)
    monkeypatch.setattr(os, moment, slow)
    try:
        with pytest.raises(SystemExit) as end, alone(tmp_path / "new" / "a.npz"):
            assert moment == "unlink"
    finally:
        signal.signal(signal.SIGTERM, before)
        command_line.ended_by = None
    assert end.value.code == 143 and list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07.png", "\\x1b[2J\\x1b]0;title\\x07.png"),
        ("a\x9b31m\x7f\u202egnp.\u2066b\u200f", "a\\x9b31m\\x7f\\u202egnp.\\u2066b\\u200f"),
        ("Zoë 面 سلام नमस्ते 👩\u200d🚀 [red]bold[/]", "Zoë 面 سلام नमस्ते 👩\u200d🚀 [red]bold[/]"),
    ],
)
def test_a_terminal_obeys_nothing_that_a_name_holds(text, shown, capsys):
    boundary.start_logging()
    boundary.say_error(text)
    logging.getLogger("expportrait_cli.test").info("%s", text)
    with boundary.Display() as display:
        display.stage(text)
    boundary.say_fault(ValueError(text))
    lines = capsys.readouterr().err.split("\n")
    assert lines[0] == f"error: {shown}" and lines[1] == shown
    assert lines[2].startswith(f"{shown}: 0.") and lines[3] == f"ValueError: {shown}"


def test_ends_of_lines_in_a_name_make_no_line(capsys):
    boundary.start_logging()
    logging.getLogger("expportrait_cli.test").info("a\nerror: b.mp4")
    boundary.say_error("a\nerror: b.mp4")
    assert capsys.readouterr().err == "a\\nerror: b.mp4\nerror: a error: b.mp4\n"


def test_bytes_that_are_no_text_stay_unless_a_terminal_may_obey_them():
    assert boundary.shown("\udce9\udc9b\ud800") == "\udce9\\udc9b\\ud800"


def test_what_the_tool_says_is_read_while_native_libraries_are_silenced():
    code = (
        "import os, sys\n"
        "from expportrait_cli.cli.app import open_streams\n"
        "from expportrait_cli.runtime import silenced\n"
        "open_streams()\n"
        "with silenced(): os.write(2, b'native'); print('error: interrupted', file=sys.stderr)\n"
        "os.write(2, b'later')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "error: interrupted\nlater"
