"""Tracking clips of the astronaut that are moved by known amounts."""

import logging
from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from support.performers import quiet

from expportrait_cli.artifacts.types import CROP_SIZE, Tracking
from expportrait_cli.config import TrackConfig
from expportrait_cli.errors import InputError
from expportrait_cli.geometry.rotations import from_turns, logarithm
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.solve.state import interocular_px
from expportrait_cli.tracking import track

pytest_plugins = ("support.astronaut",)

RATE = Fraction(25)
FACE = (220.0, 110.0)


def moved(*, shift=(0.0, 0.0), zoom=1.0, roll_deg=0.0) -> np.ndarray:
    """The astronaut shifted (px), then zoomed and rolled around the face, 320 px wide."""
    image = skimage.data.astronaut()
    affine = cv2.getRotationMatrix2D(FACE, roll_deg, zoom)
    affine[:, 2] += np.array([160.0, 140.0]) - FACE + shift
    return cv2.warpAffine(image, affine, (320, 300), borderMode=cv2.BORDER_REPLICATE, flags=cv2.INTER_CUBIC)


def film(path: Path, frames: list[np.ndarray]) -> Path:
    with VideoWriter(path, rate=RATE, lossless=True) as writer:
        for frame in frames:
            writer.write(frame)
    return path


SHIFTS = [(3.0 * k, 1.5 * k) for k in range(10)]


@pytest.fixture(scope="module")
def sliding(tmp_path_factory, head) -> tuple[Path, Tracking]:
    path = film(tmp_path_factory.mktemp("sliding") / "a.mkv", [moved(shift=shift) for shift in SHIFTS])
    return path, track(path, head, TrackConfig(), quiet)


def place_px(tracking: Tracking) -> np.ndarray:
    """Head's origin in the source, px."""
    crop = tracking.translation[:, :2] / tracking.translation[:, 2:] * tracking.focal_px + CROP_SIZE / 2
    return crop * tracking.crop[2] / CROP_SIZE + tracking.crop[:2]


def test_a_photo_has_one_frame_and_no_rate(photo_tracking):
    assert photo_tracking.rate.tolist() == [0, 1]
    assert photo_tracking.landmarks.shape == (1, 478, 2)
    assert photo_tracking.size.tolist() == [512, 512]
    assert photo_tracking.error[0] < 2.0
    assert photo_tracking.state.tolist() == [0]
    left, right = photo_tracking.landmarks[0, [263, 33]]
    assert left[0] - right[0] == pytest.approx(interocular_px(photo_tracking.landmarks[0]), rel=0.02)


def test_every_frame_has_a_row(sliding):
    _, tracking = sliding
    whole = ["source", "source_hash", "head_model", "size", "rate", "crop", "focal_px", "identity", "first_frame"]
    for field in fields(Tracking):
        if field.name not in whole:
            assert len(getattr(tracking, field.name)) == len(SHIFTS), field.name
    assert tracking.rate.tolist() == [25, 1]
    assert tracking.size.tolist() == [320, 300]
    assert not tracking.state.any() and not tracking.shot.any()
    assert tracking.error.max() < 2.5


def test_the_head_follows_the_shift(sliding):
    _, tracking = sliding
    step = place_px(tracking) - place_px(tracking)[0]
    assert np.abs(step - SHIFTS).max() < 1.5
    assert np.ptp(tracking.translation[:, 2]) < 0.03 * tracking.translation[0, 2]
    # The same picture off the axis is a head that has turned with the line of sight.
    sight = tracking.translation / np.linalg.norm(tracking.translation, axis=1, keepdims=True)
    expected = np.cross(sight[:1], sight)
    turn = logarithm(from_turns(tracking.rotation) @ from_turns(tracking.rotation[0]).T)
    assert np.degrees(np.linalg.norm(turn - expected, axis=1)).max() < 1.5
    # The detector moves points by a few tenths of a pixel with the place of the face; 0.23 was measured.
    assert np.abs(tracking.expression - tracking.expression[0]).max() < 0.3


