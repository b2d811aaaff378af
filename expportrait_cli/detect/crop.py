"""Square crops: choice of the square, reading of its pixels, and conversion of points."""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8

from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit, Tracking
from expportrait_cli.config import GenerateConfig
from expportrait_cli.errors import InputError, UsageError

STILL_SIDE, TIGHT_SIDE = 2.3, 1.5
"""Side of a crop in face sizes. STILL_SIDE: for a face that does not move. TIGHT_SIDE: least side, where a larger one
would reach over the picture's border, beyond which there are only replicated pixels."""
HAIR, SHOULDERS, CHEEKS = 0.38, 0.52, 0.4
"""Margins that should be visible above (HAIR), below (SHOULDERS) and beside (CHEEKS) the face, in face sizes."""
TIGHT = 0.4
"""Share of these margins that must be visible even if the crop reaches over the border."""


class Crop(NamedTuple):
    """Square in the upright source picture, px; may reach over the border."""

    left: float
    top: float
    side: float


class Box(NamedTuple):
    """Rectangle in a picture, px; its corner and sides are whole numbers."""

    left: float
    top: float
    width: float
    height: float


WIDEST = 3
"""Largest ratio of a film's longer side to its shorter one."""


def shape_of(aspect: str, size: int) -> tuple[int, int]:
    """Width and height of a film whose short side has `size` px; both are even, which codecs need.

    Raises:
        UsageError: no two whole numbers, or too long a shape.
    """
    across, _, down = aspect.partition(":")
    if not (across.isdecimal() and down.isdecimal() and 0 < int(across) < 10**4 and 0 < int(down) < 10**4):
        raise UsageError(f"`aspect={aspect[:40]}`: expected width:height, such as 9:16, 16:9 or 4:5.")
    ratio = int(across) / int(down)
    if not 1 / WIDEST <= ratio <= WIDEST:
        raise UsageError(f"`aspect={aspect}`: expected a shape from 1:{WIDEST} to {WIDEST}:1.")
    long = 2 * round(size * max(ratio, 1 / ratio) / 2)
    return (long, size) if ratio > 1 else (size, long)


ABOVE = 0.3
"""Share of the free height beyond head and shoulders that is put above them, so that the eyes are near the upper
third."""


def framing(points: Float32[np.ndarray, "N 2"], crop: Crop, size: tuple[int, int], shape: tuple[int, int]) -> Box:
    """The rectangle in a picture of `size` that a film of `shape` shows.

    Its shorter side is at most that of the square crop, and it lies inside the picture. `points` are landmarks of the
    face, px of the picture; `size` and `shape` are width and height.

    Raises:
        InputError: the picture has no part of that shape in which the head fits.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    face = float(high[1] - low[1])
    unit = min(crop.side / min(shape), size[0] / shape[0], size[1] / shape[1])
    width, height = int(shape[0] * unit), int(shape[1] * unit)
    head = float(high[0] - low[0]), face
    if width < head[0] + 2 * TIGHT * CHEEKS * face or height < (1 + TIGHT * (HAIR + SHOULDERS)) * face:
        found = f"{width}x{height} px of its {size[0]}x{size[1]}, and the head has {head[0]:.0f}x{head[1]:.0f}"
        raise InputError(
            f"The photo's part in the shape of the film is {found}: it does not fit. Choose an `aspect` nearer to the "
            "photo's, or a photo with more around the head."
        )
    room = height - (1 + HAIR + SHOULDERS) * face
    above = HAIR * face + ABOVE * room if room > 0 else (height - face) * HAIR / (HAIR + SHOULDERS)
    left = np.clip(round(crop.left + (crop.side - width) / 2), 0, size[0] - width)
    top = np.clip(round(float(low[1]) - above), 0, size[1] - height)
    return Box(float(left), float(top), float(width), float(height))


def shown_box(fit: HeadFit | Tracking, points: Float32[np.ndarray, "478 2"], config: GenerateConfig) -> Box:
    """The rectangle in the photo that the film shows; a square one may reach over the photo's border.

    `points` are landmarks of the face, crop px.

    Raises:
        UsageError: the aspect cannot be read.
        InputError: the head does not fit in that aspect.
    """
    crop, size = Crop(*map(float, fit.crop)), (int(fit.size[0]), int(fit.size[1]))
    if config.paste_back:
        return Box(0.0, 0.0, float(size[0]), float(size[1]))
    shape = shape_of(config.aspect, config.size)
    if shape[0] == shape[1]:
        return Box(crop.left, crop.top, crop.side, crop.side)
    return framing(uncrop_points(points, crop, CROP_SIZE), crop, size, shape)


def steady_crop(faces: Float[np.ndarray, "T N 2"], size: tuple[int, int]) -> Crop:
    """One square for a whole shot, from the face points of each frame (landmarks or the corners of boxes).

    Frames without a face are NaN. `size` is width and height of the source. Whole pixels, so that a crop without
    scaling copies pixels. A lone outlier (beyond the 1st or 99th percentile) does not widen the crop.
    """
    seen = faces[np.isfinite(faces).all(axis=(1, 2))]
    bounds = seen.min(axis=1), seen.max(axis=1)
    heights = (bounds[1] - bounds[0]).max(axis=1)
    face = float(np.median(heights))
    low, high, side = _around(*bounds, heights, 1.0, STILL_SIDE * face)
    if side > min(size):
        low, high, needed = _around(*bounds, heights, TIGHT, TIGHT_SIDE * face)
        side = max(float(min(size)), needed)
    side = float(round(side))
    corner = np.round((low + high) / 2 - side / 2)
    # Never show border on one side while the image goes on beyond the other.
    room = np.array(size) - side
    corner = np.clip(corner, np.minimum(0, room), np.maximum(0, room))
    return Crop(float(round(corner[0])), float(round(corner[1])), side)


def _around(
    low: np.ndarray, high: np.ndarray, heights: np.ndarray, share: float, least: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Low and high corner (percentiles 1 and 99) of the faces with `share` of their margins, and a square's side.

    The side, px, is that of the square around both corners, and at least `least`.
    """
    reach = share * heights[:, None]
    first = np.percentile(low - reach * [CHEEKS, HAIR], 1, axis=0)
    last = np.percentile(high + reach * [CHEEKS, SHOULDERS], 99, axis=0)
    return first, last, max(least, float((last - first).max()))


