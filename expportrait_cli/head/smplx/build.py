"""Build head and shoulders from an SMPL-X body (Pavlakos et al., CVPR 2019).

Canonical coarse vertices are SMPL-X's own with lowered arms, in the head frame, whose origin follows the eyes. With the
torso at rest and the head turned with it, posed ones are SMPL-X's to rounding, apart from what is listed here:
- pivots depend on identity only; SMPL-X lets expressions move its joints where the regressor reaches the face;
- the neck bone turns half-way between torso and head (`model.bones`), where SMPL-X has a rotation of its own;
- of the pose correctives, the shoulders' are applied as they are, the jaw's linearly in its rotation about x
  (`jaw_corrective`), and no others.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from expportrait_cli.geometry.mesh import csr_tensor
from expportrait_cli.head.model import EYE_LEFT, EYE_RIGHT, HeadModel
from expportrait_cli.head.smplx import regions as regions
from expportrait_cli.head.smplx.load import JOINTS, SHOULDERS, SmplxBody
from expportrait_cli.head.subdivision import Cut, cut_above, subdivide_triangles

BONE_JOINTS = (12, 12, 15, 22, 23, 24)
"""SMPL-X's joint of each bone; the torso pivots about the neck."""
EYES_M = np.array([0.0, 0.0222, 0.0791])
"""The middle of the eye joints in the head frame, as in the default head: the origin lies between the ears."""
ARM_LOWERING_RAD = np.deg2rad(70.0)
"""SMPL-X stands with its arms out to the sides; people in portraits let them hang."""
CUT_M = 0.30
"""Height of the cut below the neck joint."""
JAW_FULL_RAD = 0.4
GAZE_FULL_RAD = 0.45
"""Nothing follows the gaze; any angle but 0 does."""
EXPRESSION_MAX = 3.0
"""Standard deviations."""
EXPRESSION_PRIOR = 10.0
"""As for the identity: components of both are standard normal."""


def build(body: SmplxBody) -> tuple[HeadModel, Float[np.ndarray, "51 3"]]:
    """Head without landmarks and facial mask, and the file's own landmarks in the head frame."""
    shoulder_turns = _shoulder_turns()
    # The average person, then what every component of the shape adds: all that follows is linear in them.
    people = np.concatenate([body.template[None], body.shape_basis.transpose(2, 0, 1)])
    joints = np.einsum("js,psc->pjc", body.regressor, people, optimize=True)
    pivots = joints[:, list(SHOULDERS)]
    shift = -joints[:, 23:25].mean(1)
    shift[0] += EYES_M
    joints = (joints + shift[:, None])[:, list(BONE_JOINTS)]
    # SMPL-X finds its joints before it corrects the shape for the pose.
    people[0] += body.shoulder_correctives @ np.concatenate([(turn - np.eye(3)).ravel() for turn in shoulder_turns])
    arms = _arm_weights(body)

    mean = (_lowered(people[:1], arms, pivots[:1], shoulder_turns) + shift[:1, None])[0]
    floor_m = joints[0, 1, 1] - CUT_M
    cut = cut_above(mean, body.faces, floor_m)
    shape = _lowered(people[:, cut.kept], arms[:, cut.kept], pivots, shoulder_turns) + shift[:, None]
    below = shape[0, :, 1] < floor_m
    # What hangs below the cut ends on it, for everybody.
    shape[:, below, 1] = 0
    shape[0, below, 1] = floor_m
    jaw_turn = cv2.Rodrigues(np.array([JAW_FULL_RAD, 0.0, 0.0]))[0] - np.eye(3)
    moves = np.concatenate([body.expression_basis.transpose(2, 0, 1), [body.jaw_correctives @ jaw_turn.ravel()]])
    moves = _lowered(moves[:, cut.kept], arms[:, cut.kept], np.zeros((len(moves), 2, 3)), shoulder_turns)
    marks = (mean[body.faces[body.landmark_faces]] * body.landmark_barycentrics[..., None]).sum(1)
    return _head(body, cut, _Linear(shape, moves[:-1], moves[-1], joints), marks), marks


