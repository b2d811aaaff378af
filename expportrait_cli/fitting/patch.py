"""The patch of dense vertices that folds are fitted on, with smoothing, preconditioning and posing of fields on it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Float32, Int, Int64
from scipy.sparse.linalg import splu
from torch import Tensor

from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.geometry.mesh import FieldMap, averaging, laplacian, scipy_matrix, vertex_normals
from expportrait_cli.head.finer import Finer

TO_NORMALS = (1.0, -1.0, -1.0)
"""Signs from OpenCV's camera axes (y down, z away) to those of normal maps (y up, z to the viewer)."""


@dataclass(frozen=True)
class Patch:
    """`P` of the `V` dense vertices: those that may move, and their neighbours, which their normals depend on."""

    vertices: Int64[np.ndarray, " P"]
    faces: Int64[Tensor, "F_patch 3"]
    """Triangles between them, as indices into `vertices`."""
    mask: Float32[Tensor, " P"]
    """Factor, 0..1, on the offset of each vertex; exactly 0 on the rim, which is there only for normals."""
    below: "Below | None" = None
    """The same patch on the mesh with one subdivision less; None on that mesh itself."""

    @classmethod
    def of(cls, faces: Int64[np.ndarray, "F 3"], mask: Float32[np.ndarray, " V"]) -> "Patch":
        """Make a patch of every vertex with a positive mask, and the ring of vertices around them."""
        touched = (mask > 0)[faces].any(1)
        vertices = np.unique(faces[touched])
        index = np.full(len(mask), -1)
        index[vertices] = np.arange(len(vertices))
        return cls(vertices, torch.from_numpy(index[faces[touched]]), torch.from_numpy(mask[vertices]))

    @classmethod
    def above(cls, below: "Patch", mesh: Finer, mask: Float32[np.ndarray, " V"]) -> "Patch":
        """Make the patch of a finer mesh over a patch of the plain one."""
        own = cls.of(mesh.head.dense_faces.numpy(), mask)
        lift, carry = (sp.csr_matrix(w[own.vertices][:, below.vertices]) for w in (mesh.lift, mesh.carry))
        return replace(own, below=Below(below, lift, sp.csr_matrix(carry, dtype=np.float32), own.mask.numpy() > 0))

    @cached_property
    def laplacian(self) -> sp.csc_matrix:
        """Combinatorial Laplacian D - W."""
        return sp.csc_matrix(scipy_matrix(laplacian(self.faces, len(self.vertices))))

    def preconditioner(self, smoothness: float) -> "Preconditioner":
        """Factorise M = I + smoothness L of u = M d, once a smoothness; 30 ms for 11,000 vertices, 0.4 s for 46,000."""
        if smoothness not in self._factorised:
            matrix = sp.eye(len(self.vertices), format="csc") + smoothness * self.laplacian
            self._factorised[smoothness] = Preconditioner(matrix)
        return self._factorised[smoothness]

    @cached_property
    def _factorised(self) -> "dict[float, Preconditioner]":
        return {}

    @cached_property
    def _averaging(self) -> FieldMap:
        return FieldMap(scipy_matrix(averaging(self.faces, len(self.vertices))))

    def smooth(self, values: Float[Tensor, "T P C"], steps: int) -> Float[Tensor, "T P C"]:
        """Low-pass over the surface: a Gaussian whose sigma is about edge length x sqrt(steps) / 2.

        The edges are those of one subdivision: with `below`, that coarser patch is smoothed, over the same width.
        """
        if self.below is not None:
            return self.below.up(self.below.patch.smooth(self.below.down(values), steps))
        return self._averaging(values, steps)

    def within(self, mask: Bool[np.ndarray, " V"]) -> Bool[Tensor, " P"]:
        """Select the patch's vertices from a mask of dense vertices."""
        return torch.from_numpy(mask[self.vertices])


@dataclass(frozen=True)
class Below:
    """A coarser patch of `P` vertices, and the maps between its vertices and the `P_fine` of the finer one."""

    patch: Patch
    weights: sp.csr_matrix
    """Linear interpolation [P_fine, P]: rows sum to one, or less at the rim, where neighbours are left out."""
    carry: sp.csr_matrix
    """Smooth interpolation [P_fine, P], see `Finer.carry`."""
    inside: Bool[np.ndarray, " P_fine"]
    """True where the finer patch may move."""

    def lifted(self, values: Float[np.ndarray, "T P C"]) -> Float32[np.ndarray, "T P_fine C"]:
        """Masked offsets on the finer mesh, smooth between the vertices; exactly zero where it may not move."""
        frames, points, channels = values.shape
        columns = self.carry @ values.transpose(1, 0, 2).reshape(points, -1).astype(np.float32)
        return (columns * self.inside[:, None]).reshape(-1, frames, channels).transpose(1, 0, 2)

    @cached_property
    def up(self) -> FieldMap:
        """Linear interpolation to the finer patch, with weights scaled to sum to one."""
        return _averages(self.weights)

    @cached_property
    def down(self) -> FieldMap:
        """Weighted means of the finer vertices around each vertex."""
        return _averages(sp.csr_matrix(self.weights.T))


