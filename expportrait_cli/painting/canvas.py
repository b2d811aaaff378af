"""The canvas (the part of the photo that a film shows), and a check that frames still show the photo's face."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit
from expportrait_cli.detect.crop import Box, Crop, crop_image
from expportrait_cli.detect.matte import Matte
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.head import HeadModel
from expportrait_cli.painting.proxy.layers import in_eyes, lids
from expportrait_cli.painting.proxy.lips import around_lips


@dataclass(frozen=True)
class Canvas:
    """The part of the photo that a film shows, at the size of the film, and the place of the photo's crop in it."""

    photo: UInt8[np.ndarray, "H W 3"]
    alpha: Float32[np.ndarray, "H W"]
    camera: Camera
    scale: float
    """Canvas px for one px of the crop."""
    corner: tuple[float, float]
    """Top left corner (x, y) of the crop on the canvas, px."""

    def hair(self, fit: HeadFit) -> Float32[np.ndarray, "H W"]:
        """Share of hair in each pixel (`HeadFit.classes`); 0 outside the crop, or if the fit has no classes."""
        shape = self.alpha.shape
        if not fit.classes.size:
            return np.zeros(shape, np.float32)
        shift = (self.scale - 1) / 2
        place = np.array([[self.scale, 0, self.corner[0] + shift], [0, self.scale, self.corner[1] + shift]])
        share = np.ascontiguousarray(fit.classes[..., 1], np.float32) / 255
        return cv2.warpAffine(share, place, shape[::-1], flags=cv2.INTER_LINEAR)


def crop_canvas(image: UInt8[np.ndarray, "H W 3"], fit: HeadFit, size: int) -> Canvas:
    """Canvas of the photo's square crop, `size` px wide."""
    crop = Crop(*map(float, fit.crop))
    alpha = Matte().matte(crop_image(image, crop, CROP_SIZE))
    if size != CROP_SIZE:
        alpha = cv2.resize(alpha, (size, size), interpolation=cv2.INTER_LINEAR)
    camera = Camera.of_crop(fit.focal_px, CROP_SIZE, size)
    return Canvas(crop_image(image, crop, size), alpha, camera, size / CROP_SIZE, (0.0, 0.0))


def photo_canvas(image: UInt8[np.ndarray, "H W 3"], fit: HeadFit, size: int) -> Canvas:
    """Canvas of the whole photo, scaled so that the crop is at most `size` px wide."""
    height, width = image.shape[:2]
    shrink = min(1.0, size / float(fit.crop[2]))
    shape = (max(round(width * shrink), 2), max(round(height * shrink), 2))
    return box_canvas(image, fit, Box(0.0, 0.0, float(width), float(height)), shape)


def box_canvas(image: UInt8[np.ndarray, "H W 3"], fit: HeadFit, box: Box, shape: tuple[int, int]) -> Canvas:
    """Canvas of a box of the photo, resized to `shape` (width, height), px; inside the crop its finer matte is used."""
    crop = Crop(*map(float, fit.crop))
    left, top, width, height = map(int, box)
    ratio = shape[0] / width
    photo = image[top : top + height, left : left + width]
    if photo.shape[1::-1] != shape:
        photo = cv2.resize(photo, shape, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_CUBIC)
    photo = np.ascontiguousarray(photo).astype(np.uint8)
    scale = ratio * crop.side / CROP_SIZE
    corner = ((crop.left - left) * ratio, (crop.top - top) * ratio)
    whole = _square_matte(photo)
    inner = Matte().matte(crop_image(image, crop, CROP_SIZE))
    alpha = _merge(whole, inner, scale, corner)
    camera = Camera(fit.focal_px * scale, corner[0] + CROP_SIZE / 2 * scale, corner[1] + CROP_SIZE / 2 * scale, *shape)
    return Canvas(photo, alpha, camera, scale, corner)


