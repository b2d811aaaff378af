"""Head and torso motion of the driver, carried into the photo's camera."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit, Tracking
from expportrait_cli.geometry.rotations import from_turns, logarithm, rodrigues, to_turns
from expportrait_cli.head import HeadModel
from expportrait_cli.head.fitted import person_joints
from expportrait_cli.head.model import NECK
from expportrait_cli.head.solve import nearest_frame

SOFT_DEG = 15.0
"""Width over which a turn runs into its limit."""


@dataclass(frozen=True)
class Motion:
    """Where photo and driver start from, and the scale between their crops."""

    neutral: int
    rotation_ref: Float[np.ndarray, "3 3"]
    translation_ref: Float[np.ndarray, " 3"]
    focal_ref_px: float
    scale: float
    """Px of the photo's crop for one px of the driver's, at the neutral frame's head size."""

    @classmethod
    def between(cls, head_fit: HeadFit, tracking: Tracking, neutral: int) -> "Motion":
        """Measure both heads where they start."""
        size_ref = head_fit.focal_px / head_fit.translation[2]
        size_driver = tracking.focal_px / tracking.translation[neutral, 2]
        return cls(
            neutral,
            from_turns(head_fit.rotation),
            head_fit.translation.astype(np.float64),
            head_fit.focal_px,
            float(size_ref / size_driver),
        )


def neutral_frame(head_fit: HeadFit, tracking: Tracking, *, same: bool) -> int:
    """Driver frame to count from: the most neutral one in a pose like the photo's.

    For the same person it is the one most like the photo.
    """
    if same:
        return nearest_frame(head_fit.landmarks, tracking)[0]
    turn = from_turns(tracking.rotation) @ from_turns(head_fit.rotation).T
    angle = np.linalg.norm(logarithm(turn), axis=-1)
    effort = np.abs(tracking.expression).sum(-1) + 6 * np.abs(tracking.jaw).sum(-1) + np.abs(tracking.gaze).sum(-1)
    unsure = 100.0 * (tracking.state > 0)
    return int((effort + 4 * angle + unsure).argmin())


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
    start = motion.rotation_ref if absolute else driver[motion.neutral]
    wanted = logarithm(driver @ start.T) * scale
    turn = limit_turn(wanted, limit_deg)
    rotation = to_turns(rodrigues(turn) @ motion.rotation_ref)
    position = tracking.translation.astype(np.float64)
    px = position[:, :2] / position[:, 2:] * tracking.focal_px
    shift = (px - px[motion.neutral]) * motion.scale * scale
    depth = motion.translation_ref[2] * (position[:, 2] / position[motion.neutral, 2]) ** scale
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
    n = motion.neutral
    matrices = np.stack([_affine(row) for row in tracking.flow[:, 1].astype(np.float64)])
    relative = matrices @ np.linalg.inv(matrices[n])
    other_shot = tracking.shot != tracking.shot[n]
    moved = np.einsum("tij,j->ti", relative, np.r_[neck_px[n], 1.0])[:, :2] - neck_px[n]
    # Across a cut nothing was measured: the torso stays under the head.
    moved[other_shot] = (neck_px - neck_px[n])[other_shot]
    size = np.where(other_shot, 1.0, np.hypot(relative[:, 0, 0], relative[:, 1, 0]))
    roll = np.where(other_shot, 0.0, np.arctan2(relative[:, 1, 0], relative[:, 0, 0])) * scale
    depth = start[2] / size**scale
    px = start[:2] / start[2] * motion.focal_ref_px + moved * motion.scale * scale
    turn = rodrigues(np.c_[np.zeros((len(roll), 2)), roll])
    rotation = to_turns(turn @ from_turns(head_fit.torso_rotation))
    return rotation, np.c_[px / motion.focal_ref_px * depth[:, None], depth]


def _affine(row: Float[np.ndarray, " 4"]) -> Float[np.ndarray, "3 3"]:
    a, b, c, d = row
    return np.array([[a, -b, c], [b, a, d], [0, 0, 1]])
