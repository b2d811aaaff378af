"""Lips: their state in the photo, and how they close over teeth that are visible in the photo."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8

from expportrait_cli.head import HeadModel, dense, landmarks
from expportrait_cli.head.facemesh import LIP_CORNERS, LIPS, LOWER_LIPS, MOUTH_CORNERS, UPPER_LIPS
from expportrait_cli.painting.proxy.folds import without_folds
from expportrait_cli.painting.proxy.hidden import NO_MAP
from expportrait_cli.painting.proxy.layers import (
    NONE,
    SKIN,
    SUBPIXEL_BITS,
    Layers,
    evened,
    fixed,
    membrane,
    mix,
    ramp,
    spots,
    triangle_ids,
)

OPEN_M = 0.0015
"""Mean gap between the lips of the photo, m, from which its mouth counts as open."""
MOVED = (0.02, 0.06)
"""Mean displacement of the inner lips against the photo, in mouth widths, at which the picture with shut lips has
weight 0, and 1: teeth and shadows of the photo's mouth do not belong on the lips that are painted."""
SEAM_M, SEAM_WIDTH_M, SEAM = (0.0006, 0.0016), 0.0008, 0.62
"""Dark line between shut lips. SEAM_M: gap, m, at which its weight is 1, and 0; SEAM_WIDTH_M: its width, m; SEAM: its
brightness, as a share of the lips'."""
DEEP_M = 0.02
"""Distance behind the lips, m, from which skin between them counts as mouth cavity: it is the neck, seen inside."""
BESIDE = 0.1
"""Largest distance beside the lips, in mouth widths, at which the inside of the mouth may be drawn."""
LIP_SHADOW = (0.14, 0.05)
"""Reach, in mouth widths across and up, of the open mouth's teeth and shadow beyond the opening of the mesh."""
UNLIKE = np.array([14.0, 7.0, 7.0], np.float32)
"""Scale of differences in L*, a* and b*: beyond a scaled distance of 1 a pixel counts as neither lip nor skin."""
ON_LIP, BESIDE_LIPS = (0.25, 0.4, 0.55), 0.08
"""ON_LIP: places where a lip's colour is read, from its outer (0) to its inner border (1). BESIDE_LIPS: distance from
the lips where the colour of skin is read, in mouth widths."""
SPILT = 0.12
"""Width of the zone around the lips' contour in which pixels may still be lip, in mouth widths."""
MIDDLE = slice(3, 8)
"""Columns of a lip contour, away from the corners, on which the lip's colour is read."""
AROUND_LIPS_M = 0.012
"""Largest distance from the lips, m, at which the picture of shut lips differs from the photo."""
MEETS, MEETS_DARK, CREASES = 0.05, 0.25, 0.008
SHINE, SHINES_AT, SHINE_WIDE = 0.1, (0.5, 0.1), (0.2, 0.045)
"""Shading of shut lips. MEETS and MEETS_DARK: width, in mouth widths, and darkening (share) along the line where they
meet; CREASES: relative contrast of the creases across them; SHINE: brightening of the lower lip at its fullest place,
with this place and the standard deviations along and down the mouth, in mouth widths."""
EVEN, EVENED, KEPT, ALIKE, WITHIN = 0.03, 0.75, 0.05, 0.5, (0.02, 0.06)
"""Evenness of shut lips, without rims of gums and the shine of a stretched lip. EVEN: standard deviation, in mouth
widths, of the Gaussian that separates such patches from creases; EVENED: share of them that is removed; KEPT: largest
contrast of creases; ALIKE: share of both lips' mean colour in each lip's; WITHIN: distances from the lips' outline, in
mouth widths, up to which lips keep their colours, and from which they are even."""
TURNED_IN, WIDE_OPEN = 0.45, (0.15, 0.5)
"""TURNED_IN: share of a lip, from its inner rim, that is shaded in a wide open mouth. WIDE_OPEN: gap, in mouth widths,
at which this begins, and is complete."""
AROUND_MOUTH = 0.75
"""Margin around the lips in which the picture is corrected, in mouth widths."""
NARROWER = (0.05, 0.22)
"""Narrowing of the mouth against the photo, as a share of its width, at which a smile's folds are kept, and removed."""


