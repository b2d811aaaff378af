"""Folds on the mesh that is subdivided twice: those of one subdivision are lifted to it, and refined there.

Offsets are heights along the normals of the neutral head, and three components on lips and lids, which also slide. With
shading, heights are solved for as on the mesh below. With a network's normals, lambda of the preconditioner begins at
the value of the mesh below (four times as much in shorter edges) and falls from stage to stage, so that fine folds come
last (annealing as in Nicolet et al. 2021).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32, Int64
from scipy.spatial import KDTree
from torch import Tensor

from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit, Tracking
from expportrait_cli.config import FitConfig
from expportrait_cli.fitting.clip import WINDOW, Clip, dynamic_mask
from expportrait_cli.fitting.dynamic import Dynamic, follows_on, heights_by_shading, neutral_normals
from expportrait_cli.fitting.evidence import Evidence, Shading, SharpClip, windows_of
from expportrait_cli.fitting.losses import LandmarkLoss, MagnitudeLoss, ShadingLoss, TemporalLoss, Term, descend
from expportrait_cli.fitting.patch import LocalPreconditioner, Patch, PosedPatch, limited
from expportrait_cli.geometry.mesh import edges, normalize
from expportrait_cli.head import HeadModel, dense, landmarks
from expportrait_cli.head.facemesh import EYE_RINGS, LIPS
from expportrait_cli.head.finer import Finer, finer
from expportrait_cli.head.model import is_finer
from expportrait_cli.runtime import Progress
from expportrait_cli.solve.solver import UNIT_IOD
from expportrait_cli.solve.state import interocular_px

TRUST = 0.04
"""Change of log albedo over two millimetres at which the weight of a vertex's shade is halved: at the border of paint,
freckles or shadows a tracking error of two millimetres looks like a fold."""
LOOSE_M, TIGHT_M = 0.004, 0.010
"""Distance from the rims of lips and lids, m, up to which a vertex moves in three directions (LOOSE_M), and from which
along its normal only (TIGHT_M)."""

Rows = Int64[np.ndarray, " R"]


@dataclass(frozen=True)
class FineClip:
    """A clip's head on the mesh that is subdivided twice, with the offsets fitted on the mesh subdivided once."""

    clip: Clip
    patch: Patch
    moving: Dynamic
    axes: Float32[Tensor, "P 3 3"]
    """Normal and two tangents of each vertex; the tangents fade out away from lips and lids."""

    @classmethod
    def of(
        cls, tracking: Tracking, fit: HeadFit, mesh: Finer, below: Patch, moving: Dynamic, config: FitConfig
    ) -> "FineClip":
        """Prepare a clip; `fit` must already be on the finer mesh, `below` and `moving` on the one below."""
        clip = SharpClip.of(tracking, fit, mesh.head, config)
        patch = Patch.above(below, mesh, dynamic_mask(mesh.head))
        return cls(clip, patch, moving, frames(neutral_normals(clip, patch), looseness(mesh.head)[patch.vertices]))

    def smooth(self, rows: Rows) -> Float32[np.ndarray, "R P 3"]:
        """Smooth offsets of some frames, from landmarks, lifted to the finer mesh, canonical, m."""
        return self.below.lifted(self.moving.smooth[rows])

    def folds(self, rows: Rows) -> Float32[np.ndarray, "R P 3"]:
        """Folds fitted on the mesh that is subdivided once, lifted to this one, canonical, m."""
        return self.below.lifted(self.moving.folds(rows))

    @property
    def below(self):
        """The patch of the mesh with one subdivision less, and the maps from it."""
        assert self.patch.below is not None
        return self.patch.below

    def landmarks(self, rows: Rows) -> LandmarkLoss:
        """Loss of the landmarks of lips and lids."""
        head, tracking = self.clip.head, self.clip.tracking
        index = np.full(len(head.parts), -1)
        index[self.patch.vertices] = np.arange(len(self.patch.vertices))
        rims = np.array(LIPS + EYE_RINGS)
        triangles = index[head.landmark_triangles.numpy()[rims]]
        inside = (triangles >= 0).all(1)
        points = tracking.landmarks[rows][:, rims[inside]]
        unit = np.array([UNIT_IOD * interocular_px(frame) for frame in tracking.landmarks[rows]], np.float32)
        return LandmarkLoss(
            triangles=torch.from_numpy(triangles[inside]),
            barycentrics=head.landmark_barycentrics[torch.from_numpy(rims[inside])],
            target=torch.from_numpy((points - CROP_SIZE / 2).astype(np.float32)),
            weight=torch.ones(points.shape[:2]),
            unit_px=torch.from_numpy(unit),
            focal_px=self.clip.focal_px,
        )


