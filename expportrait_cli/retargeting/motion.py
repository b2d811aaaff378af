"""Transfer of the motion of the driver's head, torso and landmarks to the photo's camera."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from expportrait_cli.artifacts.types import CROP_SIZE, Curves, HeadFit, Tracking
from expportrait_cli.geometry.rotations import from_turns, logarithm, rodrigues, to_turns
from expportrait_cli.head import HeadModel, landmark_model
from expportrait_cli.head.fitted import person_joints
from expportrait_cli.head.model import NECK
from expportrait_cli.retargeting.gaps import Rest, lid_steps, lip_steps, photo_state, states
from expportrait_cli.retargeting.steady import FACE_M, eased_as_torso, steady_torso, within_frame
from expportrait_cli.solve.state import Projection, interocular_px, photo_distance

TORN = 0.04
"""Largest change of the ratio of the torso's depth to the head's against the photo, as a logarithm: with more, the neck
is distorted."""
SOFT_DEG = 15.0
"""Width over which a rotation approaches its limit, degrees."""


@dataclass(frozen=True)
class Motion:
    """Reference poses of photo and driver, and the scale between their crops."""

    neutral: int
    """Driver frame that expressions are relative to."""
    starts: Int64[np.ndarray, " T"]
    """For each frame, the frame of its own shot that motion is relative to: a cut moves the camera, not the person."""
    rotation_ref: Float[np.ndarray, "3 3"]
    translation_ref: Float[np.ndarray, " 3"]
    focal_ref_px: float
    scale: Float64[np.ndarray, " T"]
    """Pixels of the photo's crop to one pixel of the driver's, by the head's size in the frame of `starts`."""

    @classmethod
    def between(cls, head_fit: HeadFit, tracking: Tracking, neutral: int, cost: Float[np.ndarray, " T"]) -> "Motion":
        """Make the references: the neutral frame, and in other shots the frame of least `cost` (`neutral_cost`)."""
        starts = np.full(len(cost), neutral)
        for shot in np.unique(tracking.shot):
            frames = np.flatnonzero(tracking.shot == shot)
            if neutral not in frames:
                starts[frames] = frames[cost[frames].argmin()]
        size_ref = head_fit.focal_px / head_fit.translation[2]
        size_driver = tracking.focal_px / tracking.translation[starts, 2].astype(np.float64)
        return cls(
            neutral,
            starts,
            from_turns(head_fit.rotation),
            head_fit.translation.astype(np.float64),
            head_fit.focal_px,
            size_ref / size_driver,
        )

    def turn_deg(self, tracking: Tracking) -> float:
        """Angle between the head rotations of the photo and of the neutral frame, degrees."""
        turn = from_turns(tracking.rotation[self.neutral]) @ self.rotation_ref.T
        return float(np.degrees(np.linalg.norm(logarithm(turn))))


def neutral_cost(head_fit: HeadFit, tracking: Tracking, head: HeadModel, *, same: bool) -> Float[np.ndarray, " T"]:
    """Cost of each driver frame as the neutral one: its effort of expression and its rotation against the photo.

    For the same person, the distance of its landmarks from the photo's. Unreliable frames cost 100 more.
    """
    unsure = 100.0 * ~tracking.sure
    if same:
        return photo_distance(head_fit.landmarks, tracking) + unsure
    turn = from_turns(tracking.rotation) @ from_turns(head_fit.rotation).T
    angle = np.linalg.norm(logarithm(turn), axis=-1)
    effort = (
        np.abs(head.shares(tracking.expression)).sum(-1)
        + 6 * np.abs(tracking.jaw).sum(-1)
        + np.abs(tracking.gaze).sum(-1)
    )
    return effort + 4 * angle + unsure