@dataclass(frozen=True)
class Contours:
    """Four contours of the lips, px, each from the person's right corner to the left, with matching columns."""

    upper_outer: Float[np.ndarray, "N 2"]
    upper_inner: Float[np.ndarray, "N 2"]
    lower_inner: Float[np.ndarray, "N 2"]
    lower_outer: Float[np.ndarray, "N 2"]

    @classmethod
    def of(cls, points: Float[np.ndarray, "478 2"]) -> "Contours":
        """Take the rims from FaceMesh's landmarks, px."""
        inner, outer = LIP_CORNERS, MOUTH_CORNERS
        rows = ((outer, UPPER_LIPS[0]), (inner, UPPER_LIPS[3]), (inner, LOWER_LIPS[3]), (outer, LOWER_LIPS[0]))
        return cls(*(points[[ends[0], *row, ends[1]]] for ends, row in rows))

    @property
    def width(self) -> float:
        """Distance between the inner corners, px."""
        return float(np.linalg.norm(self.upper_inner[-1] - self.upper_inner[0]))

    @property
    def wide_open(self) -> float:
        """0 for a mouth that is open by less than `WIDE_OPEN`, 1 for a wide open one, whose inner rims are shaded."""
        gap = np.linalg.norm(self.lower_inner - self.upper_inner, axis=1).max()
        return float(ramp(gap / max(self.width, 1e-6), WIDE_OPEN))

    def along(self, px: Float[np.ndarray, "*B 2"]) -> tuple[Float[np.ndarray, "*B"], Float[np.ndarray, "*B"]]:
        """Coordinates of pixels along the mouth, 0..1 from corner to corner, and across it, px downwards."""
        start = self.upper_inner[0]
        axis = (self.upper_inner[-1] - start) / max(self.width, 1e-6)
        away = px - start
        return away @ axis / max(self.width, 1e-6), away @ np.array([-axis[1], axis[0]])

    def place(self, along: Float[np.ndarray, "*B"], down: Float[np.ndarray, "*B"]) -> Float[np.ndarray, "*B 2"]:
        """Pixel at coordinates along and across the mouth: the inverse of `along`."""
        axis = self.upper_inner[-1] - self.upper_inner[0]
        across = np.array([-axis[1], axis[0]]) / max(self.width, 1e-6)
        return self.upper_inner[0] + along[..., None] * axis + down[..., None] * across

    def line(self, rim: Float[np.ndarray, "N 2"], along: Float[np.ndarray, "*B"]) -> Float[np.ndarray, "*B"]:
        """Height of a rim, px downwards, at places along the mouth (see `along`)."""
        at, down = self.along(rim)
        return np.interp(along, np.maximum.accumulate(at), down)


def shut_lips(
    foreground: UInt8[np.ndarray, "H W 3"], opening: Bool[np.ndarray, "H W"], lips: Contours
) -> UInt8[np.ndarray, "H W 3"]:
    """Close an open mouth in a picture: fill the opening and the shaded rims of the lips; returns a new picture.

    Upper lip, lower lip and skin are each extended into the filled pixels from their own side. Pixels near the opening
    that look like neither lip nor skin (teeth, gums, shadow of the corners) are filled too.
    """
    if not opening.any():
        return foreground
    margin = 0.35 * lips.width
    points = np.concatenate([lips.upper_outer, lips.lower_outer])
    left, top = np.maximum(points.min(0) - margin, 0).astype(int)
    right, bottom = np.ceil(points.max(0) + margin).astype(int)
    box = np.s_[top : max(bottom, top), left : max(right, left)]
    picture = foreground[box]
    if not picture.size:
        return foreground
    rows, cols = np.mgrid[: picture.shape[0], : picture.shape[1]]
    along, down = lips.along(np.stack([cols, rows], -1) + 0.5 + [left, top])
    middle = (lips.line(lips.upper_inner, along) + lips.line(lips.lower_inner, along)) / 2
    lower, between = down > middle, np.zeros(picture.shape[:2], np.uint8)
    outline = np.concatenate([lips.upper_outer, lips.lower_outer[::-1]]) - [left, top] - 0.5
    cv2.fillPoly(between, [fixed(outline)], (1,), shift=SUBPIXEL_BITS)
    regions = np.stack([between == 0, (between > 0) & ~lower, (between > 0) & lower])
    unknown = _strange(picture, opening[box], regions, lips, np.array([left, top]), along, lower)
    unknown |= ~regions[0] & _turned_in(lips, along, down)
    soft = [cv2.GaussianBlur(region.astype(np.float32), (0, 0), max(0.02 * lips.width, 0.8)) for region in regions]
    extended, colours, seen = [], [], []
    for region in regions:
        known = region & ~unknown if (region & ~unknown).any() else region
        extended.append(membrane(picture.astype(np.float32), known.astype(np.float32)))
        colours.append(np.median(picture[known], axis=0) if known.any() else np.zeros(3))
        seen.append(known.sum())
    # A lip that is stretched thin says less of the colour.
    both, reach = np.average(colours[1:], axis=0, weights=np.array(seen[1:]) + 1), max(EVEN * lips.width, 1.0)
    for k in (1, 2):
        colour = (colours[k] + ALIKE * (both - colours[k])).astype(np.float32)
        extended[k] += EVENED * (evened(extended[k], regions[k], colour, reach=reach, detail=KEPT) - extended[k])
    filled = sum(share[..., None] * layer for share, layer in zip(soft, extended, strict=True))
    filled *= (1 - (1 - _lip_shade(lips, along, down - middle)) * (1 - soft[0]))[..., None]
    near = cv2.GaussianBlur(cv2.dilate(unknown.astype(np.float32), np.ones((3, 3), np.uint8)), (0, 0), 0.8)
    near = np.maximum(near, ramp(cv2.distanceTransform(between, cv2.DIST_L2, 5) / max(lips.width, 1e-6), WITHIN))
    whole = foreground.copy()
    whole[box] = mix(picture, np.rint(filled).clip(0, 255).astype(np.uint8), near.astype(np.float32))
    return whole


