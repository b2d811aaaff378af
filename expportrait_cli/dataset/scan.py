"""Scan of a video in one pass: cuts, samples of each shot, and the choice of stretches that become clips."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.config import PrepareConfig
from expportrait_cli.dataset.sources import Source
from expportrait_cli.detect.crop import Crop, crop_image, steady_crop
from expportrait_cli.detect.faces import MAX_CUT, FaceBox, FaceFinder
from expportrait_cli.detect.flow import CutDetector
from expportrait_cli.detect.mesh import FaceMesh, extent
from expportrait_cli.errors import InputError
from expportrait_cli.pipeline.steps import made_by
from expportrait_cli.solve.state import interocular_px

FACE_VIEW = 224
"""Side, px, of the crop in which sharpness, brightness and contrast of a face are measured: its size in a clip."""
MOVING = 90
"""Percentile of the landmarks' motion that is measured: talking moves only lips and chin, a tenth of them."""

Figures = dict[str, float]


@dataclass(frozen=True)
class Sample:
    """Measures of one examined frame; without a face, landmarks are NaN, and figures 0."""

    frame: int
    landmarks: Float32[np.ndarray, "478 2"]
    """Landmarks of the largest face, px of the source."""
    face_px: float = 0.0
    """Longer side of its landmarks' box."""
    rival: float = 0.0
    """Side of the second largest face over that of the largest; 0 if there is only one."""
    cut: float = 0.0
    """Share of the landmarks outside the picture."""
    sharpness: float = 0.0
    """Variance of the Laplacian of grey levels 0..255 in the crop of the face."""
    brightness: float = 0.0
    """Mean grey level in the crop of the face."""
    contrast: float = 0.0
    """Standard deviation of grey levels in the crop of the face."""

    @property
    def is_seen(self) -> bool:
        """True if there is a face."""
        return bool(np.isfinite(self.landmarks).all())


def blank(frame: int) -> Sample:
    """Make the sample of a frame without a face."""
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
    """Measure the motion of landmarks against each other, percent of the inter-ocular distance.

    Position, size and rotation in the picture are removed, so that a panned and zoomed photo has only the motion of the
    landmarks' noise.
    """
    centred = landmarks.astype(np.float64) - landmarks.mean(1, keepdims=True)
    points = centred[..., 0] + 1j * centred[..., 1]
    fitted, mean = points, points[0]
    for _ in range(3):
        # A similarity of centred points in the plane is a complex factor.
        fitted = points * ((mean * points.conj()).sum(1) / (np.abs(points) ** 2).sum(1))[:, None]
        mean = fitted.mean(0)
    size = interocular_px(np.stack([mean.real, mean.imag], -1).astype(np.float32))
    spread = np.sqrt((np.abs(fitted - mean) ** 2).mean(0))
    return float(100 * np.percentile(spread, MOVING) / size)


def figures_of(samples: Sequence[Sample], config: PrepareConfig) -> Figures:
    """Combine the samples of a clip into its figures; without a face, only the share of faces."""
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
    """Reason why a clip is rejected, with the measured value and the limit; empty if it is accepted."""
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


@dataclass(frozen=True)
class Stretch:
    """Frames of one shot that become a clip, or the reason why they do not."""

    first: int
    frames: int
    reason: str
    """Reason of a rejection; empty if accepted."""
    figures: Figures
    crop: tuple[float, float, float] | None
    """Left, top and side of the crop in the source, px; None unless accepted."""


