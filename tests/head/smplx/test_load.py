"""SMPL-X as a head model, against the `smplx` package, on files in its format that are made here."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import KDTree
from support.smplx_bodies import (
    TOLERANCE_M,
    VERTICES,
    Twin,
    body,
    difference_m,
    eye_turns,
    file_of,
    in_place,
    randomised,
    turned,
    twin,
)

from expportrait_cli.errors import WeightsError
from expportrait_cli.geometry import rotations
from expportrait_cli.head import HeadModel, coarse, dense, joints, landmarks, load_head
from expportrait_cli.head.finer import subdivide_triangles
from expportrait_cli.head.model import EYE_LEFT, EYE_RIGHT
from expportrait_cli.head.smplx.build import ENVIRONMENT, JAW_FULL_RAD, build, read
from expportrait_cli.pipeline.heads import head_by_name

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def anny() -> HeadModel:
    return load_head()


@pytest.fixture(scope="module")
def arrays(anny) -> dict[str, np.ndarray]:
    return body(anny)


@pytest.fixture(scope="module")
def plain(arrays, tmp_path_factory) -> Twin:
    """Without pose correctives."""
    return twin(file_of(tmp_path_factory.mktemp("plain"), randomised(arrays, 0)))


@pytest.fixture(scope="module")
def corrected(arrays, tmp_path_factory) -> Twin:
    """With correctives of jaw and shoulders of about 2 mm."""
    posedirs = np.zeros((VERTICES, 3, 486), np.float32)
    for joint in (16, 17, 22):
        posedirs[:, :, 9 * (joint - 1) : 9 * joint] = np.random.default_rng(joint).normal(0, 2e-3, (VERTICES, 3, 9))
    return twin(file_of(tmp_path_factory.mktemp("corrected"), {**randomised(arrays, 1), "posedirs": posedirs}))


def test_joints_are_the_packages(plain):
    betas = np.random.default_rng(1).normal(size=300)
    places, origin = plain.rest(betas)
    ours = joints(plain.head, torch.tensor(betas).float()).numpy() + origin
    assert np.abs(ours - places[[12, 12, 15, 22, 23, 24]]).max() < 1e-6
    package = plain.package(betas=torch.tensor(betas)[None])
    assert np.abs(package.joints[0, [12, 12, 15, 22, 23, 24]].detach().numpy() - ours).max() < 1e-6


@pytest.mark.parametrize("seed", range(20))
def test_a_head_that_turns_with_its_torso_is_the_packages(plain, seed):
    """Everything but the neck's own rotation: identity, expression, jaw, eyes, and the pose of the whole."""
    generator = np.random.default_rng(seed)
    betas, psi = generator.normal(size=300), generator.normal(size=100)
    jaw, turn, shift = generator.normal(0, [0.2, 0.05, 0.05]), generator.normal(0, 0.8, 3), generator.normal(size=3)
    gaze = generator.normal(0, 0.3, 4)
    ours, theirs = turned(plain, betas, psi, turn=turn, shift=shift, jaw=jaw, gaze=gaze)
    assert difference_m(plain, ours, theirs) < TOLERANCE_M


@pytest.mark.parametrize("seed", range(20))
def test_a_head_that_turns_alone_is_the_packages_off_the_neck(plain, seed):
    """The package bends at the head joint alone here, our neck bone half-way."""
    generator = np.random.default_rng(seed)
    betas, psi, gaze = generator.normal(size=300), generator.normal(size=100), generator.normal(0, 0.3, 4)
    jaw, turn = generator.normal(0, [0.2, 0.05, 0.05]), generator.normal(0, 0.4, 3)
    body_pose = np.zeros((21, 3))
    body_pose[14] = turn
    theirs = plain.packaged(betas=betas, expression=psi, jaw_pose=jaw, body_pose=body_pose, **eye_turns(gaze))
    places, origin = plain.rest(betas)
    neck, skull = places[12] - origin, places[15] - origin
    R = rotations.matrix(torch.tensor(turn)).numpy()
    ours = plain.posed(
        betas,
        psi,
        jaw,
        gaze,
        rotation=turn,
        translation=skull - R @ skull,
        torso_rotation=np.zeros(3),
        torso_translation=neck,
    )
    assert difference_m(plain, ours + origin, theirs, without=(12,)) < TOLERANCE_M


