import numpy as np
import pytest

from expportrait_cli.evaluation.scores import interval


def test_equal_frames_leave_no_doubt():
    assert interval(np.full(30, 2.5)) == pytest.approx((2.5, 2.5))


def test_nothing_has_no_interval():
    assert interval(np.full(5, np.nan)) is None


def test_single_values_among_gaps_count():
    values = np.full(40, np.nan)
    values[[1, 9, 17, 25, 33]] = [1, 2, 3, 4, 5]
    low, high = interval(values)
    assert 1 <= low < 3 < high <= 5


def test_nineteen_of_twenty_intervals_hold_the_mean_of_independent_frames():
    rng = np.random.default_rng(0)
    bounds = [interval(rng.normal(3, 1, 100)) for _ in range(200)]
    held = np.mean([low < 3 < high for low, high in bounds])
    # Blocks of a short film promise a little too much: 95 % is the limit of long ones.
    assert 0.85 < held < 0.98


def test_neighbours_that_are_alike_widen_the_interval():
    rng = np.random.default_rng(1)
    loose = rng.normal(0, 1, 100)
    alike = np.repeat(loose[:10], 10)
    widths = [np.ptp(interval(x)) / x.std() for x in (loose, alike)]
    assert widths[1] > 1.8 * widths[0]
