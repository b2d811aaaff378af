"""The inside of the mouth and the eyes: teeth, cavity, eyeballs."""

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32

from expportrait_cli.head import HeadModel
from expportrait_cli.head.fitted import Bones
from expportrait_cli.head.model import EYE_LEFT, EYE_RIGHT, dense
from expportrait_cli.painting.proxy.anatomy import Between, Mouth
from expportrait_cli.painting.proxy.glimpse import Glimpses
from expportrait_cli.painting.proxy.layers import DEPTH_SLACK_M, STILL_PX, Layers
from expportrait_cli.render.rasterizer import interpolate

BINS = 24
BIN_DEG = 2.5
IRIS_DEG, PUPIL_DEG = 29.0, 12.0
LIT = 60
"""Percentile of brightness above which pixels of the photo give the colour of the white of an eye."""
DIM = (0.5, 0.8)
"""Brightness of that white, as a share of the skin's, between which its colour in the photo is trusted more and more;
below the first value the photo shows only the shadow of narrow lids."""
SCLERA = np.array([205.0, 200.0, 190.0], np.float32)


class InnerLayers:
    """Colours of eyes and mouth measured on the photo, with defaults where it does not show them."""

    def __init__(
        self,
        layers: Layers,
        head: HeadModel,
        reference: Bones,
        seam: Float[np.ndarray, " 3"],
        lip: Float32[np.ndarray, " 3"],
        glimpses: Glimpses | None = None,
    ):
        """`reference` are the bones in the photo's pose, `seam` is where closed lips meet (head frame).

        `lip` is their colour.
        """
        self.layers, self.head = layers, head
        self.parts = head.parts.numpy()
        index = {name: head.part_names.index(name) for name in head.part_names}
        self.eyes = (index["eye_left"], index["eye_right"])
        self.teeth = (index["teeth_upper"], index["teeth_lower"])
        self.mouth = (*self.teeth, index["mouth_cavity"])
        self.faces = head.dense_faces.int()
        eyes = dict(zip(self.eyes, (EYE_LEFT, EYE_RIGHT), strict=True))
        angle = np.full(len(self.parts), 90.0, np.float32)
        template = dense(head, head.template).numpy()
        for part, joint in eyes.items():
            ball = self.parts == part
            ray = template[ball] - head.joint_template[joint].numpy()
            angle[ball] = np.degrees(np.arccos(np.clip(ray[:, 2] / np.linalg.norm(ray, axis=1), -1, 1)))
        self.angle = torch.from_numpy(angle)[None, :, None]
        face = head.facial_mask.numpy()
        inside = (face > 0.8) & (self.parts == 0)
        xy = np.rint(layers.xy[inside] - 0.5).astype(int)
        height, width = layers.alpha.shape
        xy = xy[(xy >= 0).all(1) & (xy < [width, height]).all(1)]
        self.skin = np.median(layers.photo[xy[:, 1], xy[:, 0]].astype(np.float32), axis=0) if len(xy) else SCLERA
        self.light = float(np.clip(self.skin.mean() / 150.0, 0.25, 1.15))
        self.profiles = {part: self._profile(part) for part in eyes}
        self.dim = {part: self._dim(part) for part in eyes}
        shown = np.isin(layers.part, self.mouth)
        eyes = layers.photo[np.isin(layers.part, self.eyes)].astype(np.float32)
        bones = {"skull": reference.head, "jaw": reference.jaw}
        self.inside = Mouth(layers, seam, shown, self.skin, **bones, eyes=eyes, lip=lip, glimpses=glimpses)

    def _profile(self, part):
        """Colour of the eyeball by the angle from its axis: what the photo shows of it, extended outwards."""
        visible = cv2.erode((self.layers.part == part).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        ball = self.parts == part
        xy, angle = self.layers.xy[ball], self.angle[0, ball, 0].numpy()
        ok = self.layers.cosine[ball] > 0.1
        pixel = np.rint(xy - 0.5).astype(int)
        height, width = visible.shape
        ok &= (pixel >= 0).all(1) & (pixel < [width, height]).all(1)
        pixel, angle = pixel[ok], angle[ok]
        seen = visible[pixel[:, 1], pixel[:, 0]]
        colours = self.layers.photo[pixel[seen, 1], pixel[seen, 0]].astype(np.float32)
        index = np.minimum((angle[seen] / BIN_DEG).astype(int), BINS - 1)
        # Lids and lashes shade the white of narrow eyes, which may open.
        grey = colours.mean(-1)
        white = angle[seen] > IRIS_DEG + BIN_DEG
        lit = ~white | (grey >= (np.percentile(grey[white], LIT) if white.any() else 0))
        colours, index = colours[lit], index[lit]
        profile = np.zeros((BINS, 3), np.float32)
        count = np.bincount(index, minlength=BINS)
        for channel in range(3):
            profile[:, channel] = np.bincount(index, colours[:, channel], BINS) / np.maximum(count, 1)
        known = np.flatnonzero(count)
        if len(known) < 3:
            return None
        at = np.arange(BINS)
        return np.stack([np.interp(at, known, profile[known, c]) for c in range(3)], -1).astype(np.float32)

    def _dim(self, part) -> float:
        """How far (0..1) lids and lashes shade what the photo shows of the white of an eye; its profile is mended."""
        profile = self.profiles[part]
        if profile is None:
            return 0.0
        white = np.arange(BINS) * BIN_DEG > IRIS_DEG
        share = float(profile[white].mean() / max(self.skin.mean(), 1.0))
        dim = float(np.clip((DIM[1] - share) / (DIM[1] - DIM[0]), 0, 1))
        profile[white] += dim * (DIM[1] * self._sclera() - profile[white])
        return dim

    def _sclera(self):
        return 0.3 * self.skin + 0.7 * SCLERA * self.light

    def paint(self, frame, guess, bones: Bones, rast, part, source, between: Between | None = None):
        """Paint eyes and mouth over a frame where their triangles are seen, and raise `guess` there, both in place."""
        for parts in (self.mouth, self.eyes):
            mask = np.isin(part, parts)
            rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            if not len(rows):
                continue
            box = np.s_[max(rows[0] - 2, 0) : rows[-1] + 3, max(cols[0] - 2, 0) : cols[-1] + 3]
            if parts is self.mouth:
                colour = self.inside.colour(_exact(box, mask.shape), mask[box], bones.head, bones.jaw, between)
            else:
                colour = self._eyes(box, rast, part, source)
            soft = cv2.GaussianBlur(mask[box].astype(np.float32), (0, 0), 0.7)
            soft = soft * self._changed(box, part, source)
            guess[box] = np.maximum(guess[box], soft)
            soft = soft[..., None]
            frame[box] = np.clip(frame[box] * (1 - soft) + colour * soft + 0.5, 0, 255).astype(np.uint8)

    def _changed(self, box, part, source):
        """0 where the photo shows the same spot of the same part in the same place, 1 where it does not."""
        rows, cols = np.mgrid[_exact(box, part.shape)] + 0.5
        moved = np.hypot(source[box][..., 0] - cols, source[box][..., 1] - rows)
        low, high = STILL_PX
        moved = np.clip((moved - low) / (high - low), 0, 1)
        inner = np.isin(part[box], (*self.eyes, *self.mouth))
        same = np.isin(self.layers.part[box], (*self.eyes, *self.mouth))
        changed = np.where(inner, np.where(same, moved, 1.0), 0.0).astype(np.float32)
        return cv2.blur(cv2.dilate(changed, np.ones((3, 3), np.uint8)), (3, 3))

    def _from_photo(self, box, source, parts):
        """The photo under the box's pixels, and how far it shows the same surface there (0..1)."""
        x, y = source[box][..., 0] - 0.5, source[box][..., 1] - 0.5
        photo = cv2.remap(self.layers.photo, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        same = cv2.erode(np.isin(self.layers.part, parts).astype(np.uint8), np.ones((3, 3), np.uint8))
        shown = cv2.remap(same.astype(np.float32), x, y, cv2.INTER_LINEAR)
        depth = cv2.remap(self.layers.zbuffer, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
        shown = shown * (source[box][..., 2] < depth + DEPTH_SLACK_M)
        return photo.astype(np.float32), np.clip(shown, 0, 1).astype(np.float32)[..., None]

    def _eyes(self, box, rast, part, source):
        """Eyeballs turn with the gaze: the photo's own pixels, and its radial profile where lids hid them."""
        angle = interpolate(self.angle, rast[:, box[0], box[1]].contiguous(), self.faces)[0, ..., 0].numpy()
        colour = np.zeros((*angle.shape, 3), np.float32)
        for eye in self.eyes:
            photo, shown = self._from_photo(box, source, (eye,))
            ball = self._ball(angle, self.profiles[eye])
            shown = shown * (1 - self.dim[eye] * (angle > IRIS_DEG))[..., None]
            mine = (part[box] == eye)[..., None]
            grown = cv2.dilate(mine.astype(np.uint8), np.ones((5, 5), np.uint8))[..., None] > 0
            colour = np.where(grown, photo * shown + ball * (1 - shown), colour)
        return colour

    def _ball(self, angle, profile):
        if profile is not None:
            at = np.arange(BINS) * BIN_DEG + BIN_DEG / 2
            return np.stack([np.interp(angle, at, profile[:, c]) for c in range(3)], -1).astype(np.float32)
        sclera = self._sclera()
        iris, pupil = np.array([70.0, 48.0, 36.0]) * self.light, np.array([16.0, 12.0, 12.0])
        outer = 1 / (1 + np.exp(-(angle - IRIS_DEG) / 1.2))[..., None]
        inner = 1 / (1 + np.exp(-(angle - PUPIL_DEG) / 1.0))[..., None]
        return (sclera * outer + (1 - outer) * (iris * inner + pupil * (1 - inner))).astype(np.float32)


def _exact(box, shape):
    """A box without ends beyond the picture."""
    rows, cols = box
    return np.s_[rows.start : min(rows.stop, shape[0]), cols.start : min(cols.stop, shape[1])]