def limit_turn(axis_angle: Float[np.ndarray, "T 3"], limit_deg: float | None) -> Float[np.ndarray, "T 3"]:
    """Limit rotations out of the image plane smoothly; roll is not limited. Without `limit_deg`, a copy."""
    if limit_deg is None:
        return axis_angle.copy()
    angle = np.linalg.norm(axis_angle[:, :2], axis=1)
    start, soft = np.radians(limit_deg - SOFT_DEG / 2), np.radians(SOFT_DEG)
    limited = np.where(angle > start, start + soft * np.tanh((angle - start) / soft), angle)
    out = axis_angle.copy()
    out[:, :2] *= (limited / np.maximum(angle, 1e-9))[:, None]
    return out


def head_motion(
    motion: Motion, tracking: Tracking, *, scale: float, absolute: bool, limit_deg: float | None, framed: bool
) -> tuple[Float[np.ndarray, "T 3"], Float[np.ndarray, "T 3"], Float[np.ndarray, " T"], Float[np.ndarray, "T 2"]]:
    """Rotation and translation (m) of the person's head; and by how many degrees and px limits reduced them.

    `absolute`: the change of rotation is the driver's against the photo's pose, not against its own start; `scale`
    multiplies it. With `framed` the head is kept in the photo's crop.
    """
    driver = from_turns(tracking.rotation)
    start = motion.rotation_ref[None] if absolute else driver[motion.starts]
    wanted = logarithm(driver @ start.transpose(0, 2, 1)) * scale
    turn = limit_turn(wanted, limit_deg)
    rotation = to_turns(rodrigues(turn) @ motion.rotation_ref)
    position = tracking.translation.astype(np.float64)
    px = position[:, :2] / position[:, 2:] * tracking.focal_px
    shift = (px - px[motion.starts]) * motion.scale[:, None] * scale
    depth = motion.translation_ref[2] * (position[:, 2] / position[motion.starts, 2]) ** scale
    px_ref = motion.translation_ref[:2] / motion.translation_ref[2] * motion.focal_ref_px
    taken_deg = np.degrees(np.linalg.norm(wanted - turn, axis=1))
    place = px_ref + shift
    if framed:
        place = within_frame(place, px_ref, FACE_M * motion.focal_ref_px / depth[:, None])
    translation = np.c_[place / motion.focal_ref_px * depth[:, None], depth]
    return rotation, translation, taken_deg, px_ref + shift - place


def torso_motion(
    motion: Motion,
    tracking: Tracking,
    head_fit: HeadFit,
    head: HeadModel,
    *,
    translation: Float[np.ndarray, "T 3"],
    taken_px: Float[np.ndarray, "T 2"],
    scale: float,
) -> tuple[Float[np.ndarray, "T 3"], Float[np.ndarray, "T 3"]]:
    """Rotation and translation (m) of the torso, from the optical flow of the driver's torso.

    `translation` is that of the person's head: the torso's depth stays within `TORN` of it. `taken_px`, by which the
    head's shift was reduced, is subtracted from the torso's too.
    """
    neck = person_joints(head_fit, head)[NECK].numpy().astype(np.float64)
    start = motion.rotation_ref @ neck + motion.translation_ref
    driver_neck = from_turns(tracking.rotation) @ neck + tracking.translation
    neck_px = driver_neck[:, :2] / driver_neck[:, 2:] * tracking.focal_px + CROP_SIZE / 2
    # Not a, b, c and d themselves: their noise is large and correlated, and cancels at the neck.
    matrices = np.stack([_affine(row) for row in tracking.flow[:, 1].astype(np.float64)])
    firsts = np.searchsorted(tracking.shot, tracking.shot)
    place = np.einsum("tij,tj->ti", matrices, np.c_[neck_px[firsts], np.ones(len(neck_px))])[:, :2]
    size = np.log(np.hypot(matrices[:, 0, 0], matrices[:, 1, 0]))
    roll = np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0])
    columns = steady_torso(np.c_[place, size, roll], tracking, beside=np.c_[neck_px, 0 * neck_px])
    # Both depths as logarithms of their ratio to the photo's; the head's has neither gaps nor jumps.
    head_depth = eased_as_torso(np.log(translation[:, 2] / motion.translation_ref[2]), tracking)
    moved, size, roll = (scale * (c - c[motion.starts]) for c in (columns[:, :2], columns[:, 2], columns[:, 3]))
    depth = start[2] * np.exp(np.clip(-size, head_depth - TORN, head_depth + TORN))
    px = start[:2] / start[2] * motion.focal_ref_px + moved * motion.scale[:, None] - taken_px
    turn = rodrigues(np.c_[np.zeros((len(roll), 2)), roll])
    rotation = to_turns(turn @ from_turns(head_fit.torso_rotation))
    return rotation, np.c_[px / motion.focal_ref_px * depth[:, None], depth]


