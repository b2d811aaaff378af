"""The inside of the mouth, over the frames: where it is drawn, and how far it differs from the photo."""

import cv2
import numpy as np
from jaxtyping import Float, Float32

from expportrait_cli.head import HeadModel
from expportrait_cli.head.fitted import Bones
from expportrait_cli.painting.proxy.anatomy import Between, Mouth
from expportrait_cli.painting.proxy.glimpse import Glimpses
from expportrait_cli.painting.proxy.layers import STILL_PX, Layers

SKIN_COLOUR = np.array([205.0, 200.0, 190.0], np.float32)
"""Colour of the skin of a face that lies outside of its photo."""


class InnerLayers:
    """Colours of the mouth measured on the photo, with defaults where it does not show them."""

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
        self.layers = layers
        index = {name: head.part_names.index(name) for name in head.part_names}
        self.mouth = (index["teeth_upper"], index["teeth_lower"], index["mouth_cavity"])
        face = head.facial_mask.numpy()
        inside = (face > 0.8) & (head.parts.numpy() == 0)
        xy = np.rint(layers.xy[inside] - 0.5).astype(int)
        height, width = layers.alpha.shape
        xy = xy[(xy >= 0).all(1) & (xy < [width, height]).all(1)]
        self.skin = np.median(layers.photo[xy[:, 1], xy[:, 0]].astype(np.float32), axis=0) if len(xy) else SKIN_COLOUR
        shown = np.isin(layers.part, self.mouth)
        eyes = layers.photo[np.isin(layers.part, (index["eye_left"], index["eye_right"]))].astype(np.float32)
        bones = {"skull": reference.head, "jaw": reference.jaw}
        self.inside = Mouth(layers, seam, shown, self.skin, **bones, eyes=eyes, lip=lip, glimpses=glimpses)

    def paint(self, frame, guess, bones: Bones, part, source, between: Between | None = None):
        """Paint the mouth over a frame where its triangles are seen, and raise `guess` there, both in place."""
        mask = np.isin(part, self.mouth)
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return
        box = np.s_[max(rows[0] - 2, 0) : rows[-1] + 3, max(cols[0] - 2, 0) : cols[-1] + 3]
        colour = self.inside.colour(_exact(box, mask.shape), mask[box], bones.head, bones.jaw, between)
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
