"""Subdivision of a head model's mesh as fixed sparse matrices, and heads whose dense mesh is subdivided once more.

Such a head has every dense quad or triangle split in four. Parameters, coarse vertices and landmarks are those of the
model that it is made from; only dense quantities differ.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from scipy import sparse
from torch import Tensor

from expportrait_cli.geometry.mesh import csr_tensor, scipy_matrix
from expportrait_cli.head.model import MARK, HeadModel, is_finer

NEGLIGIBLE = 1e-6
"""Weight below which entries of the operator are dropped: a micrometre to a metre."""


@dataclass(frozen=True)
class Subdivision:
    """Matrices and triangles of one subdivision.

    Dense vertices are, in this order, the coarse ones, one a face (only for quads), and one an edge.
    """

    smooth: sparse.csr_matrix
    """Catmull-Clark weights [V, N], for shapes. Rows sum to one."""
    linear: sparse.csr_matrix
    """Midpoint weights [V, N], for skinning weights and masks. Rows sum to one and are not negative."""
    triangles: Int64[np.ndarray, "F 3"]


def subdivide(quads: Int64[np.ndarray, "Q 4"], vertices: int) -> Subdivision:
    """Subdivide quads once by Catmull-Clark.

    An open border becomes the cubic B-spline of its own edges, independent of the inside.
    """
    faces = len(quads)
    corners = np.stack([quads, np.roll(quads, -1, 1)], -1).reshape(-1, 2)
    edges, edge_of_corner = np.unique(np.sort(corners, 1), axis=0, return_inverse=True)
    edge_of_corner = edge_of_corner.reshape(faces, 4)

    face_points = _average(np.arange(faces).repeat(4), quads.ravel(), (faces, vertices))
    mid_points = _average(np.arange(len(edges)).repeat(2), edges.ravel(), (len(edges), vertices))
    faces_of_edge = _average(edge_of_corner.ravel(), np.arange(faces).repeat(4), (len(edges), faces))
    border = np.bincount(edge_of_corner.ravel(), minlength=len(edges)) == 1
    inner = sparse.diags((~border).astype(float))
    outer = sparse.diags(border.astype(float))
    edge_points = inner @ (mid_points + faces_of_edge @ face_points) / 2 + outer @ mid_points

    smooth = sparse.vstack([_vertex_points(quads, edges, border, face_points, mid_points), face_points, edge_points])
    linear = sparse.vstack([sparse.identity(vertices), face_points, mid_points])
    first_face, first_edge = vertices, vertices + faces
    ring = np.stack([quads, first_edge + edge_of_corner, first_edge + np.roll(edge_of_corner, 1, 1)], -1)
    centre = np.broadcast_to(first_face + np.arange(faces)[:, None], (faces, 4))
    small_quads = np.stack([ring[..., 0], ring[..., 1], centre, ring[..., 2]], -1).reshape(-1, 4)
    triangles = np.concatenate([small_quads[:, [0, 1, 2]], small_quads[:, [0, 2, 3]]], 1).reshape(-1, 3)
    smooth, linear = sparse.csr_matrix(smooth), sparse.csr_matrix(linear)
    smooth.sort_indices()
    return Subdivision(smooth, linear, triangles)


def _vertex_points(
    quads: np.ndarray,
    edges: np.ndarray,
    border: np.ndarray,
    face_points: sparse.csr_matrix,
    mid_points: sparse.csr_matrix,
) -> sparse.csr_matrix:
    vertices = face_points.get_shape()[1]
    valence = np.bincount(edges.ravel(), minlength=vertices)
    mean_face = _average(quads.ravel(), np.arange(len(quads)).repeat(4), (vertices, len(quads))) @ face_points
    mean_mid = _average(edges.ravel(), np.arange(len(edges)).repeat(2), (vertices, len(edges))) @ mid_points
    n = np.maximum(valence, 3).astype(float)
    inner = sparse.diags(1 / n) @ mean_face + sparse.diags(2 / n) @ mean_mid + sparse.diags((n - 3) / n)

    ids = np.nonzero(border)[0]
    border_mid = _average(edges[ids].ravel(), ids.repeat(2), (vertices, len(edges))) @ mid_points
    on_border = np.bincount(edges[ids].ravel(), minlength=vertices) > 0
    outer = (border_mid + sparse.identity(vertices)) / 2
    return sparse.diags((~on_border).astype(float)) @ inner + sparse.diags(on_border.astype(float)) @ outer


def _average(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_matrix:
    counts = np.bincount(rows, minlength=shape[0])
    return sparse.csr_matrix((1 / counts[rows], (rows, columns)), shape=shape)


@dataclass(frozen=True)
class Cut:
    """The kept part of a mesh that was cut."""

    kept: Int64[np.ndarray, " N"]
    """Indices of its vertices in the whole mesh."""
    faces: Int64[np.ndarray, "F_coarse 3"]


def cut_above(points: Float[np.ndarray, "S 3"], faces: Int64[np.ndarray, "F_all 3"], floor_m: float) -> Cut:
    """Keep the triangles with a vertex above the height `floor_m`."""
    above = faces[(points[faces, 1] > floor_m).any(1)]
    kept, index = np.unique(above, return_inverse=True)
    return Cut(kept, index.reshape(-1, 3))


def subdivide_triangles(faces: Int64[np.ndarray, "F_coarse 3"], vertices: int) -> Subdivision:
    """Split every triangle in four. Dense vertices are the coarse ones, unmoved, then one an edge.

    `smooth` has the modified butterfly weights (Zorin, Schröder and Sweldens, "Interpolating Subdivision for Meshes
    with Arbitrary Topology", SIGGRAPH 1996): the surface is smooth and still goes through the vertices of the model.
    Edges that touch a border are halved plainly.
    """
    apex = {}
    for i, j, k in faces.tolist():
        apex[i, j], apex[j, k], apex[k, i] = k, i, j
    corners = np.stack([faces, np.roll(faces, -1, 1)], -1).reshape(-1, 2)
    edges, edge_of_corner = np.unique(np.sort(corners, 1), axis=0, return_inverse=True)
    middle = vertices + edge_of_corner.reshape(-1, 3)

    count = len(edges)
    linear = sparse.csr_matrix(
        (np.full(2 * count, 0.5), (np.arange(count).repeat(2), edges.ravel())), (count, vertices)
    )
    rows, columns, weights = [], [], []
    for row, (first, second) in enumerate(edges.tolist()):
        stencil = _stencil(_ring(apex, first, second), _ring(apex, second, first), first, second)
        rows += [row] * len(stencil)
        columns += [vertex for vertex, _ in stencil]
        weights += [weight for _, weight in stencil]
    smooth = sparse.csr_matrix((weights, (rows, columns)), (count, vertices))

    i, j, k = faces.T
    a, b, c = middle.T
    triangles = np.stack([[i, a, c], [a, j, b], [c, b, k], [a, b, c]]).transpose(2, 0, 1).reshape(-1, 3)
    own = sparse.identity(vertices)
    smooth, linear = (sparse.csr_matrix(sparse.vstack([own, part])) for part in (smooth, linear))
    smooth.sort_indices()
    return Subdivision(smooth, linear, triangles)


def _ring(apex: dict[tuple[int, int], int], centre: int, start: int) -> list[int]:
    """Neighbours of the vertex `centre` in order around it, from `start`; empty on a border."""
    ring, at = [], start
    while at is not None and (at != start or not ring):
        ring.append(at)
        at = apex.get((centre, at))
    return ring if at == start else []


def _stencil(ring: list[int], other: list[int], first: int, second: int) -> list[tuple[int, float]]:
    """Vertices and weights for the new point on an edge; each ring starts with the edge's other end."""
    if len(ring) < 3 or len(other) < 3:
        return [(first, 0.5), (second, 0.5)]
    ends = [(first, ring), (second, other)]
    # If one end is irregular (valence other than 6), its weights alone are used.
    irregular = [end for end in ends if len(end[1]) != 6]
    chosen = irregular or ends
    return [(v, w / len(chosen)) for end in chosen for v, w in _one_sided(*end)]


def _one_sided(centre: int, ring: list[int]) -> list[tuple[int, float]]:
    """Vertices and weights of one end of an edge; the weights sum to one."""
    valence = len(ring)
    if valence == 6:
        return [(centre, 1.0), *zip((ring[1], ring[5], ring[2], ring[4]), (1 / 8, 1 / 8, -1 / 8, -1 / 8), strict=True)]
    if valence == 3:
        around = [5 / 12, -1 / 12, -1 / 12]
    elif valence == 4:
        around = [3 / 8, 0.0, -1 / 8, 0.0]
    else:
        turn = 2 * np.pi * np.arange(valence) / valence
        around = ((0.25 + np.cos(turn) + np.cos(2 * turn) / 2) / valence).tolist()
    return [(centre, 0.75), *zip(ring, around, strict=True)]


@dataclass(frozen=True)
class Finer:
    """A head with `V_fine` dense vertices, the first `V` of which are those of the head that was subdivided."""

    head: HeadModel
    lift: sparse.csr_matrix
    """Midpoint weights [V_fine, V], for masks. Rows sum to one and are not negative."""
    carry: sparse.csr_matrix
    """Weights [V_fine, V] for offsets: old vertices keep theirs, new ones are interpolated smoothly. With linear
    interpolation every edge of the coarser mesh would be visible as a crease."""

    def lifted(self, values: Float32[np.ndarray, "V *C"]) -> Float32[np.ndarray, "V_fine *C"]:
        """Interpolate offsets of the dense vertices to the finer mesh; exactly zero where all neighbours are zero."""
        moved = self.lift @ (values != 0).astype(np.float64) > 0
        return np.where(moved, self.carry @ values.astype(np.float64), 0).astype(np.float32)


def finer(head: HeadModel) -> Finer:
    """Subdivide the dense mesh of a head with one subdivision. 0.4 s the first time.

    Shapes have the weights of the first level (Catmull-Clark for quads, modified butterfly for triangles), corrected by
    `_kept`, so that the surface is as smooth and still passes through the fitted vertices. Skinning weights, masks and
    parts are interpolated linearly. Landmarks keep their triangles, whose corners are vertices of the finer mesh too:
    they move by at most 0.04 mm.

    Raises:
        ValueError: the head has two subdivisions already.
    """
    if is_finer(head.name):
        raise ValueError(f"{head.name} is subdivided twice already")
    division = _division(head.dense_faces.cpu().numpy().tobytes(), len(head.parts))
    device, lift = head.template.device, division.linear
    smooth = sparse.csr_matrix(_kept(division.smooth))
    operator = sparse.csr_matrix(smooth @ scipy_matrix(head.operator))
    operator.data[np.abs(operator.data) < NEGLIGIBLE] = 0
    operator.eliminate_zeros()
    parts = _parts(lift, head)
    skin = parts == head.part_names.index("skin")

    def real(values: Float[np.ndarray, "V_fine *C"]) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.float32)).to(device)

    made = replace(
        head,
        name=head.name + MARK,
        skinning=real(lift @ head.skinning.cpu().double().numpy()),
        dense_faces=torch.from_numpy(division.triangles).to(device),
        operator=csr_tensor(operator).to(device),
        parts=torch.from_numpy(parts).to(device),
        facial_mask=real((lift @ head.facial_mask.cpu().double().numpy()) * skin),
    )
    old = sparse.identity(len(head.parts), format="csr")
    return Finer(made, lift, sparse.csr_matrix(sparse.vstack([old, smooth[len(head.parts) :]])))


