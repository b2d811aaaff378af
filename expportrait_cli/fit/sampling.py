"""Pictures read at the vertices of a posed head: what the fit compares, once a frame, without pixels afterwards."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8

from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.detect.crop import Crop, crop_image
from expportrait_cli.fit.clip import Clip
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.head import HeadModel
from expportrait_cli.media.source import read_pictures
from expportrait_cli.render.rasterizer import rasterize

DRAW_SIZE = 256
SLACK_M = 0.004
FACING = (0.2, 0.5)
"""Cosines between which a vertex begins to be read."""
BLUR_PX = 1.0
SHARPEST = 1024
"""Side of the largest pictures of a crop, px: in a face of half of it a pixel is a third of a millimetre."""
DARK, BRIGHT = 8, 250
"""Beyond these a camera has clipped the light."""
GAMMA = 2.2


@dataclass(frozen=True)
class View:
    """Where some vertices lie in one picture, and how well they are seen."""

    px: Float32[np.ndarray, "P 2"]
    """Crop px, pixel centres at +0.5."""
    weight: Float32[np.ndarray, " P"]
    """0 hidden, outside or turned away; 1 facing the camera."""
    normals: Float32[np.ndarray, "P 3"]
    """In the axes of normal maps."""
    depth: Float32[np.ndarray, " P"]
    """Distance along the optical axis, m."""


@dataclass(frozen=True)
class SharpClip(Clip):
    """A clip whose pictures are read as fine as the source shows them."""

    @property
    def picture_size(self) -> int:
        """Side of the pictures, px."""
        return int(np.clip(round(float(self.tracking.crop[2])), CROP_SIZE, SHARPEST))

    def crops(self, rows: Int64[np.ndarray, " R"]) -> Iterator[UInt8[np.ndarray, "S S 3"]]:
        """The pictures of some frames, `picture_size` wide; otherwise as those of a clip."""
        crop = Crop(*self.tracking.crop)
        for picture in read_pictures(self.tracking.source, rows):
            yield crop_image(picture, crop, self.picture_size)


def look(
    verts_cam: Float32[np.ndarray, "V 3"], head: HeadModel, vertices: Int64[np.ndarray, " P"], focal_px: float
) -> View:
    """Project a posed head and find which of some vertices are seen."""
    camera = Camera.of_crop(focal_px, CROP_SIZE, DRAW_SIZE)
    verts = torch.from_numpy(verts_cam)
    rast = rasterize(camera.clip(verts)[None], head.dense_faces, (DRAW_SIZE, DRAW_SIZE))
    ids = rast[0, ..., 3].numpy().astype(np.int64) - 1
    first = head.dense_faces.numpy()[np.maximum(ids, 0), 0]
    nearest = np.where(ids >= 0, verts_cam[first, 2], 1e3).astype(np.float32)
    nearest = cv2.dilate(nearest, np.ones((3, 3), np.uint8))
    normals = vertex_normals(verts, head.dense_faces)[vertices]
    points = verts_cam[vertices]
    sight = points / np.linalg.norm(points, axis=1, keepdims=True)
    cosine = -(normals.numpy() * sight).sum(1)
    low, high = FACING
    px = points[:, :2] / points[:, 2:] * focal_px + CROP_SIZE / 2
    column, row = np.clip(px * DRAW_SIZE / CROP_SIZE, 0, DRAW_SIZE - 1).astype(int).T
    seen = (px > 1).all(1) & (px < CROP_SIZE - 1).all(1) & (points[:, 2] < nearest[row, column] + SLACK_M)
    weight = np.clip((cosine - low) / (high - low), 0, 1) * seen
    return View(
        px=px.astype(np.float32),
        weight=weight.astype(np.float32),
        normals=(normals.numpy() * np.array([1, -1, -1])).astype(np.float32),
        depth=points[:, 2].copy(),
    )


def log_intensity(crop: UInt8[np.ndarray, "S S 3"]) -> Float32[np.ndarray, "S S"]:
    """Logarithm of linear luminance; NaN where the camera has clipped it."""
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32)
    clipped = (grey < DARK) | (grey > BRIGHT)
    value = cv2.GaussianBlur(grey, (0, 0), BLUR_PX)
    return np.where(clipped, np.nan, GAMMA * np.log(np.maximum(value, DARK) / 255)).astype(np.float32)
