"""Folds of a smile, drawn on plain skin."""

import cv2
import numpy as np

from expportrait_cli.head.facemesh import LIP_CORNERS
from expportrait_cli.painting.proxy.folds import FADED, FOLDS, without_folds


def test_grooves_beside_the_mouth_fade_and_nothing_else_changes():
    points = np.zeros((478, 2))
    points[list(LIP_CORNERS)] = [[80, 150], [180, 150]]
    for course, x in zip(FOLDS, (60, 200), strict=True):
        points[list(course)] = np.c_[np.full(5, x), np.linspace(100, 200, 5)]
    picture = np.full((260, 260, 3), (200, 160, 140), np.uint8)
    for x in (60, 130, 200):
        cv2.line(picture, (x, 80), (x, 220), (90, 60, 50), 3)
    outline = np.array([[78, 150], [130, 135], [182, 150], [130, 165]], float)
    calm = without_folds(picture, points, outline)
    depth, left = 200.0 - picture[150, 60, 0], 200.0 - calm[150, 60, 0]
    assert abs(left / depth - (1 - FADED)) < 0.12
    # The line over the mouth is none of a smile's, and plain skin has nothing to fill.
    assert np.array_equal(calm[:, 120:140], picture[:, 120:140])
    assert np.abs(calm[:, :40].astype(int) - picture[:, :40]).max() <= 1
