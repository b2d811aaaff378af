"""The five lines of docs/wan.md, each run as it stands, on tiny weights of the real layout from a hub here."""

import json
import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from fractions import Fraction
from http.server import ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.places import ROOT
from support.server import QuietHandler, hub_listing, hub_rows, serving
from support.tiny_wan import text_encoder
from support.wan_film import vace_folder

from expportrait_cli.cli import app
from expportrait_cli.config import GenerateConfig
from expportrait_cli.media.video import frame_count
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.painting import stage
from expportrait_cli.painting.wan import PACKAGES, prompts
from expportrait_cli.pipeline.recipes import RECIPES
from expportrait_cli.weights import catalogue

pytestmark = pytest.mark.slow
pytest_plugins = ("support.astronaut",)


class Hub(ThreadingHTTPServer):
    """Every repository of it is one and the same folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


class Answer(QuietHandler):
    server: Hub

    def do_GET(self) -> None:
        if "/revision/" in self.path:
            files = {name: path.read_bytes() for name, path in self.server.files.items()}
            content = hub_listing("c0ffee", hub_rows(files))
        else:
            content = self.server.files[self.path.partition("/resolve/c0ffee/")[2]].read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def lines() -> list[str]:
    text = (ROOT / "docs" / "wan.md").read_text("utf-8")
    found = re.search(r"## From nothing to a film\n\n```\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1].splitlines()


@pytest.fixture
def hub(tmp_path) -> Iterator[Hub]:
    folder = vace_folder(tmp_path / "published")
    (folder / "prompt_embeds.safetensors").unlink()
    with serving(Hub(text_encoder(folder))) as server:
        yield server


def test_the_first_line_brings_what_wan_needs(lines):
    assert lines[0] == "pip install '.[wan]'"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]["wan"]
    assert {re.split(r"[>=!]", row)[0] for row in extras} == set(PACKAGES) and all(map(find_spec, PACKAGES))


LONG = pytest.mark.skipif("EXPPORTRAIT_LONG" not in os.environ, reason="eight films: set EXPPORTRAIT_LONG=1")


@pytest.mark.parametrize("compares", [False, pytest.param(True, marks=LONG)])
def test_the_other_lines_make_a_film(compares, lines, hub, photo, tmp_path, monkeypatch, capsys):
    """On three frames, at 256 px and with few steps: otherwise as they stand, in order; the comparison is long."""
    parts = {
        "wan-vace-1.3b": ("transformer", "vae", "README.md"),
        "wan-text-encoder": ("text_encoder", "tokenizer"),
    }
    source = f"http://127.0.0.1:{hub.server_port}/Wan-AI"
    entries = tuple(
        catalogue.Weight(name, name, f"{source}/{name}", "", "Apache-2.0", (), parts=own) for name, own in parts.items()
    )
    others = tuple(entry for entry in catalogue.catalogue() if entry.name not in parts)
    monkeypatch.setattr(catalogue, "catalogue", lambda: (*entries, *others))
    cache = tmp_path / "cache"
    places = (*catalogue.folders()[:-1], cache)
    for module in (catalogue, prompts, stage):
        monkeypatch.setattr(module, "folders", lambda: places)
    # What other programs of this machine hold is not what is tried.
    monkeypatch.setattr("expportrait_cli.painting.wan.painters.free_bytes", lambda device: 1 << 40)
    monkeypatch.chdir(tmp_path)
    shutil.copy(photo, "photo.png")
    picture = np.asarray(Image.open(photo))
    with VideoWriter(Path("clip.mp4"), rate=Fraction(25)) as writer:
        for shift in range(3):
            writer.write(np.roll(picture, 2 * shift, 1))
    assert [line.split()[1] for line in lines[1:]] == ["weights", "weights", "compare-recipes", "generate"]
    for line in lines[1:]:
        program, *words = shlex.split(line)
        is_film = words[0] in ("compare-recipes", "generate")
        more = ["--size", "256", "--steps", "2"] if is_film else []
        if compares or words[0] != "compare-recipes":
            assert program == "expportrait" and app.run([*words, *more]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert frame_count("film.mp4") == 3
    assert json.loads(Path("film.json").read_text())["painter"]["painter"] == "wan-vace"
    # Weights are taken without being named once they are known to have been compared.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert stage.choose(GenerateConfig()).name == ("wan-vace" if compares else "proxy")
    if compares:
        check_comparison(Path("recipes"))


def check_comparison(folder: Path) -> None:
    """A page with the frames of seven films, all different, and their scores."""
    names = ["proxy", *(name for name, _, _ in RECIPES)]
    page = (folder / "index.html").read_text()
    assert [name for name in names if f"<h2>{name}</h2>" not in page] == [] and page.count("<img") == 7 * 3
    scores = json.loads((folder / "keep.scores.json").read_text())
    assert scores["mode"] == "cross" and np.isfinite(scores["means"]["lip_gap_error"])
    assert len({(folder / f"{name}.mp4").read_bytes() for name in names}) == 7
