"""What the losses look at: a patch of the posed head, moved by an offset field."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.fit.patch import Patch
from expportrait_cli.geometry.mesh import vertex_normals


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
        # Both axes that OpenCV points down and away turn round.
        normals = vertex_normals(verts, faces) * verts.new_tensor([1.0, -1.0, -1.0])
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
