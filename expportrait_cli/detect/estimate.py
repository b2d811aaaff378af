"""Interface of networks that estimate normals and depth of a crop; each network has an adapter.

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
"""Confidence below which normal and depth of a pixel count as unknown."""
INSTALL = "pip install onnxruntime"
MARGIN = 0.1
"""Least difference of mean cosine between the best and the second-best axes; a frontal head has 0.4."""


@dataclass(frozen=True)
class Estimate:
    """A network's normals, depth and confidence in a square crop."""

    normals: Float32[np.ndarray, "S S 3"]
    """x right, y up, z to the viewer; unit length, zero where unknown."""
    depth: Float32[np.ndarray, "S S"]
    """Relative depth: grows with the distance, scale and shift unknown; NaN where unknown."""
    confidence: Float32[np.ndarray, "S S"]
    """Confidence, 0..1: length of the network's vector before normalisation, at most 1, times the matte."""


# The tests check annotations as they run.
@runtime_checkable
class Estimator(Protocol):
    """A network for normals and depth, called through its adapter."""

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
    """Axes of a network's vectors, found by comparison with known normals."""

    matrix: Float32[np.ndarray, "3 3"]
    """Signed permutation: normal = matrix @ vector."""
    cosine: float
    """Mean cosine to the expected normals."""
    margin: float
    """Mean cosine minus that of the second-best permutation."""


def assemble(
    vectors: Float32[np.ndarray, "S S 3"],
    axes: Float32[np.ndarray, "3 3"],
    *,
    depth: Float32[np.ndarray, "S S"] | None = None,
    matte: Float32[np.ndarray, "S S"] | None = None,
) -> Estimate:
    """Make an estimate from a network's raw vectors, depth (growing with the distance) and matte.

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
    """Find the signed permutation of axes, of 48, that maps a network's vectors to known normals.

    Compares pixels where both are known. The axes of networks are rarely documented, and wrong ones ruin a fit
    silently; a frontal face, rendered or fitted, determines them.

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
            f"The axes of the normals are ambiguous: the best fit has a mean cosine of {scores[first]:.2f}, the next "
            f"has {scores[second]:.2f}. Use a frontal face that fills the picture."
        )
    return Axes(candidates[first], float(scores[first]), margin)


@dataclass
class Turned:
    """A network whose output is mapped to the axes of normal maps by `matrix`."""

    network: Estimator
    matrix: Float32[np.ndarray, "3 3"]
    name: str
    licence: str

    def __call__(self, crop: UInt8[np.ndarray, "S S 3"]) -> Estimate:
        """Estimate an RGB crop."""
        found = self.network(crop)
        return replace(found, normals=found.normals @ self.matrix.T)


def turned(network: Estimator, axes: Axes) -> Estimator:
    """Wrap a network to correct its axes; logs a warning if they differ from those of its adapter."""
    if np.array_equal(axes.matrix, np.eye(3)):
        return network
    log.warning(
        "The normals of %s have other axes than in its published code: x, y, z are %s times its vectors, which is used "
        "(mean cosine %.2f, the next best %.2f less).",
        network.name,
        axes.matrix.astype(int).tolist(),
        axes.cosine,
        axes.margin,
    )
    return Turned(network, axes.matrix, network.name, network.licence)


def resized(values: Float32[np.ndarray, "h w *C"], side: int) -> Float32[np.ndarray, "S S *C"]:
    """Scale a map to `side` x `side` px, by area averages when it shrinks, else linearly."""
    shrinks = side < values.shape[0]
    return cv2.resize(values, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
