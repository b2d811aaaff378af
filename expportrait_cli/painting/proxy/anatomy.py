"""The inside of the mouth: teeth, gums, tongue and cavity, placed in the skull and in the jaw."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32

from expportrait_cli.head.fitted import LOWER_EDGE_M, TONGUE_TOP_M, TONGUE_WIDE_M, UPPER_EDGE_M
from expportrait_cli.painting.proxy.glimpse import Glimpse, Glimpses, redness
from expportrait_cli.painting.proxy.layers import Layers, ramp
from expportrait_cli.painting.proxy.lips import Contours

BEHIND_LIPS_M = 0.007
"""Distance of the front teeth behind the line of the closed lips, m."""
ARCH_M = 0.022
"""Radius of the dental arch in front, m."""
WIDTH_M, LOWER_WIDTH_M = 0.027, 0.022
"""Half widths of the upper and the lower row of teeth, m."""
LONGEST_M = -0.009
"""Lowest height over the line of the closed lips, m, at which the edge of upper teeth is read from a photo."""
TOOTH_M, CROWN_M = 0.0082, 0.0095
"""Width and height of a front tooth, m."""
EDGE_SOFT_M = 0.0006
ENAMEL = np.array([214.0, 207.0, 194.0], np.float32)
CAVITY = np.array([44.0, 18.0, 18.0], np.float32)
TONGUE = np.array([168.0, 88.0, 86.0], np.float32)
GUM = np.array([176.0, 96.0, 94.0], np.float32)
BRIGHT = 0.62
"""Brightness above which a pixel of the photo's mouth may be a tooth, as a share of the mouth's 95th percentile."""
FEWEST = 12
"""Fewest pixels of the photo's mouth from which teeth are read."""
LEAST_RED, TOOTH_RED, LEAST_REDNESS = 60, 0.75, 0.03
"""LEAST_RED: percentile of redness up to which bright pixels are taken for teeth. Their colour is rejected if its
redness exceeds both TOOTH_RED times the lips' redness and LEAST_REDNESS."""
FLESH, LIPS_HUE = 0.92, 0.25
"""Brightness of tongue and gums, as a share of the lips'; and weight of the lips' hue in theirs."""
TONGUE_LIT = (0.55, 0.85)
"""Brightness, as a share of the lips', up to which flesh lies behind the tongue, and from which it is the tongue."""
BOUNCE = 0.4
"""Share of light on teeth in the dark that comes from flesh around them."""
LIT_EYES = 90
"""Percentile of the brightness of the photo's eyeballs that is used as the brightness of white enamel."""
SKIN_TO_ENAMEL = 1.35
"""Least brightness of enamel, as a multiple of the skin's: eyes may be narrow, and in shadow."""
COLOURED = (0.03, 0.15)
"""Saturation of the skin (0..1) up to which the mouth is painted in grey, and from which in full colour."""
PIXELS = 20
"""Fewest eyeball pixels from which the brightness of enamel is read."""


@dataclass(frozen=True)
class Sheet:
    """Points where the rays of pixels meet the curved surface on which one row of teeth stands."""

    across: Float[np.ndarray, "h w"]
    """Distance from the middle towards the person's left, m."""
    up: Float[np.ndarray, "h w"]
    """Height above the line of the closed lips, m."""
    xy: Float32[np.ndarray, "h w 2"]
    """The same surface point in the photo, canvas px."""


@dataclass(frozen=True)
class Between:
    """The lips of one frame of the film, and the driver's picture of the inside of the mouth."""

    lips: Contours
    """Lip contours in the film, canvas px."""
    glimpse: Glimpse

    def places(self, box) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
        """Places of a box of pixels along the mouth (0..1) and between the rims (0 the upper, 1 the lower)."""
        rows, cols = np.mgrid[box] + 0.5
        along, down = self.lips.along(np.stack([cols, rows], -1))
        upper, lower = self.lips.line(self.lips.upper_inner, along), self.lips.line(self.lips.lower_inner, along)
        share = np.clip((down - upper) / np.maximum(lower - upper, 1e-3), 0, 1)
        return np.clip(along, 0.02, 0.98), share


