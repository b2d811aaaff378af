import numpy as np
import pytest

from expportrait_cli.evaluation import face


@pytest.fixture
def points() -> np.ndarray:
    points = np.random.default_rng(0).uniform(100, 200, (478, 2))
    points[[33, 263]] = [120, 140], [180, 140]
    return points


def test_the_oval_is_left_out(points):
    assert len(face.INNER) == 432
    moved = points.copy()
    moved[face.OVAL] += 50
    assert face.nme(moved, points) == 0


def test_a_shift_is_counted_in_percent_of_the_eye_distance(points):
    moved = points + np.array([3, 0])
    assert face.nme(moved, points) == pytest.approx(100 * 3 / 60)
    assert face.aligned_nme(moved, points) == pytest.approx(0, abs=1e-9)


def test_alignment_takes_out_a_similarity_and_no_mirror_image(points):
    turn = 1.4 * np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    assert face.aligned_nme(points @ turn.T + [30, -20], points) == pytest.approx(0, abs=1e-9)
    assert face.aligned_nme(points * [-1, 1], points) > 10


def test_gaps_do_not_depend_on_size(points):
    assert face.lip_gap(2 * points) == pytest.approx(face.lip_gap(points))
    points[[13, 14]] = [150, 170], [150, 176]
    assert face.lip_gap(points) == pytest.approx(10)
    points[[159, 145]] = [130, 138], [130, 141]
    assert face.lid_gap(points)[0] == pytest.approx(5)


def test_steady_motion_does_not_jitter(points):
    assert face.jitter(points, points + 5, points + 10) == pytest.approx(0, abs=1e-9)
    assert face.jitter(points, points + np.array([3, 0]), points) == pytest.approx(100 * 6 / 60)
