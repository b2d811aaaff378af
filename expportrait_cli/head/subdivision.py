"""One 1-to-4 subdivision of a quad mesh as fixed sparse matrices."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from scipy import sparse


@dataclass(frozen=True)
class Subdivision:
    """Dense vertices are the coarse ones, then one a face, then one an edge, in that order."""

    smooth: sparse.csr_matrix
    """Catmull-Clark weights [V, N], for shapes. Rows sum to one."""
    linear: sparse.csr_matrix
    """Midpoint weights [V, N], for skinning weights and masks. Rows sum to one and are not negative."""
    triangles: Int64[np.ndarray, "F 3"]


def subdivide(quads: Int64[np.ndarray, "Q 4"], vertices: int) -> Subdivision:
    """Subdivide once.

    An open border follows the cubic B-spline of its own edges, so that parts stay where they were cut.
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
