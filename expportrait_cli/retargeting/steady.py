"""Smoothing of tracked motion where the picture is still, interpolation of gaps, and limits of a photo's motion."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from scipy.linalg import solveh_banded
from scipy.ndimage import maximum_filter1d, median_filter, minimum_filter1d, uniform_filter1d

from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit, Tracking
from expportrait_cli.geometry.rotations import from_turns, logarithm, rodrigues, to_turns
from expportrait_cli.head.facemesh import LID_PAIRS, LIP_PAIRS
from expportrait_cli.solve.state import interocular_px

STILL_FACE = 0.008
"""Motion of the landmarks between frames, in inter-ocular distances, below which a change of pose, jaw or expression is
mostly noise of the fit: the same landmarks fit a turned head or a skewed mouth."""
CROWN_M, CROWN_SHOWS, LEAP_FRAMES = 0.12, 0.25, 5
"""CROWN_M: height of the crown over the ears, m. CROWN_SHOWS: least motion of the landmarks in a real motion of the
head, as a share of the crown's. LEAP_FRAMES: frames that are smoothed around a larger jump."""
MOVING_LANDMARKS = 90.0
"""Percentile of the landmarks' motions that is the motion of a frame: a blink or a word moves few landmarks."""
STILL_TORSO = 0.2
"""Motion of the head between frames, in inter-ocular distances, below which a change of the torso is mostly noise of
the flow: clothes slide and hair falls over them, but shoulders rarely jump under a still head."""
STIFFEST, CLEAR = 5.0, 4.0
"""STIFFEST: largest ratio of the still motion to a frame's, about the number of frames of smoothing on each side in a
still picture. CLEAR: multiple of the still motion from which values are not smoothed at all."""
COURSE_FRAMES = 25
"""Length, in frames, of the local straight lines that approximate the motion of a head."""
SHAKEN = (0.5, 0.9)
"""Share of a head's swift motion in the torso's at which it counts as a shaking camera by 0, and by 1. A shaking camera
gave .94; people who nod and sway 0 to .41."""
MEDIAN_FRAMES = 5
"""Length, in frames, of the median filter that removes jumps: the flow on clothes is wrong for one or two frames."""


def eased(
    values: Float[np.ndarray, "T *C"], shot: Int64[np.ndarray, " T"], change: Float[np.ndarray, " S"], still: float
) -> Float64[np.ndarray, "T *C"]:
    """Smooth values over time where the picture is still, and leave them unchanged where it moves.

    Minimises, in each shot, the sum of |y_t - values_t|^2 and of
    (min(still / change_t, STIFFEST)^2 - 1 / CLEAR^2) |y_t+1 - y_t|^2, where that is above 0. It looks ahead as far as
    back, so nothing lags. It is linear in the values. `change`: motion of the picture from each frame to the next, in
    the unit of `still`.
    """
    flat = np.asarray(values, np.float64).reshape(len(values), -1)
    if len(flat) < 2:
        return flat.reshape(np.shape(values))
    stiff = np.maximum(0, (still / np.maximum(change, still / STIFFEST)) ** 2 - CLEAR**-2) * (shot[1:] == shot[:-1])
    bands = np.zeros((2, len(flat)))
    bands[0, 1:] = -stiff
    bands[1] = 1 + np.r_[stiff, 0] + np.r_[0, stiff]
    return solveh_banded(bands, flat).reshape(np.shape(values))


def motion_of_landmarks(tracking: Tracking, *, percentile: float) -> Float64[np.ndarray, " S"]:
    """Percentile of the landmarks' motions from each frame to the next, in the clip's median inter-ocular distance."""
    points = tracking.landmarks.astype(np.float64)
    moved = np.linalg.norm(np.diff(points, axis=0), axis=-1) / _size_px(tracking)
    return np.percentile(moved, percentile, axis=1) if len(moved) else np.zeros(0)


