"""Compose a frame of the proxy film: the photo's layers on the posed mesh, lids, mouth."""

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8

from expportrait_cli.geometry.rotations import similarity
from expportrait_cli.head import HeadModel
from expportrait_cli.head.facemesh import lid_travel
from expportrait_cli.head.fitted import Bones
from expportrait_cli.painting.proxy.anatomy import Between, Mouth
from expportrait_cli.painting.proxy.eyes import Eyes
from expportrait_cli.painting.proxy.glimpse import Glimpse, Glimpses
from expportrait_cli.painting.proxy.hidden import NO_MAP, Hidden
from expportrait_cli.painting.proxy.layers import (
    DEPTH_SLACK_M,
    NONE,
    SKIN,
    STILL_PX,
    Layers,
    diffuse,
    draw,
    mix,
    parts_drawn,
    ramp,
    triangle_ids,
    triangle_parts,
)
from expportrait_cli.painting.proxy.lids import Lid
from expportrait_cli.painting.proxy.lips import Lips
from expportrait_cli.render.rasterizer import interpolate

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
BORDER_FACES = 0.04
"""Width, in face heights, over which hair that the photo cuts off fades out beyond it."""
HAIR_FRINGE = 0.018
"""Width, in face heights, over which hair that the photo hides thins out towards the outline of the mesh."""
PARTED_M = (0.0006, 0.002)
"""Heights of the opening between the lips, m, between which what is inside fades in."""
SKIN_COLOUR = np.array([205.0, 200.0, 190.0], np.float32)
"""Colour of the skin of a face that lies outside of its photo."""


