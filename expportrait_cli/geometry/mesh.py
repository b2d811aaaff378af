"""Triangle meshes, and fixed sparse maps between fields on their vertices."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from scipy import sparse
from torch import Tensor


def csr_tensor(matrix: sparse.csr_matrix | sparse.csr_array) -> Tensor:
    """Convert a sparse SciPy matrix to a torch CSR tensor in single precision."""
    matrix.sort_indices()
    with warnings.catch_warnings():
        # torch warns that CSR tensors are in beta; only products with dense matrices are used here.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int64)),
            torch.from_numpy(matrix.indices.astype(np.int64)),
            torch.from_numpy(matrix.data.astype(np.float32)),
            size=matrix.shape,
            check_invariants=True,
        )


def scipy_matrix(matrix: Tensor, dtype: type = np.float64) -> sparse.csr_matrix:
    """Convert a sparse torch tensor, CSR or coalesced COO, to a SciPy CSR matrix."""
    values = matrix.values().cpu().numpy().astype(dtype)
    if matrix.layout == torch.sparse_csr:
        columns, rows = matrix.col_indices().cpu().numpy(), matrix.crow_indices().cpu().numpy()
        return sparse.csr_matrix((values, columns, rows), tuple(matrix.shape))
    return sparse.csr_matrix((values, matrix.indices().cpu().numpy()), tuple(matrix.shape))


class FieldMap:
    """Differentiable sparse map between fields on vertices; ten times as fast as with torch's COO tensors."""

    def __init__(self, matrix: sparse.csr_matrix):
        """`matrix` is [Q, P]."""
        self._forward, self._backward = csr_tensor(matrix), csr_tensor(sparse.csr_matrix(matrix.T))

    def __call__(self, values: Float[Tensor, "T P C"], times: int = 1) -> Float[Tensor, "T Q C"]:
        """Apply the map to every frame and channel, `times` times; more than once only for a square matrix."""
        frames, points, channels = values.shape
        columns = values.transpose(0, 1).reshape(points, -1)
        mapped = _Product.apply(columns, self._forward, self._backward, times)
        return mapped.reshape(-1, frames, channels).transpose(0, 1)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, columns, matrix, transposed, times):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.transposed, ctx.times = transposed, times
        return _power(matrix, columns, times)

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _power(ctx.transposed, gradient, ctx.times), None, None, None


def _power(matrix: Tensor, columns: Tensor, times: int) -> Tensor:
    matrix = matrix.to(columns.dtype)
    for _ in range(times):
        columns = matrix @ columns
    return columns


@dataclass(frozen=True)
class Edges:
    """The `E` edges of a mesh, each once, with the opposite vertices of their triangles."""

    verts: Int64[Tensor, "E 2"]
    """The two end vertices of each edge, the lower index first."""
    opposite: Int64[Tensor, "E 2"]
    """Third vertices of the triangles at each edge; the second is -1 unless exactly two triangles meet there."""


