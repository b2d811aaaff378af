"""The static head: its silhouette, where it may move, and what it keeps of the tracking."""

from dataclasses import replace
from fractions import Fraction

import cv2
import numpy as np
import pytest
import scipy.sparse as sp
import skimage.data
import torch
from support.astronaut import QUICK
from support.performers import quiet

from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit
from expportrait_cli.config import FitConfig, TrackConfig
from expportrait_cli.detect.matte import Matte
from expportrait_cli.fitting import fit, static
from expportrait_cli.fitting import stage as fit_stage
from expportrait_cli.fitting.parametric import with_whole_smile
from expportrait_cli.fitting.silhouette import draw_vertices, fit_silhouette, graph_laplacian, outline
from expportrait_cli.geometry.rotations import from_turns
from expportrait_cli.head import dense, landmarks
from expportrait_cli.head.fitted import blend_matrices, canonical_mesh, fitted_mesh
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.solve.state import interocular_px
from expportrait_cli.tracking import track

pytest_plugins = ("support.astronaut",)

RIGID_PARTS = ("eye_left", "eye_right", "teeth_upper", "teeth_lower")


def silhouette(fitted: HeadFit, head, size: int = CROP_SIZE) -> np.ndarray:
    drawn = draw_vertices(fitted_mesh(fitted, head), head, fitted.focal_px, size=size)
    return (drawn >= 0).astype(np.float32)


def test_the_astronauts_outline_is_met(fitted, head):
    assert fitted.silhouette_iou >= 0.92


def test_the_static_offset_leaves_the_face(fitted, head):
    # The facial mask lies on the ears, too, which hair may cover.
    face = (head.facial_mask == 1).numpy() & (np.abs(dense(head, head.template)[:, 0].numpy()) < 0.04)
    assert face.sum() > 500
    assert np.abs(fitted.static_offset[face]).max() == 0
    assert np.abs(fitted.static_offset).max() > 0.005


def test_the_frame_offset_leaves_everything_but_the_face(fitted, head):
    mask = head.facial_mask.numpy()
    skin = head.part("skin").numpy()
    far = skin & (mask == 0) & (dense(head, head.template)[:, 2].numpy() < 0)
    assert np.abs(fitted.frame_offset[far]).max() == 0
    assert 0.0002 < np.abs(fitted.frame_offset).max() < 0.012


@pytest.mark.parametrize("part", RIGID_PARTS)
def test_eyeballs_and_teeth_keep_their_shape(fitted, head, part):
    mask = head.part(part).numpy()
    assert np.ptp(fitted.frame_offset[mask], axis=0).max() < 3e-4
    # Teeth are moved up or down to where those of people are; nothing else is moved there.
    moved = np.abs(fitted.static_offset[mask]).max(0)
    assert moved[0] == moved[2] == 0 and moved[1] < (0.006 if part.startswith("teeth") else 1e-9)


def test_the_fitted_mesh_shows_the_photos_landmarks(fitted, head):
    points = landmarks(head, torch.from_numpy(fitted_mesh(fitted, head))).numpy()
    px = points[:, :2] / points[:, 2:] * fitted.focal_px + CROP_SIZE / 2
    inner = np.r_[1:7, 13, 14, 33, 133, 159, 145, 263, 362, 61, 291, 105, 334]
    error = np.linalg.norm(px - fitted.landmarks, axis=1)[inner] / interocular_px(fitted.landmarks)
    assert error.mean() < 0.006 and error.max() < 0.02


def test_the_fit_keeps_the_trackings_pose(fitted, photo_tracking, head):
    assert np.abs(from_turns(fitted.rotation) - from_turns(photo_tracking.rotation[0])).max() < 1e-5
    whole = with_whole_smile(photo_tracking, head)
    for name in ("translation", "expression", "jaw", "gaze"):
        assert np.abs(getattr(fitted, name) - getattr(whole, name)[0]).max() < 1e-6, name
    assert fitted.frame == 0 and np.array_equal(fitted.identity, photo_tracking.identity)


def test_a_canonical_step_undoes_the_skinning(fitted, head):
    matrices = blend_matrices(fitted, head)
    step = np.tile(np.float32([0.001, 0.0, 0.0]), (len(matrices), 1))
    lifted = replace(fitted, static_offset=fitted.static_offset + fit_stage.canonical_steps(fitted, head, step))
    error = fitted_mesh(lifted, head) - fitted_mesh(fitted, head) - step
    rigid = (head.skinning.max(1).values > 0.999).numpy()
    assert np.abs(error[rigid]).max() < 1e-6
    # The transpose of a blend of rotations is nearly its inverse.
    assert np.abs(error).max() < 2e-4


