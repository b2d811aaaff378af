from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from support.media_files import eye_distance_px

from expportrait_cli.detect.crop import crop_image, steady_crop
from expportrait_cli.detect.faces import FaceBox, FaceFinder, check_portrait, choose_face, distinct
from expportrait_cli.detect.matte import Matte, Shoulders
from expportrait_cli.detect.mesh import FaceMesh
from expportrait_cli.errors import InputError

SIZE = (600, 400)


def box(x: float, side: float, score: float = 0.9) -> FaceBox:
    return FaceBox(float(x), 100.0, float(x + side), float(100 + side), score, np.zeros((6, 2), np.float32))


FACES = [box(20, 80), box(250, 60), box(450, 120)]


@pytest.mark.parametrize(
    ("choice", "index"), [("largest", 2), ("left", 0), ("right", 2), ("center", 1), ("0", 0), ("1", 1), ("2", 2)]
)
def test_choice(choice: str, index: int) -> None:
    assert choose_face(FACES[::-1], choice, size=SIZE) is FACES[index]


@pytest.mark.parametrize(("choice", "complaint"), [("3", "only 3 found"), ("-1", "Expected largest"), ("tall", "tall")])
def test_a_face_that_is_not_there(choice: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        choose_face(FACES, choice, size=SIZE)
    assert "\n" not in str(caught.value)


def test_no_face_to_choose() -> None:
    with pytest.raises(InputError, match="No face"):
        choose_face([], "largest", size=SIZE)


def test_overlapping_boxes_are_one_face() -> None:
    best = box(22, 84, 0.95)
    assert len(distinct([box(20, 80), best, box(30, 60), box(300, 80)])) == 2
    assert distinct([box(20, 80), best])[0] is best


@pytest.fixture(scope="module")
def finder() -> FaceFinder:
    return FaceFinder()


@pytest.fixture(scope="module")
def mesh() -> FaceMesh:
    return FaceMesh(video=False)


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    data = pytest.importorskip("skimage.data")
    return data.astronaut()


def test_astronaut(finder: FaceFinder, mesh: FaceMesh, astronaut: np.ndarray) -> None:
    (face,) = finder.find(astronaut)
    points = mesh.landmarks(astronaut, face)
    assert points is not None
    check_portrait(astronaut, face, points)
    # Pupils and the edge of the upper lip, read by eye off the picture at ten times its size.
    np.testing.assert_allclose(points[[468, 473, 13]], [(204, 101), (246.7, 103), (224, 143.5)], atol=2)
    crop = steady_crop(points[None], (512, 512))
    seen = crop_image(astronaut, crop, 512)
    matte = Matte().matte(seen)
    assert matte[250, 256] > 0.95 and matte[:40, :40].max() < 0.05
    shoulders = Shoulders().shoulders(seen)
    assert shoulders is None or shoulders[0, 0] > shoulders[1, 0]


def test_landmarks_do_not_depend_on_the_size_of_the_picture(
    finder: FaceFinder, mesh: FaceMesh, astronaut: np.ndarray
) -> None:
    points = mesh.landmarks(astronaut, finder.find(astronaut)[0])
    large = cv2.resize(astronaut, None, fx=2.5, fy=2.5, interpolation=cv2.INTER_CUBIC)
    again = mesh.landmarks(large, finder.find(large)[0])
    assert points is not None and again is not None
    assert np.linalg.norm(again / 2.5 - points, axis=1).mean() < 0.025 * eye_distance_px(points)


def test_a_clip_keeps_to_the_chosen_face(finder: FaceFinder, astronaut: np.ndarray) -> None:
    head = astronaut[0:240, 100:340]
    frame = np.full((300, 700, 3), 120, np.uint8)
    frame[30:270, 30:270], frame[30:270, 400:640] = head, cv2.convertScaleAbs(head, alpha=1.05)
    faces = finder.find(frame)
    assert len(faces) == 2
    left = FaceMesh(video=True)
    first = left.landmarks(frame, choose_face(faces, "left", size=(700, 300)))
    assert first is not None and first[:, 0].max() < 300
    for shift in (4, 8, 12):
        points = left.landmarks(np.roll(frame, shift, axis=1))
        assert points is not None
        assert points[:, 0].mean() - first[:, 0].mean() == pytest.approx(shift, abs=1)
    gone = frame.copy()
    gone[:, :300] = 120
    assert left.landmarks(gone) is None


def test_nothing_is_written_to_the_terminal(capfd: pytest.CaptureFixture[str], astronaut: np.ndarray) -> None:
    face = FaceFinder().find(astronaut)[0]
    FaceMesh(video=True).landmarks(astronaut, face)
    assert capfd.readouterr() == ("", "")


def portrait(path: Path, finder: FaceFinder, mesh: FaceMesh) -> None:
    image = np.array(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    faces = finder.find(image)
    face = choose_face(faces, "largest", size=(image.shape[1], image.shape[0])) if faces else None
    check_portrait(image, face, mesh.landmarks(image, face) if face else None)


@pytest.mark.slow
@pytest.mark.media
def test_every_real_portrait_is_accepted(media: Path, finder: FaceFinder, mesh: FaceMesh) -> None:
    for path in sorted((media / "reference").iterdir()):
        portrait(path, finder, mesh)


@pytest.mark.slow
@pytest.mark.media
@pytest.mark.parametrize("number", ["07", "10", "11", "15", "16", "17"])
def test_hopeless_photos_are_refused(media: Path, finder: FaceFinder, mesh: FaceMesh, number: str) -> None:
    (path,) = media.glob(f"hard/hard{number}_*")
    with pytest.raises(InputError):
        portrait(path, finder, mesh)
