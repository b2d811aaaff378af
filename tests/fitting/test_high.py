"""High quality: folds on the mesh of two subdivisions, and what a head with it passes on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.known_head import KnownHead, NumberedOracle, blank_fit, dynamic_poses, numbered_film, wrinkles, write_film
from support.performers import quiet
from support.pixel_patch import sheet

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import HeadFit
from expportrait_cli.cli import app
from expportrait_cli.config import FitConfig, FitDescent
from expportrait_cli.fitting.clip import Clip, dynamic_mask, plain_skin
from expportrait_cli.fitting.dynamic import Dynamic, dynamic_offsets
from expportrait_cli.fitting.evidence import Estimates, SharpClip
from expportrait_cli.fitting.fine import believed, frames, looseness, sharpened
from expportrait_cli.fitting.losses import Light, MagnitudeLoss, ShadingLoss
from expportrait_cli.fitting.patch import LocalPreconditioner, Patch
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.head import dense, landmarks
from expportrait_cli.head.facemesh import LIPS
from expportrait_cli.head.finer import Finer, finer

pytest_plugins = ("support.astronaut",)

MM = 1e3
EVEN = np.array([0.5, 0.5])


@pytest.fixture(scope="module")
def fine(head) -> Finer:
    return finer(head)


@pytest.fixture(scope="module")
def below(head) -> Patch:
    return Patch.of(head.dense_faces.numpy(), dynamic_mask(head))


@pytest.fixture(scope="module")
def face(fine, below) -> Patch:
    return Patch.above(below, fine, dynamic_mask(fine.head))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_heights_move_everywhere_and_tangents_on_their_part():
    patch, part = sheet(9), np.arange(20, 50)
    preconditioner = LocalPreconditioner(patch, 5.0, part)
    field = noise(2, 81, 3)
    beyond = np.setdiff1d(np.arange(81), part)
    field[:, beyond, 1:] = 0
    assert (preconditioner.field(preconditioner.variable(field)) - field).abs().max() < 1e-9
    spread = preconditioner.field(noise(2, 81, 3, seed=1))
    assert (spread[:, beyond, 1:] == 0).all() and (spread[:, beyond, 0] != 0).all()
    torch.testing.assert_close(spread[..., :1], patch.preconditioner(5.0).field(noise(2, 81, 3, seed=1)[..., :1]))


def test_the_gradient_passes_both_solves():
    preconditioner = LocalPreconditioner(sheet(5), 5.0, np.arange(8, 16))
    assert torch.autograd.gradcheck(preconditioner.field, noise(1, 25, 3).requires_grad_())


def test_smoothing_is_as_wide_on_the_finer_mesh(face, below):
    """In millimetres: a smooth field keeps as much of itself as on the mesh below."""
    waves = below.smooth(noise(1, len(below.vertices), 1), 6).float()
    assert face.below is not None
    lifted = face.below.up(waves)
    kept = []
    for patch, values in ((below, waves), (face, lifted)):
        inner = patch.mask > 0.9
        kept.append(float(patch.smooth(values, 12)[:, inner].std() / values[:, inner].std()))
    assert kept[1] == pytest.approx(kept[0], rel=0.1)


def test_smoothing_keeps_constants(face):
    constant = torch.tensor([0.3, -2.0], dtype=torch.float64).expand(2, len(face.vertices), 2)
    assert (face.smooth(constant, 12) - constant).abs().max() < 1e-5


def test_what_is_carried_up_stays_on_the_face(face, below):
    assert face.below is not None
    field = np.float32(1e-3 * noise(2, len(below.vertices), 3).numpy()) * below.mask.numpy()[:, None]
    lifted = face.below.lifted(field)
    assert not lifted[:, face.mask.numpy() == 0].any()
    old = np.searchsorted(face.vertices, below.vertices)
    assert np.array_equal(lifted[:, old], field)


def test_lips_slide_and_the_forehead_does_not(fine):
    head = fine.head
    verts = dense(head, head.template)
    loose = looseness(head)
    assert loose.min() == 0 and loose.max() == 1
    rim, forehead = landmarks(head, verts)[LIPS], landmarks(head, verts)[151]
    near = torch.cdist(verts, rim).min(1).values < 0.002
    high = (verts - forehead).norm(dim=-1) < 0.02
    assert (loose[near] == 1).all() and (loose[high] == 0).all()
    axes = frames(vertex_normals(verts, head.dense_faces), loose)
    torch.testing.assert_close(
        axes[near] @ axes[near].mT, torch.eye(3).expand(int(near.sum()), 3, 3), atol=1e-5, rtol=0
    )
    assert (axes[high, 1:] == 0).all() and (axes[high, 0].norm(dim=-1) - 1).abs().max() < 1e-5


def test_shading_is_believed_less_where_the_albedo_changes():
    """A step of paint across a sheet: half as much weight and less beside it, all of it elsewhere."""
    patch = sheet(20)
    column = torch.arange(400) % 20
    albedo = torch.where(column < 10, 0.0, 0.4)
    nothing = torch.zeros(1, 400)
    loss = ShadingLoss(patch, Light(torch.eye(9)[0]), albedo, nothing, nothing, torch.ones(1, 400))
    doubted = believed(loss)
    assert isinstance(doubted, ShadingLoss)
    weight = doubted.weight[0]
    assert (weight[(column < 7) | (column > 12)] > 0.99).all() and (weight[(column == 9) | (column == 10)] < 0.2).all()
    other = MagnitudeLoss(1.0)
    assert believed(other) is other


@pytest.mark.parametrize(("side", "size"), [(300, 512), (700, 700), (3000, 1024)])
def test_pictures_are_as_sharp_as_their_source(head, tmp_path, side, size):
    film = write_film(tmp_path / "a.mkv", [np.full((64, 64, 3), value, np.uint8) for value in (10, 200)])
    known = KnownHead.make(head, np.zeros((2, len(head.parts))), np.zeros((len(head.parts), 3)), seed=0, source=film)
    tracking = replace(known.clip.tracking, crop=np.array([0, 0, side], np.float32))
    (picture,) = SharpClip.of(tracking, known.clip.fit, head).crops(np.array([1]))
    assert picture.shape == (size, size, 3) and abs(int(picture[0, 0, 0]) - 200) < 3


@pytest.fixture(scope="module")
def known(fine, tmp_path_factory) -> KnownHead:
    """One frame at rest and one that frowns in folds of 9 mm and half a millimetre, on the finer mesh."""
    film = numbered_film(tmp_path_factory.mktemp("film") / "a.mkv", 2)
    verts = dense(fine.head, fine.head.template)
    normals = vertex_normals(verts, fine.head.dense_faces).numpy()
    heights = np.array([0.0, 1.0])[:, None] * wrinkles(fine.head, wave_m=0.009, height_m=5e-4)
    made = KnownHead.make(fine.head, heights, normals, seed=3, source=film)
    plain = replace(made.clip.tracking, head_model="anny")
    return replace(made, clip=Clip.of(plain, made.clip.fit, fine.head))


@pytest.fixture(scope="module")
def coarse_folds(known, head, below) -> Dynamic:
    """What one subdivision makes of them."""
    clip = Clip.of(known.clip.tracking, blank_fit(head, known.clip.tracking.identity), head)
    return dynamic_offsets(
        clip,
        below,
        weights=EVEN,
        share=0.0,
        evidence=lambda field: Estimates(clip, below, NumberedOracle(known, noise_deg=3.0), plain_skin(head)),
        progress=quiet,
    )


@pytest.fixture(scope="module")
def fine_fit(known, coarse_folds, head, below) -> HeadFit:
    """And what two make."""
    bare = blank_fit(head, known.clip.tracking.identity)
    start = replace(
        bare,
        dynamic_vertices=below.vertices,
        dynamic_offset=coarse_folds.offset(),
        **dynamic_poses(known.clip.tracking),
        dynamic_loss=coarse_folds.loss,
    )
    return sharpened(
        start,
        known.clip.tracking,
        head,
        below,
        coarse_folds,
        weights=EVEN,
        share=0.0,
        evidence=lambda clip, patch, field: Estimates(
            clip, patch, NumberedOracle(known, noise_deg=3.0), plain_skin(clip.head)
        ),
        config=FitConfig(),
        progress=quiet,
    )


def band(patch: Patch, heights: np.ndarray) -> np.ndarray:
    """Waves shorter than about 15 mm."""
    column = torch.from_numpy(heights.astype(np.float32))[None, :, None]
    return (column - patch.smooth(column, 25))[0, :, 0].numpy()


@pytest.mark.slow
def test_fine_folds_are_found_better_than_on_one_subdivision(known, coarse_folds, fine_fit, face, fine):
    assert face.below is not None
    verts = dense(fine.head, fine.head.template)
    normals = vertex_normals(verts, fine.head.dense_faces)[face.vertices].numpy()
    places = verts[face.vertices].numpy()
    centre = landmarks(fine.head, verts)[151].numpy()
    forehead = (np.abs(places - centre) < [0.035, 0.014, 0.03]).all(1)

    def found(offset: np.ndarray) -> np.ndarray:
        return band(face, (offset * normals).sum(-1))[forehead]

    true = found(known.offset[1])
    once = found(face.below.lifted(coarse_folds.offset()[1:].astype(np.float32))[0])
    twice = found(fine_fit.dynamic_offset[1].astype(np.float32))
    correlations = [float(np.corrcoef(each, true)[0, 1]) for each in (once, twice)]
    errors = [float(np.sqrt(((each - true) ** 2).mean() / (true**2).mean())) for each in (once, twice)]

    assert correlations[1] > 0.75 and correlations[1] > correlations[0] + 0.3
    assert errors[1] < 0.75 * errors[0]


@pytest.mark.slow
def test_a_fine_fit_keeps_the_promises_of_the_plain_one(fine_fit, known, face, fine):
    assert fine_fit.head_model == "anny@2" and len(fine_fit.static_offset) == len(fine.head.parts)
    assert np.array_equal(fine_fit.dynamic_vertices, face.vertices)
    assert fine_fit.dynamic_offset.dtype == np.float16
    assert not fine_fit.dynamic_offset[:, face.mask.numpy() == 0].any()
    assert (
        np.linalg.norm(fine_fit.dynamic_offset.astype(np.float32), axis=-1).max() <= FitDescent.dynamic_limit_m * 1.001
    )
    assert not fine_fit.static_offset[fine.head.facial_mask.numpy() == 0].any()
    assert (fine_fit.dynamic_loss[:, 1] < fine_fit.dynamic_loss[:, 0]).all()


@pytest.fixture(scope="module")
def fine_head(fitted, fine, tmp_path_factory) -> Path:
    """The photo's head on the finer mesh, saved."""
    own = replace(
        fitted,
        head_model=fine.head.name,
        static_offset=fine.lifted(fitted.static_offset),
        frame_offset=fine.lifted(fitted.frame_offset),
        relief_seen=np.zeros(len(fine.head.parts), np.float16),
    )
    return npz.save(own, tmp_path_factory.mktemp("head") / "fine.head.npz", {})


def run(*arguments: object) -> int:
    return app.run([str(argument) for argument in arguments])


@pytest.mark.slow
def test_later_stages_take_the_finer_mesh_from_the_head(fine_head, photo_tracking, fine, tmp_path):
    driver = npz.save(photo_tracking, tmp_path / "driver.track.npz", {})
    meshes, normals, film = (tmp_path / name for name in ("a.meshes.npz", "a.normals.mkv", "a.mp4"))
    assert run("transfer", fine_head, driver, "-o", meshes) == 0
    made = Meshes.open(meshes)
    assert made.head_model == "anny@2" and made.faces.shape == fine.head.dense_faces.shape
    assert run("render-normals", meshes, "-o", normals, "--size", 256) == 0
    assert run("generate", fine_head, meshes, "-o", film, "--size", 256, "--backend", "proxy") == 0
    assert film.stat().st_size > 1000
    assert run("export", fine_head, "-o", tmp_path / "a.obj") == 0
