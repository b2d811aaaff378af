"""What a user can mend ends in one line on stderr, its own exit code, and no file."""

import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.types import Tracking
from expportrait_cli.cli import app
from expportrait_cli.errors import InputError
from expportrait_cli.media import ffmpeg
from expportrait_cli.media.writer import VideoWriter


@dataclass(frozen=True)
class Other:
    KIND: ClassVar[str] = "recipe"
    VERSION: ClassVar[int] = 1
    grams: np.ndarray


@dataclass(frozen=True)
class FutureTracking:
    KIND: ClassVar[str] = "track"
    VERSION: ClassVar[int] = 999
    grams: np.ndarray


def clip(path: Path) -> Path:
    with VideoWriter(path, rate=Fraction(25)) as writer:
        for index in range(30):
            writer.write(np.full((64, 64, 3), 8 * index, np.uint8))
    return path


def bad_media(folder: Path) -> dict[str, Path]:
    """Files that no command can use, by what is wrong with them."""
    (folder / "folder.mp4").mkdir()
    (folder / "empty.mp4").touch()
    (folder / "empty.png").touch()
    (folder / "text.mp4").write_text("Dear diary\n" * 40)
    (folder / "text.png").write_text("Dear diary\n" * 40)
    whole = clip(folder / "whole.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    ffmpeg.run("-f", "lavfi", "-i", "sine=duration=1", "-y", str(folder / "sound.m4a"))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(folder / "noise.jpg")
    photo = (folder / "noise.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(photo[:100])
    names = (
        "missing.mp4",
        "folder.mp4",
        "empty.mp4",
        "empty.png",
        "text.mp4",
        "text.png",
        "cut.mp4",
        "sound.m4a",
        "cut.jpg",
    )
    return {name: folder / name for name in names}


MEDIA = (
    "missing.mp4",
    "folder.mp4",
    "empty.mp4",
    "empty.png",
    "text.mp4",
    "text.png",
    "cut.mp4",
    "sound.m4a",
    "cut.jpg",
)


def bad_artifacts(folder: Path) -> None:
    npz.save(Other(np.zeros(3)), folder / "kind.npz", {})
    npz.save(FutureTracking(np.zeros(3)), folder / "version.npz", {})
    np.savez(folder / "plain.npz", a=np.zeros(3))
    (folder / "text.npz").write_text("no zip")
    header = json.dumps({"kind": "track", "version": Tracking.VERSION, "made_by": {}}).encode()
    np.savez(
        folder / "pickled.npz",
        header=np.frombuffer(header, np.uint8),
        source=np.array([{"a": 1}], dtype=object),
        allow_pickle=True,
    )
    with zipfile.ZipFile(folder / "pickled.npz") as archive:
        assert "source.npy" in archive.namelist()


ARTIFACTS = ("kind.npz", "version.npz", "plain.npz", "text.npz", "pickled.npz")


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    bad_media(folder)
    bad_artifacts(folder)
    return folder


def fails(capsys, monkeypatch, folder: Path, *arguments: object, code: int, says: str = "") -> str:
    """Run a command that must fail, in an empty folder that must stay empty; return what stderr said."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    assert app.run([str(argument) for argument in arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert "Traceback" not in err
    assert says in err
    assert list(folder.iterdir()) == []
    return err


@pytest.mark.parametrize("name", MEDIA)
def test_track_refuses(name, bad, tmp_path, capsys, monkeypatch):
    fails(capsys, monkeypatch, tmp_path / "here", "track", bad / name, code=3, says=name)


@pytest.mark.parametrize("name", MEDIA)
def test_generate_refuses_the_driver(name, bad, tmp_path, capsys, monkeypatch):
    fails(capsys, monkeypatch, tmp_path / "here", "generate", bad / "noise.jpg", bad / name, code=3, says=name)


@pytest.mark.parametrize("name", MEDIA)
def test_generate_refuses_the_photo(name, bad, tmp_path, capsys, monkeypatch):
    fails(capsys, monkeypatch, tmp_path / "here", "generate", bad / name, bad / "whole.mp4", code=3, says=name)


@pytest.mark.parametrize("name", ARTIFACTS)
def test_an_artifact_of_another_kind_version_or_with_pickles(name, bad, tmp_path, capsys, monkeypatch):
    fails(capsys, monkeypatch, tmp_path / "here", "fit", bad / name, code=3, says=name)


def test_the_next_command_is_named(bad, tmp_path, capsys, monkeypatch):
    fails(capsys, monkeypatch, tmp_path / "here", "fit", bad / "noise.jpg", code=3, says="expportrait track")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["track", "{bad}/noise.jpg", "-o", "{bad}/empty.png/x.track.npz"], 3, "Nothing can be written"),
        (["track", "{bad}/noise.jpg", "-o", "x.mp4"], 2, ".npz"),
        (["generate", "{bad}/noise.jpg", "{bad}/whole.mp4", "-o", "x.gif"], 2, ".mp4"),
        (["generate", "{bad}/noise.jpg", "{bad}/whole.mp4", "-o", "{bad}/whole.mp4"], 2, "also an input"),
        (["generate", "{bad}/noise.jpg"], 2, "photo and a driving clip"),
        (["generate", "-s", "{bad}/noise.jpg", "-d", "{bad}/whole.mp4", "{bad}/whole.mp4"], 2, "got 3"),
        (["generate", "{bad}/noise.jpg", "{bad}/whole.mp4", "--region", "nose"], 2, "nose"),
        (["generate", "{bad}/noise.jpg", "{bad}/whole.mp4", "--neutral-frame", "first"], 2, "first"),
        (["generate", "{bad}/noise.jpg", "{bad}/whole.mp4", "--size", "500"], 2, "--size"),
        (["generate", "{bad}/noise.jpg", "{bad}/whole.mp4", "--report", "--no-keep-work"], 2, "Leave out one"),
        (["generate", "{bad}/noise.jpg", "{bad}/whole.mp4", "--curves", "c.txt"], 2, ".csv"),
        (["generate", "{bad}/noise.jpg", "{bad}/kind.npz"], 3, "recipe"),
        (["generate", "{bad}/noise.jpg", "{bad}/whole.mp4", "--sede", "3"], 2, "--sede"),
        (["render-normals", "{bad}/plain.npz", "--view", "yaw=1", "--orbit", "yaw=0..1"], 2, "--orbit"),
        (["generate", "{bad}/noise.jpg", "{bad}/whole.mp4", "--log-level", "loud"], 2, "loud"),
        (["dance"], 2, "dance"),
        (["weights"], 2, "command"),
        (["batch", "{bad}/empty.mp4"], 3, "0 bytes"),
    ],
)
def test_options_that_do_not_fit(arguments, code, says, bad, tmp_path, capsys, monkeypatch):
    words = [word.format(bad=bad) for word in arguments]
    fails(capsys, monkeypatch, tmp_path / "here", *words, code=code, says=says)


def test_a_fault_keeps_its_traceback(capsys):
    try:
        raise ValueError("a bug")
    except ValueError as error:
        assert app.report(error) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "a bug" in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), 5),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 5),
        (OSError(28, "No space left on device", "film.mp4"), 3),
        (OSError(30, "Read-only file system", "a.work/segments"), 3),
        (OSError(36, "File name too long", "a" * 300), 3),
        (InputError("two\nlines"), 3),
    ],
)
def test_known_errors_are_one_line(error, code, capsys):
    assert app.report(error) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_an_interrupt_exits_130_and_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "app", interrupted)
    assert app.run(["doctor"]) == 130
    assert "same command again" in capsys.readouterr().err


def test_a_closed_pipe_is_quiet():
    line = f'"{sys.executable}" -m expportrait_cli weights list | true; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode in (0, 141)


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "expportrait_cli", "track", "nowhere.mp4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith("error: nowhere.mp4")


def test_launched_processes_do_not_all_make_all_films(monkeypatch, tmp_path, capsys):
    (tmp_path / "jobs.csv").write_text("reference,driving,output\na.png,b.mp4,c.mp4\n")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert app.run(["batch", str(tmp_path / "jobs.csv")]) == 2
    assert "--part 2/2" in capsys.readouterr().err