@lru_cache(maxsize=2)
def _division(faces: bytes, vertices: int) -> Subdivision:
    """Subdivide a topology, given as the bytes of its triangles (hashable for the cache)."""
    triangles = np.frombuffer(faces, np.int64).reshape(-1, 3)
    quads = _quads(triangles)
    return subdivide_triangles(triangles, vertices) if quads is None else subdivide(quads, vertices)


def _quads(triangles: Int64[np.ndarray, "F 3"]) -> Int64[np.ndarray, "Q 4"] | None:
    """The quads that `subdivide` split along their diagonals; None for a mesh of triangles."""
    first, second = triangles[0::2], triangles[1::2]
    if len(first) != len(second) or not np.array_equal(first[:, [0, 2]], second[:, [0, 1]]):
        return None
    return np.concatenate([first, second[:, 2:]], 1)


def _kept(smooth: sparse.csr_matrix) -> sparse.csr_matrix:
    """Correct subdivision weights so that old vertices hardly move: apply them to 2 x - S x instead of x.

    S is the part of `smooth` for the old vertices. Catmull-Clark moves them inwards by 0.04 mm on average and up to 0.2
    mm in the face; 0.002 and 0.04 mm remain. For an interpolating scheme S is the identity, and nothing changes.
    """
    count = smooth.get_shape()[1]
    return smooth @ (2 * sparse.identity(count, format="csr") - smooth[:count])


def _parts(lift: sparse.csr_matrix, head: HeadModel) -> np.ndarray:
    """Part of each finer vertex: skin if any vertex that it depends on is skin, else the most frequent part."""
    own, skin = head.parts.cpu().numpy(), head.part_names.index("skin")
    shares = np.stack([lift @ (own == part).astype(float) for part in range(len(head.part_names))], -1)
    return np.where(shares[:, skin] > 0, skin, shares.argmax(1)).astype(np.uint8)
