"""The part of the head that folds are fitted on, and its surface as maps between fields."""

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
"""From the camera's axes to those of normal maps: both that OpenCV points down and away turn round."""


@dataclass(frozen=True)
class Patch:
    """`P` vertices of the `V` dense ones, closed under the triangles that give them their normals."""

    vertices: Int64[np.ndarray, " P"]
    faces: Int64[Tensor, "F_patch 3"]
    """Triangles between them, as indices into `vertices`."""
    mask: Float32[Tensor, " P"]
    """How far each vertex may move, 0..1; exactly 0 on the rim that is there for its normals' sake only."""
    below: "Below | None" = None
    """The same patch of the mesh with one subdivision less, for one that was split twice."""

    @classmethod
    def of(cls, faces: Int64[np.ndarray, "F 3"], mask: Float32[np.ndarray, " V"]) -> "Patch":
        """Every vertex with a positive mask, and the ring of vertices around them."""
        touched = (mask > 0)[faces].any(1)
        vertices = np.unique(faces[touched])
        index = np.full(len(mask), -1)
        index[vertices] = np.arange(len(vertices))
        return cls(vertices, torch.from_numpy(index[faces[touched]]), torch.from_numpy(mask[vertices]))

    @classmethod
    def above(cls, below: "Patch", mesh: Finer, mask: Float32[np.ndarray, " V"]) -> "Patch":
        """The patch of a finer mesh above a patch of the plain one."""
        own = cls.of(mesh.head.dense_faces.numpy(), mask)
        lift, carry = (sp.csr_matrix(w[own.vertices][:, below.vertices]) for w in (mesh.lift, mesh.carry))
        return replace(own, below=Below(below, lift, sp.csr_matrix(carry, dtype=np.float32), own.mask.numpy() > 0))

    @cached_property
    def laplacian(self) -> sp.csc_matrix:
        """Combinatorial Laplacian D - W."""
        return sp.csc_matrix(scipy_matrix(laplacian(self.faces, len(self.vertices))))

    def preconditioner(self, smoothness: float) -> "Preconditioner":
        """U = (I + smoothness L) d, factorised once; 30 ms for 11,000 vertices, 0.4 s for 46,000."""
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

        The edges are those of one subdivision: on a finer mesh the same steps are taken below, and are as wide.
        """
        if self.below is not None:
            return self.below.up(self.below.patch.smooth(self.below.down(values), steps))
        return self._averaging(values, steps)

    def within(self, mask: Bool[np.ndarray, " V"]) -> Bool[Tensor, " P"]:
        """A mask of dense vertices at the patch's."""
        return torch.from_numpy(mask[self.vertices])


@dataclass(frozen=True)
class Below:
    """A patch whose triangles were split, and the way between its vertices and the `P_fine` of the finer one."""

    patch: Patch
    weights: sp.csr_matrix
    """Linear [P_fine, P]: rows sum to one, less what lies beyond the rim."""
    carry: sp.csr_matrix
    """Smooth [P_fine, P], see `Finer`."""
    inside: Bool[np.ndarray, " P_fine"]
    """Where the finer patch may move."""

    def lifted(self, values: Float[np.ndarray, "T P C"]) -> Float32[np.ndarray, "T P_fine C"]:
        """Masked offsets on the finer mesh, smooth between the vertices; exactly zero where it may not move."""
        frames, points, channels = values.shape
        columns = self.carry @ values.transpose(1, 0, 2).reshape(points, -1).astype(np.float32)
        return (columns * self.inside[:, None]).reshape(-1, frames, channels).transpose(1, 0, 2)

    @cached_property
    def up(self) -> FieldMap:
        """Values that go on beyond the rim as they are at it."""
        return _averages(self.weights)

    @cached_property
    def down(self) -> FieldMap:
        """Means of the finer vertices around each."""
        return _averages(sp.csr_matrix(self.weights.T))


def _averages(weights: sp.csr_matrix) -> FieldMap:
    """Rows scaled to sum to one; those of nothing stay zero."""
    total = np.asarray(weights.sum(1))[:, 0]
    return FieldMap(sp.csr_matrix(sp.diags(1 / np.maximum(total, 1e-9)) @ weights))


