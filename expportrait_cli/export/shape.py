"""Contents of exported files: mesh, normal map, morph targets and motion of a head."""

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor
from trimesh import Trimesh
from trimesh.exchange.obj import export_obj
from trimesh.exchange.ply import export_ply

from expportrait_cli.artifacts.types import CROP_SIZE, Curves, HeadFit, Relief
from expportrait_cli.geometry.mesh import surface_gradients, vertex_normals
from expportrait_cli.geometry.rotations import from_turns
from expportrait_cli.head import HeadModel
from expportrait_cli.head.fitted import fitted_mesh, neck_in_camera, posed_meshes
from expportrait_cli.render.buffers import FINENESS, Bump, encode
from expportrait_cli.render.rasterizer import interpolate, rasterize
from expportrait_cli.version import __version__

FLIP = np.array([1.0, -1.0, -1.0])
"""Signs between the axes of OpenCV's camera and those of glTF."""


@dataclass(frozen=True)
class NormalMap:
    """Fine static detail as normals in the tangent space of a mesh (glTF 2.0.1, 3.9.3: green points up)."""

    image: UInt8[np.ndarray, "R R 3"]
    places: Float32[np.ndarray, "V 2"]
    """Texture coordinates of each vertex, 0..1 from the upper left corner."""
    tangents: Float32[np.ndarray, "V 4"]
    """Unit tangents (to the right of the image), and 1, or -1 where the image is mirrored on the surface."""
    shown: Bool[np.ndarray, " F"]
    """Triangles that use the normal map; the photo does not show the others."""
    colours: UInt8[np.ndarray, "R R 3"] | None = None
    """sRGB of the same triangles, from the photo; None without a photo."""


@dataclass(frozen=True)
class Shape:
    """A mesh at rest."""

    verts: Float32[np.ndarray, "V 3"]
    faces: Int64[np.ndarray, "F 3"]
    """Triangles, counter-clockwise from outside."""
    colours: UInt8[np.ndarray, "V 3"] | None = None
    """sRGB; None without a photo."""
    detail: NormalMap | None = None


@dataclass(frozen=True)
class Morphs:
    """Morph targets: displacements that are added to a mesh by their weights."""

    names: tuple[str, ...]
    offsets: Float32[np.ndarray, "M V 3"]
    """Displacement at weight 1, m."""
    normals: Float32[np.ndarray, "M V 3"]
    """Change of the vertex normals at weight 1."""
    rest: Float32[np.ndarray, " M"]
    """Weights without an animation."""


@dataclass(frozen=True)
class Motion:
    """Pose of the mesh and weights of its morph targets, by frame; a single frame is no animation."""

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
        """Convert poses of `Curves` to motion; the axes of the head frame are already those of glTF."""
        return cls(times_s, FLIP[:, None] * from_turns(rotation), translation * FLIP, weights)


def in_head(
    verts_cam: Float[np.ndarray, "*B V 3"], rotation: Float[np.ndarray, " 3"], translation: Float[np.ndarray, " 3"]
) -> Float32[np.ndarray, "*B V 3"]:
    """Transform vertices from the crop camera's frame to the head frame."""
    return ((verts_cam - translation.astype(np.float64)) @ from_turns(rotation)).astype(np.float32)


def normals_of(verts: Float32[np.ndarray, "V 3"], faces: Int64[np.ndarray, "F 3"]) -> Float32[np.ndarray, "V 3"]:
    """Unit vertex normals; a vertex without any area gets the z axis."""
    normals = vertex_normals(torch.from_numpy(verts), torch.from_numpy(faces)).numpy()
    return np.where((normals == 0).all(-1, keepdims=True), np.array([0, 0, 1], np.float32), normals)


