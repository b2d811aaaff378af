"""The patch on which offsets are optimised: its operators, and the surface that it becomes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.known_head import KnownHead
from support.pixel_patch import posed, sheet

from expportrait_cli.fitting import patch as patches
from expportrait_cli.fitting.clip import dynamic_mask
from expportrait_cli.fitting.patch import Patch, read, weighted_mean
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.head import dense
from expportrait_cli.head.fitted import canonical_mesh, person_joints, pose_of
from expportrait_cli.head.model import bones, skin

pytest_plugins = ("support.astronaut",)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def face(head) -> Patch:
    return Patch.of(head.dense_faces.numpy(), dynamic_mask(head))


@pytest.fixture(scope="module")
def known(head) -> KnownHead:
    """Three frames of a head whose face has random offsets of 1 mm."""
    verts = dense(head, head.template)
    heights = 1e-3 * np.random.default_rng(0).normal(size=(3, len(verts)))
    return KnownHead.make(head, heights, vertex_normals(verts, head.dense_faces).numpy(), seed=0, source=Path("none"))


@pytest.mark.parametrize("smoothness", [5.0, 30.0])
def test_the_preconditioner_solves_what_it_multiplies(face, smoothness):
    preconditioner = face.preconditioner(smoothness)
    field = 1e-3 * noise(2, len(face.vertices), 3)
    assert (preconditioner.field(preconditioner.variable(field)) - field).abs().max() < 1e-9 * 1e-3
    assert (preconditioner.variable(preconditioner.field(field)) - field).abs().max() < 1e-9 * 1e-3


def test_the_variable_is_what_the_definition_says():
    patch = sheet(6)
    field = noise(2, 36, 3)
    matrix = torch.eye(36) + 5.0 * torch.from_numpy(patch.laplacian.toarray())
    torch.testing.assert_close(patch.preconditioner(5.0).variable(field), matrix @ field)


def is_gradient_right() -> bool:
    preconditioner = sheet(5).preconditioner(20.0)
    start = noise(2, 25, 3).requires_grad_()
    return torch.autograd.gradcheck(preconditioner.field, start, raise_exception=False)


def test_the_backward_pass_is_the_gradient():
    assert is_gradient_right()


def test_a_backward_pass_that_forgets_the_solve_would_be_noticed(monkeypatch):
    monkeypatch.setattr(patches._Solve, "backward", staticmethod(lambda ctx, gradient: (gradient, None)))
    assert not is_gradient_right()


def test_one_step_of_the_variable_moves_the_neighbourhood():
    patch = sheet(21)
    pull = torch.zeros(1, 441, 1, dtype=torch.float64)
    pull[0, 220] = 1
    moved = patch.preconditioner(20.0).field(pull)[0, :, 0]
    # The sheet has no fixed border: what is pushed in comes out again, spread.
    assert float(moved.sum()) == pytest.approx(1)
    assert 0 < moved[220] < 0.05 and moved[220] == moved.max() and moved.min() > 0


def test_frames_and_channels_are_solved_apart():
    preconditioner = sheet(8).preconditioner(20.0)
    values = noise(3, 64, 2)
    together = preconditioner.field(values)
    for t in range(3):
        for c in range(2):
            alone = preconditioner.field(values[t : t + 1, :, c : c + 1])
            torch.testing.assert_close(together[t, :, c], alone[0, :, 0], atol=1e-12, rtol=0)


def test_smoothing_keeps_constants(face):
    constant = torch.tensor([0.3, -2.0, 7.0], dtype=torch.float64).expand(2, len(face.vertices), 3)
    # The rows of the float32 matrix sum to one within 1e-7.
    assert (face.smooth(constant, 12) - constant).abs().max() < 1e-5


def test_smoothing_removes_what_is_finer_than_it(face):
    rough = noise(1, len(face.vertices), 1)
    assert face.smooth(rough, 12).std() < 0.25 * rough.std()
    assert (face.smooth(rough, 12).abs().max() < rough.abs().max()) and (face.smooth(rough, 0) == rough).all()


def test_smoothing_is_as_wide_as_it_says():
    side, steps = 61, 12
    patch = sheet(side)
    column, row = np.arange(side**2) % side, np.arange(side**2) // side
    # Vertices of equilateral triangles with sides of one, whose diagonals the sheet's faces have.
    place = np.stack([column - row / 2, row * np.sqrt(3) / 2], -1)
    impulse = torch.zeros(1, side**2, 1, dtype=torch.float64)
    middle = side**2 // 2
    impulse[0, middle] = 1
    spread = patch.smooth(impulse, steps)[0, :, 0].numpy()
    radius = np.sqrt((spread * ((place - place[middle]) ** 2).sum(1)).sum())
    assert radius == pytest.approx(np.sqrt(steps / 2), rel=0.01)


def test_smoothing_keeps_frames_and_channels_apart():
    patch, values = sheet(8), noise(3, 64, 2)
    torch.testing.assert_close(patch.smooth(values, 4)[1:2, :, :1], patch.smooth(values[1:2, :, :1], 4))


def normal_error(head, patch: Patch) -> float:
    """Largest difference between the normals of movable vertices on the patch and on the whole head."""
    verts = dense(head, head.template)
    whole = vertex_normals(verts, head.dense_faces)[patch.vertices]
    own = vertex_normals(verts[patch.vertices], patch.faces)
    return float((own - whole)[patch.mask > 0].abs().max())


def test_what_can_move_has_the_normals_of_the_whole_head(head, face):
    assert (face.mask > 0).sum() == (head.facial_mask > 0).sum() > 5000
    assert normal_error(head, face) < 1e-6


def test_a_patch_that_is_not_closed_would_be_noticed(head, face):
    inner = (face.mask > 0)[face.faces].all(1)
    assert normal_error(head, replace(face, faces=face.faces[inner])) > 0.01


def test_the_rim_is_no_wider_than_normals_need(face):
    rim = face.mask == 0
    assert 20 < int(rim.sum()) < 0.1 * len(rim)
    assert (face.mask[face.faces] > 0).any(1).all()


def test_a_mask_of_the_head_becomes_the_patchs(head, face):
    own = face.within(head.facial_mask.numpy() > 0.5)
    assert torch.equal(own, face.mask > 0.5)


def test_a_patch_poses_like_the_whole_head(known):
    rows = np.arange(3)
    clip, patch = known.clip, known.patch
    canonical = canonical_mesh(clip.fit, known.head, clip.curves)
    canonical[:, patch.vertices] += torch.from_numpy(known.offset)
    turns, shifts = bones(person_joints(clip.fit, known.head), pose_of(clip.curves, clip.curves.torso_translation))
    expected = skin(known.head.skinning, canonical, turns, shifts)
    assert (known.posed(rows) - expected).abs().max() < 1e-6
    _, bare = clip.pose(rows, patch)
    field = torch.from_numpy(known.offset) / patch.mask.clamp(min=1e-6)[:, None]
    shown = bare.moved(field)
    torch.testing.assert_close(shown.offset, torch.from_numpy(known.offset), atol=1e-9, rtol=1e-5)
    assert (shown.verts - expected[:, patch.vertices]).abs().max() < 1e-6
    whole = vertex_normals(expected, known.head.dense_faces)[:, patch.vertices] * torch.tensor([1.0, -1.0, -1.0])
    assert (shown.normals - whole)[:, patch.mask > 0].abs().max() < 1e-3
    assert torch.equal(bare.last().moved(field[-1:]).verts, shown.verts[-1:])


def test_heights_are_offsets_along_directions(known):
    _, bare = known.clip.pose(np.arange(3), known.patch)
    heights = 1e-3 * noise(3, len(known.patch.vertices), 1).float()
    directions = torch.nn.functional.normalize(noise(len(known.patch.vertices), 3, seed=1).float(), dim=-1)
    raised, moved = bare.raised(heights, directions), bare.moved(heights * directions)
    assert torch.equal(raised.verts, moved.verts) and torch.equal(raised.normals, moved.normals)


def stray_m(patch: Patch) -> float:
    """Largest offset of the surface where the true sheet may not move, when everything is asked to."""
    offset = posed(patch, 2).moved(torch.full((2, len(patch.vertices), 3), 1e-3)).offset
    return float(offset[:, sheet(12).mask == 0].abs().max())


def test_what_the_mask_forbids_stays_exactly():
    assert stray_m(sheet(12)) == 0


def test_a_mask_of_ones_would_be_noticed():
    assert stray_m(replace(sheet(12), mask=torch.ones(144))) > 0


def test_a_shared_field_moves_every_frame():
    field = 1e-3 * noise(1, 144, 3).float()
    shown = posed(sheet(12), 3).moved(field)
    torch.testing.assert_close(shown.offset, sheet(12).mask[:, None] * field.expand(3, -1, -1))


def test_the_gradient_passes_through_the_surface():
    patch = sheet(10)
    bare = posed(patch, 2)
    weight = [noise(2, 100, 3, seed=k) for k in range(3)]

    def value(field: torch.Tensor) -> torch.Tensor:
        shown = bare.moved(field)
        parts = (1e3 * shown.offset, 1e3 * shown.verts, shown.normals)
        return sum((w * part.double()).sum() for w, part in zip(weight, parts, strict=True))

    field = (2e-4 * noise(2, 100, 3, seed=4)).float().requires_grad_()
    (gradient,) = torch.autograd.grad(value(field), field)
    assert (gradient[:, patch.mask == 0] == 0).all() and (gradient[:, patch.mask > 0].abs().sum(-1) > 0).all()
    for seed in (5, 6, 7):
        step = 1e-5 * noise(2, 100, 3, seed=seed).float()
        with torch.no_grad():
            difference = float(value(field + step) - value(field - step)) / 2
        # Positions of a metre, in float32, are known to 0.1 micrometres, normals of 2 mm triangles to 1e-4.
        assert float((gradient * step).sum()) == pytest.approx(difference, rel=2e-2)


def test_where_pictures_are_read_carries_no_gradient():
    field = torch.zeros(2, 100, 3, requires_grad=True)
    shown = posed(sheet(10), 2).moved(field)
    assert shown.verts.requires_grad and shown.normals.requires_grad and not shown.px.requires_grad


@pytest.mark.parametrize("size", [64, 256, 512])
def test_pictures_of_any_size_are_read_in_the_crops_pixels(size):
    centre = (torch.arange(size, dtype=torch.float64) + 0.5) * 512 / size
    row, column = torch.meshgrid(centre, centre, indexing="ij")
    pictures = torch.stack([column, 2 * row, column - row])[None]
    px = 20 + 470 * noise(1, 200, 2).sigmoid()
    expected = torch.stack([px[..., 0], 2 * px[..., 1], px[..., 0] - px[..., 1]], -1)
    torch.testing.assert_close(read(pictures, px), expected)


def test_a_weighted_mean_of_nothing_is_zero():
    values, weights = torch.tensor([[1.0, 3.0], [5.0, 7.0]]), torch.tensor([[1.0, 3.0], [0.0, 0.0]])
    assert weighted_mean(values, weights).tolist() == [2.5, 0.0]


def test_a_patch_holds_each_triangle_once(face):
    key = face.faces.sort(-1).values.unique(dim=0)
    assert len(key) == len(face.faces)
    assert np.array_equal(np.unique(face.faces.numpy()), np.arange(len(face.vertices)))
