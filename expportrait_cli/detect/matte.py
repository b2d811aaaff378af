"""How much of each pixel is the person."""

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from expportrait_cli.detect.mediapipe_adapter import SelfieNet

LOW, HIGH = 0.15, 0.85
"""The net's answer is stretched between these."""
RADIUS, SHARPNESS = 6, 1e-4
"""Guided filter: window in px of a 512 image, and the colour variance below which edges are ignored."""


def smoothstep(x: Float32[np.ndarray, "*B"], low: float, high: float) -> Float32[np.ndarray, "*B"]:
    t = np.clip((x - low) / (high - low), 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def guided_filter(
    guide: Float32[np.ndarray, "H W"], mask: Float32[np.ndarray, "H W"], *, radius: int, variance: float
) -> Float32[np.ndarray, "H W"]:
    """Fit the mask to the edges of a grey guide (He et al. 2010, Eq. 5-8)."""

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (2 * radius + 1, 2 * radius + 1), borderType=cv2.BORDER_REFLECT)

    mean_guide, mean_mask = mean(guide), mean(mask)
    slope = (mean(guide * mask) - mean_guide * mean_mask) / (mean(guide * guide) - mean_guide**2 + variance)
    offset = mean_mask - slope * mean_guide
    return mean(slope) * guide + mean(offset)


class Matte:
    """Person matte of a square portrait crop. 10 ms."""

    def __init__(self) -> None:
        self._net = SelfieNet()

    def matte(self, image: UInt8[np.ndarray, "H W 3"], *, raw: bool = False) -> Float32[np.ndarray, "H W"]:
        """Matte of a crop, 0..1; `raw` is the net's own smooth answer."""
        answer = self._net(image)
        if raw:
            return answer
        guide = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
        radius = max(1, round(RADIUS * image.shape[0] / 512))
        fitted = guided_filter(guide, smoothstep(answer, LOW, HIGH), radius=radius, variance=SHARPNESS)
        return np.clip(fitted, 0, 1)
