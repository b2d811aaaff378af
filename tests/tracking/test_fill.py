"""Frames without a face: filled, never dropped."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from expportrait_cli.config import TrackConfig
from expportrait_cli.errors import InputError
from expportrait_cli.tracking.observe import HELD, INTERPOLATED, TRACKED, fill_missing

RATE = Fraction(30)
BELIEVED = np.zeros(100, np.float32)


def clip(count: int, *gaps: slice) -> np.ndarray:
    """Points that move by one pixel a frame, with gaps."""
    frames = np.arange(count, dtype=np.float32)[:, None, None] + np.zeros((478, 2), np.float32)
    for gap in gaps:
        frames[gap] = np.nan
    return frames


def fill(frames, *, mode="interpolate", shots=None, rate=RATE):
    shots = np.zeros(len(frames), np.int64) if shots is None else np.array(shots)
    filled, state = fill_missing(
        frames, shots, TrackConfig(on_missing=mode), rate, Path("clip.mp4"), doubt=BELIEVED[: len(frames)]
    )
    assert filled.shape == frames.shape and len(state) == len(frames)
    assert np.isfinite(filled).all()
    seen = ~np.isnan(frames).any((1, 2))
    assert np.array_equal(filled[seen], frames[seen])
    assert (state[seen] == TRACKED).all() and (state[~seen] != TRACKED).all()
    return filled[:, 0, 0], state


def test_nothing_missing_is_left_alone():
    filled, state = fill(clip(5))
    assert filled.tolist() == [0, 1, 2, 3, 4] and not state.any()


def test_a_short_gap_is_interpolated():
    filled, state = fill(clip(30, slice(5, 20)))
    assert np.allclose(filled, np.arange(30), atol=1e-4)
    assert (state[5:20] == INTERPOLATED).all()


def test_a_gap_over_half_a_second_holds_what_was_there():
    filled, state = fill(clip(30, slice(5, 21)))
    assert (filled[5:21] == 4).all()
    assert (state[5:21] == HELD).all()


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001), Fraction(60)])
def test_half_a_second_is_counted_at_the_clips_own_rate(rate):
    longest = int(rate / 2)
    assert (fill(clip(80, slice(10, 10 + longest)), rate=rate)[1][10 : 10 + longest] == INTERPOLATED).all()
    assert (fill(clip(80, slice(10, 11 + longest)), rate=rate)[1][10 : 11 + longest] == HELD).all()


def test_gaps_at_the_ends_hold_the_nearest_frame():
    filled, state = fill(clip(10, slice(0, 3), slice(8, 10)))
    assert filled.tolist() == [3, 3, 3, 3, 4, 5, 6, 7, 7, 7]
    assert state.tolist() == [HELD] * 3 + [TRACKED] * 5 + [HELD] * 2


def test_a_cut_is_not_bridged():
    filled, state = fill(clip(8, slice(3, 5)), shots=[0, 0, 0, 0, 1, 1, 1, 1])
    assert (state[3:5] == HELD).all()
    assert filled[3:5].tolist() == [2, 5]


def test_a_shot_without_a_face_holds_the_one_before():
    filled, state = fill(clip(8, slice(3, 6)), shots=[0, 0, 0, 1, 1, 1, 2, 2])
    assert filled[3:6].tolist() == [2, 2, 2] and (state[3:6] == HELD).all()


def test_hold_never_interpolates():
    filled, state = fill(clip(6, slice(2, 3)), mode="hold")
    assert filled.tolist() == [0, 1, 1, 3, 4, 5] and state[2] == HELD


def test_a_frame_with_half_a_face_counts_as_missing():
    frames = clip(5)
    frames[2, 100:] = np.nan
    filled, state = fill(frames)
    assert filled[2] == 2 and state[2] == INTERPOLATED


def test_fail_names_the_first_frame():
    frames = clip(9, slice(4, 6))
    with pytest.raises(InputError, match=r"no face in 2 of 9 frames, first in frame 4"):
        fill_missing(
            frames, np.zeros(9, np.int64), TrackConfig(on_missing="fail"), RATE, Path("clip.mp4"), doubt=BELIEVED[:9]
        )


def test_a_gap_leaves_a_line_for_the_user(caplog):
    fill(clip(40, slice(2, 4), slice(10, 30)))
    assert "no face in 22 of 40 frames (numbers 2 to 3, 10 to 29): 2 interpolated, 20 held" in caplog.text


def test_a_face_that_is_not_believed_is_filled_like_none(caplog):
    frames, doubt = clip(9, slice(7, 8)), np.zeros(9, np.float32)
    doubt[3:5] = 0.9
    filled, state = fill_missing(frames, np.zeros(9, np.int64), TrackConfig(), RATE, Path("clip.mp4"), doubt=doubt)
    assert np.allclose(filled[:, 0, 0], range(9)) and np.flatnonzero(state).tolist() == [3, 4, 7]
    assert "no face in 1 and a covered, blurred or foreign face in 2 of 9 frames" in caplog.text


def test_where_no_face_is_believed_all_are():
    frames = clip(4)
    filled, state = fill_missing(
        frames, np.zeros(4, np.int64), TrackConfig(), RATE, Path("clip.mp4"), doubt=np.ones(4, np.float32)
    )
    assert np.array_equal(filled, frames) and not state.any()
