"""Losses of the fit (paper Eq. 5 to 7), a shading loss for fits without a network, and their minimisation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from expportrait_cli.config import FitWeights
from expportrait_cli.fitting.patch import (
    SMOOTH_STEPS,
    Patch,
    Preconditioner,
    Surface,
    high_passed,
    read,
    seen_share,
    weighted_mean,
)

LEAST_SHADE = 0.05
ROUNDS = 6
RIDGE = 1e-3
FAR_OFF = 0.15
"""Error of a shade above which its weight falls: gloss, hair, shadow."""
BAND_PENALTY = np.array([0.0, 1, 1, 1, 8, 8, 8, 8, 8])
"""Ridge penalty of the nine harmonics, orders 0, 1 and 2: faces cover half the sphere, where order 2 is uncertain."""


def harmonics(normals: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 9"]:
    """Real spherical harmonics up to the second order, without their constants."""
    x, y, z = normals.unbind(-1)
    return torch.stack([torch.ones_like(x), x, y, z, x * y, x * z, y * z, x * x - y * y, 3 * z * z - 1], -1)


@dataclass(frozen=True)
class Light:
    """Shade as a function of the normal (axes of normal maps), in spherical harmonics; about 1 on average."""

    weights: Float[Tensor, " 9"]

    def log_shade(self, normals: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B"]:
        """Logarithm of the shade; the shade is at least `LEAST_SHADE`."""
        return (harmonics(normals) @ self.weights.to(normals)).clamp(min=LEAST_SHADE).log()

    def log_slope(self, normals: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3"]:
        """Gradient of the log shade with respect to the normal."""
        with torch.enable_grad():
            free = normals.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.log_shade(free).sum(), free)
        return slope


def estimate(
    log_intensity: Float32[np.ndarray, "T P"], normals: Float32[np.ndarray, "T P 3"], seen: Bool[np.ndarray, "T P"]
) -> tuple[Light, Float32[np.ndarray, " P"]]:
    """Estimate the light of a clip and the log albedo of each vertex, from the normals of the smooth mesh.

    Alternates between both; the albedo starts as one skin colour, because light and albedo are ambiguous for a head
    that never turns. Robust: albedo is a median over time, and the light is fitted with lower weights for outliers.
    """
    values = np.where(seen, np.exp(log_intensity), 0.0)
    typical = float(np.median(values[seen])) if seen.any() else 1.0
    basis = harmonics(torch.from_numpy(normals)).numpy().astype(np.float64)
    albedo = np.full(normals.shape[1], np.log(max(typical, 1e-3)))
    light = Light(torch.eye(9)[0])
    for _ in range(ROUNDS):
        light = _light(basis, values / np.exp(albedo), seen, light)
        found = log_albedo(log_intensity, light.log_shade(torch.from_numpy(normals)).numpy(), seen)
        albedo = np.where(np.isfinite(found), found, albedo)
    return light, albedo.astype(np.float32)


def _light(basis: Float[np.ndarray, "T P 9"], shade: Float[np.ndarray, "T P"], seen, before: Light) -> Light:
    """Ridge regression of the shade on the harmonics; weights fall with the error under the light `before`."""
    error = shade - basis @ before.weights.numpy()
    trust = (seen / np.maximum(1.0, np.abs(error) / FAR_OFF)).ravel()
    b, y = basis.reshape(-1, 9), shade.ravel()
    total = max(trust.sum(), 1)
    matrix, right = (b * trust[:, None]).T @ b / total, (b * trust[:, None]).T @ y / total
    weights = np.linalg.solve(matrix + RIDGE * np.diag(BAND_PENALTY) + 1e-9 * np.eye(9), right)
    return Light(torch.from_numpy(weights.astype(np.float32)))


def log_albedo(
    log_intensity: Float32[np.ndarray, "T P"], log_shade: Float32[np.ndarray, "T P"], seen: Bool[np.ndarray, "T P"]
) -> Float[np.ndarray, " P"]:
    """Median over time of log intensity minus log shade; NaN for a vertex that was never seen."""
    rest = np.where(seen, log_intensity - log_shade, np.nan)
    result = np.full(rest.shape[1], np.nan)
    ever = seen.any(0)
    result[ever] = np.nanmedian(rest[:, ever], axis=0)
    return result


MM = 1e3
GATE_STEPS = 3
"""Steps of smoothing of the energy that is compared with the noise's: as wide as one fold."""
LASTING = 0.75
"""Power of the share of a fold that lasts from frame to frame: below 1, folds that move keep more."""
GATE = 0.33
"""Length of the difference of smoothed normals above which an estimate is not used (rho of pixel3dmm)."""
ALIGN_POWERS, ALIGN_MM = (1, 1, 1, 1, 2, 2, 2, 2), 1.0
"""Exponents p of the weights 1 / max(error, ALIGN_MM)^p, one a reweighting; 2 nearly ignores outliers."""


