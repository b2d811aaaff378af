"""Folds of the skin: those of the photo's smile fade, and those of the driver's frown are drawn."""

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8
from scipy.spatial import Delaunay
from scipy.spatial.distance import cdist

from expportrait_cli.artifacts.types import Tracking
from expportrait_cli.geometry.rotations import from_turns
from expportrait_cli.head import HeadModel, dense, landmarks
from expportrait_cli.head.facemesh import EYE_RINGS, FACE_OVAL, LIP_CORNERS, OUTER_EYES
from expportrait_cli.media.video import read_pictures
from expportrait_cli.painting.proxy.hidden import NO_MAP
from expportrait_cli.painting.proxy.layers import SUBPIXEL_BITS, Layers, fixed, membrane, ramp, triangle_ids

FOLDS = ((203, 206, 216, 212, 202), (423, 426, 436, 432, 422))
"""FaceMesh landmarks along the nasolabial fold, from the nose past the corner of the mouth, on each side."""
FOLD_REACH, FOLD_WIDE, FADED = 0.2, 0.11, 0.8
"""FOLD_REACH: largest distance of a fold from these landmarks. FOLD_WIDE: width of the widest groove that counts as a
fold. Both in mouth widths of the photo. FADED: share of a fold's darkness that is removed."""
CHEEK_REACH, CHEEK_FINE, LEVELLED = 0.24, 0.025, 0.7
"""The step from the bright cheek of a smile to the skin around the mouth. CHEEK_REACH: distance from the landmarks up
to which it is levelled; CHEEK_FINE: standard deviation of the Gaussian that keeps finer texture; both in mouth
widths. LEVELLED: share of the step that is removed at the landmarks: faces at rest have some of it too."""
HAIR_CONTRAST, BEARD, BEARD_WIDE, BEARD_LOG = 0.07, (0.3, 0.5), 0.12, 0.35
"""Beards stay as they are. HAIR_CONTRAST: contrast of fine texture from which a pixel may be hair; BEARD: share of such
pixels up to which skin is bare, and from which it is bearded, in a Gaussian window of standard deviation BEARD_WIDE
(mouth widths); BEARD_LOG: logarithm of a change of brightness at which it is 1/e as strong, for the same reason."""


