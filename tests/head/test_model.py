"""The default head: the laws of its chain, and what an anatomist would check."""

import math

import numpy as np
import pytest
import torch

from expportrait_cli.geometry import rotations
from expportrait_cli.head import HeadModel, coarse, dense, joints, landmark_model, landmarks, load_head, pose
from expportrait_cli.head.facemesh import LIP_PAIRS
from expportrait_cli.head.model import JAW, NECK, HeadPose, bones, gaze_pieces, skin

LEFT_LIDS, RIGHT_LIDS = (386, 374), (159, 145)
LEFT_IRIS, RIGHT_IRIS = 473, 468
MM = 1000.0


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head()


def expression(head: HeadModel, **units: float) -> torch.Tensor:
    values = torch.zeros(len(head.expression_names), dtype=head.template.dtype)
    for name, value in units.items():
        values[head.expression_names.index(name)] = value
    return values


def posed(
    head: HeadModel,
    *,
    identity: torch.Tensor | None = None,
    psi: torch.Tensor | None = None,
    jaw: tuple[float, float, float] = (0, 0, 0),
    gaze: tuple[float, float, float, float] = (0, 0, 0, 0),
    rotation: torch.Tensor | None = None,
    translation: torch.Tensor | None = None,
) -> torch.Tensor:
    """Dense vertices of a head that its torso follows rigidly."""
    like = head.template
    identity = like.new_zeros(head.identity_basis.shape[-1]) if identity is None else identity
    psi = expression(head) if psi is None else psi
    rotation = like.new_zeros(3) if rotation is None else rotation
    translation = like.new_zeros(3) if translation is None else translation
    jaw_rad, gaze_rad = like.new_tensor(jaw), like.new_tensor(gaze)
    shape = dense(head, coarse(head, identity, psi, jaw_rad, gaze_rad))
    places = joints(head, identity)
    return pose(
        head,
        shape,
        places,
        HeadPose(
            jaw=jaw_rad,
            gaze=gaze_rad,
            rotation=rotation,
            translation=translation,
            torso_rotation=rotation,
            torso_translation=rotations.matrix(rotation) @ places[NECK] + translation,
        ),
    )


def moved_mm(head: HeadModel, **units: float) -> torch.Tensor:
    """How far each landmark moves."""
    step = landmarks(head, posed(head, psi=expression(head, **units))) - landmarks(head, posed(head))
    return step.norm(dim=-1) * MM


def test_the_operator_averages(head):
    assert (dense(head, torch.ones_like(head.template)) - 1).abs().max() < 1e-5
    assert (head.skinning.sum(-1) - 1).abs().max() < 1e-6
    assert head.skinning.min() >= 0
    assert (head.landmark_barycentrics.sum(-1) - 1).abs().max() < 1e-5


def test_the_zero_pose_is_the_identity(head):
    assert (posed(head) - dense(head, head.template)).abs().max() < 1e-6


def test_a_batch_is_its_rows(head):
    generator = torch.Generator().manual_seed(0)
    identity = torch.randn(2, head.identity_basis.shape[-1], generator=generator)
    psi = torch.rand(2, head.expression_basis.shape[-1], generator=generator)
    still, ahead = torch.zeros(2, 3), torch.zeros(2, 4)
    both = dense(head, coarse(head, identity, psi, still, ahead))
    one = dense(head, coarse(head, identity[1], psi[1], still[1], ahead[1]))
    assert (both[1] - one).abs().max() < 1e-6


def test_moving_the_whole_head_moves_every_vertex_alike(head):
    options = {"psi": expression(head, mouthSmileLeft=0.7), "jaw": (0.2, 0.05, 0.0), "gaze": (0.1, 0.2, 0.1, 0.2)}
    rotation, translation = torch.tensor([0.4, -0.7, 0.2]), torch.tensor([0.1, -0.2, 1.3])
    expected = posed(head, **options) @ rotations.matrix(rotation).T + translation
    turned = posed(head, **options, rotation=rotation, translation=translation)
    assert (turned - expected).abs().max() < 2e-6


def test_the_jaw_takes_the_lower_lip_and_leaves_the_upper(head):
    upper, lower = (list(rows) for rows in zip(*LIP_PAIRS, strict=True))
    weights = landmark_model(head).skinning[:, JAW]
    assert weights[upper].max() <= 0.25
    assert weights[lower].min() >= 0.7


def test_lips_are_closed_at_rest_and_open_with_the_jaw(head):
    def gaps_mm(points: torch.Tensor) -> torch.Tensor:
        upper, lower = (list(rows) for rows in zip(*LIP_PAIRS, strict=True))
        return (points[upper] - points[lower]).norm(dim=-1) * MM

    closed_mm = gaps_mm(landmarks(head, posed(head)))
    assert closed_mm[0] < 1.2
    # Towards the corners the seam runs between the triangles.
    assert closed_mm.max() < 2
    wide = landmarks(head, posed(head, jaw=(head.jaw_full_rad, 0, 0)))
    assert gaps_mm(wide)[0] > 25
    # Down and back, in the head frame.
    assert wide[14, 1] < wide[13, 1]


def test_a_blink_moves_the_upper_lids(head):
    step_mm = moved_mm(head, eyeBlinkLeft=1, eyeBlinkRight=1)
    for upper, lower in (LEFT_LIDS, RIGHT_LIDS):
        assert 8 < step_mm[upper] < 13
        assert step_mm[lower] < 2


