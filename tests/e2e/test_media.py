"""Photos and clips of real people, hard and odd ones: which are refused, whose face is followed, what comes out."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from expportrait_cli.artifacts.types import CROP_SIZE, DISTRUSTED
from expportrait_cli.cli import app
from expportrait_cli.config import TrackConfig
from expportrait_cli.head import landmark_model, load_head
from expportrait_cli.media import ffmpeg
from expportrait_cli.media.video import frame_count, probe
from expportrait_cli.tracking import track
from expportrait_cli.tracking.observe import observe

pytestmark = [pytest.mark.media, pytest.mark.slow]

# What the line has to say about a file, besides its name.
REFUSED_PHOTOS = {
    "hard/hard07": "human face",
    "hard/hard10": "human face",
    "hard/hard11": "human face",
    "hard/hard15": "human face",
    "hard/hard16": "cut off by the border",
    "hard/hard17": "too small",
    "odd/odd17": "0 bytes",
    "odd/odd38": "human face",
    "odd/odd39": "1x1",
    "odd/odd40": "cut off",
    "odd/odd43": "too small",
}
REFUSED_CLIPS = {
    "hard/hard23": "no face in any of 90 frames",
    "odd/odd13": "no picture",
    "odd/odd14": "cut off before its index",
    "odd/odd16": "0 bytes",
    "odd/odd18": "is a text file",
}
# Name of the clip, the face asked for, and where the middle of its face may be: x0, x1, y0, y1, px.
FOLLOWED = [
    ("hard21", "largest", (1150, 1290, 220, 330)),
    ("hard24", "largest", (240, 330, 95, 150)),
    ("hard18", "left", (410, 560, 150, 260)),
    ("hard18", "right", (760, 920, 250, 400)),
]


def find(media: Path, name: str) -> Path:
    (path,) = media.glob(f"{name}*")
    return path


def quiet(done: int, total: int | None) -> None:
    pass


def short(media: Path, name: str, folder: Path, *, frames: int = 10) -> Path:
    """The first frames of a clip, with its sound."""
    path = folder / f"{name.rpartition('/')[2]}.mp4"
    codec = ["-c:v", "libx264", "-crf", "12", "-c:a", "copy"]
    ffmpeg.run(*ffmpeg.input_file(find(media, name)), "-frames:v", str(frames), *codec, "-y", str(path))
    return path


def fails(capsys, folder: Path, *words: object) -> str:
    assert app.run(["-q", *map(str, words)]) == 3
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    assert not [path for path in folder.rglob("*") if path.is_file()]
    return err


@pytest.mark.parametrize("name", REFUSED_PHOTOS)
def test_a_photo_is_refused(media, name, tmp_path, capsys):
    path = find(media, name)
    line = fails(capsys, tmp_path, "generate", path, find(media, "odd/odd12"), "-o", tmp_path / "film.mp4")
    assert path.name in line and REFUSED_PHOTOS[name] in line
    assert line.count(". ") >= 1, "what to do next is missing"


@pytest.mark.parametrize("name", REFUSED_CLIPS)
def test_a_clip_is_refused(media, name, tmp_path, capsys):
    path = find(media, name)
    line = fails(capsys, tmp_path, "track", path, "-o", tmp_path / "clip.track.npz")
    assert path.name in line and REFUSED_CLIPS[name] in line


@pytest.mark.parametrize(("name", "face", "place"), FOLLOWED)
def test_the_right_face_is_followed_in_every_frame(media, name, face, place):
    seen = observe(find(media, f"hard/{name}"), landmark_model(load_head()), TrackConfig(face=face), quiet)
    left, top, side = seen.crop
    x, y = (seen.landmarks.mean(1) * (side / CROP_SIZE) + [left, top]).T
    # A face is found all but everywhere; near profile its landmarks may not be believed.
    assert ((seen.state != 0) & (seen.doubt < DISTRUSTED)).sum() <= 4
    assert place[0] < x.min() and x.max() < place[1] and place[2] < y.min() and y.max() < place[3]


def test_two_people_are_noted_and_refused_in_a_list(media, tmp_path, capsys):
    photo = find(media, "hard/hard08")
    assert app.run(["track", str(photo), "-o", str(tmp_path / "a.track.npz")]) == 0
    assert "2 faces found" in capsys.readouterr().err
    (tmp_path / "jobs.csv").write_text(f"reference,driving\n{photo},{find(media, 'odd/odd12')}\n")
    assert app.run(["-q", "batch", str(tmp_path / "jobs.csv"), "-o", str(tmp_path)]) == 3
    out, err = capsys.readouterr()
    assert out == "" and "2 faces found" in err and not list(tmp_path.glob("*.mp4"))


def test_the_fit_is_as_good_after_a_cut(media):
    tracking = track(find(media, "hard/hard20"), load_head(), TrackConfig(), quiet)
    cuts = np.flatnonzero(np.diff(tracking.shot)) + 1
    assert cuts.tolist() == [22, 93]
    for cut in cuts:
        assert tracking.error[cut : cut + 5].max() < 2.5
    assert tracking.error.max() < 4


@pytest.mark.parametrize(
    ("name", "is_misfit"), [("hard01", True), ("hard12", False), ("hard13", False), ("hard14", False)]
)
def test_a_misfit_is_said_and_drawings_are_taken(media, name, is_misfit, tmp_path, capsys):
    assert app.run(["track", str(find(media, f"hard/{name}")), "-o", str(tmp_path / "a.track.npz")]) == 0
    assert ("fits the face badly" in capsys.readouterr().err) == is_misfit


def test_every_real_photo_fits(media):
    head = load_head()
    for path in sorted((media / "reference").iterdir()):
        assert track(path, head, TrackConfig(), quiet).error.mean() < 2.5, path.name


@pytest.mark.parametrize(
    ("reference", "driving", "options"),
    [
        ("reference/ref17", "odd/odd09", []),
        ("odd/odd30", "odd/odd12", ["--paste-back"]),
        ("odd/odd32", "hard/hard18", ["--driving-face", "left", "--absolute"]),
        ("reference/ref33", "driving/drv18", ["--region", "lips", "--grid"]),
        ("reference/ref13", "odd/odd11", ["--curves", "{folder}/curves.csv"]),
        ("reference/ref27", "odd/odd08", []),
    ],
)
def test_a_film_has_the_drivers_frames_rate_and_sound(media, reference, driving, options, tmp_path, capsys):
    clip = find(media, driving)
    if frame_count(clip) > 40:
        clip = short(media, driving, tmp_path)
    path = tmp_path / "out" / "film.mp4"
    words = [word.format(folder=tmp_path) for word in options]
    line = ["generate", str(find(media, reference)), str(clip), "-o", str(path), "--size", "256", *words]
    assert app.run(line) == 0
    out, err = capsys.readouterr()
    assert out == f"{path}\n" and "Traceback" not in err
    film, drive = probe(path), probe(clip)
    assert (film.rate, frame_count(path), film.has_audio) == (drive.rate, frame_count(clip), drive.has_audio)
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["frames"] == frame_count(clip) and Fraction(record["rate"]) == drive.rate
    expected = {"film.mp4", "film.json", "film.work"} | ({"film.grid.mp4"} if "--grid" in options else set())
    assert {place.name for place in path.parent.iterdir()} == expected
    assert not list(tmp_path.rglob("*.partial"))
