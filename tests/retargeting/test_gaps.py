"""Lids and lips that follow a driver's, on drawn eyes and mouths."""

import numpy as np
import pytest

from expportrait_cli.head.facemesh import EYE_CORNERS, LIPS, LOWER_LIDS, MOUTH_CORNERS, OUTER_EYES, UPPER_LIDS
from expportrait_cli.retargeting.gaps import OPENING_SHARE, Rest, lid_steps, lip_steps

WIDE_PX, GAP_PX = 30.0, 9.0


def eyes(gap_px: float) -> np.ndarray:
    """Landmarks of two level eyes, 30 px wide and this far open; the outer corners lie 100 px apart."""
    points = np.zeros((478, 2))
    across = np.linspace(0, 1, 9)
    arch = 4 * across * (1 - across) * gap_px / 2
    for (outer, inner), upper, lower in zip(EYE_CORNERS, UPPER_LIDS, LOWER_LIDS, strict=True):
        start = 100.0 if outer == OUTER_EYES[1] else 0.0
        x = start + across * WIDE_PX * (-1 if start else 1)
        points[list(upper)], points[list(lower)] = np.c_[x, 50 - arch], np.c_[x, 50 + arch]
        points[outer], points[inner] = [x[0], 50], [x[-1], 50]
    return points


def gaps(points: np.ndarray) -> np.ndarray:
    return np.array([[points[low, 1] - points[up, 1] for up, low in zip(*rims, strict=True)] for rims in RIMS])


RIMS = tuple(zip(UPPER_LIDS, LOWER_LIDS, strict=True))


def rest_of(points: np.ndarray) -> Rest:
    middle = gaps(points)[:, [4, 3, 5]] / 100
    both = np.r_[middle[1, [0, 2, 1]], middle[0, [0, 2, 1]], 0.5]
    return Rest(both, both)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.5], ids=["shut", "half shut", "wide"])
def test_a_lid_moves_from_corner_to_corner(share):
    photo, driver = eyes(GAP_PX), eyes(share * GAP_PX)
    moved = photo + lid_steps(driver[None], photo[None], rest_of(photo))[0]
    assert np.abs(gaps(moved) - share * gaps(photo)).max() < 0.02 * GAP_PX


def test_a_squint_opens_with_both_lids():
    photo = eyes(GAP_PX / 3)
    step = lid_steps(eyes(GAP_PX)[None], photo[None], rest_of(eyes(GAP_PX)))[0]
    upper, lower = -step[UPPER_LIDS[0][4], 1], step[LOWER_LIDS[0][4], 1]
    assert upper + lower == pytest.approx(GAP_PX * 2 / 3, rel=1e-3)
    assert upper / (upper + lower) == pytest.approx(OPENING_SHARE)


def test_a_lid_opens_to_the_drivers_gap_where_its_points_lie_aslant():
    """What lies beside each other in a pair of points does not grow with the opening, so its height grows more."""
    photo, driver = eyes(GAP_PX / 2), eyes(GAP_PX)
    for rims in UPPER_LIDS:
        photo[list(rims[1:-1]), 0] += 2.0
    moved = photo + lid_steps(driver[None], photo[None], rest_of(driver))[0]
    for upper, lower in ((159, 145), (386, 374)):
        assert np.linalg.norm(moved[upper] - moved[lower]) == pytest.approx(GAP_PX, rel=0.01)


def test_a_mouth_is_pursed_by_the_drivers_share():
    right, left = MOUTH_CORNERS
    points = eyes(GAP_PX)
    points[LIPS] = np.c_[np.linspace(30, 70, len(LIPS)), np.full(len(LIPS), 90.0)]
    points[[right, left]] = [[25.0, 90], [75.0, 90]]
    points[152], points[10] = [50, 120], [50, 0]
    driver = points.copy()
    driver[[right, left]] = [[30.0, 90], [70.0, 90]]
    rest = Rest(np.r_[np.zeros(6), 0.52], np.r_[np.zeros(6), 0.5])
    moved = points + lip_steps(driver[None], points[None], rest, 1.0)[0]
    # Its own width at rest, times the four fifths that are left of the driver's.
    assert moved[left, 0] - moved[right, 0] == pytest.approx(0.8 * 52, rel=1e-6)
