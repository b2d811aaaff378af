"""The mesh of a fitted head as it stands in its photo, and its rigid bones."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from expportrait_cli.artifacts.types import CROP_SIZE, Curves, HeadFit, Relief
from expportrait_cli.geometry.rotations import from_turns, logarithm, rodrigues
from expportrait_cli.head.model import JAW, NECK, HeadModel, HeadPose, bones, coarse, dense, joints, pose


@dataclass(frozen=True)
class Bones:
    """Rotation and translation [3, 4] from canonical points to the camera."""

    head: Float[np.ndarray, "3 4"]
    jaw: Float[np.ndarray, "3 4"]
    torso: Float[np.ndarray, "3 4"]

    @classmethod
    def of(cls, joints: Float[np.ndarray, "6 3"], curves: Curves, frame: int) -> "Bones":
        """Bones of one frame of curves; the torso hangs at the neck joint."""
        turn, torso = from_turns(curves.rotation[frame]), from_turns(curves.torso_rotation[frame])
        hinge, translation = rodrigues(curves.jaw[frame]), curves.translation[frame]
        pivot = joints[JAW]
        return cls(
            head=np.c_[turn, translation],
            jaw=np.c_[turn @ hinge, turn @ (pivot - hinge @ pivot) + translation],
            torso=np.c_[torso, curves.torso_translation[frame] - torso @ joints[NECK]],
        )


def pose_of(rows: HeadFit | Curves, torso_translation: Float[np.ndarray, "*B 3"]) -> HeadPose:
    """Pose of a fit or of curves: turns away from the frontal pose become rotations into the camera."""
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
    """A fit of which only a part is shown, as in the paper's ablation: `full`, `static`, or the `base` mesh alone."""
    if representation == "full":
        return fit
    gone = ["frame_offset", "dynamic_offset"] + (["static_offset", "relief_seen"] if representation == "base" else [])
    fit = replace(fit, **{name: np.zeros_like(getattr(fit, name)) for name in gone})
    return replace(fit, relief=fit.relief[:0, :0]) if representation == "base" else fit


def canonical_mesh(fit: HeadFit, head: HeadModel, rows: HeadFit | Curves) -> Float32[Tensor, "*B V 3"]:
    """The person's unposed head with the expressions of `rows` and the fitted offsets (Eq. 3)."""
    psi, jaw, gaze = (torch.from_numpy(v) for v in (rows.expression, rows.jaw, rows.gaze))
    identity = torch.from_numpy(fit.identity).expand(*psi.shape[:-1], -1)
    return dense(head, coarse(head, identity, psi, jaw, gaze)) + torch.from_numpy(fit.static_offset + fit.frame_offset)


def photo_curves(fit: HeadFit, head: HeadModel) -> Curves:
    """Pose and expression of the photo as curves of one frame."""
    torso_translation = neck_in_camera(fit, head)
    rows = (fit.expression, fit.jaw, fit.gaze, fit.rotation, fit.translation, fit.torso_rotation, torso_translation)
    return Curves(*(row[None] for row in rows))


def neutral_mesh(fit: HeadFit, head: HeadModel) -> Float32[Tensor, "V 3"]:
    """The person's unposed head at rest: identity and static offset (V_neutral of Eq. 8)."""
    zero = head.template.new_zeros
    psi, jaw, gaze = zero(len(head.expression_names)), zero(3), zero(4)
    return dense(head, coarse(head, torch.from_numpy(fit.identity), psi, jaw, gaze)) + torch.from_numpy(
        fit.static_offset
    )


def person_joints(fit: HeadFit, head: HeadModel) -> Float32[Tensor, "6 3"]:
    """Canonical joints of the person."""
    return joints(head, torch.from_numpy(fit.identity))


def fitted_mesh(fit: HeadFit, head: HeadModel) -> Float32[np.ndarray, "V 3"]:
    """Dense vertices of the photo's own pose and expression, crop camera, m (Eq. 1 to 4)."""
    placed = pose_of(fit, neck_in_camera(fit, head))
    return pose(head, canonical_mesh(fit, head, fit), person_joints(fit, head), placed).numpy()


def relief_of(fit: HeadFit, head: HeadModel) -> Relief:
    """Static detail of the photo and where it lies on the mesh: each vertex keeps the pixel that shows it there.

    A head without detail has a relief without pixels, which says where its mouth is hollow.
    """
    verts = fitted_mesh(fit, head)
    places = verts[:, :2] / verts[:, 2:] * fit.focal_px + CROP_SIZE / 2
    cavity = head.part(*({"mouth_cavity"} & set(head.part_names))).numpy()
    return Relief(fit.relief, places.astype(np.float32), fit.relief_seen, cavity)


def posed_meshes(
    fit: HeadFit,
    head: HeadModel,
    curves: Curves,
    beyond: tuple[Int64[np.ndarray, " P"], Float32[np.ndarray, "T P 3"]] | None = None,
) -> Float32[np.ndarray, "T V 3"]:
    """Dense vertices of the person moved by curves, crop camera, m; `beyond` are more canonical steps of some."""
    placed = pose_of(curves, curves.torso_translation)
    canonical = canonical_mesh(fit, head, curves)
    if beyond is not None:
        canonical[:, beyond[0]] += torch.from_numpy(beyond[1])
    return pose(head, canonical, person_joints(fit, head), placed).numpy()


def blend_matrices(fit: HeadFit, head: HeadModel) -> Float32[np.ndarray, "V 3 3"]:
    """Matrices that turn a canonical step of each vertex into its step in the camera, in the photo's pose."""
    placed = pose_of(fit, neck_in_camera(fit, head))
    turns, _ = bones(person_joints(fit, head), placed)
    return torch.einsum("vj,jab->vab", head.skinning, turns).numpy()


def neck_in_camera(fit: HeadFit, head: HeadModel) -> Float32[np.ndarray, " 3"]:
    """Neck joint of the head bone, where the photo's torso hangs."""
    neck = person_joints(fit, head)[NECK].numpy()
    return (from_turns(fit.rotation) @ neck + fit.translation).astype(np.float32)