def bumped(fitted, head) -> np.ndarray:
    """A bun on top of the head, and hair at one side, canonical."""
    shape = canonical_mesh(replace(fitted, static_offset=np.zeros_like(fitted.static_offset)), head, fitted).numpy()
    off_face = (1 - head.facial_mask.numpy()) * (head.part("skin").numpy() & (shape[:, 1] > 0.0))
    top = np.exp(-((shape - [0.0, 0.16, -0.02]) ** 2).sum(1) / (2 * 0.04**2))
    side = np.exp(-((shape - [0.09, 0.04, -0.02]) ** 2).sum(1) / (2 * 0.04**2))
    return (off_face * (0.035 * top))[:, None] * [0, 1, 0] + (off_face * (0.025 * side))[:, None] * [1, 0, 0]


def test_a_known_bump_is_found_in_its_outline(fitted, head):
    bald = replace(fitted, static_offset=np.zeros_like(fitted.static_offset))
    true = replace(bald, static_offset=bumped(fitted, head).astype(np.float32))
    matte = cv2.GaussianBlur(silhouette(true, head), (0, 0), 1.0)
    before = static.silhouette_iou(bald, head, matte)
    found = static.outline_offset(bald, head, matte, FitConfig(), quiet)
    after = replace(bald, static_offset=found)
    assert before < 0.97
    assert static.silhouette_iou(after, head, matte) >= 0.97
    assert np.abs(found[(head.facial_mask == 1).numpy()]).max() == 0
    # Where the outline shows the bump it is as high as it was.
    canonical = canonical_mesh(bald, head, bald).numpy()
    crown = (canonical[:, 1] > 0.13) & (np.abs(canonical[:, 0]) < 0.03) & (np.abs(canonical[:, 2] + 0.02) < 0.03)
    assert crown.sum() > 10
    assert found[crown, 1].mean() == pytest.approx(true.static_offset[crown, 1].mean(), abs=0.008)


def test_an_outline_that_fits_is_left_alone(fitted, head):
    bald = replace(fitted, static_offset=np.zeros_like(fitted.static_offset))
    found = static.outline_offset(bald, head, silhouette(bald, head), FitConfig(), quiet)
    done = replace(bald, static_offset=found)
    assert static.silhouette_iou(done, head, silhouette(bald, head)) > 0.985
    outward = np.abs(found[head.part("skin").numpy()])
    assert np.percentile(outward, 99) < 0.006


def test_no_outline_no_offset(fitted, head):
    bald = replace(fitted, static_offset=np.zeros_like(fitted.static_offset))
    for empty in (np.zeros((CROP_SIZE, CROP_SIZE), np.float32), np.ones((CROP_SIZE, CROP_SIZE), np.float32)):
        assert np.isfinite(static.outline_offset(bald, head, empty, FitConfig(), quiet)).all()


def test_the_outline_of_a_disc():
    y, x = np.mgrid[:200, :200] + 0.5
    mask = (np.hypot(x - 100, y - 90) < 60).astype(np.float32)
    points, normals = outline(mask, step=2)
    radius = np.linalg.norm(points - [100, 90], axis=1)
    assert len(points) > 100
    assert np.abs(radius - 60).max() < 1.5
    assert ((points - [100, 90]) / radius[:, None] * normals).sum(1).min() > 0.97


def test_an_outline_leaves_out_the_border():
    mask = np.zeros((100, 100), np.float32)
    mask[40:, :] = 1
    points, normals = outline(mask, step=1)
    assert np.abs(points[:, 1] - 40).max() < 2
    assert points[:, 0].min() > 3 and points[:, 0].max() < 97
    assert (normals[:, 1] < -0.9).all()
    assert len(outline(np.zeros((50, 50), np.float32), step=1)[0]) == 0


def test_the_laplacian_is_free_for_shifts(head):
    matrix = graph_laplacian(head.faces.numpy(), len(head.template))
    assert np.abs(matrix @ np.ones(len(head.template))).max() < 1e-9
    noise = np.random.default_rng(0).normal(size=len(head.template))
    assert np.abs(matrix @ noise).max() > 0.1


