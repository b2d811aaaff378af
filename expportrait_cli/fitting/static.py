"""Static offset off the face: hair, clothes and shoulders, from mattes and a network's normals (paper 3.1.2)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit, Tracking
from expportrait_cli.config import FitConfig
from expportrait_cli.detect.estimate import Estimator
from expportrait_cli.detect.matte import Matte
from expportrait_cli.fitting.clip import Clip, Rows, dynamic_mask, ear_vertices, static_mask
from expportrait_cli.fitting.evidence import Estimates, Picture
from expportrait_cli.fitting.hair import behind, outline_mask, smoothed_ears, with_ears
from expportrait_cli.fitting.losses import MagnitudeLoss, Term, descend
from expportrait_cli.fitting.patch import Patch, PosedPatch, Surface, limited
from expportrait_cli.fitting.silhouette import draw_vertices, fit_silhouette
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.mesh import Edges, edges, scipy_matrix
from expportrait_cli.head import HeadModel, dense
from expportrait_cli.head.facemesh import LandmarkSpread
from expportrait_cli.head.fitted import blend_matrices, fitted_mesh
from expportrait_cli.render.buffers import blend_silhouettes
from expportrait_cli.render.rasterizer import rasterize
from expportrait_cli.runtime import Progress
from expportrait_cli.solve.state import distinct_rows

DRAW_SIZE = 256
STAGES = ((DRAW_SIZE, 20, 30.0), (DRAW_SIZE, 20, 10.0), (CROP_SIZE, 3, 10.0))
"""Stages with several mattes or a network: size of the drawing, px; steps; lambda of the preconditioner I + lambda
L."""
KEY_FRAMES, KEY_TURN_DEG = 6, 4.0
"""KEY_FRAMES: most frames whose mattes are fitted together. KEY_TURN_DEG: least rotation between two of them, degrees:
the outline changes with the head's rotation."""
USUAL, DOUBTFUL = 0.005, 3.0
"""USUAL: error of a matte, as a share of the person's area, that is never doubted. DOUBTFUL: multiple of the median
error at which a matte has weight 0."""
CHIN = 152
"""FaceMesh landmark of the chin."""
KEY_ROUNDS, LEAST_GAIN = 3, 0.002
"""Most descents on key frames, and least gain in mean IoU for another one."""
FAR_M = 0.03
"""Distance from a matte's outline, m, at which a pixel of the matte has weight 1/4."""
LIMIT_M = 0.1
"""Largest Delta g, m, where it is fitted to several mattes or to a network's normals."""
EAR_ROUNDS = 7
"""Most descents on the outline after ears were closed over; they end when the IoU does not rise."""
PARTS = (1.0, 0.5, 0.25)
"""Lengths of a step, as shares, tried in turn until the mattes are covered no worse."""
NETWORK_SLACK = 0.005
"""Loss of overlap (IoU) with the mattes that is accepted for a fit to a network's normals."""


@dataclass(frozen=True)
class OutlineLoss:
    """Difference between the drawn person and the matte; its gradient is that of the edge-driven antialiasing."""

    camera: Camera
    faces: Tensor
    edges: Edges
    matte: Float[Tensor, "T H W"]
    belief: Float[Tensor, "#T #H #W"] = field(default_factory=lambda: torch.ones(1, 1, 1))
    """Weight of each pixel of each matte."""

    def __call__(self, surface: Surface) -> Float[Tensor, " T"]:
        """Sum of the weighted absolute differences, over the person's area, so that it does not depend on the crop."""
        drawn = self._drawn(surface.verts)
        # Summed row by row: the sum of a whole frame at once would depend on the number of threads.
        area = self.matte.sum(2).sum(1).clamp(min=1.0)
        return (self.belief * (drawn - self.matte).abs()).sum(2).sum(1) / area

    def _drawn(self, verts: Float[Tensor, "T V 3"]) -> Float[Tensor, "T H W"]:
        """Covered share of each pixel: `render_buffers` without the normals, which cost as much again."""
        pos = self.camera.clip(verts)
        rast = rasterize(pos, self.faces, (self.camera.height, self.camera.width))
        return blend_silhouettes((rast[..., 3:] > 0).to(verts.dtype), rast, pos, self.edges)[..., 0]

    def doubting(self, surface: Surface) -> "OutlineLoss":
        """Return a copy with lower weights for mattes of large error; the first weighs as much as all others together.

        Hair, clothes and hands move: what a single frame shows is not the person's shape.
        """
        with torch.no_grad():
            error = self(surface)
        usual = error.median().clamp(min=USUAL)
        # The power makes the weight flat near 1, so that a matte counts almost in full or not at all.
        belief = (1 - (error / (DOUBTFUL * usual)) ** 4).clamp(min=0).square()
        belief[0] = belief[1:].sum().clamp(min=1.0)
        return replace(self, belief=self.belief * belief[:, None, None])


