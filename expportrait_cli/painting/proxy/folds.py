"""Removal of the folds of the photo's smile from frames in which the face does not smile."""

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from expportrait_cli.head.facemesh import LIP_CORNERS
from expportrait_cli.painting.proxy.layers import SUBPIXEL_BITS, fixed, ramp

FOLDS = ((203, 206, 216, 212, 202), (423, 426, 436, 432, 422))
"""FaceMesh landmarks along the nasolabial fold, from the nose past the corner of the mouth, on each side."""
FOLD_REACH, FOLD_WIDE, FADED = 0.12, 0.11, 0.75
"""FOLD_REACH: largest distance of a fold from these landmarks. FOLD_WIDE: width of the widest groove that counts as a
fold. Both in mouth widths of the photo. FADED: share of a fold's darkness that is removed."""


def without_folds(
    picture: UInt8[np.ndarray, "H W 3"], points: Float[np.ndarray, "478 2"], outline: Float[np.ndarray, "N 2"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Brighten the dark grooves of a smile beside the mouth; returns a new picture.

    `points` are FaceMesh's, px; `outline` is that of the lips, px, which stay unchanged.
    """
    width = float(np.linalg.norm(points[LIP_CORNERS[1]] - points[LIP_CORNERS[0]]))
    courses = [points[list(course)] for course in FOLDS]
    ends = np.concatenate(courses)
    left, top = np.maximum(ends.min(0) - 0.4 * width, 0).astype(int)
    right, bottom = np.maximum(ends.max(0) + 0.4 * width, 0).astype(int)
    box = np.s_[top : max(bottom, top), left : max(right, left)]
    shown = picture[box].astype(np.float32)
    if min(shown.shape[:2]) < 8:
        return picture
    away = np.ones(shown.shape[:2], np.uint8)
    cv2.polylines(away, [fixed(course - [left, top] - 0.5) for course in courses], False, (0,), 1, shift=SUBPIXEL_BITS)
    zone = 1 - ramp(cv2.distanceTransform(away, cv2.DIST_L2, 5) / width, (0.5 * FOLD_REACH, FOLD_REACH))
    lip = np.ones(shown.shape[:2], np.uint8)
    cv2.fillPoly(lip, [fixed(outline - [left, top] - 0.5)], (0,), shift=SUBPIXEL_BITS)
    zone = zone * ramp(cv2.distanceTransform(lip, cv2.DIST_L2, 5) / width, (0.02, 0.06))
    side = 2 * max(round(FOLD_WIDE * width / 2), 1) + 1
    base = cv2.GaussianBlur(shown, (0, 0), max(0.008 * width, 0.6))
    filled = cv2.morphologyEx(base, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    lighter = np.maximum(cv2.GaussianBlur(filled, (0, 0), max(0.02 * width, 0.6)) - base, 0)
    zone = cv2.GaussianBlur(zone.astype(np.float32), (0, 0), max(0.02 * width, 0.6))[..., None]
    whole = picture.copy()
    whole[box] = np.rint(shown + FADED * zone * lighter).clip(0, 255).astype(np.uint8)
    return whole
