"""The mesh that is exported: neutral or posed, with its surface's texture."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from trimesh import Trimesh
from trimesh.exchange.obj import export_obj
from trimesh.exchange.ply import export_ply

from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.geometry.rotations import from_turns

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