def outline_offset(
    fit: HeadFit, head: HeadModel, matte: Float32[np.ndarray, "S S"], config: FitConfig, progress: Progress
) -> Float32[np.ndarray, "V 3"]:
    """Static offset, m, that fits the head's outline to the matte of its photo; exactly zero on the face."""
    matrices = blend_matrices(fit, head)
    operator = scipy_matrix(head.operator, np.float32)
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
    lifted = behind(dense(head, torch.from_numpy(offset.astype(np.float32))).numpy(), fit, head)
    # A hard multiplication, not a penalty: the static field of one photo is exactly zero on the face.
    return lifted.astype(np.float32) * (1 - dynamic_mask(head))[:, None]


def settled_ears(
    fit: HeadFit,
    head: HeadModel,
    matte: Float32[np.ndarray, "S S"],
    tracking: Tracking,
    config: FitConfig,
    progress: Progress,
) -> HeadFit:
    """Set the ears (`hair.with_ears`), and fit the outline to the matte again while the IoU rises."""
    seen = fit.ears_seen
    fit = with_ears(fit, head, seen)
    patch = Patch.of(head.dense_faces.numpy(), outline_mask(head, seen))
    overlap = silhouette_iou(fit, head, matte)
    for done in range(EAR_ROUNDS):
        progress(done, EAR_ROUNDS)
        clip = Clip.of(tracking, fit, head)
        _, posed = clip.pose(np.array([fit.frame]), patch, fit.frame_offset[patch.vertices][None])
        better = replace(fit, static_offset=refined_offset(fit, head, [matte], posed, config).astype(np.float32))
        better = smoothed_ears(better, head, seen)
        after = silhouette_iou(better, head, matte)
        if after <= overlap:
            break
        fit, overlap = better, after
    progress(EAR_ROUNDS, EAR_ROUNDS)
    return fit


def refined_offset(
    fit: HeadFit,
    head: HeadModel,
    mattes: Sequence[Float32[np.ndarray, "S S"]],
    posed: PosedPatch,
    config: FitConfig,
    *,
    terms: Sequence[Term] = (),
) -> Float32[np.ndarray, "V 3"]:
    """Refine the static offset, m, by descent on the differentiable outline, in all given frames at once.

    `posed`: a patch (`static_patch`, or the outline's) in these frames, with the static offset of `fit`; the head's own
    frame comes first. `terms`: losses of a network in these frames.
    """
    patch = posed.patch
    is_photo = len(mattes) == 1 and not terms
    field = torch.zeros(1, len(patch.vertices), 3)
    photo = (DRAW_SIZE, config.descent.outline_steps, config.descent.outline_smoothness)
    for size, steps, smoothness in [photo] if is_photo else STAGES:
        loss = outline_loss(posed, mattes, size)
        if len(mattes) > 1:
            loss = loss.doubting(posed.moved(field))
        field, _ = descend(
            field,
            posed.moved,
            [loss, MagnitudeLoss(config.weights.static_per_mm2), *terms],
            patch.preconditioner(smoothness),
            iterations=steps,
            rate=config.descent.outline_rate_m,
        )
    offset = fit.static_offset.copy()
    offset[patch.vertices] += (field[0] * patch.mask[:, None]).numpy()
    if is_photo:
        return offset
    return offset * np.minimum(1, LIMIT_M / np.maximum(np.linalg.norm(offset, axis=1, keepdims=True), LIMIT_M))


