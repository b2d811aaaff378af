"""The inside of the driver's mouth: teeth, tongue and darkness, as the pictures of its clip show them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8

from expportrait_cli.artifacts.types import Tracking
from expportrait_cli.head.facemesh import LIP_PAIRS, LIPS
from expportrait_cli.media.image import is_image
from expportrait_cli.media.video import read_frame, read_frames, read_pictures
from expportrait_cli.painting.proxy.hidden import NO_MAP
from expportrait_cli.painting.proxy.layers import ramp
from expportrait_cli.painting.proxy.lips import Contours

PARTED = (0.04, 0.09)
"""Gap between the driver's lips, in mouth widths, at which the clip has weight 0, and 1."""
SHARP_PX = (20.0, 36.0)
"""Width of the driver's mouth, px of the clip, at which the clip has weight 0, and 1: small mouths are not resolved."""
SURVEYED, BEGINNING = 8, 300
"""SURVEYED: frames that the driver's teeth are measured on: so many with the widest mouths and as many evenly spread,
out of the first BEGINNING with parted lips."""
RED = (0.2, 0.65)
"""Redness, from 0 (the driver's teeth) to 1 (the driver's lips), up to which a pixel is tooth, and from which flesh."""
SIDES, IN_ROW, ROW_WIDTH = 0.4, 4.0, 0.2
"""Teeth at the sides are redder than the front ones, because lips and cheeks light them: their redness may be higher by
SIDES where front teeth are in the same row. Full effect is reached where the share of front teeth, under a Gaussian of
ROW_WIDTH mouth widths along the row, is 1 / IN_ROW."""
SURE, FRONT = 0.9, 0.75
"""Least share of tooth of front teeth, and their least brightness, in shares of the clip's teeth."""
LIT = (0.4, 0.6)
"""Brightness, in shares of the clip's teeth: pixels below the first are no teeth at the sides, those above the second
may be."""
PINK = (1.0, 1.05)
"""Blue by green, as a multiple of that of front teeth, up to which pixels may be teeth at the sides; from the second on
they are a tongue, which is pink."""
CAST, LEAST_RED = 0.6, 5
"""Redness of teeth is the percentile LEAST_RED of that of bright pixels, at most CAST times the lips': in red light
teeth are red."""
COLOUR_PX = 1.2
"""Deviation, px, of the blur of the driver's colours before teeth are told from flesh."""
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
    """Reader of the frames of a tracked clip, in any order; in rising order it is fastest."""

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


class Glimpses:
    """The driver's mouth in every frame of a film. Frames can be read in any order; in rising order it is fastest."""

    def __init__(self, tracking: Tracking, pictures: "Pictures | None" = None) -> None:
        """Look at some frames with parted lips; `pictures` are the clip's, where others read it too."""
        self.tracking = tracking
        self.points = tracking.source_points
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
        # Clips store colour at half the resolution of brightness, and it is noisy where it is dark.
        if colours.ndim < 3:
            return _soft(grey / self.white), _soft(grey / self.lip), self._tooth(colours)
        soft = cv2.GaussianBlur(colours, (0, 0), COLOUR_PX)
        tooth = self._tooth(soft)
        front = (tooth > SURE) * (soft.mean(-1) > FRONT * self.white).astype(np.float32)
        if self.redness >= COLOURLESS and front.sum() > 0:
            blue = soft[..., 2] / np.maximum(soft[..., 1], 8)
            pink = ramp(blue / np.average(blue, weights=front), PINK)
            beside = cv2.GaussianBlur(front, (0, 0), ROW_WIDTH * front.shape[1], sigmaY=COLOUR_PX)
            lit = ramp(soft.mean(-1) / self.white, LIT)
            tooth = self._tooth(soft, SIDES * (1 - pink) * lit * np.minimum(IN_ROW * beside, 1))
        return _soft(grey / self.white), _soft(grey / self.lip), tooth

    def _tooth(self, colours, more=0.0):
        if self.redness < COLOURLESS:
            return ramp(colours.mean(-1) / self.lip, PALE).astype(np.float32)
        red = (redness(colours) - self.cast) / (self.redness - self.cast)
        return (1 - ramp(red - more, RED)).astype(np.float32)

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
