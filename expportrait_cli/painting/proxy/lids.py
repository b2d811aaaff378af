"""Closing lids: the skin of the upper lid, which is folded away in the photo, and the lashes."""

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from scipy.ndimage import gaussian_filter1d

from expportrait_cli.head import HeadModel, landmarks
from expportrait_cli.head.facemesh import LOWER_LIDS, UPPER_LIDS, blinks
from expportrait_cli.head.model import dense
from expportrait_cli.painting.proxy.hidden import NO_MAP
from expportrait_cli.painting.proxy.layers import LID_TRAVEL_M, SUBPIXEL_BITS, Layers, fixed, ramp, spots, triangle_ids

GROWTH = (2.0, 4.0)
"""Area of a lid's triangle in the frame over that in the photo, at which painted skin begins to replace the photo's
pixels, and has replaced them."""
FADES = (0.3, 0.7)
"""Place on the lid (`height_of`: 0 above it, 1 at its rim) at which painted skin has weight 0, and 1."""
COLUMNS, CORNER = 24, 0.3
"""COLUMNS: vertical strips in which the travel of a lid is measured. CORNER: least travel of a strip, as a share of the
largest: the skin of the corners hardly moves."""
CLOSES = (0.4, 0.8)
"""Closure of a lid (see `Lid.closure`) at which painted skin and lashes have weight 0, and 1: near the rim triangles do
not grow in the picture, although folded skin appears there."""
OPENS = (0.1, 0.6)
"""Opening of a lid beyond the photo's, as a share of the photo's, at which painted lash roots have weight 0, and 1."""
MEETS = (0.6, 0.8)
"""Closure of a lid at which the lashes cover the slit that remains by 0, and by 1."""
LASHES_M = 0.0011
"""Thickness of the line of lashes in the middle of a shut eye, m; it tapers towards the corners."""
HAIRS, HAIR_M, HAIR_SHARE, LINE_SHARE = 17, 0.0028, 0.5, 0.8
"""Single lashes below the line of lashes: HAIRS their number, HAIR_M their length, m. HAIR_SHARE and LINE_SHARE:
opacity of the single lashes, and of the line."""
GRAIN_M, GRAIN = 0.001, 3.0
"""Texture of skin that a lid takes from the cheek: GRAIN_M is the standard deviation of its high-pass filter, m; values
are limited to GRAIN times their median size, because hair and the outline of the nose are no texture of skin."""
CHEEKS = (280, 50)
"""FaceMesh landmarks in the middle of the left and the right cheek."""
CREASE, BULGE, RIM = (0.3, 0.1, 0.06), (0.65, 0.2, 0.04), (0.8, 1.0, 0.1)
"""Shading of a shut lid by the place on it (0 above, 1 at the rim). CREASE: place, width and darkening of the crease.
BULGE: place, width and brightening over the eyeball. RIM: begin, end and darkening of the shade towards the lashes."""
DARK = 0.25
"""Share of the darkest pixels around the rim from which the colour of lashes is read."""


def shown_areas(verts_cam: Float32[np.ndarray, "V 3"], triangles: Int64[np.ndarray, "F 3"]) -> Float[np.ndarray, " F"]:
    """Projected areas of triangles, in units of the squared focal length; 0 for those that face away."""
    a, b, c = (verts_cam[triangles][..., :2] / verts_cam[triangles][..., 2:]).transpose(1, 0, 2)
    # Outward is counter-clockwise for y up; the camera's y is down.
    cross = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    return np.maximum(-cross / 2, 0.0)


def height_of(across_m: Float32[np.ndarray, " V"], travel_m: Float32[np.ndarray, " V"]) -> Float32[np.ndarray, " V"]:
    """Place of each vertex on a lid, from 0 (not moved by a blink) to 1 (rim).

    It is the travel over the largest travel in the same vertical strip. `across_m`: x of the vertices, m.
    """
    lid = travel_m > LID_TRAVEL_M
    low, high = across_m[lid].min(), across_m[lid].max()
    strip = np.clip((across_m - low) / (high - low) * COLUMNS, 0, COLUMNS - 1).astype(int)
    widest = np.zeros(COLUMNS)
    np.maximum.at(widest, strip[lid], travel_m[lid])
    widest = np.maximum(gaussian_filter1d(widest, 1.5, mode="nearest"), CORNER * widest.max())
    at = (across_m - low) / (high - low) * COLUMNS - 0.5
    return (np.where(lid, travel_m, 0) / np.interp(at, np.arange(COLUMNS), widest)).clip(0, 1).astype(np.float32)


