"""What the driver's clip shows of a face: teeth, tongue and darkness between the lips, and folds of the skin."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from scipy.spatial import Delaunay
from scipy.spatial.distance import cdist

from expportrait_cli.artifacts.types import CROP_SIZE, Tracking
from expportrait_cli.geometry.rotations import from_turns
from expportrait_cli.head import HeadModel, dense, landmarks
from expportrait_cli.head.facemesh import EYE_RINGS, FACE_OVAL, LIP_PAIRS, LIPS, OUTER_EYES
from expportrait_cli.media.image import is_image
from expportrait_cli.media.video import read_frame, read_frames, read_pictures
from expportrait_cli.painting.proxy.hidden import NO_MAP
from expportrait_cli.painting.proxy.layers import SUBPIXEL_BITS, Layers, fixed, ramp, triangle_ids
from expportrait_cli.painting.proxy.lips import Contours

PARTED = (0.04, 0.09)
"""Gap between the driver's lips, in mouth widths, at which the clip has weight 0, and 1."""
SHARP_PX = (20.0, 36.0)
"""Width of the driver's mouth, px of the clip, at which the clip has weight 0, and 1: small mouths are not resolved."""
SURVEYED, BEGINNING = 8, 300
"""SURVEYED: frames that the driver's teeth are measured on: so many with the widest mouths and as many evenly spread,
out of the first BEGINNING with parted lips."""
RED = (0.2, 0.5)
"""Redness, from 0 (the driver's teeth) to 1 (the driver's lips), up to which a pixel is tooth, and from which flesh."""
CAST, LEAST_RED = 0.6, 5
"""Redness of teeth is the percentile LEAST_RED of that of bright pixels, at most CAST times the lips': in red light
teeth are red."""
COLOURLESS = 0.02
"""Redness of lips below which a clip counts as black and white; teeth are then found by brightness (`PALE`)."""
PALE = (1.1, 1.6)
"""Brightness, in shares of the lips', at which a pixel of a clip without colour is tooth by 0, and by 1."""
FEW = 0.02
"""Share of tooth pixels between the lips up to which the clip counts as one without teeth."""
INSET = 0.07
"""Margin at the upper and the lower rim of the mouth opening, as a share of its height, that is not sampled: contours
lie on the lips there."""
FAR = 50
"""Distance in frames from which the clip is opened anew, not decoded up to the frame."""
STEADY = 2
"""Frames on either side over which the weight of the clip is averaged."""
SKIN_TO_TOOTH, UNSEEN = (0.85, 5.0), 1.3
"""Brightness of teeth, as a multiple of the skin's around the mouth: its bounds, and its value where no teeth are
visible."""