def _square_matte(photo):
    """Matte of a picture, computed on the smallest square around it."""
    height, width = photo.shape[:2]
    side = max(height, width)
    square = Crop(round((width - side) / 2), round((height - side) / 2), side)
    k = CROP_SIZE / side
    matte = Matte().matte(crop_image(photo, square, CROP_SIZE))
    x, y = np.meshgrid(np.arange(width) + 0.5 - square.left, np.arange(height) + 0.5 - square.top)
    return cv2.remap(matte, (x * k - 0.5).astype(np.float32), (y * k - 0.5).astype(np.float32), cv2.INTER_LINEAR)


def _merge(whole, inner, scale, corner):
    """Replace the whole matte by the crop's finer one inside the crop, with a soft seam at its border."""
    height, width = whole.shape
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    x, y = ((x - corner[0]) / scale).astype(np.float32), ((y - corner[1]) / scale).astype(np.float32)
    fine = cv2.remap(inner, x - 0.5, y - 0.5, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    edge = np.minimum(np.minimum(x, CROP_SIZE - x), np.minimum(y, CROP_SIZE - y))
    weight = np.clip(edge / 24, 0, 1)
    return (fine * weight + whole * (1 - weight)).astype(np.float32)


UNLIKE = 0.2
"""`FaceCheck.unlike` above which a frame counts as torn, or as another picture."""
COMPARED = 900
"""Approximate number of triangles of the face that are compared."""
FACING = 0.35
"""Least area of a triangle in the picture, as a share of its area seen from the front, for it to be compared."""
LEAST_SPREAD = 12.0
"""Least standard deviation of the face's colours, levels, that differences are compared with: grain is no fault."""
FEWEST = 60
"""Fewest visible triangles from which `FaceCheck.unlike` is computed."""


class FaceCheck:
    """Checks frames by the colours that some triangles of the face have in the photo, at their new places.

    Colours are read pixel by pixel, by none of the operations that paint a frame, so that faults of these are found.
    """

    def __init__(self, canvas: Canvas, verts_cam: Float32[np.ndarray, "V 3"], head: HeadModel) -> None:
        """Read the colours of the photo at the fitted head, `verts_cam` (camera frame, m)."""
        self._camera = canvas.camera
        facial = ((head.facial_mask > 0.5) & head.part("skin")).numpy()
        facial &= ~lids(head) & ~in_eyes(head) & ~around_lips(head)
        triangles = head.dense_faces.numpy()
        triangles = triangles[facial[triangles].all(1)]
        self._triangles = triangles[:: max(len(triangles) // COMPARED, 1)]
        self._colours, self._seen = self._look(canvas.photo, verts_cam)

    def unlike(self, frame: UInt8[np.ndarray, "H W 3"], verts_cam: Float32[np.ndarray, "V 3"]) -> float:
        """Mean squared difference from the photo's colours at the triangles, over the variance of these colours.

        0 for the photo's colours, about 2 for unrelated ones; also 0 if fewer than `FEWEST` triangles are visible.
        """
        colours, seen = self._look(frame, verts_cam)
        both = seen & self._seen
        if both.sum() < FEWEST:
            return 0.0
        expected = self._colours[both]
        spread = ((expected - expected.mean((0, 1))) ** 2).mean()
        return float(((colours[both] - expected) ** 2).mean() / max(spread, LEAST_SPREAD**2))

    def _look(
        self, frame: UInt8[np.ndarray, "H W 3"], verts_cam: Float32[np.ndarray, "V 3"]
    ) -> tuple[Float32[np.ndarray, "N 3"], Bool[np.ndarray, " N"]]:
        """Colours at the triangles, and True for those that face the camera and are inside the picture."""
        corners = verts_cam[self._triangles]
        px = corners[..., :2] / corners[..., 2:] * self._camera.focal_px + [self._camera.cx, self._camera.cy]
        a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        normal = np.cross(a, b)
        facing = normal[:, 2] < -FACING * np.linalg.norm(normal, axis=1)
        height, width = frame.shape[:2]
        column, row = np.floor(px.mean(1)).astype(int).T
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        row, column = np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)
        # Blurred with the pixels around it, the part of the frame that holds them all.
        top, left = max(row.min() - 1, 0), max(column.min() - 1, 0)
        part = frame[top : row.max() + 2, left : column.max() + 2]
        colours = cv2.blur(part, (3, 3))[row - top, column - left]
        return colours.astype(np.float32), facing & inside
