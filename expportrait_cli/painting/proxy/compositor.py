"""Compose a frame of the proxy film: the photo's layers on the posed mesh, lids, mouth."""

import threading

import cv2
import numpy as np
import warp as wp
from jaxtyping import Float, Float32, UInt8

from expportrait_cli.geometry.rotations import similarity
from expportrait_cli.head import HeadModel
from expportrait_cli.head.facemesh import lid_travel
from expportrait_cli.head.fitted import Bones
from expportrait_cli.painting.proxy import kernels
from expportrait_cli.painting.proxy.anatomy import Between, Mouth
from expportrait_cli.painting.proxy.eyes import Eyes
from expportrait_cli.painting.proxy.folds import Creased, DriverFolds
from expportrait_cli.painting.proxy.glimpse import Glimpse, Glimpses
from expportrait_cli.painting.proxy.hidden import SHADE, Hidden
from expportrait_cli.painting.proxy.layers import (
    DEPTH_SLACK_M,
    NONE,
    STILL_PX,
    Layers,
    draw,
    ramp,
    spread,
    triangle_ids,
    triangle_parts,
)
from expportrait_cli.painting.proxy.lids import Lid
from expportrait_cli.painting.proxy.lips import Lips

HAIR_DEPTH_M = -0.08
"""Depth in the head frame, m, at which hair beyond the mesh is assumed to lie: behind the ears."""
FADE_FACES = 0.35
"""Distance from the mesh, in face heights, over which the mesh's motion fades into that of hair and torso beyond it."""
BARE_FACES = (0.03, 0.08)
"""Displacement of a pixel, in face heights: below the first value the background comes from the close plate, above the
second from the safe one (see `Layers`)."""
SITS_FACES = (0.9, 2.2)
"""Distances below the chin, in face heights, between which the torso's motion fades out: the motion of the shoulders
does not determine that of arms and lap."""
RIM = (0.03, 0.12, 7.0)
"""Reach of the person's matte beyond the mesh, in face heights: a least one, and an added one for a head turned as in
the photo, which falls as exp(-(rotation / third)^2), third in degrees: hair beside a head moves behind it in a turn."""
BORDER_FACES = 0.04
"""Width, in face heights, over which hair that is cut off by the photo's border fades out beyond the border."""
HAIR_FRINGE = 0.018
"""Width, in face heights, over which painted hair thins out towards the outline of the mesh."""
PARTED_M = (0.0006, 0.002)
"""Height of the opening between the lips, m, at which the inside of the mouth has opacity 0, and 1."""
SKIN_COLOUR = np.array([205.0, 200.0, 190.0], np.float32)
"""Default skin colour, RGB, for a face that lies outside of its photo."""


