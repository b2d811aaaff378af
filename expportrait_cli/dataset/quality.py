"""Whether a stretch of a video is worth training on: what is measured on a few of its frames, and the limits."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from expportrait_cli.config import PrepareConfig
from expportrait_cli.detect.crop import Crop, crop_image
from expportrait_cli.detect.mesh import extent
from expportrait_cli.detect.portrait import MAX_CUT
from expportrait_cli.solve.state import interocular_px

FACE_VIEW = 224
"""Side of the view of the face that sharpness, brightness and contrast are measured in, px: its size in a clip."""
MOVING = 90
"""Percentile of the landmarks' motion that counts: talking moves lips and chin, a tenth of them."""

Figures = dict[str, float]


@dataclass(frozen=True)
class Sample:
    """One frame that was looked at; a frame without a face has landmarks that are NaN and figures of 0."""

    frame: int
    landmarks: Float32[np.ndarray, "478 2"]
    """Of the largest face, px of the source."""
    face_px: float = 0.0
    """Longer side of its landmarks' box."""
    rival: float = 0.0
    """Side of the second largest face over that of the largest; 0 when it is alone."""
    cut: float = 0.0
    """Share of the landmarks outside the picture."""
    sharpness: float = 0.0
    """Variance of the Laplacian of grey levels 0..255 in the view of the face."""
    brightness: float = 0.0
    """Mean grey level there,"""
    contrast: float = 0.0
    """and its standard deviation."""

    @property
    def is_seen(self) -> bool:
        """Whether there is a face."""
        return bool(np.isfinite(self.landmarks).all())


def blank(frame: int) -> Sample:
    """A frame without a face."""
    return Sample(frame, np.full((478, 2), np.nan, np.float32))


def measure(
    frame: int, image: UInt8[np.ndarray, "H W 3"], landmarks: Float32[np.ndarray, "478 2"], *, rival: float
) -> Sample:
    """Measure one face in a picture. 2 ms."""
    centre, size = extent(landmarks)
    side = max(16.0, float(round(size)))
    left, top = np.round(centre - side / 2).tolist()
    grey = cv2.cvtColor(crop_image(image, Crop(left, top, side), FACE_VIEW), cv2.COLOR_RGB2GRAY)
    height, width = image.shape[:2]
    inside = (landmarks >= 0).all(1) & (landmarks < np.array([width, height])).all(1)
    return Sample(
        frame=frame,
        landmarks=landmarks,
        face_px=size,
        rival=rival,
        cut=float(1 - inside.mean()),
        sharpness=float(cv2.Laplacian(grey, cv2.CV_64F).var()),
        brightness=float(grey.mean()),
        contrast=float(grey.std()),
    )


def motion_percent(landmarks: Float32[np.ndarray, "T 478 2"]) -> float:
    """How far landmarks move against each other, percent of the inter-ocular distance.

    Place, size and turn in the picture are taken out, so that a photo that is panned and zoomed over moves by the
    landmarks' noise alone.
    """
    centred = landmarks.astype(np.float64) - landmarks.mean(1, keepdims=True)
    points = centred[..., 0] + 1j * centred[..., 1]
    fitted, mean = points, points[0]
    for _ in range(3):
        # The best similarity of the plane is one complex factor.
        fitted = points * ((mean * points.conj()).sum(1) / (np.abs(points) ** 2).sum(1))[:, None]
        mean = fitted.mean(0)
    size = interocular_px(np.stack([mean.real, mean.imag], -1).astype(np.float32))
    spread = np.sqrt((np.abs(fitted - mean) ** 2).mean(0))
    return float(100 * np.percentile(spread, MOVING) / size)


def figures_of(samples: Sequence[Sample], config: PrepareConfig) -> Figures:
    """What the samples of one clip say together; without a face only the share of faces."""
    seen = [sample for sample in samples if sample.is_seen]
    share = len(seen) / max(1, len(samples))
    if not seen:
        return {"face_share": share}
    columns = {name: [getattr(s, name) for s in seen] for name in ("face_px", "sharpness", "brightness", "contrast")}
    return {
        "face_share": round(share, 3),
        "crowd_share": round(float(np.mean([sample.rival > config.rival for sample in seen])), 3),
        "cut_share": round(float(np.mean([sample.cut > MAX_CUT for sample in seen])), 3),
        **{name: round(float(np.median(values)), 1) for name, values in columns.items()},
        "motion_percent": round(motion_percent(np.stack([sample.landmarks for sample in seen])), 2),
    }


def refusal(figures: Figures, config: PrepareConfig) -> str:
    """Why a clip is not taken, with what was measured and the limit; empty when it is."""
    least, most = config.face_share, round(1 - config.face_share, 3)
    if figures["face_share"] < least:
        return f"a face in {figures['face_share']:.0%} of the frames, at least {least:.0%}"
    if figures["crowd_share"] > most:
        return f"several faces of similar size in {figures['crowd_share']:.0%} of the frames, at most {most:.0%}"
    if figures["cut_share"] > most:
        return f"the face cut off by the border in {figures['cut_share']:.0%} of the frames, at most {most:.0%}"
    if figures["face_px"] < config.min_face_px:
        return f"a face of {figures['face_px']:.0f} px, at least {config.min_face_px}"
    if figures["sharpness"] < config.min_sharpness:
        return f"blurred: sharpness {figures['sharpness']:.1f}, at least {config.min_sharpness:g}"
    if not config.darkest <= figures["brightness"] <= config.brightest:
        return f"brightness {figures['brightness']:.0f}, expected {config.darkest:g} to {config.brightest:g}"
    if figures["contrast"] < config.min_contrast:
        return f"contrast {figures['contrast']:.1f}, at least {config.min_contrast:g}"
    if figures["motion_percent"] < config.min_motion_percent:
        return (
            f"still: the face moves by {figures['motion_percent']:.2f} % of the distance between the eyes, "
            f"at least {config.min_motion_percent:g} %"
        )
    return ""
