"""The proxy film: the photo's layers, moved by the posed mesh.

Inside the person the mesh says where every pixel of the photo goes; around it a diffused field carries hair and
shoulders along, so that the outline of the photo lands on the outline of the posed mesh. The mouth's inside and the
eyeballs are layers of their own.
"""

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8

from expportrait_cli.generate.bones import Bones
from expportrait_cli.generate.diffuse import diffuse
from expportrait_cli.generate.inner import InnerLayers
from expportrait_cli.generate.layers import DEPTH_SLACK_M, NONE, STILL_PX, Layers, draw, lids, parts_drawn, triangle_ids, triangle_parts
from expportrait_cli.head import HeadModel
from expportrait_cli.render.rasterizer import interpolate

SKIN = 0
HAIR_DEPTH_M = -0.08
"""Depth in the head frame at which hair beyond the mesh is taken to lie: behind the ears."""
FADE_FACES = 0.35
"""Distance from the mesh, in face heights, over which its motion fades into the far field's."""
BARE_FACES = (0.03, 0.08)
"""Motions, in face heights, between which the safe plate takes over from the close one."""
UNFOLDED = (1.3, 2.2)
"""Growth of a lid's triangles from which, and up to which, skin takes the place of the lashes and shadow on them."""
SITS_FACES = (0.9, 2.2)
"""Face heights below the chin over which motion ends: what shoulders do says little of arms and lap."""
RIM = (0.03, 0.12, 7.0)
"""Least and added width of what may lie outside the mesh, in face heights, and the turn (deg) that takes the added
part away: when the head turns, hair that was beside it goes behind it."""


def similarity(source: Float[np.ndarray, "P 2"], target: Float[np.ndarray, "P 2"]) -> Float[np.ndarray, "2 3"]:
    """Least-squares similarity that takes `source` to `target`."""
    s, t = source - source.mean(0), target - target.mean(0)
    norm = (s**2).sum()
    a = (s * t).sum() / norm
    b = (s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0]).sum() / norm
    turn = np.array([[a, -b], [b, a]])
    return np.c_[turn, target.mean(0) - turn @ source.mean(0)]


