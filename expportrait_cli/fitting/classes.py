"""Which pixels of a photo are skin, hair and clothes: by the colours of this photo, and where the head is drawn."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8

from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.fitting.clip import dynamic_mask, plain_skin
from expportrait_cli.head import HeadModel, dense
from expportrait_cli.head.model import NECK, TORSO

CROWN_M, BROW_M, CHIN_M = 0.085, 0.06, -0.09
"""Heights in the template, over the origin between the ears: of the crown, of the brows' upper end and of the chin."""
NOISE = np.diag([60.0, 6.0, 6.0])
"""Variance of L, a, b (0 to 255) that any class has: shades and compression."""
APART = 1.5
"""Least Mahalanobis distance of the crown's colours from the face's: below it the crown is taken for bare skin."""
OTHER = -0.5 * 3.5**2
"""Logarithm of the density, beside the peak of a class, from which a pixel over the torso is clothes."""
SMALL_PX = 60


def smoothstep(x: Float[np.ndarray, "*B"], low: float = 0.0, high: float = 1.0) -> Float[np.ndarray, "*B"]:
    """0 up to `low`, 1 from `high`, smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


@dataclass(frozen=True)
class Gaussian:
    """Colours of a class, CIE Lab."""

    mean: Float[np.ndarray, " 3"]
    covariance: Float[np.ndarray, "3 3"]

    @classmethod
    def of(cls, colours: Float[np.ndarray, "P 3"]) -> "Gaussian":
        """Estimate it from most of the colours: what lies far from their median is left out."""
        away = np.abs(colours - np.median(colours, 0))
        kept = colours[(away <= 2.5 * (1.4826 * np.median(away, 0) + 2)).all(1)]
        kept = kept if len(kept) > 50 else colours
        return cls(kept.mean(0), np.cov(kept.T) + NOISE)

    def score(self, colours: Float[np.ndarray, "*B 3"]) -> Float[np.ndarray, "*B"]:
        """Logarithm of the density, up to a constant that all classes share."""
        return self.peak_score(colours) - 0.5 * np.log(np.linalg.det(self.covariance))

    def peak_score(self, colours: Float[np.ndarray, "*B 3"]) -> Float[np.ndarray, "*B"]:
        """Logarithm of the density over that of the mean colour: 0 there, less elsewhere."""
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


def pixel_classes(
    image: UInt8[np.ndarray, "S S 3"],
    matte: Float32[np.ndarray, "S S"],
    drawn: Int64[np.ndarray, "S S"],
    head: HeadModel,
) -> Float32[np.ndarray, "S S 3"]:
    """Share of skin, hair and clothes in every pixel of a crop; their sum is the matte.

    `drawn` is the dense vertex that each pixel shows, -1 where the head is not drawn. Skin and hair are a Gaussian each
    of this photo's face and crown; where a pixel lies on the head says what to expect.
    """
    template = dense(head, head.template).numpy()
    is_drawn, vertex = drawn >= 0, np.maximum(drawn, 0)
    height, lab = template[vertex, 1], lab_colours(image)
    face = is_drawn & plain_skin(head)[vertex] & (height < BROW_M)
    crown = is_drawn & (height > CROWN_M) & (matte > 0.9)
    torso = is_drawn & (head.skinning[:, TORSO].numpy() > 0.6)[vertex]
    neck = is_drawn & ((head.skinning[:, NECK].numpy() > 0.3) & (template[:, 2] > 0))[vertex] & ~torso
    below = np.zeros_like(matte, bool)
    if torso.any():
        below[np.nonzero(torso)[0].min() :] = True
    skin_colours = Gaussian.of(lab[face]) if face.sum() > SMALL_PX else None
    hair_colours = Gaussian.of(lab[crown]) if crown.sum() > SMALL_PX else None
    if skin_colours is None:
        odds = np.full(matte.shape, -30.0)
    elif hair_colours is None or skin_colours.distance(hair_colours) < APART:
        odds = np.where(is_drawn | below, 30.0, -30.0)
    else:
        odds = skin_colours.score(lab) - hair_colours.score(lab)
    inner = is_drawn & (dynamic_mask(head) > 0.5)[vertex]
    odds = odds + 3.0 * (inner & (height < BROW_M)) + 1.5 * neck - 2.0 * (crown | ~(is_drawn | below))
    hair = 1 / (1 + np.exp(np.clip(odds, -30, 30)))
    clothes = (torso | (below & ~is_drawn)).astype(np.float64)
    if skin_colours is not None:
        known = [
            each.score(lab) - each.score(each.mean[None]) for each in (skin_colours, hair_colours) if each is not None
        ]
        clothes *= 1 / (1 + np.exp(np.clip(np.max(known, 0) - OTHER, -30, 30)))
    shares = np.stack([(1 - clothes) * (1 - hair), (1 - clothes) * hair, clothes], -1).astype(np.float32)
    radius = max(round(4 * image.shape[0] / CROP_SIZE), 1)
    smooth = cv2.ximgproc.guidedFilter(image, shares, radius, 0.02**2 * 255**2)
    smooth = np.clip(smooth, 0, None)
    return (smooth / np.maximum(smooth.sum(-1, keepdims=True), 1e-6) * matte[..., None]).astype(np.float32)
