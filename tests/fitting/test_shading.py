"""Light and albedo of a clip, and the folds that are read from them."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from support.known_head import LIGHT, KnownHead, folds, wrinkles

from expportrait_cli.fitting import losses
from expportrait_cli.fitting.clip import calmest, plain_skin
from expportrait_cli.fitting.evidence import Shading, like_skin, log_intensity, look, views_of, weights_of
from expportrait_cli.fitting.losses import Light, estimate, harmonics, log_albedo
from expportrait_cli.fitting.patch import high_passed
from expportrait_cli.geometry.mesh import normalize, vertex_normals
from expportrait_cli.head import dense, landmarks
from expportrait_cli.media.writer import VideoWriter

pytest_plugins = ("support.astronaut",)

FRAMES = 8
PAINTED = (13, 14, 61, 291, 105, 334)
"""Landmarks of lips and brows, which are darker."""


def paint(head) -> np.ndarray:
    """Albedo of each vertex: mottled skin, dark lips and brows."""
    verts = dense(head, head.template).numpy()
    spots = landmarks(head, dense(head, head.template)).numpy()[list(PAINTED)]
    away = np.linalg.norm(verts[:, None] - spots[None], axis=-1).min(1)
    skin = 0.55 * np.exp(folds(head, 5, wave_m=0.05, rms_m=0.12))
    return np.where(away < 0.012, 0.45 * skin, skin)


@pytest.fixture(scope="module")
def known(head, tmp_path_factory) -> KnownHead:
    """A filmed head whose folds come and go."""
    verts = dense(head, head.template)
    path = tmp_path_factory.mktemp("lit") / "clip.mkv"
    level, wide = wrinkles(head), folds(head, 1, wave_m=0.1, rms_m=0.0005)
    heights = np.stack([level * np.cos(t) + wide * np.sin(t) for t in range(FRAMES)])
    known = KnownHead.make(head, heights, vertex_normals(verts, head.dense_faces).numpy(), seed=0, source=path)
    albedo = paint(head)
    with VideoWriter(path, rate=Fraction(25), lossless=True) as film:
        for row in range(FRAMES):
            film.write(known.picture(row, albedo))
    return known


@pytest.fixture(scope="module")
def read_light(known) -> Shading:
    """What is measured on the smooth head, which knows of no folds."""
    return Shading.of(known.clip, known.patch, plain_skin(known.head), np.zeros_like(known.offset))


@pytest.fixture(scope="module")
def seen(known) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True normals and true log shade [T,P] of the patch, and where plain skin faces the camera."""
    verts = known.posed(np.arange(FRAMES))
    normals = vertex_normals(verts, known.head.dense_faces)[:, known.patch.vertices] * torch.tensor([1.0, -1.0, -1.0])
    shade = np.log(np.clip(LIGHT[0] + normals.numpy() @ LIGHT[1:], 0.02, None))
    facing = weights_of(views_of(verts, known.clip, known.patch.vertices)) > 0.5
    return normals.numpy(), shade, facing & plain_skin(known.head)[known.patch.vertices]


def shade_error(light: Light, seen) -> np.ndarray:
    """Errors of predicted log shades, without the one factor that light and albedo may share."""
    normals, truth, where = seen
    error = (light.log_shade(torch.from_numpy(normals)).numpy() - truth)[where]
    return error - np.median(error)


def test_the_light_of_a_film_predicts_its_shades(read_light, seen):
    error = np.abs(shade_error(read_light.light, seen))
    assert seen[2].sum() > 10_000 and seen[1][seen[2]].std() > 0.08
    # Shading of an ordinary film differs by some ten percent over a face.
    assert np.median(error) < 0.02 and np.percentile(error, 95) < 0.06


def test_light_that_ignores_the_normals_would_be_noticed(known, seen, monkeypatch):
    monkeypatch.setattr(losses, "_light", lambda basis, shade, seen, before: before)
    flat = Shading.of(known.clip, known.patch, plain_skin(known.head), np.zeros_like(known.offset))
    error = np.abs(shade_error(flat.light, seen))
    assert np.median(error) > 0.04


def test_the_albedo_of_a_film_is_found(known, read_light, seen):
    truth = np.log(paint(known.head)[known.patch.vertices])
    ever = seen[2].any(0)
    found = read_light.log_albedo[ever]
    assert np.corrcoef(found, truth[ever])[0, 1] > 0.95
    error = found - truth[ever]
    assert np.abs(error - np.median(error)).mean() < 0.08


