"""Dynamic offsets of every frame: what the landmarks say beyond the model, then the folds (paper 3.1.2, 3.1.3)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float16, Float32, Int64
from torch import Tensor

from expportrait_cli.fitting.clip import WINDOW, Clip, plain_skin, recentred
from expportrait_cli.fitting.evidence import Evidence, Shading, windows_of
from expportrait_cli.fitting.losses import MagnitudeLoss, ShadingLoss, TemporalLoss, descend
from expportrait_cli.fitting.patch import Patch, limited
from expportrait_cli.fitting.relief import heights_by_shading
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.head.facemesh import LandmarkSpread
from expportrait_cli.head.fitted import neutral_mesh
from expportrait_cli.runtime import Progress


@dataclass(frozen=True)
class Dynamic:
    """Offsets of every frame on the face, and the static one that they share; all canonical, masked, m."""

    vertices: Int64[np.ndarray, " P"]
    smooth: Float32[np.ndarray, "T P 3"]
    """What the landmarks say."""
    heights: Float32[np.ndarray, "T P"]
    """What the pictures say beyond them, along `directions`."""
    directions: Float32[np.ndarray, "P 3"]
    """Normals of the neutral head."""
    static: Float32[np.ndarray, "P 3"]
    """Weighted mean of all, as far as it counts as the person's own shape: to be added to Delta g."""
    limit_m: float
    """Largest offset of a frame."""
    loss: Float32[np.ndarray, "T 2"]
    """Data loss of each frame without and with heights; NaN where there was nothing to compare with."""

    def folds(self, rows: Int64[np.ndarray, " R"]) -> Float32[np.ndarray, "R P 3"]:
        """Heights of some frames as offsets."""
        return self.heights[rows, :, None] * self.directions

    def offset(self) -> Float16[np.ndarray, "T P 3"]:
        """Delta f of every frame; 16 bits hold 4 mm to 2 micrometres."""
        result = np.empty(self.smooth.shape, np.float16)
        for t in range(len(result)):
            result[t] = limited(self.smooth[t] + self.folds(np.array([t]))[0], self.limit_m)
        return result


def landmark_field(clip: Clip, patch: Patch) -> Float32[np.ndarray, "T P 3"]:
    """The smooth part of every frame's offset, masked."""
    spread = LandmarkSpread(clip.head, clip.fit.identity)
    field = np.concatenate([clip.landmark_offsets(rows, patch, spread) for rows in clip.windows()])
    return limited(field, clip.config.descent.dynamic_limit_m) * patch.mask.numpy()[:, None]


def dynamic_offsets(
    clip: Clip,
    patch: Patch,
    *,
    weights: np.ndarray,
    share: float,
    evidence: Callable[[Float32[np.ndarray, "T P 3"]], Evidence | None],
    progress: Progress,
) -> Dynamic:
    """Fit every frame; `weights` and `share` say what of the mean is static (see `masks.recentred`).

    `evidence` makes the losses from the smooth field; None stops there.
    """
    smooth = landmark_field(clip, patch)
    static, smooth = recentred(smooth, weights, share)
    # What is beyond the limit is no shape of a face; it stays with the frames.
    within = limited(static, clip.config.descent.static_limit_m)
    smooth += static - within
    directions = neutral_normals(clip, patch)
    heights = np.zeros((*smooth.shape[:2], 1), np.float32)
    loss = np.full((len(smooth), 2), np.nan, np.float32)
    folds = evidence(smooth + within)
    if folds is not None:
        heights, loss = _folds(clip, patch, smooth + within, directions, folds, progress)
        more, heights = recentred(heights, weights, share)
        within = within + more * directions.numpy()
    return Dynamic(
        patch.vertices, smooth, heights[..., 0], directions.numpy(), within, clip.config.descent.dynamic_limit_m, loss
    )


