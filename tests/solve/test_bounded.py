"""Steps within bounds against SciPy's bounded least squares on the whole system."""

import numpy as np
import pytest
from scipy.optimize import lsq_linear

from expportrait_cli.solve.solver import Quadratic, least

OWN, SHARED = 12, 5


def problem(seed: int, frames: int, shared: int):
    """Rows of every frame, about a third of whose best steps lie beyond their bounds, and of the shared step alone."""
    generator = np.random.default_rng(seed)
    # Columns lean on each other, as expressions do, so that a step held at its bound pulls others back inside.
    mixing = np.eye(OWN + shared) + 0.25 * generator.normal(size=(OWN + shared, OWN + shared))
    rows = [generator.normal(size=(40, OWN + shared)) @ mixing for _ in range(frames)]
    errors = [generator.normal(size=40) * 3 for _ in range(frames)]
    low, high = np.full(OWN, -np.inf), np.full(OWN, np.inf)
    low[:8], high[:8] = generator.uniform(-0.3, 0.0, 8), generator.uniform(0.0, 0.3, 8)
    quadratics = [Quadratic(a.T @ a, a.T @ b, low, high) for a, b in zip(rows, errors, strict=True)]
    return rows, errors, quadratics


@pytest.mark.parametrize(("frames", "shared"), [(1, 0), (1, SHARED), (6, SHARED)])
@pytest.mark.parametrize("seed", range(8))
def test_the_least_cost_within_the_bounds_is_found(seed, frames, shared):
    rows, errors, quadratics = problem(seed, frames, shared)
    stiffness = 2.0
    found, own = least(quadratics, np.eye(shared) * stiffness, np.full(shared, 0.5))
    width = frames * OWN + shared
    whole = np.zeros((frames * 40 + shared, width))
    for t, a in enumerate(rows):
        whole[t * 40 : (t + 1) * 40, t * OWN : (t + 1) * OWN] = a[:, :OWN]
        whole[t * 40 : (t + 1) * 40, frames * OWN :] = a[:, OWN:]
    whole[frames * 40 :, frames * OWN :] = np.eye(shared) * np.sqrt(stiffness)
    right = -np.concatenate([*errors, np.full(shared, 0.5 / np.sqrt(stiffness))])
    bounds = [np.concatenate([getattr(q, side) for q in quadratics]) for side in ("low", "high")]
    free = np.full(shared, np.inf)
    oracle = lsq_linear(
        whole, right, bounds=(np.r_[bounds[0], -free], np.r_[bounds[1], free]), method="bvls", tol=1e-14
    )
    steps = np.concatenate(own)
    assert np.abs(np.r_[steps, found] - oracle.x).max() < 1e-8
    assert ((steps == bounds[0]) | (steps == bounds[1])).sum() >= 3


def test_without_bounds_in_reach_it_is_the_newton_step():
    _, _, (frame,) = problem(0, 1, SHARED)
    wide = Quadratic(frame.hessian, frame.gradient, np.full(OWN, -np.inf), np.full(OWN, np.inf))
    shared, (own,) = least([wide], np.zeros((SHARED, SHARED)), np.zeros(SHARED))
    assert np.abs(np.r_[own, shared] + np.linalg.solve(frame.hessian, frame.gradient)).max() < 1e-10
