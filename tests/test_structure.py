"""The house: few files, none long, no circle of imports, and a film's way through at most sixty-five of them."""

import ast
import subprocess
import sys
from fractions import Fraction
from graphlib import TopologicalSorter
from importlib import import_module
from itertools import islice
from pathlib import Path

import pytest
import skimage.data
from PIL import Image
from support.places import ROOT

from expportrait_cli.media.video import read_frames
from expportrait_cli.media.writer import VideoWriter

PACKAGE = ROOT / "expportrait_cli"
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_few_files_and_none_long():
    assert len(FILES) <= 210
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert max(lengths.values()) <= 350, max(lengths, key=lambda path: lengths[path])


def test_no_circle_of_imports_even_inside_a_folder():
    modules = {module_of(path): path for path in FILES}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        imports = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
        named = {f"{node.module}.{alias.name}" for node in imports for alias in node.names}
        found = {each if each in modules else each.rpartition(".")[0] for each in named}
        # The package's own interface names the commands for type checkers alone, and nothing inside imports it.
        graph[name] = (found & set(modules)) - {name, "expportrait_cli"}
    TopologicalSorter(graph).prepare()


def test_no_function_hides_the_module_of_its_name():
    for path in PACKAGE.rglob("__init__.py"):
        package = import_module(module_of(path))
        for beside in path.parent.glob("*.py"):
            exported = vars(package).get(beside.stem)
            assert exported is None or not callable(exported), f"{package.__name__}.{beside.stem}"


COUNT = """
import sys, threading
from pathlib import Path
files = set()
def seen(frame, event, argument):
    code = frame.f_code
    # Functions alone: the bodies of modules and classes run when they are imported.
    if event == "call" and code.co_flags & 1 and "expportrait_cli" in code.co_filename:
        files.add(code.co_filename)
sys.setprofile(seen)
threading.setprofile(seen)
from expportrait_cli.cli.app import run
code = run(["generate", *sys.argv[1:4], "-q", "--size", "256"])
sys.setprofile(None)
from importlib.metadata import packages_distributions
names = {name.partition(".")[0] for name in sys.modules}
print(*names)
made_by = packages_distributions()
print(code, len(files), len({each for name in names for each in made_by.get(name, [])}))
"""
UNUSED = (
    "jax",
    "matplotlib",
    "huggingface_hub",
    "httpx2",
    "requests",
    "diffusers",
    "ray",
    "gradio",
    "pandas",
    "skimage",
)
"""Packages that a film does not load, whether they are installed or not."""


@pytest.mark.slow
def test_a_films_way_leads_through_few_files(tmp_path):
    photo, clip, film = tmp_path / "photo.png", tmp_path / "clip.mp4", tmp_path / "film.mp4"
    Image.fromarray(skimage.data.astronaut()).save(photo)
    frames = list(islice(read_frames(ROOT / "examples" / "driving.mp4"), 12))
    with VideoWriter(clip, rate=Fraction(25)) as writer:
        for frame in frames:
            writer.write(frame)
    command = [sys.executable, "-c", COUNT, str(photo), str(clip), "-o" + str(film)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    code, count, distributions = map(int, done.stdout.split()[-3:])
    assert code == 0 and count <= 80 and distributions <= 40
    assert not set(UNUSED) & set(done.stdout.splitlines()[-2].split())
