"""Rotating eyeballs: the photo's own pixels, blended with a model of white, iris and pupil in the photo's colours."""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8

from expportrait_cli.head import HeadModel
from expportrait_cli.head.model import EYE_LEFT, EYE_RIGHT, dense
from expportrait_cli.painting.proxy.layers import Layers, ramp
from expportrait_cli.painting.proxy.lids import Lid

AXIS_DEG = 15.0
"""Largest angle, degrees, between the head model's axis of an eye and the direction of the iris in the photo."""
IRIS_DEG = (15.0, 32.0)
"""Least and largest angle, degrees, between the axis of the eye and the rim of the iris."""
PUPIL, LIMBUS = 0.33, (0.75, 1.0)
"""PUPIL: radius of the pupil. LIMBUS: radii at which the iris begins to darken, and is darkest. In iris radii."""
SHADED = (0.05, 0.16)
"""Distance of a pixel from the lids, in eyeball radii, at which the photo has weight 0 (lashes, shadow), and 1."""
LID_SHADOW, SHADOW_WIDTH, SOCKET_WIDTH = 0.42, 0.28, 0.14
"""LID_SHADOW: share of light that the upper lid removes at its rim. SHADOW_WIDTH: reach of that shadow. SOCKET_WIDTH:
reach of the weaker shadow along the whole border. Both in eyeball radii."""
NARROW = (0.35, 0.7)
"""Height of the eye opening in the photo, in iris diameters, at which the photo's pixels have weight 0, and 1."""
TURNED_DEG, OPENED = (0.7, 2.5), (0.04, 0.15)
"""Change against the photo at which the repainted eye has weight 0, and 1: TURNED_DEG of the gaze, degrees; OPENED of
the opening, as a share of the photo's."""
WHITE = np.array([208.0, 203.0, 196.0], np.float32)
IRIS_COLOUR, PUPIL_COLOUR = np.array([70.0, 48.0, 36.0], np.float32), np.array([16.0, 12.0, 12.0], np.float32)
FEW = 8
"""Fewest pixels from which a colour of an eye is read."""
DIM = (0.6, 0.95)
"""Brightness of the photo's white of the eye, over the usual one on such skin, at which its weight is 0, and 1."""
FLESH = (0.55, 0.85)
"""Saturation of a pixel outside the iris, as a share of the skin's, at which it is flesh (lids, corners) by 0, and by
1."""
GLINT_AT, GLINT_WIDTH, GLINT, GLINTS = (-0.2, -0.3), 0.17, 0.85, 0.35
"""Specular highlight: GLINT_AT its place and GLINT_WIDTH its standard deviation, in iris radii; GLINT its opacity.
GLINTS: by how much the iris's brightest pixel must exceed its median, as a share of 200 levels, to give the place."""


@dataclass(frozen=True)
class View:
    """Weak-perspective projection of an eyeball: from directions at its centre to pixels."""

    slope: Float[np.ndarray, "3 2"]
    """Linear map from unit directions (head frame at rest) to pixel offsets from `centre`."""
    centre: Float[np.ndarray, " 2"]
    """Projection of the eyeball's centre, px."""

    @cached_property
    def radius_px(self) -> float:
        """Radius of the eyeball, px."""
        return float(np.linalg.svd(self.slope, compute_uv=False).mean())

    def place(self, rays: Float[np.ndarray, "*S 3"]) -> Float[np.ndarray, "*S 2"]:
        """Project directions from the eyeball's centre to px."""
        return rays @ self.slope + self.centre

    def rays(self, px: Float[np.ndarray, "*S 2"]) -> Float[np.ndarray, "*S 3"]:
        """Directions on the visible half of the eyeball at these pixels; off the ball, the nearest direction."""
        across = (px - self.centre) @ np.linalg.pinv(self.slope)
        length = np.linalg.norm(across, axis=-1, keepdims=True)
        across = across / np.maximum(length, 1.0)
        ahead = np.cross(self.slope[:, 0], self.slope[:, 1])
        ahead = ahead * np.sign(ahead[2]) / max(float(np.linalg.norm(ahead)), 1e-9)
        return across + np.sqrt(np.maximum(1 - (across**2).sum(-1, keepdims=True), 0)) * ahead


