"""What a run would write over: its inputs under any name, a stranger's files, and what lies in its work folder."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.guard import check_foreign, check_outputs, is_own
from expportrait_cli.cli import app
from expportrait_cli.errors import UsageError
from expportrait_cli.pipeline.job import Job
from expportrait_cli.pipeline.provenance import write_record


@pytest.fixture
def clip(tmp_path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"a clip")
    return path


def named(clip: Path, how: str) -> Path:
    """The clip by another name."""
    other = clip.with_name("other.mp4")
    match how:
        case "same":
            return clip
        case "dots":
            return clip.parent / "x" / ".." / "clip.mp4"
        case "link":
            other.symlink_to(clip)
        case "hard link":
            os.link(clip, other)
    return other


@pytest.mark.parametrize("how", ["same", "dots", "link", "hard link"])
def test_an_input_is_no_output_under_any_name(clip, how):
    with pytest.raises(UsageError, match="is also an input"):
        check_outputs([clip.with_name("film.mp4"), named(clip, how)], [clip])


def test_what_does_not_exist_yet_is_known_by_its_path(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").symlink_to(tmp_path / "there")
    with pytest.raises(UsageError, match="written twice"):
        check_outputs([tmp_path / "here" / "a.mp4", tmp_path / "there" / "a.mp4"], [])
    check_outputs([tmp_path / "there" / "a.mp4"], [tmp_path / "there" / "b.mp4"])


@pytest.mark.parametrize("name", ["a.mp4", "a.json", "a.html", "a.npz"])
def test_files_of_others_are_not_replaced(tmp_path, name):
    path = tmp_path / name
    check_foreign([path])
    path.touch()
    check_foreign([path])
    path.write_text('{"mine": 1}')
    with pytest.raises(UsageError, match="no run of this tool made it"):
        check_foreign([path])
    assert path.read_text() == '{"mine": 1}'


def test_own_files_are_known(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"key": "k", "settings": {}}))
    (tmp_path / "a.html").write_text('<meta name="generator" content="expportrait">')
    with npz.zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        npz.write_header(archive, "track", 1, {})
    assert all(is_own(tmp_path / f"a.{kind}") for kind in ("json", "html", "npz"))


def test_own_files_are_known_when_they_are_damaged(tmp_path):
    write_record(tmp_path / "a.json", {"output": "a.mp4", "key": "k", "settings": {}})
    with npz.zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        npz.write_header(archive, "track", 1, {})
    for path in (tmp_path / "a.json", tmp_path / "a.npz"):
        path.write_bytes(path.read_bytes()[:-20])
        assert is_own(path)


def run(capsys, *words: object) -> tuple[int, str]:
    code = app.run([str(word) for word in words])
    return code, capsys.readouterr().err


@pytest.fixture
def photo(tmp_path) -> Path:
    Image.fromarray(np.full((64, 64, 3), 128, np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_driver_with_the_name_of_a_side_product_stays(photo, tmp_path, make_clip, capsys):
    driver = tmp_path / "take.grid.mp4"
    driver.write_bytes(make_clip("driver.mp4", "-pix_fmt", "yuv420p").read_bytes())
    before = driver.read_bytes()
    code, err = run(capsys, "generate", photo, driver, "-o", tmp_path / "take.mp4", "--grid")
    assert code == 2 and "is also an input" in err and driver.read_bytes() == before


@pytest.mark.parametrize("name", ["g.json", "g.mp4", "g.html", "g.grid.mp4"])
def test_a_foreign_file_beside_the_film_stays(photo, tmp_path, capsys, name):
    (tmp_path / name).write_text("mine")
    code, err = run(capsys, "generate", photo, photo, "-o", tmp_path / "g.mp4", "--grid", "--report")
    assert code == 2 and "no run of this tool made it" in err and (tmp_path / name).read_text() == "mine"


def test_a_batch_is_refused_before_its_first_film(photo, tmp_path, make_clip, capsys):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(make_clip("second.mp4", "-pix_fmt", "yuv420p").read_bytes())
    before = clip.read_bytes()
    rows = "reference,driving,output\nphoto.png,photo.png,first.mp4\nphoto.png,photo.png,clip.mp4\n"
    (tmp_path / "jobs.csv").write_text(rows + "photo.png,clip.mp4,z.mp4\n")
    code, err = run(capsys, "batch", tmp_path / "jobs.csv")
    assert code == 2 and "is also an input" in err
    assert clip.read_bytes() == before and not (tmp_path / "first.mp4").exists()


def test_curves_do_not_replace_an_input(tmp_path, capsys):
    for name in ("a.head.npz", "a.track.npz"):
        with npz.zipfile.ZipFile(tmp_path / name, "w") as archive:
            npz.write_header(archive, name.split(".")[1], 1, {})
    (tmp_path / "c.csv").symlink_to(tmp_path / "a.head.npz")
    words = ["transfer", tmp_path / "a.head.npz", tmp_path / "a.track.npz", "--curves", tmp_path / "c.csv"]
    code, err = run(capsys, *words, "-o", tmp_path / "a.meshes.npz")
    assert code == 2 and "is also an input" in err


def test_rows_may_share_curves_that_exist_and_not_write_the_same(tmp_path):
    jobs = [Job(tmp_path / "a.png", tmp_path / "b.mp4", tmp_path / f"{n}.mp4", curves=tmp_path / "c.csv") for n in "12"]
    with pytest.raises(UsageError, match="written twice"):
        check_outputs([path for job in jobs for path in job.outputs()], [])
    (tmp_path / "c.csv").write_text("frame\n")
    check_outputs([path for job in jobs for path in job.outputs()], [path for job in jobs for path in job.inputs()])


def test_the_picture_of_the_control_does_not_replace_the_photo(tmp_path):
    job = Job(tmp_path / "film.control.png", tmp_path / "b.mp4", tmp_path / "film.mp4", show_control=True)
    with pytest.raises(UsageError, match=r"film\.control\.png would be written, and is also an input"):
        check_outputs(job.outputs(), job.inputs())