def without_folds(
    picture: UInt8[np.ndarray, "H W 3"], points: Float[np.ndarray, "478 2"], outline: Float[np.ndarray, "N 2"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Brighten the dark grooves of a smile beside the mouth, and level the shade across them; returns a new picture.

    `points` are FaceMesh's, px; `outline` is that of the lips, px, which stay unchanged.
    """
    width = float(np.linalg.norm(points[LIP_CORNERS[1]] - points[LIP_CORNERS[0]]))
    courses = [points[list(course)] for course in FOLDS]
    ends = np.concatenate(courses)
    left, top = np.maximum(ends.min(0) - 0.4 * width, 0).astype(int)
    right, bottom = np.maximum(ends.max(0) + 0.4 * width, 0).astype(int)
    box = np.s_[top : max(bottom, top), left : max(right, left)]
    shown = picture[box].astype(np.float32)
    if min(shown.shape[:2]) < 8:
        return picture
    away = np.ones(shown.shape[:2], np.uint8)
    cv2.polylines(away, [fixed(course - [left, top] - 0.5) for course in courses], False, (0,), 1, shift=SUBPIXEL_BITS)
    away = cv2.distanceTransform(away, cv2.DIST_L2, 5) / width
    lip = np.ones(shown.shape[:2], np.uint8)
    cv2.fillPoly(lip, [fixed(outline - [left, top] - 0.5)], (0,), shift=SUBPIXEL_BITS)
    beside_lips = ramp(cv2.distanceTransform(lip, cv2.DIST_L2, 5) / width, (0.02, 0.06))
    zone = (1 - ramp(away, (0.5 * FOLD_REACH, FOLD_REACH))) * beside_lips
    side = 2 * max(round(FOLD_WIDE * width / 2), 1) + 1
    base = cv2.GaussianBlur(shown, (0, 0), max(0.008 * width, 0.6))
    filled = cv2.morphologyEx(base, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    lighter = np.maximum(cv2.GaussianBlur(filled, (0, 0), max(0.02 * width, 0.6)) - base, 0)
    zone = cv2.GaussianBlur(zone.astype(np.float32), (0, 0), max(0.02 * width, 0.6))[..., None]
    bare = _bare(shown, width)[..., None]
    shown = shown + FADED * bare * zone * lighter
    # Faded out, so that strands of hair and other edges across the zone's border leave no line.
    near = LEVELLED * (1 - ramp(away, (0.5 * CHEEK_REACH, CHEEK_REACH)))[..., None]
    shown = shown + near * bare * _levelled(shown, (away < CHEEK_REACH) & (beside_lips > 0), width)
    whole = picture.copy()
    whole[box] = np.rint(shown).clip(0, 255).astype(np.uint8)
    return whole


def _bare(shown, width):
    """Weight of pixels, 1 on bare skin, 0 in a beard."""
    grey = shown.mean(-1)
    calm = cv2.GaussianBlur(grey, (0, 0), max(CHEEK_FINE * width, 0.8))
    rough = (np.abs(grey - calm) > HAIR_CONTRAST * (calm + 4)).astype(np.float32)
    return 1 - ramp(cv2.GaussianBlur(rough, (0, 0), BEARD_WIDE * width), BEARD)


def _levelled(shown, zone, width):
    """Change of the picture that makes its shade in a zone a smooth transition between the colours around the zone."""
    base = cv2.GaussianBlur(shown, (0, 0), max(CHEEK_FINE * width, 0.8))
    change = membrane(base, 1 - zone.astype(np.float32)) - base
    ratio = np.log1p(change.mean(-1) / (base.mean(-1) + 4))
    return change * np.exp(-((ratio / BEARD_LOG) ** 2))[..., None]


BROW_HAIR = ((70, 63, 105, 66, 65, 52, 53, 46), (300, 293, 334, 296, 295, 282, 283, 276))
"""Outlines of the brows without their inner ends, beside which a frown folds: edges of hair that moves are none."""
BESIDE_M = {"hair": (0.002, 0.009), "eyes": (0.010, 0.018), "border": (0.006, 0.014)}
"""Distances from the hair of brows, the eyes, and the border of the face, m, at which folds have weight 0, and 1."""
BELOW_M = (-0.018, -0.008)
"""Heights over the outer eye corners, m, at which folds have weight 0, and 1: below, beards would leak."""
STEP_M = 0.0007
"""Spacing of the grid on the mean head on which the shade of folds is stored, m."""
IOD_PX, SMALLEST_PX = 130.0, 60.0
"""IOD_PX: distance of the outer eye corners to which the driver's pictures are scaled, px. SMALLEST_PX: distance in the
clip below which no folds are read."""
FINE, COARSE = 0.009, 0.085
"""Widths of folds, as shares of the distance of the eye corners: finer shades are grain, coarser ones are lighting."""
CALMS, CALM_PERCENT = 16, 70
"""Frames, spread over the clip, from which the skin at rest is read, and the percentile of their brightness that is
taken at each point: folds are dark."""
GRAIN_LOG, DEEPEST_LOG = 0.02, 0.6
"""Logarithm of the ratio of brightness up to which a shade is noise; and its largest value in a fold."""
THICKEST_M = 0.006
"""Largest width of a fold, m: wider dark regions are brows that moved beyond their landmarks, or a hand."""
CURVE_M, FACES = 0.085, (0.45, 0.7)
"""CURVE_M: radius of a forehead, m. FACES: cosine of the angle between its normal and the view at which folds have
weight 0, and 1."""
SKINNED = (0.5, 0.7)
"""Brightness, as a share of the skin's, at which folds have weight 0, and 1: darker is hair, shadow or glasses."""


def _between(
    values: Float[np.ndarray, "V C"], corners: Int[np.ndarray, "N 3"], weights: Float[np.ndarray, "N 3"]
) -> Float[np.ndarray, "N C"]:
    """Values inside triangles, by barycentric weights."""
    # Added one by one: NumPy's sum over so short an axis takes several times as long.
    first, second, third = (values[corners[:, k]] * weights[:, k, None] for k in range(3))
    return first + second + third


class DriverFolds:
    """Shading of the driver's frown, forehead and crow's feet, by the ratio of each frame to the same skin at rest.

    After Liu, Shan and Zhang, "Expressive expression mapping with ratio images" (2001), between two widths alone.
    """

    def __init__(self, tracking: Tracking, head: HeadModel) -> None:
        """Read the skin at rest from frames spread over the clip."""
        self._tracking, self._points = tracking, tracking.source_points
        marks = landmarks(head, dense(head, head.template)).numpy()[:, :2]
        corners = marks[list(OUTER_EYES)]
        eyes = self._points[:, list(OUTER_EYES)]
        self._iod = np.linalg.norm(eyes[:, 0] - eyes[:, 1], axis=-1)
        border = [i for i in FACE_OVAL if marks[i, 1] > corners[:, 1].mean()]
        top = marks[border].max(0)
        self.corner = np.array([marks[border, 0].min(), top[1]])
        """Place on the mean head (x, y) of the first point; the others lie to the right and below."""
        low = corners[:, 1].mean() + BELOW_M[0]
        self._shape = (int(np.ceil((top[1] - low) / STEP_M)), int(np.ceil((top[0] - self.corner[0]) / STEP_M)))
        self.rows = self._shape[0]
        rows, cols = np.indices(self._shape)
        flat = np.stack([self.corner[0] + STEP_M * cols.ravel(), self.corner[1] - STEP_M * rows.ravel()], -1)
        mesh = Delaunay(marks[:468])
        at = mesh.find_simplex(flat)
        inside = (at >= 0).reshape(self._shape).astype(np.uint8)
        hair = np.ones(self._shape, np.uint8)
        for outline in BROW_HAIR:
            cv2.fillPoly(
                hair, [fixed((marks[list(outline)] - self.corner) / [STEP_M, -STEP_M])], (0,), shift=SUBPIXEL_BITS
            )
        away = {
            "hair": STEP_M * cv2.distanceTransform(hair, cv2.DIST_L2, 5).ravel(),
            "eyes": cdist(flat, marks[EYE_RINGS]).min(1),
            "border": STEP_M
            * cv2.distanceTransform(np.pad(inside, ((1, 0), (1, 1))), cv2.DIST_L2, 5)[1:, 1:-1].ravel(),
        }
        self._share = ramp(flat[:, 1] - corners[:, 1].mean(), BELOW_M).astype(np.float32)
        for name, gap in away.items():
            self._share *= ramp(gap, BESIDE_M[name])
        frame = mesh.transform[at]
        two = np.einsum("nij,nj->ni", frame[:, :2], flat - frame[:, 2])
        self._corners, self._weights = mesh.simplices[at], np.c_[two, 1 - two.sum(1)]
        sine = np.clip((flat[:, 0] - marks[:, 0].mean()) / CURVE_M, -0.95, 0.95)
        self._normals = np.stack([sine, 0 * sine, np.sqrt(1 - sine**2)], -1)
        self._kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (round(THICKEST_M / STEP_M),) * 2)
        self._calm = self._at_rest()

    def _at_rest(self) -> Float32[np.ndarray, " P"] | None:
        """Shade of the skin where it is calmest; None if the clip is too small to show any."""
        rows = np.flatnonzero(self._tracking.sure & (self._iod > SMALLEST_PX))
        if not len(rows):
            return None
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, CALMS).astype(int))]
        pictures = read_pictures(self._tracking.source, rows + self._tracking.first_frame)
        read = [self._read(picture, row) for row, picture in zip(rows, pictures, strict=False)]
        bright = np.median([coarse for _, coarse in read], axis=0)
        self._share *= ramp(bright / np.median(bright[self._share > 0]), SKINNED)
        return np.percentile([band for band, _ in read], CALM_PERCENT, axis=0).astype(np.float32)

    def _read(self, picture, row):
        """Logarithm of brightness between the two widths, and brightness without folds."""
        points, scale = self._points[row], IOD_PX / max(float(self._iod[row]), 1.0)
        margin = 3 * COARSE * IOD_PX
        low, high = points[:468].min(0) * scale - margin, points[:468].max(0) * scale + margin
        size = tuple(int(n) for n in np.ceil(high - low).clip(8, 8 * IOD_PX))
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        if scale < 1:
            # Warps do not average: the grain of large pictures would become folds.
            grey = cv2.GaussianBlur(grey, (0, 0), 0.5 / scale)
        place = np.array([[scale, 0, 0.5 * scale - 0.5 - low[0]], [0, scale, 0.5 * scale - 0.5 - low[1]]])
        small = cv2.warpAffine(grey, place, size, borderMode=cv2.BORDER_REPLICATE).astype(np.float32) + 4
        fine, coarse = (cv2.GaussianBlur(small, (0, 0), width * IOD_PX) for width in (FINE, COARSE))
        at = _between(points, self._corners, self._weights) * scale - low - 0.5
        at = at.astype(np.float32).reshape(*self._shape, 2)
        band, wide = (
            cv2.remap(each, at, NO_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).ravel()
            for each in (np.log(fine / coarse), coarse)
        )
        return band, wide

    def shows(self, frame: int) -> bool:
        """True if folds can be read from the clip in this frame of the film."""
        frame = min(frame, len(self._iod) - 1)
        return bool(self._calm is not None and self._iod[frame] > SMALLEST_PX and not self._tracking.state[frame])

    def of(self, picture: UInt8[np.ndarray, "H W 3"], frame: int) -> Float32[np.ndarray, "R C"]:
        """Logarithm of the shade on the mean head in a frame that `shows` folds; `picture` is the clip's."""
        assert self._calm is not None
        frame = min(frame, len(self._iod) - 1)
        change = (self._read(picture, frame)[0] - self._calm).reshape(self._shape).astype(np.float32)
        thin = cv2.morphologyEx(change, cv2.MORPH_BLACKHAT, self._kernel)
        fold = -np.clip(np.minimum(thin, -change) - GRAIN_LOG, 0, DEEPEST_LOG).ravel()
        turn = from_turns(self._tracking.rotation[frame])
        fold *= self._share * ramp(-(self._normals @ turn.T)[:, 2], FACES)
        return fold.reshape(self._shape).astype(np.float32)