@pytest.mark.parametrize("seed", range(3))
def test_correctives_are_the_packages_at_the_full_opening(corrected, seed):
    betas = np.random.default_rng(seed).normal(size=300)
    assert difference_m(corrected, *in_place(corrected, betas, np.array([JAW_FULL_RAD, 0, 0]))) < TOLERANCE_M
    assert difference_m(corrected, *in_place(corrected, betas, np.zeros(3))) < TOLERANCE_M


def test_correctives_are_nearly_the_packages_on_the_way(corrected):
    """Half the opening has half the sine, but only a quarter of what the cosine loses."""
    half = np.array([JAW_FULL_RAD / 2, 0, 0])
    error_m = difference_m(corrected, *in_place(corrected, np.zeros(300), half))
    whole_m = corrected.head.jaw_corrective.norm(dim=-1).max().item()
    assert 1e-5 < error_m < 0.15 * whole_m


def test_the_mesh_goes_through_the_models_vertices_and_is_closed_where_it_was(plain):
    head = plain.head
    assert torch.equal(dense(head, head.template)[: len(head.template)], head.template)
    assert (head.operator @ torch.ones(len(head.template), 1) - 1).abs().max() < 1e-6
    assert (head.skinning.sum(1) - 1).abs().max() < 1e-6 and head.skinning.min() >= 0
    assert len(head.dense_faces) == 4 * len(head.faces)


def test_subdivision_rounds_an_icosahedron():
    golden = (1 + 5**0.5) / 2
    verts = np.array([(s, t * golden, 0) for s in (-1, 1) for t in (-1, 1)], float)
    verts = np.concatenate([np.roll(verts, turn, 1) for turn in range(3)]) / np.hypot(1, golden)
    near = np.linalg.norm(verts[:, None] - verts, axis=-1) < 1.1
    faces = [
        (a, b, c) for a in range(12) for b in range(a) for c in range(b) if near[a, b] and near[b, c] and near[a, c]
    ]
    faces = np.array([f if np.linalg.det(verts[list(f)]) > 0 else f[::-1] for f in faces])
    division = subdivide_triangles(faces, 12)
    assert division.smooth.shape == (42, 12) and len(division.triangles) == 80
    radius = np.linalg.norm(division.smooth @ verts, axis=1)
    # Halved plainly, the edges' middles would lie at 0.85.
    assert radius.min() > 0.95
    assert (np.linalg.det((division.smooth @ verts)[division.triangles]) > 0).all()


@pytest.fixture
def file(arrays, tmp_path, monkeypatch) -> Path:
    """The default head as SMPL-X file, named in the environment; nothing of it is cached yet."""
    path = tmp_path / "SMPLX_NEUTRAL.npz"
    np.savez(path, **arrays)
    monkeypatch.setenv(ENVIRONMENT, str(path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return path


@pytest.mark.slow
def test_facemesh_is_found_on_it_once(anny, file):
    """The same head in the other format gets the same landmarks and face, and the next time they are there at once."""
    with pytest.raises(WeightsError, match="track --head-model smplx"):
        load_head("smplx")
    head = head_by_name("smplx")
    own, expected = (landmarks(model, dense(model, model.template)) for model in (head, anny))
    away_m = (own - expected).norm(dim=-1)
    assert away_m.median() < 0.003
    assert away_m.quantile(0.9) < 0.008
    distance, nearest = KDTree(anny.template.numpy()).query(head.template.numpy())
    assert distance.max() < 1e-4
    face = head.facial_mask[: len(nearest)] > 0.5
    other = anny.facial_mask[: len(anny.template)][nearest] > 0.5
    assert (face & other).sum() / (face | other).sum() > 0.75
    assert not head.facial_mask[head.parts > 0].any()
    for part in ("eye_left", "eye_right", "mouth_cavity", "eye_socket"):
        assert head.part(part).any()
    again = load_head("smplx")
    assert torch.equal(again.landmark_triangles, head.landmark_triangles)
    assert torch.equal(again.facial_mask, head.facial_mask)


def test_eyeballs_turn_about_their_middle(plain, arrays, tmp_path):
    head, _ = build(read(file_of(tmp_path, arrays)))
    for part, joint in (("eye_left", EYE_LEFT), ("eye_right", EYE_RIGHT)):
        ball = dense(head, head.template)[head.part(part)]
        assert (ball.mean(0) - head.joint_template[joint]).norm() < 0.002
        assert (head.skinning[head.part(part), joint] > 0.99).all()
    assert head.joint_template[EYE_LEFT, 0] > 0 > head.joint_template[EYE_RIGHT, 0]
    assert torch.isfinite(coarse(head, torch.zeros(300), torch.zeros(100), torch.zeros(3), torch.full((4,), 0.2))).all()