class Mouth:
    """Teeth, gums, tongue and cavity in the colours of one person."""

    def __init__(
        self,
        layers: Layers,
        seam: Float[np.ndarray, " 3"],
        shown: Bool[np.ndarray, "H W"],
        skin: Float32[np.ndarray, " 3"],
        *,
        skull: Float[np.ndarray, "3 4"],
        jaw: Float[np.ndarray, "3 4"],
        eyes: Float32[np.ndarray, "N 3"],
        lip: Float32[np.ndarray, " 3"],
        glimpses: Glimpses | None = None,
    ):
        """Measure the colours and the teeth of the mouth that the photo shows.

        `seam` is where the closed lips meet (head frame), `shown` the mask of the mouth opening in the photo, `skull`
        and `jaw` the bones in the photo's pose, `eyes` pixels of the photo's eyeballs (they give the brightness of
        enamel), `lip` the colour of the lips, `glimpses` the inside of the mouth as the driver's clip shows it.
        """
        self.layers, self.seam, self.glimpses = layers, seam, glimpses
        self.skull, self.jaw = skull, jaw
        kernel = np.ones((3, 3), np.uint8)
        self.shown = cv2.GaussianBlur(cv2.erode(shown.astype(np.float32), kernel), (0, 0), 0.8)
        self.light = float(np.clip(skin.mean() / 150.0, 0.3, 1.1))
        spread = float(skin.max() - skin.min()) / max(float(skin.max()), 1.0)
        self.saturation = float(ramp(spread, COLOURED))
        white = float(np.percentile(eyes.mean(-1), LIT_EYES)) if len(eyes) >= PIXELS else 0.0
        white = float(np.clip(max(white, SKIN_TO_ENAMEL * skin.mean()), 50.0, 228.0))
        self.enamel = (0.1 * skin + 0.9 * self._toned(ENAMEL) / ENAMEL.mean() * white).astype(np.float32)
        # Lips may be painted: a tongue is red by itself, and no darker than it is beside this person's teeth.
        bright = max(FLESH * float(lip.mean()), float(TONGUE.mean() / ENAMEL.mean() * self.enamel.mean()))
        hue = LIPS_HUE * lip / max(float(lip.mean()), 1.0) + (1 - LIPS_HUE) * self._toned(TONGUE) / TONGUE.mean()
        self.lip, self.flesh = lip, (bright * hue).astype(np.float32)
        self.upper_edge = UPPER_EDGE_M
        self._read_teeth(shown)
        self.shown_below = self._without_upper(shown)

    def _toned(self, colour):
        """Reduce the saturation of a colour by the photo's `saturation` (0: grey, 1: unchanged)."""
        return colour.mean() + self.saturation * (colour - colour.mean())

    def _read_teeth(self, shown):
        """Measure the colour and the lower edge of the upper teeth, if the photo shows them."""
        inner = cv2.erode(shown.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        if inner.sum() < FEWEST:
            return
        rows, cols = np.nonzero(inner)
        box = np.s_[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]
        sheet = self._cast(box, self.skull, self.skull)
        photo = self.layers.photo[box].astype(np.float32)
        # Pixels further down show the tongue or the lower row.
        inside = inner[box] & (sheet.up > LONGEST_M)
        if inside.sum() < FEWEST:
            return
        grey, red = photo.mean(-1), redness(photo)
        top = np.percentile(grey[inside], 95)
        tooth = inside & (grey > BRIGHT * top)
        tooth &= red <= np.percentile(red[tooth], LEAST_RED)
        # A mouth without teeth in sight is red or dark all over.
        red_lip, colour = float(redness(self.lip)), np.percentile(photo[tooth], 70, axis=0)
        if top < 0.6 * self.enamel.mean() or redness(colour) > max(TOOTH_RED * red_lip, LEAST_REDNESS):
            return
        self.enamel = colour.astype(np.float32)
        middle = tooth & (abs(sheet.across) < 0.4 * WIDTH_M)
        up = sheet.up[middle if middle.any() else tooth]
        self.upper_edge = float(np.clip(np.percentile(up, 8), LONGEST_M, UPPER_EDGE_M))

    def _without_upper(self, shown):
        """Share (0..1) of each photo pixel that shows lower teeth or tongue, and not the upper row before them."""
        out = self.shown.copy()
        rows, cols = np.nonzero(shown)
        if not len(rows):
            return out
        box = np.s_[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]
        sheet = self._cast(box, self.skull, self.skull)
        out[box] *= _edge(self._tips(sheet) - 0.001 - sheet.up).astype(np.float32)
        return out

    def _tips(self, sheet: Sheet):
        """Height of the upper row's edge: it rises towards the sides, and each tooth is round at its corners."""
        return self.upper_edge + 0.0024 * (sheet.across / WIDTH_M) ** 2 + 0.0007 * _within(sheet.across) ** 4

    def _cast(self, box, bone, bone_photo) -> Sheet:
        """Intersect the rays of a box of pixels with the surface of teeth that is fixed to a bone."""
        camera = self.layers.camera
        rows, cols = np.mgrid[box] + 0.5
        ray = np.stack(
            [(cols - camera.cx) / camera.focal_px, (rows - camera.cy) / camera.focal_px, np.ones_like(cols)], -1
        )
        turn, shift = bone[:, :3], bone[:, 3]
        ray, origin = ray @ turn, -shift @ turn
        front = self.seam[2] - BEHIND_LIPS_M
        depth, point = np.full(rows.shape, front), ray
        for _ in range(3):
            point = origin + ray * ((depth - origin[2]) / ray[..., 2])[..., None]
            across = np.clip(point[..., 0] - self.seam[0], -0.03, 0.03)
            depth = front - across**2 / (2 * ARCH_M)
        cam = point @ bone_photo[:, :3].T + bone_photo[:, 3]
        xy = cam[..., :2] / cam[..., 2:] * camera.focal_px + [camera.cx, camera.cy]
        return Sheet(point[..., 0] - self.seam[0], point[..., 1] - self.seam[1], xy.astype(np.float32))

    def _photo(self, sheet: Sheet, shown):
        x, y = sheet.xy[..., 0] - 0.5, sheet.xy[..., 1] - 0.5
        colour = cv2.remap(self.layers.photo, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return colour.astype(np.float32), cv2.remap(shown, x, y, cv2.INTER_LINEAR)[..., None]

    def colour(
        self, box, opening: Bool[np.ndarray, "h w"], skull, jaw, between: Between | None = None
    ) -> Float32[np.ndarray, "h w 3"]:
        """RGB of a box of pixels for bones in a frame's pose; `opening` is the mask of the mouth in the box."""
        colour = self._anatomy(box, opening, skull, jaw)
        if between is None or self.glimpses is None:
            return colour
        along, share = between.places(box)
        teeth, lips, tooth = (each[..., None] for each in self.glimpses.light(between.glimpse.read(along, share)))
        # Teeth in the shade of the lips are lit by what is red around them.
        reddened = 1 + BOUNCE * (1 - np.minimum(teeth, 1)) * (self.flesh / self.flesh.mean() - 1)
        flesh, enamel = lips * self.flesh, teeth * reddened * self.enamel
        relief, wet = (each[..., None] for each in tongue_relief(along, share))
        # What is as bright as lips, and no tooth, is the tongue.
        flesh = flesh + ramp(lips, TONGUE_LIT) * (relief * flesh + wet * self.enamel - flesh)
        seen = np.clip(flesh + tooth * (enamel - flesh), 0, 255)
        return (colour + between.glimpse.trust * (seen - colour)).astype(np.float32)

    def _anatomy(self, box, opening, skull, jaw):
        """Draw from the back to the front: cavity, tongue, lower row, upper row."""
        upper, lower = self._cast(box, skull, self.skull), self._cast(box, jaw, self.jaw)
        padded = cv2.copyMakeBorder(opening.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
        inward = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]
        step_m = abs(float(upper.up[1, 0] - upper.up[0, 0])) if opening.shape[0] > 1 else 3e-4
        # Lips shade the teeth behind them, the less the wider the mouth is open.
        gap_m = 2 * float(inward.max()) * step_m
        dim = 0.45 - 0.2 * float(ramp(gap_m, (0.004, 0.015)))
        shade = 1 - dim * (1 - np.clip(inward * step_m / 0.003, 0, 1))
        above_teeth = lower.up - LOWER_EDGE_M
        rise = above_teeth - TONGUE_TOP_M * np.clip(1 - (lower.across / TONGUE_WIDE_M) ** 2, 0, 1)
        tongue = np.clip(-rise / 0.003, 0, 1) * np.clip((TONGUE_WIDE_M - abs(lower.across)) / 0.008, 0, 1)
        groove = 1 - 0.12 * np.exp(-((lower.across / 0.002) ** 2))
        lit = (0.55 + 0.35 * np.clip(-rise / 0.01, 0, 1)) * groove
        colour = self._toned(CAVITY) + tongue[..., None] * (self._toned(TONGUE) * lit[..., None] - self._toned(CAVITY))
        own, there = self._photo(lower, self.shown_below)
        colour = colour * self.light
        colour = colour + there * (own - colour)
        row = _edge(-above_teeth - 0.0005 * _within(1.3 * lower.across) ** 4)
        row = row * _edge(LOWER_WIDTH_M - abs(lower.across))
        teeth = self._row(lower, -above_teeth, shade * 0.85, 1.3)
        colour = colour + (row * (1 - there[..., 0]))[..., None] * (teeth - colour)
        own, there = self._photo(upper, self.shown)
        tips = self._tips(upper)
        row = _edge(upper.up - tips) * _edge(WIDTH_M - abs(upper.across))
        teeth = self._row(upper, upper.up - tips, shade, 1.0)
        teeth = teeth + there * (own - teeth)
        return (colour + row[..., None] * (teeth - colour)).astype(np.float32)

    def _row(self, sheet: Sheet, height, shade, slim: float):
        """Colour of one row of teeth: lines between the teeth, darker sides of the arch, gums beyond the crowns."""
        line = 1 - 0.2 * np.exp(-(((1 - _within(slim * sheet.across)) * TOOTH_M / 2 / 0.0005) ** 2))
        side = 1 - 0.6 * np.clip(np.abs(sheet.across) / WIDTH_M, 0, 1) ** 2
        crown = CROWN_M / slim - 0.0012 * _within(slim * sheet.across) ** 2
        gum = _edge((height - crown) / 2)[..., None]
        base = self.enamel * line[..., None]
        base = base + gum * (self._toned(GUM) * self.light - base)
        return base * (shade * side)[..., None]


def tongue_relief(
    along: Float[np.ndarray, "h w"], share: Float[np.ndarray, "h w"]
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Shade of a tongue that fills the mouth, about 1, and the strength of its wet highlights.

    A dome under light from above and in front, with a groove and papillae; places as `Between.places` has them.
    """
    x, y = 2 * along - 1, 2 * share - 1
    facing = (0.98 - 0.2 * y) / np.sqrt(1 + x**2 + y**2)
    groove = 1 - 0.09 * np.exp(-((x / 0.07) ** 2)) * np.exp(-((y / 0.8) ** 2))
    grain = np.sin(71 * x + 3 * np.sin(23 * y)) * np.sin(47 * y + 3 * np.cos(31 * x))
    relief = (0.45 + 0.65 * facing) * groove * (1 + 0.035 * grain)
    wet = np.exp(-(((y + 0.2) / 0.22) ** 2) - ((np.abs(x) - 0.28) / 0.2) ** 2)
    return relief, 0.14 * wet * (0.7 + 0.3 * grain)


def _within(across_m):
    """Position within a tooth: 0 in its middle, 1 at the gaps beside it; the arch's middle is a gap."""
    return np.abs(2 * (across_m / TOOTH_M % 1) - 1)


def _edge(inside_m):
    """Soft step over `EDGE_SOFT_M`: 0 outside, 1 inside; `inside_m` is the signed distance to the edge, m."""
    return np.clip(inside_m / EDGE_SOFT_M + 0.5, 0, 1)
