"""Regions of an SMPL-X head, computed from its geometry: the published masks have other licences."""

from itertools import pairwise, product

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor

from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.head import model
from expportrait_cli.head.facemesh import FACE_OVAL
from expportrait_cli.head.finer import Subdivision
from expportrait_cli.head.model import HeadModel

PARTS = ("skin", "eye_left", "eye_right", "teeth_upper", "teeth_lower", "mouth_cavity", "eye_socket")
"""Names of the parts, as in every head; those of the teeth are empty, because SMPL-X has none."""
SKIN, CAVITY, SOCKET = 0, 5, 6
CELL_M, HIDDEN_M = 0.004, 0.006
"""Visibility test: CELL_M is the side of a grid cell; a vertex is hidden if it lies HIDDEN_M behind the foremost point
of its cell (slopes of 60 degrees do not)."""
MOUTH_REACH_M, MOUTH_BELOW_EYES_M = 0.055, 0.02
"""Limits of the mouth cavity: largest distance from the middle of the lips, and least distance below the eyes, m."""
NOSE_BASE, NOSTRILS_M = 16, 0.018
"""Index of the landmark at the nose's base, and distance from it, m, up to which hidden vertices are nostrils."""
LIPS_M = 0.005
"""Distance from the inner lip contour up to which hidden vertices are lips, m."""
SOCKET_REACH = 1.9
"""Radius of the eye socket around the eye joint, in radii of the eyeball."""
MASK_SOFT_M = 0.012
"""Width over which the facial mask fades out, m."""
BROWS, OUTER_LIPS, INNER_LIPS = (range(0, 5), range(5, 10)), range(31, 43), range(43, 51)
"""Indices among the file's own 51 landmarks."""
BROW_M, LIP_BORDER_M = 0.0035, 0.0015
SKIN_COLOUR, LIP_COLOUR, BROW_COLOUR = np.array([[0.82, 0.62, 0.52], [0.62, 0.22, 0.24], [0.33, 0.22, 0.17]])
PART_COLOURS = np.array([SKIN_COLOUR, *[[0.95] * 3] * 2, *[[0.9, 0.9, 0.85]] * 2, [0.25, 0.05, 0.05], [0.5, 0.3, 0.3]])


def coarse_parts(
    points: Float[np.ndarray, "N 3"],
    division: Subdivision,
    eyes: Bool[np.ndarray, "2 N"],
    eye_joints: Float[np.ndarray, "2 3"],
    marks: Float[np.ndarray, "51 3"],
) -> UInt8[np.ndarray, " N"]:
    """Part of every coarse vertex. `eyes`: masks of the eyeballs, left first; `marks`: the file's landmarks, m.

    Skin that is invisible from all directions becomes mouth cavity or eye socket, by its position.
    """
    hidden = _unseen(division.smooth @ points, division.triangles)[: len(points)]
    mouth = marks[OUTER_LIPS].mean(0)
    low, high = mouth - MOUTH_REACH_M, [mouth[0] + MOUTH_REACH_M, eye_joints[:, 1].min() - MOUTH_BELOW_EYES_M, np.inf]
    low[2] = 0
    inner = [*INNER_LIPS, INNER_LIPS[0]]
    # Lips that touch hide each other, but are skin.
    lips = np.min([_to_segment(points, marks[a], marks[b]) for a, b in pairwise(inner)], 0) < LIPS_M
    nostrils = np.linalg.norm(points - marks[NOSE_BASE], axis=1) < NOSTRILS_M
    parts = np.zeros(len(points), np.uint8)
    parts[hidden & ((points > low) & (points < high)).all(1) & ~nostrils & ~lips] = CAVITY
    for part, (ball, joint) in enumerate(zip(eyes, eye_joints, strict=True), 1):
        distance = np.linalg.norm(points - joint, axis=1)
        parts[hidden & (distance < SOCKET_REACH * distance[ball].mean())] = SOCKET
        parts[ball] = part
    return parts