def _lip_shade(lips: Contours, along, below):
    """Relative brightness of shut lips at places along the mouth and `below` px under the line where they meet."""
    meets = 1 - MEETS_DARK * np.exp(-((below / (MEETS * lips.width)) ** 2))
    # Creases fan out and are irregular.
    fan = 2 * np.pi * (along - 0.5) * (1 - 0.6 * np.abs(below) / lips.width)
    creases = np.sin(17 * fan + 1.3 * np.sin(5 * fan)) + 0.6 * np.sin(29 * fan + 2.1 * np.cos(3 * fan))
    across, down = (along - SHINES_AT[0]) / SHINE_WIDE[0], (below / lips.width - SHINES_AT[1]) / SHINE_WIDE[1]
    meets *= 1 + SHINE * np.exp(-(across**2 + down**2) / 2)
    return meets * (1 + CREASES * creases * (1 - np.exp(-((below / (0.5 * MEETS * lips.width)) ** 2))))


def _strange(picture, opening, regions, lips: Contours, corner, along, lower):
    """Mask of pixels whose colour does not fit the region in which they lie: skin, upper lip, or lower lip."""
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    # The local spread of colours is a tolerance for beards, whose pixels differ from their mean.
    window = (2 * max(round(0.04 * lips.width), 1) + 1,) * 2
    rough = np.sqrt(np.maximum(cv2.blur(lab**2, window) - cv2.blur(lab, window) ** 2, 0))
    centre = (lips.upper_inner + lips.lower_inner).mean(0) / 2
    skin, beard, lip = (np.zeros(opening.shape) for _ in range(3))
    for outer, inner, mine in (
        (lips.upper_outer, lips.upper_inner, ~lower),
        (lips.lower_outer, lips.lower_inner, lower),
    ):
        away = outer - centre
        beside = outer + BESIDE_LIPS * lips.width * away / np.linalg.norm(away, axis=1, keepdims=True)
        place = np.maximum.accumulate(lips.along(outer)[0])
        colour, spread = (
            np.stack([np.interp(along[mine], place, channel) for channel in _calm(_read(of, beside - corner)).T], -1)
            for of in (lab, rough)
        )
        skin[mine] = np.linalg.norm((lab[mine] - colour) / UNLIKE, axis=-1)
        beard[mine] = np.linalg.norm((lab[mine] - colour) / (UNLIKE + 2 * spread), axis=-1)
        own = np.concatenate([_read(lab, outer + f * (inner - outer) - corner)[MIDDLE] for f in ON_LIP])
        lip[mine] = np.linalg.norm((lab[mine] - np.median(own, axis=0)) / UNLIKE, axis=-1)
    across, up = (2 * max(round(share * lips.width), 1) + 1 for share in LIP_SHADOW)
    zone = cv2.dilate(opening.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (across, up))) > 0
    _, pieces = cv2.connectedComponents((zone & (beard > 1) & (lip > 1) | opening).astype(np.uint8))
    inside = (np.isin(pieces, np.unique(pieces[opening])) & (pieces > 0)).astype(np.uint8)
    reach = 2 * max(round(SPILT * lips.width), 1) + 1
    near = cv2.dilate(regions[1:].any(0).astype(np.uint8), np.ones((reach, reach), np.uint8)) > 0
    edge, grain = (np.ones((2 * max(round(share * lips.width), 1) + 1,) * 2, np.uint8) for share in (0.012, 0.03))
    spilt = (regions[0] & near & (lip < skin) & (beard > 1)).astype(np.uint8)
    spilt = cv2.morphologyEx(spilt, cv2.MORPH_CLOSE, grain) * regions[0]
    strange = cv2.dilate(inside | spilt, edge) > 0
    return strange | ~regions[0] & (lip > 1) & ((skin < lip) | (lips.wide_open == 1))


