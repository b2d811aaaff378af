"""Compose a frame of the proxy film: the photo's layers on the posed mesh, lids, mouth."""

from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8

from expportrait_cli.geometry.rotations import similarity
from expportrait_cli.head import HeadModel, landmarks
from expportrait_cli.head.facemesh import LOWER_LIDS, UPPER_LIDS, lid_travel
from expportrait_cli.head.fitted import Bones
from expportrait_cli.painting.proxy.layers import (
    DEPTH_SLACK_M,
    LID_TRAVEL_M,
    NONE,
    STILL_PX,
    Layers,
    diffuse,
    draw,
    parts_drawn,
    triangle_ids,
    triangle_parts,
)
from expportrait_cli.painting.proxy.mouth import InnerLayers
from expportrait_cli.render.rasterizer import interpolate

NO_MAP: Any = None
"""Second map of `cv2.remap`, for which its types want an array. OpenCV 5 reads an empty array as a map, and garbage."""
GROWTH = (1.3, 2.2)
"""Growth of a lid's triangles from which, and up to which, skin takes the place of what the photo shows on them."""
FADES = (0.06, 0.35)
"""Shares of the widest travel over which its own skin fades in below the brow."""
CLOSES = (0.4, 0.8)
"""How far a lid has to come down, of the opening that the photo shows, before all of it shows other skin, and until it
does: its plate does not grow, and yet it does."""
MEETS = (0.6, 0.8)
"""The same for a slit that lashes hide."""
LASHES_M = 0.0019
"""Thickness of the line of lashes in the middle of a shut eye; it tapers towards the corners."""
DARK = 0.25
"""Share of the pixels around the rim that are lashes."""
SUBPIXEL_BITS = 4


def shown_areas(verts_cam: Float32[np.ndarray, "V 3"], triangles: Int64[np.ndarray, "F 3"]) -> Float[np.ndarray, " F"]:
    """Areas at which triangles are seen, in focal lengths squared; 0 for those that turn away."""
    a, b, c = (verts_cam[triangles][..., :2] / verts_cam[triangles][..., 2:]).transpose(1, 0, 2)
    # Outward is counter-clockwise for y up; the camera's y is down.
    cross = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    return np.maximum(-cross / 2, 0.0)