def _unseen(verts: Float[np.ndarray, "V 3"], triangles: Int64[np.ndarray, "F 3"]) -> Bool[np.ndarray, " V"]:
    """Mask of vertices that are invisible from all of 26 directions: they face away, or lie behind the surface.

    The surface is tested as points (vertices and triangle centres) in grid cells.
    """
    points = np.concatenate([verts, verts[triangles].mean(1)])
    normals = vertex_normals(torch.from_numpy(verts), torch.from_numpy(triangles)).numpy()
    unseen = np.ones(len(verts), bool)
    for direction in (np.array(d) / np.linalg.norm(d) for d in product((-1, 0, 1), repeat=3) if any(d)):
        across = np.linalg.svd(direction[None])[2][1:]
        place = np.floor(points @ across.T / CELL_M).astype(int)
        place -= place.min(0)
        cell = place[:, 0] * (place[:, 1].max() + 1) + place[:, 1]
        depth = points @ direction
        nearest = np.full(cell.max() + 1, -np.inf)
        np.maximum.at(nearest, cell, depth)
        is_behind = (depth < nearest[cell] - HIDDEN_M)[: len(verts)]
        unseen &= (normals @ direction <= 0) | is_behind
    return unseen


def dense_parts(parts: UInt8[np.ndarray, " N"], division: Subdivision) -> UInt8[np.ndarray, " V"]:
    """Part of each dense vertex: skin if any vertex that it depends on is skin, so that cavities keep a rim of skin."""
    shares = np.stack([division.linear @ (parts == part).astype(float) for part in range(len(PARTS))], -1)
    return np.where(shares[:, SKIN] > 0, SKIN, shares.argmax(1)).astype(np.uint8)


def colours(head: HeadModel, marks: Float[np.ndarray, "51 3"]) -> Float32[Tensor, "V 3"]:
    """RGB of the dense vertices, 0..1, for the landmark detector, because SMPL-X has no texture.

    Lips fill the outline of the file's landmarks 31 to 42, with soft borders; brows are strokes along 0 to 9; eyeballs
    are white, cavities dark.
    """
    verts = model.dense(head, head.template).numpy().astype(np.float64)
    lips = _inside(verts[:, :2], marks[OUTER_LIPS][:, :2])
    lips = np.clip(0.5 + lips / LIP_BORDER_M, 0, 1) * (verts[:, 2] > 0)
    brows = np.zeros(len(verts))
    for brow in BROWS:
        distance = np.min([_to_segment(verts, a, b) for a, b in pairwise(marks[brow])], 0)
        brows = np.maximum(brows, np.clip(1.5 - distance / BROW_M, 0, 1))
    paint = SKIN_COLOUR + lips[:, None] * (LIP_COLOUR - SKIN_COLOUR)
    paint = paint + brows[:, None] * (BROW_COLOUR - paint)
    parts = head.parts.numpy()
    return torch.from_numpy(np.float32(np.where(parts[:, None] == SKIN, paint, PART_COLOURS[parts])))


def facial_mask(head: HeadModel) -> Float32[Tensor, " V"]:
    """Facial mask: 1 inside FaceMesh's outline of the face, 0 outside and off the skin, smooth over `MASK_SOFT_M`.

    Inside and outside are decided on a cylinder around the head's vertical axis, so that cheeks are not foreshortened.
    """
    verts = model.dense(head, head.template)
    outline = model.landmarks(head, verts)[FACE_OVAL].numpy().astype(np.float64)
    radius = float(np.median(np.hypot(outline[:, 0], outline[:, 2])))
    depth = _inside(_unrolled(verts.numpy(), radius), _unrolled(outline, radius))
    share = np.clip(0.5 + depth / MASK_SOFT_M, 0, 1)
    soft = torch.from_numpy(np.float32(share * share * (3 - 2 * share)))
    return soft * head.part("skin")


def _unrolled(points: np.ndarray, radius: float) -> np.ndarray:
    return np.stack([np.arctan2(points[:, 0], points[:, 2]) * radius, points[:, 1]], -1)


def _inside(points: Float[np.ndarray, "P 2"], outline: Float[np.ndarray, "Q 2"]) -> Float[np.ndarray, " P"]:
    """Signed distance of points from a closed outline, positive inside it."""
    # OpenCV uses single precision, which is enough for a head in metres.
    contour = outline.astype(np.float32)[:, None]
    return np.array([cv2.pointPolygonTest(contour, point, True) for point in points.astype(float).tolist()])


def _to_segment(points: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    share = np.clip((points - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
    return np.linalg.norm(points - a - share[:, None] * (b - a), axis=1)
