"""Fill what is unknown from what is known around it, by a pyramid (push and pull)."""

import cv2
import numpy as np
from jaxtyping import Float32


def diffuse(values: Float32[np.ndarray, "H W C"], weight: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W C"]:
    """Extend `values` smoothly to where `weight` is 0; where it is 1 they are kept.

    The weights are carried through the pyramid: without them the unknown's zeros bleed in.
    """
    level: np.ndarray = np.dstack([values * weight[..., None], weight]).astype(np.float32)
    stack: list[np.ndarray] = [level]
    while max(level.shape[:2]) > 1:
        height, width = level.shape[:2]
        level = cv2.resize(level, ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA)
        stack.append(level)
    filled = stack[-1][..., :-1] / np.maximum(stack[-1][..., -1:], 1e-6)
    for level in reversed(stack[:-1]):
        height, width = level.shape[:2]
        coarse = cv2.resize(filled, (width, height), interpolation=cv2.INTER_LINEAR)
        coarse = coarse.reshape(height, width, -1)
        known = np.minimum(level[..., -1:], 1.0)
        filled = level[..., :-1] + coarse * (1 - known)
    return filled
