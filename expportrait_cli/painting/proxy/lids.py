"""Upper lids: an open eye folds their skin away, and a photo shows lashes and shadow instead of it."""

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8

from expportrait_cli.head import HeadModel, landmarks
from expportrait_cli.head.facemesh import LOWER_LIDS, UPPER_LIDS
from expportrait_cli.painting.proxy.layers import LID_TRAVEL_M, Layers

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
