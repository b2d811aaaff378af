"""Motion of head and torso by optical flow, and detection of cuts."""

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

CUT_SIDE = 64
BINS = 8
COLOURS = 0.3
"""`colour_change` above which there may be a cut; within a shot it is at most 0.24, at cuts 0.55."""
PICTURE = 0.4
"""`picture_change` above which there may be a cut; within a shot it is at most 0.30 (a bouncing head), at cuts 0.47. A
flash of light changes every colour, but not this."""
OTHER_PICTURE = 0.75
"""`picture_change` above which there is a cut, whatever the colours."""
FLAT = 0.01
"""Standard deviation of brightness below which a picture counts as empty: black, or faded out."""

Small = Float32[np.ndarray, "64 64 3"]


class CutDetector:
    """Decides for each frame whether it starts a new shot. 1 ms, mainly for shrinking the frame."""

    def __init__(self) -> None:
        self._before: Small | None = None
        self._now: Small | None = None

    def is_cut(self, frame: UInt8[np.ndarray, "H W 3"]) -> bool:
        """Return True if picture and colours differ from those of the frame before; False for the first frame."""
        small = cv2.resize(frame, (CUT_SIDE, CUT_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        self._before, self._now = self._now, small
        return self._before is not None and differs(self._before, small)

    @property
    def before(self) -> Small:
        """The frame before the last one, for a later call of `is_back`."""
        assert self._before is not None
        return self._before

    def is_back(self, picture: Small) -> bool:
        """True if the last frame continues the shot that an earlier picture belongs to."""
        assert self._now is not None
        return not differs(picture, self._now)


def differs(a: Small, b: Small) -> bool:
    """True if there is a cut between two pictures."""
    picture = picture_change(a, b)
    return picture > OTHER_PICTURE or (picture > PICTURE and colour_change(a, b) > COLOURS)


def picture_change(a: Small, b: Small) -> float:
    """One minus the correlation of the blurred brightness; 1 if one picture is empty (`FLAT`), 0 if both are."""
    # Without the blur a moving outline would not correlate with itself.
    blurred = [cv2.GaussianBlur(x.mean(axis=2), (0, 0), 2).ravel() for x in (a, b)]
    flat = [bool(x.std() < FLAT) for x in blurred]
    if any(flat):
        return 0.0 if all(flat) else 1.0
    return 1 - float(np.corrcoef(*blurred)[0, 1])


def colour_change(a: Small, b: Small) -> float:
    """Difference of the two colour histograms, as a share of the pixels, 0..1."""
    counts = [np.bincount(_bins(x), minlength=BINS**3) for x in (a, b)]
    return float(np.abs(counts[0] - counts[1]).sum() / (2 * CUT_SIDE * CUT_SIDE))


def _bins(image: Small) -> np.ndarray:
    levels = np.minimum((image * BINS).astype(np.int64), BINS - 1)
    return (levels @ np.array([BINS * BINS, BINS, 1])).ravel()


GLIMPSE_S = 0.2
"""Longest interruption of a shot by a flash of light or another scene that does not end the shot, s."""


class Shots:
    """Numbers the shots. An interruption of at most `GLIMPSE_S`, after which the shot goes on, is not a cut."""

    def __init__(self, rate: Fraction) -> None:
        """`rate`: frames per second."""
        self._cuts, self._longest = CutDetector(), max(1, round(GLIMPSE_S * float(rate)))
        self._left: tuple[Small, int, int] | None = None
        """Last picture of the shot before the last cut, index of the frame after it, and that shot's scene."""
        self.index: list[int] = []
        self.glimpses: list[int] = []
        """Indices of the frames of interruptions: black ones, or of another scene."""
        self.scene, self._scenes = 0, 0
        """Number of the current scene; after an interruption it is the interrupted scene's again."""

    def is_new(self, image: UInt8[np.ndarray, "H W 3"]) -> bool:
        """Take the next frame; True if it does not continue the one before: at a cut, and after an interruption."""
        is_cut, t = self._cuts.is_cut(image), len(self.index)
        if self._left is not None and t - self._left[1] > self._longest:
            self._left = None
        if self._left is not None and self._cuts.is_back(self._left[0]):
            _, since, self.scene = self._left
            self.index[since:] = [self.index[since - 1]] * (t - since + 1)
            self.glimpses += range(since, t)
            self._left = None
            return True
        if is_cut:
            self._left = self._left or (self._cuts.before, t, self.scene)
            self._scenes += 1
            self.scene = self._scenes
        self.index.append(self.index[-1] + is_cut if self.index else 0)
        return is_cut


SIZE = 256
MIN_PIXELS = 250
"""Least area of a region that is measured, px of the small image."""
MAX_PIXELS = 600
"""Approximate number of pixels of a region that the similarity is fitted to: more only cost time."""
ROUNDS = 6
CAUCHY_PX = 1.0
"""Residual at which the weight of a pixel is halved, px of the small image."""
TRUSTED_PX = 1.0
"""Median residual at which the confidence is halved, px of the small image."""
MIN_CONFIDENCE = 0.05
"""Confidence below which a region keeps its last motion and counts as not measured."""
FAR_PX = 3.0
"""Change of the shift since the frame before, px of the small image, beyond which it is measured once more, starting at
the new value."""
PAD = 8
"""Margin around a region that optical flow is computed on, px of the small image."""
MIN_SPAN = 128
"""Least side of the area for optical flow, px of the small image: OpenCV's DIS crashes on narrower strips."""
TORSO_SHARE = 0.3
"""Share of the head's shift that the torso is given where it cannot be measured."""
FOREHEAD, CHIN, RIGHT_EAR, LEFT_EAR = 10, 152, 234, 454
BROWS = [70, 63, 105, 66, 107, 336, 296, 334, 293, 300]
IDENTITY = np.array([1, 0, 0, 0], np.float64)

Image = UInt8[np.ndarray, "H W 3"]
Plane = Float32[np.ndarray, "H W"]


class Motion(NamedTuple):
    """Similarity transforms of two regions from a shot's first frame to the current one."""

    flow: Float32[np.ndarray, "2 4"]
    """Similarity of hair and forehead, then of the torso, crop px: x' = a x - b y + c, y' = b x + a y + d."""
    confidence: Float32[np.ndarray, " 2"]
    """Confidence of both: 0 not measured, 1 no residual."""


def head_and_torso(
    landmarks: Float32[np.ndarray, "478 2"], matte: Plane
) -> tuple[Bool[np.ndarray, "H W"], Bool[np.ndarray, "H W"]]:
    """Masks of two regions of a crop: the person above the brows and beside the ears, and well below the chin.

    Measured along the face's own upright direction, so that a tilted head has its hair above its brows.
    """
    height, width = matte.shape
    y, x = np.mgrid[:height, :width].astype(np.float32) + 0.5
    up = landmarks[FOREHEAD] - landmarks[CHIN]
    face = float(np.linalg.norm(up))
    up = up / face
    brow = float((landmarks[BROWS] @ up).max())
    ears = landmarks[[RIGHT_EAR, LEFT_EAR]]
    above = x * up[0] + y * up[1]
    across = x * -up[1] + y * up[0]
    beside = ears @ np.array([-up[1], up[0]], np.float32)
    sides = (above > float((ears @ up).mean())) & ((across < beside.min()) | (across > beside.max()))
    person = matte > 0.9
    head = person & ((above > brow + 0.03 * face) | sides)
    torso = person & (above < float(landmarks[CHIN] @ up) - 0.12 * face)
    return head, torso


@dataclass
class Region:
    """Pixels of a region of the first frame, with their weights and the region's latest motion."""

    rows: Int64[np.ndarray, " N"]
    columns: Int64[np.ndarray, " N"]
    weights: Float64[np.ndarray, " N"]
    box: tuple[slice, slice]
    """Rows and columns of the small image that optical flow is computed on."""
    flow: Float64[np.ndarray, " 4"]
    """Latest trusted similarity, px of the small image."""


class RegionFlow:
    """Tracks the similarity transforms of hair and torso from a shot's first frame. About 10 ms a frame."""

    def __init__(self, first: Image, landmarks: Float32[np.ndarray, "478 2"], matte: Plane) -> None:
        self._scale = first.shape[0] / SIZE
        self._first = _grey(first)
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        texture = cv2.cornerMinEigenVal(self._first, 5)
        self._regions = [_region(mask, texture) for mask in head_and_torso(landmarks, matte)]

    def step(self, frame: Image) -> Motion:
        """Motion from the first frame to `frame`; call it with every frame in order: each search starts at the last."""
        small = _grey(frame)
        head, torso = (self._measure(small, region) for region in self._regions)
        flow = np.stack([head[0], torso[0] if torso[1] > 0 else self._follow(head[0])])
        flow[:, 2:] *= self._scale
        return Motion(flow.astype(np.float32), np.array([head[1], torso[1]], np.float32))

    def _measure(self, small: UInt8[np.ndarray, "S S"], region: Region) -> tuple[Float64[np.ndarray, " 4"], float]:
        if len(region.rows) < MIN_PIXELS:
            return IDENTITY, 0.0
        flow, residual, share = self._from(region.flow, small, region)
        if np.abs(flow - region.flow)[2:].max() > FAR_PX and share > 0:
            again = self._from(flow, small, region)
            if again[1] < residual:
                flow, residual, share = again
        confidence = share / (1 + (residual / TRUSTED_PX) ** 2)
        if confidence < MIN_CONFIDENCE:
            return region.flow, 0.0
        region.flow = flow
        return flow, confidence

    def _from(
        self, guess: Float64[np.ndarray, " 4"], small: UInt8[np.ndarray, "S S"], region: Region
    ) -> tuple[Float64[np.ndarray, " 4"], float, float]:
        """Similarity by optical flow after warping by `guess`; median residual, px; share of pixels inside the frame.

        After the warp the remaining motion is small, so that large motions are found if they are smooth in time.
        """
        y, x = region.box
        a, b, c, d = guess
        # From pixel indices of the box to indices of the frame; both count from pixel centres.
        corner_x, corner_y = x.start + 0.5, y.start + 0.5
        back = np.array([[a, -b, a * corner_x - b * corner_y + c - 0.5], [b, a, b * corner_x + a * corner_y + d - 0.5]])
        size = (x.stop - x.start, y.stop - y.start)
        nothing = np.zeros((size[1], size[0], 2), np.float32)
        undone = cv2.warpAffine(
            small, back, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
        )
        field = self._dis.calc(np.ascontiguousarray(self._first[region.box]), undone, nothing)
        points = np.stack([region.columns, region.rows], -1) + 0.5
        moved = points + field[region.rows - y.start, region.columns - x.start]
        moved = moved @ np.array([[a, b], [-b, a]]) + [c, d]
        inside = ((moved > 1) & (moved < SIZE - 1)).all(axis=1)
        if inside.sum() < MIN_PIXELS:
            return guess, np.inf, 0.0
        flow, residual = robust_similarity(points[inside], moved[inside], region.weights[inside])
        return flow, residual, float(inside.mean())

    def _follow(self, head: Float64[np.ndarray, " 4"]) -> Float64[np.ndarray, " 4"]:
        """Estimate the motion of an unseen torso: `TORSO_SHARE` of the shift of the middle of the head's region."""
        region = self._regions[0]
        if not len(region.rows):
            return IDENTITY
        x, y = region.columns.mean() + 0.5, region.rows.mean() + 0.5
        a, b, c, d = head
        return np.array([1, 0, TORSO_SHARE * (a * x - b * y + c - x), TORSO_SHARE * (b * x + a * y + d - y)])


def _region(mask: Bool[np.ndarray, "H W"], texture: Float32[np.ndarray, "S S"]) -> Region:
    share = cv2.resize(mask.astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    rows, columns = np.nonzero(share > 0.99)
    if not len(rows):
        return Region(rows, columns, np.zeros(0), (slice(0, 0), slice(0, 0)), IDENTITY)
    every = 1 + len(rows) // MAX_PIXELS
    rows, columns = rows[::every], columns[::every]
    strength = texture[rows, columns].astype(np.float64)
    weights = strength / (strength + np.median(strength) + 1e-12)
    return Region(rows, columns, weights, (_span(rows), _span(columns)), IDENTITY)


def _span(positions: Int64[np.ndarray, " N"]) -> slice:
    """Range of positions with a margin, of at least `MIN_SPAN`."""
    first, last = int(positions.min()) - PAD, int(positions.max()) + 1 + PAD
    short = max(0, MIN_SPAN - (last - first))
    first = int(np.clip(first - short // 2, 0, SIZE - MIN_SPAN))
    return slice(first, min(SIZE, max(last, first + MIN_SPAN)))


def robust_similarity(
    points: Float64[np.ndarray, "N 2"], moved: Float64[np.ndarray, "N 2"], weights: Float64[np.ndarray, " N"]
) -> tuple[Float64[np.ndarray, " 4"], float]:
    """Similarity (a, b, c, d) by iteratively reweighted least squares, and the median residual."""
    source, target = (np.ascontiguousarray(each).view(np.complex128)[:, 0] for each in (points, moved))
    # A similarity multiplies by one complex number and adds another: a + ib, c + id.
    turn, shift = 1 + 0j, complex(*np.median(moved - points, axis=0))
    for _ in range(ROUNDS):
        away = np.abs(turn * source + shift - target)
        share = weights / (1 + (away / CAUCHY_PX) ** 2)
        share = share / max(share.sum(), 1e-12)
        centre, centre_target = share @ source, share @ target
        p, q = source - centre, target - centre_target
        turn = share @ (p.conj() * q) / max(share @ (p.real**2 + p.imag**2), 1e-12)
        shift = centre_target - turn * centre
    residual = np.abs(turn * source + shift - target)
    return np.array([turn.real, turn.imag, shift.real, shift.imag]), float(np.median(residual))


def _grey(image: Image) -> UInt8[np.ndarray, "S S"]:
    small = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)


def rebased(
    row: Float32[np.ndarray, "4"] | Float64[np.ndarray, "4"], k: float, corner: Float64[np.ndarray, "2"]
) -> Float64[np.ndarray, "4"]:
    """Convert a similarity (a, b: rotation and scale; c, d: shift) of points p to one of points k p + corner."""
    a, b, c, d = row
    turn = np.array([[a, -b], [b, a]])
    shift = k * np.array([c, d]) + corner - turn @ corner
    return np.array([a, b, *shift])