@pytest.mark.parametrize(
    ("unit", "own", "other"), [("eyeBlinkLeft", LEFT_LIDS, RIGHT_LIDS), ("eyeBlinkRight", RIGHT_LIDS, LEFT_LIDS)]
)
def test_a_wink_leaves_the_other_eye_alone(head, unit, own, other):
    step_mm = moved_mm(head, **{unit: 1.0})
    assert step_mm[own[0]] > 8
    assert step_mm[list(other)].max() < 0.1


def test_left_units_are_on_the_persons_left(head):
    sides = [name for name in head.expression_names if name.endswith(("Left", "Right")) and len(name) > 10]
    for name in sides:
        moves = head.expression_basis[:, :, head.expression_names.index(name)].norm(dim=-1)
        place = (head.template[:, 0] * moves).sum() / moves.sum()
        assert (place > 0) == name.endswith("Left"), name


@pytest.mark.parametrize(("gaze", "axis"), [((0, 0.3, 0, 0.3), 0), ((0.2, 0, 0.2, 0), 1)])
def test_gaze_turns_the_irises_to_the_persons_left_and_up(head, gaze, axis):
    step = landmarks(head, posed(head, gaze=gaze)) - landmarks(head, posed(head))
    for iris in (LEFT_IRIS, RIGHT_IRIS):
        assert step[iris, axis] * MM > 1.5
        assert step[iris].abs().argmax() == axis


def test_one_eye_can_turn_alone(head):
    step = landmarks(head, posed(head, gaze=(0, 0.3, 0, 0))) - landmarks(head, posed(head))
    assert step[LEFT_IRIS, 0] * MM > 1.5
    assert step[RIGHT_IRIS].norm() < 1e-6


def test_the_landmark_model_follows_the_exact_chain(head):
    """Its skinning is blended at the corners, so it may be off where a triangle spans lips or lids."""
    double = head.to("cpu", torch.float64)
    small = landmark_model(head)
    generator = torch.Generator().manual_seed(1)
    worst_m = 0.0
    for _ in range(4):
        identity = torch.randn(head.identity_basis.shape[-1], generator=generator, dtype=torch.float64)
        psi = torch.rand(head.expression_basis.shape[-1], generator=generator, dtype=torch.float64) * 0.6
        jaw, gaze = (0.25, 0.03, -0.02), (0.1, -0.2, -0.05, 0.15)
        turn, shift = torch.tensor([0.3, -0.5, 0.1]).double(), torch.tensor([0.05, 0.0, 1.2]).double()
        options = {"identity": identity, "psi": psi, "jaw": jaw, "gaze": gaze}
        exact = landmarks(double, posed(double, **options, rotation=turn, translation=shift))

        pieces = gaze_pieces(torch.tensor(gaze).double()).numpy() / small.gaze_full_rad
        canonical = small.template + small.identity @ identity.numpy() + small.expression @ psi.numpy()
        canonical = canonical + small.gaze @ pieces + small.jaw_corrective * (jaw[0] / small.jaw_full_rad)
        places = torch.from_numpy(small.joint_template + small.joint_basis @ identity.numpy())
        Rs, ts = bones(
            places,
            HeadPose(
                jaw=torch.tensor(jaw).double(),
                gaze=torch.tensor(gaze).double(),
                rotation=turn,
                translation=shift,
                torso_rotation=turn,
                torso_translation=rotations.matrix(turn) @ places[NECK] + shift,
            ),
        )
        quick = skin(torch.from_numpy(small.skinning), torch.from_numpy(canonical), Rs, ts)
        worst_m = max(worst_m, float((quick - exact).norm(dim=-1).max()))
    assert worst_m < 0.0005


def test_gradients_reach_every_parameter(head):
    """Numerically at a few landmarks, through the whole chain; away from gaze 0, where the lids change over."""
    double = head.to("cpu", torch.float64)
    few = [1, 13, 14, 105, 159, 334, 374, 473]

    def chain(identity, psi, jaw, gaze, rotation, translation):
        full_identity = torch.nn.functional.pad(identity, (0, double.identity_basis.shape[-1] - len(identity)))
        full_psi = torch.nn.functional.pad(psi, (0, double.expression_basis.shape[-1] - len(psi)))
        shape = dense(double, coarse(double, full_identity, full_psi, jaw, gaze))
        places = joints(double, full_identity)
        still = {"torso_rotation": torch.zeros(3).double(), "torso_translation": places[NECK]}
        verts = pose(
            double, shape, places, HeadPose(jaw=jaw, gaze=gaze, rotation=rotation, translation=translation, **still)
        )
        return landmarks(double, verts)[few]

    start = ([0.5, -0.3], [0.2, 0.1], [0.2, 0.02, -0.03], [0.1, 0.2, -0.1, 0.15], [0.2, -0.3, 0.1], [0.0, 0.1, 1.0])
    inputs = [torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in start]
    assert torch.autograd.gradcheck(chain, inputs, fast_mode=True)
    chain(*inputs).square().sum().backward()
    for value in inputs[:4]:
        assert value.grad is not None and value.grad.abs().min() > 0


def test_sizes_are_a_persons(head):
    left, right = (joints(head, torch.zeros(head.identity_basis.shape[-1]))[bone] for bone in (4, 5))
    assert 0.055 < (left - right).norm() < 0.07
    points = landmarks(head, posed(head)).numpy()
    assert 0.10 < np.linalg.norm(points[10] - points[152]) < 0.20
    assert 15 < math.degrees(head.jaw_full_rad) < 30
