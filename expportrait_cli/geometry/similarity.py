"""Similarities of the plane: turn, scale and shift."""

import numpy as np
from jaxtyping import Float


def similarity(
    source: Float[np.ndarray, "P 2"],
    target: Float[np.ndarray, "P 2"],
    weights: Float[np.ndarray, " P"] | None = None,
) -> Float[np.ndarray, "2 3"]:
    """Least-squares similarity [[a, -b, c], [b, a, d]] that takes `source` to `target`; no mirror images.

    Points that all lie in one place, or have no weight, get scale 0.
    """
    w = np.ones(len(source)) if weights is None else weights
    w = w / max(w.sum(), 1e-12)
    centre, centre_target = w @ source, w @ target
    p, q = source - centre, target - centre_target
    spread = max(float(w @ (p**2).sum(1)), 1e-12)
    a = float(w @ (p * q).sum(1)) / spread
    b = float(w @ (p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0])) / spread
    turn = np.array([[a, -b], [b, a]])
    return np.c_[turn, centre_target - turn @ centre]
