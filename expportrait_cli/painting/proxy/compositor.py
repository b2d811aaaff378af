"""Compose a frame of the proxy film: the photo's layers on the posed mesh, lids, mouth."""

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8

from expportrait_cli.geometry.rotations import similarity
from expportrait_cli.head import HeadModel, landmarks
from expportrait_cli.head.facemesh import LIP_CORNERS, LOWER_LIPS, UPPER_LIPS, lid_travel
from expportrait_cli.head.fitted import Bones
from expportrait_cli.painting.proxy.eyes import Eyes
from expportrait_cli.painting.proxy.hidden import Hidden
from expportrait_cli.painting.proxy.layers import (
    DEPTH_SLACK_M,
    NO_MAP,
    NONE,
    SKIN,
    STILL_PX,
    SUBPIXEL_BITS,
    Layers,
    diffuse,
    draw,
    fixed,
    membrane,
    mix,
    parts_drawn,
    ramp,
    triangle_ids,
    triangle_parts,
)
from expportrait_cli.painting.proxy.lids import Lid
from expportrait_cli.painting.proxy.mouth import InnerLayers
from expportrait_cli.render.rasterizer import interpolate

OPEN_M = 0.0015
"""Gap between the lips from which the mouth of the photo counts as open, m."""
MOVED = (0.02, 0.06)
"""Mean motion of the inner lips relative to the photo, in mouth widths, between which the photo's teeth and shadows
are faded out of lips and cheeks: they belong to the photo's mouth, and not to the one that is painted."""
SEAM_M, SEAM_WIDTH_M, SEAM = (0.0006, 0.0016), 0.0008, 0.5
"""Gaps between which the line of shut lips fades, its width, and its brightness, as a share of the lips'."""
DEEP_M = 0.02
"""Distance behind the lips from which skin between them is the throat's, seen through the mesh."""
BESIDE = 0.1
"""How far beside the lips, in mouth widths, what is inside them may be seen."""
LIP_SHADOW = (0.09, 0.03)
"""How far, in mouth widths across and up, teeth and shadow of an open mouth reach over what the mesh takes for lips."""
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


def lips_together(
    foreground: UInt8[np.ndarray, "H W 3"], opening: Bool[np.ndarray, "H W"], width_px: float
) -> UInt8[np.ndarray, "H W 3"]:
    """The picture without what an open mouth shows and the rim that it shades: lips and cheeks go on in its place.

    `width_px` is the mouth's. Beside its corners the shadow reaches farther than above and below it.
    """
    across, up = (2 * max(round(share * width_px), 1) + 1 for share in LIP_SHADOW)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (across, up))
    rows, cols = np.nonzero(cv2.dilate(opening.astype(np.uint8), kernel))
    if not len(rows):
        return foreground
    margin = max(round(0.3 * width_px), 4)
    box = np.s_[max(rows.min() - margin, 0) : rows.max() + margin, max(cols.min() - margin, 0) : cols.max() + margin]
    known = 1 - cv2.dilate(opening[box].astype(np.uint8), kernel).astype(np.float32)
    out = foreground.copy()
    out[box] = np.rint(membrane(foreground[box].astype(np.float32), known)).clip(0, 255).astype(np.uint8)
    return out


