"""Pictures of the driver's mouth between the lips: where teeth, tongue and darkness are, and how they are lit."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8

from expportrait_cli.artifacts.types import CROP_SIZE, Tracking
from expportrait_cli.head.facemesh import LIP_PAIRS, LIPS
from expportrait_cli.media.image import is_image
from expportrait_cli.media.video import read_frame, read_frames, read_pictures
from expportrait_cli.painting.proxy.hidden import NO_MAP
from expportrait_cli.painting.proxy.layers import ramp
from expportrait_cli.painting.proxy.lips import Contours

PARTED = (0.04, 0.09)
"""Gaps between the driver's lips, in mouth widths, between which the clip is trusted more and more to show anything."""
SHARP_PX = (20.0, 36.0)
"""Widths of the driver's mouth, px of the clip, between which teeth and tongue are told apart."""
SURVEYED, BEGINNING = 8, 300
"""Number of frames with the widest mouths, and of as many spread over the clip, that tell how the driver's teeth look;
and number of the first frames with parted lips among which they are chosen."""
RED = (0.2, 0.5)
"""Redness, on the way from the driver's teeth to its lips, between which a bright spot is flesh rather than tooth."""
CAST, LEAST_RED = 0.6, 5
"""Greatest redness of teeth, in shares of the lips', and percentile of redness of bright spots at which it is read."""
COLOURLESS = 0.02
"""Redness of lips below which a clip has no colour: bright spots are teeth then."""
PALE = (1.1, 1.6)
"""Brightness, in shares of the lips', from which they are."""
FEW = 0.02
"""Share of pale pixels between the lips below which no teeth were seen."""
INSET = 0.07
"""Share of the opening at its rims that is not read: contours lie on the lips there."""
FAR = 50
"""Frames ahead from which the clip is opened anew rather than read on."""
STEADY = 2
"""Frames on either side over which trust in the clip is averaged."""
SKIN_TO_TOOTH, UNSEEN = (0.85, 5.0), 1.3
"""Least and greatest brightness of teeth, in shares of the skin's around the mouth; and that of teeth not seen."""


@dataclass(frozen=True)
class Glimpse:
    """One frame of the driver around the mouth."""

    picture: UInt8[np.ndarray, "H W 3"]
    lips: Contours
    trust: float
    """How far (0..1) the clip shows what is between the lips."""

    def read(self, along: Float[np.ndarray, "h w"], share: Float[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w 3"]:
        """Colours at places along the mouth (0..1) and between the rims (0 the upper, 1 the lower)."""
        upper, lower = self.lips.line(self.lips.upper_inner, along), self.lips.line(self.lips.lower_inner, along)
        at = self.lips.place(along, upper + (INSET + (1 - 2 * INSET) * share) * (lower - upper)) - 0.5
        sampled = cv2.remap(
            self.picture, at.astype(np.float32), NO_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        return sampled.astype(np.float32)


class Glimpses:
    """The driver's mouth in every frame of a film, asked for in order or from any frame on."""

    def __init__(self, tracking: Tracking) -> None:
        """Look at some frames with parted lips."""
        self.tracking = tracking
        self.points = tracking.landmarks * (float(tracking.crop[2]) / CROP_SIZE) + tracking.crop[:2]
        pairs = np.array(LIP_PAIRS)
        gap = np.linalg.norm(self.points[:, pairs[:, 0]] - self.points[:, pairs[:, 1]], axis=-1).max(1)
        width = np.linalg.norm(self.points[:, 61] - self.points[:, 291], axis=-1)
        gap = gap / np.maximum(width, 1e-6)
        seen = ramp(width, SHARP_PX) * (tracking.state == 0)
        around = np.ones(2 * STEADY + 1) / (2 * STEADY + 1)
        calm = np.minimum(np.convolve(np.pad(seen, STEADY, mode="edge"), around, mode="valid"), seen)
        self.trust = ramp(gap, PARTED) * calm
        self._frames: Iterator[np.ndarray] | None = None
        self._next = -1
        self.redness, self.cast, self.lip, self.white = 0.0, 0.0, 1.0, 1.0
        trusted = np.flatnonzero(self.trust > 0)[:BEGINNING]
        if len(trusted):
            # The widest mouths may show a tongue and no teeth.
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
        """The driver's mouth in a frame of the film, None where the clip shows nothing of its inside."""
        frame = min(frame, len(self.trust) - 1)
        if self.trust[frame] == 0:
            return None
        picture = self._picture(frame)
        return None if picture is None else self._of(picture, frame)

    def light(
        self, colours: Float32[np.ndarray, "*B 3"]
    ) -> tuple[Float[np.ndarray, "*B"], Float[np.ndarray, "*B"], Float[np.ndarray, "*B"]]:
        """Brightness of pixels as shares of the teeth's and of the lips' in this clip; share (0..1) of tooth."""
        grey = colours.mean(-1)
        return _soft(grey / self.white), _soft(grey / self.lip), self._tooth(colours)

    def _tooth(self, colours):
        if self.redness < COLOURLESS:
            return ramp(colours.mean(-1) / self.lip, PALE).astype(np.float32)
        return (1 - ramp((redness(colours) - self.cast) / (self.redness - self.cast), RED)).astype(np.float32)

    def _picture(self, frame: int) -> UInt8[np.ndarray, "H W 3"] | None:
        """A frame of the clip; None where it has fewer than were tracked."""
        if is_image(self.tracking.source):
            return read_frame(self.tracking.source, 0)
        if self._frames is None or not 0 <= frame - self._next < FAR:
            self._frames, self._next = read_frames(self.tracking.source, start=self.tracking.first_frame + frame), frame
        picture = next(islice(self._frames, frame - self._next, None), None)
        self._next = frame + 1
        return picture

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
    """Excess of red over green, as a share of the brightness: teeth may be yellow."""
    return np.asarray((colours[..., 0] - colours[..., 1]) / np.maximum(colours.sum(-1), 24))


def _soft(bright):
    """Highlights without those that clip."""
    return np.minimum(np.where(bright > 1, 1 + 0.4 * (bright - 1), bright), 1.25)