def _averages(weights: sp.csr_matrix) -> FieldMap:
    """Rows divided by their sum; empty rows stay zero."""
    total = np.asarray(weights.sum(1))[:, 0]
    return FieldMap(sp.csr_matrix(sp.diags(1 / np.maximum(total, 1e-9)) @ weights))


class Preconditioner:
    """Maps between a field d [T,P,C] and the variable u = M d of smooth gradient steps (Nicolet et al. 2021).

    Ten steps of u reach what 400 of d do, because one step spreads over the whole face.
    """

    def __init__(self, matrix: sp.csc_matrix):
        self._matrix = matrix
        # These options use that the matrix is symmetric: half the fill and a third of the time of the defaults.
        self._factor = splu(matrix, "MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})

    def variable(self, field: Float[Tensor, "T P C"]) -> Float[Tensor, "T P C"]:
        """The variable u of a given field."""
        return _columnwise(self._matrix.__matmul__, field)

    def field(self, variable: Float[Tensor, "T P C"]) -> Float[Tensor, "T P C"]:
        """The field d of a given u. Differentiable; M is symmetric, so the backward pass is the same solve."""
        return _Solve.apply(variable, self._factor)


class LocalPreconditioner(Preconditioner):
    """Preconditioner of three channels: the first on the whole patch, the other two on a part of its vertices.

    Outside the part the last two channels are zero, and they fade out towards its border.
    """

    def __init__(self, patch: Patch, smoothness: float, part: Int64[np.ndarray, " S"]):
        super().__init__(sp.eye(len(patch.vertices), format="csc") + smoothness * patch.laplacian)
        self._part = torch.from_numpy(part)
        local = patch.laplacian[part][:, part]
        self._local = Preconditioner(sp.eye(len(part), format="csc") + smoothness * local)

    def variable(self, field: Float[Tensor, "T P 3"]) -> Float[Tensor, "T P 3"]:
        """The variable u of a given field."""
        return self._each(field, super().variable, self._local.variable)

    def field(self, variable: Float[Tensor, "T P 3"]) -> Float[Tensor, "T P 3"]:
        """The field d of a given u, differentiable."""
        return self._each(variable, super().field, self._local.field)

    def _each(self, values: Tensor, whole, local) -> Tensor:
        beside = torch.zeros_like(values[..., 1:]).index_copy(1, self._part, local(values[:, self._part, 1:]))
        return torch.cat([whole(values[..., :1]), beside], -1)


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx, variable, factor):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.factor = factor
        return _columnwise(factor.solve, variable)

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _columnwise(ctx.factor.solve, gradient), None


def _columnwise(apply, values: Tensor) -> Tensor:
    """Apply a function of [P, columns] in float64 to [T,P,C]."""
    frames, points, channels = values.shape
    rows = values.detach().transpose(1, 2).reshape(-1, points).double().cpu().numpy()
    # Column by column in memory, which is how the solver works.
    result = np.ascontiguousarray(apply(rows.T).T)
    return torch.from_numpy(result).to(values).reshape(frames, channels, points).transpose(1, 2)


@dataclass(frozen=True)
class Surface:
    """A patch in `T` frames: offsets, and the posed vertices with normals and projections."""

    offset: Float[Tensor, "T P 3"]
    """Offsets in the canonical frame, times the mask, m."""
    verts: Float[Tensor, "T P 3"]
    """Camera, m."""
    find_normals: Callable[[], Tensor]
    """Computes `normals`: the outline of a person needs none."""
    px: Float[Tensor, "T P 2"]
    """Projections, crop px, pixel centres at +0.5; without gradient."""

    @classmethod
    def of(
        cls,
        offset: Float[Tensor, "T P 3"],
        verts: Float[Tensor, "T P 3"],
        faces: Int[Tensor, "F 3"],
        *,
        focal_px: float,
    ) -> "Surface":
        """Add what follows from the vertices in the camera: normals, and where the crop shows them."""
        seen = verts.detach()
        return cls(
            offset,
            verts,
            lambda: vertex_normals(verts, faces) * verts.new_tensor(TO_NORMALS),
            seen[..., :2] / seen[..., 2:] * focal_px + CROP_SIZE / 2,
        )

    @cached_property
    def normals(self) -> Float[Tensor, "T P 3"]:
        """Camera in the axes of normal maps: x right, y up, z to the viewer."""
        return self.find_normals()