class Eye:
    """One eyeball: its geometry and colours, and the weight of the photo's pixels."""

    def __init__(
        self,
        layers: Layers,
        head: HeadModel,
        side: int,
        *,
        iris: Float[np.ndarray, " 3"],
        skin: Float32[np.ndarray, " 3"],
    ):
        """`side` is 0 for the person's left eye, 1 for the right; `iris`: its centre and radius in the photo, px."""
        self.layers, self.skin = layers, skin
        self.part = head.part_names.index(("eye_left", "eye_right")[side])
        self.ball = np.flatnonzero(head.parts.numpy() == self.part)
        rays = dense(head, head.template).numpy()[self.ball] - head.joint_template[(EYE_LEFT, EYE_RIGHT)[side]].numpy()
        rays = rays / np.linalg.norm(rays, axis=1, keepdims=True)
        self._solve = np.linalg.pinv(np.c_[rays, np.ones(len(rays))])
        self.camera = layers.camera
        self.photo = self.view(layers.verts)
        ahead = np.array([0.0, 0.0, 1.0])
        # The axis comes from the iris landmarks: the fitted gaze is off by a degree or two.
        axis = self.photo.rays(iris[:2])
        angle = np.degrees(np.arccos(np.clip(axis @ ahead, -1, 1)))
        axis = ahead + (axis - ahead) * min(1.0, AXIS_DEG / max(angle, 1e-6))
        self.axis = axis / np.linalg.norm(axis)
        self.iris = np.sin(np.clip(np.arcsin(min(iris[2] / self.photo.radius_px, 1.0)), *np.radians(IRIS_DEG)))
        self._read(layers.part == self.part)

    def view(self, verts_cam: Float32[np.ndarray, "V 3"]) -> View:
        """Projection of this eyeball in a posed head."""
        xy = self.camera.project(torch.from_numpy(verts_cam[self.ball])).numpy()
        found = self._solve @ xy
        return View(found[:3], found[3])

    def radii(self, rays: Float[np.ndarray, "*S 3"]) -> Float[np.ndarray, "*S"]:
        """Angular distance of directions from the eye's axis, as its sine, in iris radii."""
        off = np.linalg.norm(np.cross(rays, self.axis), axis=-1)
        return np.where(rays @ self.axis > 0, off, 2 - off) / self.iris

    def _read(self, shown: Bool[np.ndarray, "H W"]) -> None:
        """Read the colours, the highlight's place, and the weight (0..1) of each photo pixel; `shown`: eye pixels."""
        self.trust, self.glint = np.zeros(shown.shape, np.float32), np.array(GLINT_AT)
        self.colours = {"white": np.zeros((0, 3)), "iris": np.zeros((0, 3)), "pupil": np.zeros((0, 3))}
        rows, cols = np.nonzero(shown)
        if not len(rows):
            return
        radius = self.photo.radius_px
        padded = np.pad(shown.astype(np.uint8), 1)
        inward = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
        below = np.float32(from_top(shown))
        clear = ramp(np.minimum(inward, 0.5 * below), (SHADED[0] * radius, SHADED[1] * radius))
        # The iris is a good ruler: its diameter hardly differs between people.
        opening = shown.sum(0).max() / (2 * self.iris * radius)
        clear = clear * ramp(opening, NARROW)
        self.trust = cv2.GaussianBlur(clear.astype(np.float32), (0, 0), 0.7)
        picture = self.layers.photo[rows, cols].astype(np.float32)
        radii = self.radii(self.photo.rays(np.c_[cols, rows] + 0.5))
        core = inward[rows, cols] >= min(SHADED[1] * radius, 0.8 * inward.max())
        pale = saturation(picture) < FLESH[1] * saturation(self.skin[None])
        white = (radii > 1.12) & pale & (inward[rows, cols] > 1)
        self.colours = {
            "white": picture[white],
            "iris": picture[core & (radii > 0.45) & (radii < 0.9)],
            "pupil": picture[core & (radii < 0.8 * PUPIL)],
        }
        inside = (radii < 0.85) & (inward[rows, cols] > 1)
        if inside.sum() >= FEW:
            grey = cv2.blur(self.layers.photo, (3, 3))[rows, cols].astype(np.float32).mean(-1)[inside]
            if grey.max() - np.median(grey) > GLINTS * 200:
                spot = np.array([cols[inside][grey.argmax()], rows[inside][grey.argmax()]]) + 0.5
                self.glint = (spot - self.photo.place(self.axis)) / (radius * self.iris)

    def settle(self, other: "Eye") -> None:
        """Set the colours from this eye's pixels; with fewer than FEW, from both eyes'; else from defaults."""
        light = np.sqrt(np.clip(self.skin.mean() / 150.0, 0.2, 1.4))
        usual = 0.2 * self.skin + 0.8 * WHITE * min(float(light), 1.12)
        white = _bright(self._pixels("white", other))
        if white is None:
            self.white = usual
        else:
            dim = 1 - float(ramp(white.mean() / usual.mean(), DIM))
            self.white = white + dim * (usual - white)
        iris = _middle(self._pixels("iris", other))
        self.iris_colour = IRIS_COLOUR * light if iris is None else iris
        pupil = _middle(self._pixels("pupil", other))
        self.pupil_colour = np.minimum(PUPIL_COLOUR if pupil is None else pupil, 0.5 * self.iris_colour)

    def _pixels(self, name, other):
        own = self.colours[name]
        return own if len(own) >= FEW else np.concatenate([own, other.colours[name]])

    def model(self, radii: Float[np.ndarray, "*S"], blur: float) -> Float[np.ndarray, "*S 3"]:
        """RGB by distance from the axis (`radii`, iris radii); `blur` is the width of its edges, iris radii."""
        rim = 1 / (1 + np.exp(-(radii - 1) / max(0.35 * blur, 0.03)))[..., None]
        hole = 1 / (1 + np.exp(-(radii - PUPIL) / max(0.35 * blur, 0.03)))[..., None]
        ring = (1 - 0.45 * ramp(radii, LIMBUS) ** 2)[..., None]
        inner = self.iris_colour * ring * hole + self.pupil_colour * (1 - hole)
        return self.white * rim + inner * (1 - rim)

    def colour(
        self, view: View, px: Float[np.ndarray, "h w 2"], shown: Bool[np.ndarray, "h w"]
    ) -> Float32[np.ndarray, "h w 3"]:
        """RGB of the eye in one frame at the pixels `px`; `shown` is the mask of those between the lids."""
        rays = view.rays(px)
        radii = self.radii(rays)
        at = (self.photo.place(rays) - 0.5).astype(np.float32)
        own = cv2.remap(self.layers.photo, at[..., 0], at[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        own = own.astype(np.float32)
        trust = cv2.remap(self.trust, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        pale = 1 - ramp(saturation(own) / max(float(saturation(self.skin[None])[0]), 1e-3), FLESH)
        lit = ramp(own.mean(-1) / self.white.mean(), (0.5, 0.8))
        outside = ramp(radii, (0.95, 1.15))
        trust = (trust * (1 - outside * (1 - pale * lit)))[..., None]
        made = self.model(radii, 1 / max(view.radius_px * self.iris, 1e-3))
        shade = self._shade(shown, view.radius_px)[..., None]
        glint = (1 - trust) * self._glint(view, px)[..., None]
        eye = shade * (made * (1 - trust) + own * trust)
        return (eye + glint * (np.minimum(1.25 * self.white, 250.0) - eye)).astype(np.float32)

    def _glint(self, view, px):
        across = (px - view.place(self.axis)) / max(view.radius_px * self.iris, 1e-3)
        return GLINT * np.exp(-((across - self.glint) ** 2).sum(-1) / (2 * GLINT_WIDTH**2))

    @staticmethod
    def _shade(shown, radius):
        """Share (0..1) of the light that reaches the eyeball between the lids; `radius` is the eyeball's, px."""
        padded = np.pad(shown.astype(np.uint8), 1)
        inward = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
        upper = 1 - LID_SHADOW * (1 - ramp(from_top(shown), (0.0, SHADOW_WIDTH * radius))) ** 2
        shade = upper * (0.8 + 0.2 * ramp(inward, (0.0, SOCKET_WIDTH * radius)))
        return cv2.GaussianBlur(np.where(shown, shade, 0.6).astype(np.float32), (0, 0), 0.8)

    def gaze(
        self, verts_cam: Float32[np.ndarray, "V 3"], head_turn: Float[np.ndarray, "3 3"]
    ) -> Float[np.ndarray, " 3"]:
        """Unit direction of the eye's axis in the head's frame."""
        axis = head_turn.T @ ((self._solve @ verts_cam[self.ball])[:3].T @ self.axis)
        return axis / np.linalg.norm(axis)


class Eyes:
    """Both eyes of a person."""

    def __init__(
        self,
        layers: Layers,
        head: HeadModel,
        *,
        irises: Float[np.ndarray, "2 3"],
        lids: list[Lid],
        skin: Float32[np.ndarray, " 3"],
        head_turn: Float[np.ndarray, "3 3"],
    ):
        """`irises` are centres and radii in the photo, px, the person's left eye first; `skin` is the face's colour."""
        self.eyes = [Eye(layers, head, side, iris=iris, skin=skin) for side, iris in enumerate(irises)]
        for eye, other in zip(self.eyes, self.eyes[::-1], strict=True):
            eye.settle(other)
        self.lids = lids
        self.gazes = [eye.gaze(layers.verts, head_turn) for eye in self.eyes]

    def paint(
        self,
        frame: UInt8[np.ndarray, "H W 3"],
        guess: Float32[np.ndarray, "H W"],
        part: UInt8[np.ndarray, "H W"],
        verts_cam: Float32[np.ndarray, "V 3"],
        head_turn: Float[np.ndarray, "3 3"],
    ) -> None:
        """Paint both eyes over a frame where they are visible, and raise `guess` there, both in place.

        `part` is the part map of the frame; nothing is painted where gaze and lids are as in the photo.
        """
        for side, eye in enumerate(self.eyes):
            mask = part == eye.part
            rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            if not len(rows):
                continue
            closure = self.lids[side].closure(verts_cam) if self.lids else 0.0
            angle = np.degrees(np.arccos(np.clip(eye.gaze(verts_cam, head_turn) @ self.gazes[side], -1, 1)))
            share = max(float(ramp(abs(closure), OPENED)), float(ramp(angle, TURNED_DEG)))
            if share == 0:
                continue
            box = np.s_[max(rows[0] - 2, 0) : rows[-1] + 3, max(cols[0] - 2, 0) : cols[-1] + 3]
            shown = mask[box]
            px = np.stack(np.meshgrid(*(np.arange(n) for n in shown.shape[::-1])), -1) + 0.5
            px += [box[1].start, box[0].start]
            colour = eye.colour(eye.view(verts_cam), px, shown)
            soft = share * cv2.GaussianBlur(shown.astype(np.float32), (0, 0), 0.7)
            guess[box] = np.maximum(guess[box], soft)
            soft = soft[..., None]
            frame[box] = np.clip(frame[box] * (1 - soft) + colour * soft + 0.5, 0, 255).astype(np.uint8)


def from_top(shown: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Distance of each pixel's centre from the upper end of the mask in its column, px; 0 outside the mask."""
    first = np.where(shown.any(0), shown.argmax(0), 0)
    return np.where(shown, np.arange(shown.shape[0])[:, None] - first + 0.5, 0.0)


def saturation(colours: Float[np.ndarray, "*S 3"]) -> Float[np.ndarray, "*S"]:
    """Saturation as in HSV: largest minus smallest channel, over the largest."""
    high = colours.max(-1)
    return (high - colours.min(-1)) / np.maximum(high, 1.0)


def _bright(pixels):
    """Median colour of the brightest 40 %, because the rest lies in the shadow of the lids; None for few pixels."""
    if len(pixels) < FEW:
        return None
    grey = pixels.mean(1)
    return np.median(pixels[grey >= np.percentile(grey, 60)], axis=0)


def _middle(pixels):
    """Median colour without the brightest 20 %, which are highlights; None for few pixels."""
    if len(pixels) < FEW:
        return None
    grey = pixels.mean(1)
    return np.median(pixels[grey <= np.percentile(grey, 80)], axis=0)
