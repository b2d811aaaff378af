"""Losses of the head fit, one value a frame (paper 3.1.3, Eq. 5 to 7).

Each is in a unit of its own that does not depend on the size of the picture: normals are unit vectors, depths and
offsets millimetres, landmarks 2 % of the inter-ocular distance, logarithms of intensity plain numbers.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from expportrait_cli.config import FitWeights
from expportrait_cli.fit.patch import Patch
from expportrait_cli.fit.shading import Light
from expportrait_cli.fit.surface import Surface, read, weighted_mean

MM = 1e3
SMOOTH_STEPS = 12
"""Steps of smoothing between what is low and high frequency: a Gaussian of 3.5 mm on the default head."""
GATE = 0.33
"""Mean difference of smoothed normals above which an estimate is not believed (rho of pixel3dmm)."""
ALIGN_POWERS, ALIGN_MM = (1, 1, 1, 1, 2, 2, 2, 2), 1.0
"""First the least absolute error, then what is off is left out: a neck that the chin hides lies all to one side."""


def length(vectors: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B"]:
    """Length with a finite gradient at zero."""
    return (vectors.square().sum(-1) + 1e-12).sqrt()


def huber(values: Float[Tensor, "*B"], corner: float) -> Float[Tensor, "*B"]:
    """Absolute value, rounded below `corner`: half of x²/corner there."""
    size = values.abs()
    return torch.where(size < corner, 0.5 * size * size / corner, size - 0.5 * corner)


@dataclass(frozen=True)
class NormalLoss:
    """Distance between shown and estimated normals, low and high frequencies apart.

    Networks are wrong by slow fields of many degrees, larger than what an identity changes; so low frequencies count
    only where they agree roughly, and high ones, the wrinkles, in full.
    """

    patch: Patch
    target: Float[Tensor, "T 3 H W"]
    """Unit normals of the crop."""
    weight: Float[Tensor, "T P"]
    """0 where there is none."""
    scale: float = 1.0

    def __call__(self, surface: Surface) -> Float[Tensor, " T"]:
        """Mean over the patch of both distances."""
        difference = (surface.normals - read(self.target, surface.px)) * (self.weight > 0)[..., None]
        low = self.patch.smooth(difference, SMOOTH_STEPS) / self._share
        believed = (length(low.detach()) < GATE).to(low.dtype)
        return self.scale * weighted_mean(believed * length(low) + length(difference - low), self.weight)

    @cached_property
    def _share(self) -> Float[Tensor, "T P 1"]:
        return _seen_share(self.patch, self.weight)


@dataclass(frozen=True)
class DepthLoss:
    """Distance to a depth that has been aligned with the head (`align`)."""

    target_mm: Float[Tensor, "T 1 H W"]
    weight: Float[Tensor, "T P"]
    per_mm: float

    def __call__(self, surface: Surface) -> Float[Tensor, " T"]:
        """Mean absolute distance."""
        difference = MM * surface.verts[..., 2] - read(self.target_mm, surface.px)[..., 0]
        return self.per_mm * weighted_mean(difference.abs(), self.weight)


def align(
    source: Float[Tensor, "T P"], target: Float[Tensor, "T P"], weight: Float[Tensor, "T P"]
) -> tuple[Float[Tensor, "T 1"], Float[Tensor, "T 1"]]:
    """Scale and shift that take `source` to `target` robustly, by reweighted least squares.

    Networks give depth up to both, frame by frame; the paper does not say so.
    """
    scale, shift = _line(source, target, weight)
    for power in ALIGN_POWERS:
        error = (target - scale * source - shift).abs().clamp(min=ALIGN_MM)
        scale, shift = _line(source, target, weight / error**power)
    return scale, shift


def _line(source: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted least squares of target = scale x source + shift, a frame."""
    total = weight.sum(1, keepdim=True).clamp(min=1e-12)
    x, y = (weight * source).sum(1, keepdim=True) / total, (weight * target).sum(1, keepdim=True) / total
    spread = (weight * (source - x).square()).sum(1, keepdim=True).clamp(min=1e-12)
    scale = (weight * (source - x) * (target - y)).sum(1, keepdim=True) / spread
    return scale, y - scale * x


