"""The second subdivision: the same head, parameters and landmarks on a mesh of half the edges."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.smplx_bodies import body, file_of

from expportrait_cli.artifacts.types import HeadFit, Tracking
from expportrait_cli.config import TrackConfig
from expportrait_cli.errors import InputError
from expportrait_cli.geometry import mesh
from expportrait_cli.head import HeadModel, coarse, dense, joints, landmarks, pose
from expportrait_cli.head.finer import Finer, finer
from expportrait_cli.head.model import NECK, HeadPose, base_name, is_finer
from expportrait_cli.head.smplx.build import build, read
from expportrait_cli.pipeline.heads import check_same, head_behind, kind_of_head, tracking_head
from expportrait_cli.pipeline.steps import track_header

pytest_plugins = ("support.astronaut",)

pytestmark = pytest.mark.slow

MM = 1e3


@pytest.fixture(scope="module")
def fine(head) -> Finer:
    return finer(head)


@pytest.fixture(scope="module")
def double(head, fine) -> tuple[HeadModel, HeadModel]:
    return head.to("cpu", torch.float64), fine.head.to("cpu", torch.float64)


def shape(head: HeadModel, seed: int) -> torch.Tensor:
    """Coarse vertices of some person with some expression; of the template for seed 0."""
    make = torch.Generator().manual_seed(seed)
    size = float(seed > 0)
    identity = size * torch.randn(head.identity_basis.shape[-1], generator=make, dtype=torch.float64)
    psi = size * torch.rand(len(head.expression_names), generator=make, dtype=torch.float64)
    psi = psi * (torch.rand(len(psi), generator=make) < 0.2)
    jaw = size * torch.tensor([0.2, 0.0, 0.0], dtype=torch.float64)
    return coarse(head, identity, psi, jaw, torch.zeros(4, dtype=torch.float64))


def test_every_dense_quad_is_split_in_four(head, fine):
    assert len(fine.head.dense_faces) == 4 * len(head.dense_faces)
    assert 90_000 < len(fine.head.parts) < 100_000
    assert len(torch.unique(fine.head.dense_faces)) == len(fine.head.parts)
    closed = [(mesh.edges(each.dense_faces).opposite < 0).any(-1).sum() for each in (head, fine.head)]
    # A border edge becomes two; nothing else is left open.
    assert closed[1] == 2 * closed[0]


def test_edges_in_the_face_are_a_millimetre(fine):
    own = fine.head
    verts = dense(own, own.template)
    ends = mesh.edges(own.dense_faces).verts
    length = MM * (verts[ends[:, 0]] - verts[ends[:, 1]]).norm(dim=-1)
    assert 0.8 < float(length[(own.facial_mask[ends] > 0.5).all(-1)].median()) < 1.3


def test_weights_of_every_vertex_sum_to_one(double, fine):
    head, own = double
    rows = own.operator @ torch.ones(len(head.template), 1, dtype=torch.float64)
    assert (rows - 1).abs().max() < 1e-5
    assert np.abs(fine.lift.sum(1) - 1).max() < 1e-12 and fine.lift.data.min() >= 0
    assert (own.skinning.sum(1) - 1).abs().max() < 1e-6 and own.skinning.min() >= 0


def test_the_finer_surface_goes_through_the_vertices_of_the_other(double):
    head, own = double
    face = head.facial_mask > 0.5
    for seed in (0, 1, 2):
        still, moved = dense(head, shape(head, seed)), dense(own, shape(head, seed))[: len(head.parts)]
        away = MM * (moved - still).norm(dim=-1)[face]
        assert away.mean() < 0.005 and away.max() < 0.1


def test_the_finer_surface_is_smoother(double):
    """Normals of neighbouring triangles differ by half as much: flat halves would differ as before."""
    angle = []
    for own in double:
        verts, around = dense(own, own.template), mesh.edges(own.dense_faces)
        inside = (own.facial_mask[around.verts] > 0.9).all(-1) & (around.opposite >= 0).all(-1)
        (a, b), (c, d) = (verts[side[inside]].unbind(1) for side in (around.verts, around.opposite))
        normals = [mesh.normalize(torch.linalg.cross(*pair)) for pair in ((b - a, c - a), (d - a, b - a))]
        cosine = (normals[0] * normals[1]).sum(-1).abs().clamp(max=1)
        angle.append(float(torch.rad2deg(cosine.acos()).median()))
    assert angle[1] < 0.6 * angle[0]


def test_landmarks_stay(double):
    head, own = double
    worst = 0.0
    for seed in range(8):
        points = [landmarks(each, dense(each, shape(each, seed))) for each in (head, own)]
        worst = max(worst, MM * float((points[0] - points[1]).norm(dim=-1).max()))
    assert worst < 0.1


def test_a_head_at_rest_stays_where_it_is(double):
    _, own = double
    canonical, zero = dense(own, own.template), torch.zeros(3, dtype=torch.float64)
    at = joints(own, torch.zeros(own.identity_basis.shape[-1], dtype=torch.float64))
    still = {"rotation": zero, "translation": zero, "torso_rotation": zero, "torso_translation": at[NECK]}
    posed = pose(own, canonical, at, HeadPose(jaw=zero, gaze=torch.zeros(4, dtype=torch.float64), **still))
    # Skinning weights are single precision.
    assert (posed - canonical).abs().max() < 1e-7


def test_the_face_is_soft_and_ends_where_it_must(head, fine):
    mask = fine.head.facial_mask
    assert mask.min() == 0 and mask.max() <= 1 and (mask > 0).sum() > 3 * (head.facial_mask > 0).sum()
    assert (mask[~fine.head.part("skin")] == 0).all()
    step = [each.facial_mask[mesh.edges(each.dense_faces).verts].diff(dim=-1).abs().max() for each in (head, fine.head)]
    assert step[1] <= 0.51 * step[0]


def test_parts_keep_their_share(head, fine):
    for part in range(len(head.part_names)):
        before, after = (float((each.parts == part).float().mean()) for each in (head, fine.head))
        assert after == pytest.approx(before, rel=0.1)


def test_offsets_stay_where_they_are_and_go_smoothly_between(head, fine):
    offset = np.random.default_rng(0).normal(size=(len(head.parts), 3)).astype(np.float32)
    offset[head.facial_mask.numpy() == 0] = 0
    lifted = fine.lifted(offset)
    assert np.array_equal(lifted[: len(offset)], offset)
    assert not lifted[fine.head.facial_mask.numpy() == 0].any()
    constant = np.ones((len(head.parts), 3), np.float32)
    np.testing.assert_allclose(fine.lifted(constant), 1, atol=1e-5)
    # Of the template as an offset the finer head's own shape is made: no creases between the old vertices.
    shape = fine.lifted(dense(head, head.template).numpy())
    away = np.linalg.norm(shape - dense(fine.head, head.template).numpy(), axis=1)
    assert MM * away[fine.head.facial_mask.numpy() > 0.5].max() < 0.05


def test_triangles_are_subdivided_too(head, tmp_path):
    """A mesh without quads, as SMPL-X: interpolating, so nothing of it moves."""
    plain, _ = build(read(file_of(tmp_path, body(head))))
    plain = replace(plain, facial_mask=plain.part("skin").float() * (plain.template.new_tensor(0.5)))
    own = finer(plain).head
    assert len(own.dense_faces) == 4 * len(plain.dense_faces)
    before, after = dense(plain, plain.template), dense(own, own.template)
    assert (after[: len(before)] - before).abs().max() < 1e-6
    assert own.facial_mask.max() == 0.5 and (own.facial_mask[~own.part("skin")] == 0).all()


def test_twice_is_enough(fine):
    with pytest.raises(ValueError, match="twice"):
        finer(fine.head)


@pytest.mark.parametrize("name", ["anny", "smplx-01234567"])
def test_names_tell_the_meshes_apart(name):
    assert is_finer(f"{name}@2") and not is_finer(name)
    assert base_name(f"{name}@2") == base_name(name) == name
    assert kind_of_head(f"{name}@2") == kind_of_head(name) == name.partition("-")[0]


def lifted(fitted: HeadFit, fine: Finer) -> HeadFit:
    return replace(
        fitted,
        head_model=fine.head.name,
        static_offset=fine.lifted(fitted.static_offset),
        frame_offset=fine.lifted(fitted.frame_offset),
        relief_seen=np.zeros(len(fine.head.parts), np.float16),
    )


def test_an_artifact_finds_its_mesh(photo_tracking: Tracking, fitted: HeadFit, fine):
    path, own = Path("a.npz"), lifted(fitted, fine)
    found = head_behind(path, own)
    assert found.name == "anny@2" and torch.equal(found.dense_faces, fine.head.dense_faces)
    assert len(head_behind(path, fitted).parts) == len(fitted.static_offset)
    # A tracking has no mesh: whatever it was made with, it is read with the plain model.
    assert head_behind(path, replace(photo_tracking, head_model="anny@2")).name == "anny"
    plain = tracking_head(found)
    assert plain.name == "anny" and tracking_head(plain) is plain
    keys = [track_header(TrackConfig(), each.name, "hash")["key"] for each in (plain, found)]
    assert keys[0] != keys[1]
    with pytest.raises(InputError, match="flame"):
        head_behind(path, replace(own, head_model="flame@2"))


def test_a_driver_of_the_plain_model_drives_a_finer_head(photo_tracking, fitted, fine):
    path = Path("a.npz")
    check_same(path, lifted(fitted, fine), path, photo_tracking)
    with pytest.raises(InputError, match="smplx"):
        check_same(path, lifted(fitted, fine), path, replace(photo_tracking, head_model="smplx-01234567@2"))
