"""Pixel metrics over a region: PSNR, SSIM, L1, and the regions themselves.

Pictures are float32 in 0..1, so that the data range is 1. A region without pixels measures NaN.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from expportrait_cli.evaluate.face import INNER

PSNR_CAP_DB = 99.0
"""What two equal pictures score; keeps the mean over frames finite."""
TAPS, SIGMA_PX = 11, 1.5
"""Window of SSIM, from Wang et al., Image Quality Assessment, 2004."""
K1, K2 = 0.01, 0.03
ELLIPSE_RADII, ELLIPSE_RISE = (0.85, 0.95), 0.12
"""Half axes and upward shift of the head ellipse, in widths and heights of the landmarks' bounding box."""

Picture = Float32[np.ndarray, "H W 3"]
Region = Bool[np.ndarray, "H W"]


def as_float(rgb: UInt8[np.ndarray, "H W 3"]) -> Picture:
    """Pixels as 0..1."""
    return rgb.astype(np.float32) / np.float32(255)


def psnr(squared: Float32[np.ndarray, "H W"], region: Region) -> float:
    """10 log10(1 / mean squared error), dB, at most `PSNR_CAP_DB`; `squared` is the mean over channels."""
    # Unlike max(), np.maximum lets the NaN of an empty region through.
    mean = np.maximum(mean_over(squared, region), 10 ** (-PSNR_CAP_DB / 10))
    return float(-10 * np.log10(mean))


def mean_over(values: Float32[np.ndarray, "H W"], region: Region) -> float:
    """Mean in float64, NaN of nothing."""
    chosen = values[region]
    return float(chosen.mean(dtype=np.float64)) if chosen.size else float("nan")


def ssim_map(a: Picture, b: Picture) -> Float32[np.ndarray, "H W"]:
    """Structural similarity at each pixel, mean over channels, population covariance (`ssim_g11`).

    The window reaches over the border in the outer `TAPS // 2` pixels: leave them out of a mean (`whole_windows`).
    """
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a = _blur(a * a) - mean_a * mean_a
    variance_b = _blur(b * b) - mean_b * mean_b
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = np.float32(K1**2), np.float32(K2**2)
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (likeness / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))).mean(axis=2)


def _blur(picture: Picture) -> Picture:
    return cv2.GaussianBlur(picture, (TAPS, TAPS), SIGMA_PX, borderType=cv2.BORDER_REFLECT)


def whole_windows(height: int, width: int) -> Region:
    """Pixels whose SSIM window lies inside the picture."""
    region = np.zeros((height, width), bool)
    edge = TAPS // 2
    region[edge : height - edge, edge : width - edge] = True
    return region


def head_region(landmarks: Float64[np.ndarray, "478 2"], height: int, width: int) -> Region:
    """Upright ellipse around the landmarks that takes in hair, ears and neck."""
    size = np.ptp(landmarks, axis=0)
    centre = landmarks.mean(axis=0) - [0, ELLIPSE_RISE * size[1]]
    x, y = ((np.arange(n) + 0.5 - c) / r for n, c, r in zip((width, height), centre, ELLIPSE_RADII * size, strict=True))
    return x**2 + y[:, None] ** 2 <= 1


def face_region(landmarks: Float64[np.ndarray, "478 2"], height: int, width: int) -> Region:
    """Convex hull of the landmarks inside the face oval."""
    # Pixel centres lie at +0.5, OpenCV's at whole numbers.
    corners = np.round(landmarks[INNER] - 0.5).astype(np.int32)
    region = np.zeros((height, width), np.uint8)
    cv2.fillConvexPoly(region, cv2.convexHull(corners), (1,))
    return region.astype(bool)
