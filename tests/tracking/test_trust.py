"""Frames whose landmarks are not the face's own: the astronaut, moved by known amounts, with a few frames spoilt."""

from dataclasses import replace
from fractions import Fraction

import cv2
import numpy as np
import pytest
import skimage.data
from support.astronaut import head as head
from support.performers import quiet

from expportrait_cli.artifacts.types import CROP_SIZE, DISTRUSTED, Tracking, surest
from expportrait_cli.config import TrackConfig
from expportrait_cli.detect.crop import Crop, uncrop_points
from expportrait_cli.errors import InputError
from expportrait_cli.fitting.parametric import key_frames, neutral_frame
from expportrait_cli.head import landmark_model
from expportrait_cli.head.facemesh import EYE_RINGS
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.pipeline.provenance import tracking_quality
from expportrait_cli.tracking import track
from expportrait_cli.tracking.trust import Unroller, cues, doubts

RATE = Fraction(25)
COUNT = 18
FACE = (220.0, 110.0)
SPOILT = range(8, 11)


def frame(t: int) -> np.ndarray:
    """The astronaut that sways and rolls: up to 5 px and 3 degrees from frame to frame."""
    affine = cv2.getRotationMatrix2D(FACE, 9 * np.sin(t / 2.5), 0.8)
    affine[:, 2] += np.array([128.0, 110.0]) - FACE + [12 * np.sin(t / 2.0), 2 * t % 7]
    return cv2.warpAffine(skimage.data.astronaut(), affine, (256, 240), borderMode=cv2.BORDER_REPLICATE)


def blurred(image: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), 7)


def covered(image: np.ndarray) -> np.ndarray:
    done = image.copy()
    # From the upper lip to the brows.
    cv2.ellipse(done, (128, 104), (40, 24), 20, 0, 360, (150, 110, 95), -1)
    return done


def hushed(image: np.ndarray) -> np.ndarray:
    """A flat hand, of the skin's colour, on the mouth."""
    return cv2.ellipse(image.copy(), (128, 140), (36, 19), 10, 0, 360, (205, 160, 140), -1)


def flashed(image: np.ndarray) -> np.ndarray:
    return np.clip(image * 0.3 + 215, 0, 255).astype(np.uint8)


def black(image: np.ndarray) -> np.ndarray:
    return np.zeros_like(image)


def foreign(image: np.ndarray) -> np.ndarray:
    return cv2.resize(skimage.data.coffee(), (image.shape[1], image.shape[0]))


def clip_of(path, spoil=None, rows=SPOILT, count=COUNT):
    with VideoWriter(path, rate=RATE, lossless=True) as writer:
        for t in range(count):
            writer.write(spoil(frame(t)) if spoil is not None and t in rows else frame(t))
    return path


@pytest.fixture(scope="module")
def clean(tmp_path_factory, head) -> Tracking:
    return track(clip_of(tmp_path_factory.mktemp("clean") / "a.mkv"), head, TrackConfig(), quiet)


def test_motion_is_believed(clean):
    assert not clean.state.any() and not clean.distrusted.any()
    assert clean.doubt.max() < DISTRUSTED
    assert tracking_quality(clean)["frames_not_trusted"] == 0


def test_a_blink_is_believed(clean, head):
    """Bright eyes on dark skin: shut, they are the strongest change of the clip, and still the face's own."""
    unroll, skins = Unroller(landmark_model(head)), []
    points = uncrop_points(clean.landmarks, Crop(*map(float, clean.crop)), CROP_SIZE).astype(np.float32)
    for t, at in enumerate(points):
        image = (0.4 * frame(t)).astype(np.uint8)
        for ring in (EYE_RINGS[:16], EYE_RINGS[16:]):
            hull = cv2.convexHull(np.rint(at[ring]).astype(np.int32))
            cv2.fillConvexPoly(image, hull, (60, 40, 34) if t in SPOILT else (250, 250, 250))
        skins.append(unroll(image, at))
    assert doubts(points, skins, np.zeros(COUNT, int), RATE, unroll.mouth).max() < DISTRUSTED
    dark = [replace(skin, texture=skin.texture // 4) if t in SPOILT else skin for t, skin in enumerate(skins)]
    assert doubts(points, dark, np.zeros(COUNT, int), RATE, unroll.mouth)[list(SPOILT)].min() >= DISTRUSTED


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [blurred, covered, hushed, flashed])
def test_a_spoilt_face_is_filled_in_and_stands_for_nothing(tmp_path, head, clean, caplog, spoil):
    path = clip_of(tmp_path / "a.mkv", spoil)
    seen = track(path, head, TrackConfig(), quiet)
    filled = np.flatnonzero(seen.state)
    # A frame beside the spoilt ones may go with them.
    assert set(SPOILT) <= set(filled) <= {7, *SPOILT, 11}
    assert (seen.state[filled] == 1).all() and f"{len(filled)} interpolated, 0 held" in caplog.text
    assert neutral_frame(seen) not in SPOILT
    assert not set(key_frames(seen, head)) & set(SPOILT)
    # The others are where they were, and the filled ones near what they would have been.
    rest = np.setdiff1d(range(COUNT), filled)
    assert np.degrees(np.abs(seen.rotation - clean.rotation)[rest]).max() < 0.8
    assert np.degrees(np.abs(seen.rotation - clean.rotation)).max() < 10


@pytest.mark.slow
def test_a_spoilt_face_can_end_the_run(tmp_path, head):
    with pytest.raises(InputError, match=r"of 18 frames, first in frame [78]"):
        track(clip_of(tmp_path / "a.mkv", blurred), head, TrackConfig(on_missing="fail"), quiet)


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [black, foreign])
def test_a_flash_does_not_end_a_shot(tmp_path, head, spoil):
    seen = track(clip_of(tmp_path / "a.mkv", spoil), head, TrackConfig(), quiet)
    assert seen.shot.tolist() == [0] * COUNT
    assert np.flatnonzero(seen.state).tolist() == list(SPOILT) and (seen.state[list(SPOILT)] == 1).all()


@pytest.mark.slow
def test_what_stays_is_another_shot(tmp_path, head):
    rows = range(8, 18)
    seen = track(clip_of(tmp_path / "a.mkv", foreign, rows, count=22), head, TrackConfig(), quiet)
    assert seen.shot.tolist() == [0] * 8 + [1] * 10 + [2] * 4


def test_doubt_leaves_frames_where_all_are_doubtful():
    state, doubt = np.zeros(4, np.uint8), np.array([0.1, 0.3, 0.0, 0.4], np.float32)
    assert surest(state, doubt).tolist() == [True, False, True, False]
    assert surest(state, np.full(4, 0.4, np.float32)).all()
    state[2] = 2
    assert surest(state, np.full(4, 0.4, np.float32)).tolist() == [True, True, False, True]


def test_a_face_near_profile_does_not_leap(head):
    """The same motion counts as much when the eyes seem to stand close together as it does seen from the front."""
    ahead = landmark_model(head).template[:, :2] * [900.0, -900.0]
    rng = np.random.default_rng(0)
    moved = ahead + rng.normal(0, 1.5, (9, *ahead.shape))
    unseen = np.zeros((9, 16, 3), np.uint8), np.ones((9, 16), np.float32), np.ones(9)
    front, profile = (cues((moved * [k, 1]).astype(np.float32), *unseen, 4)[:, 3].mean() for k in (1.0, 0.35))
    assert 0.4 * front < profile < front
