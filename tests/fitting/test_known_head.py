"""Heads of which everything is known are found again: each of five for itself, because a mean hides the worst."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.known_head import (
    FOCAL_PX,
    KnownHead,
    NumberedOracle,
    Skin,
    blank_fit,
    folds,
    found_by,
    lively,
    numbered_film,
    rigid_rms_mm,
    tracked_again,
    tracking_of,
    wrinkles,
    write_film,
)
from support.performers import quiet

from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.config import FitConfig
from expportrait_cli.fitting import static
from expportrait_cli.fitting.clip import Clip
from expportrait_cli.fitting.dynamic import dynamic_offsets
from expportrait_cli.fitting.evidence import Shading
from expportrait_cli.fitting.silhouette import draw_vertices
from expportrait_cli.geometry.rotations import from_turns, logarithm
from expportrait_cli.head import landmarks
from expportrait_cli.head.fitted import canonical_mesh, fitted_mesh, neutral_mesh

pytest_plugins = ("support.astronaut",)

pytestmark = pytest.mark.slow

SEEDS = range(5)
FEW = 1, 4
"""Of them, for what takes seconds."""
FRAMES = 8
MM = 1e3


def still_face(head, seed: int, **options) -> KnownHead:
    """A head without offsets."""
    nothing = np.zeros((FRAMES, len(head.parts)))
    return KnownHead.make(head, nothing, np.zeros((len(head.parts), 3)), seed=seed, source=Path(), **options)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_identity_is_found_from_eight_biased_frames(head, seed):
    known = still_face(head, seed)
    found = tracked_again(known, seed)
    face = head.facial_mask.numpy() > 0.5
    true = neutral_mesh(known.clip.fit, head).numpy()[face]
    mesh = neutral_mesh(blank_fit(head, found.identity), head).numpy()[face]
    average = neutral_mesh(blank_fit(head, 0 * found.identity), head).numpy()[face]
    assert rigid_rms_mm(average, true) > 1.6
    assert rigid_rms_mm(mesh, true) <= 1.2
    # The neutral meshes agree to hundredths of a degree, so that poses can be compared as they are.
    turns = logarithm(from_turns(found.rotation) @ from_turns(known.clip.tracking.rotation).swapaxes(1, 2))
    assert np.degrees(np.linalg.norm(turns, axis=1)).mean() < 1.0


def test_expressions_are_found_about_their_mean(head):
    """A bias of the landmarks looks like a constant expression, which nothing can tell from it."""
    pairs = []
    for seed in SEEDS:
        known = still_face(head, seed, expression=lively(head, FRAMES, seed))
        both = (tracked_again(known, seed), known.clip.tracking)
        pairs.append([(each.expression - each.expression.mean(0)).ravel() for each in both])
    assert np.corrcoef(*np.concatenate(pairs, 1))[0, 1] >= 0.82
    # More is not to be had, with exact landmarks neither: the prior shares out what look-alike units do.
    assert min(np.corrcoef(*pair)[0, 1] for pair in pairs) >= 0.8


@pytest.fixture(scope="module")
def skin(head) -> Skin:
    return Skin(head)


def without_landmarks(known: KnownHead) -> Clip:
    """The clip with the landmarks of the head without offsets, which thus say nothing of them."""
    tracking = known.clip.tracking
    verts, _ = known.clip.pose(np.arange(len(tracking.error)), known.patch)
    points = landmarks(known.head, verts).numpy()
    shown = points[..., :2] / points[..., 2:] * FOCAL_PX + CROP_SIZE / 2
    return Clip.of(replace(tracking, landmarks=shown.astype(np.float32)), known.clip.fit, known.head)


def test_the_default_takes_no_more_steps_than_were_asked_for():
    assert FitConfig().iterations <= 25


@pytest.mark.parametrize(
    ("seed", "noise_deg", "depth_noise", "limit_mm"),
    [*((seed, 6.0, 0.05, 1.05) for seed in SEEDS), *((seed, 0.0, 0.0, 0.65) for seed in FEW)],
)
def test_offsets_are_found_in_normals_and_depth(head, skin, tmp_path, seed, noise_deg, depth_noise, limit_mm):
    long = skin.without_pose(folds(head, seed + 100, wave_m=0.13, rms_m=1.5e-3), 1.5e-3)
    heights = np.stack([wrinkles(head) + long] * 2)
    known = KnownHead.make(head, heights, skin.normals, seed=seed, source=numbered_film(tmp_path / "a.mkv", 2))
    oracle = NumberedOracle(known, noise_deg=noise_deg, depth_noise=depth_noise, seed=seed)
    found = found_by(oracle, without_landmarks(known), known.patch)
    assert np.abs(found.smooth).max() < 1e-5
    assert skin.error_mm(known, 0 * known.offset) > 1.45
    assert skin.error_mm(known, found.offset().astype(np.float32)) <= limit_mm


@pytest.mark.parametrize("seed", SEEDS)
def test_wrinkles_are_found_in_clean_normals(head, skin, tmp_path, seed):
    """Of 14 mm: those of 9 mm are beyond the 3 mm edges of the forehead, which are a third of their wave."""
    height = wrinkles(head, wave_m=0.014)
    acting = np.array([0.0, 0.0, 1.0, 0.5])
    film = numbered_film(tmp_path / "a.mkv", len(acting))
    known = KnownHead.make(head, acting[:, None] * height, skin.normals, seed=seed, source=film)
    found = found_by(NumberedOracle(known), known.clip, known.patch)
    assert skin.agreement(known, found, height, [2, 3]) >= 0.7


@pytest.mark.parametrize("seed", FEW)
def test_wrinkles_are_found_in_the_light_on_them(head, skin, tmp_path, seed):
    """No network, blotchy skin, a head that turns."""
    height = wrinkles(head, wave_m=0.014, height_m=1e-3)
    acting = np.clip(np.sin(np.linspace(0, 4 * np.pi, 16)), 0, 1)
    film = tmp_path / "a.mkv"
    known = KnownHead.make(head, acting[:, None] * height, skin.normals, seed=seed, source=film)
    albedo = 0.3 * np.exp(0.075 * folds(head, 5, wave_m=0.012, rms_m=1.0))
    write_film(film, (known.picture(row, albedo) for row in range(len(acting))))
    found = dynamic_offsets(
        known.clip,
        known.patch,
        weights=np.full(len(acting), 1 / len(acting)),
        share=0.0,
        evidence=lambda field: Shading.of(known.clip, known.patch, skin.plain, field),
        progress=quiet,
    )
    assert skin.agreement(known, found, height, acting > 0.3) >= 0.72
    before, after = found.loss[acting > 0.3].mean(0)
    assert after < 0.7 * before


def hairy(head, bald) -> np.ndarray:
    """A bun on top of the head and hair at one side, canonical [V,3]."""
    shape = canonical_mesh(bald, head, bald).numpy()
    off_face = (1 - head.facial_mask.numpy()) * (head.part("skin").numpy() & (shape[:, 1] > 0.0))
    top, side = (
        np.exp(-((shape - centre) ** 2).sum(1) / (2 * 0.04**2)) for centre in ([0.0, 0.16, -0.02], [0.09, 0.04, -0.02])
    )
    offset = (0.035 * off_face * top)[:, None] * [0, 1, 0] + (0.025 * off_face * side)[:, None] * [1, 0, 0]
    return offset.astype(np.float32)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_outline_of_hair_is_met(head, seed):
    rng = np.random.default_rng(seed)
    bald = blank_fit(head, 0.6 * rng.normal(size=80))
    bald = replace(bald, rotation=np.radians([rng.uniform(-8, 8), rng.uniform(-20, 20), 0]).astype(np.float32))
    true = fitted_mesh(replace(bald, static_offset=hairy(head, bald)), head)
    drawn = draw_vertices(true, head, FOCAL_PX, size=CROP_SIZE) >= 0
    matte = cv2.GaussianBlur(drawn.astype(np.float32), (0, 0), 1.0)
    grown = replace(bald, static_offset=static.outline_offset(bald, head, matte, FitConfig(), quiet))
    pose = {name: getattr(bald, name)[None] for name in ("expression", "jaw", "gaze", "rotation", "translation")}
    clip = Clip.of(replace(tracking_of(head, bald.identity, 1, seed, Path()), **pose), grown, head)
    _, posed = clip.pose(np.array([0]), static.static_patch(head))
    fine = replace(grown, static_offset=static.refined_offset(grown, head, [matte], posed, FitConfig()))
    before, after = (static.silhouette_iou(each, head, matte) for each in (bald, fine))
    assert before < 0.95
    # 0.9 is what photos are held to; a known head in its own camera has no such excuse.
    assert after >= 0.97
    assert np.abs(fine.static_offset[(head.facial_mask == 1).numpy()]).max() == 0
