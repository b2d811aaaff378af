"""Upper lids: an open eye folds their skin away, and a photo shows lashes and shadow instead of it."""

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8

from expportrait_cli.generate.layers import LID_TRAVEL_M, Layers
from expportrait_cli.head import HeadModel, landmarks
from expportrait_cli.head.facemesh import UPPER_LIDS

GROWTH = (1.3, 2.2)
"""Growth of a lid's triangles from which, and up to which, skin takes the place of what the photo shows on them."""
STRETCHES = (0.2, 0.9)
"""Shares of the widest travel between which a lid is the fold that a blink stretches."""
FADES = (0.06, 0.35)
"""Shares of the widest travel over which its own skin fades in below the brow."""
CLOSED_PERCENTILE = 80
"""Of the growth in the fold, for the whole lid: its plate does not grow, and yet it shows other skin."""
LASHES_M = 0.0024
"""Thickness of the line of lashes on a shut eye."""
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
        self.stretches = (travel > STRETCHES[0]) & (travel < STRETCHES[1])
        low, high = FADES
        self.inner = np.clip((travel - low) / (high - low), 0, 1)
        self.head, self.camera, self.rim = head, layers.camera, list(UPPER_LIDS[side])
        near = self._stroke(layers.verts, layers.photo.shape[:2], thicker=2.0) > 0.5
        pixels = layers.photo[near].astype(np.float32)
        dark = np.argsort(pixels.sum(1))[: max(len(pixels) // 10, 1)]
        self.lashes = np.median(pixels[dark], axis=0) if len(pixels) else np.zeros(3, np.float32)

    def unfolded(self, verts_cam: Float32[np.ndarray, "V 3"]) -> Float32[np.ndarray, " F_lid"]:
        """How far (0..1) each of the lid's triangles shows skin that the photo has folded away."""
        growth = shown_areas(verts_cam, self.corners) / self.areas
        low, high = GROWTH
        share = np.clip((growth - low) / (high - low), 0, 1)
        return (np.maximum(share, self._closed(share)) * self.inner).astype(np.float32)

    def _closed(self, share):
        return float(np.percentile(share[self.stretches], CLOSED_PERCENTILE))

    def paint_lashes(self, frame: UInt8[np.ndarray, "H W 3"], verts_cam: Float32[np.ndarray, "V 3"], unfolded) -> None:
        """Draw the line of lashes over a lid that has come down, in place."""
        closed = self._closed(unfolded)
        if closed == 0:
            return
        stroke = self._stroke(verts_cam, frame.shape[:2])
        rows, cols = np.flatnonzero(stroke.any(1)), np.flatnonzero(stroke.any(0))
        if not len(rows):
            return
        box = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        share = (closed * stroke[box])[..., None]
        frame[box] = np.rint(frame[box] * (1 - share) + self.lashes * share).astype(np.uint8)

    def _stroke(self, verts_cam, shape, *, thicker: float = 1.0) -> Float32[np.ndarray, "H W"]:
        """Coverage of the line along the lid's rim."""
        rim = landmarks(self.head, torch.from_numpy(verts_cam)).numpy()[self.rim]
        px = self.camera.project(torch.from_numpy(rim)).numpy() - 0.5
        width = thicker * LASHES_M * self.camera.focal_px / float(rim[:, 2].mean())
        canvas = np.zeros(shape, np.uint8)
        points = np.rint(px * 2**SUBPIXEL_BITS).astype(np.int32)
        cv2.polylines(canvas, [points], False, (255.0,), max(round(width), 1), cv2.LINE_AA, SUBPIXEL_BITS)
        return cv2.GaussianBlur(canvas, (0, 0), max(0.35 * width, 0.6)).astype(np.float32) / 255
