"""The inside of the mouth: teeth and cavity."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32

from expportrait_cli.head import HeadModel
from expportrait_cli.head.fitted import Bones
from expportrait_cli.painting.proxy.layers import STILL_PX, Layers

BEHIND_LIPS_M = 0.007
ARCH_M = 0.022
"""Radius of the dental arch in front."""
WIDTH_M = 0.027
UPPER_EDGE_M, LOWER_EDGE_M = -0.0012, -0.0022
"""Cutting edges above (+) the line where the closed lips meet."""
TOOTH_M = 0.0082
EDGE_SOFT_M = 0.0006
ENAMEL = np.array([214.0, 207.0, 194.0], np.float32)
CAVITY = np.array([52.0, 20.0, 20.0], np.float32)
TONGUE = np.array([150.0, 78.0, 76.0], np.float32)
TONGUE_TOP_M, TONGUE_DEEP_M = -0.006, -0.016
"""Heights, from the lower teeth's edge, between which the cavity turns into the tongue."""
BRIGHT = 0.62
"""Brightness, in shares of the brightest spot of the photo's mouth, from which a pixel is a tooth."""


@dataclass(frozen=True)
class Sheet:
    """Where pixels meet a sheet of one bone."""

    across: Float[np.ndarray, "h w"]
    """To the person's left of the middle, m."""
    up: Float[np.ndarray, "h w"]
    """Above the line of the closed lips, m."""
    xy: Float32[np.ndarray, "h w 2"]
    """The same spot in the photo, canvas px."""


