"""What was damaged, deleted or stopped is made again; what is the user's own stays an error."""

import json
import shutil
from pathlib import Path

import pytest
import skimage.data
from PIL import Image

from expportrait_cli.artifacts.files import alone
from expportrait_cli.cli import app

pytestmark = pytest.mark.slow

WORK = ("reference.track.npz", "driving.track.npz", "reference.head.npz", "driving.meshes.npz")


def generate(folder: Path, capsys, *more: str, code: int = 0) -> str:
    names = {name: str(folder / name) for name in ("film.mp4", "c.csv", "photo.png")}
    words = ["generate", names["photo.png"], names["photo.png"], "-o", names["film.mp4"], "--size", "256"]
    assert app.run([*words, "--grid", "--report", "--curves", names["c.csv"], *more]) == code
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A film of one frame with everything beside it."""
    folder = tmp_path_factory.mktemp("made")
    Image.fromarray(skimage.data.astronaut()[22:202, 132:312]).save(folder / "photo.png")
    words = ["generate", *[str(folder / "photo.png")] * 2, "-o", str(folder / "film.mp4"), "--size", "256"]
    assert app.run([*words, "--grid", "--report", "--curves", str(folder / "c.csv")]) == 0
    return folder


def state(folder: Path) -> dict[str, bytes]:
    """Every file, without what a record and a page say of the time."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    record = json.loads(found["film.json"])
    for name in ("finished", "seconds", "cpu_seconds", "checksum"):
        record.pop(name)
    record["beside"].pop("film.html")
    return {**found, "film.json": json.dumps(record).encode(), "film.html": b""}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


HARM = {
    "flip": flip,
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "delete": lambda path: path.unlink(),
}


@pytest.mark.parametrize("shift", [0, 2])
def test_everything_that_a_run_left_heals(shift, made, capsys):
    """Every file is harmed in one of four ways, in the second round in another."""
    beside = ("film.grid.mp4", "film.html", "film.json", "film.mp4")
    work = tuple(f"film.work/{name}" for name in WORK)
    harm_of = {name: list(HARM)[(index + shift) % 4] for index, name in enumerate((*beside, *work))}
    before = state(made)
    assert "up to date" in generate(made, capsys)
    assert state(made) == before
    for group in (("film.grid.mp4", "film.html", "c.csv"), ("film.json",), ("film.mp4",)):
        for name in group:
            # Damaged curves would be the user's edit.
            HARM[harm_of.get(name, "delete")](made / name)
        generate(made, capsys)
        assert state(made) == before, group
    for name in work:
        HARM[harm_of[name]](made / name)
    # The film itself is whole: other settings ask for what is behind it.
    err = generate(made, capsys, "--audio", "none")
    for name in work:
        assert harm_of[name] == "delete" or f"{Path(name).name} is damaged, and is made again." in err
    generate(made, capsys)
    assert state(made) == before


def test_a_second_run_says_who_has_the_output(made, capsys):
    before = state(made)
    with alone(made / "film.mp4"):
        err = generate(made, capsys, code=3)
    assert "film.mp4 is being made by another run (process " in err and len(err.splitlines()) == 1
    # What cannot be read is said first.
    with alone(made / "film.mp4"):
        assert app.run(["generate", str(made / "gone.png"), str(made / "photo.png"), "-o", str(made / "film.mp4")]) == 3
    assert "does not exist" in capsys.readouterr().err
    assert state(made) == before


def test_a_damaged_input_of_the_users_stays_an_error(made, tmp_path, capsys):
    for name in ("reference.head.npz", "driving.meshes.npz"):
        shutil.copy(made / "film.work" / name, tmp_path / name)
    meshes = tmp_path / "driving.meshes.npz"
    flip(meshes)
    damaged = meshes.read_bytes()
    words = ["generate", str(tmp_path / "reference.head.npz"), str(meshes), "-o", str(tmp_path / "b.mp4")]
    assert app.run([*words, "--size", "256"]) == 3
    assert "driving.meshes.npz" in capsys.readouterr().err and meshes.read_bytes() == damaged
    assert not (tmp_path / "b.mp4").exists()


def test_partial_files_of_a_killed_run_go_and_foreign_ones_stay(made, capsys):
    left = [".film.mp4.0a1b2c3d.partial", ".film.grid.mp4.0a1b2c3d.film.partial", ".film.json.0a1b2c3d.partial"]
    left.append("film.work/.driving.meshes.npz.0a1b2c3d.partial")
    foreign = [".film.mp4.partial", ".mine.mp4.0a1b2c3d.partial"]
    for name in (*left, *foreign):
        (made / name).write_text("half")
    (made / "film.work" / f"segments-{'01234567' * 2}").mkdir()
    generate(made, capsys)
    assert [name for name in left if (made / name).exists()] == []
    for name in foreign:
        (made / name).unlink()
    assert not (made / "film.work" / f"segments-{'01234567' * 2}").exists()
