"""Mouths wider open than the net can tell, read in a shortened picture."""

import cv2
import numpy as np
import pytest

from expportrait_cli.detect.mesh import GAPING, SHORTENED, gaping, shortened
from expportrait_cli.head.facemesh import CHIN, FOREHEAD, LIP_PAIRS, OUTER_EYES


def face(gap: float, turn: float = 0.0) -> np.ndarray:
    """A face 160 px high whose lips are `gap` distances of the outer eye corners apart, rolled by `turn` rad."""
    points = np.zeros((478, 2), np.float32)
    points[[FOREHEAD, CHIN]] = [[0, -80], [0, 80]]
    points[list(OUTER_EYES)] = [[-40, -20], [40, -20]]
    for upper, lower in LIP_PAIRS:
        points[[upper, lower]] = [[0, 30], [0, 30 + 80 * gap]]
    c, s = np.cos(turn), np.sin(turn)
    return (points @ np.array([[c, s], [-s, c]]) + 128).astype(np.float32)


@pytest.mark.parametrize(("gap", "share"), [(0.1, 0), (GAPING[0], 0), (sum(GAPING) / 2, 0.5), (0.6, 1)])
def test_only_a_mouth_wide_open_gapes(gap, share):
    assert gaping(face(gap, 0.4)) == pytest.approx(share, abs=1e-3)


@pytest.mark.parametrize("turn", [0.0, 0.5, -1.2])
def test_a_shortened_face_maps_back_to_itself(turn):
    points = face(0.5, turn)
    marks, places = points[[FOREHEAD, CHIN, 13, 14]], []
    for x, y in marks:
        image = np.zeros((256, 256, 3), np.uint8)
        cv2.circle(image, (int((x - 0.5) * 16), int((y - 0.5) * 16)), 5 * 16, (200, 200, 200), -1, cv2.LINE_AA, 4)
        small, back = shortened(image, points)
        weight = small[..., 0].astype(float)
        places.append([(weight.sum(axis) * np.arange(256)).sum() / weight.sum() + 0.5 for axis in (0, 1)])
    assert np.abs(np.array(places) @ back[:, :2].T + back[:, 2] - marks).max() < 0.6
    height = np.linalg.norm(np.array(places[1]) - places[0])
    assert height == pytest.approx(160 * SHORTENED, rel=0.02)
