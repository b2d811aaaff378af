"""The mesh of a fitted head as it stands in its photo."""

import numpy as np
import torch
from jaxtyping import Float32

from expportrait_cli.artifacts.types import HeadFit
from expportrait_cli.geometry.rotations import from_turns
from expportrait_cli.head.model import NECK, HeadModel, coarse, dense, joints, pose


def fitted_mesh(fit: HeadFit, head: HeadModel) -> Float32[np.ndarray, "V 3"]:
    """Dense vertices of the photo's own pose and expression, crop camera, m (Eq. 1 to 4)."""
    tensors = {name: torch.from_numpy(getattr(fit, name)) for name in ("identity", "expression", "jaw", "gaze")}
    shape = coarse(head, tensors["identity"], tensors["expression"], tensors["jaw"], tensors["gaze"])
    at = joints(head, tensors["identity"])
    return pose(
        head,
        dense(head, shape) + torch.from_numpy(fit.static_offset + fit.frame_offset),
        at,
        jaw=tensors["jaw"],
        gaze=tensors["gaze"],
        rotation=torch.from_numpy(fit.rotation),
        translation=torch.from_numpy(fit.translation),
        torso_rotation=torch.from_numpy(fit.torso_rotation),
        torso_translation=torch.from_numpy(neck_in_camera(fit, head)),
    ).numpy()


def neck_in_camera(fit: HeadFit, head: HeadModel) -> Float32[np.ndarray, " 3"]:
    """Neck joint of the head bone, where the photo's torso hangs."""
    neck = joints(head, torch.from_numpy(fit.identity))[NECK].numpy()
    return (from_turns(fit.rotation) @ neck + fit.translation).astype(np.float32)
