import numpy as np
import pytest

from expportrait_cli.detect.mesh import meet_lids
from expportrait_cli.head.facemesh import LOWER_LIDS, OUTER_EYES, UPPER_LIDS

IOD = 200.0


def lids(gap: float) -> np.ndarray:
    """Level lids, `gap` inter-ocular distances apart."""
    points = np.zeros((478, 2), np.float32)
    points[list(OUTER_EYES)] = [[0, 0], [IOD, 0]]
    for upper, lower in zip(UPPER_LIDS, LOWER_LIDS, strict=True):
        points[list(upper[1:-1])] = [50, 0]
        points[list(lower[1:-1])] = [50, gap * IOD]
    return points


def gap_after(gap: float) -> np.ndarray:
    met = meet_lids(lids(gap))
    rims = zip(UPPER_LIDS, LOWER_LIDS, strict=True)
    return np.concatenate([met[list(lower[1:-1]), 1] - met[list(upper[1:-1]), 1] for upper, lower in rims]) / IOD


@pytest.mark.parametrize("gap", [0.01, 0.015, 0.02])
def test_lids_that_the_net_leaves_ajar_touch(gap):
    assert (gap_after(gap) < 0.005).all()


@pytest.mark.parametrize("gap", [0.09, 0.15])
def test_open_lids_stay(gap):
    np.testing.assert_allclose(gap_after(gap), gap, atol=1e-4)


def test_more_open_stays_more_open():
    """The correction keeps the order of gaps, or a slow blink would flutter."""
    after = np.array([gap_after(gap)[0] for gap in np.linspace(0.001, 0.2, 100)])
    assert (np.diff(after) > 0).all()


def test_only_lids_move():
    points = lids(0.015)
    points[13] = [10, 20]
    moved = np.flatnonzero((meet_lids(points) != points).any(1))
    rims = np.concatenate([rim[1:-1] for rims in (UPPER_LIDS, LOWER_LIDS) for rim in rims])
    assert set(moved) == set(rims.tolist())
