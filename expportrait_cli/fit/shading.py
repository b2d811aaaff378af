"""Light on a face, and what it says of its shape: the supervision that needs no network (clips only).

log I_i(v) = log albedo(v) + log S(n_i(v)) with S of nine spherical harmonics, one for a clip. The albedo cancels in the
difference from the clip's median, so that what remains is what moved: folds that come and go.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

LEAST_SHADE = 0.05
ROUNDS = 6
RIDGE = 1e-3
FAR_OFF = 0.15
"""Error of a shade from which it counts less: gloss, hair, shadow."""
BAND_PENALTY = np.array([0.0, 1, 1, 1, 8, 8, 8, 8, 8])
"""Of the harmonics by order: faces show one side of the sphere, on which the second order is poorly known."""


def harmonics(normals: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 9"]:
    """Real spherical harmonics up to the second order, without their constants."""
    x, y, z = normals.unbind(-1)
    return torch.stack([torch.ones_like(x), x, y, z, x * y, x * z, y * z, x * x - y * y, 3 * z * z - 1], -1)


@dataclass(frozen=True)
class Light:
    """Shade of a surface by its normal, in the axes of normal maps; 1 on average over the face."""

    weights: Float[Tensor, " 9"]

    def log_shade(self, normals: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B"]:
        """Logarithm of the shade, floored where the model goes dark."""
        return (harmonics(normals) @ self.weights.to(normals)).clamp(min=LEAST_SHADE).log()


def estimate(
    log_intensity: Float32[np.ndarray, "T P"], normals: Float32[np.ndarray, "T P 3"], seen: Bool[np.ndarray, "T P"]
) -> tuple[Light, Float32[np.ndarray, " P"]]:
    """Light of a clip and log albedo of each vertex, from the smooth mesh.

    Alternates between both; the albedo starts as one skin colour, without which a head that never turns would leave
    light and albedo undetermined. Robust: a vertex's albedo is a median over time, and what fits badly counts less.
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
    """Ridge regression of the shade on the harmonics; what the light before explains badly counts less."""
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
    """Median over time of what the shade does not explain; NaN for a vertex that was never seen."""
    rest = np.where(seen, log_intensity - log_shade, np.nan)
    result = np.full(rest.shape[1], np.nan)
    ever = seen.any(0)
    result[ever] = np.nanmedian(rest[:, ever], axis=0)
    return result