def test_painted_lips_and_brows_are_not_read(known, read_light, seen):
    dark = paint(known.head)[known.patch.vertices] < 0.3
    plain = seen[2].all(0)
    assert (dark & plain).sum() > 50
    assert not read_light.plain[dark & plain].any()
    assert read_light.plain[~dark & plain].mean() > 0.7


def test_the_picture_asks_for_the_folds_that_are_there(known, read_light):
    rows = np.arange(FRAMES)
    verts, bare = known.clip.pose(rows, known.patch)
    (loss,) = read_light.terms(list(known.clip.crops(rows)), verts)
    tracking = known.clip.tracking
    # What the calm frames have in common counts as paint.
    calm = calmest(tracking.expression, tracking.jaw, tracking.sure)
    rest = np.median(known.offset[calm], axis=0)
    field = torch.from_numpy(known.offset - rest) / known.patch.mask.clamp(min=1e-6)[:, None]
    shade = read_light.light.log_shade(bare.moved(field).normals) - loss.flat
    true = high_passed(known.patch, shade, loss.weight)
    seen = loss.weight > 0.5
    moving = np.setdiff1d(rows, calm)
    both = [each[moving][seen[moving]].numpy() for each in (loss.target, true)]
    # Half of the energy is gated away: in so short a clip what the calm frames do passes for noise.
    assert len(both[0]) > 1000 and np.corrcoef(*both)[0, 1] > 0.5 and np.polyfit(both[1], both[0], 1)[0] > 0.3


def turning(points: int, frames: int, seed: int) -> np.ndarray:
    """Normals of one side of a ball that turns by up to 20 degrees, float32 [T,P,3]."""
    rng = np.random.default_rng(seed)
    facing = rng.normal(size=(points, 3)) * [0.5, 0.5, 0.2] + [0, 0, 1]
    turned = []
    for _ in range(frames):
        x, y = np.radians(rng.uniform(-20, 20, 2))
        around_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
        around_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
        turned.append(facing @ around_x.T @ around_y.T)
    return normalize(torch.from_numpy(np.stack(turned))).numpy().astype(np.float32)


TRUE_LIGHT = Light(torch.tensor([0.9, 0.25, 0.3, 0.3, 0.05, 0.02, -0.04, 0.03, 0.02]))


def lit(seed: int, albedo_spread: float, frames: int = 16):
    """Log intensities of a turning ball, its normals, all seen; and the true log shade and log albedo."""
    normals = turning(600, frames, seed)
    shade = TRUE_LIGHT.log_shade(torch.from_numpy(normals)).numpy()
    albedo = albedo_spread * np.random.default_rng(seed + 1).normal(size=600) - 0.7
    return (shade + albedo).astype(np.float32), normals, np.ones(shade.shape, bool), shade, albedo


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.4])
def test_light_and_albedo_are_told_apart(spread):
    values, normals, where, shade, albedo = lit(0, spread)
    light, found = estimate(values, normals, where)
    error = light.log_shade(torch.from_numpy(normals)).numpy() - shade
    assert np.abs(error - np.median(error)).mean() < 0.03
    wrong = found - albedo
    assert np.abs(wrong - np.median(wrong)).mean() < 0.03


def test_gloss_and_shadow_count_little():
    values, normals, where, shade, _ = lit(2, 0.1)
    rng = np.random.default_rng(3)
    spoilt = values + (rng.random(values.shape) < 0.15) * 0.7
    light, _ = estimate(spoilt.astype(np.float32), normals, where)
    error = light.log_shade(torch.from_numpy(normals)).numpy() - shade
    assert np.abs(error - np.median(error)).mean() < 0.05


def test_what_is_not_seen_has_no_say():
    values, normals, where, _, _ = lit(4, 0.1)
    where = np.random.default_rng(5).random(values.shape) < 0.7
    where[:, :20] = False
    nonsense = np.where(where, values, np.nan).astype(np.float32)
    light, albedo = estimate(values, normals, where)
    other, same = estimate(nonsense, normals, where)
    assert torch.equal(light.weights, other.weights) and np.array_equal(albedo, same)
    # What was never seen has the colour of the rest.
    assert np.ptp(albedo[:20]) == 0 and np.isfinite(albedo).all()


def test_a_head_that_never_turns_has_one_skin_colour():
    normals = np.repeat(turning(600, 1, 6), 3, axis=0)
    shade = TRUE_LIGHT.log_shade(torch.from_numpy(normals)).numpy()
    light, _ = estimate((shade - 0.5).astype(np.float32), normals, np.ones(shade.shape, bool))
    error = light.log_shade(torch.from_numpy(normals)).numpy() - shade
    assert np.abs(error - np.median(error)).mean() < 0.03