@dataclass(frozen=True)
class Scan:
    """Results of one pass over a video."""

    digest: str
    """sha256 of the source."""
    rate: Fraction
    stretches: tuple[Stretch, ...]
    """Parts of the video, in order; together they cover all of it."""
    notes: tuple[str, ...] = ()
    """Warnings of the video reader, mostly of damage."""

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        return {**asdict(self), "rate": str(self.rate)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Scan":
        """Undo `to_json`."""
        rows = [Stretch(**{**row, "crop": tuple(row["crop"]) if row["crop"] else None}) for row in values["stretches"]]
        return cls(values["digest"], Fraction(values["rate"]), tuple(rows), tuple(values["notes"]))


def scan_key(digest: str, config: PrepareConfig) -> str:
    """Key of everything that a scan depends on."""
    settings = {name: value for name, value in asdict(config).items() if name != "max_error_percent"}
    return str(made_by("scan", settings, {"source": digest})["key"])


def scan(source: Source, digest: str, config: PrepareConfig) -> Scan:
    """Scan a video in one pass, with one frame in memory. Takes the decoding, 1 ms a frame, and 20 to 150 ms a sample.

    Raises:
        InputError: no frame can be decoded.
    """
    rate = source.rate()
    step = max(1, round(float(rate) * config.sample_s))
    finder, mesh, cuts = FaceFinder(), FaceMesh(video=False), CutDetector()
    starts, samples, count, size = [0], [], 0, (0, 0)
    for count, image in enumerate(source.frames(), 1):
        index, size = count - 1, (image.shape[1], image.shape[0])
        if cuts.is_cut(image):
            starts.append(index)
        if (index - starts[-1]) % step == 0:
            samples.append(look(index, image, finder, mesh))
    if count == 0:
        raise InputError(f"{source.path} has no frames.")
    shots = zip(starts, [*starts[1:], count], strict=True)
    # A shot a little longer than the limit is halved: the halves must not be shorter than `min_s`.
    longest = max(config.frames, ceil(2 * config.min_s * rate))
    ranges = [part for first, end in shots for part in parts(first, end, longest)]
    rows = [judge(first, end, samples, config, rate=rate, size=size) for first, end in ranges]
    return Scan(digest, rate, tuple(rows))


def look(index: int, image: UInt8[np.ndarray, "H W 3"], finder: FaceFinder, mesh: FaceMesh) -> Sample:
    """Find and measure the largest face of a frame."""
    boxes = sorted(apart(finder.find(image)), key=lambda box: -box.side)
    landmarks = mesh.landmarks(image, boxes[0]) if boxes else None
    if landmarks is None:
        return blank(index)
    return measure(index, image, landmarks, rival=boxes[1].side / boxes[0].side if len(boxes) > 1 else 0.0)


def apart(boxes: list[FaceBox]) -> list[FaceBox]:
    """Keep each face once, by its box of highest score: in large pictures a second box may contain the whole head."""
    kept: list[FaceBox] = []
    for box in sorted(boxes, key=lambda box: -box.score):
        if not any(_holds(box, other) or _holds(other, box) for other in kept):
            kept.append(box)
    return kept


def _holds(box: FaceBox, other: FaceBox) -> bool:
    x, y = other.centre
    return box.x0 < x < box.x1 and box.y0 < y < box.y1


def parts(first: int, end: int, longest: int) -> Iterator[tuple[int, int]]:
    """Cut a shot into the fewest parts of nearly equal length that are not too long."""
    count = max(1, -(-(end - first) // longest))
    bounds = np.linspace(first, end, count + 1).round().astype(int).tolist()
    return pairwise(bounds)


def judge(
    first: int, end: int, samples: list[Sample], config: PrepareConfig, *, rate: Fraction, size: tuple[int, int]
) -> Stretch:
    """Accept a stretch, with its crop, or reject it with a reason."""
    length_s = float((end - first) / rate)
    if length_s < config.min_s:
        reason = f"a shot of {length_s:.2f} s, at least {config.min_s:g} s"
        return Stretch(first, end - first, reason, {}, None)
    own = [sample for sample in samples if first <= sample.frame < end]
    figures = figures_of(own, config)
    reason = refusal(figures, config)
    if reason:
        return Stretch(first, end - first, reason, figures, None)
    crop = steady_crop(np.stack([sample.landmarks for sample in own]), size)
    figures["scale"] = round(CROP_SIZE / crop.side, 3)
    return Stretch(first, end - first, "", figures, (crop.left, crop.top, crop.side))