class Lid:
    """One upper lid, compared with how the photo shows it."""

    def __init__(self, layers: Layers, head: HeadModel, travel_m: Float32[np.ndarray, " V"], side: int):
        """`travel_m` is how far a blink moves each vertex of this eye; `side` is 0 for the person's left one."""
        faces = head.dense_faces.numpy()
        self.triangles = np.flatnonzero((travel_m > LID_TRAVEL_M)[faces].any(1))
        self.corners = faces[self.triangles]
        self.areas = shown_areas(layers.verts, self.corners) + 1e-8
        travel = travel_m[self.corners].max(1) / travel_m.max()
        self.inner = _ramp(travel, FADES)
        self.head, self.camera = head, layers.camera
        self.rims = np.array([UPPER_LIDS[side], LOWER_LIDS[side]])
        self.open_m = self._gap_m(layers.verts)
        near = self._stroke(layers.verts, layers.photo.shape[:2], thicker=2.0) > 0.5
        pixels = layers.photo[near].astype(np.float32)
        dark = np.argsort(pixels.sum(1))[: max(round(DARK * len(pixels)), 1)]
        self.lashes = np.median(pixels[dark], axis=0) if len(pixels) else np.zeros(3, np.float32)

    def unfolded(self, verts_cam: Float32[np.ndarray, "V 3"]) -> Float32[np.ndarray, " F_lid"]:
        """How far (0..1) each of the lid's triangles shows skin that the photo has folded away."""
        growth = shown_areas(verts_cam, self.corners) / self.areas
        share = np.maximum(_ramp(growth, GROWTH), _ramp(self.closure(verts_cam), CLOSES))
        return (share * self.inner).astype(np.float32)

    def closure(self, verts_cam: Float32[np.ndarray, "V 3"]) -> float:
        """How far (up to 1) the lid has come down from where the photo has it; below 0 if the eye is wider open."""
        return 1 - self._gap_m(verts_cam) / max(self.open_m, 1e-6)

    def _gap_m(self, verts_cam: Float32[np.ndarray, "V 3"]) -> float:
        upper, lower = landmarks(self.head, torch.from_numpy(verts_cam)).numpy()[self.rims]
        # As the camera sees it: what landmarks move has the depth that it had.
        return float(np.linalg.norm((upper - lower)[:, :2], axis=-1).mean())

    def paint_lashes(self, frame: UInt8[np.ndarray, "H W 3"], verts_cam: Float32[np.ndarray, "V 3"]) -> None:
        """Draw the line of lashes over a lid that has come down, in place."""
        closure = self.closure(verts_cam)
        closed = float(_ramp(closure, CLOSES))
        if closed == 0:
            return
        stroke = self._stroke(verts_cam, frame.shape[:2], slit=float(_ramp(closure, MEETS)))
        rows, cols = np.flatnonzero(stroke.any(1)), np.flatnonzero(stroke.any(0))
        if not len(rows):
            return
        box = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        share = (closed * stroke[box])[..., None]
        frame[box] = np.rint(frame[box] * (1 - share) + self.lashes * share).astype(np.uint8)

    def _stroke(self, verts_cam, shape, *, thicker: float = 1.0, slit: float = 0.0) -> Float32[np.ndarray, "H W"]:
        """Coverage of the line along the lid's rim, and of what it leaves open."""
        rims = landmarks(self.head, torch.from_numpy(verts_cam)).numpy()[self.rims]
        upper, lower = (self.camera.project(torch.from_numpy(rim)).numpy() - 0.5 for rim in rims)
        width = thicker * LASHES_M * self.camera.focal_px / float(rims[0, :, 2].mean())
        canvas = np.zeros(shape, np.uint8)
        if slit:
            cv2.fillPoly(canvas, [_fixed([*upper, *lower[::-1]])], (255 * slit,), cv2.LINE_AA, SUBPIXEL_BITS)
        along = upper[-1] - upper[0]
        across = np.array([-along[1], along[0]]) / max(float(np.linalg.norm(along)), 1e-6)
        half = 0.5 * width * np.sqrt(np.sin(np.linspace(0, np.pi, len(upper))))[:, None] * across
        cv2.fillPoly(canvas, [_fixed([*(upper - half), *(upper + half)[::-1]])], (255.0,), cv2.LINE_AA, SUBPIXEL_BITS)
        return cv2.GaussianBlur(canvas, (0, 0), max(0.35 * width, 0.6)).astype(np.float32) / 255


def _fixed(px) -> np.ndarray:
    """Points as OpenCV takes them, with a binary fraction."""
    return np.rint(np.asarray(px) * 2**SUBPIXEL_BITS).astype(np.int32)


def _ramp(value, ends: tuple[float, float]):
    """0 below the first end, 1 above the second."""
    low, high = ends
    return np.clip((value - low) / (high - low), 0, 1)


SKIN = 0
"""The second map that `remap` does not need when the first has two channels."""
HAIR_DEPTH_M = -0.08
"""Depth in the head frame at which hair beyond the mesh is taken to lie: behind the ears."""
FADE_FACES = 0.35
"""Distance from the mesh, in face heights, over which its motion fades into the far field's."""
BARE_FACES = (0.03, 0.08)
"""Motions, in face heights, between which the safe plate takes over from the close one."""
SITS_FACES = (0.9, 2.2)
"""Face heights below the chin over which motion ends: what shoulders do says little of arms and lap."""
RIM = (0.03, 0.12, 7.0)
"""Least and added width of what may lie outside the mesh, in face heights, and the turn (deg) that takes the added
part away: when the head turns, hair that was beside it goes behind it."""


