"""Folds of a smile, and of a driver's frown, drawn on plain skin."""

from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from support.known_head import tracking_of

from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.head import dense, landmarks
from expportrait_cli.head.facemesh import LIP_CORNERS
from expportrait_cli.media.video import read_frames
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.painting.proxy.folds import (
    CHEEK_REACH,
    FADED,
    FOLDS,
    LEVELLED,
    STEP_M,
    Creased,
    DriverFolds,
    without_folds,
)
from expportrait_cli.painting.proxy.hidden import NO_MAP
from expportrait_cli.painting.proxy.layers import Layers
from expportrait_cli.render.rasterizer import interpolate, rasterize

pytest_plugins = ("support.astronaut",)


def test_grooves_beside_the_mouth_fade_and_nothing_else_changes():
    points = np.zeros((478, 2))
    points[list(LIP_CORNERS)] = [[80, 150], [180, 150]]
    for course, x in zip(FOLDS, (60, 200), strict=True):
        points[list(course)] = np.c_[np.full(5, x), np.linspace(100, 200, 5)]
    picture = np.full((260, 260, 3), (200, 160, 140), np.uint8)
    for x in (60, 130, 200):
        cv2.line(picture, (x, 80), (x, 220), (90, 60, 50), 3)
    outline = np.array([[78, 150], [130, 135], [182, 150], [130, 165]], float)
    calm = without_folds(picture, points, outline)
    depth, left = 200.0 - picture[150, 60, 0], 200.0 - calm[150, 60, 0]
    assert abs(left / depth - (1 - FADED)) < 0.12
    # The line over the mouth is none of a smile's, and plain skin has nothing to fill.
    assert np.array_equal(calm[:, 120:140], picture[:, 120:140])
    assert np.abs(calm[:, :40].astype(int) - picture[:, :40]).max() <= 1


@pytest.mark.parametrize("bearded", [False, True])
def test_the_step_from_a_smiling_cheek_becomes_a_slope_and_a_beard_stays(bearded):
    points = np.zeros((478, 2))
    points[list(LIP_CORNERS)] = [[80, 150], [180, 150]]
    for course, x in zip(FOLDS, (60, 200), strict=True):
        points[list(course)] = np.c_[np.full(5, x), np.linspace(100, 200, 5)]
    # Cheeks of brightness 200 meet a muzzle of 160 at the folds; a beard is rough besides.
    picture = np.full((260, 260, 3), 200, np.uint8)
    picture[:, 60:200] = 160
    if bearded:
        rough = np.random.default_rng(0).normal(0, 50, (260, 140, 1))
        picture[:, 60:200] = (picture[:, 60:200] + rough).clip(0, 255).astype(np.uint8)
    outline = np.array([[100, 150], [130, 135], [160, 150], [130, 165]], float)
    calm = without_folds(picture, points, outline).astype(float)
    muzzle = np.s_[130:170, 62:70]
    step = (calm[130:170, 50:58].mean() - calm[muzzle].mean()) / 40
    if bearded:
        assert abs(calm[muzzle].mean() - picture[muzzle].mean()) < 6
    else:
        # The slope reaches from one border of the zone to the other.
        left = LEVELLED * 12 / (2 * CHEEK_REACH * 100) + 1 - LEVELLED
        assert abs(step - left) < 0.1


SKIN, DEEP, FROWN = 200, 130, 5


@pytest.fixture
def frowning(head, tmp_path):
    """Eight frames of plain skin; the sixth has a furrow between the brows, and a wide dark patch on the forehead."""
    marks = landmarks(head, dense(head, head.template)).numpy()[:, :2]
    points = ((marks - marks.mean(0)) * [1500, -1500] + 256).astype(np.float32)
    path = tmp_path / "driver.mkv"
    with VideoWriter(path, rate=Fraction(25), lossless=True) as writer:
        for t in range(8):
            picture = np.full((512, 512, 3), SKIN, np.uint8)
            if t == FROWN:
                x, y = points[9].astype(int)
                cv2.line(picture, (x, y - 12), (x, y + 12), (DEEP,) * 3, 3)
                cv2.circle(picture, (x + 50, int(points[10, 1]) + 30), 14, (DEEP,) * 3, -1)
            writer.write(picture)
    tracking = tracking_of(head, np.zeros(head.identity_basis.shape[2]), 8, 0, path)
    tracking.landmarks[:], tracking.rotation[:] = points, 0
    return tracking, marks


