"""Evidence of the surface in frames: normals, depth and shading, sampled where the mesh lies."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.detect.crop import Crop, crop_image
from expportrait_cli.detect.estimate import Estimator, establish_axes, turned
from expportrait_cli.fitting.clip import CALM_FRAMES, Clip, bare_rim, calmest, dynamic_mask, plain_skin
from expportrait_cli.fitting.losses import (
    MM,
    DepthLoss,
    Light,
    NormalLoss,
    ShadingLoss,
    Term,
    align,
    estimate,
    shown_folds,
)
from expportrait_cli.fitting.patch import Patch, high_passed, read
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.head import HeadModel
from expportrait_cli.media.video import read_pictures
from expportrait_cli.render.buffers import render_buffers
from expportrait_cli.render.rasterizer import rasterize

DRAW_SIZE = 256
SLACK_M = 0.004
FACING = (0.2, 0.5)
"""Cosine between normal and line of sight at which a vertex has weight 0, and 1."""
BLUR_PX = 1.0
SHARPEST = 1024
"""Largest side of a crop's pictures, px: a pixel is then a third of a millimetre on a face of half that size."""
DARK, BRIGHT = 8, 250
"""Grey levels below and above which a pixel counts as clipped."""
GAMMA = 2.2


@dataclass(frozen=True)
class View:
    """Projections of some vertices in one picture, and weights of their visibility."""

    px: Float32[np.ndarray, "P 2"]
    """Crop px, pixel centres at +0.5."""
    weight: Float32[np.ndarray, " P"]
    """0 hidden, outside or turned away; 1 facing the camera."""
    normals: Float32[np.ndarray, "P 3"]
    """Vertex normals in the axes of normal maps: x right, y up, z to the viewer."""
    depth: Float32[np.ndarray, " P"]
    """Distance along the optical axis, m."""


@dataclass(frozen=True)
class SharpClip(Clip):
    """A clip whose pictures are read at the source's resolution, within limits."""

    @property
    def picture_size(self) -> int:
        """Side of the pictures, px."""
        return int(np.clip(round(float(self.tracking.crop[2])), CROP_SIZE, SHARPEST))

    def crops(self, rows: Int64[np.ndarray, " R"]) -> Iterator[UInt8[np.ndarray, "S S 3"]]:
        """The pictures of some frames, cropped at `picture_size` px."""
        crop = Crop(*map(float, self.tracking.crop))
        for picture in read_pictures(self.tracking.source, self.tracking.first_frame + rows):
            yield crop_image(picture, crop, self.picture_size)


def look(
    verts_cam: Float32[np.ndarray, "V 3"], head: HeadModel, vertices: Int64[np.ndarray, " P"], focal_px: float
) -> View:
    """Project a posed head (camera, m) and find which of `vertices` are visible."""
    camera = Camera.of_crop(focal_px, CROP_SIZE, DRAW_SIZE)
    verts = torch.from_numpy(verts_cam)
    rast = rasterize(camera.clip(verts)[None], head.dense_faces, (DRAW_SIZE, DRAW_SIZE))
    ids = rast[0, ..., 3].numpy().astype(np.int64) - 1
    first = head.dense_faces.numpy()[np.maximum(ids, 0), 0]
    nearest = np.where(ids >= 0, verts_cam[first, 2], 1e3).astype(np.float32)
    nearest = cv2.dilate(nearest, np.ones((3, 3), np.uint8))
    normals = vertex_normals(verts, head.dense_faces)[vertices]
    points = verts_cam[vertices]
    sight = points / np.linalg.norm(points, axis=1, keepdims=True)
    cosine = -(normals.numpy() * sight).sum(1)
    low, high = FACING
    px = points[:, :2] / points[:, 2:] * focal_px + CROP_SIZE / 2
    column, row = np.clip(px * DRAW_SIZE / CROP_SIZE, 0, DRAW_SIZE - 1).astype(int).T
    seen = (px > 1).all(1) & (px < CROP_SIZE - 1).all(1) & (points[:, 2] < nearest[row, column] + SLACK_M)
    weight = np.clip((cosine - low) / (high - low), 0, 1) * seen
    return View(
        px=px.astype(np.float32),
        weight=weight.astype(np.float32),
        normals=(normals.numpy() * np.array([1, -1, -1])).astype(np.float32),
        depth=points[:, 2].copy(),
    )


