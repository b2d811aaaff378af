"""One run at a time for an output, what killed runs leave, and what is no file."""

import os
import socket
import subprocess
import sys
import threading

import pytest

from expportrait_cli.artifacts import files
from expportrait_cli.artifacts.files import alone, atomic_folder, atomic_path, check_file, forget_partials
from expportrait_cli.cli.options import result
from expportrait_cli.errors import InputError, OutputError

HOLD = """
import sys, time
from expportrait_cli.artifacts.files import alone, atomic_path
with alone(sys.argv[1]), atomic_path(sys.argv[1]) as partial:
    partial.write_text("half")
    print("has it", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that is at `film.mp4`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "film.mp4")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "has it\n"
    yield process
    process.kill()
    process.communicate()


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_run_ends_and_says_who_has_the_output(holder, tmp_path):
    before = names(tmp_path)
    with pytest.raises(OutputError) as refusal, alone(tmp_path / "film.mp4"):
        pytest.fail("both have it")
    assert f"process {holder.pid} on {socket.gethostname()}, since " in str(refusal.value)
    assert names(tmp_path) == before
    with alone(tmp_path / "other.mp4"):
        pass


def test_what_a_killed_run_left_is_neither_a_lock_nor_kept(holder, tmp_path):
    path = tmp_path / "film.mp4"
    forget_partials(path)
    assert len(names(tmp_path)) == 2  # The run that lives keeps its partial file.
    (tmp_path / ".film.mp4.partial").write_text("foreign")
    (tmp_path / ".other.mp4.01234567.partial").write_text("of another output")
    holder.kill()
    holder.wait()
    with alone(path), atomic_path(path) as partial:
        partial.write_text("whole")
    assert names(tmp_path) == [".film.mp4.partial", ".other.mp4.01234567.partial", "film.mp4"]
    assert path.read_text() == "whole"


def test_it_waits_if_asked_to(holder, tmp_path, caplog):
    timer = threading.Timer(0.5, holder.kill)
    timer.start()
    with alone(tmp_path / "film.mp4", wait=True):
        assert not timer.is_alive()
    assert "waiting for it" in caplog.text


def test_without_locks_of_the_system_the_file_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    path, lock = tmp_path / "a.npz", tmp_path / ".a.npz.lock"
    with alone(path), pytest.raises(OutputError, match=f"process {os.getpid()} on"), alone(path):
        pytest.fail("both have it")
    assert not lock.exists()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lock.write_text(f"process {ended.pid} on {socket.gethostname()}, since today")
    with alone(path):
        pass
    lock.write_text("process 1 on another-machine, since today")
    with pytest.raises(OutputError, match="another-machine"), alone(path):
        pytest.fail("the other machine may be at it")


def test_a_run_without_a_result_leaves_no_folder(tmp_path):
    with pytest.raises(InputError), alone(tmp_path / "new" / "folder" / "a.npz"):
        raise InputError("no face")
    assert names(tmp_path) == []


def test_a_folder_that_a_killed_run_had_moved_away_comes_back(tmp_path):
    old = tmp_path / ".frames.01234567.old.partial"
    old.mkdir()
    (old / "a.obj").write_text("of before")
    (tmp_path / ".frames.01234567.partial").mkdir()
    forget_partials(tmp_path / "frames")
    assert names(tmp_path) == ["frames"] and (tmp_path / "frames" / "a.obj").read_text() == "of before"
    with atomic_folder(tmp_path / "frames") as partial:
        (partial / "b.obj").touch()
    assert names(tmp_path / "frames") == ["b.obj"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("pipe", "is a named pipe"),
        ("socket", "is a socket"),
        ("/dev/null", "is a device"),
        (".", "is a folder"),
        ("gone", "does not exist"),
        ("https://example.org/a.mp4", "opens no addresses"),
        ("empty", "is empty"),
    ],
)
def test_what_is_no_file_is_called_what_it_is(name, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    (tmp_path / "empty").touch()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(InputError, match=says) as refusal:
            check_file(files.Path(name))
    assert "\n" not in str(refusal.value)


def test_a_slash_asks_for_a_folder(tmp_path):
    assert result(f"{tmp_path}/new/", "a.npz") == tmp_path / "new" / "a.npz"
    assert result(str(tmp_path), "a.npz") == tmp_path / "a.npz"
    assert result(f"{tmp_path}/new.npz", "a.npz") == tmp_path / "new.npz"
    assert names(tmp_path) == []