def length(vectors: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B"]:
    """Length with a finite gradient at zero."""
    return (vectors.square().sum(-1) + 1e-12).sqrt()


def huber(values: Float[Tensor, "*B"], corner: float) -> Float[Tensor, "*B"]:
    """Huber loss: x²/(2 corner) below `corner`, |x| - corner/2 above."""
    size = values.abs()
    return torch.where(size < corner, 0.5 * size * size / corner, size - 0.5 * corner)


@dataclass(frozen=True)
class NormalLoss:
    """Distance between the mesh's and estimated normals, with separate low and high frequencies.

    A network's low-frequency errors are many degrees, larger than the effect of the identity; so low frequencies are
    used only where they agree roughly, and high ones, the wrinkles, everywhere.
    """

    patch: Patch
    target: Float[Tensor, "T 3 H W"]
    """Unit normals of the crop, x right, y up, z to the viewer."""
    weight: Float[Tensor, "T P"]
    """Weight of each vertex; 0 without an estimate."""
    scale: float = 1.0

    def __call__(self, surface: Surface) -> Float[Tensor, " T"]:
        """Sum of both distances, averaged over the patch; one value a frame."""
        difference = (surface.normals - read(self.target, surface.px)) * (self.weight > 0)[..., None]
        low = self.patch.smooth(difference, SMOOTH_STEPS) / self._share
        believed = (length(low.detach()) < GATE).to(low.dtype)
        return self.scale * weighted_mean(believed * length(low) + length(difference - low), self.weight)

    @cached_property
    def _share(self) -> Float[Tensor, "T P 1"]:
        return seen_share(self.patch, self.weight)


@dataclass(frozen=True)
class DepthLoss:
    """Distance to a depth map that has been aligned with the head (`align`)."""

    target_mm: Float[Tensor, "T 1 H W"]
    weight: Float[Tensor, "T P"]
    per_mm: float

    def __call__(self, surface: Surface) -> Float[Tensor, " T"]:
        """Weighted mean absolute distance, times `per_mm`; one value a frame."""
        difference = MM * surface.verts[..., 2] - read(self.target_mm, surface.px)[..., 0]
        return self.per_mm * weighted_mean(difference.abs(), self.weight)


def align(
    source: Float[Tensor, "T P"], target: Float[Tensor, "T P"], weight: Float[Tensor, "T P"]
) -> tuple[Float[Tensor, "T 1"], Float[Tensor, "T 1"]]:
    """Scale and shift of each frame that map `source` to `target`, by reweighted least squares.

    Networks estimate depth up to scale and shift in each frame; the paper does not mention this.
    """
    scale, shift = _line(source, target, weight)
    for power in ALIGN_POWERS:
        error = (target - scale * source - shift).abs().clamp(min=ALIGN_MM)
        scale, shift = _line(source, target, weight / error**power)
    return scale, shift


def _line(source: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted least squares of target = scale x source + shift, for each frame."""
    total = weight.sum(1, keepdim=True).clamp(min=1e-12)
    x, y = (weight * source).sum(1, keepdim=True) / total, (weight * target).sum(1, keepdim=True) / total
    spread = (weight * (source - x).square()).sum(1, keepdim=True).clamp(min=1e-12)
    scale = (weight * (source - x) * (target - y)).sum(1, keepdim=True) / spread
    return scale, y - scale * x


@dataclass(frozen=True)
class ShadingLoss:
    """Difference between the shading of folds on the mesh and in the picture (`target`)."""

    patch: Patch
    light: Light
    log_albedo: Float[Tensor, " P"]
    flat: Float[Tensor, "T P"]
    """Log shade of the smooth head."""
    target: Float[Tensor, "T P"]
    """Log intensity of folds, high frequencies only: see `shown_folds`."""
    weight: Float[Tensor, "T P"]
    scale: float = FitWeights.shading
    corner: float = FitWeights.shading_corner
    """Difference in log intensity above which it counts linearly."""

    def __call__(self, surface: Surface) -> Float[Tensor, " T"]:
        """Weighted mean Huber loss of `residual`, times `scale`; one value a frame."""
        return self.scale * weighted_mean(huber(self.residual(surface), self.corner), self.weight)

    def residual(self, surface: Surface) -> Float[Tensor, "T P"]:
        """Difference in log intensity; 0 at vertices of weight 0."""
        return torch.where(self.weight > 0, self.light.log_shade(surface.normals) - self.flat - self.target, 0.0)


def shown_folds(
    patch: Patch, values: Float[Tensor, "T P"], weight: Float[Tensor, "T P"], noise: Float[Tensor, " P"]
) -> Float[Tensor, "T P"]:
    """High frequencies of log intensities beyond albedo and smooth shade, with the noise removed.

    A Wiener filter: the result is 0 where the energy around a vertex does not exceed `noise`, a variance, or where
    neither the frame before nor the one after contains the same pattern.
    """
    high = high_passed(patch, values, weight)
    seen = (weight > 0).to(high.dtype)
    both = patch.smooth(torch.stack([high.square(), seen], -1), GATE_STEPS)
    energy = both[..., 0] / both[..., 1].clamp(min=0.05)
    gate = (1 - noise / energy.clamp(min=1e-12)).clamp(min=0)
    return high * (torch.minimum(gate, _lasting(patch, high, seen, energy)) if len(high) > 1 else gate)


def _lasting(
    patch: Patch, high: Float[Tensor, "T P"], seen: Float[Tensor, "T P"], energy: Float[Tensor, "T P"]
) -> Float[Tensor, "T P"]:
    """Share (0..1) of the energy around each vertex that the frames before and after show too, on their mean.

    Grain and subpixel jitter of the tracking differ in every frame, folds do not.
    """
    both = seen[1:] * seen[:-1]
    with_next = patch.smooth(torch.stack([high[1:] * high[:-1] * both, both], -1), GATE_STEPS)
    none = with_next.new_zeros(1, *with_next.shape[1:])
    shared, count = (torch.cat([none, with_next]) + torch.cat([with_next, none])).unbind(-1)
    return (shared / (count.clamp(min=0.05) * energy.clamp(min=1e-12))).clamp(0, 1) ** LASTING


@dataclass(frozen=True)
class LandmarkLoss:
    """Distance of projected landmarks from detected ones (Eq. 5)."""

    triangles: torch.Tensor
    """Indices of the patch's vertices around each landmark, int [L, 3]."""
    barycentrics: Float[Tensor, "L 3"]
    target: Float[Tensor, "T L 2"]
    """Detected landmarks, crop px relative to the principal point."""
    weight: Float[Tensor, "T L"]
    unit_px: Float[Tensor, " T"]
    focal_px: float

    def __call__(self, surface: Surface) -> Float[Tensor, " T"]:
        """Weighted mean Huber loss, in units of 2 % of the inter-ocular distance (`unit_px`); one value a frame."""
        points = (surface.verts[:, self.triangles] * self.barycentrics[..., None]).sum(-2)
        px = points[..., :2] / points[..., 2:] * self.focal_px
        distance = length(torch.nn.functional.pad(px - self.target, (0, 1))) / self.unit_px[:, None]
        return weighted_mean(huber(distance, 1.0), self.weight)


@dataclass(frozen=True)
class MagnitudeLoss:
    """Penalty on the squared offset (Eq. 7)."""

    per_mm2: float

    def __call__(self, surface: Surface) -> Float[Tensor, " T"]:
        """Mean over the patch; one value a frame."""
        return self.per_mm2 * (MM * surface.offset).square().sum(-1).mean(1)


@dataclass(frozen=True)
class TemporalLoss:
    """Penalty on the squared change of the offset from frame to frame."""

    before: Float[Tensor, "P 3"]
    """Offset of the frame before the window, canonical, m."""
    follows: Float[Tensor, " T"]
    """1 where a frame continues the one before it, 0 after a cut or a gap."""
    per_mm2: float

    def __call__(self, surface: Surface) -> Float[Tensor, " T"]:
        """Mean over the patch; the gradient reaches only the later frame of each pair."""
        earlier = torch.cat([self.before[None], surface.offset[:-1].detach()])
        change = (MM * (surface.offset - earlier)).square().sum(-1).mean(1)
        return self.per_mm2 * self.follows * change


Term = Callable[[Surface], Float[Tensor, " T"]]
"""A loss with one value a frame."""
DECAYS = (0.9, 0.999)


class UniformAdam:
    """Adam with one step length for a whole field: all divided by the largest second moment (Nicolet et al. 2021).

    With one division a component, vertices of tiny gradients would move as far as the others. Frames (the first axis)
    are independent of each other.
    """

    def __init__(self, variable: Float[Tensor, "T P C"], rate: float):
        self.variable, self._rate, self._count = variable, rate, 0
        self._first = torch.zeros_like(variable)
        self._second = torch.zeros_like(variable)

    def step(self, gradient: Float[Tensor, "T P C"], share: float = 1.0) -> None:
        """Update the variable, in place; `share` is a factor on the step length."""
        self._count += 1
        fast, slow = DECAYS
        self._first.mul_(fast).add_(gradient, alpha=1 - fast)
        self._second.mul_(slow).addcmul_(gradient, gradient, value=1 - slow)
        mean = self._first / (1 - fast**self._count)
        largest = (self._second / (1 - slow**self._count)).amax((1, 2), keepdim=True).sqrt()
        self.variable.data.sub_(share * self._rate * mean / (largest + 1e-12))


def descend(
    start: Float[Tensor, "T P C"],
    surface: Callable[[Float[Tensor, "T P C"]], Surface],
    terms: Sequence[Term],
    preconditioner: Preconditioner,
    *,
    iterations: int,
    rate: float,
) -> tuple[Float[Tensor, "T P C"], Float[Tensor, " T"]]:
    """Minimise the sum of the terms; returns each frame's field of least loss, and that loss.

    `surface` poses a field. One field (T = 1) may be used in many frames; its loss is then their mean. The start is a
    candidate too, so that the result is never worse.
    """
    variable = preconditioner.variable(start).requires_grad_()
    optimiser = UniformAdam(variable, rate)
    best, least = start.clone(), start.new_full((len(start),), torch.inf)
    for iteration in range(iterations + 1):
        field = preconditioner.field(variable)
        shown = surface(field)
        loss = torch.stack([term(shown) for term in terms]).sum(0)
        if len(loss) != len(start):
            loss = loss.mean(0, keepdim=True)
        better = loss.detach() < least
        best[better], least[better] = field.detach()[better], loss.detach()[better]
        if iteration < iterations:
            (gradient,) = torch.autograd.grad(loss.sum(), variable)
            # The step length falls in the second half: else the last steps oscillate by more than folds are high.
            optimiser.step(gradient, min(1.0, 2 * (1 - iteration / iterations)))
    return best, least