def log_intensity(crop: UInt8[np.ndarray, "S S 3"]) -> Float32[np.ndarray, "S S"]:
    """Natural logarithm of linear luminance, slightly blurred; NaN where the picture is clipped."""
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32)
    clipped = (grey < DARK) | (grey > BRIGHT)
    value = cv2.GaussianBlur(grey, (0, 0), BLUR_PX)
    return np.where(clipped, np.nan, GAMMA * np.log(np.maximum(value, DARK) / 255)).astype(np.float32)


LIGHT_FRAMES = 48
"""Frames from which light and albedo are measured."""

OTHER_COLOUR, WANDERS, UNUSUAL = 0.5, 0.12, 0.35
"""Limits in log intensity. A vertex is not plain skin if its albedo is further than OTHER_COLOUR from the median, or
its colour changes by more than WANDERS (median over time); a frame is left out at vertices further off than UNUSUAL."""
SURROUNDINGS, SURE = 4, 0.8
"""A vertex is used if more than the share SURE of its surroundings, over SURROUNDINGS smoothing steps, is usable."""

REGION_STEPS = 16
"""Smoothing steps of the noise variance over the mesh: a region of 4 mm."""
LEAST_NOISE, MOST_NOISE = 0.0045, 0.0058
"""Bounds of the noise in log intensity: the grain of a good camera; above the upper bound folds would be lost."""
ACROSS = 0.15
"""Change of log shade, per radian of tilt, below which the weight of a vertex falls."""

Picture = UInt8[np.ndarray, "S S 3"]


@runtime_checkable
class Evidence(Protocol):
    """Factory of losses for some frames, from their pictures and the posed heads."""

    @property
    def smoothness(self) -> float:
        """Lambda of the preconditioner I + lambda L (L: the mesh's Laplacian), in squared edge lengths of the mesh."""
        ...

    @property
    def rate_m(self) -> float:
        """Length of a step of the preconditioned variable, m."""
        ...

    def terms(self, crops: Sequence[Picture], verts: Float32[Tensor, "T V 3"]) -> list[Term]:
        """Make the losses, each with one value a frame; the first one measures the quality of a fit."""
        ...


def views_of(verts: Float32[Tensor, "T V 3"], clip: Clip, vertices: Int64[np.ndarray, " P"]) -> list[View]:
    """Project some vertices in each frame of posed heads (`look`)."""
    return [look(np.ascontiguousarray(frame), clip.head, vertices, clip.focal_px) for frame in verts.numpy()]


@dataclass(frozen=True)
class Shading:
    """Evidence from shading: needs no network, but frames with different expressions."""

    clip: Clip
    patch: Patch
    light: Light
    log_albedo: Float32[np.ndarray, " P"]
    """Log albedo of the face at rest; permanent folds are part of it, so they are not fitted in any frame."""
    noise: Float32[np.ndarray, " P"]
    """Variance of high-passed log intensities that do not come from folds: grain, and errors of the tracking."""
    plain: Bool[np.ndarray, " P"]
    """Vertices of plain skin; others are not used."""

    @classmethod
    def of(cls, clip: Clip, patch: Patch, plain: Bool[np.ndarray, " V"], offsets: Float32[np.ndarray, "T P 3"]):
        """Estimate light and albedo on frames spread over the clip; `offsets` (masked, m) are those of its frames."""
        sure = np.flatnonzero(clip.tracking.sure)
        rows = sure[np.unique(np.linspace(0, len(sure) - 1, LIGHT_FRAMES).astype(int))]
        own = plain[patch.vertices]
        values, normals, seen = [], [], []
        for row, crop in zip(rows, clip.crops(rows), strict=True):
            (view,) = views_of(clip.pose(row[None], patch, offsets[row][None])[0], clip, patch.vertices)
            value = at_vertices([log_intensity(crop)], [view])[0]
            values.append(np.nan_to_num(value))
            normals.append(view.normals)
            seen.append((view.weight > 0.5) & np.isfinite(value) & own)
        light, albedo = estimate(np.stack(values), np.stack(normals), np.stack(seen))
        shade = light.log_shade(torch.from_numpy(np.stack(normals))).numpy()
        colour, where = np.stack(values) - shade, np.stack(seen)
        skin = like_skin(colour, where, albedo)
        tracking = clip.tracking
        calm = calmest(clip.head.shares(tracking.expression[rows]), tracking.jaw[rows], tracking.sure[rows])
        albedo, noise = resting_albedo(patch, colour[calm], where[calm], albedo)
        return cls(clip, patch, light, albedo, noise, own & (_eroded(skin[None], patch)[0] > SURE))

    @property
    def smoothness(self) -> float:
        """Lambda of the preconditioner I + lambda L (L: the mesh's Laplacian), in squared edge lengths of the mesh."""
        return self.clip.config.descent.shading_smoothness

    @property
    def rate_m(self) -> float:
        """Length of a step."""
        return self.clip.config.descent.shading_rate_m

    def terms(self, crops: Sequence[Picture], verts: Float32[Tensor, "T V 3"]) -> list[Term]:
        """Make the shading loss."""
        views = views_of(verts, self.clip, self.patch.vertices)
        values = [log_intensity(crop) for crop in crops]
        read_here = at_vertices(values, views)
        normals = torch.from_numpy(np.stack([view.normals for view in views]))
        flat = self.light.log_shade(normals)
        beyond = read_here - flat.numpy() - self.log_albedo
        with np.errstate(invalid="ignore"):
            usual = np.abs(beyond) < UNUSUAL
        usual |= ~self.plain
        seen = weights_of(views) * self.plain * (_eroded(usual, self.patch) > SURE) * np.isfinite(read_here)
        slope = self.light.log_slope(normals)
        across = (slope - (slope * normals).sum(-1, keepdim=True) * normals).norm(dim=-1)
        # Where the light comes along the normal, shading hardly depends on tilt.
        weight = torch.from_numpy(seen.astype(np.float32)) * (across / ACROSS).square().clamp(max=1)
        target = shown_folds(self.patch, torch.from_numpy(beyond), weight, torch.from_numpy(self.noise))
        scale, corner = self.clip.config.weights.shading, self.clip.config.weights.shading_corner
        albedo = torch.from_numpy(self.log_albedo)
        return [ShadingLoss(self.patch, self.light, albedo, flat, target, weight, scale, corner)]