class Mouth:
    """Colours of one person's mouth."""

    def __init__(
        self,
        layers: Layers,
        seam: Float[np.ndarray, " 3"],
        shown: Bool[np.ndarray, "H W"],
        skin: Float32[np.ndarray, " 3"],
        *,
        skull: Float[np.ndarray, "3 4"],
        jaw: Float[np.ndarray, "3 4"],
    ):
        """Read the photo's mouth.

        `seam` is where the closed lips meet (head frame), `shown` the opening in the photo, `skull` and `jaw` the bones
        in the photo's pose.
        """
        self.layers, self.seam = layers, seam
        self.skull, self.jaw = skull, jaw
        kernel = np.ones((3, 3), np.uint8)
        self.shown = cv2.GaussianBlur(cv2.erode(shown.astype(np.float32), kernel), (0, 0), 0.8)
        self.light = float(np.clip(skin.mean() / 150.0, 0.3, 1.1))
        self.enamel = (0.25 * skin + 0.75 * ENAMEL * self.light).astype(np.float32)
        self.upper_edge = UPPER_EDGE_M
        self._read_teeth(shown)

    def _read_teeth(self, shown):
        """Colour and edge of the upper teeth, if the photo shows them."""
        inner = cv2.erode(shown.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        if inner.sum() < 12:
            return
        rows, cols = np.nonzero(inner)
        box = np.s_[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]
        grey = self.layers.photo[box].astype(np.float32).mean(-1)
        inside = inner[box]
        top = np.percentile(grey[inside], 95)
        tooth = inside & (grey > BRIGHT * top)
        # A mouth without teeth in sight is red or dark all over.
        colours = self.layers.photo[box][tooth].astype(np.float32)
        grey_enough = colours.min(-1) > 0.55 * colours.max(-1)
        if grey_enough.mean() < 0.5 or top < 0.6 * self.enamel.mean():
            return
        self.enamel = np.median(colours[grey_enough], axis=0).astype(np.float32)
        up = self._cast(box, self.skull, self.skull).up[tooth]
        self.upper_edge = float(np.clip(np.percentile(up, 8), -0.008, UPPER_EDGE_M))

    def _cast(self, box, bone, bone_photo) -> Sheet:
        """Meet the sheet of a bone with the rays of a box of pixels."""
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

    def _photo(self, sheet: Sheet):
        x, y = sheet.xy[..., 0] - 0.5, sheet.xy[..., 1] - 0.5
        colour = cv2.remap(self.layers.photo, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return colour.astype(np.float32), cv2.remap(self.shown, x, y, cv2.INTER_LINEAR)[..., None]

    def colour(self, box, opening: Bool[np.ndarray, "h w"], skull, jaw) -> Float32[np.ndarray, "h w 3"]:
        """Colour of a box of pixels, of which `opening` shows the mouth, for bones in a frame's pose."""
        upper, lower = self._cast(box, skull, self.skull), self._cast(box, jaw, self.jaw)
        padded = cv2.copyMakeBorder(opening.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
        inward = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]
        step_m = abs(float(upper.up[1, 0] - upper.up[0, 0])) if opening.shape[0] > 1 else 3e-4
        # Lips shade the teeth behind them, and a mouth is darker towards its corners.
        shade = 0.62 + 0.38 * np.clip(inward * step_m / 0.003, 0, 1)
        tongue = np.clip((lower.up - LOWER_EDGE_M - TONGUE_TOP_M) / (TONGUE_DEEP_M - TONGUE_TOP_M), 0, 1)
        tongue = (tongue * np.clip(1 - (lower.across / 0.022) ** 2, 0, 1))[..., None]
        colour = (CAVITY * (1 - 0.8 * tongue) + 0.8 * TONGUE * tongue) * self.light
        own, there = self._photo(lower)
        colour = colour + there * (own - colour)
        below = (
            _edge(LOWER_EDGE_M - lower.up) * _edge(lower.up - LOWER_EDGE_M + 0.009) * _edge(0.021 - abs(lower.across))
        )
        teeth = self._teeth(lower, shade * 0.8)
        colour = colour + (below * (1 - there[..., 0]))[..., None] * (teeth - colour)
        own, there = self._photo(upper)
        above = _edge(upper.up - self.upper_edge - 0.6 * (upper.across / WIDTH_M) ** 2 * 0.004)
        above = (above * _edge(WIDTH_M - abs(upper.across)))[..., None]
        teeth = self._teeth(upper, shade)
        teeth = teeth + there * (own - teeth)
        return (colour + above * (teeth - colour)).astype(np.float32)

    def _teeth(self, sheet: Sheet, shade):
        """Enamel with the faint lines between teeth, darker where the arch turns back."""
        phase = np.abs((sheet.across / TOOTH_M + 0.5) % 1 - 0.5) * TOOTH_M
        line = 1 - 0.16 * np.exp(-((phase / 0.0005) ** 2))
        side = 1 - 0.55 * np.clip(np.abs(sheet.across) / WIDTH_M, 0, 1) ** 2
        return self.enamel * (shade * line * side)[..., None]


def _edge(inside_m):
    """Soft step: 0 outside, 1 inside."""
    return np.clip(inside_m / EDGE_SOFT_M + 0.5, 0, 1)


SCLERA = np.array([205.0, 200.0, 190.0], np.float32)


class InnerLayers:
    """Colours of the mouth measured on the photo, with defaults where it does not show them."""

    def __init__(self, layers: Layers, head: HeadModel, reference: Bones, seam: Float[np.ndarray, " 3"]):
        """`reference` are the bones in the photo's pose, `seam` is where the closed lips meet, in the head frame."""
        self.layers, self.head = layers, head
        self.parts = head.parts.numpy()
        index = {name: head.part_names.index(name) for name in head.part_names}
        self.teeth = (index["teeth_upper"], index["teeth_lower"])
        self.mouth = (*self.teeth, index["mouth_cavity"])
        face = head.facial_mask.numpy()
        inside = (face > 0.8) & (self.parts == 0)
        xy = np.rint(layers.xy[inside] - 0.5).astype(int)
        height, width = layers.alpha.shape
        xy = xy[(xy >= 0).all(1) & (xy < [width, height]).all(1)]
        self.skin = np.median(layers.photo[xy[:, 1], xy[:, 0]].astype(np.float32), axis=0) if len(xy) else SCLERA
        shown = np.isin(layers.part, self.mouth)
        self.inside = Mouth(layers, seam, shown, self.skin, skull=reference.head, jaw=reference.jaw)

    def paint(self, frame, guess, bones: Bones, part, source):
        """Paint the mouth over a frame where its triangles are seen, and raise `guess` there, both in place."""
        mask = np.isin(part, self.mouth)
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return
        box = np.s_[max(rows[0] - 2, 0) : rows[-1] + 3, max(cols[0] - 2, 0) : cols[-1] + 3]
        colour = self.inside.colour(_exact(box, mask.shape), mask[box], bones.head, bones.jaw)
        soft = cv2.GaussianBlur(mask[box].astype(np.float32), (0, 0), 0.7) * self._changed(box, part, source)
        guess[box] = np.maximum(guess[box], soft)
        soft = soft[..., None]
        frame[box] = np.clip(frame[box] * (1 - soft) + colour * soft + 0.5, 0, 255).astype(np.uint8)

    def _changed(self, box, part, source):
        """0 where the photo shows the same spot of the same part in the same place, 1 where it does not."""
        rows, cols = np.mgrid[_exact(box, part.shape)] + 0.5
        moved = np.hypot(source[box][..., 0] - cols, source[box][..., 1] - rows)
        low, high = STILL_PX
        moved = np.clip((moved - low) / (high - low), 0, 1)
        inner = np.isin(part[box], self.mouth)
        same = np.isin(self.layers.part[box], self.mouth)
        changed = np.where(inner, np.where(same, moved, 1.0), 0.0).astype(np.float32)
        return cv2.blur(cv2.dilate(changed, np.ones((3, 3), np.uint8)), (3, 3))


def _exact(box, shape):
    """A box without ends beyond the picture."""
    rows, cols = box
    return np.s_[rows.start : min(rows.stop, shape[0]), cols.start : min(cols.stop, shape[1])]