def _turned_in(lips: Contours, along, down):
    """Mask of pixels between the lips and on their inner rims; the wider the mouth is open, the more of the rims."""
    rims = (lips.upper_outer, lips.upper_inner, lips.lower_inner, lips.lower_outer)
    top, high, low, bottom = (lips.line(rim, along) for rim in rims)
    reach = TURNED_IN * lips.wide_open
    return (down > high - reach * (high - top)) & (down < low + reach * (bottom - low))


def _calm(colours: Float32[np.ndarray, "N 3"]) -> Float32[np.ndarray, "N 3"]:
    """Mean of each colour and its two neighbours."""
    return cv2.blur(colours, (1, 3), borderType=cv2.BORDER_REPLICATE)


def _read(picture: Float32[np.ndarray, "H W 3"], px: Float[np.ndarray, "N 2"]) -> Float32[np.ndarray, "N 3"]:
    """Sample colours at points; points outside the picture take its border's."""
    at = px.astype(np.float32)[None] - 0.5
    return cv2.remap(picture, at, NO_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]


def around_lips(head: HeadModel) -> Bool[np.ndarray, " V"]:
    """Mask of vertices on and beside the lips: their colours change when a mouth closes that is open in the photo."""
    at_rest = dense(head, head.template)
    return (torch.cdist(at_rest, landmarks(head, at_rest)[LIPS]).min(1).values < AROUND_LIPS_M).numpy()


