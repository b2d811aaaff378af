"""Static offset off the face: hair, clothes and shoulders, from the outline and what networks see (paper 3.1.2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit
from expportrait_cli.config import FitConfig, FitDescent, FitWeights
from expportrait_cli.fit.descent import descend
from expportrait_cli.fit.losses import MagnitudeLoss
from expportrait_cli.fit.masks import dynamic_mask, ear_vertices, static_mask
from expportrait_cli.fit.patch import Patch
from expportrait_cli.fit.silhouette import fit_silhouette, hair_volume
from expportrait_cli.fit.surface import PosedPatch, Surface
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.mesh import Edges, edges, vertex_normals
from expportrait_cli.head import HeadModel, dense
from expportrait_cli.head.fitted import blend_matrices, canonical_mesh, fitted_mesh
from expportrait_cli.head.model import HEAD
from expportrait_cli.render.buffers import render_buffers
from expportrait_cli.render.rasterizer import rasterize

DRAW_SIZE = 256

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class OutlineLoss:
    """Difference between the drawn person and the matte; its gradient is that of the edge-driven antialiasing."""

    camera: Camera
    faces: Tensor
    edges: Edges
    matte: Float[Tensor, "T H W"]

    def __call__(self, surface: Surface) -> Float[Tensor, " T"]:
        """Mean absolute difference over the person's area, so that it does not depend on the crop."""
        drawn = render_buffers(surface.verts, self.faces, self.camera, edges=self.edges).mask
        area = self.matte.sum((1, 2)).clamp(min=1.0)
        return (drawn - self.matte).abs().sum((1, 2)) / area


def draw_vertices(verts: Float32[np.ndarray, "V 3"], head: HeadModel, focal_px: float, *, size: int) -> np.ndarray:
    """Vertex that each pixel shows (the first of its triangle), -1 for background."""
    camera = Camera.of_crop(focal_px, CROP_SIZE, size)
    rast = rasterize(camera.clip(torch.from_numpy(verts))[None], head.dense_faces, (size, size))
    ids = rast[0, ..., 3].numpy().astype(np.int64) - 1
    return np.where(ids >= 0, head.dense_faces.numpy()[np.maximum(ids, 0), 0], -1)


def outline_offset(
    fit: HeadFit, head: HeadModel, matte: Float32[np.ndarray, "S S"], config: FitConfig, progress: Progress
) -> Float32[np.ndarray, "V 3"]:
    """Grow the head into the matte of its photo; exactly zero on the face."""
    matrices = blend_matrices(fit, head)
    parts = head.operator
    operator = sp.csr_matrix((parts.values(), parts.col_indices(), parts.crow_indices()), parts.shape)
    small = cv2.resize(matte, (DRAW_SIZE, DRAW_SIZE), interpolation=cv2.INTER_AREA)

    def posed(offset):
        lifted = dense(head, torch.from_numpy(offset.astype(np.float32))).numpy()
        return fitted_mesh(replace(fit, static_offset=lifted), head)

    offset = fit_silhouette(
        small,
        pose=posed,
        draw=lambda verts: draw_vertices(verts, head, fit.focal_px, size=DRAW_SIZE),
        to_canonical=matrices.transpose(0, 2, 1),
        operator=operator,
        coarse_faces=head.faces.numpy(),
        pinned=_coarse_mask(dynamic_mask(head), operator),
        ears=ear_vertices(head),
        focal_px=fit.focal_px * DRAW_SIZE / CROP_SIZE,
        rounds=config.rounds,
        progress=progress,
    )
    lifted = dense(head, torch.from_numpy(offset.astype(np.float32))).numpy()
    shape = canonical_mesh(fit, head, fit)
    scalp = (head.skinning[:, HEAD] > 0.9) & (head.facial_mask < 0.1) & head.part("skin")
    lifted = hair_volume(lifted, shape.numpy(), vertex_normals(shape, head.dense_faces).numpy(), scalp.numpy())
    # A hard multiplication, not a penalty: the static field of one photo is exactly zero on the face.
    return lifted.astype(np.float32) * (1 - dynamic_mask(head))[:, None]


def refined_offset(
    fit: HeadFit, head: HeadModel, mattes: Sequence[Float32[np.ndarray, "S S"]], posed: PosedPatch
) -> Float32[np.ndarray, "V 3"]:
    """Descend on the outline itself, seen through antialiased edges, in all given frames at once.

    `posed` is the patch of `static_patch` in these frames with the static offset of `fit` in it.
    """
    patch = posed.patch
    small = [cv2.resize(matte, (DRAW_SIZE, DRAW_SIZE), interpolation=cv2.INTER_AREA) for matte in mattes]
    loss = OutlineLoss(
        Camera.of_crop(posed.focal_px, CROP_SIZE, DRAW_SIZE),
        patch.faces,
        edges(patch.faces),
        torch.from_numpy(np.stack(small)),
    )
    field, _ = descend(
        torch.zeros(1, len(patch.vertices), 3),
        posed.moved,
        [loss, MagnitudeLoss(FitWeights.static_per_mm2)],
        patch.preconditioner(FitDescent.outline_smoothness),
        iterations=FitDescent.outline_steps,
        rate=FitDescent.outline_rate_m,
    )
    offset = fit.static_offset.copy()
    offset[patch.vertices] += (field[0] * patch.mask[:, None]).numpy()
    return offset


def static_patch(head: HeadModel) -> Patch:
    """Everything that the static offset of one photo may move."""
    return Patch.of(head.dense_faces.numpy(), static_mask(head, 0.0))


def _coarse_mask(mask: Float32[np.ndarray, " V"], operator: sp.csr_matrix) -> Float[np.ndarray, " N"]:
    """A mask of the dense vertices on the coarse ones: 1 where most of what a vertex moves is inside."""
    return np.asarray((operator.T @ mask) / np.maximum(operator.T @ np.ones_like(mask), 1e-9) > 0.5, float)


def silhouette_iou(fit: HeadFit, head: HeadModel, matte: Float32[np.ndarray, "S S"]) -> float:
    """Overlap of the posed head and the matte."""
    drawn = draw_vertices(fitted_mesh(fit, head), head, fit.focal_px, size=CROP_SIZE) >= 0
    person = matte > 0.5
    return float((drawn & person).sum() / max((drawn | person).sum(), 1))