def _affine(row: Float[np.ndarray, " 4"]) -> Float[np.ndarray, "3 3"]:
    a, b, c, d = row
    return np.array([[a, -b, c], [b, a, d], [0, 0, 1]])


LIMIT_IOD = 0.12
"""Largest offset of a landmark beyond the model, in inter-ocular distances: larger ones are wrong landmarks."""


def landmark_steps(
    head_fit: HeadFit,
    tracking: Tracking,
    head: HeadModel,
    curves: Curves,
    motion: Motion,
    *,
    direct: Float[np.ndarray, " T"],
    rest: Rest,
    strength: float,
    eyes: bool,
    lips: bool,
    copied: Float[np.ndarray, " 478"],
    own: Float[np.ndarray, "T 478 3"],
) -> Float[np.ndarray, "T 478 2"]:
    """Offsets of the person's landmarks beyond the model, px of the photo's crop.

    `direct`: weight (0..1) of the driver's landmarks as targets, for the same person. Otherwise the lids close by the
    same share of their gap at `rest` (`eyes`), the lips have the driver's gap (`lips`), and the change of the driver's
    fit residual is added with the weight `copied` (0..1) of each landmark. `own`: displacement of the person's
    landmarks by dynamic offsets relative to the photo, canonical, m.
    """
    model = landmark_model(head)
    view = Projection(model, focal_px=head_fit.focal_px, centre_px=CROP_SIZE / 2)
    identity = head_fit.identity.astype(np.float64)
    points, joints = view.points(identity), view.joints(identity)
    posed = np.stack([view.placed(points + o, joints, state) for o, state in zip(own, states(curves), strict=True)])
    shown = view.predict(identity, photo_state(head_fit))
    measured = tracking.landmarks.astype(np.float64)
    n = motion.neutral
    scale = motion.scale[:, None, None]
    steps = scale * (measured - measured[motion.starts]) - (posed - shown)
    if direct.min() < 1:
        beyond = np.zeros_like(measured)
        if copied.any():
            residual = measured - _fitted(
                tracking, Projection(model, focal_px=tracking.focal_px, centre_px=CROP_SIZE / 2)
            )
            beyond = scale * strength * copied[:, None] * (residual - residual[n])
        seen = posed + (head_fit.landmarks - shown)
        if eyes:
            beyond += lid_steps(measured, seen + beyond, rest)
        if lips:
            beyond += lip_steps(measured, seen + beyond, rest, strength)
        weight = direct[:, None, None]
        steps = weight * steps + (1 - weight) * beyond
    limit = LIMIT_IOD * interocular_px(head_fit.landmarks)
    length = np.linalg.norm(steps, axis=-1, keepdims=True)
    return steps * np.minimum(1.0, limit / np.maximum(length, 1e-9))


def at_limit(steps: Float[np.ndarray, "T 478 2"], head_fit: HeadFit) -> Bool[np.ndarray, " T"]:
    """Return the frames in which a landmark was to go farther than `LIMIT_IOD`."""
    return np.linalg.norm(steps, axis=-1).max(1) > 0.999 * LIMIT_IOD * interocular_px(head_fit.landmarks)


def _fitted(tracking: Tracking, view: Projection) -> Float[np.ndarray, "T 478 2"]:
    """The driver's landmarks as predicted by the fitted head model, px of the driver's crop."""
    shape = tracking.identity.astype(np.float64)
    return np.stack([view.predict(shape, state) for state in states(tracking)])