@dataclass(frozen=True)
class Weighted:
    """A loss times a weight."""

    term: Term
    weight: float

    def __call__(self, surface) -> Float[Tensor, " T"]:
        """The loss of every frame, weighted."""
        return self.weight * self.term(surface)


def believed(term: Term) -> Term:
    """Lower the weights of a shading loss where the albedo changes; other losses are returned unchanged."""
    if not isinstance(term, ShadingLoss):
        return term
    change = steepness(term.patch, term.log_albedo)
    return replace(term, weight=term.weight / (1 + (change / TRUST).square()))


def steepness(patch: Patch, values: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """Largest change between each vertex and its neighbours, extrapolated to 2 mm (two edges)."""
    ends, own = edges(patch.faces).verts, patch.smooth(values[None, :, None], 1)[0, :, 0]
    change = (own[ends[:, 0]] - own[ends[:, 1]]).abs()
    result = torch.zeros_like(values)
    for side in (0, 1):
        result = result.scatter_reduce(0, ends[:, side], change, "amax")
    # Edges are 1 mm long, and trackings are off by 2 mm.
    return 2 * result


def looseness(head: HeadModel) -> Float32[np.ndarray, " V"]:
    """Weight (0..1) of sliding: 1 on lips and lids, 0 at a centimetre from them, smooth between."""
    verts = dense(head, head.template)
    rims = landmarks(head, verts)[LIPS + EYE_RINGS]
    share = np.clip((TIGHT_M - KDTree(rims.numpy()).query(verts.numpy())[0]) / (TIGHT_M - LOOSE_M), 0, 1)
    return (share * share * (3 - 2 * share)).astype(np.float32)


def frames(normals: Float32[Tensor, "P 3"], loose: Float32[np.ndarray, " P"]) -> Float32[Tensor, "P 3 3"]:
    """Normal and two tangents of each vertex; the tangents have the length `loose` (0..1)."""
    # Any direction that is not the normal's gives tangents; the result does not depend on the choice.
    helper = torch.eye(3)[normals.abs().argmin(-1)]
    first = normalize(torch.linalg.cross(normals, helper))
    tangents = torch.stack([first, torch.linalg.cross(normals, first)], 1)
    return torch.cat([normals[:, None], tangents * torch.from_numpy(loose)[:, None, None]], 1)


def sharpened(
    fit: HeadFit,
    tracking: Tracking,
    head: HeadModel,
    below: Patch,
    moving: Dynamic,
    *,
    weights: np.ndarray,
    share: float,
    evidence: Callable[[Clip, Patch, Float32[np.ndarray, "T P 3"]], Evidence | None],
    config: FitConfig,
    progress: Progress,
    known: HeadFit | None = None,
) -> HeadFit:
    """Refine a fit from one subdivision to two, with folds that only the finer mesh can represent.

    `moving`, on the patch `below`, is already part of `fit`. `weights` and `share` as in `clip.recentred`; `known`: a
    fit whose static offset is kept. Without evidence the fit is returned unchanged. Beside the offsets (float16) only
    one window is in memory.
    """
    mesh = finer(head)
    if known is not None and is_finer(known.head_model):
        static = known.static_offset.copy()
    else:
        static = mesh.lifted(fit.static_offset)
    fine = replace(
        fit,
        head_model=mesh.head.name,
        static_offset=static,
        frame_offset=mesh.lifted(fit.frame_offset),
        relief_seen=np.zeros(len(static), np.float16),
    )
    clip = FineClip.of(tracking, fine, mesh, below, moving, config)
    seen = evidence(clip.clip, clip.patch, clip.smooth(np.arange(len(moving.smooth))))
    if seen is None:
        return fit
    further, loss = _further(clip, seen, progress)
    mean = share * np.tensordot(weights, further, (0, 0)).astype(np.float32)
    fine.static_offset[clip.patch.vertices] += mean
    fine.frame_offset[clip.patch.vertices] += further[fit.frame] - mean
    if not len(fit.dynamic_offset):
        return fine
    for window in clip.clip.windows():
        whole = clip.smooth(window) + clip.folds(window) + (further[window] - mean)
        further[window] = limited(whole, moving.limit_m)
    return replace(fine, dynamic_vertices=clip.patch.vertices, dynamic_offset=further, dynamic_loss=loss)


def _further(
    clip: FineClip, seen: Evidence, progress: Progress
) -> tuple[Float16[np.ndarray, "T P 3"], Float32[np.ndarray, "T 2"]]:
    """Offsets of every frame beyond those of the mesh below (masked, m); data loss without folds and with all."""
    count, points = len(clip.moving.smooth), len(clip.patch.vertices)
    offset, loss = np.zeros((count, points, 3), np.float16), np.full((count, 2), np.nan, np.float32)
    rows = clip.clip.tracked()
    follows = follows_on(clip.clip, rows)
    part = np.flatnonzero(clip.axes[:, 1].abs().sum(-1).numpy() > 0)
    weights, descent = clip.clip.config.weights, clip.clip.config.descent
    scales = descent.fine_shading if isinstance(seen, Shading) else descent.fine_normals
    stages = [LocalPreconditioner(clip.patch, scale * seen.smoothness, part) for scale in scales]
    solver = clip.patch.preconditioner(seen.smoothness)
    last = torch.zeros(points, 3)
    for window, crops in windows_of(clip.clip, rows, WINDOW):
        progress(int(window[0]), count)
        verts, bare = clip.clip.pose(window, clip.patch, clip.smooth(window))
        posed = bare.shifted(torch.from_numpy(clip.folds(window)))
        terms = [believed(term) for term in seen.terms(crops, verts)]
        calm = TemporalLoss(last, torch.from_numpy(follows[window]), weights.temporal_per_mm2)
        rims = Weighted(clip.landmarks(window), weights.rims)
        terms_and_calm = [*terms, rims, MagnitudeLoss(weights.dynamic_per_mm2), calm]
        start = torch.zeros(len(window), points, 3)
        if isinstance(terms[0], ShadingLoss):
            start[..., :1] = heights_by_shading(
                terms[0],
                posed,
                clip.axes[:, 0],
                solver,
                before=last,
                follows=weights.temporal_per_mm2 / weights.dynamic_per_mm2 * calm.follows,
                height_mm=weights.fold_mm,
            )
        field = _descended(start, posed, clip.axes, terms_and_calm, stages, seen.rate_m, descent.fine_steps)
        with torch.no_grad():
            flat = bare.moved(torch.zeros(len(window), points, 3))
            shown = posed.turned(field, clip.axes)
            loss[window] = np.stack([terms[0](each).numpy() for each in (flat, shown)], -1)
        last = shown.offset[-1]
        offset[window] = shown.offset.numpy()
    progress(count, count)
    return offset, loss


def _descended(
    field: Float32[Tensor, "T P 3"],
    posed: PosedPatch,
    axes: Tensor,
    terms: Sequence[Term],
    stages: Sequence[LocalPreconditioner],
    rate_m: float,
    steps: int,
) -> Float32[Tensor, "T P 3"]:
    """Optimise a field of components along `axes`, m, through all stages."""
    for preconditioner in stages:
        field, _ = descend(
            field,
            lambda each: posed.turned(each, axes),
            terms,
            preconditioner,
            iterations=steps,
            rate=rate_m,
        )
    return field
