"""Rotations as axis-angle (rad) and matrix, and similarities of the plane."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

FRONTAL = np.diag([1.0, -1.0, -1.0])
"""R_cam_head of a person who looks straight into the camera."""


def matrix(axis_angle_rad: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3 3"]:
    """Rotation matrix by Rodrigues' formula."""
    square = (axis_angle_rad * axis_angle_rad).sum(-1)
    # The double `where` keeps the backward pass finite at zero angle.
    small = square < 1e-12
    angle = torch.where(small, torch.ones_like(square), square).sqrt()
    sin_by = torch.where(small, 1 - square / 6, angle.sin() / angle)[..., None, None]
    cos_by = torch.where(small, 0.5 - square / 24, (1 - angle.cos()) / angle**2)[..., None, None]
    x, y, z = axis_angle_rad.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    return torch.eye(3, dtype=square.dtype, device=square.device) + sin_by * cross + cos_by * (cross @ cross)


def axis_angle(rotation: Float[Tensor, "*B 3 3"]) -> Float[Tensor, "*B 3"]:
    """Axis-angle (rad) of a rotation matrix, through the unit quaternion, so that it is accurate up to pi."""
    m = rotation
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    diagonal = m.diagonal(dim1=-2, dim2=-1)
    # Four equivalent quaternions, each scaled by one of its components: take the best conditioned one.
    squares = torch.cat([trace[..., None], 2 * diagonal - trace[..., None]], -1) + 1
    a, b, c = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    rows = torch.stack(
        [
            torch.stack([squares[..., 0], a, b, c], -1),
            torch.stack([a, squares[..., 1], xy, xz], -1),
            torch.stack([b, xy, squares[..., 2], yz], -1),
            torch.stack([c, xz, yz, squares[..., 3]], -1),
        ],
        -2,
    )
    best = squares.argmax(-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    quaternion = torch.nn.functional.normalize(rows.gather(-2, best).squeeze(-2), dim=-1)
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    sine = quaternion[..., 1:].norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sine, quaternion[..., :1])
    return quaternion[..., 1:] * torch.where(sine < 1e-9, 2 * torch.ones_like(sine), angle / sine.clamp(min=1e-12))


def from_turns(turns_rad: Float[np.ndarray, "*B 3"]) -> Float[np.ndarray, "*B 3 3"]:
    """R_cam_head = R · FRONTAL for the axis-angles (rad) of R, rotations from the frontal pose."""
    return matrix(torch.from_numpy(np.asarray(turns_rad, np.float64))).numpy() @ FRONTAL


def to_turns(rotations: Float[np.ndarray, "*B 3 3"]) -> Float[np.ndarray, "*B 3"]:
    """Axis-angles (rad) of the rotations from the frontal pose to R_cam_head, the inverse of `from_turns`."""
    return axis_angle(torch.from_numpy(np.ascontiguousarray(rotations @ FRONTAL, np.float64))).numpy()


def rodrigues(axis_angle_rad: Float[np.ndarray, "*B 3"]) -> Float[np.ndarray, "*B 3 3"]:
    """Rotation matrix by Rodrigues' formula, for NumPy (see `matrix`)."""
    return matrix(torch.from_numpy(np.asarray(axis_angle_rad, np.float64))).numpy()


def logarithm(rotations: Float[np.ndarray, "*B 3 3"]) -> Float[np.ndarray, "*B 3"]:
    """Axis-angle (rad) of a rotation matrix, for NumPy (see `axis_angle`)."""
    return axis_angle(torch.from_numpy(np.ascontiguousarray(rotations, np.float64))).numpy()


def similarity(
    source: Float[np.ndarray, "P 2"],
    target: Float[np.ndarray, "P 2"],
    weights: Float[np.ndarray, " P"] | None = None,
) -> Float[np.ndarray, "2 3"]:
    """Least-squares similarity [[a, -b, c], [b, a, d]], without reflection, that maps `source` to `target`.

    The scale is 0 if all points coincide or have no weight.
    """
    w = np.ones(len(source)) if weights is None else weights
    w = w / max(w.sum(), 1e-12)
    centre, centre_target = w @ source, w @ target
    p, q = source - centre, target - centre_target
    spread = max(float(w @ (p**2).sum(1)), 1e-12)
    a = float(w @ (p * q).sum(1)) / spread
    b = float(w @ (p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0])) / spread
    turn = np.array([[a, -b], [b, a]])
    return np.c_[turn, centre_target - turn @ centre]