@dataclass(frozen=True)
class PosedPatch:
    """A patch posed in `T` frames, and the linear map of skinning from canonical offsets to the camera."""

    patch: Patch
    verts: Float32[Tensor, "T P 3"]
    """Posed vertices without the offsets that are to be added, camera, m."""
    blend: Float32[Tensor, "T P 3 3"]
    """Canonical to camera: the sum over bones of weight x rotation (Eq. 4 is affine in the vertex)."""
    focal_px: float

    def shifted(self, offset: Float[Tensor, "#T P 3"]) -> "PosedPatch":
        """Add canonical offsets (m), which must be masked already."""
        return replace(
            self, verts=self.verts + torch.einsum("tpab,tpb->tpa", self.blend, offset.expand(self.verts.shape))
        )

    def last(self) -> "PosedPatch":
        """Select the last frame."""
        return replace(self, verts=self.verts[-1:], blend=self.blend[-1:])

    def raised(self, heights: Float[Tensor, "#T P 1"], directions: Float[Tensor, "P 3"]) -> Surface:
        """The surface with offsets of `heights` (m) along canonical `directions`."""
        return self.moved(heights * directions)

    def turned(self, field: Float[Tensor, "#T P C"], axes: Float[Tensor, "P C 3"]) -> Surface:
        """The surface with offsets given as components (m) along each vertex's own canonical `axes`."""
        return self.moved((field[..., None] * axes).sum(-2))

    def moved(self, field: Float[Tensor, "#T P 3"]) -> Surface:
        """The surface with canonical offsets (m), which are multiplied by the mask (Eq. 3)."""
        offset = (self.patch.mask[:, None] * field).expand(len(self.verts), -1, -1)
        return Surface.of(offset, self.shifted(offset).verts, self.patch.faces, focal_px=self.focal_px)


def read(pictures: Float[Tensor, "T C H W"], px: Float[Tensor, "T P 2"]) -> Float[Tensor, "T P C"]:
    """Sample pictures of the crop bilinearly at crop px; the pictures may have any resolution."""
    grid = (px / CROP_SIZE * 2 - 1)[:, None]
    found = torch.nn.functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    return found[:, :, 0].transpose(1, 2)


def weighted_mean(values: Float[Tensor, "T P"], weights: Float[Tensor, "T P"]) -> Float[Tensor, " T"]:
    """Mean over the vertices; 0 for a frame without weight."""
    total = weights.sum(1)
    # The double `where` keeps the backward pass finite in a frame without weight.
    return torch.where(total > 0, (values * weights).sum(1) / torch.where(total > 0, total, 1.0), 0.0)


def limited(offset: Float32[np.ndarray, "*B 3"], limit: float) -> Float32[np.ndarray, "*B 3"]:
    """Limit the length of offsets smoothly (tanh); `limit` in their unit."""
    size = np.linalg.norm(offset, axis=-1, keepdims=True)
    return (offset * np.tanh(size / limit) * limit / np.maximum(size, 1e-9)).astype(np.float32)


SMOOTH_STEPS = 12
"""Steps of smoothing between what is low and high frequency: a Gaussian of 3.5 mm on the default head."""


def high_passed(patch: Patch, values: Float[Tensor, "T P"], weight: Float[Tensor, "T P"]) -> Float[Tensor, "T P"]:
    """Subtract what `SMOOTH_STEPS` of smoothing leave; the result is 0 where nothing is seen."""
    seen = weight > 0
    given = torch.where(seen, values, 0.0)
    low = patch.smooth(given[..., None], SMOOTH_STEPS) / seen_share(patch, weight)
    return torch.where(seen, given - low[..., 0], 0.0)


def seen_share(patch: Patch, weight: Float[Tensor, "T P"]) -> Float[Tensor, "T P 1"]:
    """Share of each vertex's surroundings that is seen, by which smoothed values are divided.

    Without the division, slow errors beside a hole would look like folds.
    """
    return patch.smooth((weight > 0).to(weight.dtype)[..., None], SMOOTH_STEPS).clamp(min=1e-3)
