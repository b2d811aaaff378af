"""A fitted head as it stands in frames of its clip, folds included: what the normal maps of training show."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float32, Int64

from expportrait_cli.artifacts.types import Curves, HeadFit, Tracking
from expportrait_cli.fit.clip import torso_turns
from expportrait_cli.geometry.rotations import from_turns
from expportrait_cli.head import HeadModel
from expportrait_cli.head.fitted import person_joints, posed_meshes
from expportrait_cli.head.model import NECK


def clip_curves(fit: HeadFit, tracking: Tracking, head: HeadModel, rows: Int64[np.ndarray, " R"]) -> Curves:
    """What moves the head in some frames of its own clip; the torso hangs at the head's neck joint."""
    widths = (tracking.expression.shape[1], 3, 4, 3, 3)
    columns = np.split(fit.dynamic_curves[rows], np.cumsum(widths)[:-1], axis=1)
    expression, jaw, gaze, rotation, translation = columns
    neck = person_joints(fit, head)[NECK].numpy()
    return Curves(
        expression=expression,
        jaw=jaw,
        gaze=gaze,
        rotation=rotation,
        translation=translation,
        torso_rotation=torso_turns(tracking)[rows],
        torso_translation=(from_turns(rotation) @ neck + translation).astype(np.float32),
    )


def clip_meshes(
    fit: HeadFit, tracking: Tracking, head: HeadModel, rows: Int64[np.ndarray, " R"]
) -> Float32[np.ndarray, "R V 3"]:
    """Dense vertices of some frames with static and dynamic offsets, camera of the tracking's crop, m (Eq. 1 to 4)."""
    curves = clip_curves(fit, tracking, head, rows)
    meshes = []
    for index, row in enumerate(rows.tolist()):
        folds = np.zeros_like(fit.frame_offset)
        folds[fit.dynamic_vertices] = fit.dynamic_offset[row]
        one = Curves(**{name: values[index : index + 1] for name, values in vars(curves).items()})
        meshes.append(posed_meshes(replace(fit, frame_offset=folds), head, one)[0])
    return np.stack(meshes)
