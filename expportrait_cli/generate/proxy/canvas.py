"""What the film shows: the photo's crop, or the whole photo (paste-back)."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit
from expportrait_cli.detect.crop import Crop, crop_image
from expportrait_cli.detect.matte import Matte
from expportrait_cli.geometry.camera import Camera


@dataclass(frozen=True)
class Canvas:
    """Pixels that are painted, and how the photo's crop lies in them."""

    photo: UInt8[np.ndarray, "H W 3"]
    alpha: Float32[np.ndarray, "H W"]
    camera: Camera
    scale: float
    """Canvas px for one px of the crop."""
    corner: tuple[float, float]
    """Crop's corner on the canvas, px."""


def crop_canvas(image: UInt8[np.ndarray, "H W 3"], fit: HeadFit, size: int) -> Canvas:
    """The photo's crop at `size` pixels."""
    crop = Crop(*fit.crop)
    alpha = Matte().matte(crop_image(image, crop, CROP_SIZE))
    if size != CROP_SIZE:
        alpha = cv2.resize(alpha, (size, size), interpolation=cv2.INTER_LINEAR)
    camera = Camera.of_crop(fit.focal_px, CROP_SIZE, size)
    return Canvas(crop_image(image, crop, size), alpha, camera, size / CROP_SIZE, (0.0, 0.0))


def photo_canvas(image: UInt8[np.ndarray, "H W 3"], fit: HeadFit, size: int) -> Canvas:
    """The whole photo, so scaled that the crop has at most `size` pixels; the matte of the crop wins inside it."""
    height, width = image.shape[:2]
    crop = Crop(*fit.crop)
    shrink = min(1.0, size / crop.side)
    shape = (max(round(width * shrink), 2), max(round(height * shrink), 2))
    photo = image if shrink == 1.0 else cv2.resize(image, shape, interpolation=cv2.INTER_AREA)
    scale = shrink * crop.side / CROP_SIZE
    corner = (crop.left * shrink, crop.top * shrink)
    whole = _square_matte(photo)
    inner = Matte().matte(crop_image(image, crop, CROP_SIZE))
    alpha = _merge(whole, inner, scale, corner)
    camera = Camera(fit.focal_px * scale, corner[0] + CROP_SIZE / 2 * scale, corner[1] + CROP_SIZE / 2 * scale, *shape)
    return Canvas(photo, alpha, camera, scale, corner)


def _square_matte(photo):
    """Matte of the whole photo, read through the smallest square around it."""
    height, width = photo.shape[:2]
    side = max(height, width)
    square = Crop(round((width - side) / 2), round((height - side) / 2), side)
    k = CROP_SIZE / side
    matte = Matte().matte(crop_image(photo, square, CROP_SIZE))
    x, y = np.meshgrid(np.arange(width) + 0.5 - square.left, np.arange(height) + 0.5 - square.top)
    return cv2.remap(matte, (x * k - 0.5).astype(np.float32), (y * k - 0.5).astype(np.float32), cv2.INTER_LINEAR)


def _merge(whole, inner, scale, corner):
    """Put the crop's finer matte over the whole one, with a soft seam at the crop's border."""
    height, width = whole.shape
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    x, y = ((x - corner[0]) / scale).astype(np.float32), ((y - corner[1]) / scale).astype(np.float32)
    fine = cv2.remap(inner, x - 0.5, y - 0.5, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    edge = np.minimum(np.minimum(x, CROP_SIZE - x), np.minimum(y, CROP_SIZE - y))
    weight = np.clip(edge / 24, 0, 1)
    return (fine * weight + whole * (1 - weight)).astype(np.float32)