@dataclass(frozen=True)
class ShadingLoss:
    """What the light makes of the normals, against the picture: log intensity without albedo, high frequencies only."""

    patch: Patch
    light: Light
    log_intensity: Float[Tensor, "T 1 H W"]
    log_albedo: Float[Tensor, " P"]
    weight: Float[Tensor, "T P"]

    def __call__(self, surface: Surface) -> Float[Tensor, " T"]:
        """Mean Huber distance, in the unit of normals."""
        return FitWeights.shading * weighted_mean(huber(self.residual(surface), FitWeights.shading_corner), self.weight)

    def residual(self, surface: Surface) -> Float[Tensor, "T P"]:
        """High-passed difference in log intensity, 0 where nothing is seen."""
        seen = self.weight > 0
        target = read(self.log_intensity, surface.px)[..., 0] - self.log_albedo
        difference = torch.where(seen, self.light.log_shade(surface.normals) - target, 0.0)[..., None]
        low = self.patch.smooth(difference, SMOOTH_STEPS) / self._share
        return torch.where(seen, (difference - low)[..., 0], 0.0)

    @cached_property
    def _share(self) -> Float[Tensor, "T P 1"]:
        return _seen_share(self.patch, self.weight)


def _seen_share(patch: Patch, weight: Float[Tensor, "T P"]) -> Float[Tensor, "T P 1"]:
    """How much of the surroundings is seen, by which smoothed values are divided.

    Beside a hole a slow error would look like folds.
    """
    return patch.smooth((weight > 0).to(weight.dtype)[..., None], SMOOTH_STEPS).clamp(min=1e-3)


@dataclass(frozen=True)
class LandmarkLoss:
    """Distance of projected vertices' landmarks from where they are seen (Eq. 5)."""

    triangles: torch.Tensor
    """Patch vertices around each landmark, int [L, 3]."""
    barycentrics: Float[Tensor, "L 3"]
    target: Float[Tensor, "T L 2"]
    """Crop px relative to the principal point."""
    weight: Float[Tensor, "T L"]
    unit_px: Float[Tensor, " T"]
    focal_px: float

    def __call__(self, surface: Surface) -> Float[Tensor, " T"]:
        """Mean Huber distance in units of 2 % of the inter-ocular distance."""
        points = (surface.verts[:, self.triangles] * self.barycentrics[..., None]).sum(-2)
        px = points[..., :2] / points[..., 2:] * self.focal_px
        distance = length(torch.nn.functional.pad(px - self.target, (0, 1))) / self.unit_px[:, None]
        return weighted_mean(huber(distance, 1.0), self.weight)


@dataclass(frozen=True)
class MagnitudeLoss:
    """Square of the offset, so that what nothing asks for stays away (Eq. 7)."""

    per_mm2: float

    def __call__(self, surface: Surface) -> Float[Tensor, " T"]:
        """Mean over the patch."""
        return self.per_mm2 * (MM * surface.offset).square().sum(-1).mean(1)


@dataclass(frozen=True)
class TemporalLoss:
    """Square of the change from frame to frame."""

    before: Float[Tensor, "P 3"]
    """Offset of the frame before the first, m."""
    follows: Float[Tensor, " T"]
    """1 where a frame continues the one before it, 0 after a cut or a gap."""
    per_mm2: float

    def __call__(self, surface: Surface) -> Float[Tensor, " T"]:
        """Mean over the patch; each frame is drawn to the one before, which is not drawn back."""
        earlier = torch.cat([self.before[None], surface.offset[:-1].detach()])
        change = (MM * (surface.offset - earlier)).square().sum(-1).mean(1)
        return self.per_mm2 * self.follows * change