@dataclass(frozen=True)
class Estimates:
    """Evidence from normals and depth that a network estimates in every picture separately."""

    clip: Clip
    patch: Patch
    estimator: Estimator
    plain: Bool[np.ndarray, " V"]
    """Vertices at which the estimates are used."""
    share: float = 1.0
    """Weight of these losses: 1 for folds, `FitWeights.static_estimates` for Delta g."""

    @property
    def smoothness(self) -> float:
        """Lambda of the preconditioner I + lambda L (L: the mesh's Laplacian), in squared edge lengths of the mesh."""
        return self.clip.config.descent.normals_smoothness

    @property
    def rate_m(self) -> float:
        """Length of a step."""
        return self.clip.config.descent.normals_rate_m

    def terms(self, crops: Sequence[Picture], verts: Float32[Tensor, "T V 3"]) -> list[Term]:
        """Make the loss on normals, and one on depth if the estimator returns depth."""
        views = views_of(verts, self.clip, self.patch.vertices)
        found = [self.estimator(crop) for crop in crops]
        sure = at_vertices([f.confidence for f in found], views) * self.plain[self.patch.vertices] * weights_of(views)
        weight = torch.from_numpy(sure.astype(np.float32))
        normals = torch.from_numpy(np.stack([f.normals for f in found])).permute(0, 3, 1, 2)
        terms: list[Term] = [NormalLoss(self.patch, normals, weight, self.share)]
        depths = [f.depth for f in found]
        known = torch.from_numpy(np.isfinite(at_vertices(depths, views)))
        if bool(known.any()):
            per_mm = self.share * self.clip.config.weights.depth_per_mm
            terms.append(DepthLoss(self._aligned(depths, verts), weight * known, per_mm))
        return terms

    def _aligned(self, depths: Sequence[np.ndarray], verts: Tensor) -> Float32[Tensor, "T 1 H W"]:
        """Depth pictures in mm; scale and shift are fitted on face, ears, jaw and neck: hair is not modelled."""
        views = views_of(verts, self.clip, np.flatnonzero(bare_rim(self.clip.head) | plain_skin(self.clip.head)))
        values = at_vertices(depths, views)
        weight = torch.from_numpy((weights_of(views) * np.isfinite(values)).astype(np.float32))
        target = torch.from_numpy(np.stack([view.depth for view in views]))
        scale, shift = align(torch.from_numpy(np.nan_to_num(values)), MM * target, weight)
        pictures = torch.from_numpy(np.nan_to_num(np.stack(depths)))
        return (scale[..., None] * pictures + shift[..., None])[:, None]


