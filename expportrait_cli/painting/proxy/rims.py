"""Lids and lips: rims that open and shut, compared with how the photo shows them."""

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8

from expportrait_cli.head import HeadModel, landmarks
from expportrait_cli.head.facemesh import LIP_CORNERS, LOWER_LIDS, LOWER_LIPS, UPPER_LIDS, UPPER_LIPS
from expportrait_cli.painting.proxy.layers import (
    LID_TRAVEL_M,
    NO_MAP,
    NONE,
    SKIN,
    Layers,
    lips_together,
    mix,
    triangle_ids,
)

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
OPEN_M = 0.0015
"""Gap of the lips from which the photo has them apart."""
MOVED = (0.02, 0.06)
"""Mean motion of the inner lips against each other, in widths of the photo's mouth, at which its teeth and shadows
begin to go from lips and cheeks, and are gone: they belong to the photo's mouth, and not to this one."""
SEAM_M, SEAM_WIDTH_M, SEAM = (0.0006, 0.0016), 0.0008, 0.5
"""Gaps between which the line of shut lips fades, its width, and its brightness, as a share of the lips'."""
DEEP_M = 0.02
"""Distance behind the lips from which skin between them is the throat's, seen through the mesh."""
BESIDE = 0.1
"""How far beside the lips, in mouth widths, what is inside them may be seen."""
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
        self.inner = ramp(travel, FADES)
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
        share = np.maximum(ramp(growth, GROWTH), ramp(self.closure(verts_cam), CLOSES))
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
        closed = float(ramp(closure, CLOSES))
        if closed == 0:
            return
        stroke = self._stroke(verts_cam, frame.shape[:2], slit=float(ramp(closure, MEETS)))
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
        outline = np.rint([*xy[0], *xy[1][::-1]] - np.float32(0.5)).astype(np.int32)
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
        cv2.fillPoly(canvas, [_fixed([*(upper - shift), *(lower + shift)[::-1]])], (255.0,), cv2.LINE_AA, SUBPIXEL_BITS)
        rows, cols = np.flatnonzero(canvas.any(1)), np.flatnonzero(canvas.any(0))
        if not len(rows):
            return
        box = np.s_[max(rows[0] - 2, 0) : rows[-1] + 3, max(cols[0] - 2, 0) : cols[-1] + 3]
        soft = share * cv2.GaussianBlur(canvas[box].astype(np.float32) / 255, (0, 0), 0.7)[..., None]
        frame[box] = np.rint(frame[box] * (1 - soft) + self.seam * soft).astype(np.uint8)


def _fixed(px) -> np.ndarray:
    """Points as OpenCV takes them, with a binary fraction."""
    return np.rint(np.asarray(px) * 2**SUBPIXEL_BITS).astype(np.int32)


def ramp(value, ends: tuple[float, float]):
    """0 below the first end, 1 above the second."""
    low, high = ends
    return np.clip((value - low) / (high - low), 0, 1)
