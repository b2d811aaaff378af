"""What in a tracked motion is noise: it steps although the picture rests, or was not seen for a while."""

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from scipy.linalg import solveh_banded
from scipy.ndimage import maximum_filter1d, median_filter

from expportrait_cli.artifacts.types import Tracking
from expportrait_cli.geometry.rotations import from_turns, logarithm, rodrigues, to_turns
from expportrait_cli.solve.state import interocular_px

STILL_FACE = 0.008
"""Motion of the landmarks from a frame to the next, in inter-ocular distances, below which a step of the pose, the jaw
or the expression is mostly the fit's: the same face can be read as a turned head or as a skewed mouth."""
TURN_SHOWS = 0.4
"""Motion of a face's landmarks, in inter-ocular distances for a turn of one radian, that no real turn falls short of."""
MOVING_LANDMARKS = 90.0
"""Percentile of the landmarks' motions that counts: a blink or a word moves few of them."""
STILL_TORSO = 0.1
"""Motion of the head from a frame to the next, in inter-ocular distances, below which a step of the torso is mostly
the flow's: clothes slide, and hair falls over them, but shoulders seldom jump under a head that rests."""
STIFFEST = 5.0
"""How many frames around it a frame is smoothed with, at most: in a picture that rests altogether."""
MEDIAN_FRAMES = 5
"""Length of the median that takes jumps out: the flow on clothes is wrong for a frame or two at a time."""


def eased(
    values: Float[np.ndarray, "T *C"], shot: Int64[np.ndarray, " T"], change: Float[np.ndarray, " S"], still: float
) -> Float64[np.ndarray, "T *C"]:
    """Smooth over time where the picture rests, and leave as it is what moves with it.

    Minimises, in each shot, the sum of |y_t - values_t|^2 and of
    min(still / change_t, STIFFEST)^2 |y_t+1 - y_t|^2. It looks ahead
    as far as back, so nothing lags. Linear: what is a function of several channels is smoothed with them. `change` is
    the picture's, from each frame to the next, in the unit of `still`.
    """
    flat = np.asarray(values, np.float64).reshape(len(values), -1)
    if len(flat) < 2:
        return flat.reshape(np.shape(values))
    stiff = (still / np.maximum(change, still / STIFFEST)) ** 2 * (shot[1:] == shot[:-1])
    bands = np.zeros((2, len(flat)))
    bands[0, 1:] = -stiff
    bands[1] = 1 + np.r_[stiff, 0] + np.r_[0, stiff]
    return solveh_banded(bands, flat).reshape(np.shape(values))


def motion_of_landmarks(tracking: Tracking, *, percentile: float) -> Float64[np.ndarray, " S"]:
    """How far the face's landmarks move from each frame to the next, in the clip's median inter-ocular distance."""
    points = tracking.landmarks.astype(np.float64)
    size = float(np.median([interocular_px(frame) for frame in points]))
    moved = np.linalg.norm(np.diff(points, axis=0), axis=-1) / size
    return np.percentile(moved, percentile, axis=1) if len(moved) else np.zeros(0)


def steady(tracking: Tracking) -> Tracking:
    """The tracking without steps of pose, jaw and expression that its landmarks do not show.

    All are smoothed alike: to first order they still put the landmarks where they were. Gaze stays, its own landmarks
    are too few to tell.
    """
    turns = from_turns(tracking.rotation)
    change = motion_of_landmarks(tracking, percentile=MOVING_LANDMARKS) * _explained(tracking, turns)
    middle = turns[len(turns) // 2]
    away = logarithm(turns @ middle.T)
    columns = (away, tracking.translation, tracking.expression, tracking.jaw)
    away, translation, expression, jaw = (eased(c, tracking.shot, change, STILL_FACE) for c in columns)
    return replace(
        tracking,
        rotation=to_turns(rodrigues(away) @ middle).astype(np.float32),
        translation=translation.astype(np.float32),
        expression=expression.astype(np.float32),
        jaw=jaw.astype(np.float32),
    )


def _explained(tracking: Tracking, turns: Float64[np.ndarray, "T 3 3"]) -> Float64[np.ndarray, " S"]:
    """How far, 0..1, each turn is one that the landmarks show: a head cannot turn under a face that stays."""
    turned = np.linalg.norm(logarithm(turns[1:] @ turns[:-1].transpose(0, 2, 1)), axis=-1)
    return np.minimum(1, motion_of_landmarks(tracking, percentile=50.0) / np.maximum(TURN_SHOWS * turned, 1e-9)) ** 2


def steady_torso(
    values: Float[np.ndarray, "T *C"], tracking: Tracking
) -> Float64[np.ndarray, "T *C"]:
    """A torso's motion without jumps that the head has no part in, and without gaps (`unseen_torso`)."""
    gaps, rows = unseen_torso(tracking), np.array(values, np.float64)
    # A shoulder moves a moment before or after the head does.
    change = maximum_filter1d(motion_of_landmarks(tracking, percentile=50.0), 3, mode="nearest")
    for index in np.unique(tracking.shot):
        own = np.flatnonzero(tracking.shot == index)
        rows[own] = bridged(rows[own], gaps[own])
        size = (MEDIAN_FRAMES,) + (1,) * (rows.ndim - 1)
        rows[own] = median_filter(rows[own], size=size, mode="nearest")
    return eased(rows, tracking.shot, change, STILL_TORSO)


def unseen_torso(tracking: Tracking) -> Bool[np.ndarray, " T"]:
    """Frames whose torso was not measured: they hold a share of the head's shift, which neither turns nor scales."""
    a, b = tracking.flow[:, 1, :2].T
    first = np.r_[True, tracking.shot[1:] != tracking.shot[:-1]]
    return (a == 1) & (b == 0) & ~first


def bridged(values: Float64[np.ndarray, "T *C"], gaps: Bool[np.ndarray, " T"]) -> Float64[np.ndarray, "T *C"]:
    """Fit what is in each gap between the values around it: their changes within the gap stay.

    What all rows but the first are gaps of is left as it is.
    """
    out = values.copy()
    seen = np.flatnonzero(~gaps)
    if len(seen) < 2:
        return out
    edges = np.flatnonzero(np.diff(np.r_[False, gaps, False].astype(int)))
    for begin, end in edges.reshape(-1, 2):
        before = values[begin - 1] - values[begin] if begin else values[end] - values[end - 1]
        after = values[end] - values[end - 1] if end < len(values) else before
        share = np.linspace(0, 1, end - begin).reshape((-1,) + (1,) * (values.ndim - 1))
        out[begin:end] = values[begin:end] + (1 - share) * before + share * after
    return out