class Lips:
    """Both lips, compared with how the photo shows them."""

    def __init__(self, layers: Layers, head: HeadModel):
        """Nothing to do where the photo has them shut."""
        self.head, self.camera = head, layers.camera
        self.rims = np.array([(LIP_CORNERS[0], *row[-1], LIP_CORNERS[1]) for row in (UPPER_LIPS, LOWER_LIPS)])
        self.open_m, self.shape = self._gap_m(layers.verts), self._shape(layers.verts)
        self.width_m = float(np.ptp(self.shape[:, 0]))
        self.cavity = head.part_names.index("mouth_cavity")
        self.inside = [head.part_names.index(name) for name in ("teeth_upper", "teeth_lower", "mouth_cavity")]
        xy = self._px(layers.verts)
        width_px = float(np.linalg.norm(xy[0, -1] - xy[0, 0]))
        self.picture = lips_together(layers.foreground, np.isin(layers.part, self.inside), width_px)
        outer = self.camera.project(landmarks(head, torch.from_numpy(layers.verts))[[*UPPER_LIPS[1], *LOWER_LIPS[1]]])
        row = np.clip(outer.numpy()[:, 1].astype(int), 0, self.picture.shape[0] - 1)
        column = np.clip(outer.numpy()[:, 0].astype(int), 0, self.picture.shape[1] - 1)
        self.seam = SEAM * np.median(self.picture[row, column], axis=0).astype(np.float32)

    def _points(self, verts_cam):
        return landmarks(self.head, torch.from_numpy(verts_cam)).numpy()[self.rims]

    def _px(self, verts_cam):
        return np.stack([self.camera.project(torch.from_numpy(rim)).numpy() for rim in self._points(verts_cam)])

    def _shape(self, verts_cam):
        """The rims about their middle as the camera sees them, m."""
        points = self._points(verts_cam)[..., :2].reshape(-1, 2)
        return points - points.mean(0)

    def _gap_m(self, verts_cam) -> float:
        upper, lower = self._points(verts_cam)[..., :2]
        return float(np.linalg.norm(upper - lower, axis=-1)[1:-1].mean())

    def inner(
        self, part: UInt8[np.ndarray, "H W"], rast: torch.Tensor, verts_cam: Float32[np.ndarray, "V 3"]
    ) -> UInt8[np.ndarray, "H W"]:
        """The parts drawn, without a mouth beside the lips or skin of the neck between them."""
        xy = self._px(verts_cam)
        reach = max(round(BESIDE * float(np.linalg.norm(xy[0, -1] - xy[0, 0]))), 1)
        outline = np.rint(np.concatenate([xy[0], xy[1][::-1]]) - 0.5).astype(np.int32)
        corner = np.maximum(outline.min(0) - reach, 0)
        box = np.s_[corner[1] : max(outline[:, 1].max() + reach, 0), corner[0] : max(outline[:, 0].max() + reach, 0)]
        part, astray = part.copy(), np.isin(part, self.inside)
        if part[box].size:
            between = np.zeros(part[box].shape, np.uint8)
            cv2.fillPoly(between, [outline - corner], (1,))
            ids = triangle_ids(rast[:, box[0], box[1]])
            depth = np.where(ids >= 0, verts_cam[self.head.dense_faces.numpy()[np.maximum(ids, 0), 0], 2], 0)
            behind = depth > float(self._points(verts_cam)[..., 2].max()) + DEEP_M
            part[box][(between > 0) & (part[box] == SKIN) & behind] = self.cavity
            astray[box] &= cv2.dilate(between, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) == 0
        part[astray] = NONE
        return part

    def clean(
        self,
        person: UInt8[np.ndarray, "H W 3"],
        field: Float32[np.ndarray, "H W 2"],
        verts_cam: Float32[np.ndarray, "V 3"],
    ) -> None:
        """Take the photo's teeth and shadows off lips that lie otherwise than there, in place."""
        moved = self._shape(verts_cam) - self.shape
        share = float(ramp(np.linalg.norm(moved, axis=-1).mean() / self.width_m, MOVED))
        if share == 0 or self.open_m < OPEN_M:
            return
        xy = self._px(verts_cam).reshape(-1, 2)
        low, high = xy.min(0), xy.max(0)
        margin = 0.5 * float(high[0] - low[0])
        left, top = np.maximum(low - margin, 0).astype(int)
        right, bottom = (high + margin).astype(int)
        box = np.s_[top : max(bottom, top), left : max(right, left)]
        if person[box].size:
            closed = cv2.remap(self.picture, field[box], NO_MAP, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
            person[box] = mix(person[box], closed, np.full(closed.shape[:2], share, np.float32))

    def paint_seam(self, frame: UInt8[np.ndarray, "H W 3"], verts_cam: Float32[np.ndarray, "V 3"]) -> None:
        """Draw the line where lips meet that the photo has apart, in place."""
        share = 1 - float(ramp(self._gap_m(verts_cam), SEAM_M))
        if share == 0 or self.open_m < OPEN_M:
            return
        upper, lower = self._px(verts_cam) - 0.5
        depth = float(self._points(verts_cam)[..., 2].mean())
        half = 0.5 * SEAM_WIDTH_M * self.camera.focal_px / depth * np.sqrt(np.sin(np.linspace(0, np.pi, len(upper))))
        shift = np.c_[np.zeros(len(half)), half]
        canvas = np.zeros(frame.shape[:2], np.uint8)
        cv2.fillPoly(canvas, [fixed([*(upper - shift), *(lower + shift)[::-1]])], (255.0,), cv2.LINE_AA, SUBPIXEL_BITS)
        rows, cols = np.flatnonzero(canvas.any(1)), np.flatnonzero(canvas.any(0))
        if not len(rows):
            return
        box = np.s_[max(rows[0] - 2, 0) : rows[-1] + 3, max(cols[0] - 2, 0) : cols[-1] + 3]
        soft = share * cv2.GaussianBlur(canvas[box].astype(np.float32) / 255, (0, 0), 0.7)[..., None]
        frame[box] = np.rint(frame[box] * (1 - soft) + self.seam * soft).astype(np.uint8)


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
    ):
        """`seam` is where the person's closed lips meet, in the head frame; `irises` as `Eyes` takes them."""
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
        self.eyes = Eyes(
            layers, head, irises=irises, lids=self.lids, skin=self.inner.skin, head_turn=reference.head[:, :3]
        )
        self.lips = Lips(layers, head)
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
        self, verts_cam: Float32[np.ndarray, "V 3"], bones: Bones
    ) -> tuple[UInt8[np.ndarray, "H W 3"], Float32[np.ndarray, "H W"]]:
        """Paint one frame from the posed vertices, and say how far each pixel is a guess (`Sketch.guess`)."""
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
        self.inner.paint(frame, guess, bones, part, source)
        self.eyes.paint(frame, guess, part, verts_cam, bones.head[:, :3])
        self.lips.paint_seam(frame, verts_cam)
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

    def _within(self, alpha, field, cover):
        """What the photo's border cuts off is not known: of a head, only the mesh goes on beyond it."""
        last = np.array(alpha.shape[::-1], np.float32) - 1
        beyond = np.maximum(np.maximum(-field, field - last), 0).max(-1) / (BORDER_FACES * self.face_height_px)
        return alpha * np.maximum(np.maximum(np.exp(-(beyond**2)), cover), self.below)

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

    def _rim(self, alpha, cover, away, turned):
        """Let the posed mesh, not the photo's matte, say where a turned head ends."""
        least, added, _ = RIM
        limit = self.face_height_px * (least + added * (1 - turned))
        cut = np.clip((limit - away) / (0.02 * self.face_height_px) + 1, 0, 1)
        alpha = alpha * np.maximum(cut, self.below)
        if turned < 0.02:
            return alpha
        return np.maximum(alpha, cover * turned * (1 - self.below))
