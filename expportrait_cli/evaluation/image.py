"""Metrics of pictures and films by arithmetic on pixels, and FLIP by its authors' package."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from expportrait_cli.evaluation.face import INNER

PSNR_CAP_DB = 99.0
"""PSNR of two equal pictures, dB; keeps the mean over frames finite."""
TAPS, SIGMA_PX = 11, 1.5
"""Size and standard deviation of SSIM's Gaussian window, px; Wang et al., Image Quality Assessment, 2004."""
K1, K2 = 0.01, 0.03
SCALE_POWERS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of MS-SSIM's scales, from fine to coarse: Wang, Simoncelli and Bovik, 2003, section 3.2."""
MS_SSIM_SIDE = (TAPS - 1) * 2 ** (len(SCALE_POWERS) - 1)
"""Side, px, above which MS-SSIM is defined."""
ELLIPSE_RADII, ELLIPSE_RISE = (0.85, 0.95), 0.12
"""Half axes and upward shift of the head ellipse, in widths and heights of the landmarks' bounding box."""

KEPT_BYTES = 31 << 20
"""Size of a block, just below the 32 MB above which glibc does not adapt its threshold."""

Picture = Float32[np.ndarray, "H W 3"]
Region = Bool[np.ndarray, "H W"]


def reuse_memory() -> None:
    """Have glibc reuse the memory of large arrays; to be called once before many frames.

    If memory is returned to the system after each frame, new pages cost 11 of the 27 ms that the pixel metrics of a
    frame of 512x512 take. glibc keeps blocks up to the size of the largest one ever freed, and twice as much in all
    (`M_TRIM_THRESHOLD` in mallopt(3)), so that allocating and freeing one is enough. Without glibc it has no effect.
    """
    np.empty(KEPT_BYTES, np.uint8)


def as_float(rgb: UInt8[np.ndarray, "H W 3"]) -> Picture:
    """Pixels as 0..1."""
    return rgb.astype(np.float32) / np.float32(255)


def psnr(squared: Float32[np.ndarray, "H W"], region: Region) -> float:
    """10 log10(1 / mean squared error), dB, at most `PSNR_CAP_DB`; `squared` is the mean over channels."""
    # Unlike max(), np.maximum lets the NaN of an empty region through.
    mean = np.maximum(mean_over(squared, region), 10 ** (-PSNR_CAP_DB / 10))
    return float(-10 * np.log10(mean))


def mean_over(values: Float32[np.ndarray, "H W"], region: Region) -> float:
    """Mean over a region, in float64; NaN for an empty region."""
    # Ten times as fast as indexing the values.
    return cv2.mean(values, region.view(np.uint8))[0] if region.any() else float("nan")


def over_channels(picture: Picture) -> Float32[np.ndarray, "H W"]:
    """Mean of the three channels."""
    # Twenty times as fast as numpy's mean over a short axis.
    return cv2.transform(picture, np.full((1, 3), 1 / 3, np.float32))


def ssim_factors(a: Picture, b: Picture) -> tuple[Picture, Picture]:
    """SSIM of each pixel and channel, and its factor of contrast and structure, without that of luminance.

    Source: Wang et al., Image Quality Assessment, 2004, Eq. 13; range -1..1.
    """
    # In place: allocating large arrays would cost three times as much as the arithmetic.
    squares, mean_b = _blur(a), _blur(b)
    both = squares * mean_b
    squares *= squares
    squares += np.square(mean_b, out=mean_b)
    energy = a * a
    energy += b * b
    variances = _blur(energy)
    variances -= squares
    contrast = _blur(np.multiply(a, b, out=energy))
    contrast -= both
    c1, c2 = np.float32(K1**2), np.float32(K2**2)
    contrast *= 2
    contrast += c2
    variances += c2
    contrast /= variances
    both *= 2
    both += c1
    squares += c1
    both /= squares
    both *= contrast
    return both, contrast


def ms_ssim(a: Picture, b: Picture, factors: tuple[Picture, Picture]) -> float:
    """MS-SSIM over five scales; `factors` are the `ssim_factors` of the pictures at full size.

    1 for equal pictures; a negative mean of a scale counts as 0. When a scale is halved, an odd row or column is left
    out. NaN for pictures with a side up to `MS_SSIM_SIDE`, which have no window at the last scale. Source: Wang,
    Simoncelli and Bovik, Multiscale Structural Similarity for Image Quality Assessment, 2003, Eq. 7; the mean over
    channels.
    """
    if min(a.shape[:2]) <= MS_SSIM_SIDE:
        return float("nan")
    edge = TAPS // 2
    score = np.ones(3)
    for scale, power in enumerate(SCALE_POWERS):
        if scale:
            a, b = _half(a), _half(b)
            factors = ssim_factors(a, b)
        factor = factors[0] if scale == len(SCALE_POWERS) - 1 else factors[1]
        mean = np.array(cv2.mean(factor[edge:-edge, edge:-edge])[:3])
        score *= np.maximum(mean, 0) ** power
    return float(score.mean())


def _half(picture: Picture) -> Float32[np.ndarray, "H2 W2 3"]:
    """Means of 2x2 pixels."""
    height, width = (side // 2 for side in picture.shape[:2])
    return cv2.resize(picture[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)


def luma(rgb: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "H W"]:
    """Luma of BT.601, 0..255, without rounding."""
    return cv2.cvtColor(rgb.astype(np.float32), cv2.COLOR_RGB2GRAY)


def flicker(frames: Sequence[Float32[np.ndarray, "H W"]]) -> float:
    """Mean absolute second difference of three frames' luma, in levels of 255, without motion compensation."""
    before_last, last, now = frames
    return float(np.abs(now - 2 * last + before_last).mean(dtype=np.float64))


def _blur(picture: Picture) -> Picture:
    return cv2.GaussianBlur(picture, (TAPS, TAPS), SIGMA_PX, borderType=cv2.BORDER_REFLECT)


def whole_windows(height: int, width: int) -> Region:
    """Pixels whose SSIM window lies inside the picture."""
    region = np.zeros((height, width), bool)
    edge = TAPS // 2
    region[edge : height - edge, edge : width - edge] = True
    return region


def head_region(landmarks: Float64[np.ndarray, "478 2"], height: int, width: int) -> Region:
    """Upright ellipse around the landmarks that includes hair, ears and neck."""
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


def missing_package() -> str | None:
    """Message of what must be installed to measure FLIP; None if nothing is missing."""
    if find_spec("flip_evaluator") is not None:
        return None
    return "flip-evaluator is not installed: pip install flip-evaluator"


def error_map(picture: Picture, target: Picture) -> Float32[np.ndarray, "H W"]:
    """LDR-FLIP of sRGB pictures in 0..1: 0 where no difference is visible, 1 at most (`flip` is its mean).

    At the package's own viewing distance of 67 pixels per degree. 0.1 to 0.3 s for 512x512; needs `missing_package()`
    to be None. Source: Andersson et al., FLIP: A Difference Evaluator for Alternating Images, 2020.
    """
    import flip_evaluator

    # An extension without type hints.
    library: Any = flip_evaluator
    errors, _, _ = library.evaluate(target, picture, "LDR", applyMagma=False, computeMeanError=False)
    return np.asarray(errors, np.float32)[:, :, 0]
