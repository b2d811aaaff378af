"""Head and torso motion of the driver, carried into the photo's camera."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit, Tracking
from expportrait_cli.geometry.rotations import from_turns, logarithm, rodrigues, to_turns
from expportrait_cli.head import HeadModel
from expportrait_cli.head.fitted import person_joints
from expportrait_cli.head.model import NECK
from expportrait_cli.solve.state import photo_distance

SOFT_DEG = 15.0
"""Width over which a turn runs into its limit."""


@dataclass(frozen=True)
class Motion:
    """Where photo and driver start from, and the scale between their crops."""

    neutral: int
    """Driver frame that expressions count from."""
    starts: Int64[np.ndarray, " T"]
    """Frame of its own shot that each frame's motion counts from: a cut moves the camera, not the person."""
    rotation_ref: Float[np.ndarray, "3 3"]
    translation_ref: Float[np.ndarray, " 3"]
    focal_ref_px: float
    scale: Float64[np.ndarray, " T"]
    """Px of the photo's crop for one px of the driver's, at the head's size where each frame starts."""

    @classmethod
    def between(cls, head_fit: HeadFit, tracking: Tracking, neutral: int, cost: Float[np.ndarray, " T"]) -> "Motion":
        """Measure both heads where they start: the neutral frame, and in the other shots the frame of least cost."""
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


def neutral_cost(head_fit: HeadFit, tracking: Tracking, *, same: bool) -> Float[np.ndarray, " T"]:
    """How far each driver frame is from a neutral one in a pose like the photo's.

    For the same person, how far it is from the photo.
    """
    if same:
        return photo_distance(head_fit.landmarks, tracking)
    turn = from_turns(tracking.rotation) @ from_turns(head_fit.rotation).T
    angle = np.linalg.norm(logarithm(turn), axis=-1)
    effort = np.abs(tracking.expression).sum(-1) + 6 * np.abs(tracking.jaw).sum(-1) + np.abs(tracking.gaze).sum(-1)
    return effort + 4 * angle + 100.0 * (tracking.state > 0)


def limit_turn(axis_angle: Float[np.ndarray, "T 3"], limit_deg: float | None) -> Float[np.ndarray, "T 3"]:
    """Let turns out of the image plane run softly into a limit; roll is free."""
    if limit_deg is None:
        return axis_angle.copy()
    angle = np.linalg.norm(axis_angle[:, :2], axis=1)
    start, soft = np.radians(limit_deg - SOFT_DEG / 2), np.radians(SOFT_DEG)
    limited = np.where(angle > start, start + soft * np.tanh((angle - start) / soft), angle)
    out = axis_angle.copy()
    out[:, :2] *= (limited / np.maximum(angle, 1e-9))[:, None]
    return out


def head_motion(
    motion: Motion, tracking: Tracking, *, scale: float, absolute: bool, limit_deg: float | None
) -> tuple[Float[np.ndarray, "T 3"], Float[np.ndarray, "T 3"], Float[np.ndarray, " T"]]:
    """Turn and translation of the person's head, from the photo's, and the degrees that the limit took."""
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
    return rotation, np.c_[(px_ref + shift) / motion.focal_ref_px * depth[:, None], depth], taken_deg


def torso_motion(
    motion: Motion, tracking: Tracking, head_fit: HeadFit, head: HeadModel, *, scale: float
) -> tuple[Float[np.ndarray, "T 3"], Float[np.ndarray, "T 3"]]:
    """Pose of the torso from the similarity that optical flow measured on the driver's torso."""
    neck = person_joints(head_fit, head)[NECK].numpy().astype(np.float64)
    start = motion.rotation_ref @ neck + motion.translation_ref
    driver_neck = from_turns(tracking.rotation) @ neck + tracking.translation
    neck_px = driver_neck[:, :2] / driver_neck[:, 2:] * tracking.focal_px + CROP_SIZE / 2
    matrices = np.stack([_affine(row) for row in tracking.flow[:, 1].astype(np.float64)])
    relative = matrices @ np.linalg.inv(matrices[motion.starts])
    from_px = neck_px[motion.starts]
    moved = np.einsum("tij,tj->ti", relative, np.c_[from_px, np.ones(len(from_px))])[:, :2] - from_px
    size = np.hypot(relative[:, 0, 0], relative[:, 1, 0])
    roll = np.arctan2(relative[:, 1, 0], relative[:, 0, 0]) * scale
    depth = start[2] / size**scale
    px = start[:2] / start[2] * motion.focal_ref_px + moved * motion.scale[:, None] * scale
    turn = rodrigues(np.c_[np.zeros((len(roll), 2)), roll])
    rotation = to_turns(turn @ from_turns(head_fit.torso_rotation))
    return rotation, np.c_[px / motion.focal_ref_px * depth[:, None], depth]


def _affine(row: Float[np.ndarray, " 4"]) -> Float[np.ndarray, "3 3"]:
    a, b, c, d = row
    return np.array([[a, -b, c], [b, a, d], [0, 0, 1]])