class Lid:
    """One upper lid: its state relative to the photo, its skin and its lashes."""

    def __init__(self, layers: Layers, head: HeadModel, travel_m: Float32[np.ndarray, " V"], side: int):
        """`travel_m` is how far a blink moves each vertex of this eye; `side` is 0 for the person's left one."""
        faces = head.dense_faces.numpy()
        self.triangles = np.flatnonzero((travel_m > LID_TRAVEL_M)[faces].any(1))
        self.corners = faces[self.triangles]
        self.vertices, self.is_own = np.unique(self.corners), np.zeros(len(faces), bool)
        self.is_own[self.triangles] = True
        self.areas = shown_areas(layers.verts, self.corners) + 1e-8
        height = height_of(dense(head, head.template).numpy()[:, 0], travel_m)
        self.inner = ramp(height[self.corners].max(1), FADES)
        self.head, self.camera = head, layers.camera
        self.shade = self._shading(height)
        self.rims = np.array([UPPER_LIDS[side], LOWER_LIDS[side]])
        self.open_m = self._gap_m(layers.verts)
        near = self._stroke(layers.verts, layers.photo.shape[:2], thicker=2.0) > 0.5
        pixels = layers.photo[near].astype(np.float32)
        dark = np.argsort(pixels.sum(1))[: max(round(DARK * len(pixels)), 1)]
        self.lashes = np.median(pixels[dark], axis=0) if len(pixels) else np.zeros(3, np.float32)
        self._read_grain(layers, side)

    @staticmethod
    def _shading(height):
        (crease, width, deep), (bulge, wide, high), (start, end, dim) = CREASE, BULGE, RIM
        fold = 1 - deep * np.exp(-(((height - crease) / width) ** 2))
        light = 1 + high * np.exp(-(((height - bulge) / wide) ** 2))
        return (fold * light * (1 - dim * ramp(height, (start, end)))).astype(np.float32)

    def _read_grain(self, layers, side):
        """High-pass the texture of the cheek, and map the shut lid's vertices onto it."""
        head, camera = self.head, layers.camera
        points = landmarks(head, torch.from_numpy(layers.verts))
        cheek = camera.project(points)[CHEEKS[side]].numpy()
        px_per_m = camera.focal_px / float(points[CHEEKS[side], 2])
        grey = layers.foreground.astype(np.float32).mean(-1)
        coarse = cv2.GaussianBlur(grey, (0, 0), max(GRAIN_M * px_per_m, 1.0))
        fine = grey - coarse
        shut = (dense(head, head.template).numpy() + blinks(head)[side])[:, :2]
        own = self.vertices
        self.places = (cheek + (shut - shut[own].mean(0)) * [px_per_m, -px_per_m]).astype(np.float32)
        row, column = np.clip(self.places[own, ::-1].astype(int), 0, np.array(fine.shape) - 1).T
        self.grain = np.clip(fine, *(GRAIN * np.median(np.abs(fine[row, column])) * np.array([-1, 1])))

    def skin(
        self, colours: Float32[np.ndarray, "H W 3"], rast: torch.Tensor, verts_cam: Float32[np.ndarray, "V 3"]
    ) -> None:
        """Shade the smooth colours of the lid, and add the texture of skin, in place."""
        box = self.box(verts_cam)
        ids = triangle_ids(rast[:, *box])
        own = self.is_own[ids] & (ids >= 0)
        if not own.any():
            return
        weights = rast[0, *box].numpy()[own][:, :2]
        weights = np.column_stack([weights, 1 - weights.sum(1)])
        corners = self.head.dense_faces.numpy()[ids[own]]
        at = (self.places[corners] * weights[..., None]).sum(1) - 0.5
        grain = cv2.remap(self.grain, at[None], NO_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]
        shade = (self.shade[corners] * weights).sum(1)
        colours[box][own] = colours[box][own] * shade[:, None] + grain[:, None]

    def box(self, verts_cam: Float32[np.ndarray, "V 3"]) -> tuple[slice, slice]:
        """Slices of rows and columns around the lid in the picture."""
        xy = self.camera.project(torch.from_numpy(verts_cam[self.vertices])).numpy()
        (left, top), (right, bottom) = np.maximum([xy.min(0) - 2, xy.max(0) + 3], 0).astype(int)
        return np.s_[top:bottom, left:right]

    def unfolded(self, verts_cam: Float32[np.ndarray, "V 3"]) -> Float32[np.ndarray, " F_lid"]:
        """Weight (0..1) of painted skin on each of the lid's triangles: skin that is folded away in the photo."""
        growth = shown_areas(verts_cam, self.corners) / self.areas
        share = np.maximum(ramp(growth, GROWTH), ramp(self.closure(verts_cam), CLOSES))
        return (share * self.inner).astype(np.float32)

    def closure(self, verts_cam: Float32[np.ndarray, "V 3"]) -> float:
        """Closure of the lid: 0 as in the photo, 1 shut, below 0 if the eye is wider open than in the photo."""
        return 1 - self._gap_m(verts_cam) / max(self.open_m, 1e-6)

    def _gap_m(self, verts_cam: Float32[np.ndarray, "V 3"]) -> float:
        upper, lower = spots(self.head, verts_cam, self.rims)
        # Only x and y, as the camera sees the gap: offsets from landmarks do not change the depth.
        return float(np.linalg.norm((upper - lower)[:, :2], axis=-1).mean())

    def paint_lashes(self, frame: UInt8[np.ndarray, "H W 3"], verts_cam: Float32[np.ndarray, "V 3"]) -> None:
        """Draw the lashes over a lid that has come down, or their roots where it opens wider than in the photo."""
        closure = self.closure(verts_cam)
        closed, shape = float(ramp(closure, CLOSES)), frame.shape[:2]
        # An eye that is wider open than in the photo uncovers the roots of its lashes.
        seen = max(closed, float(ramp(-closure, OPENS)))
        if seen == 0:
            return
        stroke = LINE_SHARE * self._stroke(verts_cam, shape, slit=float(ramp(closure, MEETS)))
        if closed > 0:
            stroke = np.maximum(stroke, HAIR_SHARE * self._hairs(verts_cam, shape))
        rows, cols = np.flatnonzero(stroke.any(1)), np.flatnonzero(stroke.any(0))
        if not len(rows):
            return
        box = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        share = (seen * stroke[box])[..., None]
        frame[box] = np.rint(frame[box] * (1 - share) + self.lashes * share).astype(np.uint8)

    def _rim_px(self, verts_cam):
        """Upper and lower rim, px with centres at whole numbers, [N, 2] each; direction down the face; px per metre.

        The direction is the unit vector perpendicular to the upper rim's chord; the scale is that of the lid's depth.
        """
        rims = spots(self.head, verts_cam, self.rims)
        upper, lower = self.camera.project(torch.from_numpy(rims)).numpy() - 0.5
        along = upper[-1] - upper[0]
        down = np.array([-along[1], along[0]]) / max(float(np.linalg.norm(along)), 1e-6)
        down = down * (1 if down[1] > 0 else -1)
        return upper, lower, down, self.camera.focal_px / float(rims[0, :, 2].mean())

    def _hairs(self, verts_cam, shape) -> Float32[np.ndarray, "H W"]:
        """Coverage (0..1) of single lashes below the rim, longer and more slanted towards the outer corner."""
        upper, _, down, px_per_m = self._rim_px(verts_cam)
        outward = (upper[0] - upper[-1]) / max(float(np.linalg.norm(upper[0] - upper[-1])), 1e-6)
        canvas = np.zeros(shape, np.uint8)
        at = np.linspace(0.04, 0.9, HAIRS)
        roots = np.stack([np.interp(at * (len(upper) - 1), np.arange(len(upper)), column) for column in upper.T], -1)
        # Neighbouring lashes differ, because equal ones look artificial.
        uneven = 1 + 0.3 * np.sin(7.3 * np.arange(HAIRS)) + 0.2 * np.cos(3.1 * np.arange(HAIRS))
        length = HAIR_M * px_per_m * uneven * (1.1 - 0.7 * at)
        slant = 0.9 * (0.6 - at) + 0.15 * np.sin(5.0 * np.arange(HAIRS))
        tips = roots + length[:, None] * (down + slant[:, None] * outward)
        for root, tip in zip(fixed(roots), fixed(tips), strict=True):
            cv2.line(canvas, root.tolist(), tip.tolist(), (255.0,), 1, cv2.LINE_AA, SUBPIXEL_BITS)
        return cv2.GaussianBlur(canvas, (0, 0), max(0.0002 * px_per_m, 0.5)).astype(np.float32) / 255

    def _stroke(self, verts_cam, shape, *, thicker: float = 1.0, slit: float = 0.0) -> Float32[np.ndarray, "H W"]:
        """Coverage (0..1) of the line of lashes along the upper rim.

        With `slit` > 0 the opening below the rim is covered by that share too.
        """
        upper, lower, down, px_per_m = self._rim_px(verts_cam)
        width = thicker * LASHES_M * px_per_m
        canvas = np.zeros(shape, np.uint8)
        if slit:
            cv2.fillPoly(canvas, [fixed([*upper, *lower[::-1]])], (255 * slit,), cv2.LINE_AA, SUBPIXEL_BITS)
        half = 0.5 * width * np.sin(np.linspace(0, np.pi, len(upper)))[:, None] * down
        cv2.fillPoly(canvas, [fixed([*(upper - half), *(upper + half)[::-1]])], (255.0,), cv2.LINE_AA, SUBPIXEL_BITS)
        return cv2.GaussianBlur(canvas, (0, 0), max(0.45 * width, 0.7)).astype(np.float32) / 255
