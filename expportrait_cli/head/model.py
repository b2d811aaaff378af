"""The head: canonical shape, subdivision and pose, the same for every head model.

Canonical points are in the head frame of `geometry.camera`, metres. Letters: `N` coarse and `V` dense vertices, `F`
dense triangles, `K` identity and `E` expression dimensions, `L` landmarks (478), `J` bones (6, in order of `BONES`).
Left is the person's own.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8
from torch import Tensor

from expportrait_cli.geometry import rotations

BONES = ("torso", "neck", "head", "jaw", "eye_left", "eye_right")
TORSO, NECK, HEAD, JAW, EYE_LEFT, EYE_RIGHT = range(6)


@dataclass(frozen=True)
class HeadModel:
    """A linear head model with subdivision, skinning and landmarks: constant tensors on one device."""

    name: str
    template: Float[Tensor, "N 3"]
    """Mean neutral head, looking ahead, m."""
    identity_basis: Float[Tensor, "N 3 K"]
    """Displacement by one standard deviation of each component, m."""
    expression_basis: Float[Tensor, "N 3 E"]
    """Displacement by each expression at weight 1, m."""
    expression_names: tuple[str, ...]
    expression_low: Float[Tensor, " E"]
    """Least weight of each expression: 0 for a unit such as a blink, below 0 for a statistical component."""
    expression_high: Float[Tensor, " E"]
    """Largest weight of each expression."""
    expression_prior: Float[Tensor, " E"]
    """Stiffness towards 0 in the landmark solver: a weight of 1 costs as much as one landmark whose error is the square
    root of this, in units of 2 % of the inter-ocular distance (`solve.solver`)."""
    expression_full: Float[Tensor, " E"]
    """Weight at which each expression is complete: 1 for a unit, more for a component in standard deviations.
    Thresholds for expressions are relative to it, so that they apply to every model (`HeadModel.shares`)."""
    expression_neutral: Float[Tensor, " E"]
    """Largest absolute weight of each expression that the tracker finds in a neutral face."""
    gaze_basis: Float[Tensor, "N 3 8"]
    """Displacement of the lids by each component of `gaze_pieces` at `gaze_full_rad`, m."""
    gaze_full_rad: Float[Tensor, " 8"]
    """Rotation of the eyeball at which the lids have moved by `gaze_basis`, rad."""
    jaw_corrective: Float[Tensor, "N 3"]
    """Difference, m, between the model's open mouth and the jaw's rotation by `jaw_full_rad` alone."""
    jaw_full_rad: float
    """Angle of the fully open jaw, rad."""
    joint_template: Float[Tensor, "6 3"]
    """Joints of the mean head, canonical, m."""
    joint_basis: Float[Tensor, "6 3 K"]
    """Displacement of the joints by each identity component, m; expressions do not move them."""
    skinning: Float[Tensor, "V 6"]
    """Bone weights of the dense vertices; rows sum to one."""
    faces: Int[Tensor, "F_coarse 3"]
    dense_faces: Int[Tensor, "F 3"]
    """Triangles of the dense mesh, counter-clockwise from outside."""
    operator: Tensor
    """Sparse CSR [V, N] from coarse to dense vertices; rows sum to one."""
    parts: UInt8[Tensor, " V"]
    """Part of each dense vertex, as an index into `part_names`."""
    part_names: tuple[str, ...]
    facial_mask: Float[Tensor, " V"]
    """1 in the face, 0 off it, smooth between; exactly 0 on eyeballs, teeth and in cavities."""
    landmark_triangles: Int[Tensor, "L 3"]
    """Dense vertices around each FaceMesh landmark."""
    landmark_barycentrics: Float[Tensor, "L 3"]
    landmark_spread: Float[Tensor, " L"]
    """Median distance of each landmark's detections from its position, m; large means unreliable."""

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "HeadModel":
        """Move every tensor; `dtype` is for the real-valued ones."""
        moved = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                moved[field.name] = value.to(device, dtype if value.is_floating_point() else None)
        return replace(self, **moved)

    def part(self, *names: str) -> Tensor:
        """Mask of the dense vertices that belong to any of the named parts."""
        return sum((self.parts == self.part_names.index(name) for name in names), torch.zeros_like(self.parts)).bool()

    def shares(self, expression: Float[np.ndarray, "*B E"]) -> Float[np.ndarray, "*B E"]:
        """Expression coefficients divided by `expression_full`, to compare effort across head models."""
        return expression / self.expression_full.cpu().numpy().astype(expression.dtype)

    @property
    def scalp(self) -> Bool[np.ndarray, " V"]:
        """Mask of skin that moves with the skull alone, off the face: where hair grows, and the top of the neck."""
        return ((self.skinning[:, HEAD] > 0.9) & (self.facial_mask < 0.1) & self.part("skin")).cpu().numpy()


