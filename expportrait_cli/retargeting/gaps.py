"""Gaps of lids and lips, and the mouth's width: their values at rest, and their transfer from the driver."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from expportrait_cli.artifacts.types import CROP_SIZE, Curves, HeadFit, Tracking
from expportrait_cli.geometry.rotations import from_turns
from expportrait_cli.head import HeadModel, landmark_model
from expportrait_cli.head.facemesh import (
    CHIN,
    FOREHEAD,
    LID_PAIRS,
    LIPS,
    LOWER_LIDS,
    LOWER_LIPS,
    MOUTH_CORNERS,
    UPPER_LIDS,
    UPPER_LIPS,
)
from expportrait_cli.retargeting.steady import lid_gaps
from expportrait_cli.solve.state import Projection, State, interocular_px

NEUTRAL_JAW_RAD, NEUTRAL_JAW_ASIDE_RAD = (-0.02, 0.045), 0.01
NEUTRAL_PITCH_RAD, NEUTRAL_YAW_RAD = (-0.14, 0.0), (-0.15, 0.2)
"""Ranges of pitch and yaw of the gaze in a neutral face, rad; above, of the jaw's opening and of its other two angles
(both signs)."""


def photo_state(fit: HeadFit) -> State:
    """Expression, jaw, gaze and pose of the photo."""
    psi, jaw, gaze, shift = (getattr(fit, n).astype(np.float64) for n in ("expression", "jaw", "gaze", "translation"))
    return State(psi, jaw, gaze, from_turns(fit.rotation), shift)


def at_rest(state: State, head: HeadModel) -> State:
    """Make the face of a state neutral, by clamping expression, jaw and gaze to their ranges in neutral faces.

    Values inside the range are kept: they are more likely due to the shape of the face than to an expression.
    """
    most = head.expression_neutral.cpu().numpy().astype(np.float64)
    low = np.where(head.expression_low.cpu().numpy() < 0, -most, 0.0)
    aside = NEUTRAL_JAW_ASIDE_RAD
    jaw_low, jaw_high = np.array([[NEUTRAL_JAW_RAD[0], -aside, -aside], [NEUTRAL_JAW_RAD[1], aside, aside]])
    eyes = np.array([NEUTRAL_PITCH_RAD, NEUTRAL_YAW_RAD] * 2)
    return replace(
        state,
        expression=np.clip(state.expression, low, most),
        jaw=np.clip(state.jaw, jaw_low, jaw_high),
        gaze=np.clip(state.gaze, *eyes.T),
    )


def states(rows: Tracking | Curves) -> list[State]:
    """Expression, jaw, gaze and pose of each frame."""
    columns = [c.astype(np.float64) for c in (rows.expression, rows.jaw, rows.gaze, rows.translation)]
    rotations = from_turns(rows.rotation)
    psi, jaw, gaze, shift = columns
    return [State(psi[t], jaw[t], gaze[t], rotations[t], shift[t]) for t in range(len(rotations))]


UPPER_SHARE, OPENING_SHARE = 0.9, 0.65
"""Share of the upper lid in a change of the lid gap: while closing (UPPER_SHARE), and while opening (OPENING_SHARE),
where the lower lid moves more."""
UPPER_LIP_SHARE = 0.35
"""Share of the upper lip in a change of the lip gap."""


WIDENED = 0.25
"""Largest relative change of the mouth's width beyond the model; larger ones distort the cheeks."""
WIDE_PERCENT = 90
"""Percentile of a clip's lid gaps that counts as wide open eyes."""
TRUST_IOD = {"lids": 0.02, "mouth": 0.06}
"""Scale of the trust in a measured gap, for lid gaps and for the mouth's width, in inter-ocular distances: the gap at
rest is w times the measured one and 1 - w times the mean head's; w = exp(-|part due to expression| / scale)."""
DRIVERS_SHARE = 2 / 3
"""Exponent of the driver's gap at rest in its geometric mean with the person's: how far an eye is open depends more on
the expression than on the face."""


