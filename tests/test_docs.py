"""README, documentation and examples: they build, name what there is, and run as they stand."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from fractions import Fraction
from itertools import islice
from pathlib import Path

import pytest
import skimage.data
import typer
from PIL import Image

from expportrait_cli.cli.app import app, run
from expportrait_cli.media.video import read_frames
from expportrait_cli.media.writer import VideoWriter

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LAUNCHERS = ("torchrun", "accelerate")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


def command_lines(text: str) -> list[list[str]]:
    """The arguments of every line that calls expportrait, however it is launched."""
    lines = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]
    called = [words[words.index("expportrait") + 1 :] for words in lines if "expportrait" in words]
    return [arguments for arguments in called if arguments]


LINES = sorted(
    {
        shlex.join(arguments)
        for page in PAGES
        for language in ("bash", "text")
        for block in blocks(page, language)
        for arguments in command_lines(block)
        if "COMMAND" not in arguments and "Usage:" not in block
    }
)


@pytest.mark.parametrize("line", LINES)
def test_every_line_of_the_documentation_is_understood(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "film.json").write_text('{"size": 256}', "utf-8")
    command = typer.main.get_command(app)
    context = command.make_context("expportrait", [])
    words = shlex.split(line)
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    command.make_context(name, words, parent=context)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "properdocs", "build", "-q", "-f", ".mkdocs.yml", "-d", str(tmp_path)]
    environment = {"PATH": "", "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    text = (tmp_path / "commands.html").read_text("utf-8")
    assert "--paste-back" in text and "train transfer" in text
    assert "crop px" in (tmp_path / "formats.html").read_text("utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with what the documentation's commands read: photo.png, clip.mp4, videos/."""
    folder = tmp_path_factory.mktemp("documentation")
    Image.fromarray(skimage.data.astronaut()).save(folder / "photo.png")
    (folder / "videos" / "anna").mkdir(parents=True)
    # 40 frames are the shortest clip of a dataset.
    for clip, count in ((folder / "clip.mp4", 4), (folder / "videos" / "anna" / "clip.mp4", 40)):
        with VideoWriter(clip, rate=Fraction(25)) as writer:
            for frame in islice(read_frames(ROOT / "examples" / "driving.mp4"), count):
                writer.write(frame)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")], ids=lambda page: page.stem)
def test_the_documentation_runs_as_it_stands(page, place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    for block in blocks(page, "bash"):
        for arguments in command_lines(block):
            assert run(arguments) == 0, f"{shlex.join(arguments)}: {capfd.readouterr().err}"


@pytest.mark.slow
def test_the_numbered_examples_run(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    example = {name[:2]: runpy.run_path(str(ROOT / "examples" / name))["main"] for name in NUMBERED}
    assert example["01"]("photo.png", "clip.mp4", ".").is_file()
    assert example["02"]("photo.head.npz", "clip.track.npz", ".").is_file()
    assert example["03"]("photo.head.npz", "clip.meshes.npz", ".").is_file()
    assert (place / "head.glb").is_file()


NUMBERED = ("01_film.py", "02_edit_a_smile.py", "03_orbit.py")


@pytest.mark.slow
def test_the_notebook_runs(place, monkeypatch):
    monkeypatch.chdir(place)
    shutil.copy(place / "clip.mp4", "driving.mp4")
    cells = json.loads((ROOT / "examples" / "tutorial.ipynb").read_text("utf-8"))["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert Path("tutorial/calm.mp4").is_file()
    assert names["result"].scores.mode == "cross"


def is_there(name: str) -> bool:
    """Whether a dotted name below the package is a module, or names something that a module defines."""
    package, parts = ROOT / "expportrait_cli", name.split(".")
    for count in range(len(parts), 0, -1):
        place = package.joinpath(*parts[:count])
        if place.is_dir() and count == len(parts):
            return True
        module = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if module.is_file():
            text = module.read_text("utf-8")
            return all(re.search(rf"^ *(def|class) {own}\b|^ *{own}\b.*[:=]", text, re.M) for own in parts[count:])
    return False


def test_the_table_of_the_paper_names_what_there_is():
    """Every function, and every test, of every equation and experiment."""
    text = (ROOT / "docs" / "paper.md").read_text("utf-8")
    folders = "|".join(path.name for path in (ROOT / "expportrait_cli").iterdir() if path.is_dir())
    names = set(re.findall(rf"`((?:{folders})(?:\.[A-Za-z_]+)+)`", text))
    assert len(names) > 40 and [name for name in sorted(names) if not is_there(name)] == []
    tests = set(re.findall(r"`((?:[a-z]+/)*(?:test_\w+\.py)?)`", text)) - {"", "tests/"}
    assert len(tests) > 20 and [test for test in sorted(tests) if not (ROOT / "tests" / test).exists()] == []
    assert not is_there("head.model.nothing") and not is_there("head.nothing")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 6144
