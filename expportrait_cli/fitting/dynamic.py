"""Dynamic offsets of every frame: smooth ones from landmarks, then folds from pictures (paper 3.1.2, 3.1.3)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Float32, Int64
from scipy import sparse
from torch import Tensor

from expportrait_cli.fitting.clip import WINDOW, Clip, plain_skin, recentred
from expportrait_cli.fitting.evidence import Evidence, Shading, windows_of
from expportrait_cli.fitting.losses import MM, MagnitudeLoss, ShadingLoss, TemporalLoss, descend
from expportrait_cli.fitting.patch import TO_NORMALS, Patch, PosedPatch, Preconditioner, Surface, limited
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.head.facemesh import LandmarkSpread
from expportrait_cli.head.fitted import neutral_mesh
from expportrait_cli.runtime import Progress


@dataclass(frozen=True)
class Dynamic:
    """Offsets of every frame on the face, and their common static part; all canonical, masked, m."""

    vertices: Int64[np.ndarray, " P"]
    smooth: Float32[np.ndarray, "T P 3"]
    """Offsets that bring the model to the landmarks, m."""
    heights: Float32[np.ndarray, "T P"]
    """Heights fitted to the pictures on top of `smooth`, along `directions`, m."""
    directions: Float32[np.ndarray, "P 3"]
    """Unit normals of the neutral head, canonical."""
    static: Float32[np.ndarray, "P 3"]
    """Part of the frames' weighted mean that counts as the person's own shape, m: to be added to Delta g."""
    limit_m: float
    """Largest offset of a frame, m."""
    loss: Float32[np.ndarray, "T 2"]
    """Data loss of each frame without and with heights; NaN where there was nothing to compare with."""

    def folds(self, rows: Int64[np.ndarray, " R"]) -> Float32[np.ndarray, "R P 3"]:
        """Heights of some frames as offsets."""
        return self.heights[rows, :, None] * self.directions

    def offset(self) -> Float16[np.ndarray, "T P 3"]:
        """Delta f of every frame, as float16: at 4 mm it is rounded by up to 2 micrometres."""
        result = np.empty(self.smooth.shape, np.float16)
        for t in range(len(result)):
            result[t] = limited(self.smooth[t] + self.folds(np.array([t]))[0], self.limit_m)
        return result


def landmark_field(clip: Clip, patch: Patch) -> Float32[np.ndarray, "T P 3"]:
    """Smooth offsets of every frame from its landmarks, canonical, masked, m."""
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
    """Fit the offsets of every frame; `weights` and `share` define the static part (see `clip.recentred`).

    `evidence` makes the losses for folds from the smooth field; if it returns None no folds are fitted.
    """
    smooth = landmark_field(clip, patch)
    static, smooth = recentred(smooth, weights, share)
    # A mean beyond the limit is not the shape of a face; the rest stays in the frames' offsets.
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
    """Fit heights (m) of every frame over the smooth field, window by window; also the data loss, see `Dynamic`."""
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
    """1 for each frame of `rows` that directly follows another one of `rows` in the same shot, else 0."""
    result = np.zeros(len(clip.tracking.state), np.float32)
    shot = clip.tracking.shot
    result[rows[1:]] = (np.diff(rows) == 1) & (shot[rows[1:]] == shot[rows[:-1]])
    return result


def neutral_normals(clip: Clip, patch: Patch) -> Float32[Tensor, "P 3"]:
    """Unit normals of the person's neutral head, canonical."""
    return vertex_normals(neutral_mesh(clip.fit, clip.head), clip.head.dense_faces)[patch.vertices]