def face_normals(verts: Float[Tensor, "*B V 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "*B F 3"]:
    """Cross product of two sides of each face: a normal whose length is twice the face's area."""
    return _crosses(verts.movedim(-2, 0), faces).movedim(0, -2)


def vertex_normals(verts: Float[Tensor, "*B V 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "*B V 3"]:
    """Average face normals at each vertex, weighted by face area.

    A vertex without faces gets the zero vector. Differentiable, also at degenerate faces.
    """
    # With vertices as first axis the batch is contiguous in memory, which halves the time.
    points = verts.movedim(-2, 0).contiguous()
    by_face = _crosses(points, faces)
    summed = torch.zeros_like(points)
    for corner in range(3):
        summed = summed.index_add(0, faces[:, corner], by_face)
    return normalize(summed).movedim(0, -2)


def surface_gradients(
    verts: Float[Tensor, "*B V 3"], faces: Int[Tensor, "F 3"], values: Float[Tensor, "V C"]
) -> Float[Tensor, "*B V C 3"]:
    """Gradient of vertex values along the surface, per unit of length: the mean of the faces' ones, by area."""
    points = verts.movedim(-2, 0).contiguous()
    by_face = _crosses(points, faces)
    area = by_face.norm(dim=-1, keepdim=True)
    corners = [points.index_select(0, faces[:, corner]) for corner in range(3)]
    summed, weight = points.new_zeros(*points.shape[:-1], values.shape[1], 3), torch.zeros_like(points[..., :1])
    # Twice the area times the gradient of a linear function on a triangle, rotated by 90 degrees.
    steps = torch.zeros_like(by_face)[..., None, :].repeat(*[1] * (points.ndim - 1), values.shape[1], 1)
    for corner in range(3):
        level = values[faces[:, corner]].view(-1, *[1] * (points.ndim - 2), values.shape[1], 1)
        steps += level * (corners[(corner + 2) % 3] - corners[(corner + 1) % 3])[..., None, :]
    across = torch.linalg.cross((by_face / area.clamp(min=1e-15))[..., None, :].expand_as(steps), steps)
    for corner in range(3):
        summed = summed.index_add(0, faces[:, corner], across)
        weight = weight.index_add(0, faces[:, corner], area)
    return (summed / weight[..., None].clamp(min=1e-15)).movedim(0, -3)


def _crosses(points: Float[Tensor, "V *B 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "F *B 3"]:
    a, b, c = (points.index_select(0, faces[:, corner]) for corner in range(3))
    return torch.linalg.cross(b - a, c - a)


def normalize(vectors: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3"]:
    """Scale to unit length; the zero vector stays zero, with zero gradient."""
    square = (vectors * vectors).sum(-1, keepdim=True)
    # The double `where` keeps the backward pass finite at zero length.
    zero = square < 1e-30
    return torch.where(
        zero, torch.zeros_like(vectors), vectors * torch.where(zero, torch.ones_like(square), square).rsqrt()
    )


def edges(faces: Int[Tensor, "F 3"]) -> Edges:
    """Find the edges of a mesh whose triangles share vertices by index.

    Costs a sort of 3F integers: do it once per topology, not per frame.
    """
    f = faces.long()
    ends = torch.cat([f[:, [0, 1]], f[:, [1, 2]], f[:, [2, 0]]]).sort(-1).values
    third = torch.cat([f[:, 2], f[:, 0], f[:, 1]])
    stride = int(f.max()) + 1 if len(f) else 1
    key, order = (ends[:, 0] * stride + ends[:, 1]).sort(stable=True)
    unique, count = torch.unique_consecutive(key, return_counts=True)
    first = count.cumsum(0) - count
    second = torch.where(count == 2, third[order[(first + 1).clamp(max=max(len(order) - 1, 0))]], -1)
    return Edges(
        torch.stack([unique // stride, unique % stride], -1),
        torch.stack([third[order[first]], second], -1),
    )


def directed_edges(faces: Int[np.ndarray, "F 3"]) -> Int[np.ndarray, "E 2"]:
    """Both directions of the three sides of every triangle, E = 6F; an edge of two triangles occurs four times."""
    sides = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return np.concatenate([sides, sides[:, ::-1]])


def laplacian(faces: Int[Tensor, "F 3"], vertex_count: int) -> Float[Tensor, "V V"]:
    """Combinatorial Laplacian D - W as a coalesced sparse matrix: symmetric, positive semi-definite.

    Rows are not divided by their valence: a symmetrised row-normalised Laplacian diverged as a preconditioner.
    """
    a, b = edges(faces).verts.unbind(-1)
    one = torch.ones(len(a), device=faces.device)
    places = torch.stack([torch.cat([a, b, a, b]), torch.cat([b, a, a, b])])
    values = torch.cat([-one, -one, one, one])
    return torch.sparse_coo_tensor(places, values, (vertex_count, vertex_count), check_invariants=False).coalesce()


def averaging(faces: Int[Tensor, "F 3"], vertex_count: int) -> Float[Tensor, "V V"]:
    """One smoothing step as a sparse matrix: half each vertex, half the mean of its neighbours. Rows sum to one."""
    matrix = laplacian(faces, vertex_count)
    (row, column), value = matrix.indices(), matrix.values()
    degree = torch.zeros(vertex_count, device=faces.device).index_put_((row[row == column],), value[row == column])
    off = row != column
    diagonal = torch.arange(vertex_count, device=faces.device)
    index = torch.cat([matrix.indices()[:, off], torch.stack([diagonal, diagonal])], 1)
    half = torch.where(degree > 0, 0.5, 1.0)
    values = torch.cat([-0.5 * value[off] / degree[row[off]], half])
    return torch.sparse_coo_tensor(index, values, (vertex_count, vertex_count), check_invariants=False).coalesce()


def grown(chosen: Bool[np.ndarray, " V"], faces: Int[np.ndarray, "F 3"], *, rings: int = 1) -> Bool[np.ndarray, " V"]:
    """Mask of the chosen vertices and those of `rings` rings of triangles around them."""
    more = chosen.copy()
    for _ in range(rings):
        more[faces[more[faces].any(1)]] = True
    return more


def faded(chosen: Bool[np.ndarray, " V"], faces: Int64[np.ndarray, "F 3"], *, rings: int) -> Float[np.ndarray, " V"]:
    """Weight 1 on the chosen vertices, falling to 0 over `rings` rings of triangles."""
    share = chosen.astype(np.float64)
    count = np.maximum(np.bincount(faces.ravel(), minlength=len(share)), 1)
    for _ in range(rings):
        around = np.bincount(faces.ravel(), np.repeat(_centres(share, faces), 3), len(share)) / count
        share = np.maximum(chosen, around)
    return share


def relaxed(
    points: Float[np.ndarray, "V 3"], weight: Float[np.ndarray, " V"], faces: Int64[np.ndarray, "F 3"], steps: int
) -> Float[np.ndarray, "V 3"]:
    """Smooth points: in each step move them by `weight` (0..1) towards the mean of the triangles around them."""
    count = np.maximum(np.bincount(faces.ravel(), minlength=len(points)), 1)[:, None]
    # Restricted to triangles that move: an ear is a hundredth of a head.
    faces = faces[(weight > 0)[faces].any(1)]
    moving = np.flatnonzero(weight)
    share, points = weight[moving, None], points.copy()
    for _ in range(steps):
        centres = _centres(points, faces)
        around = np.stack([np.bincount(faces.ravel(), np.repeat(c, 3), len(points)) for c in centres.T], -1)[moving]
        points[moving] += share * (around / count[moving] - points[moving])
    return points


def _centres(values: Float[np.ndarray, "V *C"], faces: Int64[np.ndarray, "F 3"]) -> Float[np.ndarray, "F *C"]:
    """Mean of each triangle's corners."""
    a, b, c = faces.T
    return (values[a] + values[b] + values[c]) / 3
