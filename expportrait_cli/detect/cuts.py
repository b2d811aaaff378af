"""Scene cuts in a stream of frames."""

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

SIZE = 64
BINS = 8
COLOURS = 0.3
"""Share of the pixels by which the colour histograms have to differ. Within a shot at most 0.24, at cuts 0.55."""
PICTURE = 0.4
"""One minus the correlation of the brightness. Within a shot at most 0.30 (a head that bounces), at cuts 0.47. A flash
of light changes every colour, but not this."""
OTHER_PICTURE = 0.75
"""From here on it is a cut whatever the colours say."""
FLAT = 0.01
"""Standard deviation of brightness of a picture that shows nothing: black, or faded out."""

Small = Float32[np.ndarray, "64 64 3"]


class CutDetector:
    """Tells for each frame whether it starts another shot. 1 ms, or what it takes to shrink the frame."""

    def __init__(self) -> None:
        self._before: Small | None = None

    def is_cut(self, frame: UInt8[np.ndarray, "H W 3"]) -> bool:
        """Whether picture and colours differ from those of the frame before. False for the first frame."""
        small = cv2.resize(frame, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        before, self._before = self._before, small
        if before is None:
            return False
        picture = picture_change(before, small)
        return picture > OTHER_PICTURE or (picture > PICTURE and colour_change(before, small) > COLOURS)


def picture_change(a: Small, b: Small) -> float:
    """One minus the correlation of the blurred brightness; 1 between a flat picture and another, 0 between two flat."""
    # The blur lets a moving outline correlate with itself.
    blurred = [cv2.GaussianBlur(x.mean(axis=2), (0, 0), 2).ravel() for x in (a, b)]
    flat = [bool(x.std() < FLAT) for x in blurred]
    if any(flat):
        return 0.0 if all(flat) else 1.0
    return 1 - float(np.corrcoef(*blurred)[0, 1])


def colour_change(a: Small, b: Small) -> float:
    """Share of the pixels by which the two colour histograms differ."""
    counts = [np.bincount(_bins(x), minlength=BINS**3) for x in (a, b)]
    return float(np.abs(counts[0] - counts[1]).sum() / (2 * SIZE * SIZE))


def _bins(image: Small) -> np.ndarray:
    levels = np.minimum((image * BINS).astype(np.int64), BINS - 1)
    return (levels @ np.array([BINS * BINS, BINS, 1])).ravel()