def mix(
    first: UInt8[np.ndarray, "H W 3"], second: UInt8[np.ndarray, "H W 3"], share: Float32[np.ndarray, "H W"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Mix two pictures; `share` is the second's."""
    return cv2.blendLinear(first, second, 1 - share, share)


class Compositor:
    """Paint frames from a prepared photo: one call a frame, the same input always the same frame."""

    def __init__(
        self,
        layers: Layers,
        head: HeadModel,
        reference: Bones,
        seam: Float[np.ndarray, " 3"],
        *,
        face_height_px: float,
        chin_y_px: float,
    ):
        """`seam` is where the person's closed lips meet, in the head frame."""
        self.layers, self.head, self.reference = layers, head, reference
        self.inner = InnerLayers(layers, head, reference, seam)
        self.faces = head.dense_faces.int()
        self.face_height_px, self.chin_y_px = face_height_px, chin_y_px
        height, width = layers.alpha.shape
        self.grid = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), -1).astype(np.float32)
        half_y, half_x = (height + 1) // 2, (width + 1) // 2
        half = np.stack(np.meshgrid(np.arange(half_x) * 2 + 1.0, np.arange(half_y) * 2 + 1.0), -1)
        self.half_grid = half.astype(np.float32)
        down = np.clip((self.half_grid[..., 1:] - chin_y_px) / (0.5 * face_height_px), 0, 1)
        self.half_down = (down * down * (3 - 2 * down)).astype(np.float32)
        self.below = np.clip((self.grid[..., 1] - chin_y_px) / np.float32(0.3 * face_height_px), 0, 1)
        start, end = (chin_y_px + f * face_height_px for f in SITS_FACES)
        sits = np.clip((self.grid[..., 1:] - start) / (end - start), 0, 1)
        self.moves = (1 - sits * sits * (3 - 2 * sits)).astype(np.float32)
        self.triangle_part = triangle_parts(head)
        self.lids = [Lid(layers, head, travel, side) for side, travel in enumerate(lid_travel(head)) if travel.any()]
        self.attributes = torch.from_numpy(
            np.c_[layers.xy, layers.depth, layers.cosine, layers.colour].astype(np.float32)
        )[None]
        ring = np.linspace(0, 2 * np.pi, 8, endpoint=False)
        self.head_ring = np.c_[0.09 * np.cos(ring), 0.11 * np.sin(ring) + 0.02, np.full(8, HAIR_DEPTH_M)]
        self.torso_ring = np.c_[0.17 * np.cos(ring), 0.08 * np.sin(ring) - 0.12, np.full(8, -0.02)]

    def frame(
        self, verts_cam: Float32[np.ndarray, "V 3"], bones: Bones
    ) -> tuple[UInt8[np.ndarray, "H W 3"], Float32[np.ndarray, "H W"]]:
        """Paint one frame from the posed vertices, and say how far each pixel is a guess (`Sketch.guess`)."""
        layers = self.layers
        rast = draw(verts_cam, self.faces, layers.camera)
        part = parts_drawn(rast, self.triangle_part)
        skin, bare = part == SKIN, (part == NONE).astype(np.uint8)
        source = interpolate(self.attributes, rast, self.faces)[0].numpy()
        seen = self._seen(skin, source)
        away = cv2.distanceTransform(bare, cv2.DIST_L2, 3)
        step = self._step(skin, source, seen, away, bones)
        field = self.grid + step
        # Remap samples at integer centres: half a pixel off would soften and shift the whole film.
        field -= 0.5
        alpha = cv2.remap(layers.alpha, field, NO_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        turned = self._turned(bones)
        alpha = self._rim(alpha, bare, away, turned)
        person = cv2.remap(layers.foreground, field, NO_MAP, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        unfolded = [lid.unfolded(verts_cam) for lid in self.lids]
        hidden = np.maximum((1 - cv2.blur(seen, (5, 5))) * turned, self._lid_skin(unfolded, rast)) * skin
        if hidden.any():
            person = mix(person, np.clip(source[..., 4:] + 0.5, 0, 255).astype(np.uint8), hidden)
        moved = cv2.magnitude(step[..., 0], step[..., 1])
        frame = mix(self._behind(moved), person, alpha)
        low, high = STILL_PX
        # Where nothing moves by a pixel the photo itself is the best picture.
        moves = cv2.blur(np.clip((moved - low) / (high - low), 0, 1), (5, 5))
        frame = mix(layers.photo, frame, moves)
        # Skin, and background, that the photo hides; and outlines, where the matte is a guess.
        bared = (1 - alpha) * layers.alpha
        guess = (moves * np.maximum(np.maximum(hidden, bared), 4 * alpha * (1 - alpha))).astype(np.float32)
        self.inner.paint(frame, guess, bones, rast, part, source)
        for lid in self.lids:
            lid.paint_lashes(frame, verts_cam)
        return frame, guess

    def _seen(self, skin, source):
        """How well the photo shows the skin that each pixel shows: 0 hidden or grazing, 1 facing the camera."""
        at = source[..., :2] - 0.5
        nearest = cv2.remap(self.layers.zbuffer, at, NO_MAP, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
        facing = np.clip((source[..., 3] - 0.08) / 0.2, 0, 1)
        return facing * (source[..., 2] < nearest + DEPTH_SLACK_M) * skin

    def _step(self, skin, source, seen, away, bones):
        """From each pixel to where in the photo it comes from, px."""
        own = source[..., :2] - self.grid
        # Half the resolution is enough for what is smooth by construction.
        height, width = seen.shape
        half = (self.half_grid.shape[1], self.half_grid.shape[0])
        weight = cv2.resize(seen, half, interpolation=cv2.INTER_AREA)
        carried = cv2.resize(cv2.merge([own[..., 0] * seen, own[..., 1] * seen]), half, interpolation=cv2.INTER_AREA)
        far = self._far(bones)
        beyond = diffuse(carried / np.maximum(weight, 1e-3)[..., None] - far, weight)
        reach = cv2.resize(away, half, interpolation=cv2.INTER_AREA) / (FADE_FACES * self.face_height_px)
        beyond = far + beyond * np.exp(-(reach**2))[..., None]
        step = cv2.resize(beyond, (width, height), interpolation=cv2.INTER_LINEAR)
        step += (seen * skin)[..., None] * (own - step)
        step *= self.moves
        return step

    def _behind(self, moved):
        """The background: the photo's own as far as the motion is too small to bare what mattes miss."""
        low, high = (f * self.face_height_px for f in BARE_FACES)
        safe = cv2.blur(np.clip((moved - low) / (high - low), 0, 1), (9, 9))
        return mix(self.layers.close_plate, self.layers.plate, safe)

    def _lid_skin(self, unfolded, rast):
        """How far each pixel shows skin of a lid that the photo has folded away."""
        share = np.zeros(len(self.triangle_part), np.float32)
        for lid, own in zip(self.lids, unfolded, strict=True):
            share[lid.triangles] = own
        if not share.any():
            return np.float32(0)
        ids = triangle_ids(rast)
        return cv2.blur(np.where(ids >= 0, share[np.maximum(ids, 0)], 0).astype(np.float32), (3, 3))

    def _far(self, bones):
        """Steps beyond the mesh at half the resolution: the hair's above, the torso's below."""
        maps = []
        for ring, now, then in (
            (self.head_ring, bones.head, self.reference.head),
            (self.torso_ring, bones.torso, self.reference.torso),
        ):
            maps.append(similarity(self._project(ring, now), self._project(ring, then)))
        above, below = (cv2.transform(self.half_grid, m.astype(np.float32)) for m in maps)
        return above + self.half_down * (below - above) - self.half_grid

    def _project(self, points, bone):
        camera = self.layers.camera
        cam = points @ bone[:, :3].T + bone[:, 3]
        return cam[:, :2] / cam[:, 2:] * camera.focal_px + [camera.cx, camera.cy]

    def _turned(self, bones):
        """0 for a head that faces as in the photo, 1 for one that shows what the photo does not."""
        turn = bones.head[:, :3] @ self.reference.head[:, :3].T
        angle = np.degrees(np.arccos(np.clip(turn[2, 2], -1, 1)))
        return 1 - float(np.exp(-((angle / RIM[2]) ** 2)))

    def _rim(self, alpha, bare, away, turned):
        """Let the posed mesh, not the photo's matte, say where a turned head ends."""
        least, added, _ = RIM
        limit = self.face_height_px * (least + added * (1 - turned))
        cut = np.clip((limit - away) / (0.02 * self.face_height_px) + 1, 0, 1)
        alpha = alpha * np.maximum(cut, self.below)
        if turned < 0.02:
            return alpha
        covered = cv2.GaussianBlur(1 - cv2.dilate(bare, np.ones((3, 3), np.uint8)).astype(np.float32), (0, 0), 1.0)
        return np.maximum(alpha, covered * turned * (1 - self.below))