def test_a_drivers_frown_is_a_fold_and_a_dark_patch_is_none(head, frowning):
    tracking, marks = frowning
    folds = DriverFolds(tracking, head)
    assert all(folds.shows(t) for t in range(8))
    shades = [folds.of(picture, t) for t, picture in enumerate(read_frames(tracking.source))]
    assert not any(shade.any() for t, shade in enumerate(shades) if t != FROWN)
    shade = shades[FROWN]
    column, row = ((marks[9] - folds.corner) / [STEP_M, -STEP_M]).astype(int)
    # The line is as wide as what it is looked at with is fine: half its depth is left.
    assert 0.3 < shade[row, column] / np.log(DEEP / SKIN) < 1
    beside = shade.copy()
    beside[:, column - 5 : column + 6] = 0
    assert beside.min() > 0.15 * np.log(DEEP / SKIN)


def test_a_small_driver_shows_no_folds(head, frowning):
    tracking, _ = frowning
    tracking.landmarks[:] = 256 + (tracking.landmarks - 256) * 0.3
    assert not DriverFolds(tracking, head).shows(FROWN)


def test_every_pixel_of_the_skin_takes_the_shade_of_its_place_on_the_head(head, frowning):
    tracking, _ = frowning
    folds = DriverFolds(tracking, head)
    shade = folds.of(list(read_frames(tracking.source))[FROWN], FROWN)
    verts = dense(head, head.template) * torch.tensor([1.0, -1.0, -1.0]) + torch.tensor([0.0, 0.0, 0.8])
    camera = Camera.of_crop(1300.0, CROP_SIZE, CROP_SIZE)
    rast = rasterize(camera.clip(verts[None]), head.dense_faces.int(), (CROP_SIZE, CROP_SIZE))
    plain = np.full((CROP_SIZE, CROP_SIZE, 3), SKIN, np.uint8)
    one, each = np.ones(plain.shape[:2], np.float32), np.zeros(len(verts), np.float32)
    layers = Layers(
        camera=camera,
        photo=plain,
        foreground=plain,
        alpha=one,
        plate=plain,
        close_plate=plain,
        verts=verts.numpy(),
        xy=np.full((len(verts), 2), 256, np.float32),
        depth=each,
        cosine=each,
        colour=np.zeros((len(verts), 3), np.float32),
        zbuffer=one,
        part=plain[..., 0],
        hair=one,
        hairy=each,
    )
    painted = plain.copy()
    Creased(layers, head, folds).shade(painted, rast, shade)

    places = (dense(head, head.template)[:, :2] - torch.from_numpy(folds.corner).float()) / torch.tensor(
        [STEP_M, -STEP_M]
    )
    skin = (head.parts == 0) & (head.facial_mask > 0) & (places[:, 1] < folds.rows)
    columns = torch.cat([places, skin[:, None].float()], 1).float()[None]
    at = interpolate(columns.contiguous(), rast, head.dense_faces.int())[0].numpy()
    ids = rast[0, ..., 3].long().numpy() - 1
    own = (ids >= 0) & skin[head.dense_faces].all(1).numpy()[ids]
    depth = cv2.remap(shade, at[..., :2].copy(), NO_MAP, cv2.INTER_LINEAR)
    wanted = np.where(own[..., None], plain * np.exp(depth)[..., None], plain)
    assert (plain - painted).max() > 10
    assert np.abs(painted - wanted).max() < 0.6
