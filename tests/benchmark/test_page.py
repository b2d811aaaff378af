"""The page of one run: a film of the astronaut, what was asked of it, and what it shows."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from support.astronaut import QUICK
from support.page_reader import Page

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.types import Tracking
from expportrait_cli.config import PAPER, GenerateConfig
from expportrait_cli.errors import InputError
from expportrait_cli.evaluation.own import Asked, Shown
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.pipeline import film
from expportrait_cli.pipeline.job import Job
from expportrait_cli.pipeline.report import Run, held_back, pops, warnings, write_run_report

FRAMES, ANGLE_DEG = 4, 6.0


def quiet(done: int, total: int | None) -> None:
    pass


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    """The astronaut tilts her head, in her own photo."""
    data = pytest.importorskip("skimage.data")
    folder = tmp_path_factory.mktemp("run")
    picture = data.astronaut()[:400, 20:420]
    Image.fromarray(picture).save(folder / "photo.png")
    with VideoWriter(folder / "tilt.mkv", rate=Fraction(25), lossless=True) as writer:
        for t in range(FRAMES):
            turn = cv2.getRotationMatrix2D((200, 150), ANGLE_DEG * t / (FRAMES - 1), 1)
            writer.write(cv2.warpAffine(picture, turn, (400, 400), borderMode=cv2.BORDER_REPLICATE))
    job = Job(
        folder / "photo.png",
        folder / "tilt.mkv",
        folder / "film.mp4",
        fit=QUICK,
        transfer=PAPER,
        generate=GenerateConfig(size=256, backend="proxy", paste_back=True, audio="none"),
    )
    film.generate(job, lambda name: quiet)
    return job


def values(page: Page, label: str) -> list[float]:
    """Means below a curve."""
    at = next(i for i, word in enumerate(page.words) if word.startswith(label))
    text = next(word for word in page.words[at:] if word.startswith("mean "))
    return [float(number) for number in text.removeprefix("mean ").split(" and ")]


@pytest.mark.slow
def test_a_run_shows_what_was_asked_of_it(job, tmp_path):
    record = json.loads(job.record.read_text())
    path = write_run_report(job, record, tmp_path / "run.html", quiet)
    page = Page()
    page.feed(path.read_text())
    page.close()
    assert not page.open and not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    # Half of the tilt, on average, and the film does it.
    asked, shown = values(page, "roll, degrees")
    assert shown == pytest.approx(asked, abs=0.4)
    assert values(page, "pose error") < [1.0] and values(page, "expression error") < [0.08]
    jaw, opened = values(page, "jaw opening")
    assert opened == pytest.approx(jaw, abs=0.08)
    captions = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert [caption.split()[0] for caption in captions[:4]] == ["photo", "driver", "normals", "film"]
    for words in (
        "licences: ",
        "whole run",
        "landmark_error_percent_iod",
        "painter proxy",
        "Nothing out of the ordinary",
    ):
        assert any(words in word for word in page.words), words


@pytest.mark.slow
def test_a_run_without_its_work_folder_is_refused(job):
    other = replace(job, out=job.out.with_name("other.mp4"))
    with pytest.raises(InputError, match=r"other\.mp4 is gone.*`keep_work`"):
        Run.of(other)


@pytest.mark.slow
def test_a_wrong_crop_would_show(job, tmp_path):
    """The comparison is of this camera: read as if it were the crop, the film seems to stand elsewhere."""
    record = json.loads(job.record.read_text())
    wrong = replace(job, generate=replace(job.generate, paste_back=False))
    means = []
    for one in (job, wrong):
        page = Page()
        page.feed(write_run_report(one, record, tmp_path / "run.html", quiet).read_text())
        means.append(values(page, "pose error")[0])
    assert means[1] > means[0] + 0.3


def state(frames: int) -> tuple[Asked, Shown]:
    nothing = np.zeros(frames)
    asked = Asked(np.zeros((frames, 3)), np.zeros((frames, 5)), nothing)
    shown = Shown(np.zeros((frames, 3)), np.zeros((frames, 5)), nothing.copy(), {}, nothing, {})
    return asked, shown


def test_warnings_name_the_frames():
    asked, shown = state(20)
    assert warnings(asked, shown, None, np.zeros(20)) == []
    asked.expression[[3, 4, 5, 9], 2] = 1.3
    shown.jaw[17] = np.nan
    turn = np.zeros(20)
    turn[:2] = 50
    shown.identity["identity_dlib"] = np.where(np.arange(20) == 11, 0.8, 0.2)
    lines = warnings(asked, shown, None, turn)
    assert lines[0] == "Asks for an expression above 115 %: 4 of 20 frames, 3 to 5, 9."
    assert lines[1].endswith("2 of 20 frames, 0 to 1.") and "40 degrees" in lines[1]
    assert lines[2] == "No face found in the film: 1 of 20 frames, 17."
    assert lines[3].startswith("Looks like somebody else") and lines[3].endswith("1 of 20 frames, 11.")


def test_a_film_that_jumps_is_told_from_a_driver_that_does():
    rng = np.random.default_rng(0)
    course = np.cumsum(rng.normal(0, 0.05, (40, 1, 1)), axis=0)
    landmarks = (np.full((40, 478, 2), 256.0) + course).astype(np.float32)
    flicker = np.full(40, 0.5)
    flicker[[12, 30]] = 4.0
    landmarks[28:] += 6.0
    assert np.flatnonzero(pops(flicker, landmarks)).tolist() == [12, 30]
    # The driver's own leap is in the frame that shows it, and in the next, which goes on from there.
    flicker[[28, 29]] = 4.0
    assert np.flatnonzero(pops(flicker, landmarks)).tolist() == [12, 30]


def test_what_was_held_back_is_said_with_why():
    found = {
        "mouth_guessed": {"frames": [[0, 3], [7, 7]]},
        "turn_damped": {"frames": [[5, 9]], "most": 12.5, "unit": "degrees"},
    }
    assert held_back(found, 20) == [
        "Rotation is damped where it would show what the photo hides, by up to 12.5 degrees: 5 of 20 frames, 5 to 9.",
        "The mouth opens, but is shut in the photo: teeth and tongue are guessed: 5 of 20 frames, 0 to 3, 7.",
    ]
    assert held_back({}, 20) == []


@pytest.mark.slow
def test_held_frames_of_the_driver_are_named(job):
    tracking = npz.load(Tracking, job.work / "driving.track.npz")
    asked, shown = state(FRAMES)
    held = replace(tracking, state=np.array([0, 2, 2, 1], np.uint8), error=np.full(FRAMES, 9, np.float32))
    lines = warnings(asked, shown, held, np.zeros(FRAMES))
    assert "9.0 %" in lines[0]
    assert lines[1:] == [
        "No face in the driver, interpolated: 1 of 4 frames, 3.",
        "No face in the driver, held: 2 of 4 frames, 1 to 2.",
    ]


def test_errors_are_mean_differences():
    asked, shown = state(2)
    shown.expression[1] += 0.6
    shown.angles_deg[:, 1] = [3.0, 358.0]
    np.testing.assert_allclose(shown.expression_error(asked), [0, 0.5])
    np.testing.assert_allclose(shown.pose_error_deg(asked), [1, 2 / 3])


def test_where_no_face_is_nothing_is_found():
    _, shown = state(3)
    shown.jaw[1] = np.nan
    assert shown.found.tolist() == [1, 0, 1]


def test_films_of_others_have_no_normals(tmp_path):
    from expportrait_cli.pipeline.sheets import normals_behind

    assert normals_behind(Path(tmp_path / "none.mp4"), 0) is None