def outline_loss(posed: PosedPatch, mattes: Sequence[Float32[np.ndarray, "S S"]], size: int) -> OutlineLoss:
    """The loss on mattes at `size` px; with several mattes, pixels far from a matte's outline have low weight."""
    small = np.stack([cv2.resize(matte, (size, size), interpolation=cv2.INTER_AREA) for matte in mattes])
    is_known, small = np.isfinite(small), np.nan_to_num(small)
    loss = OutlineLoss(
        Camera.of_crop(posed.focal_px, CROP_SIZE, size),
        posed.patch.faces,
        edges(posed.patch.faces),
        torch.from_numpy(small),
    )
    if len(mattes) == 1:
        return loss
    away_px = np.stack([_outline_distance(matte) for matte in small]) * CROP_SIZE / size
    away_m = away_px / posed.focal_px * float(posed.verts[..., 2].mean(1).mean())
    belief = is_known / (1 + (away_m / FAR_M) ** 2) ** 2
    return replace(loss, belief=torch.from_numpy(belief.astype(np.float32)))


def _above(matte: Float32[np.ndarray, "S S"], row: int) -> Float32[np.ndarray, "S S"]:
    """Set a matte to NaN (unknown) from a row downwards."""
    return np.where(np.arange(len(matte))[:, None] < row, matte, np.float32(np.nan))


