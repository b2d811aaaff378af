"""Normals and depth of a crop, from networks that the user may add: one small interface, an adapter for each network.

Normals have the axes of normal maps (`render.buffers.encode`): camera space, x right, y up, z to the viewer.
"""

import logging
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from expportrait_cli.errors import InputError

log = logging.getLogger(__name__)

DOUBTFUL = 0.8
"""Confidence below which a normal should not be fitted to."""
KNOWN = 0.1
"""Confidence below which nothing at all is known."""
INSTALL = "pip install onnxruntime"
MARGIN = 0.1
"""Mean cosine by which the right axes have to win. A frontal head separates the next best by 0.4."""


@dataclass(frozen=True)
class Estimate:
    """A network's normals, depth and confidence in a square crop."""

    normals: Float32[np.ndarray, "S S 3"]
    """x right, y up, z to the viewer; unit length, zero where nothing is known."""
    depth: Float32[np.ndarray, "S S"]
    """Grows with the distance, up to scale and shift; NaN where nothing is known, or where the network has none."""
    confidence: Float32[np.ndarray, "S S"]
    """0..1: how long the network's vector was before it was made a unit, times how much of the pixel is the person."""


# The tests check annotations as they run.
@runtime_checkable
class Estimator(Protocol):
    """A network behind its adapter."""

    @property
    def name(self) -> str:
        """Name of the network."""
        ...

    @property
    def licence(self) -> str:
        """Licence of its weights."""
        ...

    def __call__(self, crop: UInt8[np.ndarray, "S S 3"]) -> Estimate:
        """Estimate an RGB crop."""
        ...


@dataclass(frozen=True)
class Axes:
    """The signed permutation of axes that turns a network's vectors into normals."""

    matrix: Float32[np.ndarray, "3 3"]
    """A signed permutation: normal = matrix @ vector."""
    cosine: float
    """Mean cosine to the expected normals."""
    margin: float
    """How much worse the next best does."""


def assemble(
    vectors: Float32[np.ndarray, "S S 3"],
    axes: Float32[np.ndarray, "3 3"],
    *,
    depth: Float32[np.ndarray, "S S"] | None = None,
    matte: Float32[np.ndarray, "S S"] | None = None,
) -> Estimate:
    """Turn a network's own vectors, depth (growing with the distance) and matte into an estimate.

    A vector or depth that is not finite counts as unknown.
    """
    finite = np.all(np.isfinite(vectors), axis=-1)
    vectors = np.where(finite[..., None], vectors, np.float32(0))
    length = np.linalg.norm(vectors, axis=-1)
    confidence = np.minimum(length, 1) * (1 if matte is None else np.clip(matte, 0, 1))
    known = confidence >= KNOWN
    normals = np.where(known[..., None], vectors @ axes.T / np.maximum(length, 1e-6)[..., None], 0)
    far = np.full(length.shape, np.nan) if depth is None else np.where(known & np.isfinite(depth), depth, np.nan)
    return Estimate(normals.astype(np.float32), far.astype(np.float32), confidence.astype(np.float32))


def establish_axes(vectors: Float32[np.ndarray, "S S 3"], expected: Float32[np.ndarray, "S S 3"]) -> Axes:
    """Find which of the 48 signed permutations of its axes brings a network's vectors onto normals that are known.

    Compares where both are there. The axes of networks are rarely written down, and wrong ones ruin a fit silently:
    a frontal face, rendered or fitted, tells them apart.

    Raises:
        InputError: too little to compare, or no set of axes fits clearly better than all others.
    """
    used = (expected != 0).any(-1) & (vectors != 0).any(-1) & np.isfinite(vectors).all(-1)
    if used.sum() < 100:
        raise InputError(f"Only {used.sum()} pixels have normals to compare. Use a picture that a frontal face fills.")
    units = [values[used] / np.linalg.norm(values[used], axis=-1, keepdims=True) for values in (vectors, expected)]
    # The mean cosine is linear in the axes: sum(matrix * correlation).
    correlation = units[1].T @ units[0] / used.sum()
    candidates = [
        np.diag(signs).astype(np.float32) @ np.eye(3, dtype=np.float32)[list(order)]
        for order in permutations(range(3))
        for signs in product((1, -1), repeat=3)
    ]
    scores = np.array([(matrix * correlation).sum() for matrix in candidates])
    second, first = np.argsort(scores)[-2:]
    margin = float(scores[first] - scores[second])
    if margin < MARGIN:
        raise InputError(
            f"The normals do not tell their axes: the best fit has a mean cosine of {scores[first]:.2f}, the next has "
            f"{scores[second]:.2f}. Use a frontal face that fills the picture."
        )
    return Axes(candidates[first], float(scores[first]), margin)


@dataclass
class Turned:
    """A network whose vectors are turned into normals."""

    network: Estimator
    matrix: Float32[np.ndarray, "3 3"]
    name: str
    licence: str

    def __call__(self, crop: UInt8[np.ndarray, "S S 3"]) -> Estimate:
        """Estimate an RGB crop."""
        found = self.network(crop)
        return replace(found, normals=found.normals @ self.matrix.T)


def turned(network: Estimator, axes: Axes) -> Estimator:
    """A network with its axes brought to those of normal maps; said if they are others than its adapter takes."""
    if np.array_equal(axes.matrix, np.eye(3)):
        return network
    log.warning(
        "The normals of %s have other axes than its published code says: x, y, z of the head are its %s, and are taken "
        "so (mean cosine %.2f, the next best %.2f less).",
        network.name,
        axes.matrix.astype(int).tolist(),
        axes.cosine,
        axes.margin,
    )
    return Turned(network, axes.matrix, network.name, network.licence)


def resized(values: Float32[np.ndarray, "h w *C"], side: int) -> Float32[np.ndarray, "S S *C"]:
    """Bring a map to `side` x `side`; averages when it shrinks."""
    shrinks = side < values.shape[0]
    return cv2.resize(values, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