class Preconditioner:
    """Fields d [T,P,C] from the variable u = M d in which plain gradient steps are smooth (Nicolet et al. 2021).

    Ten steps of u do what 400 of d do, because one step spreads over the whole face.
    """

    def __init__(self, matrix: sp.csc_matrix):
        self._matrix = matrix
        # The matrix is symmetric: half the fill, and a third of the time of a solve, of what the defaults take.
        self._factor = splu(matrix, "MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})

    def variable(self, field: Float[Tensor, "T P C"]) -> Float[Tensor, "T P C"]:
        """The variable u of a given field."""
        return _columnwise(self._matrix.__matmul__, field)

    def field(self, variable: Float[Tensor, "T P C"]) -> Float[Tensor, "T P C"]:
        """The field d of a given u. Differentiable; M is symmetric, so the backward pass is the same solve."""
        return _Solve.apply(variable, self._factor)


class LocalPreconditioner(Preconditioner):
    """The same for heights that live on a whole patch, and two channels beside them that live on part of it.

    What is beyond the part stays zero in those channels, and they fade out towards its border.
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
    """`T` frames of a patch."""

    offset: Float[Tensor, "T P 3"]
    """Canonical, after the mask, m."""
    verts: Float[Tensor, "T P 3"]
    """Camera, m."""
    normals: Float[Tensor, "T P 3"]
    """Camera in the axes of normal maps: x right, y up, z to the viewer."""
    px: Float[Tensor, "T P 2"]
    """Crop px, pixel centres at +0.5; carries no gradient: pictures are read there."""

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
        normals = vertex_normals(verts, faces) * verts.new_tensor(TO_NORMALS)
        seen = verts.detach()
        return cls(offset, verts, normals, seen[..., :2] / seen[..., 2:] * focal_px + CROP_SIZE / 2)


@dataclass(frozen=True)
class PosedPatch:
    """The patch without offsets in every frame, and what skinning does to a canonical step of each vertex."""

    patch: Patch
    verts: Float32[Tensor, "T P 3"]
    """Camera, m."""
    blend: Float32[Tensor, "T P 3 3"]
    """Canonical to camera: the sum over bones of weight x rotation (Eq. 4 is affine in the vertex)."""
    focal_px: float

    def shifted(self, offset: Float[Tensor, "#T P 3"]) -> "PosedPatch":
        """The patch with canonical offsets (m) that are masked already."""
        return replace(
            self, verts=self.verts + torch.einsum("tpab,tpb->tpa", self.blend, offset.expand(self.verts.shape))
        )

    def last(self) -> "PosedPatch":
        """The last frame alone."""
        return replace(self, verts=self.verts[-1:], blend=self.blend[-1:])

    def raised(self, heights: Float[Tensor, "#T P 1"], directions: Float[Tensor, "P 3"]) -> Surface:
        """The surface under heights (m) over a canonical surface with these normals: `moved` by one number a vertex."""
        return self.moved(heights * directions)

    def turned(self, field: Float[Tensor, "#T P C"], axes: Float[Tensor, "P C 3"]) -> Surface:
        """The surface under components (m) along axes of each vertex: `moved` in a frame of its own."""
        return self.moved((field[..., None] * axes).sum(-2))

    def moved(self, field: Float[Tensor, "#T P 3"]) -> Surface:
        """The surface under canonical offsets: Eq. 3 with the mask multiplied, so that what it forbids stays zero."""
        offset = (self.patch.mask[:, None] * field).expand(len(self.verts), -1, -1)
        return Surface.of(offset, self.shifted(offset).verts, self.patch.faces, focal_px=self.focal_px)


def read(pictures: Float[Tensor, "T C H W"], px: Float[Tensor, "T P 2"]) -> Float[Tensor, "T P C"]:
    """Bilinear samples of pictures of the crop, which may have another resolution."""
    grid = (px / CROP_SIZE * 2 - 1)[:, None]
    found = torch.nn.functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    return found[:, :, 0].transpose(1, 2)


def weighted_mean(values: Float[Tensor, "T P"], weights: Float[Tensor, "T P"]) -> Float[Tensor, " T"]:
    """Mean over the vertices; 0 for a frame without weight."""
    total = weights.sum(1)
    # The double `where` keeps the backward pass finite in a frame of which nothing is seen.
    return torch.where(total > 0, (values * weights).sum(1) / torch.where(total > 0, total, 1.0), 0.0)


def limited(offset: Float32[np.ndarray, "*B 3"], limit: float) -> Float32[np.ndarray, "*B 3"]:
    """Offsets of at most a limit's length, smoothly."""
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
    """Share of the surroundings that is seen, by which smoothed values are divided.

    Beside a hole a slow error would look like folds.
    """
    return patch.smooth((weight > 0).to(weight.dtype)[..., None], SMOOTH_STEPS).clamp(min=1e-3)