class Compositor:
    """Paint frames from a prepared photo, one a call; deterministic."""

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
        folds: DriverFolds | None = None,
    ):
        """`seam` is where the person's closed lips meet, in the head frame; `irises` as `Eyes` takes them."""
        self.creased = Creased(layers, head, folds) if folds is not None else None
        self.layers, self.head, self.reference = layers, head, reference
        self.lips = Lips(layers, head)
        self.inner = InnerLayers(layers, head, reference, seam, self.lips.colour, glimpses)
        self.faces = head.dense_faces.int()
        self.face_height_px, self.chin_y_px = face_height_px, chin_y_px
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
        self.photo = self._prepared()
        self._own = threading.local()
        ring = np.linspace(0, 2 * np.pi, 8, endpoint=False)
        self.head_ring = np.c_[0.09 * np.cos(ring), 0.11 * np.sin(ring) + 0.02, np.full(8, HAIR_DEPTH_M)]
        self.torso_ring = np.c_[0.17 * np.cos(ring), 0.08 * np.sin(ring) - 0.12, np.full(8, -0.02)]

    def _prepared(self):
        """Pack the data that all frames share into a struct for the kernels."""
        layers, hidden, rows = self.layers, self.hidden, np.arange(self.layers.alpha.shape[0]) + 0.5
        spare = np.zeros((len(layers.xy), 2))
        columns = (layers.xy, layers.depth, layers.cosine, layers.colour, hidden.attributes, spare)
        start, end = (self.chin_y_px + f * self.face_height_px for f in SITS_FACES)
        strands = hidden.strands if hidden.strands is not None else np.zeros((1, 1), np.float32)
        single = {
            "matte": layers.alpha,
            "zbuffer": layers.zbuffer,
            "known": np.dstack([hidden.solid, hidden.hair]),
            "strands": strands,
            "attributes": np.column_stack(columns),
            "moves": 1 - _smooth(ramp(rows, (start, end))),
            "below": ramp(rows - self.chin_y_px, (0.0, 0.3 * self.face_height_px)),
            "down": _smooth(ramp(rows[: len(rows) + 1 >> 1] * 2 - self.chin_y_px, (0.0, 0.5 * self.face_height_px))),
        }
        return kernels.filled(
            kernels.Photo,
            photo=layers.photo,
            plate=layers.plate,
            close_plate=layers.close_plate,
            foreground=_with_room(layers.foreground),
            tri=self.faces.numpy(),
            triangle_part=self.triangle_part,
            **{name: array.astype(np.float32) for name, array in single.items()},
        )

    @property
    def _maps(self) -> "_Maps":
        """Memory for the maps of a frame; frames may be painted in several threads at a time."""
        if not hasattr(self._own, "maps"):
            height, width = self.layers.alpha.shape
            self._own.maps = _Maps((height, width))
        return self._own.maps

    def frame(
        self,
        verts_cam: Float32[np.ndarray, "V 3"],
        bones: Bones,
        glimpse: Glimpse | None = None,
        fold: Float32[np.ndarray, "R C"] | None = None,
    ) -> tuple[UInt8[np.ndarray, "H W 3"], Float32[np.ndarray, "H W"]]:
        """Paint one frame, and say how far each pixel is a guess (`Sketch.guess`).

        `glimpse` is the driver's mouth, `fold` the shade of its skin (`DriverFolds.of`).
        """
        maps, photo, (height, width) = self._maps, self.photo, self.layers.alpha.shape
        squares = ((height + 1) // 2, (width + 1) // 2)
        look = self._look(bones)
        rast = draw(verts_cam, self.faces, self.layers.camera)
        drawn = wp.from_torch(rast[0], dtype=wp.vec4)
        kernels.run(kernels.parts, (height, width), photo, drawn, maps.all)
        self.lips.inner(maps.part, rast, verts_cam)
        kernels.run(kernels.shade, squares, photo, look, drawn, maps.all)
        bare = (maps.part == NONE).astype(np.uint8)
        cv2.distanceTransform(bare, cv2.DIST_L2, 3, maps.away)
        cv2.distanceTransform(1 - bare, cv2.DIST_L2, 3, maps.inward)
        solid = 1 - cv2.dilate(bare, np.ones((3, 3), np.uint8)).astype(np.float32)
        cv2.GaussianBlur(solid, (0, 0), 1.0, maps.sharp)
        coarse = wp.array(spread(maps.carried), dtype=wp.vec2, copy=False, device="cpu")
        kernels.run(kernels.fade, squares, photo, look, coarse, maps.all)
        kernels.run(kernels.move, (height, width), photo, look, maps.all)
        # Where the motion is below one pixel the unchanged photo is the best picture.
        for blurred, size in ((maps.moved, 5), (maps.bared, 9), (maps.believed, 5)):
            cv2.blur(blurred, (size, size), blurred)
        self._fold(maps, rast, verts_cam)
        kernels.run(kernels.carry, (height, width), photo, maps.all)
        self.lips.clean(maps.person, maps.field, verts_cam)
        frame, guess = np.empty((height, width, 3), np.uint8), np.empty((height, width), np.float32)
        out = (wp.array(frame, dtype=wp.vec3ub, copy=False, device="cpu"), wp.array(guess, copy=False, device="cpu"))
        kernels.run(kernels.paint, (height, width), photo, look, maps.all, *out)
        if fold is not None and self.creased is not None:
            self.creased.shade(frame, rast, fold)
        between = Between(self.lips.contours(verts_cam), glimpse) if glimpse is not None else None
        self.inner.paint(frame, guess, bones, maps.part, maps.own, between)
        self.eyes.paint(frame, guess, maps.part, verts_cam, bones.head[:, :3])
        self.lips.paint_seam(frame, verts_cam)
        for lid in self.lids:
            lid.paint_lashes(frame, verts_cam)
        return frame, guess

    def _look(self, bones: Bones):
        """Scalar parameters of one frame for the kernels."""
        look, height = kernels.Look(), self.face_height_px
        least, added, _ = RIM
        look.turned = self._turned(bones)
        above, below = self._far(bones)
        look.above, look.below = kernels.Affine(above), kernels.Affine(below)
        look.slack_m, look.reach = DEPTH_SLACK_M, 1 / (FADE_FACES * height)
        look.limit_px, look.soft = height * (least + added * (1 - look.turned)), 1 / (0.02 * height)
        look.border, look.fringe = 1 / (BORDER_FACES * height), 1 / max(HAIR_FRINGE * height, 1.0)
        for name, (low, high) in (("still", STILL_PX), ("bare", [f * height for f in BARE_FACES])):
            setattr(look, name, wp.vec2(low, 1 / (high - low)))
        look.shade = SHADE
        return look

    def _fold(self, maps: "_Maps", rast, verts_cam) -> None:
        """Write the share of each pixel that shows lid skin which is folded away in the photo, and shade the lids."""
        maps.folded[:] = 0
        share = np.zeros(len(self.triangle_part), np.float32)
        for lid in self.lids:
            share[lid.triangles] = lid.unfolded(verts_cam)
            if share.any():
                box = lid.box(verts_cam)
                ids = triangle_ids(rast[:, *box])
                maps.folded[box] = np.maximum(maps.folded[box], cv2.blur(np.where(ids >= 0, share[ids], 0), (3, 3)))
                share[lid.triangles] = 0
            lid.skin(maps.colour, rast, verts_cam)

    def _far(self, bones):
        """Affine maps, px, from the frame to the photo beyond the mesh: of the hair, and of the torso."""
        maps = []
        for ring, now, then in (
            (self.head_ring, bones.head, self.reference.head),
            (self.torso_ring, bones.torso, self.reference.torso),
        ):
            maps.append(similarity(self._project(ring, now), self._project(ring, then)))
        return maps

    def _project(self, points, bone):
        camera = self.layers.camera
        cam = points @ bone[:, :3].T + bone[:, 3]
        return cam[:, :2] / cam[:, 2:] * camera.focal_px + [camera.cx, camera.cy]

    def _turned(self, bones):
        """0 for the head's direction in the photo, towards 1 as it turns away: 1 - exp(-(angle / 7 deg)^2)."""
        turn = bones.head[:, :3] @ self.reference.head[:, :3].T
        angle = np.degrees(np.arccos(np.clip(turn[2, 2], -1, 1)))
        return 1 - float(np.exp(-((angle / RIM[2]) ** 2)))


class _Maps:
    """Buffers for the maps of one frame: `all` as the kernels' struct, and the arrays that Python code uses too."""

    def __init__(self, shape: tuple[int, int]):
        """`shape` is height and width."""
        half = ((shape[0] + 1) // 2, (shape[1] + 1) // 2)
        channels = {"own": 2, "hair": 2, "colour": 3, "field": 2}
        names = ("seen", "believed", "away", "inward", "sharp", "alpha", "moved", "bared", "folded", *channels)
        arrays = {name: np.zeros((*shape, channels[name]) if name in channels else shape, np.float32) for name in names}
        self.part, self.person = np.zeros(shape, np.uint8), np.zeros((*shape, 3), np.uint8)
        self.carried, self.beyond = np.zeros((*half, 3), np.float32), np.zeros((*half, 2), np.float32)
        self.away, self.inward, self.sharp = arrays["away"], arrays["inward"], arrays["sharp"]
        self.believed, self.moved, self.bared = arrays["believed"], arrays["moved"], arrays["bared"]
        self.own, self.colour, self.folded = arrays["own"], arrays["colour"], arrays["folded"]
        self.field = arrays["field"]
        self.all = kernels.filled(
            kernels.Maps, part=self.part, person=self.person, carried=self.carried, beyond=self.beyond, **arrays
        )


def _with_room(picture: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "H W 4"]:
    """Add an empty fourth channel, so that a pixel is loaded in one instruction."""
    return np.dstack([picture, np.zeros(picture.shape[:2], np.uint8)]).astype(np.float32)


def _smooth(share):
    return share * share * (3 - 2 * share)


class InnerLayers:
    """Paint the inside of the mouth, in colours measured on the photo, or in defaults where it is shut there."""

    def __init__(
        self,
        layers: Layers,
        head: HeadModel,
        reference: Bones,
        seam: Float[np.ndarray, " 3"],
        lip: Float32[np.ndarray, " 3"],
        glimpses: Glimpses | None = None,
    ):
        """`reference`: bones in the photo's pose; `seam`: where closed lips meet (head frame); `lip`: their colour."""
        self.layers = layers
        index = {name: head.part_names.index(name) for name in head.part_names}
        mouth = (index["teeth_upper"], index["teeth_lower"], index["mouth_cavity"])
        self.is_mouth = np.isin(np.arange(256), mouth)
        face = head.facial_mask.numpy()
        inside = (face > 0.8) & (head.parts.numpy() == 0)
        xy = np.rint(layers.xy[inside] - 0.5).astype(int)
        height, width = layers.alpha.shape
        xy = xy[(xy >= 0).all(1) & (xy < [width, height]).all(1)]
        self.skin = np.median(layers.photo[xy[:, 1], xy[:, 0]].astype(np.float32), axis=0) if len(xy) else SKIN_COLOUR
        shown = self.is_mouth[layers.part]
        eyes = layers.photo[np.isin(layers.part, (index["eye_left"], index["eye_right"]))].astype(np.float32)
        bones = {"skull": reference.head, "jaw": reference.jaw}
        self.inside = Mouth(layers, seam, shown, self.skin, **bones, eyes=eyes, lip=lip, glimpses=glimpses)

    def paint(self, frame, guess, bones: Bones, part, own, between: Between | None = None):
        """Paint the mouth over a frame where its triangles are visible, and raise `guess` there, both in place.

        `own` [H, W, 2]: vector, px, from each pixel to the same surface point in the photo.
        """
        mask = self.is_mouth[part]
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return
        box = np.s_[max(rows[0] - 2, 0) : rows[-1] + 3, max(cols[0] - 2, 0) : cols[-1] + 3]
        colour = self.inside.colour(_exact(box, mask.shape), mask[box], bones.head, bones.jaw, between)
        soft = cv2.GaussianBlur(mask[box].astype(np.float32), (0, 0), 0.7) * self._changed(box, part, own)
        soft *= self._parted(mask[box], bones)
        guess[box] = np.maximum(guess[box], soft)
        soft = soft[..., None]
        frame[box] = np.clip(frame[box] * (1 - soft) + colour * soft + 0.5, 0, 255).astype(np.uint8)

    def _parted(self, mask, bones):
        """Weight of the mouth by pixel column: 0 below the lower height of PARTED_M, 1 above the upper one.

        Openings of less than a millimetre are errors of the mesh, and no gaps between the lips.
        """
        metre = self.layers.camera.focal_px / max(float(bones.head[2, 3]), 1e-3)
        height = cv2.blur(mask.sum(0, dtype=np.float32)[None], (5, 1)) / metre
        return ramp(height, PARTED_M).astype(np.float32)

    def _changed(self, box, part, own):
        """0 where the photo shows the same surface point at the same pixel, 1 where it does not."""
        moved = ramp(np.hypot(own[box][..., 0], own[box][..., 1]), STILL_PX)
        inner, same = self.is_mouth[part[box]], self.is_mouth[self.layers.part[box]]
        changed = np.where(inner, np.where(same, moved, 1.0), 0.0).astype(np.float32)
        return cv2.blur(cv2.dilate(changed, np.ones((3, 3), np.uint8)), (3, 3))


def _exact(box, shape):
    """Clip the ends of a box to the picture."""
    rows, cols = box
    return np.s_[rows.start : min(rows.stop, shape[0]), cols.start : min(cols.stop, shape[1])]
