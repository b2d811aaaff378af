import numpy as np
import pytest

from expportrait_cli.geometry.rotations import similarity

TRUTH = np.array([[1.2 * np.cos(0.3), -1.2 * np.sin(0.3), 7.0], [1.2 * np.sin(0.3), 1.2 * np.cos(0.3), -4.0]])


def points() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(8, 2)) * 50 + 200


def moved(source: np.ndarray) -> np.ndarray:
    return source @ TRUTH[:, :2].T + TRUTH[:, 2]


def test_a_similarity_is_recovered():
    assert np.abs(similarity(points(), moved(points())) - TRUTH).max() < 1e-9


def test_noise_makes_no_shear():
    noisy = similarity(points(), moved(points()) + np.random.default_rng(1).normal(size=(8, 2)))
    assert np.linalg.det(noisy[:, :2]) == pytest.approx(1.44, rel=0.1)
    assert noisy[0, 0] == noisy[1, 1] and noisy[0, 1] == -noisy[1, 0]


def test_weights_are_repetitions():
    target = moved(points()) + np.random.default_rng(2).normal(size=(8, 2)) * 5
    counts = np.array([1, 3, 2, 1, 0, 1, 4, 1])
    repeated = similarity(points().repeat(counts, 0), target.repeat(counts, 0))
    assert np.abs(similarity(points(), target, counts.astype(float)) - repeated).max() < 1e-9


def test_a_mirror_image_is_not_followed():
    source = points() - points().mean(0)
    found = similarity(source, source * [-1, 1])
    assert np.linalg.det(found[:, :2]) >= 0


def test_one_place_gets_scale_zero():
    found = similarity(np.full((5, 2), 3.0), np.full((5, 2), 9.0))
    assert np.array_equal(found, [[0, 0, 9], [0, 0, 9]])