@dataclass(frozen=True)
class Rest:
    """Lid gaps at rest, in order of `LID_PAIRS`, and last the mouth's width, all in inter-ocular distances."""

    person: Float[np.ndarray, " 7"]
    driver: Float[np.ndarray, " 7"]

    @classmethod
    def seen(cls, head_fit: HeadFit, tracking: Tracking, neutral: int) -> "Rest":
        """Take the gaps of the photo, and of the driver's neutral frame."""
        return cls(_gaps(head_fit.landmarks), _gaps(tracking.landmarks[neutral]))

    @classmethod
    def neutral(cls, head_fit: HeadFit, tracking: Tracking, head: HeadModel, neutral: int) -> "Rest":
        """Gaps without expression: the more of a gap is due to expression, the more the mean head's gap replaces it.

        The driver's lid gaps are at most those of its wide open eyes (`WIDE_PERCENT`). The person's are a geometric
        mean of their own and the driver's (`DRIVERS_SHARE`).
        """
        widest = np.percentile([_gaps(frame) for frame in tracking.landmarks], WIDE_PERCENT, axis=0)
        driver = _rest_gaps(tracking, tracking.landmarks[neutral], states(tracking)[neutral], head)
        driver[:-1] = np.minimum(driver, widest)[:-1]
        own = _rest_gaps(head_fit, head_fit.landmarks, photo_state(head_fit), head)
        return cls(own ** (1 - DRIVERS_SHARE) * driver**DRIVERS_SHARE, driver)


def _gaps(landmarks: np.ndarray) -> Float[np.ndarray, " 7"]:
    right, left = landmarks[list(MOUTH_CORNERS)]
    return np.r_[lid_gaps(landmarks), np.linalg.norm(left - right) / interocular_px(landmarks)]


def _rest_gaps(rows: HeadFit | Tracking, landmarks: np.ndarray, state: State, head: HeadModel):
    view = Projection(landmark_model(head), focal_px=rows.focal_px, centre_px=CROP_SIZE / 2)
    shape = rows.identity.astype(np.float64)
    seen = _gaps(landmarks)
    rest = _gaps(landmarks + view.predict(shape, at_rest(state, head)) - view.predict(shape, state))
    still = replace(state, expression=0 * state.expression, jaw=0 * state.jaw, gaze=0 * state.gaze)
    trust = np.exp(-np.abs(rest - seen) / np.r_[np.full(6, TRUST_IOD["lids"]), TRUST_IOD["mouth"]])
    return trust * rest + (1 - trust) * _gaps(view.predict(0 * shape, still))


def lid_steps(
    measured: Float[np.ndarray, "T 478 2"], predicted: Float[np.ndarray, "T 478 2"], rest: Rest
) -> Float[np.ndarray, "T 478 2"]:
    """Offsets of the person's landmarks, px, that close the lids by the same share of the gap at rest as the driver's.

    `measured`: landmarks of the driver; `predicted`: landmarks of the person before the offsets.
    """
    steps = np.zeros_like(predicted)
    size = np.array([interocular_px(frame) for frame in predicted])
    shares = np.array([lid_gaps(frame) for frame in measured]) / np.maximum(rest.driver[:-1], 0.02)
    wanted = shares.clip(0.0, 1.6) * rest.person[:-1] * size[:, None]
    for upper, lower in zip(UPPER_LIDS, LOWER_LIDS, strict=True):
        pairs = sorted((upper.index(pair[0]), k) for k, pair in enumerate(LID_PAIRS) if pair[0] in upper)
        columns, gaps = (list(each) for each in zip(*pairs, strict=True))
        line = predicted[:, lower] - predicted[:, upper]
        axis = predicted[:, upper[-1]] - predicted[:, upper[0]]
        down = np.stack([-axis[:, 1], axis[:, 0]], -1) * np.sign((axis * [1, 0]).sum(-1))[:, None]
        down = down / np.maximum(np.linalg.norm(down, axis=-1), 1e-6)[:, None]
        # The points of a pair may be displaced sideways: only the height between them is changed.
        drop = (line * down[:, None]).sum(-1)
        length = np.linalg.norm(line, axis=-1)
        height = _opened(drop[:, columns], length[:, columns], wanted[:, gaps])
        change = (drop[:, columns] - height)[:, np.clip(np.arange(len(upper)) - columns[0], 0, 2)]
        # Beside the pairs the change falls along an arch to 0 at the corners.
        at = ((predicted[:, upper] - predicted[:, upper[:1]]) * axis[:, None]).sum(-1)
        at = (at / np.maximum((axis**2).sum(-1), 1e-6)[:, None]).clip(0, 1)
        arch = at * (1 - at)
        nearest = arch[:, np.clip(np.arange(len(upper)), columns[0], columns[-1])]
        change = np.minimum(change * (arch / np.maximum(nearest, 1e-3)).clip(0, 1), drop)
        share = np.where(change > 0, UPPER_SHARE, OPENING_SHARE)
        steps[:, upper] += (share * change)[..., None] * down[:, None]
        steps[:, lower] -= ((1 - share) * change)[..., None] * down[:, None]
    return steps