def gaze_pieces(gaze: Float[Tensor, "*B 4"]) -> Float[Tensor, "*B 8"]:
    """Split gaze (rad) into the positive parts that move the lids.

    Per eye, the left one first: up, down, to the person's left, to the right.
    """
    left_pitch, left_yaw, right_pitch, right_yaw = gaze.unbind(-1)
    left = (left_pitch, -left_pitch, left_yaw, -left_yaw)
    right = (right_pitch, -right_pitch, right_yaw, -right_yaw)
    return torch.stack([*left, *right], -1).clamp(min=0)


def coarse(
    head: HeadModel,
    identity: Float[Tensor, "*B K"],
    expression: Float[Tensor, "*B E"],
    jaw: Float[Tensor, "*B 3"],
    gaze: Float[Tensor, "*B 4"],
) -> Float[Tensor, "*B N 3"]:
    """Canonical coarse vertices, m, from identity, expression, lids moved by the gaze, and the jaw's corrective.

    The corrective is linear in the opening of the jaw (rotation about x), and ignores its other angles.
    """
    shape = head.template + torch.einsum("nck,...k->...nc", head.identity_basis, identity)
    shape = shape + torch.einsum("nce,...e->...nc", head.expression_basis, expression)
    shape = shape + torch.einsum("ncg,...g->...nc", head.gaze_basis, gaze_pieces(gaze) / head.gaze_full_rad)
    return shape + head.jaw_corrective * (jaw[..., 0] / head.jaw_full_rad)[..., None, None]


def dense(head: HeadModel, coarse: Float[Tensor, "*B N 3"]) -> Float[Tensor, "*B V 3"]:
    """Subdivide coarse vertices to dense ones; linear, so that it also applies to displacements."""
    batch = coarse.shape[:-2]
    columns = coarse.reshape(-1, *coarse.shape[-2:]).permute(1, 0, 2).reshape(coarse.shape[-2], -1)
    result = head.operator @ columns
    return result.reshape(len(result), -1, 3).permute(1, 0, 2).reshape(*batch, -1, 3)


def joints(head: HeadModel, identity: Float[Tensor, "*B K"]) -> Float[Tensor, "*B 6 3"]:
    """Canonical joints of a person, m."""
    return head.joint_template + torch.einsum("jck,...k->...jc", head.joint_basis, identity)


def eye_rotation(pitch_yaw: Float[Tensor, "*B 2"]) -> Float[Tensor, "*B 3 3"]:
    """Rotation of an eyeball in the head: pitch, then yaw about the head's own vertical."""
    pitch, yaw = pitch_yaw.unbind(-1)
    zero = torch.zeros_like(pitch)
    turn, nod = torch.stack([zero, yaw, zero], -1), torch.stack([-pitch, zero, zero], -1)
    return rotations.matrix(turn) @ rotations.matrix(nod)


@dataclass(frozen=True)
class HeadPose:
    """Pose of a head's six bones; leading axes broadcast."""

    jaw: Float[Tensor, "*#B 3"]
    """Rotation of the jaw in the head frame, axis-angle, rad."""
    gaze: Float[Tensor, "*#B 4"]
    """Pitch and yaw of the left eye, then of the right, rad."""
    rotation: Float[Tensor, "*#B 3"]
    """R_cam_head as axis-angle, rad; artifacts store the rotation from the frontal pose instead (`fitted.pose_of`)."""
    translation: Float[Tensor, "*#B 3"]
    """Origin of the head frame in the camera, m."""
    torso_rotation: Float[Tensor, "*#B 3"]
    """R_cam_torso as axis-angle, rad."""
    torso_translation: Float[Tensor, "*#B 3"]
    """Neck joint of the torso in the camera, m."""


