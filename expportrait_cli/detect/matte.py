"""Person mattes, detection of shoulders, and colour models of pixel classes such as skin and hair."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.detect.nets import PoseNet, SelfieNet

LOW, HIGH = 0.15, 0.85
"""Output of the network that becomes a matte of 0, and of 1."""
RADIUS, SHARPNESS = 6, 1e-4
"""Guided filter: window in px of a 512 image, and the colour variance below which edges are ignored."""

JOINED = 0.25
"""Matte above which pixels connect two parts."""
PLAIN = 10
"""Largest difference of levels (of 255) along a row or column of a plain bar, from compression."""

NOISE = np.diag([60.0, 6.0, 6.0])
"""Variance of L, a, b (0 to 255) that is added to every class, for shades and compression."""

Image = UInt8[np.ndarray, "H W 3"]


def smoothstep(x: Float[np.ndarray, "*B"], low: float, high: float) -> Float[np.ndarray, "*B"]:
    """Rise from 0 at `low` to 1 at `high` without a kink."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def guided_filter(
    guide: Float32[np.ndarray, "H W"], mask: Float32[np.ndarray, "H W"], *, radius: int, variance: float
) -> Float32[np.ndarray, "H W"]:
    """Align a mask with the edges of a grey guide (guided filter, He et al. 2010, Eq. 5-8)."""

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
        """Matte of the largest person in a crop, 0..1, aligned with edges; with `raw` the network's smooth output."""
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
    """Keep the largest connected part of a matte: removes other people, posters, islands of noise."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((matte > JOINED).astype(np.uint8))
    if len(stats) < 2:
        return matte
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    near = cv2.dilate((labels == largest).astype(np.uint8), np.ones((9, 9), np.uint8))
    return matte * near


def _bars(image: Image) -> list[tuple[slice, slice]]:
    """Rows and columns of letterbox and pillarbox bars: borders in which every line has one colour."""
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
    """Detector of the shoulders on a portrait crop, with BlazePose. 15 to 20 ms."""

    def __init__(self, *, video: bool = False) -> None:
        self._net = PoseNet(video=video)

    def shoulders(self, image: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "2 2"] | None:
        """The person's left and right shoulder, px, possibly a little outside the image; None unless both are found."""
        body = self._net(image)
        if body is None or body[[LEFT, RIGHT], 2].min() < MIN_VISIBILITY:
            return None
        left, right = body[[LEFT, RIGHT], :2]
        # From the front the person's left is on the right of the picture; otherwise the detection is wrong.
        return np.stack([left, right]) if left[0] > right[0] else None


@dataclass(frozen=True)
class Gaussian:
    """Normal distribution of the colours of a class, CIE Lab."""

    mean: Float[np.ndarray, " 3"]
    covariance: Float[np.ndarray, "3 3"]

    @classmethod
    def of(cls, colours: Float[np.ndarray, "P 3"]) -> "Gaussian":
        """Estimate the distribution without outliers, which lie far from the median."""
        away = np.abs(colours - np.median(colours, 0))
        kept = colours[(away <= 2.5 * (1.4826 * np.median(away, 0) + 2)).all(1)]
        kept = kept if len(kept) > 50 else colours
        return cls(kept.mean(0), np.cov(kept.T) + NOISE)

    def score(self, colours: Float[np.ndarray, "*B 3"]) -> Float[np.ndarray, "*B"]:
        """Logarithm of the density, up to a constant that all classes share."""
        return self.peak_score(colours) - 0.5 * np.log(np.linalg.det(self.covariance))

    def peak_score(self, colours: Float[np.ndarray, "*B 3"]) -> Float[np.ndarray, "*B"]:
        """Logarithm of the density relative to that at the mean colour, at most 0."""
        away = colours - self.mean
        return -0.5 * np.einsum("...i,ij,...j->...", away, np.linalg.inv(self.covariance), away)

    def distance(self, other: "Gaussian") -> float:
        """Mahalanobis distance of the means under the mean covariance."""
        step = self.mean - other.mean
        return float(np.sqrt(step @ np.linalg.inv((self.covariance + other.covariance) / 2) @ step))


def lab_colours(image: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "H W 3"]:
    """CIE Lab as OpenCV scales it to 0..255, blurred by 1.2 px of a crop of `CROP_SIZE`."""
    blurred = cv2.GaussianBlur(image, (0, 0), 1.2 * image.shape[0] / CROP_SIZE)
    return cv2.cvtColor(blurred, cv2.COLOR_RGB2LAB).astype(np.float32)


LEAST_SPREAD, LEAST_CONTRAST = 0.25, 0.008
"""LEAST_SPREAD: added to the standard deviation of every class's `roughness`. LEAST_CONTRAST: contrast of a camera's
grain, which bounds `roughness` from below."""


@dataclass(frozen=True)
class Look:
    """Colours and roughness of a class of pixels: blond hair differs from skin by its strands more than by its hue."""

    colours: Gaussian
    rough: tuple[float, float]
    """Mean and standard deviation of `roughness`."""

    @classmethod
    def of(cls, lab: Float32[np.ndarray, "S S 4"], where: Bool[np.ndarray, "S S"]) -> "Look":
        """Estimate the class from the pixels `where`; the fourth channel of `lab` is `roughness`."""
        rough = lab[where][:, 3]
        return cls(Gaussian.of(lab[where][:, :3]), (float(rough.mean()), float(rough.std()) + LEAST_SPREAD))

    def likeness(self, lab: Float32[np.ndarray, "S S 4"]) -> Float[np.ndarray, "S S"]:
        """Logarithm of the colours' density relative to that at the mean colour, at most 0."""
        return self.colours.peak_score(lab[..., :3])

    def score(self, lab: Float32[np.ndarray, "S S 4"]) -> Float[np.ndarray, "S S"]:
        """Logarithm of the density, up to a constant that all classes share."""
        mean, spread = self.rough
        return self.colours.score(lab[..., :3]) - 0.5 * ((lab[..., 3] - mean) / spread) ** 2 - np.log(spread)

    def distance(self, other: "Look") -> float:
        """Mahalanobis distance of the means under the mean covariance."""
        rough = (self.rough[0] - other.rough[0]) ** 2 / ((self.rough[1] ** 2 + other.rough[1] ** 2) / 2)
        return float(np.hypot(self.colours.distance(other.colours), np.sqrt(rough)))


def roughness(image: UInt8[np.ndarray, "S S 3"]) -> Float32[np.ndarray, "S S"]:
    """Logarithm of the contrast between neighbouring pixels."""
    px = len(image) / CROP_SIZE
    light = np.log(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) + 16)
    band = light - cv2.GaussianBlur(light, (0, 0), 2.0 * px)
    return 0.5 * np.log(cv2.GaussianBlur(band * band, (0, 0), 4.0 * px) + LEAST_CONTRAST**2)
