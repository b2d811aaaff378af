"""Where the offset fields may live, and what counts as the person's own shape."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support.known_head import KnownHead, Oracle, folds, tracking_of, wrinkles
from support.performers import quiet

from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.config import FitConfig
from expportrait_cli.fitting import clip, static
from expportrait_cli.fitting.clip import (
    bare_rim,
    distinct_frames,
    dynamic_mask,
    ear_vertices,
    face_share,
    neutral_weights,
    plain_skin,
    recentred,
    static_mask,
    torso_turns,
)
from expportrait_cli.fitting.dynamic import Dynamic, dynamic_offsets
from expportrait_cli.fitting.evidence import Estimates
from expportrait_cli.fitting.patch import Patch
from expportrait_cli.fitting.silhouette import draw_vertices
from expportrait_cli.geometry.mesh import edges, vertex_normals
from expportrait_cli.head import dense, landmarks
from expportrait_cli.head.facemesh import EYE_RINGS, LIPS
from expportrait_cli.head.fitted import fitted_mesh
from expportrait_cli.media.writer import VideoWriter

pytest_plugins = ("support.astronaut",)

RNG = np.random.default_rng(0)
FRAMES, POINTS = 12, 500
OFFSETS = (2e-3 * RNG.normal(size=(FRAMES, POINTS, 3))).astype(np.float32)
WEIGHTS = RNG.dirichlet(np.ones(FRAMES))
FACE_SHARES = (0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def known(head, tmp_path_factory) -> KnownHead:
    """Two frames of other folds, with a film that nobody looks at."""
    verts = dense(head, head.template)
    path = tmp_path_factory.mktemp("known") / "clip.mkv"
    with VideoWriter(path, rate=Fraction(25), lossless=True) as film:
        for _ in range(2):
            film.write(np.zeros((CROP_SIZE, CROP_SIZE, 3), np.uint8))
    heights = np.stack([wrinkles(head) + folds(head, t, wave_m=0.08, rms_m=0.001) for t in range(2)])
    return KnownHead.make(head, heights, vertex_normals(verts, head.dense_faces).numpy(), seed=0, source=path)


def moving(known: KnownHead, patch: Patch, share: float, *, is_seen: bool = True) -> Dynamic:
    """A short fit of the known head, with right estimates or by its landmarks alone."""
    clip = replace(known.clip, config=FitConfig(iterations=8))
    evidence = Estimates(clip, patch, Oracle(known), plain_skin(known.head)) if is_seen else None
    return dynamic_offsets(
        clip,
        patch,
        weights=np.full(2, 0.5),
        share=share,
        evidence=lambda field: evidence,
        progress=quiet,
    )


@pytest.fixture(scope="module")
def found(known) -> Dynamic:
    return moving(known, known.patch, 0.5)


def stray_m(found: Dynamic, head) -> float:
    """Largest dynamic or shared offset off the face."""
    off_face = head.facial_mask.numpy()[found.vertices] == 0
    assert off_face.any()
    parts = (found.smooth, found.heights[..., None], found.static, found.offset())
    return max(float(np.abs(part[..., off_face, :]).max()) for part in parts)


def test_dynamic_offsets_are_exactly_zero_off_the_face(found, head):
    assert stray_m(found, head) == 0


def test_a_mask_of_ones_would_be_noticed(known, head):
    ones = replace(known.patch, mask=torch.ones_like(known.patch.mask))
    assert stray_m(moving(known, ones, 0.5, is_seen=False), head) > 1e-5


def test_everything_that_is_fitted_has_moved_in_every_frame(found, known):
    middle = known.patch.mask.numpy() == 1
    for part in (found.smooth, found.heights[..., None], found.static):
        assert (np.abs(part[..., middle, :]).max((-2, -1)) > 1e-4).all()
    one, other = found.heights[:, middle]
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.9
    data, after = found.loss.T
    assert (after < 0.75 * data).all()


def test_nothing_is_shared_without_a_share(known):
    assert np.abs(moving(known, known.patch, 0.0, is_seen=False).static).max() == 0


def grown_in_face_m(known: KnownHead, head) -> tuple[float, float]:
    """Largest static offset on the face and off it, when the outline asks for a head 8 px wider."""
    fit = known.clip.fit
    drawn = draw_vertices(fitted_mesh(fit, head), head, fit.focal_px, size=CROP_SIZE) >= 0
    matte = cv2.dilate(drawn.astype(np.float32), np.ones((17, 17)))
    _, posed = known.clip.pose(np.array([0]), static.static_patch(head))
    offset = np.abs(static.refined_offset(fit, head, [matte], posed, FitConfig())).max(1)
    face = head.facial_mask.numpy() == 1
    return float(offset[face].max()), float(offset[~face].max())


def test_the_static_offset_of_one_photo_is_exactly_zero_on_the_face(known, head):
    inside, outside = grown_in_face_m(known, head)
    assert inside == 0 and outside > 0.002


def test_a_static_offset_that_enters_the_face_would_be_noticed(known, head, monkeypatch):
    monkeypatch.setattr(static, "static_mask", lambda head, share: np.ones(len(head.facial_mask), np.float32))
    assert grown_in_face_m(known, head)[0] > 1e-5


def largest_step(mask: np.ndarray, head, among: np.ndarray) -> float:
    ends = edges(head.dense_faces).verts.numpy()
    ends = ends[among[ends].all(1)]
    return float(np.abs(mask[ends[:, 0]] - mask[ends[:, 1]]).max())


def test_the_dynamic_mask_fades_out(head):
    mask = dynamic_mask(head)
    assert mask.min() == 0 and mask.max() == 1
    # On the default head it is exactly a quarter.
    assert largest_step(mask, head, np.ones(len(mask), bool)) <= 0.25
    assert (mask[~head.part("skin").numpy()] == 0).all()


@pytest.mark.parametrize("share", FACE_SHARES)
def test_the_static_mask_takes_over_where_the_dynamic_one_fades(head, share):
    skin, ears = head.part("skin").numpy(), clip._ears(head) > 0
    dynamic, fixed = dynamic_mask(head), static_mask(head, share)
    assert largest_step(fixed, head, skin) <= 0.25
    # Ears are held back (see `EAR_SHARE`); everything else can be reached in full by one or both.
    assert (dynamic + fixed)[skin & ~ears].min() >= 1
    assert (dynamic + fixed)[skin].min() >= np.float32(clip.EAR_SHARE)
    assert (fixed[~skin] == 0).all()
    assert (fixed[(dynamic == 1) & ~ears] == np.float32(share)).all()


def test_ears_are_two_equal_pieces(head):
    x = dense(head, head.template)[:, 0].numpy()
    ears = ear_vertices(head)
    left, right = int((ears & (x > 0)).sum()), int((ears & (x < 0)).sum())
    assert left > 100 and abs(left - right) < 0.1 * left
    assert (head.facial_mask.numpy()[ears] == 1).mean() < 0.01


def test_plain_skin_keeps_away_from_eyes_and_lips(head):
    verts = dense(head, head.template)
    points = landmarks(head, verts).numpy()
    plain = plain_skin(head)
    assert 3000 < plain.sum() < (dynamic_mask(head) > 0.5).sum()
    for rim, reach in ((EYE_RINGS, 0.006), (LIPS, 0.004)):
        distance = np.linalg.norm(verts.numpy()[plain][:, None] - points[rim][None], axis=-1)
        assert distance.min() > reach


def test_the_bare_rim_lies_beside_the_face_below_the_hair(head):
    rim = bare_rim(head)
    assert rim.sum() > 500
    assert not (rim & plain_skin(head)).any()
    assert dense(head, head.template)[:, 1].numpy()[rim].max() < 0.03


def mean_left_m(static_part: np.ndarray, dynamic_part: np.ndarray) -> float:
    """What is left of the mean, in m."""
    return float(np.abs(np.einsum("t,tpc->pc", WEIGHTS, dynamic_part.astype(np.float64))).max())


def mesh_moved_m(static_part: np.ndarray, dynamic_part: np.ndarray) -> float:
    """How far the sum of both has gone from the offsets that were there, in m."""
    return float(np.abs(static_part.astype(np.float64) + dynamic_part - OFFSETS).max())


def test_recentring_takes_the_mean_out_and_leaves_the_mesh():
    split = recentred(OFFSETS, WEIGHTS, 1.0)
    assert np.abs(split[0]).max() > 1e-4
    assert mean_left_m(*split) < 1e-7
    assert mesh_moved_m(*split) < 1e-6


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_recentring_takes_the_share_of_the_mean(share):
    fixed, rest = recentred(OFFSETS, WEIGHTS, share)
    whole, _ = recentred(OFFSETS, WEIGHTS, 1.0)
    assert np.abs(fixed - share * whole).max() < 1e-9
    assert mesh_moved_m(fixed, rest) < 1e-6
    if share == 0:
        assert (fixed == 0).all() and np.array_equal(rest, OFFSETS)


@pytest.mark.parametrize(
    ("fault", "figure", "limit"),
    [
        (lambda fixed, rest: (fixed, OFFSETS), mesh_moved_m, 1e-6),
        (lambda fixed, rest: (fixed, OFFSETS), mean_left_m, 1e-7),
        (lambda fixed, rest: (fixed, OFFSETS - OFFSETS.mean(0)), mean_left_m, 1e-7),
    ],
    ids=["mean added but not taken", "mean not taken", "plain mean taken"],
)
def test_a_wrong_split_would_be_noticed(fault: Callable, figure: Callable, limit: float):
    assert figure(*fault(*recentred(OFFSETS, WEIGHTS, 1.0))) > 10 * limit


def test_recentring_passes_over_a_shuffle():
    order = np.random.default_rng(1).permutation(FRAMES)
    fixed, rest = recentred(OFFSETS, WEIGHTS, 1.0)
    shuffled, other = recentred(OFFSETS[order], WEIGHTS[order], 1.0)
    assert np.abs(shuffled - fixed).max() < 1e-9 and np.abs(other - rest[order]).max() < 1e-9


def test_neutral_frames_weigh_most():
    expression, jaw = np.zeros((5, 6)), np.zeros((5, 3))
    expression[1, 2], expression[2, 4], jaw[3, 0] = 0.25, 1.0, np.radians(15)
    weights = neutral_weights(expression, jaw, np.ones(len(jaw), bool))
    assert weights.sum() == pytest.approx(1)
    assert weights[0] == weights[4] == weights.max()
    assert weights[0] > weights[1] > 0.5 * weights[0]
    # One spread of effort away: e to the minus the square.
    assert weights[2] == pytest.approx(weights[0] * np.exp(-4))
    assert weights[3] == pytest.approx(weights[0] * np.exp(-((15 / 12) ** 2)))


def test_a_clip_without_a_neutral_frame_still_has_weights():
    weights = neutral_weights(np.full((3, 40), 1.0), np.zeros((3, 3)), np.ones(3, bool))
    assert weights == pytest.approx(np.full(3, 1 / 3))


def test_the_face_is_shared_only_by_many_frames():
    assert face_share(1) == face_share(4) == 0
    assert face_share(10) == pytest.approx(0.5)
    assert face_share(16) == face_share(500) == 1


def test_frames_that_repeat_count_once():
    still, turned = np.zeros((40, 3)), np.zeros((40, 3))
    turned[:, 1] = np.radians(np.arange(40) * 9.0)
    calm, lively = np.zeros((40, 6)), np.zeros((40, 6))
    lively[np.arange(40), np.arange(40) % 6] = 0.2
    assert distinct_frames(still, calm) == 1
    assert distinct_frames(turned, calm) == 16
    assert distinct_frames(still, lively) == 6
    assert distinct_frames(still[:1], calm[:1]) == 1
    assert distinct_frames(0.5 * turned[:4], calm[:4]) == 2


def test_the_torso_turns_evenly_between_looks_at_the_shoulders(head):
    nobody = np.zeros(head.identity_basis.shape[-1], np.float32)
    tracking = tracking_of(head, nobody, 12, 0, Path("clip.mp4"))
    shoulders, shot = tracking.shoulders.copy(), np.repeat([0, 1, 2], [5, 4, 3])
    for frame, slope_deg in ((0, 2.0), (4, 6.0), (6, -3.0)):
        up = 60 * np.tan(np.radians(slope_deg))
        shoulders[frame] = [[160, 200 + up], [100, 200]]
    turns = torso_turns(replace(tracking, shoulders=shoulders, shot=shot))
    # A shot has its own shoulders; one that never shows them has none.
    expected = [2, 3, 4, 5, 6, -3, -3, -3, -3, 0, 0, 0]
    np.testing.assert_allclose(np.degrees(turns[:, 2]), expected, atol=1e-3)
    np.testing.assert_allclose(turns[:, 1], tracking.rotation[:, 1] / 3, atol=1e-6)