def test_the_flow_sees_the_shift(sliding):
    _, tracking = sliding
    px = np.array(SHIFTS) * CROP_SIZE / tracking.crop[2]
    for region in range(2):
        a, b, c, d = tracking.flow[:, region].T
        centre = np.array([CROP_SIZE / 2, CROP_SIZE / 2])
        seen = np.stack([a * centre[0] - b * centre[1] + c, b * centre[0] + a * centre[1] + d], -1) - centre
        assert np.abs(seen - px).max() < 0.05 * np.abs(px).max()


@pytest.mark.slow
def test_the_same_clip_gives_the_same_bits(sliding, head):
    path, first = sliding
    again = track(path, head, TrackConfig(), quiet)
    for field in fields(Tracking):
        assert np.array_equal(
            getattr(first, field.name), getattr(again, field.name), equal_nan=field.name == "shoulders"
        ), field.name


@pytest.mark.slow
def test_zoom_is_depth_and_roll_is_roll(tmp_path, head):
    zooms, rolls = np.linspace(1.0, 1.25, 8), np.linspace(0, 15, 8)
    path = film(tmp_path / "a.mkv", [moved(zoom=z, roll_deg=-r) for z, r in zip(zooms, rolls, strict=True)])
    tracking = track(path, head, TrackConfig(), quiet)
    assert np.abs(tracking.translation[0, 2] / tracking.translation[:, 2] / zooms - 1).max() < 0.03
    turn = logarithm(from_turns(tracking.rotation) @ from_turns(tracking.rotation[0]).T)
    assert np.abs(np.degrees(turn[:, 2]) - rolls).max() < 1.5
    assert np.degrees(np.abs(turn[:, :2])).max() < 3


@pytest.mark.slow
def test_a_still_clip_stays_still(tmp_path, head):
    generator = np.random.default_rng(0)
    image = moved().astype(float)
    noisy = [np.clip(image + generator.normal(size=image.shape) * 2, 0, 255).astype(np.uint8) for _ in range(8)]
    tracking = track(film(tmp_path / "a.mkv", noisy), head, TrackConfig(), quiet)
    turn = logarithm(from_turns(tracking.rotation[1:]) @ from_turns(tracking.rotation[:-1]).swapaxes(1, 2))
    assert np.degrees(np.linalg.norm(turn, axis=1)).max() < 0.5
    assert np.ptp(place_px(tracking), axis=0).max() < 0.5


@pytest.mark.slow
def test_frames_without_a_face_keep_their_place(tmp_path, head, caplog):
    blank = np.full((300, 320, 3), 90, np.uint8)
    frames = [moved(shift=(2.0 * k, 0)) for k in range(9)]
    frames[3:6] = [blank] * 3
    path = film(tmp_path / "a.mkv", frames)
    with caplog.at_level(logging.WARNING):
        tracking = track(path, head, TrackConfig(), quiet)
    assert len(tracking.landmarks) == 9
    assert (tracking.state[3:6] > 0).all() and not tracking.state[[0, 1, 2, 6, 7, 8]].any()
    assert "no face in 3 of 9 frames" in caplog.text
    assert np.isfinite(tracking.landmarks).all() and np.isfinite(tracking.translation).all()
    with pytest.raises(InputError, match="frame 3"):
        track(path, head, TrackConfig(on_missing="fail"), quiet)


def test_a_clip_without_a_face_is_refused(tmp_path, head):
    path = film(tmp_path / "a.mkv", [np.full((120, 160, 3), 90, np.uint8)] * 3)
    with pytest.raises(InputError, match="no face in any of 3 frames"):
        track(path, head, TrackConfig(), quiet)


@pytest.mark.slow
def test_a_clip_of_one_frame(tmp_path, head):
    tracking = track(film(tmp_path / "a.mkv", [moved()]), head, TrackConfig(), quiet)
    assert len(tracking.landmarks) == 1 and tracking.rate.tolist() == [25, 1]
    assert tracking.error[0] < 2.5