def steady(tracking: Tracking, eyes: Float[np.ndarray, "E E"]) -> Tracking:
    """Smooth pose, jaw and expression of a tracking where its landmarks are still.

    All are smoothed with the same weights: to first order this keeps the predicted landmarks. A blink moves few
    landmarks: the part of the expression in the `eyes` (`expression_map`) is kept also where the lids move. Gaze is not
    smoothed.
    """
    turns = from_turns(tracking.rotation)
    change = motion_of_landmarks(tracking, percentile=MOVING_LANDMARKS) * _explained(tracking, turns)
    middle = turns[len(turns) // 2]
    away = logarithm(turns @ middle.T)
    lids = tracking.expression @ eyes.T
    columns = (away, tracking.translation, tracking.expression - lids, tracking.jaw)
    away, translation, expression, jaw = (eased(c, tracking.shot, change, STILL_FACE) for c in columns)
    gaps = np.array([lid_gaps(frame) for frame in tracking.landmarks])
    blink = np.maximum(change, np.abs(np.diff(gaps, axis=0)).max(1))
    expression += eased(lids, tracking.shot, blink, STILL_FACE)
    return replace(
        tracking,
        rotation=to_turns(rodrigues(away) @ middle).astype(np.float32),
        translation=translation.astype(np.float32),
        expression=expression.astype(np.float32),
        jaw=jaw.astype(np.float32),
    )


def _explained(tracking: Tracking, turns: Float64[np.ndarray, "T 3 3"]) -> Float64[np.ndarray, " S"]:
    """Share (0..1) of each change of the pose that the landmarks' motion supports; low for jumps of the fit."""
    crown = turns[:, :, 1] * CROWN_M + tracking.translation
    px = crown[:, :2] / crown[:, 2:] * tracking.focal_px
    leap = np.linalg.norm(np.diff(px, axis=0), axis=1) / _size_px(tracking)
    # The small constant avoids 0 / 0 for a head that does not move.
    shown = motion_of_landmarks(tracking, percentile=50.0) + 1e-6
    share = np.minimum(1, shown / (CROWN_SHOWS * leap + 1e-6)) ** 2
    # The frames around a jump get the same share: otherwise the jump would only be moved to them.
    return minimum_filter1d(share, LEAP_FRAMES, mode="nearest") if len(share) else share


def lid_gaps(landmarks: Float[np.ndarray, "478 2"]) -> Float[np.ndarray, " 6"]:
    """Gaps of `LID_PAIRS`, in inter-ocular distances."""
    upper, lower = np.array(LID_PAIRS).T
    return np.linalg.norm(landmarks[upper] - landmarks[lower], axis=-1) / interocular_px(landmarks)


def _size_px(tracking: Tracking) -> float:
    return float(np.median([interocular_px(frame) for frame in tracking.landmarks.astype(np.float64)]))


def steady_torso(
    values: Float[np.ndarray, "T *C"], tracking: Tracking, *, beside: Float[np.ndarray, "T *C"]
) -> Float64[np.ndarray, "T *C"]:
    """Smooth a torso's motion: interpolate its gaps (`unseen_torso`), remove jumps, and smooth where the head is still.

    `beside`: the head's motion, in the same columns. Its slow part (`straight`, over `COURSE_FRAMES`) is subtracted
    before the smoothing, and added again afterwards: a camera that pans moves head and torso alike. Its fast part is
    treated in the same way only in shots in which the torso shares most of it (`SHAKEN`), as when the camera shakes;
    elsewhere it is a nod, or a jump of the fit, which must not move the shoulders.
    """
    gaps, rows, course = unseen_torso(tracking), np.array(values, np.float64), np.array(beside, np.float64)
    for index in np.unique(tracking.shot):
        own = np.flatnonzero(tracking.shot == index)
        length = min(COURSE_FRAMES, len(own) - (len(own) + 1) % 2)
        rows[own] = bridged(rows[own], gaps[own])
        if length > 1:
            nods, swift = (each[own] - straight(each[own], length) for each in (course, rows))
            shared = np.interp((nods * swift).sum() / max((nods * nods).sum(), 1e-12), SHAKEN, (0, 1))
            course[own] -= (1 - shared) * nods
        rows[own] -= course[own]
        size = (MEDIAN_FRAMES,) + (1,) * (rows.ndim - 1)
        rows[own] = median_filter(rows[own], size=size, mode="nearest")
    return eased_as_torso(rows, tracking) + course


def straight(values: Float[np.ndarray, "T *C"], length: int) -> Float64[np.ndarray, "T *C"]:
    """Smooth by local straight lines: each row becomes the value of a line fitted to the `length` (odd) rows around it.

    The filter of Savitzky and Golay (1964) of the first order; `scipy.signal` has it too, but takes a second to import.
    """
    course = uniform_filter1d(np.asarray(values, np.float64), length, axis=0)
    time, half = np.arange(length) - length // 2, length // 2
    slope = time / (time @ time)
    for line, rows in ((values[:length], np.s_[:half]), (values[-length:], np.s_[-half:])):
        course[rows] = line.mean(0) + np.multiply.outer(time[rows], np.tensordot(slope, line, 1))
    return course


def eased_as_torso(values: Float[np.ndarray, "T *C"], tracking: Tracking) -> Float64[np.ndarray, "T *C"]:
    """Smooth values of the torso over time where the head is still (`STILL_TORSO`)."""
    # A shoulder moves a moment before or after the head does.
    change = maximum_filter1d(motion_of_landmarks(tracking, percentile=50.0), 3, mode="nearest")
    return eased(values, tracking.shot, change, STILL_TORSO)


def unseen_torso(tracking: Tracking) -> Bool[np.ndarray, " T"]:
    """Mask of frames whose torso was not measured: their flow is a pure translation (see `detect.flow.TORSO_SHARE`)."""
    a, b = tracking.flow[:, 1, :2].T
    first = np.r_[True, tracking.shot[1:] != tracking.shot[:-1]]
    return (a == 1) & (b == 0) & ~first


def bridged(values: Float64[np.ndarray, "T *C"], gaps: Bool[np.ndarray, " T"]) -> Float64[np.ndarray, "T *C"]:
    """Shift the values in each gap so that they connect to the values around it; changes inside the gap are kept.

    With fewer than two rows outside of gaps the values are returned unchanged.
    """
    out = values.copy()
    seen = np.flatnonzero(~gaps)
    if len(seen) < 2:
        return out
    edges = np.flatnonzero(np.diff(np.r_[False, gaps, False].astype(int)))
    for begin, end in edges.reshape(-1, 2):
        before = values[begin - 1] - values[begin] if begin else values[end] - values[end - 1]
        after = values[end] - values[end - 1] if end < len(values) else before
        # The correction is spread over all changes, also those into and out of the gap.
        share = np.arange(1, end - begin + 1).reshape((-1,) + (1,) * (values.ndim - 1)) / (end - begin + 1)
        out[begin:end] = values[begin:end] + (1 - share) * before + share * after
    return out


FACE_M, FRAME_SOFT = 0.08, 0.5
"""FACE_M: radius of a face, m. FRAME_SOFT: distance over which it approaches the border of the crop, in such radii."""


def within_frame(
    px: Float[np.ndarray, "T 2"], start_px: Float[np.ndarray, " 2"], face_px: Float[np.ndarray, "T 1"]
) -> Float[np.ndarray, "T 2"]:
    """Limit positions of a face (px from the crop's centre) smoothly, so that a face of radius `face_px` stays inside.

    If the photo's own face (`start_px`) is further out, the limit is there.
    """
    soft = FRAME_SOFT * face_px
    start = np.maximum(CROP_SIZE / 2 - face_px - soft, np.abs(start_px))
    over = np.maximum(np.abs(px) - start, 0)
    return np.sign(px) * (np.minimum(np.abs(px), start) + soft * np.tanh(over / soft))


DAMPED_DEG, DAMPED_PX = 1.0, 4.0
"""Reductions by limits that are not reported: up to DAMPED_DEG degrees of a rotation, DAMPED_PX px of a shift."""
SHUT_IOD, OPEN_IOD = 0.02, 0.06
"""Gap between the lips, in inter-ocular distances, below which a mouth is shut, and above which it is open."""


@dataclass(frozen=True)
class HeldBack:
    """Parts of the driver's motion that were limited, or are estimated, frame by frame."""

    turn_deg: Float64[np.ndarray, " T"]
    """Reduction of the head's rotation by its limit, degrees."""
    shift_px: Float64[np.ndarray, " T"]
    """Reduction of the head's shift to keep it in the picture, px of the crop."""
    torso_unseen: Bool[np.ndarray, " T"]
    """True where the driver's torso was not measured, so that its motion is estimated."""
    mouth_unseen: Bool[np.ndarray, " T"]
    """The mouth opens, which the photo shows shut: teeth and tongue are a guess."""
    face_limited: Bool[np.ndarray, " T"]
    """Landmarks were to go farther beyond the head model than an expression can."""
    not_trusted: Bool[np.ndarray, " T"]
    """The driver's face was covered, blurred or not found: what is shown was filled in."""

    @classmethod
    def of(
        cls,
        turn_deg: Float[np.ndarray, " T"],
        taken_px: Float[np.ndarray, "T 2"],
        tracking: Tracking,
        head_fit: HeadFit,
        *,
        limited: Bool[np.ndarray, " T"],
    ) -> "HeldBack":
        """Compare the driver with what the photo shows; `limited` are frames of `face_limited`."""
        opens = np.array([_lips_apart(points) for points in tracking.landmarks]) > OPEN_IOD
        unseen = opens & (_lips_apart(head_fit.landmarks) < SHUT_IOD)
        shift = np.linalg.norm(taken_px, axis=1)
        guessed = (unseen_torso(tracking), unseen, limited, tracking.state > 0)
        return cls(turn_deg.astype(np.float64), shift.astype(np.float64), *guessed)

    def row(self) -> dict[str, dict[str, object]]:
        """By kind, first and last frame of each run of frames, and for reductions the largest value with its unit."""
        sized = {
            "turn_damped": (self.turn_deg, DAMPED_DEG, "degrees"),
            "kept_in_frame": (self.shift_px, DAMPED_PX, "px"),
        }
        found: dict[str, dict[str, object]] = {}
        for name, (values, least, unit) in sized.items():
            if (values > least).any():
                found[name] = {"frames": stretches(values > least), "most": round(float(values.max()), 1), "unit": unit}
        guessed = {
            "torso_guessed": self.torso_unseen,
            "mouth_guessed": self.mouth_unseen,
            "face_limited": self.face_limited,
            "not_trusted": self.not_trusted,
        }
        for name, rows in guessed.items():
            if rows.any():
                found[name] = {"frames": stretches(rows)}
        return found


def stretches(rows: Bool[np.ndarray, " T"]) -> list[list[int]]:
    """First and last frame of each run of True."""
    edges = np.flatnonzero(np.diff(np.r_[False, rows, False].astype(int))).reshape(-1, 2)
    return [[int(begin), int(end) - 1] for begin, end in edges]


def _lips_apart(points: Float[np.ndarray, "478 2"]) -> float:
    upper, lower = LIP_PAIRS[0]
    return float(np.linalg.norm(points[upper] - points[lower])) / max(interocular_px(points), 1e-6)
