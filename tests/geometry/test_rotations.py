import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from expportrait_cli.geometry import rotations

ANGLES = [0.0, 1e-12, 1e-9, 9.9e-8, 1e-6, 1.1e-6, 1e-4, 0.3, 2.0, 3.0, np.pi - 1e-4, np.pi - 1e-7, np.pi]
AXES = [*np.eye(3), *-np.eye(3), *np.random.default_rng(0).normal(size=(8, 3))]


def vectors(angle: float) -> torch.Tensor:
    return torch.tensor(np.array([angle * axis / np.linalg.norm(axis) for axis in AXES]))


@pytest.mark.parametrize("angle", ANGLES)
def test_log_undoes_exp(angle):
    vector = vectors(angle)
    back = rotations.axis_angle(rotations.matrix(vector))
    error = (back - vector).norm(dim=-1)
    if angle == np.pi:
        # Both signs are the same rotation.
        error = torch.minimum(error, (back + vector).norm(dim=-1))
    assert error.max() < 1e-8


@pytest.mark.parametrize("angle", ANGLES)
def test_exp_undoes_log(angle):
    matrix = torch.from_numpy(Rotation.from_rotvec(vectors(angle).numpy()).as_matrix())
    again = rotations.matrix(rotations.axis_angle(matrix))
    assert (again - matrix).abs().max() < 1e-9


@pytest.mark.parametrize("angle", ANGLES)
def test_scipy_finds_the_same_matrix(angle):
    expected = Rotation.from_rotvec(vectors(angle).numpy()).as_matrix()
    assert np.abs(rotations.matrix(vectors(angle)).numpy() - expected).max() < 1e-12


@pytest.mark.parametrize("angle", ANGLES)
def test_a_matrix_in_single_precision_is_a_rotation(angle):
    matrix = rotations.matrix(vectors(angle).float())
    assert (matrix @ matrix.mT - torch.eye(3)).abs().max() < 1e-6
    assert (torch.linalg.det(matrix) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("start", [(0.0, 0.0, 0.0), (1e-8, 0.0, -1e-8), (0.4, -0.2, 0.9), (0.0, 3.0, 0.1)])
def test_gradients_of_exp(start):
    vector = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rotations.matrix, vector)


@pytest.mark.parametrize("start", [(0.0, 0.0, 0.0), (1e-9, 0.0, 0.0), (0.4, -0.2, 0.9), (0.0, 3.0, 0.1), (2.0, 2.0, 0)])
def test_the_slope_of_log_after_exp_is_one(start):
    vector = torch.tensor(start, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(lambda v: rotations.axis_angle(rotations.matrix(v)), vector)
    assert (slope - torch.eye(3)).abs().max() < 1e-6


def test_a_right_angle_about_z_takes_x_to_y():
    turn = rotations.rodrigues(np.array([0.0, 0.0, np.pi / 2]))
    assert np.allclose(turn @ [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], atol=1e-12)


def test_no_turn_looks_into_the_camera():
    assert np.array_equal(rotations.from_turns(np.zeros(3)), rotations.FRONTAL)
    # Turned about the camera's y axis, which points down, a face looks to the image's left.
    nose = rotations.from_turns(np.array([0.0, 0.5, 0.0])) @ [0.0, 0.0, 1.0]
    assert nose[0] < -0.4 and nose[2] < 0 and abs(nose[1]) < 1e-12


def test_turns_go_there_and_back():
    generator = np.random.default_rng(1)
    turns = generator.normal(size=(50, 3))
    turns *= (generator.uniform(0, 3.1, 50) / np.linalg.norm(turns, axis=1))[:, None]
    assert np.abs(rotations.to_turns(rotations.from_turns(turns)) - turns).max() < 1e-9
    assert np.abs(rotations.logarithm(rotations.rodrigues(turns)) - turns).max() < 1e-9