def _outline_distance(matte: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"]:
    """Distance of each pixel from the outline of the matte, px; the picture's border is not part of the outline."""
    inside = (matte > 0.5).astype(np.uint8)
    return np.maximum(*(cv2.distanceTransform(side, cv2.DIST_L2, 3) for side in (inside, 1 - inside)))


def static_patch(head: HeadModel) -> Patch:
    """Patch of all vertices that the static offset of one photo may move."""
    return Patch.of(head.dense_faces.numpy(), static_mask(head, 0.0))


@dataclass(frozen=True)
class KeyFrames:
    """Frames that the static offset is fitted to together; the head's own comes first."""

    tracking: Tracking
    head: HeadModel
    rows: Rows
    pictures: Sequence[Picture]
    mattes: Sequence[Float32[np.ndarray, "S S"]]
    """Matte of each frame, 0..1; below the chin NaN (unknown), except in the photo's own frame, which is the first."""
    offset: Float32[np.ndarray, "R P 3"]
    """Dynamic offsets of each frame that bring the model to the landmarks, on `static_patch`, m."""

    @classmethod
    def of(
        cls, fit: HeadFit, tracking: Tracking, head: HeadModel, own: tuple[Picture, np.ndarray], config: FitConfig
    ) -> "KeyFrames":
        """Choose frames whose head rotations differ; `own`: picture and matte of the fit's frame.

        Expression hardly moves the outline, because the face is not fitted here.
        """
        clip = Clip.of(tracking, fit, head)
        seen = np.flatnonzero(tracking.sure)
        least = np.radians(KEY_TURN_DEG)
        others = seen[distinct_rows(tracking.rotation[seen], KEY_FRAMES - 1, least=least)]
        others = others[np.linalg.norm(tracking.rotation[others] - fit.rotation, axis=1) > least]
        pictures = list(clip.crops(others)) if len(others) else []
        rows, patch = np.r_[np.int64(fit.frame), others], static_patch(head)
        offset = fit.frame_offset[patch.vertices][None]
        if len(others):
            moved = clip.landmark_offsets(others, patch, LandmarkSpread(head, fit.identity))
            offset = np.concatenate([offset, limited(moved, config.descent.dynamic_limit_m)])
        # The torso's pose in other frames is only estimated: mattes are not used below the chin.
        chins = tracking.landmarks[others, CHIN, 1].astype(int).tolist()
        mattes = [own[1], *(_above(Matte().matte(each), chin) for each, chin in zip(pictures, chins, strict=True))]
        return cls(tracking, head, rows, [own[0], *pictures], mattes, offset)

    def own(self) -> "KeyFrames":
        """Select the head's own frame."""
        first = {name: getattr(self, name)[:1] for name in ("rows", "pictures", "mattes", "offset")}
        return replace(self, **first)

    def posed(self, fit: HeadFit) -> tuple[Float32[Tensor, "R V 3"], PosedPatch]:
        """Pose the head in every frame: all vertices (camera, m), and the patch that the static offset may move."""
        return Clip.of(self.tracking, fit, self.head).pose(self.rows, static_patch(self.head), self.offset)

    def overlaps(self, fit: HeadFit) -> Float[np.ndarray, " R"]:
        """IoU of head and matte in every frame."""
        verts = self.posed(fit)[0].numpy()
        return np.array([_iou(*each, self.head, fit.focal_px) for each in zip(verts, self.mattes, strict=True)])

    def towards(self, fit: HeadFit, offset: Float32[np.ndarray, "V 3"], slack: float = 0.0) -> HeadFit:
        """The fit, moved towards `offset` by the largest of PARTS that keeps the overlap; unchanged if there is none.

        Neither the IoU with the fit's own matte nor the mean IoU may fall by more than `slack`.
        """
        before = self.overlaps(fit)
        for part in PARTS:
            moved = fit.static_offset + np.float32(part) * (offset - fit.static_offset)
            better = replace(fit, static_offset=moved)
            after = self.overlaps(better)
            if after[0] >= before[0] - slack and after.mean() >= before.mean() - slack:
                return better
        return fit


def refined_static(fit: HeadFit, frames: KeyFrames, network: Estimator | None, config: FitConfig) -> HeadFit:
    """Fit the static offset to the fit's own matte, then to those of key frames, then to a network's normals.

    Each step is taken as far as the IoU with the mattes does not fall.
    """
    head, own = frames.head, frames.own()
    better = replace(fit, static_offset=refined_offset(fit, head, own.mattes, own.posed(fit)[1], config))
    fit = max(fit, better, key=lambda each: silhouette_iou(each, head, own.mattes[0]))
    if len(frames.rows) > 1:
        shared, overlap = fit, 0.0
        for _ in range(KEY_ROUNDS):
            offset = refined_offset(shared, head, frames.mattes, frames.posed(shared)[1], config)
            better = replace(shared, static_offset=offset)
            after = float(frames.overlaps(better).mean())
            if after <= overlap + LEAST_GAIN:
                break
            shared, overlap = better, after
        # Hair and clothes have moved between the frames: the last descent is on the head's own matte alone.
        fit = frames.towards(fit, refined_offset(shared, head, own.mattes, own.posed(shared)[1], config))
    if network is None:
        return fit
    verts, posed = frames.posed(fit)
    clip, believed = Clip.of(frames.tracking, fit, head, config), static_mask(head, 0.0) > 0
    terms = Estimates(clip, posed.patch, network, believed, config.weights.static_estimates).terms(
        frames.pictures, verts
    )
    return frames.towards(fit, refined_offset(fit, head, frames.mattes, posed, config, terms=terms), NETWORK_SLACK)


def _coarse_mask(mask: Float32[np.ndarray, " V"], operator: sp.csr_matrix) -> Float[np.ndarray, " N"]:
    """Transfer a mask of dense vertices to the coarse ones: 1 where most of the weight of a vertex is inside."""
    return np.asarray((operator.T @ mask) / np.maximum(operator.T @ np.ones_like(mask), 1e-9) > 0.5, float)


def silhouette_iou(fit: HeadFit, head: HeadModel, matte: Float32[np.ndarray, "S S"]) -> float:
    """IoU of the posed head and the matte of its photo."""
    return _iou(fitted_mesh(fit, head), matte, head, fit.focal_px)


def _iou(
    verts: Float32[np.ndarray, "V 3"], matte: Float32[np.ndarray, "S S"], head: HeadModel, focal_px: float
) -> float:
    drawn = (draw_vertices(verts, head, focal_px, size=CROP_SIZE) >= 0) & np.isfinite(matte)
    person = matte > 0.5
    return float((drawn & person).sum() / max((drawn | person).sum(), 1))
