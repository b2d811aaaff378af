"""Every command on a head of each file format: film, set, both trainings, and a film by what was trained."""

import json
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from support.gnm_heads import arrays_of
from support.places import ROOT
from support.smplx_bodies import body, file_of, landmarked
from support.tiny_wan import base_folder, tiny_transformer

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import HeadFit
from expportrait_cli.cli import app
from expportrait_cli.dataset.dataset import Dataset
from expportrait_cli.head import HeadModel, gnm, load_head
from expportrait_cli.head.smplx import build
from expportrait_cli.media.video import read_frames
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.retargeting.network import load_network

pytestmark = pytest.mark.slow

pytest_plugins = ("support.astronaut",)

FRAMES = 23
"""The least that a clip of a set has, 1.5 s, at 15 frames a second."""
DRIVING = ROOT / "examples" / "driving.mp4"


def install(kind: str, folder: Path, monkeypatch) -> HeadModel:
    """Make a file of the format from the default head, and let the command line find it, with its landmarks."""
    anny = load_head()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    if kind == "smplx":
        monkeypatch.setenv(build.ENVIRONMENT, str(file_of(folder, body(anny))))
    else:
        np.savez(folder / "gnm_head.npz", **arrays_of(anny))
        monkeypatch.setenv(gnm.ENVIRONMENT, str(folder / "gnm_head.npz"))
    return load_head(kind, find_landmarks=lambda head, colours: landmarked(head, anny))


@pytest.mark.parametrize("kind", ["smplx", "gnm"])
def test_the_whole_chain_by_the_command_line(kind, photo, tmp_path, monkeypatch, capsys):
    head = install(kind, tmp_path, monkeypatch)

    def run(*arguments: object) -> dict:
        assert app.run([*map(str, arguments), "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    videos = tmp_path / "videos"
    videos.mkdir()
    with VideoWriter(videos / "talk.mp4", rate=Fraction(15000, 1001)) as writer:
        for frame in islice(read_frames(DRIVING), 0, 2 * FRAMES, 2):
            writer.write(frame)
    clip, film = videos / "talk.mp4", tmp_path / "film.mp4"
    # A turn by 20 degrees, and eyes that shut.
    options = ["--head-model", kind, "--size", 256, "--start", "10f", "--max-frames", 4]
    run("generate", photo, clip, "-o", film, *options)
    assert sum(1 for _ in read_frames(film)) == 4
    (meshes,) = (tmp_path / "film.work").rglob("*.meshes.npz")
    found = Meshes.open(meshes)
    verts = np.stack(list(found.frames()))
    assert found.head_model == head.name and verts.shape == (4, len(head.parts), 3)
    assert np.isfinite(verts).all() and np.ptp(verts, 0).max() > 1e-3

    run("data", "prepare", videos, "-o", tmp_path / "set", "--head-model", kind, "--jobs", 1)
    (row,) = Dataset.open(tmp_path / "set").clips
    assert npz.load(HeadFit, row.head).head_model == head.name

    network, generator = tmp_path / "transfer.safetensors", tmp_path / "generator"
    run("train", "transfer", tmp_path / "set", "-o", network, "--steps", 2, "--synthetic", 3)
    assert load_network(network, head).network.config.expression == len(head.expression_names)
    base = base_folder(tmp_path / "base", tiny_transformer())
    options = ["--base", base, "--steps", 2, "--size", 32, "--frames", 9, "--report-every", 1, "--sample-every", 2]
    assert run("train", "generator", tmp_path / "set", "-o", generator, *options)["steps"] == 2

    by_trained = tmp_path / "trained.mp4"
    options = ["--head-model", kind, "--max-frames", 4, "--network", network]
    run("generate", photo, clip, "-o", by_trained, "--backend", "wan-portrait", "--weights-folder", generator, *options)
    assert sum(1 for _ in read_frames(by_trained)) == 4
