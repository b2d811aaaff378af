"""One pass over a video: where it is cut, what a few frames of each shot show, which stretches become clips."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np
from jaxtyping import UInt8

from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.config import PrepareConfig
from expportrait_cli.dataset.quality import Figures, Sample, blank, figures_of, measure, refusal
from expportrait_cli.dataset.sources import Source
from expportrait_cli.detect.crop import steady_crop
from expportrait_cli.detect.cuts import CutDetector
from expportrait_cli.detect.faces import FaceBox, FaceFinder
from expportrait_cli.detect.mesh import FaceMesh
from expportrait_cli.errors import InputError
from expportrait_cli.pipeline.cache import made_by

REVISION = 1
"""Raised when the same video and settings give another scan."""


@dataclass(frozen=True)
class Stretch:
    """Frames of one shot that are to become a clip, or why they are not."""

    first: int
    frames: int
    reason: str
    """Empty when they are taken."""
    figures: Figures
    crop: tuple[float, float, float] | None
    """Left, top, side in the source, px; none unless taken."""


@dataclass(frozen=True)
class Scan:
    """What one pass over a video found."""

    digest: str
    """sha256 of the source."""
    rate: Fraction
    stretches: tuple[Stretch, ...]
    """In order; together they are the video."""
    notes: tuple[str, ...] = ()
    """Warnings of the reader: damage, above all."""

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "rate": str(self.rate)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Scan":
        """Undo `to_json`."""
        rows = [Stretch(**{**row, "crop": tuple(row["crop"]) if row["crop"] else None}) for row in values["stretches"]]
        return cls(values["digest"], Fraction(values["rate"]), tuple(rows), tuple(values["notes"]))


def scan_key(digest: str, config: PrepareConfig) -> str:
    """What a scan depends on."""
    settings = {name: value for name, value in asdict(config).items() if name != "max_error_percent"}
    return str(made_by("track", {**settings, "revision": REVISION}, {"source": digest})["key"])


def scan(source: Source, digest: str, config: PrepareConfig) -> Scan:
    """Look at a video once, holding one frame in memory. Decoding, 1 ms a frame, and 20 to 150 ms a sample.

    Raises:
        InputError: nothing of it can be decoded.
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
    # Halves of a clip that is a little too long must not be too short.
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
    """Each face once, by its surest box: in large pictures one around the whole head may come with the face's own."""
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
    """Take a stretch, or say why not."""
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