def like_skin(
    log_colour: Float32[np.ndarray, "T P"], seen: Bool[np.ndarray, "T P"], log_albedo: Float32[np.ndarray, " P"]
) -> Bool[np.ndarray, " P"]:
    """Mask of vertices with the usual, constant colour: no brows, beards, strands of hair or glasses."""
    ever = np.any(seen, axis=0)
    if not ever.any():
        return ever
    typical = np.median(log_albedo[ever])
    away = np.where(seen, np.abs(log_colour - log_albedo), np.nan)
    wander = np.full(len(ever), np.inf)
    wander[ever] = np.nanmedian(away[:, ever], axis=0)
    return (np.abs(log_albedo - typical) < OTHER_COLOUR) & (wander < WANDERS)


def resting_albedo(
    patch: Patch,
    log_colour: Float32[np.ndarray, "C P"],
    seen: Bool[np.ndarray, "C P"],
    log_albedo: Float32[np.ndarray, " P"],
) -> tuple[Float32[np.ndarray, " P"], Float32[np.ndarray, " P"]]:
    """Return the log albedo of the face at rest, and the variance of the noise of log intensities, for each vertex.

    The albedo is the median over the calm frames that show the vertex, or `log_albedo` where too few do. The noise is
    0.6 times the variance of the residual around it, averaged over a region, within bounds. The variance follows from
    the median of squares: a change in a minority of frames is an expression, not noise.
    """
    known = seen.sum(0) >= CALM_FRAMES
    albedo = log_albedo.copy()
    albedo[known] = np.nanmedian(np.where(seen, log_colour, np.nan)[:, known], axis=0)
    where = torch.from_numpy((seen & known).astype(np.float32))
    error = high_passed(patch, torch.from_numpy((log_colour - albedo).astype(np.float32)), where).numpy()
    variance = np.zeros(len(albedo), np.float32)
    # Of a normal distribution, the median of squares is 0.455 of their mean. Most of the noise is told from folds by
    # its being new in every frame, so that a part of it is enough here.
    variance[known] = np.nanmedian(np.where(seen, error**2, np.nan)[:, known], axis=0) * (0.6 / 0.455)
    around = torch.from_numpy(np.stack([variance, known.astype(np.float32)], -1))[None]
    total, share = patch.smooth(around, REGION_STEPS)[0].numpy().T
    return albedo, np.clip(total / np.maximum(share, 0.05), LEAST_NOISE**2, MOST_NOISE**2).astype(np.float32)


def _eroded(mask: Bool[np.ndarray, "T P"], patch: Patch) -> Float32[np.ndarray, "T P"]:
    """Share (0..1) of each vertex's surroundings that is inside a mask."""
    return patch.smooth(torch.from_numpy(mask.astype(np.float32))[..., None], SURROUNDINGS)[..., 0].numpy()


def at_vertices(pictures: Sequence[Float32[np.ndarray, "H W"]], views: Sequence[View]) -> Float32[np.ndarray, "T P"]:
    """Sample pictures of the crop at projected vertices; a sample that touches a NaN is NaN."""
    stack = torch.from_numpy(np.stack(pictures))[:, None]
    return read(stack, torch.from_numpy(np.stack([view.px for view in views])))[..., 0].numpy()


def weights_of(views: Sequence[View]) -> Float32[np.ndarray, "T P"]:
    """Stack the visibility weights (0..1) of views."""
    return np.stack([view.weight for view in views])


def checked_axes(network: Estimator, clip: Clip, row: int) -> Estimator:
    """Wrap a network so that its axes agree with the posed head's normals; they are compared in frame `row`.

    The axes of networks are rarely documented, and wrong ones would ruin a fit silently.
    """
    (crop,) = clip.crops(np.array([row]))
    verts, _ = clip.pose(np.array([row]), Patch.of(clip.head.dense_faces.numpy(), dynamic_mask(clip.head)))
    camera = Camera.of_crop(clip.focal_px, CROP_SIZE, CROP_SIZE)
    expected = render_buffers(verts, clip.head.dense_faces, camera, antialias=False).normals[0].numpy()
    return turned(network, establish_axes(network(crop).normals, expected))


def windows_of(clip: Clip, rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, list[Picture]]]:
    """Yield windows of at most `size` frames with their pictures, read in one pass."""
    crops = clip.crops(rows)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield part, [next(crops) for _ in part]