@dataclass(frozen=True)
class Glimpse:
    """One frame of the driver, cropped around the mouth."""

    picture: UInt8[np.ndarray, "H W 3"]
    lips: Contours
    trust: float
    """Weight (0..1) of the clip: how well this frame shows the inside of the mouth."""

    def read(self, along: Float[np.ndarray, "h w"], share: Float[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w 3"]:
        """Sample RGB at positions along the mouth (0..1) and between the rims (0: upper, 1: lower)."""
        upper, lower = self.lips.line(self.lips.upper_inner, along), self.lips.line(self.lips.lower_inner, along)
        at = self.lips.place(along, upper + (INSET + (1 - 2 * INSET) * share) * (lower - upper)) - 0.5
        sampled = cv2.remap(
            self.picture, at.astype(np.float32), NO_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        return sampled.astype(np.float32)


class Pictures:
    """The frames of a tracked clip, asked for in order or from any frame on."""

    def __init__(self, tracking: Tracking) -> None:
        """Open nothing yet."""
        self._tracking = tracking
        self._frames: Iterator[np.ndarray] | None = None
        self._last: UInt8[np.ndarray, "H W 3"] | None = None
        self._next = -1

    def at(self, frame: int) -> UInt8[np.ndarray, "H W 3"] | None:
        """A frame of the clip; None where it has fewer than were tracked."""
        source = self._tracking.source
        if is_image(source):
            return read_frame(source, 0)
        if frame == self._next - 1:
            return self._last
        if self._frames is None or not 0 <= frame - self._next < FAR:
            self._frames, self._next = read_frames(source, start=self._tracking.first_frame + frame), frame
        self._last = next(islice(self._frames, frame - self._next, None), None)
        self._next = frame + 1
        return self._last


def in_source(tracking: Tracking) -> Float[np.ndarray, "T 478 2"]:
    """The landmarks of a tracking in px of its source."""
    return tracking.landmarks * (float(tracking.crop[2]) / CROP_SIZE) + tracking.crop[:2]


class Glimpses:
    """The driver's mouth in every frame of a film; access is fastest in order, and possible from any frame on."""

    def __init__(self, tracking: Tracking, pictures: "Pictures | None" = None) -> None:
        """Look at some frames with parted lips; `pictures` are the clip's, where others read it too."""
        self.tracking = tracking
        self.points = in_source(tracking)
        pairs = np.array(LIP_PAIRS)
        gap = np.linalg.norm(self.points[:, pairs[:, 0]] - self.points[:, pairs[:, 1]], axis=-1).max(1)
        width = np.linalg.norm(self.points[:, 61] - self.points[:, 291], axis=-1)
        gap = gap / np.maximum(width, 1e-6)
        seen = ramp(width, SHARP_PX) * (tracking.state == 0)
        around = np.ones(2 * STEADY + 1) / (2 * STEADY + 1)
        calm = np.minimum(np.convolve(np.pad(seen, STEADY, mode="edge"), around, mode="valid"), seen)
        self.trust = ramp(gap, PARTED) * calm
        self._pictures = pictures or Pictures(tracking)
        self.redness, self.cast, self.lip, self.white = 0.0, 0.0, 1.0, 1.0
        trusted = np.flatnonzero(self.trust > 0)[:BEGINNING]
        if len(trusted):
            # The widest mouths may show only the tongue.
            widest = trusted[np.argsort(gap[trusted])[-SURVEYED:]]
            spread = trusted[np.linspace(0, len(trusted) - 1, SURVEYED).astype(int)]
            self._survey(np.union1d(widest, spread))

    def _survey(self, chosen: Int64[np.ndarray, " N"]) -> None:
        """Measure the brightness of teeth and lips in this clip, and the redness of lips."""
        at = np.stack(np.meshgrid(np.linspace(0.1, 0.9, 24), np.linspace(0, 1, 12)), -1)
        inside, lips, beside = [], [], []
        for index, picture in zip(
            chosen, read_pictures(self.tracking.source, chosen + self.tracking.first_frame), strict=False
        ):
            glimpse = self._of(picture, int(index))
            inside.append(glimpse.read(at[..., 0], at[..., 1]).reshape(-1, 3))
            rims = glimpse.lips
            middle = np.concatenate(
                [(rims.upper_outer + rims.upper_inner) / 2, (rims.lower_outer + rims.lower_inner) / 2]
            )
            outside = middle.mean(0) + 1.35 * (np.concatenate([rims.upper_outer, rims.lower_outer]) - middle.mean(0))
            for found, px in ((lips, middle), (beside, outside)):
                column, row = np.clip(px.astype(int), 0, np.array(glimpse.picture.shape[1::-1]) - 1).T
                found.append(glimpse.picture[row, column].astype(np.float32))
        inner, lip, around = (np.concatenate(each) for each in (inside, lips, beside))
        self.redness, self.lip = float(np.median(redness(lip))), max(float(np.median(lip.mean(-1))), 1.0)
        # In red light teeth are red too.
        bright = redness(inner[inner.mean(-1) > self.lip])
        self.cast = float(np.clip(np.percentile(bright, LEAST_RED) if len(bright) else 0.0, 0.0, CAST * self.redness))
        skin = max(float(np.median(around.mean(-1))), 1.0)
        low, high = (share * skin for share in SKIN_TO_TOOTH)
        pale = inner[(self._tooth(inner) > 0.5) & (inner.mean(-1) > low)].mean(-1)
        # Without teeth in sight they are as bright as those of most people.
        white = float(np.percentile(pale, 85)) if len(pale) > FEW * len(inner) else UNSEEN * skin
        self.white = float(np.clip(white, low, high))

    def at(self, frame: int) -> Glimpse | None:
        """The driver's mouth in a frame of the film; None where the clip does not show its inside."""
        frame = min(frame, len(self.trust) - 1)
        if self.trust[frame] == 0:
            return None
        picture = self._pictures.at(frame)
        return None if picture is None else self._of(picture, frame)

    def light(
        self, colours: Float32[np.ndarray, "*B 3"]
    ) -> tuple[Float[np.ndarray, "*B"], Float[np.ndarray, "*B"], Float[np.ndarray, "*B"]]:
        """Brightness of pixels relative to this clip's teeth, and to its lips; and share (0..1) of tooth."""
        grey = colours.mean(-1)
        return _soft(grey / self.white), _soft(grey / self.lip), self._tooth(colours)

    def _tooth(self, colours):
        if self.redness < COLOURLESS:
            return ramp(colours.mean(-1) / self.lip, PALE).astype(np.float32)
        return (1 - ramp((redness(colours) - self.cast) / (self.redness - self.cast), RED)).astype(np.float32)

    def _of(self, picture, frame: int) -> Glimpse:
        points = self.points[frame].astype(np.float64)
        lips = points[LIPS]
        margin = 0.3 * np.ptp(lips[:, 0]) + 2
        left, top = np.maximum(lips.min(0) - margin, 0).astype(int)
        right, bottom = np.ceil(lips.max(0) + margin).astype(int)
        patch = picture[top : max(bottom, top + 2), left : max(right, left + 2)]
        if not patch.size:
            return Glimpse(np.zeros((2, 2, 3), np.uint8), Contours.of(points - [left, top]), 0.0)
        return Glimpse(patch, Contours.of(points - [left, top]), float(self.trust[frame]))


def redness(colours: Float[np.ndarray, "*B 3"]) -> Float[np.ndarray, "*B"]:
    """(R - G) / (R + G + B): blue is left out of the difference, because teeth may be yellow."""
    return np.asarray((colours[..., 0] - colours[..., 1]) / np.maximum(colours.sum(-1), 24))


def _soft(bright):
    """Compress relative brightness above 1, and limit it to 1.25."""
    return np.minimum(np.where(bright > 1, 1 + 0.4 * (bright - 1), bright), 1.25)


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


class DriverFolds:
    """Shading of the driver's frown, forehead and crow's feet, by the ratio of each frame to the same skin at rest.

    After Liu, Shan and Zhang, "Expressive expression mapping with ratio images" (2001), between two widths alone.
    """

    def __init__(self, tracking: Tracking, head: HeadModel, pictures: Pictures) -> None:
        """Look at frames spread over the clip."""
        self._tracking, self._pictures, self._points = tracking, pictures, in_source(tracking)
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
        at = (points[self._corners] * self._weights[..., None]).sum(1) * scale - low - 0.5
        at = at.astype(np.float32).reshape(*self._shape, 2)
        band, wide = (
            cv2.remap(each, at, NO_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).ravel()
            for each in (np.log(fine / coarse), coarse)
        )
        return band, wide

    def at(self, frame: int) -> Float32[np.ndarray, "R C"] | None:
        """Logarithm of the shade on the mean head in a frame of the film; None where the clip shows none."""
        frame = min(frame, len(self._iod) - 1)
        calm, is_seen = self._calm, self._iod[frame] > SMALLEST_PX and not self._tracking.state[frame]
        picture = self._pictures.at(frame) if is_seen and calm is not None else None
        if picture is None or calm is None:
            return None
        change = (self._read(picture, frame)[0] - calm).reshape(self._shape).astype(np.float32)
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

    def shade(self, frame: UInt8[np.ndarray, "H W 3"], rast: torch.Tensor, fold: Float32[np.ndarray, "R C"]) -> None:
        """Shade the skin of a frame, in place."""
        ids = triangle_ids(rast)
        own = self._triangles[ids] & (ids >= 0)
        rows, cols = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
        if not len(rows):
            return
        box = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        ids, own = ids[box], own[box]
        weights = rast[0, box[0], box[1]].numpy()[own][:, :2]
        weights = np.column_stack([weights, 1 - weights.sum(1)])
        at = np.zeros((*own.shape, 3), np.float32)
        at[own] = (self._attributes[self._faces[ids[own]]] * weights[..., None]).sum(1)
        shade = at[..., 2] * cv2.remap(fold, np.ascontiguousarray(at[..., :2]), NO_MAP, cv2.INTER_LINEAR)
        frame[box] = np.rint(frame[box] * np.exp(shade)[..., None]).clip(0, 255).astype(np.uint8)