def normal_map(
    verts: Float32[np.ndarray, "V 3"],
    faces: Int64[np.ndarray, "F 3"],
    relief: Relief,
    photo: tuple[UInt8[np.ndarray, "R R 3"], UInt8[np.ndarray, "V 3"]] | None = None,
) -> NormalMap | None:
    """Bake a relief into a normal map over the photo's crop; None if it is empty, or of another mesh.

    `photo`: crop of the photo, and colours of the vertices, which show where the photo sees the surface too slanted.
    """
    if not relief.heights.size or len(relief.places) != len(verts):
        return None
    side, normals = len(relief.heights), normals_of(verts, faces).astype(np.float64)
    bump = Bump.of(relief, scale=side / (FINENESS * CROP_SIZE))
    assert bump is not None
    triangles = torch.from_numpy(faces)
    along = surface_gradients(torch.from_numpy(verts), triangles, bump.places[:, :2]).numpy().astype(np.float64)
    right = _across(along[:, 0], normals)
    # Rows of the image run down; green of the normal map is up.
    turn = np.where((np.cross(normals, right) * along[:, 1]).sum(-1) > 0, -1.0, 1.0)
    axes = np.stack([right, turn[:, None] * np.cross(normals, right)], 1)
    carried = np.c_[np.einsum("vci,vai->vca", along, axes).reshape(-1, 4), relief.seen]
    shown = np.any((relief.seen > 0)[faces], axis=1)
    drawn = _spread(carried.astype(np.float32), relief.places / CROP_SIZE, triangles[torch.from_numpy(shown)], side)
    slopes = np.einsum("hwc,hwca->hwa", bump.slopes[0].numpy(), drawn[..., :4].reshape(side, side, 2, 2))
    seen = drawn[..., 4:]
    slopes *= seen / np.maximum(np.linalg.norm(slopes, axis=-1, keepdims=True), 1)
    bent = np.concatenate([-slopes, np.ones((side, side, 1))], -1)
    image = encode(bent / np.linalg.norm(bent, axis=-1, keepdims=True))
    places, tangents = relief.places / np.float32(CROP_SIZE), np.c_[right, turn].astype(np.float32)
    colours = None
    if photo is not None:
        crop, own = cv2.resize(photo[0], (side, side), interpolation=cv2.INTER_AREA), photo[1].astype(np.float32)
        around = _spread(np.c_[own, relief.seen], places, triangles[torch.from_numpy(shown)], side)
        colours = np.rint(around[..., :3] + seen.clip(0, 1) * (crop - around[..., :3])).astype(np.uint8)
    return NormalMap(image, places, tangents, shown, colours)


def _across(vectors: Float[np.ndarray, "V 3"], normals: Float[np.ndarray, "V 3"]) -> Float[np.ndarray, "V 3"]:
    """Project vectors to the tangent plane, as unit vectors; any tangent where they are along the normal."""
    across = vectors - normals * (vectors * normals).sum(-1, keepdims=True)
    length = np.linalg.norm(across, axis=-1, keepdims=True)
    other = np.cross(normals, np.where(np.abs(normals[:, :1]) < 0.7, [[1.0, 0, 0]], [[0, 1.0, 0]]))
    other /= np.maximum(np.linalg.norm(other, axis=-1, keepdims=True), 1e-9)
    return np.where(length > 1e-6, across / np.maximum(length, 1e-6), other)


def _spread(
    carried: Float32[np.ndarray, "V C"], places: Float32[np.ndarray, "V 2"], faces: Tensor, side: int
) -> Float32[np.ndarray, "R R C"]:
    """Draw vertex values into an image; of overlapping triangles the one with the higher last column is drawn."""
    depth = 0.5 - 0.5 * carried[:, -1:]
    clip = torch.from_numpy(np.c_[2 * places - 1, depth, np.ones_like(depth)].astype(np.float32))[None]
    values = torch.from_numpy(carried)[None]
    rast = rasterize(clip, faces, (side, side))
    return interpolate(values, rast, faces)[0].numpy()


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
        path.write_text(export_obj(mesh, include_normals=True, header=f"expportrait {__version__}"))
    else:
        kind, _, rest = export_ply(mesh, vertex_normal=True).partition(b"comment ")
        path.write_bytes(kind + f"comment expportrait {__version__}, ".encode() + rest)


JAW = "jawOpen"
GAZE = tuple(
    f"eyeLook{way}"
    for way in ("UpLeft", "DownLeft", "OutLeft", "InLeft", "UpRight", "DownRight", "InRight", "OutRight")
)
"""ARKit's names of the parts into which `head.gaze_pieces` splits the gaze."""
PHOTO = "photo"
"""Morph target from the neutral head to the one in the photo, with jaw and gaze."""


@dataclass(frozen=True)
class Poses:
    """A neutral head, its morph targets, and its pose."""

    base: Float32[np.ndarray, "V 3"]
    """Neutral vertices; head frame, m."""
    morphs: Morphs
    motion: Motion


def canonical(fit: HeadFit) -> HeadFit:
    """Return the fit with a neutral face, upright at the origin: only identity and static offset remain."""
    fields = ("expression", "jaw", "gaze", "rotation", "translation", "torso_rotation", "frame_offset")
    return replace(fit, **{name: np.zeros_like(getattr(fit, name)) for name in fields})


def exported_poses(fit: HeadFit, head: HeadModel, *, neutral: bool) -> Poses:
    """Make the morph targets; without animation the mesh is as in the photo, or with `neutral` the canonical head.

    Expressions are linear, so that their targets are exact. Jaw and eyes rotate about joints; their targets are exact
    only at weights 0 and 1, and a half-open jaw is up to 2 mm beside its arc.
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