def _opened(drop, length, wanted):
    """Height between the points of lids, from `drop`, when their distance changes from `length` to `wanted`.

    Opening keeps the sideways part of the distance; closing scales it with the height, so that a lid can close fully.
    """
    closed = drop * wanted / np.maximum(length, 1e-6)
    return np.where(wanted > length, np.sqrt(np.maximum(wanted**2 - length**2, 0) + drop**2), closed)


def lip_steps(
    measured: Float[np.ndarray, "T 478 2"], predicted: Float[np.ndarray, "T 478 2"], rest: Rest, strength: float
) -> Float[np.ndarray, "T 478 2"]:
    """Offsets of the person's landmarks, px, that give the lips the driver's gap, in inter-ocular distances.

    They also scale the mouth's width at rest as the driver's. `measured` and `predicted` as in `lid_steps`; `strength`
    scales both effects.
    """
    steps = np.zeros_like(predicted)
    size, wanted_size = (np.array([interocular_px(frame) for frame in points]) for points in (measured, predicted))
    wanted = strength * np.maximum(_lip_gaps(measured)[0], 0) / size[:, None] * wanted_size[:, None]
    gaps, down = _lip_gaps(predicted)
    change = (gaps - wanted)[..., None] * down[:, None]
    for ring in UPPER_LIPS:
        steps[:, ring] += UPPER_LIP_SHARE * change
    for ring in LOWER_LIPS:
        steps[:, ring] -= (1 - UPPER_LIP_SHARE) * change
    share = np.array([_gaps(frame)[-1] for frame in measured]) / rest.driver[-1]
    right, left = (predicted[:, corner] for corner in MOUTH_CORNERS)
    length = np.linalg.norm(left - right, axis=-1)
    axis = (left - right) / np.maximum(length, 1e-6)[:, None]
    wider = (1 + strength * (share - 1)) * rest.person[-1] * wanted_size / np.maximum(length, 1e-6) - 1
    wider = np.clip(wider, -WIDENED, WIDENED)
    along = ((predicted[:, LIPS] - (right + left)[:, None] / 2) * axis[:, None]).sum(-1)
    steps[:, LIPS] += (wider[:, None] * along)[..., None] * axis[:, None]
    return steps


def _lip_gaps(points):
    """Gaps between the inner lips, px, columns as `LOWER_LIPS`, and the unit vector down the face in the picture."""
    down = points[:, CHIN] - points[:, FOREHEAD]
    down = down / np.linalg.norm(down, axis=-1, keepdims=True)
    return ((points[:, LOWER_LIPS[-1]] - points[:, UPPER_LIPS[-1]]) * down[:, None]).sum(-1), down