class Lips:
    """Both lips, and corrections of a frame where they differ from the photo."""

    def __init__(self, layers: Layers, head: HeadModel):
        """Measure the lips in the photo, and prepare its picture with shut lips (the photo itself if they are shut)."""
        self.head, self.camera = head, layers.camera
        self.rims = np.array([(LIP_CORNERS[0], *row[-1], LIP_CORNERS[1]) for row in (UPPER_LIPS, LOWER_LIPS)])
        self.open_m, self.shape = self._gap_m(layers.verts), self._shape(layers.verts)
        self.width_m, self.corners_m = float(np.ptp(self.shape[:, 0])), self._width_m(layers.verts)
        self.cavity = head.part_names.index("mouth_cavity")
        self.inside = [head.part_names.index(name) for name in ("teeth_upper", "teeth_lower", "mouth_cavity")]
        self.is_inside = np.isin(np.arange(256), self.inside)
        points = self.camera.project(landmarks(head, torch.from_numpy(layers.verts))).numpy().astype(np.float64)
        opening = np.isin(layers.part, self.inside)
        rims = Contours.of(points)
        self.picture, self.width_px = shut_lips(layers.foreground, opening, rims), rims.width
        self.calm = without_folds(self.picture, points, np.concatenate([rims.upper_outer, rims.lower_outer[::-1]]))
        outer = points[[*UPPER_LIPS[1], *LOWER_LIPS[1]]]
        column, row = np.clip(outer.astype(int), 0, np.array(self.picture.shape[1::-1]) - 1).T
        self.colour = np.median(self.picture[row, column], axis=0).astype(np.float32)
        self.seam = SEAM * self.colour

    def contours(self, verts_cam: Float32[np.ndarray, "V 3"]) -> Contours:
        """Contours of the lips of a posed head, canvas px."""
        points = spots(self.head, verts_cam, np.arange(len(self.head.landmark_triangles)))
        return Contours.of(self.camera.project(torch.from_numpy(points)).numpy().astype(float))

    def _points(self, verts_cam):
        return spots(self.head, verts_cam, self.rims)

    def _px(self, verts_cam):
        return self.camera.project(torch.from_numpy(self._points(verts_cam))).numpy()

    def _shape(self, verts_cam):
        """Positions (x, y) of both inner rims relative to their mean, camera axes, m."""
        points = self._points(verts_cam)[..., :2].reshape(-1, 2)
        return points - points.mean(0)

    def _width_m(self, verts_cam) -> float:
        rim = self._points(verts_cam)[0]
        return float(np.linalg.norm(rim[-1] - rim[0]))

    def _gap_m(self, verts_cam) -> float:
        upper, lower = self._points(verts_cam)[..., :2]
        return float(np.linalg.norm(upper - lower, axis=-1)[1:-1].mean())

    def inner(self, part: UInt8[np.ndarray, "H W"], rast: torch.Tensor, verts_cam: Float32[np.ndarray, "V 3"]) -> None:
        """Correct the part map, in place.

        Mouth further than BESIDE from the lips becomes NONE; skin between the lips that lies DEEP_M behind them
        becomes mouth cavity.
        """
        xy = self._px(verts_cam)
        reach = max(round(BESIDE * float(np.linalg.norm(xy[0, -1] - xy[0, 0]))), 1)
        outline = np.rint(np.concatenate([xy[0], xy[1][::-1]]) - 0.5).astype(np.int32)
        corner = np.maximum(outline.min(0) - reach, 0)
        box = np.s_[corner[1] : max(outline[:, 1].max() + reach, 0), corner[0] : max(outline[:, 0].max() + reach, 0)]
        astray = self.is_inside[part]
        if part[box].size:
            between = np.zeros(part[box].shape, np.uint8)
            cv2.fillPoly(between, [outline - corner], (1,))
            ids = triangle_ids(rast[:, box[0], box[1]])
            depth = np.where(ids >= 0, verts_cam[self.head.dense_faces.numpy()[np.maximum(ids, 0), 0], 2], 0)
            behind = depth > float(self._points(verts_cam)[..., 2].max()) + DEEP_M
            part[box][(between > 0) & (part[box] == SKIN) & behind] = self.cavity
            astray[box] &= cv2.dilate(between, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) == 0
        part[astray] = NONE

    def clean(
        self,
        person: UInt8[np.ndarray, "H W 3"],
        field: Float32[np.ndarray, "H W 2"],
        verts_cam: Float32[np.ndarray, "V 3"],
    ) -> None:
        """Remove the photo's teeth, shadows and smile folds from lips that differ from the photo's, in place.

        `person` is the warped person; `field` the position of each pixel in the photo, px.
        """
        moved = self._shape(verts_cam) - self.shape
        share = float(ramp(np.linalg.norm(moved, axis=-1).mean() / self.width_m, MOVED)) * (self.open_m >= OPEN_M)
        calm = float(ramp(1 - self._width_m(verts_cam) / self.corners_m, NARROWER))
        if max(share, calm) == 0:
            return
        xy = self._px(verts_cam).reshape(-1, 2)
        low, high = xy.min(0), xy.max(0)
        margin = AROUND_MOUTH * max(float(high[0] - low[0]), self.width_px)
        left, top = np.maximum(low - margin, 0).astype(int)
        right, bottom = (high + margin).astype(int)
        box = np.s_[top : max(bottom, top), left : max(right, left)]
        if person[box].size:
            for picture, weight in ((self.picture, share), (self.calm, calm)):
                if weight > 0:
                    shown = cv2.remap(picture, field[box], NO_MAP, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
                    person[box] = mix(person[box], shown, np.full(shown.shape[:2], weight, np.float32))

    def paint_seam(self, frame: UInt8[np.ndarray, "H W 3"], verts_cam: Float32[np.ndarray, "V 3"]) -> None:
        """Draw the dark line between lips that are shut in the frame and open in the photo, in place."""
        share = 1 - float(ramp(self._gap_m(verts_cam), SEAM_M))
        if share == 0 or self.open_m < OPEN_M:
            return
        upper, lower = self._px(verts_cam) - 0.5
        depth = float(self._points(verts_cam)[..., 2].mean())
        half = 0.5 * SEAM_WIDTH_M * self.camera.focal_px / depth * np.sqrt(np.sin(np.linspace(0, np.pi, len(upper))))
        shift = np.c_[np.zeros(len(half)), half]
        canvas = np.zeros(frame.shape[:2], np.uint8)
        cv2.fillPoly(canvas, [fixed([*(upper - shift), *(lower + shift)[::-1]])], (255.0,), cv2.LINE_AA, SUBPIXEL_BITS)
        rows, cols = np.flatnonzero(canvas.any(1)), np.flatnonzero(canvas.any(0))
        if not len(rows):
            return
        box = np.s_[max(rows[0] - 2, 0) : rows[-1] + 3, max(cols[0] - 2, 0) : cols[-1] + 3]
        soft = share * cv2.GaussianBlur(canvas[box].astype(np.float32) / 255, (0, 0), 0.7)[..., None]
        frame[box] = np.rint(frame[box] * (1 - soft) + self.seam * soft).astype(np.uint8)
