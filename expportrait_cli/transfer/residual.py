"""What the driver's landmarks say beyond the head model's expressions, carried to the person's landmarks."""

import numpy as np
from jaxtyping import Float

from expportrait_cli.artifacts.types import CROP_SIZE, Curves, HeadFit, Tracking
from expportrait_cli.geometry.rotations import from_turns
from expportrait_cli.head import HeadModel, landmark_model
from expportrait_cli.head.facemesh import LID_PAIRS
from expportrait_cli.solve.projection import Projection
from expportrait_cli.solve.state import State, interocular_px
from expportrait_cli.transfer.motion import Motion

LIMIT_IOD = 0.12
"""Largest step of a landmark beyond the model: more is a wrong landmark, not an expression."""
UPPER_SHARE = 0.9
"""Part of a lid gap's change that the upper lid makes."""


def _states(rows: Tracking | Curves) -> list[State]:
    columns = [c.astype(np.float64) for c in (rows.expression, rows.jaw, rows.gaze, rows.translation)]
    rotations = from_turns(rows.rotation)
    psi, jaw, gaze, shift = columns
    return [State(psi[t], jaw[t], gaze[t], rotations[t], shift[t]) for t in range(len(rotations))]


def landmark_steps(
    head_fit: HeadFit,
    tracking: Tracking,
    head: HeadModel,
    curves: Curves,
    motion: Motion,
    *,
    direct: Float[np.ndarray, " T"],
    strength: float,
    copied: bool,
    own: Float[np.ndarray, "T 478 3"],
) -> Float[np.ndarray, "T 478 2"]:
    """Steps of the person's landmarks, px of the photo's crop, zero in the neutral frame.

    `direct` is how far (0..1) the driver's landmarks themselves are the target, as they are for the same person.
    Otherwise the lids close by the same share of their opening, and the change of the driver's fit residual is added if
    it is to be `copied`. `own` is what dynamic offsets move the person's landmarks by (canonical, m), from the photo's.
    """
    model = landmark_model(head)
    view = Projection(model, focal_px=head_fit.focal_px, centre_px=CROP_SIZE / 2)
    identity = head_fit.identity.astype(np.float64)
    rest, joints = view.points(identity), view.joints(identity)
    posed = np.stack([view.project(rest + o, joints, state)[0] for o, state in zip(own, _states(curves), strict=True)])
    photo = State(
        head_fit.expression.astype(np.float64),
        head_fit.jaw.astype(np.float64),
        head_fit.gaze.astype(np.float64),
        from_turns(head_fit.rotation),
        head_fit.translation.astype(np.float64),
    )
    shown = view.predict(identity, photo)
    measured = tracking.landmarks.astype(np.float64)
    n = motion.neutral
    scale = motion.scale[:, None, None]
    steps = scale * (measured - measured[motion.starts]) - (posed - shown)
    if direct.min() < 1:
        beyond = np.zeros_like(measured)
        if copied:
            residual = measured - _fitted(
                tracking, Projection(model, focal_px=tracking.focal_px, centre_px=CROP_SIZE / 2)
            )
            beyond = scale * strength * (residual - residual[n])
        if strength > 0:
            beyond += _lid_steps(head_fit, measured, posed + (head_fit.landmarks - shown) + beyond, n)
        weight = direct[:, None, None]
        steps = weight * steps + (1 - weight) * beyond
    limit = LIMIT_IOD * interocular_px(head_fit.landmarks)
    length = np.linalg.norm(steps, axis=-1, keepdims=True)
    return steps * np.minimum(1.0, limit / np.maximum(length, 1e-9))


def _fitted(tracking: Tracking, view: Projection) -> Float[np.ndarray, "T 478 2"]:
    """The driver's landmarks as the head model has them, px of their crop."""
    shape = tracking.identity.astype(np.float64)
    return np.stack([view.predict(shape, state) for state in _states(tracking)])


def _lid_steps(head_fit, measured, predicted, n):
    """Close the person's lids by the share by which the driver's close: a wink ends shut on any face."""
    steps = np.zeros_like(predicted)
    own = head_fit.landmarks.astype(np.float64)
    for upper, lower in LID_PAIRS:
        size = np.array([interocular_px(frame) for frame in measured])
        gap = np.linalg.norm(measured[:, upper] - measured[:, lower], axis=-1) / size
        share = np.clip(gap / max(gap[n], 0.02), 0.0, 1.6)
        wanted = share * np.linalg.norm(own[upper] - own[lower])
        line = predicted[:, lower] - predicted[:, upper]
        length = np.linalg.norm(line, axis=-1)
        down = line / np.maximum(length, 1e-6)[:, None]
        change = (length - wanted)[:, None] * down
        steps[:, upper] += UPPER_SHARE * change
        steps[:, lower] -= (1 - UPPER_SHARE) * change
    return steps