@dataclass(frozen=True)
class _Linear:
    """What the head is linear in; a `person` is the mean or one component of the shape."""

    shape: Float[np.ndarray, "people N 3"]
    expression: Float[np.ndarray, "E N 3"]
    jaw_corrective: Float[np.ndarray, "N 3"]
    joints: Float[np.ndarray, "people 6 3"]


def _head(body: SmplxBody, cut: Cut, linear: _Linear, marks: Float[np.ndarray, "51 3"]) -> HeadModel:
    skinning = _bone_weights(body.skinning[cut.kept])
    division = subdivide_triangles(cut.faces, len(cut.kept))
    eyes = skinning[:, [EYE_LEFT, EYE_RIGHT]].T > 0.9
    template, joints = linear.shape[0], linear.joints[0]
    parts = regions.coarse_parts(template, division, eyes, joints[[EYE_LEFT, EYE_RIGHT]], marks)
    parts = regions.dense_parts(parts, division)
    high = torch.full((len(linear.expression),), EXPRESSION_MAX, dtype=torch.float64)
    return HeadModel(
        name="smplx",
        template=_real(template),
        identity_basis=_real(linear.shape[1:].transpose(1, 2, 0)),
        expression_basis=_real(linear.expression.transpose(1, 2, 0)),
        expression_names=tuple(f"exp{index:03}" for index in range(len(high))),
        expression_low=-high,
        expression_high=high,
        expression_prior=torch.full_like(high, EXPRESSION_PRIOR),
        gaze_basis=torch.zeros(len(template), 3, 8),
        gaze_full_rad=torch.full((8,), GAZE_FULL_RAD),
        jaw_corrective=_real(linear.jaw_corrective),
        jaw_full_rad=JAW_FULL_RAD,
        joint_template=_real(joints),
        joint_basis=_real(linear.joints[1:].transpose(1, 2, 0)),
        skinning=_real(division.linear @ skinning),
        faces=torch.from_numpy(cut.faces),
        dense_faces=torch.from_numpy(division.triangles),
        operator=csr_tensor(division.smooth),
        parts=torch.from_numpy(parts),
        part_names=regions.PARTS,
        facial_mask=torch.zeros(len(parts)),
        landmark_triangles=torch.zeros(478, 3, dtype=torch.int64),
        landmark_barycentrics=torch.eye(3)[torch.zeros(478, dtype=torch.int64)],
        landmark_spread=torch.zeros(478),
    )


def _shoulder_turns() -> list[np.ndarray]:
    """Rotations of the left and of the right shoulder that lower the arms."""
    return [cv2.Rodrigues(np.array([0.0, 0.0, side * ARM_LOWERING_RAD]))[0] for side in (-1, 1)]


def _arm_weights(body: SmplxBody) -> Float[np.ndarray, "2 S"]:
    """Share of each vertex that hangs on the left and on the right shoulder."""
    side_of = dict.fromkeys(range(JOINTS))
    for joint in range(1, JOINTS):
        side_of[joint] = joint if joint in SHOULDERS else side_of[int(body.parents[joint])]
    return np.stack([body.skinning[:, [j for j in side_of if side_of[j] == s]].sum(1) for s in SHOULDERS])


def _lowered(
    rows: Float[np.ndarray, "R P 3"],
    arms: Float[np.ndarray, "2 P"],
    pivots: Float[np.ndarray, "R 2 3"],
    turns: list[np.ndarray],
) -> Float[np.ndarray, "R P 3"]:
    """Turn the arms about the shoulders. Linear, so displacements pass through it with those of the shoulders."""
    result = rows.copy()
    for side, turn in enumerate(turns):
        moved = np.flatnonzero(arms[side])
        arm = rows[:, moved] - pivots[:, side, None]
        result[:, moved] += arms[side, moved, None] * (arm @ (turn - np.eye(3)).T)
    return result


def _bone_weights(weights: Float[np.ndarray, "N 55"]) -> Float[np.ndarray, "N 6"]:
    """Weights of the six bones: whatever is not neck, head, jaw or eye is torso."""
    own = weights[:, list(BONE_JOINTS[1:])]
    torso = np.clip(weights.sum(1) - own.sum(1), 0, None)
    bones = np.column_stack([torso, own])
    return bones / bones.sum(1, keepdims=True)


def _real(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