def crop_image(image: UInt8[np.ndarray, "H W 3"], crop: Crop, out_size: int) -> UInt8[np.ndarray, "S S 3"]:
    """Read a crop at `out_size` px. Beyond the picture's border pixels are replicated; shrinking averages areas."""
    whole = Crop(*(float(round(value)) for value in crop))
    if max(abs(a - b) for a, b in zip(whole, crop, strict=True)) > 1e-3:
        return _crop_fractional(image, crop, out_size)
    left, top, side = (int(value) for value in whole)
    height, width = image.shape[:2]
    x0, x1 = np.clip([left, left + side], 0, width)
    y0, y1 = np.clip([top, top + side], 0, height)
    if x0 == x1 or y0 == y1:
        raise ValueError(f"crop {crop} lies outside the {width}x{height} image")
    inside = image[y0:y1, x0:x1]
    above, below, before, after = int(y0 - top), int(top + side - y1), int(x0 - left), int(left + side - x1)
    if above or below or before or after:
        inside = cv2.copyMakeBorder(inside, above, below, before, after, cv2.BORDER_REPLICATE)
    if side == out_size:
        return np.array(inside)
    method = cv2.INTER_AREA if side > out_size else cv2.INTER_CUBIC
    return cv2.resize(inside, (out_size, out_size), interpolation=method)


def _crop_fractional(image: UInt8[np.ndarray, "H W 3"], crop: Crop, out_size: int) -> UInt8[np.ndarray, "S S 3"]:
    """Read a crop whose corner or side is fractional: bilinear at a whole multiple of the size, then averaged."""
    times = max(1, int(np.ceil(crop.side / out_size)))
    step = crop.side / (out_size * times)
    back = np.array([[step, 0, crop.left + step / 2 - 0.5], [0, step, crop.top + step / 2 - 0.5]])
    fine = cv2.warpAffine(
        image,
        back,
        (out_size * times, out_size * times),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return fine if times == 1 else cv2.resize(fine, (out_size, out_size), interpolation=cv2.INTER_AREA)


def crop_points(points: Float32[np.ndarray, "*B 2"], crop: Crop, out_size: int) -> Float32[np.ndarray, "*B 2"]:
    """Convert source px to px of a crop of `out_size`."""
    corner = np.array(crop[:2])
    return ((points - corner) * (out_size / crop.side)).astype(np.float32)


Sides = tuple[float, float, float, float]
"""Left, top, right and bottom of a rectangle, px."""


def picture_box(crop: Crop, size: Int64[np.ndarray, " 2"], side: int) -> Sides:
    """Rectangle of the source picture (`size`) inside its crop, px of the crop at `side` px."""
    (left, top), (right, bottom) = np.clip(
        crop_points(np.array([[0, 0], size], np.float32), crop, side), 0, side
    ).tolist()
    return left, top, right, bottom


def uncrop_points(points: Float32[np.ndarray, "*B 2"], crop: Crop, out_size: int) -> Float32[np.ndarray, "*B 2"]:
    """Convert px of a crop of `out_size` to source px."""
    corner = np.array(crop[:2])
    return (points * (crop.side / out_size) + corner).astype(np.float32)