class Creased:
    """The skin of one photo that takes the driver's folds."""

    def __init__(self, layers: Layers, head: HeadModel, folds: DriverFolds) -> None:
        """Leave out what the photo shows as hair, glasses or shadow."""
        flat = dense(head, head.template).numpy()
        places = (flat[:, :2] - folds.corner) / [STEP_M, -STEP_M]
        own = (head.parts.numpy() == 0) & (head.facial_mask.numpy() > 0) & (places[:, 1] < folds.rows)
        self._faces = head.dense_faces.numpy()
        self._triangles = own[self._faces].all(1)
        height, width = layers.alpha.shape
        column, row = np.clip(np.floor(layers.xy).astype(int), 0, [width - 1, height - 1]).T
        grey = cv2.GaussianBlur(layers.photo, (0, 0), 1.5)[row, column].mean(-1)
        skin = float(np.median(grey[own]))
        share = ramp(grey / max(skin, 1.0), SKINNED) * (1 - layers.hairy)
        self._attributes = np.column_stack([places, share]).astype(np.float32)
        spans = np.ptp(self._attributes[self._faces[self._triangles], :2], axis=1)
        self._reach = np.ones(2 * np.ceil(spans.max(0, initial=0)).astype(int)[::-1] + 5, np.uint8)
        """Neighbourhood, on the grid of folds, that contains every point near a triangle of the skin; odd sides."""

    def _folded(self, fold: Float32[np.ndarray, "R C"]) -> Bool[np.ndarray, " F"]:
        """Triangles of the skin that may show a fold: the shade is 0 all around the others."""
        near = cv2.dilate((fold != 0).astype(np.uint8), self._reach) > 0
        first = self._faces[:, 0]
        column, row = np.clip(np.rint(self._attributes[first, :2]).astype(int), 0, np.array(fold.shape)[::-1] - 1).T
        return self._triangles & near[row, column]

    def shade(self, frame: UInt8[np.ndarray, "H W 3"], rast: torch.Tensor, fold: Float32[np.ndarray, "R C"]) -> None:
        """Shade the skin of a frame, in place."""
        ids = triangle_ids(rast)
        own = self._folded(fold)[ids] & (ids >= 0)
        rows, cols = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
        if not len(rows):
            return
        box = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        ids, own = ids[box], own[box]
        weights = rast[0, box[0], box[1]].numpy()[own][:, :2]
        weights = np.column_stack([weights, 1 - weights.sum(1)])
        at = np.zeros((*own.shape, 3), np.float32)
        at[own] = _between(self._attributes, self._faces[ids[own]], weights)
        shade = at[..., 2] * cv2.remap(fold, np.ascontiguousarray(at[..., :2]), NO_MAP, cv2.INTER_LINEAR)
        frame[box] = np.rint(frame[box] * np.exp(shade)[..., None]).clip(0, 255).astype(np.uint8)
