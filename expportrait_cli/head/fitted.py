"""Meshes of a fitted head in its photo, at rest and along curves, and its rigid bones."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from expportrait_cli.artifacts.types import CROP_SIZE, Curves, HeadFit, Relief
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.geometry.rotations import from_turns, logarithm, rodrigues
from expportrait_cli.head.model import JAW, NECK, HeadModel, HeadPose, bones, coarse, dense, joints, landmarks, pose

INNER_LIPS = (13, 14)
"""FaceMesh landmarks in the middle of the upper and the lower lip, where closed lips meet."""
UPPER_EDGE_M, LOWER_EDGE_M = -0.0022, -0.0026
"""Heights of the edges of the upper and the lower teeth over the line of the closed lips, m."""
TONGUE_TOP_M = 0.003
"""Height of the middle of the tongue's back above the edge of the lower teeth, m."""
TONGUE_WIDE_M = 0.024
"""Half the width of the tongue, m."""
TONGUE_TIP_M, TONGUE_ROOT_M = 0.010, 0.060
"""Distances of the tongue's tip and root behind the line of the closed lips, m."""


@dataclass(frozen=True)
class Bones:
    """Rotation and translation [3, 4] of head, jaw and torso, from canonical points to the camera, m."""

    head: Float[np.ndarray, "3 4"]
    jaw: Float[np.ndarray, "3 4"]
    torso: Float[np.ndarray, "3 4"]

    @classmethod
    def of(cls, joints: Float[np.ndarray, "6 3"], curves: Curves, frame: int) -> "Bones":
        """Bones of one frame of curves; the torso is attached at the neck joint."""
        turn, torso = from_turns(curves.rotation[frame]), from_turns(curves.torso_rotation[frame])
        hinge, translation = rodrigues(curves.jaw[frame]), curves.translation[frame]
        pivot = joints[JAW]
        return cls(
            head=np.c_[turn, translation],
            jaw=np.c_[turn @ hinge, turn @ (pivot - hinge @ pivot) + translation],
            torso=np.c_[torso, curves.torso_translation[frame] - torso @ joints[NECK]],
        )


def pose_of(rows: HeadFit | Curves, torso_translation: Float[np.ndarray, "*B 3"]) -> HeadPose:
    """Pose of a fit or of curves; rotations from the frontal pose become rotations into the camera."""
    return HeadPose(
        jaw=_single(rows.jaw),
        gaze=_single(rows.gaze),
        rotation=_single(logarithm(from_turns(rows.rotation))),
        translation=_single(rows.translation),
        torso_rotation=_single(logarithm(from_turns(rows.torso_rotation))),
        torso_translation=_single(torso_translation),
    )


def _single(values: Float[np.ndarray, "*B C"]) -> Float32[Tensor, "*B C"]:
    return torch.from_numpy(np.asarray(values, np.float32))


def reduced(fit: HeadFit, representation: str) -> HeadFit:
    """Remove offsets from a fit, as in the paper's ablation: none (`full`), dynamic (`static`), or all (`base`)."""
    if representation == "full":
        return fit
    gone = ["frame_offset", "dynamic_offset"] + (["static_offset", "relief_seen"] if representation == "base" else [])
    fit = replace(fit, **{name: np.zeros_like(getattr(fit, name)) for name in gone})
    return replace(fit, relief=fit.relief[:0, :0]) if representation == "base" else fit


def canonical_mesh(fit: HeadFit, head: HeadModel, rows: HeadFit | Curves) -> Float32[Tensor, "*B V 3"]:
    """The person's unposed head, m, with the expressions of `rows` and the fitted offsets (Eq. 3)."""
    psi, jaw, gaze = (torch.from_numpy(v) for v in (rows.expression, rows.jaw, rows.gaze))
    identity = torch.from_numpy(fit.identity).expand(*psi.shape[:-1], -1)
    return dense(head, coarse(head, identity, psi, jaw, gaze)) + torch.from_numpy(fit.static_offset + fit.frame_offset)


def photo_curves(fit: HeadFit, head: HeadModel) -> Curves:
    """Pose and expression of the photo as curves of one frame."""
    torso_translation = neck_in_camera(fit, head)
    rows = (fit.expression, fit.jaw, fit.gaze, fit.rotation, fit.translation, fit.torso_rotation, torso_translation)
    return Curves(*(row[None] for row in rows))


def neutral_mesh(fit: HeadFit, head: HeadModel) -> Float32[Tensor, "V 3"]:
    """The person's unposed head at rest, m: identity and static offset (V_neutral of Eq. 8)."""
    zero = head.template.new_zeros
    psi, jaw, gaze = zero(len(head.expression_names)), zero(3), zero(4)
    return dense(head, coarse(head, torch.from_numpy(fit.identity), psi, jaw, gaze)) + torch.from_numpy(
        fit.static_offset
    )


def person_joints(fit: HeadFit, head: HeadModel) -> Float32[Tensor, "6 3"]:
    """Canonical joints of the person, m."""
    return joints(head, torch.from_numpy(fit.identity))


