"""The user's own SMPL-X file, when EXPPORTRAIT_SMPLX names one: it is licensed, and never part of the project."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from support.smplx_bodies import TOLERANCE_M, Twin, difference_m, in_place, turned, twin

from expportrait_cli.head import HeadModel, coarse, dense, joints, landmarks, pose
from expportrait_cli.head.facemesh import LIP_PAIRS
from expportrait_cli.head.model import EYE_LEFT, EYE_RIGHT, HEAD, JAW, NECK, HeadPose
from expportrait_cli.head.smplx.build import ENVIRONMENT, JAW_FULL_RAD
from expportrait_cli.pipeline.heads import head_by_name

FILE = os.environ.get(ENVIRONMENT)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FILE, reason=f"the licensed SMPL-X file is not at hand: {ENVIRONMENT} is not set"),
]


@pytest.fixture(scope="module")
def both() -> Twin:
    return twin(Path(str(FILE)))


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return head_by_name("smplx")


@pytest.mark.parametrize("seed", range(20))
def test_vertices_are_the_packages(both, seed):
    """Turned as a whole with any expression; and with the mouth wide open, without one that would move its joint."""
    generator = np.random.default_rng(seed)
    betas, psi = generator.normal(size=300), generator.normal(size=100)
    pose = {"turn": generator.normal(0, 0.8, 3), "shift": generator.normal(size=3)}
    assert difference_m(both, *turned(both, betas, psi, **pose, jaw=np.zeros(3), gaze=np.zeros(4))) < TOLERANCE_M
    assert difference_m(both, *in_place(both, betas, np.array([JAW_FULL_RAD, 0, 0]))) < TOLERANCE_M


def test_it_is_a_head(head):
    """Left is left, eyes are in front of the ears, parts are found, lips part when the jaw opens."""
    assert head.joint_template[EYE_LEFT, 0] > 0.02 > -0.02 > head.joint_template[EYE_RIGHT, 0]
    assert 0.05 < (head.joint_template[EYE_LEFT] - head.joint_template[EYE_RIGHT]).norm() < 0.08
    assert head.joint_template[NECK, 1] < head.joint_template[HEAD, 1] < head.joint_template[EYE_LEFT, 1]
    assert 4000 < len(head.template) < 9000
    for part in ("eye_left", "eye_right"):
        assert head.part(part).sum() > 200
    assert not head.facial_mask[head.parts > 0].any() and head.facial_mask.max() == 1
    upper, lower = (list(rows) for rows in zip(*LIP_PAIRS, strict=True))

    def gaps_m(jaw_rad: float) -> torch.Tensor:
        jaw, still, places = torch.tensor([jaw_rad, 0, 0]), torch.zeros(3), joints(head, torch.zeros(300))
        shape = dense(head, coarse(head, torch.zeros(300), torch.zeros(100), jaw, torch.zeros(4)))
        bones = {"rotation": still, "translation": still, "torso_rotation": still, "torso_translation": places[NECK]}
        points = landmarks(head, pose(head, shape, places, HeadPose(jaw=jaw, gaze=torch.zeros(4), **bones)))
        return (points[upper] - points[lower]).norm(dim=-1)

    assert gaps_m(0.0).max() < 0.005
    assert gaps_m(JAW_FULL_RAD)[0] > 0.015
    assert head.skinning[:, JAW].max() > 0.7