def _folds(clip, patch, smooth, directions, folds: Evidence, progress: Progress):
    """Heights of every frame over the smooth field, window by window: memory does not grow with the clip."""
    heights = np.zeros((*smooth.shape[:2], 1), np.float32)
    loss = np.full((len(smooth), 2), np.nan, np.float32)
    preconditioner, config = patch.preconditioner(folds.smoothness), clip.config
    rows = clip.tracked()
    follows = follows_on(clip, rows)
    last = torch.zeros(len(patch.vertices), 3)
    for window, crops in windows_of(clip, rows, WINDOW):
        progress(int(window[0]), len(smooth))
        verts, posed = clip.pose(window, patch, smooth[window])
        seen = folds.terms(crops, verts)
        flat = torch.zeros(len(window), len(patch.vertices), 1)

        def raised(field, posed=posed):
            return posed.raised(field, directions)

        continues, weights = torch.from_numpy(follows[window]), config.weights
        if isinstance(seen[0], ShadingLoss):
            field = heights_by_shading(
                seen[0],
                posed,
                directions,
                preconditioner,
                before=last,
                follows=weights.temporal_per_mm2 / weights.dynamic_per_mm2 * continues,
                height_mm=weights.fold_mm,
            )
        else:
            calm = TemporalLoss(last, continues, weights.temporal_per_mm2)
            terms = [*seen, MagnitudeLoss(weights.dynamic_per_mm2), calm]
            field, _ = descend(flat, raised, terms, preconditioner, iterations=config.iterations, rate=folds.rate_m)
        with torch.no_grad():
            loss[window] = np.stack([seen[0](raised(f)).numpy() for f in (flat, field)], -1)
            last = raised(field[-1:], posed.last()).offset[0]
        heights[window] = (field * patch.mask[:, None]).numpy()
    progress(len(smooth), len(smooth))
    return heights, loss


def follows_on(clip: Clip, rows: Int64[np.ndarray, " R"]) -> Float32[np.ndarray, " T"]:
    """1 for frames (of all) that continue the one before them: the same shot, and none left out."""
    result = np.zeros(len(clip.tracking.state), np.float32)
    shot = clip.tracking.shot
    result[rows[1:]] = (np.diff(rows) == 1) & (shot[rows[1:]] == shot[rows[:-1]])
    return result


def neutral_normals(clip: Clip, patch: Patch) -> Float32[Tensor, "P 3"]:
    """Normals of the person's neutral head, canonical."""
    return vertex_normals(neutral_mesh(clip.fit, clip.head), clip.head.dense_faces)[patch.vertices]


def unseen_folds(
    clip: Clip, patch: Patch, offsets: Float32[np.ndarray, "T P 3"], unseen: Bool[np.ndarray, " T"]
) -> tuple[Float32[np.ndarray, "R P"], Float32[np.ndarray, "R P"], Float32[np.ndarray, "R P"]]:
    """Measure folds in frames that were not fitted: as pictures show them, as neighbours predict them, and weights.

    `offsets` are masked; they are smooth in the unseen frames, every second one of the clip. Log shade, high-passed.
    """
    rows = np.flatnonzero(unseen[1:-1] & (clip.tracking.state[1:-1] == 0)) + 1
    around = (offsets[:-2] + offsets[2:]) / 2
    # Light and albedo are measured without folds, for which a fitted frame borrows its neighbours' smooth offsets.
    flat = offsets.copy()
    flat[1:-1][~unseen[1:-1]] = around[~unseen[1:-1]]
    shading, still = Shading.of(clip, patch, plain_skin(clip.head), flat), torch.zeros(1, len(patch.vertices), 3)
    found = []
    for window, crops in windows_of(clip, rows, WINDOW):
        verts, posed = clip.pose(window, patch, flat[window])
        raised = clip.pose(window, patch, around[window - 1])[1]
        (term,) = (term for term in shading.terms(crops, verts) if isinstance(term, ShadingLoss))
        with torch.no_grad():
            without, with_folds = term.residual(posed.moved(still)), term.residual(raised.moved(still))
        found.append([-without, with_folds - without, term.weight])
    shown, made, weight = (torch.cat(each).numpy() for each in zip(*found, strict=True))
    return shown, made, weight