def unseen_folds(
    clip: Clip, patch: Patch, offsets: Float32[np.ndarray, "T P 3"], unseen: Bool[np.ndarray, " T"]
) -> tuple[Float32[np.ndarray, "R P"], Float32[np.ndarray, "R P"], Float32[np.ndarray, "R P"]]:
    """Measure folds in frames that were not fitted (`unseen`, every second one), as high-passed log shades.

    Returns, for each such frame and vertex: the folds in the picture, the folds of the mean of the neighbouring frames'
    offsets, and the weight of the vertex. `offsets` are masked, m; those of unseen frames are smooth, without folds.
    """
    rows = np.flatnonzero(unseen[1:-1] & (clip.tracking.state[1:-1] == 0)) + 1
    around = (offsets[:-2] + offsets[2:]) / 2
    # Light and albedo are estimated without folds: fitted frames take the mean of their neighbours' smooth offsets.
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


ROUNDS, STEPS = 2, 15
"""Gauss-Newton rounds, and conjugate gradient steps in each; a third round changes heights by a few percent."""

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
    """Heights (m, before the mask) along `directions` that reproduce the shading of the pictures.

    Gauss-Newton, which converges in few steps where gradient descent hardly moves: shading is nearly linear in the
    heights, and its Jacobian is a sparse matrix in closed form. Each round solves for the heights of all frames of a
    window at once by conjugate gradients, with step lengths for each frame, so that faint folds converge as fast as
    strong ones.

    `loss.corner` (robust) and `height_mm` are the standard deviations of log shade and of height. `follows`: weight of
    the difference from the frame before, relative to that of the height itself. `before`: offset of the frame before
    the window, canonical, m.
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
        # The frame before is taken from the round before, so that frames are independent within a round.
        earlier = torch.cat([last, mask * heights[:-1]]) if count else last.expand(shape)
        pull = follow if count else follow * (torch.arange(len(follow)) == 0)[:, None]

        def curvature(step: Heights, slopes=slopes, trust=trust, pull=pull) -> Heights:
            return slopes.back(trust * slopes(step)) + (stay + mask * pull) * step

        downhill = slopes.back(-trust * error) - stay * heights - mask * pull * (mask * heights - earlier)
        heights = heights + _solved(curvature, downhill, preconditioner)
    return heights[..., None]


def _solved(curvature, right: Heights, preconditioner: Preconditioner) -> Heights:
    """Solve by conjugate gradients, each frame by itself, in the preconditioned variable."""

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
    """Jacobian of the log shade of every vertex by the heights around it, block diagonal [T x P, T x P], per m."""

    matrix: sparse.csr_matrix
    turned: sparse.csr_matrix

    @classmethod
    def of(cls, loss: ShadingLoss, shown: Surface, rise: Float[Tensor, "T P 3"]) -> "Slopes":
        """Linearise at a surface; `rise`: derivative of each vertex by its height, camera axes."""
        frames, points = loss.weight.shape
        faces, slope = loss.patch.faces.numpy(), loss.light.log_slope(shown.normals)
        # All pairs of corners of triangles, each once, and the index of each triangle's pairs among them.
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
        """Change of log shade for a change of heights, m."""
        return torch.from_numpy(self.matrix @ heights.numpy().ravel()).view(heights.shape)

    def back(self, shades: Heights) -> Heights:
        """Apply the transposed Jacobian: from log shades to heights."""
        return torch.from_numpy(self.turned @ shades.numpy().ravel()).view(shades.shape)


def _corner_slopes(faces: np.ndarray, verts: np.ndarray, normals: np.ndarray, slope: np.ndarray, rise: np.ndarray):
    """Derivative of the log shade at each corner of a triangle (axis 1) by the height of each corner (axis 2)."""
    a, b, c = verts[faces].swapaxes(0, 1)
    by_face = np.repeat(np.cross(b - a, c - a), 3, 0)
    total = np.stack([np.bincount(faces.ravel(), by_face[:, axis], len(verts)) for axis in range(3)], -1)
    length = np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-15)
    across = (slope - normals * (normals * slope).sum(-1, keepdims=True)) / length
    opposite = np.stack([b - c, c - a, a - b], 1)
    return np.einsum("fvk,fuk->fvu", across[faces], np.cross(rise[faces], opposite))