def test_a_flat_square_grows_into_its_matte():
    """A sheet seen face on, without a head: the outline alone tells it to widen."""
    side, focal, size = 21, 200.0, 128
    y, x = np.meshgrid(np.linspace(-0.2, 0.2, side), np.linspace(-0.2, 0.2, side), indexing="ij")
    verts = np.stack([x.ravel(), y.ravel(), np.ones(side * side)], -1)
    near = np.arange(side * side).reshape(side, side)
    a, b, c, d = near[:-1, :-1].ravel(), near[:-1, 1:].ravel(), near[1:, 1:].ravel(), near[1:, :-1].ravel()
    faces = np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)])

    def draw(posed):
        drawn = np.full((size, size), -1, np.int64)
        px = posed[:, :2] / posed[:, 2:] * focal + size / 2
        for face in faces:
            corners = np.rint(px[face]).astype(np.int32)
            patch = np.zeros((size, size), np.uint8)
            cv2.fillConvexPoly(patch, corners, 1)
            drawn[patch > 0] = face[0]
        return drawn

    matte = np.zeros((size, size), np.float32)
    matte[18:110, 18:110] = 1
    offset = fit_silhouette(
        matte,
        pose=lambda step: (verts + step).astype(np.float32),
        draw=draw,
        to_canonical=np.tile(np.eye(3, dtype=np.float32), (len(verts), 1, 1)),
        operator=sp.identity(len(verts), format="csr"),
        coarse_faces=faces,
        pinned=np.zeros(len(verts)),
        ears=np.zeros(len(verts), bool),
        focal_px=focal,
        rounds=4,
        progress=quiet,
    )
    found = draw(verts + offset) >= 0
    assert (found & (matte > 0)).sum() / (found | (matte > 0)).sum() > 0.95
    assert np.abs(offset[:, 2]).max() < 1e-9


def test_progress_runs_to_its_end(fitted, head):
    seen = []
    bald = replace(fitted, static_offset=np.zeros_like(fitted.static_offset))
    static.outline_offset(bald, head, silhouette(bald, head), FitConfig(rounds=2), lambda *step: seen.append(step))
    assert seen == [(0, 2), (1, 2), (2, 2)]


def test_the_offset_is_what_meets_the_matte(fitted, head):
    image = skimage.data.astronaut()
    left, top, side = (int(v) for v in fitted.crop)
    crop = cv2.resize(
        image[top : top + side, left : left + side], (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_CUBIC
    )
    matte = Matte().matte(crop)
    bald = replace(fitted, static_offset=np.zeros_like(fitted.static_offset))
    assert static.silhouette_iou(fitted, head, matte) == pytest.approx(fitted.silhouette_iou, abs=0.01)
    assert static.silhouette_iou(bald, head, matte) < fitted.silhouette_iou - 0.03


@pytest.mark.slow
def test_a_clip_is_a_reference_too(tmp_path, head):
    """The most neutral frame is taken, and never one without a face."""
    image = skimage.data.astronaut()[:300, 60:380]
    with VideoWriter(tmp_path / "a.mkv", rate=Fraction(25), lossless=True) as writer:
        for frame in (np.full_like(image, 90), image, image, np.full_like(image, 90)):
            writer.write(frame)
    tracking = track(tmp_path / "a.mkv", head, TrackConfig(), quiet)
    psi = tracking.expression.copy()
    psi[1] += 0.3
    psi[[0, 3]] = 0
    found = fit([replace(tracking, expression=psi)], head, FitConfig(rounds=3), quiet)
    assert found.frame == 2
    assert np.array_equal(found.landmarks, tracking.landmarks[2])
    assert found.silhouette_iou > 0.9


@pytest.mark.slow
def test_a_driver_shares_its_identity_with_itself_alone(photo_tracking, head, fitted):
    other = replace(photo_tracking, identity=np.random.default_rng(0).normal(size=80).astype(np.float32))
    assert np.array_equal(fit([photo_tracking], head, QUICK, quiet, driver=other).identity, other.identity)
    bent = other.landmarks + np.random.default_rng(0).normal(size=(1, 478, 2)).astype(np.float32) * 15
    stranger = replace(other, landmarks=bent)
    shared = fit([photo_tracking], head, QUICK, quiet, driver=stranger)
    assert np.array_equal(shared.identity, photo_tracking.identity)