class Compositor:
    """Paint frames from a prepared photo: one call a frame, the same input always the same frame."""

    def __init__(
        self,
        layers: Layers,
        head: HeadModel,
        reference: Bones,
        seam: Float[np.ndarray, " 3"],
        *,
        irises: Float[np.ndarray, "2 3"],
        face_height_px: float,
        chin_y_px: float,
        glimpses: Glimpses | None = None,
    ):
        """`seam` is where the person's closed lips meet, in the head frame; `irises` as `Eyes` takes them."""
        self.layers, self.head, self.reference = layers, head, reference
        self.lips = Lips(layers, head)
        self.inner = InnerLayers(layers, head, reference, seam, self.lips.colour, glimpses)
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
        self.eyes = Eyes(
            layers, head, irises=irises, lids=self.lids, skin=self.inner.skin, head_turn=reference.head[:, :3]
        )
        self.hidden = Hidden(
            head,
            layers.camera,
            layers.foreground,
            layers.alpha,
            layers.hair,
            layers.hairy,
            depth_m=float(layers.depth[head.scalp].mean()),
            face_height_px=face_height_px,
        )
        columns = (layers.xy, layers.depth, layers.cosine, layers.colour, self.hidden.attributes)
        self.attributes = torch.from_numpy(np.column_stack(columns).astype(np.float32))[None]
        ring = np.linspace(0, 2 * np.pi, 8, endpoint=False)
        self.head_ring = np.c_[0.09 * np.cos(ring), 0.11 * np.sin(ring) + 0.02, np.full(8, HAIR_DEPTH_M)]
        self.torso_ring = np.c_[0.17 * np.cos(ring), 0.08 * np.sin(ring) - 0.12, np.full(8, -0.02)]

    def frame(
        self, verts_cam: Float32[np.ndarray, "V 3"], bones: Bones, glimpse: Glimpse | None = None
    ) -> tuple[UInt8[np.ndarray, "H W 3"], Float32[np.ndarray, "H W"]]:
        """Paint one frame, and say how far each pixel is a guess (`Sketch.guess`); `glimpse` is the driver's mouth."""
        layers = self.layers
        rast = draw(verts_cam, self.faces, layers.camera)
        part = self.lips.inner(parts_drawn(rast, self.triangle_part), rast, verts_cam)
        skin, bare = part == SKIN, (part == NONE).astype(np.uint8)
        source = interpolate(self.attributes, rast, self.faces)[0].numpy()
        seen = self._seen(skin, source)
        away = cv2.distanceTransform(bare, cv2.DIST_L2, 3)
        step = self._step(skin, source, seen, away, bones)
        field = self.grid + step
        # Beyond the photo's border its mirror image goes on: the last column alone would draw streaks.
        # Remap samples at integer centres: half a pixel off would soften and shift the whole film.
        field -= 0.5
        alpha = cv2.remap(layers.alpha, field, NO_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        turned, detail = self._turned(bones), self.hidden.detail(source)
        cover = self.hidden.cover(source, detail, bare, HAIR_FRINGE * self.face_height_px)
        alpha = self._rim(self._within(alpha, field, cover), cover, away, turned)
        person = cv2.remap(layers.foreground, field, NO_MAP, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        self.lips.clean(person, field, verts_cam)
        unfolded = [lid.unfolded(verts_cam) for lid in self.lids]
        believed = cv2.blur(self.hidden.believed(seen, source), (5, 5))
        hidden = np.maximum((1 - believed) * turned, self._lid_skin(unfolded, rast)) * skin
        if hidden.any():
            for lid in self.lids:
                lid.skin(source[..., 4:7], rast, verts_cam)
            person = mix(person, self.hidden.colours(source, detail), hidden)
        moved = cv2.magnitude(step[..., 0], step[..., 1])
        frame = mix(self._behind(moved), person, alpha)
        low, high = STILL_PX
        # Where nothing moves by a pixel the photo itself is the best picture.
        moves = cv2.blur(np.clip((moved - low) / (high - low), 0, 1), (5, 5))
        frame = mix(layers.photo, frame, moves)
        # Skin, and background, that the photo hides; and outlines, where the matte is a guess.
        bared = (1 - alpha) * layers.alpha
        guess = (moves * np.maximum(np.maximum(hidden, bared), 4 * alpha * (1 - alpha))).astype(np.float32)
        between = Between(self.lips.contours(verts_cam), glimpse) if glimpse is not None else None
        self.inner.paint(frame, guess, bones, part, source, between)
        self.eyes.paint(frame, guess, part, verts_cam, bones.head[:, :3])
        self.lips.paint_seam(frame, verts_cam)
        for lid in self.lids:
            lid.paint_lashes(frame, verts_cam)
        return frame, guess

    def _seen(self, skin, source):
        """Weight of the photo for the skin in each pixel: 0 hidden or grazing there, 1 facing its camera."""
        at = source[..., :2] - 0.5
        nearest = cv2.remap(self.layers.zbuffer, at, NO_MAP, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
        facing = np.clip((source[..., 3] - 0.08) / 0.2, 0, 1)
        return facing * (source[..., 2] < nearest + DEPTH_SLACK_M) * skin

    def _step(self, skin, source, seen, away, bones):
        """Steps (px) from each pixel to the place in the photo that its colour comes from."""
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

    def _within(self, alpha, field, cover):
        """Fade the matte out beyond the photo's border, where only the mesh is known."""
        last = np.array(alpha.shape[::-1], np.float32) - 1
        beyond = np.maximum(np.maximum(-field, field - last), 0).max(-1) / (BORDER_FACES * self.face_height_px)
        return alpha * np.maximum(np.maximum(np.exp(-(beyond**2)), cover), self.below)

    def _behind(self, moved):
        """The background: the photo's own as far as the motion is too small to bare what mattes miss."""
        low, high = (f * self.face_height_px for f in BARE_FACES)
        safe = cv2.blur(np.clip((moved - low) / (high - low), 0, 1), (9, 9))
        return mix(self.layers.close_plate, self.layers.plate, safe)

    def _lid_skin(self, unfolded, rast):
        """Share (0..1) of each pixel that shows skin of a lid that the photo has folded away."""
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

    def _rim(self, alpha, cover, away, turned):
        """Let the posed mesh, not the photo's matte, say where a turned head ends."""
        least, added, _ = RIM
        limit = self.face_height_px * (least + added * (1 - turned))
        cut = np.clip((limit - away) / (0.02 * self.face_height_px) + 1, 0, 1)
        alpha = alpha * np.maximum(cut, self.below)
        if turned < 0.02:
            return alpha
        return np.maximum(alpha, cover * turned * (1 - self.below))


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
        soft *= self._parted(mask[box], bones)
        guess[box] = np.maximum(guess[box], soft)
        soft = soft[..., None]
        frame[box] = np.clip(frame[box] * (1 - soft) + colour * soft + 0.5, 0, 255).astype(np.uint8)

    def _parted(self, mask, bones):
        """0 in columns of pixels where the lips all but meet: a sliver of the mouth is the mesh's, and no gap."""
        metre = self.layers.camera.focal_px / max(float(bones.head[2, 3]), 1e-3)
        height = cv2.blur(mask.sum(0, dtype=np.float32)[None], (5, 1)) / metre
        return ramp(height, PARTED_M).astype(np.float32)

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
