from dataclasses import replace

import numpy as np
import pytest
import torch

from expportrait_cli.head import dense, landmarks
from expportrait_cli.head.facemesh import (
    FACE_OVAL,
    IRIS,
    LID_PAIRS,
    LIP_PAIRS,
    LIPS,
    REACH_M,
    UPPER_LIDS,
    LandmarkSpread,
    blinks,
    open_mouth,
)
from expportrait_cli.head.model import JAW

pytest_plugins = ("support.astronaut",)

USED = np.setdiff1d(np.arange(478), [*FACE_OVAL, *IRIS])


@pytest.fixture(scope="module")
def nobody(head):
    return np.zeros(head.identity_basis.shape[-1], np.float32)


@pytest.fixture(scope="module")
def spread(head, nobody):
    return LandmarkSpread(head, nobody)


def field(spread, head, steps):
    """Steps of every vertex, and of the landmarks on them."""
    verts = np.zeros((len(head.parts), 2), np.float32)
    verts[spread.vertices] = spread(np.float32(steps)[None])[0]
    three = torch.from_numpy(np.c_[verts, np.zeros(len(verts), np.float32)])
    return verts, landmarks(head, three).numpy()[:, :2]


def smooth_steps(head):
    """A squint to one side: 1 at the landmarks of the left half, 0 on the right, soft between."""
    points = landmarks(head, dense(head, head.template)).numpy()
    lean = 0.5 + 0.5 * np.tanh(points[:, 0] / 0.03)
    return np.stack([lean, 0.3 - lean], -1)


def test_landmarks_move_as_they_should(spread, head):
    steps = smooth_steps(head)
    _, moved = field(spread, head, steps)
    error = np.linalg.norm(moved - steps, axis=1)[USED]
    # The ridge keeps a tenth of a lone landmark's step back, and next to nothing of what neighbours agree on.
    assert np.median(error) < 0.03
    assert error.max() < 0.25


def test_one_landmark_alone_is_trusted_in_part(spread, head):
    steps = np.zeros((478, 2))
    steps[4] = [1.0, 0.0]
    _, moved = field(spread, head, steps)
    assert 0.02 < moved[4, 0] < 0.9
    assert np.abs(moved).max() == np.abs(moved[4]).max()


def test_nothing_moves_far_off(spread, head, nobody):
    verts, _ = field(spread, head, smooth_steps(head))
    shape = open_mouth(head, nobody)
    points = landmarks(head, torch.from_numpy(shape)).numpy()[USED]
    distance = np.linalg.norm(shape[:, None] - points[None], axis=-1).min(1)
    skin = head.part("skin").numpy()
    assert np.abs(verts[skin & (distance > REACH_M)]).max() == 0
    # The field ends without a step.
    assert np.abs(verts[skin & (distance > 0.95 * REACH_M)]).max() < 0.15


def test_the_field_is_smooth_over_the_skin(spread, head):
    verts, _ = field(spread, head, smooth_steps(head))
    faces = head.dense_faces.numpy()
    faces = faces[head.part("skin").numpy()[faces].all(1)]
    shape = dense(head, head.template).numpy()
    length = np.linalg.norm(shape[faces[:, 0]] - shape[faces[:, 1]], axis=1)
    jump = np.linalg.norm(verts[faces[:, 0]] - verts[faces[:, 1]], axis=1)
    long = length > 5e-4
    assert (jump[long] / length[long]).max() < 250  # a unit step takes at least 4 mm


def test_the_upper_lip_leaves_the_lower_one(spread, head):
    weight = head.skinning[:, JAW].numpy()[head.landmark_triangles.numpy()].mean(1)
    upper = [k for k in LIPS if weight[k] < 0.5 and k not in (61, 291, 78, 308)]
    steps = np.zeros((478, 2))
    steps[upper] = [0.0, -1.0]
    _, moved = field(spread, head, steps)
    above, below = np.array(LIP_PAIRS[:5]).T
    assert -moved[above, 1].mean() > 0.7
    assert np.abs(moved[below, 1]).max() < 0.15 * -moved[above, 1].mean()


@pytest.fixture(scope="module")
def nameless(head):
    """The same head with components instead of units: nothing says which of them is a blink."""
    return replace(head, expression_names=tuple(f"component_{k}" for k in range(len(head.expression_names))))


def test_a_blink_without_a_name_is_found_from_the_rims(head, nameless):
    true, found = blinks(head), blinks(nameless)
    lengths = [np.linalg.norm(steps, axis=-1) for steps in (true, found)]
    moved = np.maximum(*lengths) > 1e-4
    assert np.corrcoef(*(length[moved] for length in lengths))[0, 1] > 0.93
    assert (true * found).sum() > 0.85 * np.linalg.norm(true) * np.linalg.norm(found)
    points = landmarks(head, torch.from_numpy(found[0])).numpy()
    above, below = np.array(LID_PAIRS[3:]).T
    gap = np.subtract(*(landmarks(head, dense(head, head.template)).numpy()[rows] for rows in (above, below)))
    assert (np.linalg.norm(points[above] + gap, axis=1) < 0.15 * np.linalg.norm(gap, axis=1)).all()
    assert np.abs(points[below]).max() < 0.1 * np.abs(points[above]).max()


@pytest.mark.parametrize("named", [True, False])
def test_the_upper_lid_leaves_the_lower_one(spread, head, nameless, nobody, named):
    spread = spread if named else LandmarkSpread(nameless, nobody)
    steps = np.zeros((478, 2))
    steps[[lid for rim in UPPER_LIDS for lid in rim[1:-1]]] = [0.0, -1.0]
    _, moved = field(spread, head, steps)
    above, below = np.array(LID_PAIRS).T
    assert -moved[above, 1].mean() > 0.6
    assert np.abs(moved[below, 1]).max() < 0.15 * -moved[above, 1].mean()


@pytest.mark.parametrize("part", ["eye_left", "eye_right", "teeth_upper", "teeth_lower"])
def test_eyeballs_and_teeth_move_as_one(spread, head, part):
    verts, _ = field(spread, head, smooth_steps(head))
    steps = verts[head.part(part).numpy()]
    assert len(steps) > 20
    assert np.ptp(steps, axis=0).max() < 1e-6
    assert np.abs(steps).max() > 0.1


def test_shifting_every_landmark_shifts_the_face(spread, head):
    verts, moved = field(spread, head, np.ones((478, 2)))
    assert np.abs(moved[USED] - 1).mean() < 0.05
    assert verts.max() < 1.2 and verts.min() > -0.05


def test_outline_and_irises_have_no_say(spread):
    used = np.flatnonzero(np.abs(spread.matrix).max(0)).tolist()
    assert not set(used) & set(IRIS)
    # The chin alone, of the outline: the lower teeth follow it.
    assert set(used) & set(FACE_OVAL) <= {152}


def test_it_is_linear(spread, head):
    a, b = smooth_steps(head), np.random.default_rng(0).normal(size=(478, 2))
    combined, first, second = spread(np.float32([2 * a - b, a, b]))
    assert np.abs(combined - (2 * first - second)).max() < 1e-4