def bones(joints: Float[Tensor, "*#B 6 3"], at: HeadPose) -> tuple[Float[Tensor, "*B 6 3 3"], Float[Tensor, "*B 6 3"]]:
    """Rotation and translation that each bone applies to canonical points, to camera.

    The head bone is R_cam_head with the head's origin at `translation`. The torso bone is R_cam_torso about the neck
    joint, which lies at `torso_translation`. The neck bone has half the rotation between them, and maps the middle of
    neck and head joint to the mean of its images under those two bones. Jaw and eyes rotate about their joints in the
    head.
    """
    R_head, R_torso = rotations.matrix(at.rotation), rotations.matrix(at.torso_rotation)
    neck, translation = joints[..., NECK, :], at.translation
    t_torso = at.torso_translation - _turn(R_torso, neck)

    R_neck = rotations.matrix(rotations.axis_angle(R_head @ R_torso.mT) / 2) @ R_torso
    middle = (neck + joints[..., HEAD, :]) / 2
    middle_cam = (_turn(R_head, middle) + translation + _turn(R_torso, middle) + t_torso) / 2
    t_neck = middle_cam - _turn(R_neck, middle)

    Rs, ts = [R_torso, R_neck, R_head], [t_torso, t_neck, translation]
    eyes = (EYE_LEFT, eye_rotation(at.gaze[..., :2])), (EYE_RIGHT, eye_rotation(at.gaze[..., 2:]))
    for bone, R_inner in ((JAW, rotations.matrix(at.jaw)), *eyes):
        pivot = joints[..., bone, :]
        Rs.append(R_head @ R_inner)
        ts.append(_turn(R_head, pivot - _turn(R_inner, pivot)) + translation)
    return torch.stack(torch.broadcast_tensors(*Rs), -3), torch.stack(torch.broadcast_tensors(*ts), -2)


def pose(
    head: HeadModel,
    canonical: Float[Tensor, "*B V 3"],
    joints: Float[Tensor, "*#B 6 3"],
    at: HeadPose,
) -> Float[Tensor, "*B V 3"]:
    """Move canonical dense vertices to the camera, m, by linear blend skinning of the six bones (see `bones`).

    Leading axes of the other inputs broadcast.
    """
    Rs, ts = bones(joints, at)
    return skin(head.skinning, canonical, Rs, ts)


def skin(
    weights: Float[Tensor, "P 6"],
    points: Float[Tensor, "*B P 3"],
    Rs: Float[Tensor, "*B 6 3 3"],
    ts: Float[Tensor, "*B 6 3"],
) -> Float[Tensor, "*B P 3"]:
    """Linear blend skinning of points by bone rotations `Rs` and translations `ts`."""
    motions = torch.cat([Rs.mT, ts[..., None, :]], -2).flatten(-2)
    x, y, z, shift = (weights @ motions).unflatten(-1, (4, 3)).unbind(-2)
    return x * points[..., :1] + y * points[..., 1:2] + z * points[..., 2:] + shift


def default_torso(
    head: HeadModel,
    identity: Float[Tensor, "*B K"],
    rotation: Float[Tensor, "*B 3"],
    translation: Float[Tensor, "*B 3"],
) -> tuple[Float[Tensor, "*B 3"], Float[Tensor, "*B 3"]]:
    """Default rotation (axis-angle) and translation of the torso for a posed head.

    The torso is upright in the camera, has 40 percent of the head's yaw, and meets the head at the neck joint.
    """
    R_head = rotations.matrix(rotation)
    # The head's z axis, in a frame that faces the camera: x to the person's left, z to the camera.
    yaw = torch.atan2(R_head[..., 0, 2], -R_head[..., 2, 2]) * 0.4
    zero = torch.zeros_like(yaw)
    facing = torch.diag(yaw.new_tensor([1.0, -1.0, -1.0]))
    torso_rotation = rotations.axis_angle(facing @ rotations.matrix(torch.stack([zero, yaw, zero], -1)))
    neck = joints(head, identity)[..., NECK, :]
    return torso_rotation, _turn(R_head, neck) + translation


def landmarks(head: HeadModel, posed: Float[Tensor, "*B V 3"]) -> Float[Tensor, "*B L 3"]:
    """Positions of FaceMesh's landmarks on dense vertices, in their frame."""
    corners = posed[..., head.landmark_triangles, :]
    return (corners * head.landmark_barycentrics[:, :, None]).sum(-2)


def _turn(R: Float[Tensor, "*#B 3 3"], point: Float[Tensor, "*#B 3"]) -> Float[Tensor, "*B 3"]:
    return (R @ point[..., None])[..., 0]


MARK = "@2"
"""Suffix of the name of a head model with two subdivisions."""


def is_finer(name: str) -> bool:
    """True if the name is that of a head with two subdivisions (`anny@2`)."""
    return name.endswith(MARK)


def base_name(name: str) -> str:
    """Name of the model without subdivision suffix: `anny` of `anny@2`; both have the same parameters."""
    return name.removesuffix(MARK)


HeadName = Literal["anny", "smplx", "gnm"]

FindLandmarks = Callable[[HeadModel, Float32[Tensor, "V 3"]], HeadModel]
"""Function that adds landmarks to a head, from the colours of its dense vertices (`head.embed.embed`)."""
