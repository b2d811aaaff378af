"""Heights of folds from shading: Gauss-Newton on slopes, which settles in few steps where plain descent hardly moves.

Shading is nearly linear in heights: how a vertex's shade follows its neighbours' heights is a sparse matrix, known in
closed form. Each round solves for the heights of all frames of a window at once by conjugate gradients, each frame with
step lengths of its own, so that the faint lines of a forehead do not wait for the loud ones beside a mouth.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor

from expportrait_cli.fitting.losses import MM, ShadingLoss
from expportrait_cli.fitting.patch import TO_NORMALS, PosedPatch, Preconditioner, Surface

ROUNDS, STEPS = 2, 15
"""Linearisations, and conjugate gradient steps in each; a third round changes a few percent of the heights."""

Heights = Float[Tensor, "T P"]


def heights_by_shading(
    loss: ShadingLoss,
    posed: PosedPatch,
    directions: Float[Tensor, "P 3"],
    preconditioner: Preconditioner,
    *,
    before: Float[Tensor, "P 3"],
    follows: Float[Tensor, " T"],
    height_mm: float,
) -> Float[Tensor, "T P 1"]:
    """Heights (m, before the mask) along `directions` that shade the patch as its pictures ask.

    The error of a shade is `loss.corner` and robust, that of a height `height_mm`; both are standard deviations.
    `follows` is how much each frame is drawn to the one before it, against how it is drawn to no folds; `before` is the
    offset of the frame before the first.
    """
    mask = loss.patch.mask
    rise = torch.einsum("tpab,pb->tpa", posed.blend, mask[:, None] * directions)
    shape = loss.weight.shape
    stay = (MM * loss.corner / height_mm) ** 2
    follow = stay * follows[:, None]
    last = (before * directions).sum(-1)[None]
    heights = torch.zeros(shape)
    for count in range(ROUNDS):
        shown = posed.raised(heights[..., None], directions)
        slopes = Slopes.of(loss, shown, rise)
        error = loss.residual(shown)
        trust = loss.weight / (error.abs() / loss.corner).clamp(min=1)
        # The neighbour in time is as it was in the round before: frames stay apart within one.
        earlier = torch.cat([last, mask * heights[:-1]]) if count else last.expand(shape)
        pull = follow if count else follow * (torch.arange(len(follow)) == 0)[:, None]

        def curvature(step: Heights, slopes=slopes, trust=trust, pull=pull) -> Heights:
            return slopes.back(trust * slopes(step)) + (stay + mask * pull) * step

        downhill = slopes.back(-trust * error) - stay * heights - mask * pull * (mask * heights - earlier)
        heights = heights + _solved(curvature, downhill, preconditioner)
    return heights[..., None]


def _solved(curvature, right: Heights, preconditioner: Preconditioner) -> Heights:
    """Conjugate gradients, frame by frame, in the variable in which steps are smooth."""

    def smooth(values: Heights) -> Heights:
        return preconditioner.field(values[..., None])[..., 0]

    result = torch.zeros_like(right)
    rest = smooth(right)
    way, size = rest.clone(), rest.square().sum(1, keepdim=True)
    for _ in range(STEPS):
        bent = smooth(curvature(smooth(way)))
        length = size / (way * bent).sum(1, keepdim=True).clamp(min=1e-30)
        result, rest = result + length * way, rest - length * bent
        size, last = rest.square().sum(1, keepdim=True), size
        way = rest + size / last.clamp(min=1e-30) * way
    return smooth(result)


@dataclass(frozen=True)
class Slopes:
    """How the log shade of every vertex follows the heights around it, block diagonal [T x P, T x P], per m."""

    matrix: sparse.csr_matrix
    turned: sparse.csr_matrix

    @classmethod
    def of(cls, loss: ShadingLoss, shown: Surface, rise: Float[Tensor, "T P 3"]) -> "Slopes":
        """Linearise at a surface; `rise` is where a metre of height leads, in the camera."""
        frames, points = loss.weight.shape
        faces, slope = loss.patch.faces.numpy(), loss.light.log_slope(shown.normals)
        # Every pair of corners of a triangle, and its place among the pairs of all.
        pairs, place = np.unique(faces[:, :, None] * points + faces[:, None, :], return_inverse=True)
        verts, rise = (each * each.new_tensor(TO_NORMALS) for each in (shown.verts, rise))
        data = [
            np.bincount(place.ravel(), _corner_slopes(faces, *each).ravel(), len(pairs)).astype(np.float32)
            for each in zip(verts.numpy(), shown.normals.numpy(), slope.numpy(), rise.numpy(), strict=True)
        ]
        rows, columns = np.divmod(pairs, points)
        block = points * np.arange(frames)[:, None]
        places = ((rows + block).ravel(), (columns + block).ravel())
        matrix = sparse.csr_matrix((np.concatenate(data), places), (frames * points,) * 2)
        return cls(matrix, sparse.csr_matrix(matrix.T))

    def __call__(self, heights: Heights) -> Heights:
        """Change of log shade."""
        return torch.from_numpy(self.matrix @ heights.numpy().ravel()).view(heights.shape)

    def back(self, shades: Heights) -> Heights:
        """Apply the transpose: from log shades to heights."""
        return torch.from_numpy(self.turned @ shades.numpy().ravel()).view(shades.shape)


def _corner_slopes(faces: np.ndarray, verts: np.ndarray, normals: np.ndarray, slope: np.ndarray, rise: np.ndarray):
    """Change of the shade at each corner of a triangle (axis 1) by what each corner (axis 2) does to its normal."""
    a, b, c = verts[faces].swapaxes(0, 1)
    by_face = np.repeat(np.cross(b - a, c - a), 3, 0)
    total = np.stack([np.bincount(faces.ravel(), by_face[:, axis], len(verts)) for axis in range(3)], -1)
    length = np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-15)
    across = (slope - normals * (normals * slope).sum(-1, keepdims=True)) / length
    opposite = np.stack([b - c, c - a, a - b], 1)
    return np.einsum("fvk,fuk->fvu", across[faces], np.cross(rise[faces], opposite))