def test_nothing_seen_is_even_light():
    values, normals, where, _, _ = lit(7, 0.1, frames=2)
    light, albedo = estimate(values, normals, ~where)
    assert np.isfinite(albedo).all() and torch.isfinite(light.log_shade(torch.from_numpy(normals))).all()


def test_the_median_cancels_the_albedo():
    rng = np.random.default_rng(8)
    shade, albedo = rng.normal(size=(9, 50)).astype(np.float32), rng.normal(size=50).astype(np.float32)
    where = np.ones((9, 50), bool)
    gloss = np.zeros((9, 50), np.float32)
    gloss[:4] = 3.0
    assert np.abs(log_albedo(shade + albedo + gloss, shade, where) - albedo).max() < 1e-6
    # What remains after it is taken off is the same whatever the skin's colour.
    rest = [values - shade - log_albedo(values, shade, where) for values in (shade + gloss, shade + albedo + gloss)]
    assert np.abs(rest[0] - rest[1]).max() < 2e-6
    where[:, 7] = False
    assert np.flatnonzero(np.isnan(log_albedo(shade + albedo, shade, where))).tolist() == [7]


def test_harmonics_are_orthogonal_over_the_sphere():
    height, around = np.meshgrid(*map(np.asarray, (np.polynomial.legendre.leggauss(8)[0], np.arange(16) * np.pi / 8)))
    weight = np.broadcast_to(np.polynomial.legendre.leggauss(8)[1], height.shape).ravel()
    flat = np.sqrt(1 - height**2)
    points = torch.from_numpy(np.stack([flat * np.cos(around), flat * np.sin(around), height], -1).reshape(-1, 3))
    basis = harmonics(points).numpy()
    gram = (basis * weight[:, None]).T @ basis
    assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-12 and np.diag(gram).min() > 1


def test_a_dark_side_has_a_finite_shade_and_gradient():
    light = Light(torch.tensor([0.2, 0, 0, 0.8, 0, 0, 0, 0, 0]))
    normals = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]], requires_grad=True)
    shade = light.log_shade(normals)
    shade.sum().backward()
    assert shade.detach().numpy() == pytest.approx([np.log(0.05), 0.0], abs=1e-6)
    assert normals.grad[0].abs().max() == 0 and normals.grad[1, 2] == pytest.approx(0.8)


def test_vertices_that_change_their_colour_are_not_skin():
    rng = np.random.default_rng(9)
    albedo = np.full(40, -0.7, np.float32)
    albedo[:5] = -1.5
    colour = albedo + 0.02 * rng.normal(size=(12, 40)).astype(np.float32)
    colour[:, 10:14] += np.where(np.arange(12) % 2, 0.4, -0.4)[:, None].astype(np.float32)
    where = np.ones((12, 40), bool)
    where[:, 20] = False
    expected = np.ones(40, bool)
    expected[np.r_[:5, 10:14, 20]] = False
    assert np.array_equal(like_skin(colour, where, albedo), expected)
    assert not like_skin(colour, np.zeros_like(where), albedo).any()


def test_intensity_is_linear_light_without_what_the_camera_clipped():
    crop = np.full((64, 64, 3), 128, np.uint8)
    crop[:10], crop[-10:] = 255, 2
    found = log_intensity(crop)
    assert np.isnan(found[:10]).all() and np.isnan(found[-10:]).all()
    assert found[30, 30] == pytest.approx(2.2 * np.log(128 / 255), abs=1e-5)
    assert np.isfinite(found[10:-10]).all()


def test_only_what_faces_the_camera_is_seen(known):
    head, (verts,) = known.head, known.posed(np.array([0])).numpy()
    every = np.arange(len(verts))
    view = look(verts, head, every, known.clip.focal_px)
    assert (view.normals[:, 2][view.weight > 0] > 0).all() and view.depth == pytest.approx(verts[:, 2])
    back = verts[:, 2] > np.median(verts[head.facial_mask.numpy() == 1, 2]) + 0.12
    assert (view.weight[back & head.part("skin").numpy()] > 0).mean() < 0.02
    # Four in ten of them face the camera, but behind lips that are nearly shut.
    for part in ("teeth_upper", "teeth_lower"):
        assert (view.weight[head.part(part).numpy()] > 0).mean() < 0.1
    assert (view.weight[known.patch.vertices][known.patch.mask.numpy() == 1] > 0.5).mean() > 0.5
    near = look(verts - np.float32([0, 0, 0.6]), head, every, known.clip.focal_px)
    inside = (np.abs(near.px - 256) < 255).all(1)
    assert (near.weight[~inside] == 0).all() and (~inside).any()