def fitted_mesh(fit: HeadFit, head: HeadModel) -> Float32[np.ndarray, "V 3"]:
    """Dense vertices in the photo's pose and expression, crop camera, m (Eq. 1 to 4)."""
    placed = pose_of(fit, neck_in_camera(fit, head))
    return pose(head, canonical_mesh(fit, head, fit), person_joints(fit, head), placed).numpy()


def tongue(head: HeadModel) -> Bool[np.ndarray, " V"]:
    """Mask of the floor of the mouth that becomes the tongue; empty for a head model without lower teeth."""
    verts = dense(head, head.template)
    down = vertex_normals(verts, head.dense_faces)[:, 1].numpy() < 0.3
    place = (verts - landmarks(head, verts)[list(INNER_LIPS)].mean(0)).numpy()
    hollow = head.part(*({"mouth_cavity"} & set(head.part_names))).numpy()
    if not head.part(*({"teeth_lower"} & set(head.part_names))).any():
        return np.zeros_like(hollow)
    long = (place[:, 2] < -TONGUE_TIP_M) & (place[:, 2] > -TONGUE_ROOT_M) & (np.abs(place[:, 0]) < TONGUE_WIDE_M)
    return hollow & long & ~down & (head.skinning[:, JAW].numpy() > 0.5) & (place[:, 1] < LOWER_EDGE_M)


def mouth_offset(identity: Float32[np.ndarray, " K"], head: HeadModel) -> Float32[np.ndarray, "V 3"]:
    """Offsets (canonical, m) that move teeth to realistic places, and raise the mouth's floor to a tongue.

    In the head models teeth are so far from the lips that they are hidden in a smile.
    """
    zero = head.template.new_zeros
    verts = dense(head, coarse(head, torch.from_numpy(identity), zero(len(head.expression_names)), zero(3), zero(4)))
    place = (verts - landmarks(head, verts)[list(INNER_LIPS)].mean(0)).numpy()
    offset = np.zeros_like(place)
    for name, edge_m, lowest in (("teeth_upper", UPPER_EDGE_M, np.min), ("teeth_lower", LOWER_EDGE_M, np.max)):
        teeth = head.part(*({name} & set(head.part_names))).numpy()
        front = teeth & (np.abs(place[:, 0]) < TONGUE_WIDE_M / 3)
        if front.any():
            offset[teeth, 1] = edge_m - lowest(place[front, 1])
    floor = tongue(head)
    across, _, along = place[floor].T
    side, length = np.abs(across) / TONGUE_WIDE_M, (-along - TONGUE_TIP_M) / (TONGUE_ROOT_M - TONGUE_TIP_M)
    # An ellipsoid: round at the sides, and at the tip, which is the first third of its length.
    dome = np.sqrt(np.clip(1 - side**2 - np.clip(1 - 3 * length, 0, 1) ** 2, 0, 1))
    offset[floor, 1] = dome * np.maximum(LOWER_EDGE_M + TONGUE_TOP_M - place[floor, 1], 0)
    return offset.astype(np.float32)


def relief_of(fit: HeadFit, head: HeadModel) -> Relief:
    """Static detail of the photo, with the position of each vertex in the photo's crop, and the mask of the cavity.

    For a fit without detail the height map is empty.
    """
    verts = fitted_mesh(fit, head)
    places = verts[:, :2] / verts[:, 2:] * fit.focal_px + CROP_SIZE / 2
    hollow = head.part(*({"mouth_cavity"} & set(head.part_names))).numpy() & ~tongue(head)
    return Relief(fit.relief, places.astype(np.float32), fit.relief_seen, hollow)


def posed_meshes(
    fit: HeadFit,
    head: HeadModel,
    curves: Curves,
    beyond: tuple[Int64[np.ndarray, " P"], Float32[np.ndarray, "T P 3"]] | None = None,
) -> Float32[np.ndarray, "T V 3"]:
    """Dense vertices of the person moved by curves, crop camera, m.

    `beyond`: indices of vertices, and further canonical offsets of these, m.
    """
    placed = pose_of(curves, curves.torso_translation)
    canonical = canonical_mesh(fit, head, curves)
    if beyond is not None:
        canonical[:, beyond[0]] += torch.from_numpy(beyond[1])
    return pose(head, canonical, person_joints(fit, head), placed).numpy()


def blend_matrices(fit: HeadFit, head: HeadModel) -> Float32[np.ndarray, "V 3 3"]:
    """Matrices of skinning that map a canonical offset of each vertex to the camera, in the photo's pose."""
    placed = pose_of(fit, neck_in_camera(fit, head))
    turns, _ = bones(person_joints(fit, head), placed)
    return torch.einsum("vj,jab->vab", head.skinning, turns).numpy()


def neck_in_camera(fit: HeadFit, head: HeadModel) -> Float32[np.ndarray, " 3"]:
    """Neck joint of the head bone in the camera, m, to which the photo's torso is attached."""
    neck = person_joints(fit, head)[NECK].numpy()
    return (from_turns(fit.rotation) @ neck + fit.translation).astype(np.float32)
