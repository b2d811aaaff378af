"""The transfer network holds what it promises, whatever its weights are."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.performers import make_state
from support.transfer_faces import (
    KINDS,
    driver_of,
    every,
    expressions,
    face_of,
    offsets,
    photo_of,
    rows_of,
    still_curves,
    tiny,
    trained,
)

from expportrait_cli.config import TransferConfig
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.geometry.rotations import matrix
from expportrait_cli.retargeting import Beyond, transfer
from expportrait_cli.retargeting.face import Face, Neutral, shortest_turn, stacked
from expportrait_cli.retargeting.network import LIMIT_M, bounded
from expportrait_cli.retargeting.stage import Learned

pytest_plugins = ("support.astronaut",)

pytestmark = pytest.mark.slow

TURN, SHIFT = torch.tensor([0.3, -0.7, 0.2]), torch.tensor([0.2, -0.1, 1.0])
ROUNDING = 2e-3
"""Single precision of points a metre from the origin, in shape features of 0.01 mm."""
CANCELLED = {"learned": {"mixer.4.bias"}, "blind": {"mixer.4.bias"}, "concat": {"vertex.4.bias"}}
"""What is added to the expression and to rest alike moves nothing."""


@pytest.fixture(scope="module")
def face(head) -> Face:
    return Face.of(head)


@pytest.mark.parametrize("kind", KINDS)
def test_at_rest_nothing_moves(head, face, kind):
    network = tiny(face, kind)
    assert not offsets(network, face_of(head, face, 1), torch.zeros(1, 40), torch.zeros(1, 3)).any()
    # A product of one row and one of several may round differently.
    several = offsets(network, face_of(head, face, 1), torch.zeros(5, 40), torch.zeros(5, 3))
    assert several.abs().max() < 1e-8


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_at_rest_does_not_move_among_others_that_do(head, face, kind):
    psi, jaw = expressions(5)
    psi[3], jaw[3] = 0, 0
    found = offsets(tiny(face, kind), face_of(head, face, 1), psi, jaw)
    assert found[[0, 1, 2, 4]].norm(dim=-1).mean() > 1e-5
    assert found[3].abs().max() < 1e-8


@pytest.mark.parametrize("kind", KINDS)
def test_offsets_fade_with_the_mask(head, face, kind):
    psi, jaw = (0.02 * value for value in expressions(2))
    masked = offsets(tiny(face, kind), face_of(head, face, 1), psi, jaw)
    whole = offsets(tiny(replace(face, mask=torch.ones_like(face.mask)), kind), face_of(head, face, 1), psi, jaw)
    assert whole.norm(dim=-1).max() < LIMIT_M / 8
    assert torch.allclose(masked, whole * face.mask[:, None], atol=2e-6)
    assert masked.norm(dim=-1)[:, face.mask < 0.01].max() < 1e-5


def test_vertices_are_those_of_the_facial_mask(head, face):
    learned = Learned(trained(tiny(face)), photo_of(head, 1), head)
    assert np.array_equal(learned.vertices, torch.nonzero(head.facial_mask > 0)[:, 0].numpy())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [10.0, 1e4])
def test_offsets_are_bounded(head, face, kind, size):
    psi, jaw = expressions(2)
    network = tiny(face, kind)
    network.vertex[-1].weight.mul_(size)
    length = offsets(network, face_of(head, face, 1), size * psi, jaw).norm(dim=-1)
    assert torch.isfinite(length).all() and length.max() < LIMIT_M * (1 + 1e-5)
    assert length.max() > 0.9 * LIMIT_M


def test_bounds_keep_direction_and_small_steps():
    steps = torch.linspace(0, 0.1, 4001).double()[:, None] * torch.tensor([0.6, 0.0, -0.8]).double()
    found = bounded(steps)
    length = found.norm(dim=-1)
    assert torch.allclose(found[:, 0] * -0.8, found[:, 2] * 0.6, atol=1e-12)
    assert (length.diff() >= 0).all() and length.max() <= LIMIT_M * (1 + 1e-6)
    # A millimetre loses half a percent.
    assert torch.allclose(length[:40], steps[:40].norm(dim=-1), rtol=6e-3)


def test_bounds_have_gradients_everywhere():
    near = torch.tensor([[0.0, 0, 0], [1e-9, 0, 0], [7.9e-6, 0, 0], [8.1e-6, 0, 0], [0.02, 0, 0], [1e3, 0, 0]])
    steps = near.requires_grad_()
    (gradient,) = torch.autograd.grad(bounded(steps).sum(), steps)
    assert torch.isfinite(gradient).all()
    assert torch.allclose(gradient[1:4], torch.ones(3, 3), atol=1e-5)


@pytest.mark.parametrize("kind", ["learned", "blind"])
def test_a_head_that_is_turned_and_moved_has_turned_offsets(head, face, kind):
    (psi, jaw), verts, R = expressions(2), face_of(head, face, 1), matrix(TURN)
    network = tiny(face, kind)
    here, there = (offsets(network, v, psi, jaw) for v in (verts, verts @ R.T + SHIFT))
    assert (there - here @ R.T).abs().max() < ROUNDING * here.abs().max()


@pytest.mark.parametrize("kind", ["learned", "blind"])
def test_a_larger_head_has_larger_offsets(head, face, kind):
    psi, jaw = (0.02 * value for value in expressions(2))
    verts, network = face_of(head, face, 1), tiny(face, kind)
    here, there = (offsets(network, v, psi, jaw) for v in (verts, 1.25 * verts))
    assert here.norm(dim=-1).max() < LIMIT_M / 8
    assert (there - 1.25 * here).abs().max() < 0.01 * here.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_where_a_head_stands_does_not_matter(head, face, kind):
    (psi, jaw), verts, network = expressions(2), face_of(head, face, 1), tiny(face, kind)
    here, there = (offsets(network, v, psi, jaw) for v in (verts, verts + SHIFT))
    assert (there - here).abs().max() < ROUNDING * here.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_alike_however_they_are_asked_for(head, face, kind):
    psi, jaw = expressions(17)
    fit = photo_of(head, 1)
    curves = still_curves(fit, psi, jaw)
    learned = Learned(trained(tiny(face, kind)), fit, head)
    whole = learned(slice(0, 17), curves)
    for size in (1, 7):
        parts = [slice(begin, begin + size) for begin in range(0, 17, size)]
        assert np.array_equal(np.concatenate([learned(part, rows_of(curves, part)) for part in parts]), whole)
    order = np.random.default_rng(0).permutation(17)
    assert np.array_equal(learned(slice(0, 17), rows_of(curves, order)), whole[order])
    assert np.array_equal(Learned(trained(tiny(face, kind)), fit, head)(slice(0, 17), curves), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_who_drives_is_not_seen(head, face, kind):
    """Two drivers of other identity, landmarks and pose do the same: every bit of the offsets is the same (T6)."""
    moods = [{}, {"browInnerUp": 0.8, "jaw": (0.2, 0.0, 0.0)}, {"mouthSmileLeft": 0.7, "jaw": (0.1, 0.02, 0.0)}]
    poses = [{}, {"turn": (0.1, 0.3, 0.0), "translation": (0.02, 0.0, 1.0), "gaze": (0.1, 0.2, 0.1, 0.2)}]
    fit = photo_of(head, 1, expression=np.full(40, 0.05))
    found = []
    for seed, pose in enumerate(poses, 2):
        driver = driver_of(head, [make_state(head, **mood, **pose) for mood in moods], seed=seed)
        performance = transfer(
            fit, driver, head, TransferConfig(neutral_frame="0"), Beyond(trained=trained(tiny(face, kind)))
        )
        found.append((performance.offsets(slice(0, 3), performance.curves), performance.steps, driver))
    assert np.array_equal(found[0][0], found[1][0])
    assert np.abs(found[0][0][1:]).max() > 1e-5
    assert np.abs(found[0][2].landmarks - found[1][2].landmarks).max() > 5


def test_a_blind_network_sees_nothing_but_the_surface(head, face):
    def own(network, seed):
        neutral = Neutral.of(face_of(head, face, seed), face)
        fields = network.fields(neutral, network.code(neutral), every(face))
        return torch.linalg.solve(neutral.frames, fields.mT)

    blind, seeing = tiny(face, "blind"), tiny(face, "learned")
    assert torch.allclose(own(blind, 1), own(blind, 2), atol=1e-5)
    assert (own(seeing, 1) - own(seeing, 2)).abs().mean() > 0.05 * own(seeing, 1).abs().mean()
    (psi, jaw), code = expressions(3), torch.randn(2, 6)
    one, two = (blind.coefficients(row, psi, jaw) for row in code)
    assert torch.equal(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(head, face, kind):
    """Gradients reach all weights; of the biases, one is common to an expression and to rest."""
    network = tiny(face, kind).requires_grad_()
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=1e6)
    (psi, jaw), verts = expressions(3), face_of(head, face, 1)
    wanted = 0.002 * torch.randn(3, len(verts), 3, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        optimizer.zero_grad()
        (offsets(network, verts, psi, jaw) - wanted).square().mean().backward()
        gradient = {name: float(value.grad.abs().max()) for name, value in network.named_parameters()}
        idle = {name for name, size in gradient.items() if size < 1e-3 * np.median([*gradient.values()])}
        assert idle == CANCELLED[kind], gradient
        optimizer.step()
    same = {name for name, value in network.named_parameters() if torch.equal(value, before[name])}
    assert same <= CANCELLED[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_people_in_one_batch_do_not_mix(head, face, kind):
    network, rows = tiny(face, kind), torch.arange(0, len(face.vertices), 50)
    people = [Neutral.of(face_of(head, face, seed), face) for seed in (1, 2)]
    code = torch.stack([network.code(person) for person in people])
    psi, jaw = (value.unflatten(0, (2, 3)) for value in expressions(6))
    both = network.offsets(stacked([p.at(rows) for p in people]), code, psi, jaw, rows=rows.expand(2, -1))
    for k, person in enumerate(people):
        alone = network.offsets(person.at(rows), code[k], psi[k], jaw[k], rows=rows)
        assert torch.allclose(both[k], alone, atol=1e-7)


def test_a_face_at_rest_is_read_without_its_place_turn_and_size(head, face):
    verts, R = face_of(head, face, 1), matrix(TURN)
    here, there = Neutral.of(verts, face), Neutral.of(1.25 * verts @ R.T + SHIFT, face)
    assert torch.allclose(here.points, there.points, atol=1e-6)
    assert torch.allclose(here.normals, there.normals, atol=1e-3)
    assert torch.allclose(here.curvature, there.curvature, atol=1e-3)
    assert torch.allclose(1.25 * R @ here.frames, there.frames, atol=1e-3)
    own = vertex_normals(verts, face.faces)
    size = torch.linalg.det(here.frames)[:, None] ** (1 / 3)
    assert size.std() < 1e-5 and float(size.mean()) == pytest.approx(1, abs=0.2)
    led = (here.frames @ face.normals[..., None])[..., 0] / size
    assert (led - own).norm(dim=-1).max() < 1e-4


def test_the_mean_face_is_read_as_it_is(face):
    mean = Neutral.of(face.template, face)
    assert torch.allclose(mean.points, face.template, atol=1e-6)
    assert torch.allclose(mean.frames, torch.eye(3).expand_as(mean.frames), atol=1e-3)


def test_the_shortest_turn(face):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.nn.functional.normalize(torch.randn(2, 500, 3, generator=generator), dim=-1)
    cosine = (a * b).sum(-1)
    a, b, cosine = (value[cosine > -0.9] for value in (a, b, cosine))
    turn = shortest_turn(a, b)
    assert torch.allclose((turn @ a[..., None])[..., 0], b, atol=1e-5)
    assert torch.allclose(turn @ turn.mT, torch.eye(3).expand_as(turn), atol=1e-5)
    assert torch.allclose(torch.linalg.det(turn), torch.ones(len(a)), atol=1e-5)
    # Of least angle: no more than between the two, so that the trace tells the same cosine.
    assert torch.allclose(turn.diagonal(dim1=1, dim2=2).sum(-1), 1 + 2 * cosine, atol=1e-5)
    assert torch.allclose(shortest_turn(b, a), turn.mT, atol=1e-6)
    assert torch.equal(shortest_turn(a, a)[0].diagonal(), torch.ones(3))
    R = matrix(TURN)
    assert torch.allclose(shortest_turn(a @ R.T, b @ R.T), R @ turn @ R.T, atol=1e-5)
