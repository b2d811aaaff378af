"""The compositor's frame in plain NumPy and OpenCV, layer by layer: the oracle of its kernels."""

import cv2
import numpy as np
import torch

from expportrait_cli.painting.proxy.anatomy import Between
from expportrait_cli.painting.proxy.compositor import (
    BARE_FACES,
    BORDER_FACES,
    FADE_FACES,
    HAIR_FRINGE,
    RIM,
    SITS_FACES,
    Compositor,
)
from expportrait_cli.painting.proxy.hidden import NO_MAP, SHADE, Hidden
from expportrait_cli.painting.proxy.layers import (
    DEPTH_SLACK_M,
    NONE,
    SKIN,
    STILL_PX,
    diffuse,
    draw,
    mix,
    parts_drawn,
    ramp,
    triangle_ids,
)
from expportrait_cli.render.rasterizer import interpolate


class PlainCompositor:
    """Paints as the compositor that it is made from."""

    def __init__(self, own: Compositor):
        self.own, self.layers = own, own.layers
        height, width = own.layers.alpha.shape
        self.grid = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), -1).astype(np.float32)
        half_y, half_x = (height + 1) // 2, (width + 1) // 2
        half = np.stack(np.meshgrid(np.arange(half_x) * 2 + 1.0, np.arange(half_y) * 2 + 1.0), -1)
        self.half_grid = half.astype(np.float32)
        down = ramp(self.half_grid[..., 1:] - own.chin_y_px, (0.0, 0.5 * own.face_height_px))
        self.half_down = (down * down * (3 - 2 * down)).astype(np.float32)
        self.below = ramp(self.grid[..., 1] - own.chin_y_px, (0.0, 0.3 * own.face_height_px)).astype(np.float32)
        start, end = (own.chin_y_px + f * own.face_height_px for f in SITS_FACES)
        sits = ramp(self.grid[..., 1:], (start, end))
        self.moves = (1 - sits * sits * (3 - 2 * sits)).astype(np.float32)
        layers = own.layers
        columns = (layers.xy, layers.depth, layers.cosine, layers.colour, own.hidden.attributes)
        self.attributes = torch.from_numpy(np.column_stack(columns).astype(np.float32))[None]

    def frame(self, verts_cam, bones, glimpse=None):
        own, layers = self.own, self.layers
        rast = draw(verts_cam, own.faces, layers.camera)
        part = parts_drawn(rast, own.triangle_part)
        own.lips.inner(part, rast, verts_cam)
        skin, bare = part == SKIN, (part == NONE).astype(np.uint8)
        source = interpolate(self.attributes, rast, own.faces)[0].numpy()
        seen = self._seen(skin, source)
        away = cv2.distanceTransform(bare, cv2.DIST_L2, 3)
        step = self._step(skin, source, seen, away, bones)
        # Remap samples at integer centres.
        field = self.grid + step - np.float32(0.5)
        alpha = cv2.remap(layers.alpha, field, NO_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        turned, detail = own._turned(bones), self._detail(source)
        covered = cover(source, detail, bare, HAIR_FRINGE * own.face_height_px)
        alpha = self._rim(self._within(alpha, field, covered), covered, away, turned)
        person = cv2.remap(layers.foreground, field, NO_MAP, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        own.lips.clean(person, field, verts_cam)
        trusted = cv2.blur(believed(own.hidden, seen, source), (5, 5))
        hidden = np.maximum((1 - trusted) * turned, self._lid_skin(rast, verts_cam)) * skin
        colour = np.ascontiguousarray(source[..., 4:7])
        for lid in own.lids:
            lid.skin(colour, rast, verts_cam)
        shaded = colour * (1 + detail - SHADE * source[..., 9])[..., None]
        person = mix(person, np.clip(shaded + 0.5, 0, 255).astype(np.uint8), hidden)
        moved = cv2.magnitude(step[..., 0], step[..., 1])
        frame = mix(self._behind(moved), person, alpha)
        moves = cv2.blur(ramp(moved, STILL_PX), (5, 5))
        frame = mix(layers.photo, frame, moves)
        bared = (1 - alpha) * layers.alpha
        guess = (moves * np.maximum(np.maximum(hidden, bared), 4 * alpha * (1 - alpha))).astype(np.float32)
        between = Between(own.lips.contours(verts_cam), glimpse) if glimpse is not None else None
        own.inner.paint(frame, guess, bones, part, source[..., :2] - self.grid, between)
        own.eyes.paint(frame, guess, part, verts_cam, bones.head[:, :3])
        own.lips.paint_seam(frame, verts_cam)
        for lid in own.lids:
            lid.paint_lashes(frame, verts_cam)
        return frame, guess

    def _seen(self, skin, source):
        at = source[..., :2] - 0.5
        nearest = cv2.remap(self.layers.zbuffer, at, NO_MAP, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
        facing = np.clip((source[..., 3] - 0.08) / 0.2, 0, 1)
        return facing * (source[..., 2] < nearest + DEPTH_SLACK_M) * skin

    def _step(self, skin, source, seen, away, bones):
        own = source[..., :2] - self.grid
        height, width = seen.shape
        half = (self.half_grid.shape[1], self.half_grid.shape[0])
        weight = cv2.resize(seen, half, interpolation=cv2.INTER_AREA)
        carried = cv2.resize(cv2.merge([own[..., 0] * seen, own[..., 1] * seen]), half, interpolation=cv2.INTER_AREA)
        above, below = (cv2.transform(self.half_grid, m.astype(np.float32)) for m in self.own._far(bones))
        far = above + self.half_down * (below - above) - self.half_grid
        beyond = diffuse(carried / np.maximum(weight, 1e-3)[..., None] - far, weight)
        reach = cv2.resize(away, half, interpolation=cv2.INTER_AREA) / (FADE_FACES * self.own.face_height_px)
        beyond = far + beyond * np.exp(-(reach**2))[..., None]
        step = cv2.resize(beyond, (width, height), interpolation=cv2.INTER_LINEAR)
        step += (seen * skin)[..., None] * (own - step)
        return step * self.moves

    def _within(self, alpha, field, covered):
        last = np.array(alpha.shape[::-1], np.float32) - 1
        beyond = np.maximum(np.maximum(-field, field - last), 0).max(-1) / (BORDER_FACES * self.own.face_height_px)
        return alpha * np.maximum(np.maximum(np.exp(-(beyond**2)), covered), self.below)

    def _rim(self, alpha, covered, away, turned):
        least, added, _ = RIM
        limit = self.own.face_height_px * (least + added * (1 - turned))
        cut = np.clip((limit - away) / (0.02 * self.own.face_height_px) + 1, 0, 1)
        alpha = alpha * np.maximum(cut, self.below)
        if turned < 0.02:
            return alpha
        return np.maximum(alpha, covered * turned * (1 - self.below)).astype(np.float32)

    def _behind(self, moved):
        low, high = (f * self.own.face_height_px for f in BARE_FACES)
        safe = cv2.blur(ramp(moved, (low, high)), (9, 9))
        return mix(self.layers.close_plate, self.layers.plate, safe)

    def _lid_skin(self, rast, verts_cam):
        share = np.zeros(len(self.own.triangle_part), np.float32)
        for lid in self.own.lids:
            share[lid.triangles] = lid.unfolded(verts_cam)
        ids = triangle_ids(rast)
        return cv2.blur(np.where(ids >= 0, share[np.maximum(ids, 0)], 0).astype(np.float32), (3, 3))

    def _detail(self, source):
        strands = self.own.hidden.strands
        if strands is None:
            return np.zeros(source.shape[:2], np.float32)
        place = np.ascontiguousarray(source[..., 7:9])
        found = cv2.remap(strands, place, NO_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        return found * source[..., 9]


def believed(hidden: Hidden, seen: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Weight of the photo: `seen` without pixels of the background, and without an ear or cheek on hair."""
    at = np.ascontiguousarray(source[..., :2] - 0.5)
    maps = cv2.merge([hidden.solid, hidden.hair])
    solid, hair = cv2.split(cv2.remap(maps, at, NO_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
    return seen * solid * (1 - source[..., -1] * (1 - hair))


def cover(source: np.ndarray, detail: np.ndarray, bare: np.ndarray, width_px: float) -> np.ndarray:
    """Share of each pixel that the mesh covers: skin up to its outline, hair thins out before it."""
    sharp = cv2.GaussianBlur(1 - cv2.dilate(bare, np.ones((3, 3), np.uint8)).astype(np.float32), (0, 0), 1.0)
    inward = cv2.distanceTransform(1 - bare, cv2.DIST_L2, 3)
    soft = np.clip(inward / max(width_px, 1.0) + detail, 0, 1)
    return sharp + source[..., 9] * (np.minimum(sharp, soft) - sharp)
