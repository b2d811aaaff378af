"""From a photo and a clip to a film, through the command line; the person is the astronaut that scikit-image ships."""

import json
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image

from expportrait_cli.cli import app
from expportrait_cli.media import ffmpeg
from expportrait_cli.media.video import VideoWriter, frame_count, probe
from expportrait_cli.pipeline import film

pytestmark = pytest.mark.slow

RATE = Fraction(30000, 1001)
COUNT = 14


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "astronaut.png"
    Image.fromarray(skimage.data.astronaut()[:400, 20:420]).save(path)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """The astronaut swaying, with sound."""
    folder = tmp_path_factory.mktemp("clip")
    ffmpeg.run("-f", "lavfi", "-i", "sine=duration=2", "-y", str(folder / "sound.m4a"))
    image = skimage.data.astronaut()[:400, 20:420]
    with VideoWriter(folder / "sway.mp4", rate=RATE, audio=folder / "sound.m4a") as writer:
        for index in range(COUNT):
            turn = cv2.getRotationMatrix2D((200, 150), 6 * np.sin(index / 4), 1)
            writer.write(cv2.warpAffine(image, turn, (400, 400), borderMode=cv2.BORDER_REPLICATE))
    return folder / "sway.mp4"


def run(capsys, *arguments: object, code: int = 0) -> tuple[str, str]:
    assert app.run([str(argument) for argument in arguments]) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out, err


def test_a_film_its_record_and_a_second_run(photo, clip, tmp_path, capsys):
    path = tmp_path / "film.mp4"
    out, err = run(capsys, "generate", photo, clip, "-o", path, "--size", 256)
    assert out == f"{path}\n"
    assert "paint the film: 14 of 14" in err
    info = probe(path)
    assert (info.rate, frame_count(path), info.has_audio) == (RATE, COUNT, True)
    assert (info.width, info.height) == (256, 256)
    assert "AI-generated" in ffmpeg.run(*ffmpeg.input_file(path))[2]
    record = json.loads((tmp_path / "film.json").read_text())
    assert record["frames"] == COUNT and record["rate"] == "30000/1001"
    assert record["settings"]["generate"]["size"] == 256
    assert {row["licence"] for row in record["weights"]} <= {"Apache-2.0", "CC0-1.0"}
    assert sorted(place.name for place in tmp_path.iterdir()) == ["film.json", "film.mp4", "film.work"]

    before = path.stat().st_mtime_ns
    out, err = run(capsys, "generate", photo, clip, "-o", path, "--size", 256)
    assert out == f"{path}\n" and "up to date" in err
    assert path.stat().st_mtime_ns == before

    # Other settings run again only what depends on them.
    out, _ = run(capsys, "generate", photo, clip, "-o", path, "--size", 256, "--audio", "none", "--json")
    summary = json.loads(out)
    assert "paint the film" in summary["seconds"] and "track the driver" not in summary["seconds"]
    assert not probe(path).has_audio


def test_a_killed_run_goes_on_where_it_stopped(photo, clip, tmp_path, capsys, monkeypatch):
    path = tmp_path / "film.mp4"
    monkeypatch.setattr(film, "SEGMENT", 5)
    write = film.VideoWriter.write

    def killed(self, frame):
        if self.path.name == "00000005.mp4" and self.frame_count == 2:
            raise KeyboardInterrupt
        write(self, frame)

    with monkeypatch.context() as patch:
        patch.setattr(film.VideoWriter, "write", killed)
        _, err = run(capsys, "generate", photo, clip, "-o", path, "--size", 256, code=130)
    assert "same command again" in err
    assert not path.exists()
    assert not list(tmp_path.rglob("*.partial"))
    _, err = run(capsys, "generate", photo, clip, "-o", path, "--size", 256)
    assert "Going on at frame 5 of 14" in err and "track the" not in err
    assert frame_count(path) == COUNT


def test_the_stages_one_by_one_through_their_output(photo, clip, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = run(capsys, "track", photo)[0].strip()
    driver = run(capsys, "track", clip)[0].strip()
    assert (own, driver) == ("astronaut.track.npz", "sway.track.npz")
    head = run(capsys, "fit", own, "--driver", driver)[0].strip()
    meshes = run(capsys, "transfer", head, driver, "--curves", "c.csv")[0].strip()
    assert meshes == "astronaut--sway.meshes.npz"
    rows = Path("c.csv").read_text().splitlines()
    assert len(rows) == COUNT + 1
    normals = run(capsys, "render-normals", meshes, "--preview", "--orbit", "yaw=-10..10", "--size", "256")[0].strip()
    assert frame_count(normals) == COUNT
    assert frame_count("astronaut--sway.preview.mp4") == COUNT
    path = run(capsys, "generate", head, meshes, "--size", "256", "--grid", "-o", "film.mp4")[0].strip()
    assert frame_count(path) == COUNT and probe(path).has_audio
    assert (probe("film.grid.mp4").width, frame_count("film.grid.mp4")) == (4 * 256, COUNT)
    run(capsys, "eval", path, "--target", clip, "--reference", photo)

    # Given again, the table that the command itself wrote is no edit; changed, it is.
    _, err = run(capsys, "transfer", head, driver, "--curves", "c.csv")
    assert "Curves written" in err
    Path("c.csv").write_text(
        "\n".join([rows[0], *rows[1:-1], rows[-2].replace(rows[-2].split(",")[0], str(COUNT - 1), 1)])
    )
    _, err = run(capsys, "transfer", head, driver, "--curves", "c.csv")
    assert "its curves are used" in err


def test_paste_back_keeps_the_photo_size(photo, clip, tmp_path, capsys):
    path = tmp_path / "film.mp4"
    run(capsys, "generate", photo, clip, "-o", path, "--paste-back", "--size", 256, "--no-keep-work")
    assert (probe(path).width, probe(path).height) == (400, 400)
    assert not (tmp_path / "film.work").exists()


def test_a_batch_goes_on_after_a_failure(photo, clip, tmp_path, capsys):
    blank = tmp_path / "navy.png"
    Image.new("RGB", (256, 256), "navy").save(blank)
    jobs = tmp_path / "jobs.csv"
    jobs.write_text(
        f"reference,driving,output,size\n{blank},{clip},a.mp4,256\n{photo},{clip},b.mp4,256\n{photo},{clip},c.mp4,256\n"
    )
    out, err = run(capsys, "batch", jobs, code=3)
    assert out == f"{tmp_path / 'b.mp4'}\n{tmp_path / 'c.mp4'}\n"
    assert "1 of 3 films failed" in err and "navy.png" in err
    assert err.count("track the driver") == 1
    assert not (tmp_path / "a.mp4").exists()


def test_a_photo_without_a_face_leaves_no_film(clip, tmp_path, capsys):
    blank = tmp_path / "blank.png"
    Image.new("RGB", (300, 300), "grey").save(blank)
    _, err = run(capsys, "generate", blank, clip, "-o", tmp_path / "film.mp4", "--size", 256, code=3)
    assert "blank.png" in err.splitlines()[-1]
    assert not (tmp_path / "film.mp4").exists()
