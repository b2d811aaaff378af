"""A film of normal maps drives a film, through the meshes and the head that it was drawn from."""

from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
import skimage.data
from PIL import Image
from support.astronaut import QUICK
from support.places import ROOT

from expportrait_cli import fit, generate, render_normals, track, transfer
from expportrait_cli.config import GenerateConfig, RenderConfig
from expportrait_cli.errors import InputError
from expportrait_cli.media.video import read_frames
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.pipeline.job import Job, behind_normals

SMALL = GenerateConfig(size=256)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every stage of a film of four frames, as files."""
    folder = tmp_path_factory.mktemp("stages")
    Image.fromarray(skimage.data.astronaut()).save(folder / "photo.png")
    with VideoWriter(folder / "clip.mp4", rate=Fraction(25)) as writer:
        for frame in islice(read_frames(ROOT / "examples" / "driving.mp4"), 4):
            writer.write(frame)
    for name in ("photo.png", "clip.mp4"):
        track(folder / name, folder / f"{name}.track.npz")
    fit([folder / "photo.png.track.npz"], folder / "a.head.npz", QUICK)
    transfer(folder / "a.head.npz", folder / "clip.mp4.track.npz", folder / "a.meshes.npz")
    render_normals(folder / "a.meshes.npz", folder / "a.normals.mkv", RenderConfig(size=256))
    return folder


def job(folder, driving, reference="photo.png") -> Job:
    return Job(folder / reference, folder / driving, folder / "film.mp4")


@pytest.mark.slow
def test_the_film_is_that_of_the_meshes(folder):
    for name, driver in (("one", "a.meshes.npz"), ("two", "a.normals.mkv")):
        reference = "a.head.npz" if name == "one" else "photo.png"
        generate(folder / reference, folder / driver, folder / f"{name}.mp4", paint=SMALL)
    pairs = zip(read_frames(folder / "one.mp4"), read_frames(folder / "two.mp4"), strict=True)
    assert all(np.array_equal(one, two) for one, two in pairs)


@pytest.mark.slow
def test_what_it_was_drawn_from_is_found(folder):
    found = behind_normals(job(folder, "a.normals.mkv"))
    assert (found.reference, found.driving) == (folder / "a.head.npz", folder / "a.meshes.npz")
    assert behind_normals(job(folder, "a.normals.mkv", "a.head.npz")).reference == folder / "a.head.npz"
    assert behind_normals(job(folder, "clip.mp4")) == job(folder, "clip.mp4")


@pytest.mark.slow
def test_what_would_be_ignored_is_refused(folder):
    render_normals(folder / "a.meshes.npz", folder / "b.normals.mkv", RenderConfig(size=256), view="yaw=20")
    with pytest.raises(InputError, match="shows the head from yaw=20"):
        behind_normals(job(folder, "b.normals.mkv"))
    Image.fromarray(skimage.data.astronaut()[:, ::-1]).save(folder / "other.png")
    with pytest.raises(InputError, match=r"shows the person of .*photo.png, not of .*other.png"):
        behind_normals(job(folder, "a.normals.mkv", "other.png"))
    render_normals(folder / "a.meshes.npz", folder / "c.normals.mkv", RenderConfig(size=256))
    with (folder / "c.normals.mkv").open("ab") as film:
        film.write(b"edited")
    with pytest.raises(InputError, match=r"c\.normals\.mkv is not the film that .*c\.normals\.json describes"):
        behind_normals(job(folder, "c.normals.mkv"))
