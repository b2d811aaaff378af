"""What is exported of a head: its mesh, neutral or posed, its surface and its poses."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from trimesh import Trimesh
from trimesh.exchange.obj import export_obj
from trimesh.exchange.ply import export_ply

from expportrait_cli.artifacts.types import Curves, HeadFit
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.geometry.rotations import from_turns
from expportrait_cli.head import HeadModel
from expportrait_cli.head.fitted import fitted_mesh, neck_in_camera, posed_meshes

FLIP = np.array([1.0, -1.0, -1.0])
"""From the axes of OpenCV's camera to those of glTF, and back."""


@dataclass(frozen=True)
class Shape:
    """A mesh at rest."""

    verts: Float32[np.ndarray, "V 3"]
    faces: Int64[np.ndarray, "F 3"]
    """Outward side counter-clockwise."""
    colours: UInt8[np.ndarray, "V 3"] | None = None
    """sRGB; None where no photo is known."""


@dataclass(frozen=True)
class Morphs:
    """Displacements that are added to a mesh by their weights."""

    names: tuple[str, ...]
    offsets: Float32[np.ndarray, "M V 3"]
    """Displacement at weight 1, m."""
    normals: Float32[np.ndarray, "M V 3"]
    """Change of the vertex normals at weight 1."""
    rest: Float32[np.ndarray, " M"]
    """Weights where no animation plays."""


@dataclass(frozen=True)
class Motion:
    """Where the mesh stands and how it is deformed, frame by frame; a single frame stands still."""

    times_s: Float32[np.ndarray, " T"]
    rotations: Float[np.ndarray, "T 3 3"]
    """From the mesh's own axes to those of the camera, both glTF's."""
    translations: Float[np.ndarray, "T 3"]
    """Origin of the mesh in the camera, m."""
    weights: Float32[np.ndarray, "T M"]

    @classmethod
    def of_turns(
        cls,
        times_s: Float32[np.ndarray, " T"],
        rotation: Float[np.ndarray, "T 3"],
        translation: Float[np.ndarray, "T 3"],
        weights: Float32[np.ndarray, "T M"],
    ) -> "Motion":
        """Motion of the head frame, whose axes are already glTF's, from poses as `Curves` holds them."""
        return cls(times_s, FLIP[:, None] * from_turns(rotation), translation * FLIP, weights)


def in_head(
    verts_cam: Float[np.ndarray, "*B V 3"], rotation: Float[np.ndarray, " 3"], translation: Float[np.ndarray, " 3"]
) -> Float32[np.ndarray, "*B V 3"]:
    """Express vertices of the crop camera in the head frame."""
    return ((verts_cam - translation.astype(np.float64)) @ from_turns(rotation)).astype(np.float32)


def normals_of(verts: Float32[np.ndarray, "V 3"], faces: Int64[np.ndarray, "F 3"]) -> Float32[np.ndarray, "V 3"]:
    """Smooth normals of unit length; a vertex without an area, which has none, gets the z axis."""
    normals = vertex_normals(torch.from_numpy(verts), torch.from_numpy(faces)).numpy()
    return np.where((normals == 0).all(-1, keepdims=True), np.array([0, 0, 1], np.float32), normals)


def write_surface(shape: Shape, path: Path, form: str) -> None:
    """Write the mesh with smooth normals, and with its colours if it has any; `form` is obj or ply.

    Vertices keep their order and number. Colours in an .obj follow the coordinates of each vertex, which MeshLab,
    Blender and others read.
    """
    normals = normals_of(shape.verts, shape.faces)
    mesh = Trimesh(
        shape.verts, shape.faces, vertex_normals=normals, vertex_colors=shape.colours, process=False, validate=False
    )
    if form == "obj":
        path.write_text(export_obj(mesh, include_normals=True))
    else:
        path.write_bytes(export_ply(mesh, vertex_normal=True))


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
