"""Mattes of the person, and the shoulders."""

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from expportrait_cli.detect.nets import PoseNet, SelfieNet

LOW, HIGH = 0.15, 0.85
"""The net's answer is stretched between these."""
RADIUS, SHARPNESS = 6, 1e-4
"""Guided filter: window in px of a 512 image, and the colour variance below which edges are ignored."""

JOINED = 0.25
"""Matte that holds two parts together."""
PLAIN = 10
"""Levels that differ along a row or column of a plain bar, by compression."""

Image = UInt8[np.ndarray, "H W 3"]


def smoothstep(x: Float32[np.ndarray, "*B"], low: float, high: float) -> Float32[np.ndarray, "*B"]:
    """Rise from 0 at `low` to 1 at `high` without a kink."""
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
    """Person matte of a square portrait crop, from the picture and its mirror image. 20 ms."""

    def __init__(self) -> None:
        self._net = SelfieNet()

    def matte(self, image: Image, *, raw: bool = False) -> Float32[np.ndarray, "H W"]:
        """Matte of a crop, 0..1: the largest person, fitted to the edges; `raw` is the net's own smooth answer."""
        mirrored = self._net(np.ascontiguousarray(image[:, ::-1]))[:, ::-1]
        answer = (self._net(image) + mirrored) / 2
        if raw:
            return answer
        guide = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
        radius = max(1, round(RADIUS * image.shape[0] / 512))
        fitted = guided_filter(guide, smoothstep(answer, LOW, HIGH), radius=radius, variance=SHARPNESS)
        matte = np.clip(fitted, 0, 1)
        for line in _bars(image):
            matte[line] = 0
        return largest_part(matte)


def largest_part(matte: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"]:
    """Drop what is not joined to the largest part: other people, posters, islands of noise."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((matte > JOINED).astype(np.uint8))
    if len(stats) < 2:
        return matte
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    near = cv2.dilate((labels == largest).astype(np.uint8), np.ones((9, 9), np.uint8))
    return matte * near


def _bars(image: Image) -> list[tuple[slice, slice]]:
    """Borders of one colour, from edge to edge: letterbox and pillarbox bars, never part of a person."""
    regions = []
    for axis in (0, 1):
        lines = image if axis == 0 else image.swapaxes(0, 1)
        plain = np.ptp(lines, axis=1).max(axis=1) <= PLAIN
        first = int(np.argmin(plain)) if not plain.all() else 0
        last = int(np.argmin(plain[::-1])) if not plain.all() else 0
        for bar in (slice(0, first), slice(len(plain) - last, len(plain))):
            regions.append((bar, slice(None)) if axis == 0 else (slice(None), bar))
    return regions


LEFT, RIGHT = 11, 12
MIN_VISIBILITY = 0.5


class Shoulders:
    """BlazePose on a portrait crop. 15 to 20 ms."""

    def __init__(self, *, video: bool = False) -> None:
        self._net = PoseNet(video=video)

    def shoulders(self, image: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "2 2"] | None:
        """The person's left and right shoulder, px, also a little outside the image; None unless both are seen."""
        body = self._net(image)
        if body is None or body[[LEFT, RIGHT], 2].min() < MIN_VISIBILITY:
            return None
        left, right = body[[LEFT, RIGHT], :2]
        # Seen from the front the person's left is on the right; a swap is a false find.
        return np.stack([left, right]) if left[0] > right[0] else None
