"""Motion that a film does not take over: steps of the fit, gaps of the flow, heads that would leave the picture."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.signal import savgol_filter
from support.known_head import tracking_of

from expportrait_cli.retargeting.steady import bridged, eased, steady_torso, straight, stretches, within_frame

pytest_plugins = ("support.astronaut",)


def test_steps_under_a_picture_that_rests_are_smoothed_and_others_stay():
    values = np.r_[np.zeros(10), np.ones(10)]
    rests, moves = np.full(19, 1e-5), np.full(19, 1.0)
    shot = np.zeros(20, np.int64)
    smooth = eased(values, shot, rests, 0.01)
    assert np.abs(np.diff(smooth)).max() < 0.15
    # As far back as ahead: nothing lags.
    assert np.abs(smooth + smooth[::-1] - 1).max() < 1e-9
    assert np.array_equal(eased(values, shot, moves, 0.01), values)
    assert np.abs(eased(values, np.r_[np.zeros(10), np.ones(10)].astype(np.int64), rests, 0.01) - values).max() < 1e-9


def test_a_torso_follows_a_pan_and_no_leap_of_the_head(head, tmp_path):
    points = np.random.default_rng(0).uniform(0, 512, (478, 2)).astype(np.float32)
    still = tracking_of(head, np.zeros(head.identity_basis.shape[2]), 40, 0, tmp_path / "clip.mp4")
    still = replace(still, landmarks=np.repeat(points[None], 40, axis=0), shot=np.zeros_like(still.shot))
    still.flow[:, 1, 0] = 1 + 1e-6
    leap = np.zeros((40, 2))
    leap[20] = [10, 30]
    assert np.abs(np.diff(steady_torso(np.zeros((40, 2)), still, beside=leap), axis=0)).max() < 0.5
    pan = np.outer(np.arange(40.0), [3, 1])
    assert np.abs(steady_torso(pan, still, beside=pan) - pan).max() < 1e-6
    # A camera that shakes moves both; a nod that moves the shoulders by a third is calmed.
    shake = np.outer(np.sin(np.arange(40.0)), [3, 8])
    noise = np.random.default_rng(1).normal(scale=0.2, size=shake.shape)
    assert np.abs(steady_torso(shake + noise, still, beside=shake) - shake).max() < 0.6
    nod = steady_torso(shake / 3 + noise, still, beside=shake)
    assert np.abs(np.diff(nod, axis=0)).max() < 0.5 * np.abs(np.diff(shake / 3, axis=0)).max()


def test_a_gap_keeps_its_shape_and_meets_what_is_around_it():
    walk = np.arange(12.0)
    seen = walk.copy()
    gaps = np.zeros(12, bool)
    gaps[4:8] = True
    # Counted from elsewhere, as it is where the flow was lost.
    seen[gaps] = walk[gaps] - 100
    out = bridged(seen, gaps)
    assert np.array_equal(out[~gaps], walk[~gaps])
    assert np.abs(np.diff(out)).max() < 1.5
    gaps[8:] = True
    seen = np.where(gaps, -50 + walk, walk)
    assert np.abs(np.diff(bridged(seen, gaps))[4:] - 1).max() < 1e-9


@pytest.mark.parametrize("start", [0.0, 240.0])
def test_a_face_stays_in_the_picture(start):
    """Small motions are untouched, large ones end where the face is whole, or where the photo had it."""
    px = np.c_[start + np.array([0.0, 5.0, 400.0]), np.zeros(3)]
    if start:
        px[1, 0] = start - 5
    out = within_frame(px, np.array([start, 0.0]), np.full((3, 1), 80.0))
    assert np.abs(out[:2] - px[:2]).max() < 1e-9
    assert out[2, 0] <= max(256 - 80, start + 40)


def test_stretches_are_first_and_last_frames():
    assert stretches(np.array([1, 1, 0, 1], bool)) == [[0, 1], [3, 3]]


@pytest.mark.parametrize(("count", "length"), [(40, 15), (15, 15), (4, 3)])
def test_straight_courses_are_those_of_the_filter_of_savitzky_and_golay(count, length):
    rows = np.random.default_rng(0).normal(size=(count, 2, 3))
    np.testing.assert_allclose(straight(rows, length), savgol_filter(rows, length, 1, axis=0), atol=1e-12)
