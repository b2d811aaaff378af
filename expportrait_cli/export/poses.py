"""A fitted head that can be posed elsewhere: a neutral mesh, and a morph target for each of its expressions."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32

from expportrait_cli.artifacts.types import Curves, HeadFit
from expportrait_cli.export.shape import Morphs, Motion, in_head, normals_of
from expportrait_cli.head import HeadModel
from expportrait_cli.head.fitted import fitted_mesh, neck_in_camera, posed_meshes

JAW = "jawOpen"
GAZE = tuple(
    f"eyeLook{way}"
    for way in ("UpLeft", "DownLeft", "OutLeft", "InLeft", "UpRight", "DownRight", "InRight", "OutRight")
)
"""ARKit's names of the pieces that `head.gaze_pieces` splits the gaze into."""
PHOTO = "photo"
"""Target that leads from the neutral head to exactly what the photo shows, jaw and gaze included."""


@dataclass(frozen=True)
class Poses:
    """A head, neutral, and what moves it."""

    base: Float32[np.ndarray, "V 3"]
    """Head frame, m."""
    morphs: Morphs
    motion: Motion


def canonical(fit: HeadFit) -> HeadFit:
    """The same person neutral, upright at the origin: identity and static offset alone."""
    fields = ("expression", "jaw", "gaze", "rotation", "translation", "torso_rotation", "frame_offset")
    return replace(fit, **{name: np.zeros_like(getattr(fit, name)) for name in fields})


def exported_poses(fit: HeadFit, head: HeadModel, *, neutral: bool) -> Poses:
    """Make the morph targets; at rest the mesh is as in the photo, or with `neutral` the canonical head.

    Expressions are linear, so their targets are exact. Jaw and eyes turn about joints, and their targets are chords of
    these turns, exact at the weights 0 and 1 alone: a half-open jaw is up to 2 mm off its arc.
    """
    count, pieces = len(head.expression_names), len(GAZE)
    unit = np.eye(1 + count + 1 + pieces, dtype=np.float32)[:, 1:]
    jaw = np.zeros((len(unit), 3), np.float32)
    jaw[:, 0] = unit[:, count] * head.jaw_full_rad
    up_l, down_l, left_l, right_l, up_r, down_r, left_r, right_r = (unit[:, count + 1 :] * head.gaze_full_rad.numpy()).T
    still = fit if not neutral else canonical(fit)
    where = {
        "rotation": still.rotation,
        "translation": still.translation,
        "torso_rotation": still.torso_rotation,
        "torso_translation": neck_in_camera(still, head),
    }
    rows = Curves(
        expression=unit[:, :count].copy(),
        jaw=jaw,
        gaze=np.stack([up_l - down_l, left_l - right_l, up_r - down_r, left_r - right_r], -1),
        **{name: np.repeat(value[None], len(unit), 0) for name, value in where.items()},
    )
    plain = replace(still, frame_offset=np.zeros_like(still.frame_offset))
    meshes = in_head(posed_meshes(plain, head, rows), still.rotation, still.translation)
    base, offsets, names = meshes[0], meshes[1:] - meshes[0], (*head.expression_names, JAW, *GAZE)
    if not neutral:
        shown = in_head(fitted_mesh(fit, head), fit.rotation, fit.translation)
        offsets, names = np.concatenate([offsets, (shown - base)[None]]), (*names, PHOTO)
    faces = head.dense_faces.numpy()
    normals = np.stack([normals_of(base + offset, faces) for offset in offsets]) - normals_of(base, faces)
    rest = np.array([float(name == PHOTO) for name in names], np.float32)
    pose = still.rotation[None], still.translation[None]
    motion = Motion.of_turns(np.zeros(1, np.float32), *pose, rest[None])
    return Poses(base, Morphs(names, offsets, normals, rest), motion)
