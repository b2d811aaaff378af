"""The head's chain at the landmarks alone: small float64 arrays for a fast solver."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from expportrait_cli.head.model import HeadModel
from expportrait_cli.head.model import dense as subdivide


@dataclass(frozen=True)
class LandmarkModel:
    """Linear shape and skinning of the `L` = 478 landmarks, canonical head frame, metres and radians.

    A canonical landmark is template + identity·β + expression·ψ + gaze·(gaze_pieces(gaze) / gaze_full_rad)
    + jaw_corrective·(jaw[0] / jaw_full_rad); `skinning` then blends the bones of `model.bones` at the joints
    joint_template + joint_basis·β. `gaze_pieces` are the positive parts of (left pitch, -left pitch, left yaw,
    -left yaw, and the same four of the right eye). A landmark in a triangle whose corners follow the bones differently
    is off by the product of those differences; `landmarks(pose(...))` is the exact chain.
    """

    template: Float64[np.ndarray, "L 3"]
    identity: Float64[np.ndarray, "L 3 K"]
    expression: Float64[np.ndarray, "L 3 E"]
    expression_low: Float64[np.ndarray, " E"]
    expression_high: Float64[np.ndarray, " E"]
    expression_prior: Float64[np.ndarray, " E"]
    """Stiffness towards 0, in units of the solver."""
    gaze: Float64[np.ndarray, "L 3 8"]
    gaze_full_rad: Float64[np.ndarray, " 8"]
    jaw_corrective: Float64[np.ndarray, "L 3"]
    jaw_full_rad: float
    skinning: Float64[np.ndarray, "L 6"]
    joint_template: Float64[np.ndarray, "6 3"]
    joint_basis: Float64[np.ndarray, "6 3 K"]
    spread: Float64[np.ndarray, " L"]
    """How far the landmark wandered over views and identities, m."""


def landmark_model(head: HeadModel) -> LandmarkModel:
    """Apply the subdivision and the landmarks' barycentrics to every basis, once."""
    double = head.to("cpu", torch.float64)

    def at_landmarks(values: Tensor) -> np.ndarray:
        corners = values[double.landmark_triangles]
        weights = double.landmark_barycentrics.reshape(*double.landmark_barycentrics.shape, *[1] * (values.dim() - 1))
        return (corners * weights).sum(1).numpy()

    def shape(basis: Tensor) -> np.ndarray:
        return at_landmarks(subdivide(double, basis.permute(2, 0, 1)).permute(1, 2, 0))

    return LandmarkModel(
        template=at_landmarks(subdivide(double, double.template)),
        identity=shape(double.identity_basis),
        expression=shape(double.expression_basis),
        expression_low=double.expression_low.numpy(),
        expression_high=double.expression_high.numpy(),
        expression_prior=double.expression_prior.numpy(),
        gaze=shape(double.gaze_basis),
        gaze_full_rad=double.gaze_full_rad.numpy(),
        jaw_corrective=at_landmarks(subdivide(double, double.jaw_corrective)),
        jaw_full_rad=double.jaw_full_rad,
        skinning=at_landmarks(double.skinning),
        joint_template=double.joint_template.numpy(),
        joint_basis=double.joint_basis.numpy(),
        spread=double.landmark_spread.numpy(),
    )