def shown_areas(verts_cam: Float32[np.ndarray, "V 3"], triangles: Int64[np.ndarray, "F 3"]) -> Float[np.ndarray, " F"]:
    """Areas at which triangles are seen, in focal lengths squared; 0 for those that turn away."""
    a, b, c = (verts_cam[triangles][..., :2] / verts_cam[triangles][..., 2:]).transpose(1, 0, 2)
    # Outward is counter-clockwise for y up; the camera's y is down.
    cross = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    return np.maximum(-cross / 2, 0.0)


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
        start, end = (chin_y_px + f * face_height_px for f in SITS_FACES)
        sits = np.clip((self.grid[..., 1:] - start) / (end - start), 0, 1)
        self.moves = 1 - sits * sits * (3 - 2 * sits)
        self.triangle_part = triangle_parts(head)
        faces = head.dense_faces.numpy()
        self.lid_index = np.flatnonzero(lids(head)[faces].any(1))
        self.lid_triangles = faces[self.lid_index]
        self.lid_areas = shown_areas(layers.verts, self.lid_triangles) + 1e-8
        self.attributes = torch.from_numpy(np.c_[layers.xy, layers.depth, layers.cosine, layers.colour].astype(np.float32))[None]
        ring = np.linspace(0, 2 * np.pi, 8, endpoint=False)
        self.head_ring = np.c_[0.09 * np.cos(ring), 0.11 * np.sin(ring) + 0.02, np.full(8, HAIR_DEPTH_M)]
        self.torso_ring = np.c_[0.17 * np.cos(ring), 0.08 * np.sin(ring) - 0.12, np.full(8, -0.02)]

    def frame(self, verts_cam: Float32[np.ndarray, "V 3"], bones: Bones) -> UInt8[np.ndarray, "H W 3"]:
        """Paint one frame from the posed vertices."""
        rast = draw(verts_cam, self.faces, self.layers.camera)
        part = parts_drawn(rast, self.triangle_part)
        source = interpolate(self.attributes, rast, self.faces)[0].numpy()
        seen = self._seen(part, source)
        field = self._field(part, source, seen, bones)
        x, y = field[..., 0] - 0.5, field[..., 1] - 0.5
        # Remap samples at integer centres: half a pixel off would soften and shift the whole film.
        alpha = cv2.remap(self.layers.alpha, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        turned = self._turned(bones)
        alpha = self._rim(alpha, part, turned)
        person = cv2.remap(self.layers.foreground, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        hidden = np.maximum((1 - cv2.blur(seen, (5, 5))) * turned, self._unfolded(verts_cam, rast)) * (part == SKIN)
        person = person + hidden[..., None] * (source[..., 4:] - person)
        weight = alpha[..., None]
        moved = np.linalg.norm(field - self.grid, axis=-1)
        frame = person * weight + self._behind(moved) * (1 - weight)
        frame = self._settle(frame, moved)
        frame = self.inner.paint(frame, bones, rast, part, source)
        return np.clip(frame + 0.5, 0, 255).astype(np.uint8)

    def _seen(self, part, source):
        """How well the photo shows the skin that each pixel shows: 0 hidden or grazing, 1 facing the camera."""
        x, y = source[..., 0] - 0.5, source[..., 1] - 0.5
        nearest = cv2.remap(self.layers.zbuffer, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
        seen = np.clip((source[..., 3] - 0.08) / 0.2, 0, 1) * (source[..., 2] < nearest + DEPTH_SLACK_M)
        return (seen * (part == SKIN)).astype(np.float32)

    def _field(self, part, source, weight, bones):
        """Where in the photo each pixel comes from, px."""
        skin = part == SKIN
        far = self._far(bones)
        residual = np.where(skin[..., None], source[..., :2] - far, 0).astype(np.float32)
        # Half the resolution is enough for what is smooth by construction.
        height, width = weight.shape
        half = ((width + 1) // 2, (height + 1) // 2)
        small_weight = cv2.resize(weight, half, interpolation=cv2.INTER_AREA)
        small = cv2.resize(residual * weight[..., None], half, interpolation=cv2.INTER_AREA)
        spread = diffuse(small / np.maximum(small_weight, 1e-3)[..., None], small_weight)
        spread = cv2.resize(spread, (width, height), interpolation=cv2.INTER_LINEAR)
        away = cv2.distanceTransform((part == NONE).astype(np.uint8), cv2.DIST_L2, 3)
        fade = np.exp(-((away / (FADE_FACES * self.face_height_px)) ** 2))
        field = far + spread * fade[..., None]
        known = weight[..., None]
        field = np.where(known > 0, source[..., :2] * known + field * (1 - known), field)
        return (self.grid + self.moves * (field - self.grid)).astype(np.float32)

    def _behind(self, moved):
        """The background: the photo's own as far as the motion is too small to bare what mattes miss."""
        low, high = (f * self.face_height_px for f in BARE_FACES)
        safe = cv2.blur(np.clip((moved - low) / (high - low), 0, 1).astype(np.float32), (9, 9))[..., None]
        return self.layers.close_plate + safe * (self.layers.plate.astype(np.float32) - self.layers.close_plate)

    def _settle(self, frame, moved):
        """Where nothing moves by a pixel the photo itself is the best picture."""
        low, high = STILL_PX
        moved = np.clip((moved - low) / (high - low), 0, 1).astype(np.float32)
        weight = cv2.blur(moved, (5, 5))[..., None]
        return self.layers.photo * (1 - weight) + frame * weight

    def _unfolded(self, verts_cam, rast):
        """How far each pixel shows skin of a lid that the photo has folded away."""
        area = shown_areas(verts_cam, self.lid_triangles) / self.lid_areas
        low, high = UNFOLDED
        share = np.zeros(len(self.triangle_part), np.float32)
        share[self.lid_index] = np.clip((area - low) / (high - low), 0, 1)
        if not share.any():
            return np.float32(0)
        ids = triangle_ids(rast)
        return cv2.blur(np.where(ids >= 0, share[np.maximum(ids, 0)], 0).astype(np.float32), (3, 3))

    def _far(self, bones):
        """Motion beyond the mesh: the hair's above, the torso's below."""
        maps = []
        for ring, now, then in (
            (self.head_ring, bones.head, self.reference.head),
            (self.torso_ring, bones.torso, self.reference.torso),
        ):
            maps.append(similarity(self._project(ring, now), self._project(ring, then)))
        start = self.chin_y_px
        down = np.clip((self.grid[..., 1] - start) / (0.5 * self.face_height_px), 0, 1)
        down = (down * down * (3 - 2 * down))[..., None].astype(np.float32)
        above, below = (cv2.transform(self.grid, m.astype(np.float32)) for m in maps)
        return above * (1 - down) + below * down

    def _project(self, points, bone):
        camera = self.layers.camera
        cam = points @ bone[:, :3].T + bone[:, 3]
        return cam[:, :2] / cam[:, 2:] * camera.focal_px + [camera.cx, camera.cy]

    def _turned(self, bones):
        """0 for a head that faces as in the photo, 1 for one that shows what the photo does not."""
        turn = bones.head[:, :3] @ self.reference.head[:, :3].T
        angle = np.degrees(np.arccos(np.clip(turn[2, 2], -1, 1)))
        return 1 - float(np.exp(-((angle / RIM[2]) ** 2)))

    def _rim(self, alpha, part, turned):
        """Let the posed mesh, not the photo's matte, say where a turned head ends."""
        least, added, _ = RIM
        limit = self.face_height_px * (least + added * (1 - turned))
        away = cv2.distanceTransform((part == NONE).astype(np.uint8), cv2.DIST_L2, 3)
        below = np.clip((self.grid[..., 1] - self.chin_y_px) / (0.3 * self.face_height_px), 0, 1)
        cut = np.clip((limit - away) / (0.02 * self.face_height_px) + 1, 0, 1)
        alpha = alpha * np.maximum(cut, below)
        covered = cv2.GaussianBlur(cv2.erode((part != NONE).astype(np.float32), np.ones((3, 3))), (0, 0), 1.0)
        return np.maximum(alpha, covered * turned * (1 - below)).astype(np.float32)
