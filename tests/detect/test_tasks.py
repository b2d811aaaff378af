"""The nets through MediaPipe Tasks against the same nets through the legacy solutions: same models, other graphs."""

import importlib.util
import runpy
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from support.media_files import eye_distance_px

from expportrait_cli.detect import mediapipe_adapter as legacy
from expportrait_cli.detect import nets
from expportrait_cli.detect import tasks_adapter as tasks
from expportrait_cli.errors import WeightsError
from expportrait_cli.weights import catalogue

if catalogue.mediapipe_interface() == "tasks":
    pytest.skip("the models to compare with lie in the wheel of mediapipe 0.10.21", allow_module_level=True)

from support.task_bundles import write_all

PLAIN = np.full((200, 300, 3), 90, np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_all(folder)
    return folder


@pytest.fixture(autouse=True)
def _downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPPORTRAIT_WEIGHTS", str(folder))


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return skimage.data.astronaut()


@pytest.fixture(scope="module")
def face(photo: np.ndarray) -> np.ndarray:
    return cv2.resize(photo[:260, 90:350], (384, 384))


def shifted(image: np.ndarray, count: int) -> list[np.ndarray]:
    return [np.ascontiguousarray(np.roll(image, (2 * i, 3 * i), axis=(0, 1))) for i in range(count)]


def test_landmarks_are_the_same(face: np.ndarray) -> None:
    net = tasks.LandmarkNet(video=False)
    expected, found = legacy.LandmarkNet(video=False)(face), net(face)
    assert expected is not None and found is not None
    # 0.05 % of the inter-ocular distance: the two graphs round the turn of the face otherwise.
    assert np.linalg.norm(found - expected, axis=1).max() < 0.002 * eye_distance_px(expected)
    assert net(PLAIN) is None


def test_landmarks_that_follow_are_not_smoothed(face: np.ndarray) -> None:
    both = legacy.LandmarkNet(video=True), tasks.LandmarkNet(video=True)
    for frame in shifted(face, 6):
        expected, found = (net(frame) for net in both)
        assert expected is not None and found is not None
        # 0.15 % measured. With frames 40 ms apart the filter of Tasks lags by more than 2 %.
        assert np.linalg.norm(found - expected, axis=1).max() < 0.005 * eye_distance_px(expected)
    for net in both:
        net.forget()
    mirrored = np.ascontiguousarray(face[:, ::-1])
    expected, found = (net(mirrored) for net in both)
    assert expected is not None and found is not None
    assert np.linalg.norm(found - expected, axis=1).max() < 0.002 * eye_distance_px(expected)


def test_faces_are_the_same(photo: np.ndarray) -> None:
    # The graph of full range is tested with mediapipe 1.0 only: that of 0.10.21 assumes the anchors of short range.
    net = tasks.FaceDetector("short", min_score=0.5)
    expected, found = legacy.FaceDetector("short", min_score=0.5)(photo), net(photo)
    assert expected.shape == found.shape == (1, 17)
    np.testing.assert_allclose(found[:, 4:], expected[:, 4:], atol=1e-3)
    # Corner and size are rounded to whole pixels, each on its own.
    np.testing.assert_allclose(found[:, :4], expected[:, :4], atol=2)
    assert net(PLAIN).shape == (0, 17)


def test_segmentation_is_the_same(photo: np.ndarray) -> None:
    wide = photo[:300]
    np.testing.assert_allclose(tasks.SelfieNet()(wide), legacy.SelfieNet()(wide), atol=1e-3)


def test_shoulders_are_the_same(photo: np.ndarray) -> None:
    both = legacy.PoseNet(video=False), tasks.PoseNet(video=False)
    for frame in shifted(photo, 3):
        expected, found = (net(frame) for net in both)
        assert expected is not None and found is not None
        # 1.4 px measured: the person is cut off at the waist and the net unsure.
        np.testing.assert_allclose(found[[11, 12], :2], expected[[11, 12], :2], atol=3)
        np.testing.assert_allclose(found[[11, 12], 2], expected[[11, 12], 2], atol=0.01)
    assert both[1](PLAIN) is None


def test_a_body_that_is_followed_stays_near(photo: np.ndarray) -> None:
    # No closer comparison: fed with its own answer, either graph wanders by 10 px on a still picture.
    net = tasks.PoseNet(video=True)
    first = net(photo)
    assert first is not None
    for _ in range(3):
        found = net(photo)
        assert found is not None and np.abs(found[[11, 12], :2] - first[[11, 12], :2]).max() < 25


def test_nothing_is_written_to_the_terminal(capfd: pytest.CaptureFixture[str], photo: np.ndarray) -> None:
    for net in (
        tasks.FaceDetector("short", min_score=0.5),
        tasks.LandmarkNet(video=True),
        tasks.SelfieNet(),
        tasks.PoseNet(video=False),
    ):
        net(photo)
    del net
    assert capfd.readouterr() == ("", "")


def test_a_net_ends_with_its_owner() -> None:
    code = (
        "import logging, weakref; logging.disable()\n"
        "from expportrait_cli.detect.tasks_adapter import SelfieNet\n"
        "def held():\n    net = SelfieNet()\n    return weakref.ref(net._task)\n"
        "print(held()())"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("None\n", "")


def test_a_missing_file_is_named_with_its_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(catalogue, "folders", lambda: (catalogue.CHECKOUT, tmp_path))
    with pytest.raises(WeightsError) as caught:
        tasks.LandmarkNet(video=False)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("face_landmarker.task is missing")
    assert str(tmp_path) in message and "float16/1/face_landmarker.task" in message and "EXPPORTRAIT_WEIGHTS" in message


def test_a_damaged_file_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EXPPORTRAIT_WEIGHTS", str(tmp_path))
    (tmp_path / "selfie_segmenter.tflite").write_bytes(b"<html>not found</html>")
    with pytest.raises(WeightsError, match=r"selfie_segmenter\.tflite cannot be read") as caught:
        tasks.SelfieNet()
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""


def test_a_file_that_is_not_the_published_one_is_told(caplog: pytest.LogCaptureFixture) -> None:
    catalogue.downloaded_file("selfie-segmenter")
    assert "is not the published selfie_segmenter.tflite" in caplog.text


@pytest.mark.parametrize(("inside", "interface"), [("python/solutions", "legacy"), ("tasks/python", "tasks")])
def test_the_installed_mediapipe_decides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, inside: str, interface: str
) -> None:
    (tmp_path / inside).mkdir(parents=True)
    spec = ModuleSpec("mediapipe", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert catalogue.mediapipe_interface() == interface
    used = {entry.name for entry in catalogue.catalogue.__wrapped__()}
    assert ("face-mesh" in used, "face-landmarker" in used) == (interface == "legacy", interface == "tasks")
    assert "head-anny" in used
    chosen = runpy.run_path(nets.__file__)
    adapter = {"legacy": legacy, "tasks": tasks}[interface]
    assert all(
        chosen[name] is getattr(adapter, name) for name in ("FaceDetector", "LandmarkNet", "SelfieNet", "PoseNet")
    )


def test_without_mediapipe_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert catalogue.mediapipe_interface() == "legacy"
