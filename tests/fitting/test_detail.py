"""Fine static detail read from a photo, and what normal maps show of it."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from support.david_net import david_file
from support.performers import quiet

from expportrait_cli.artifacts.types import CROP_SIZE, Tracking
from expportrait_cli.config import FitConfig
from expportrait_cli.detect.estimate import Estimate
from expportrait_cli.detect.estimator import David
from expportrait_cli.fitting import fit
from expportrait_cli.fitting.detail import (
    HAIR_LIES_MM,
    SKIN_BAND,
    along_strands,
    heights_from_normals,
    relief_heights,
    with_detail,
)
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.head.fitted import fitted_mesh, relief_of
from expportrait_cli.render.buffers import Bump, encode, render_buffers

pytest_plugins = ("support.astronaut",)

SIDE, PX_PER_MM = 256, 2.0


def classes(kind: int) -> np.ndarray:
    shares = np.zeros((SIDE, SIDE, 3), np.float32)
    shares[..., kind] = 1
    return shares


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.clip(np.rint(values), 0, 255).astype(np.uint8)[..., None], 3, -1)


def test_a_dark_line_on_skin_is_deep():
    photo = np.full((SIDE, SIDE), 170.0)
    photo[126:130] = 150
    heights = relief_heights(grey(cv2.GaussianBlur(photo, (0, 0), 1)), classes(0), px_per_mm=PX_PER_MM)
    assert heights[128, 60:200].max() < -0.03
    assert np.abs(heights[60:100, 60:200]).max() < 0.02
    assert np.abs(heights).max() <= SKIN_BAND.limit_mm


def test_a_strong_edge_of_albedo_is_no_step():
    """Half of the face painted black: the edge-preserving filter keeps it in the base."""
    photo = np.full((SIDE, SIDE), 200.0)
    photo[:, 128:] = 40
    heights = relief_heights(grey(photo), classes(0), px_per_mm=PX_PER_MM)
    dark_line = np.full((SIDE, SIDE), 200.0)
    dark_line[:, 126:130] = 170
    line = relief_heights(grey(dark_line), classes(0), px_per_mm=PX_PER_MM)
    assert np.abs(heights[:, 40:100]).max() < 0.3 * np.abs(line).max()


def test_paint_that_changes_hue_is_weighed_down():
    photo = np.full((SIDE, SIDE, 3), (200.0, 160.0, 140.0))
    shaded, painted = photo.copy(), photo.copy()
    shaded[120:136, 120:136] *= 0.85
    painted[120:136, 120:136] = (210, 110, 110)
    steps = [
        np.abs(relief_heights(np.rint(each).astype(np.uint8), classes(0), px_per_mm=PX_PER_MM)).max()
        for each in (shaded, painted)
    ]
    assert steps[1] < 0.6 * steps[0]


def test_hair_lies_over_the_skin():
    shares = classes(0)
    shares[:128, :, 0], shares[:128, :, 1] = 0, 1
    heights = relief_heights(grey(np.full((SIDE, SIDE), 120.0)), shares, px_per_mm=PX_PER_MM)
    step = heights[100:118, 60:200].mean() - heights[138:156, 60:200].mean()
    assert HAIR_LIES_MM * 0.5 < step <= HAIR_LIES_MM


@pytest.mark.parametrize(("bright", "contrast"), [(25, 0.5), (60, 0.2), (180, 0.06)], ids=["black", "brown", "blond"])
def test_strands_of_all_colours_stand_as_high(bright, contrast):
    """Black hair in the sun differs in brightness by ten times as much as blond hair in the shade."""
    x = np.arange(SIDE, dtype=np.float32) / PX_PER_MM
    photo = np.repeat(bright * np.exp(contrast * np.sin(2 * np.pi * x / 3))[None], SIDE, 0)
    strands = relief_heights(grey(photo), classes(1), px_per_mm=PX_PER_MM)[40:-40, 40:-40]
    assert 0.4 < strands.std() < 0.9
    # Bright is high.
    assert np.corrcoef(strands.mean(0), np.log(photo[0, 40:-40]))[0, 1] > 0.9


def test_noise_of_a_flat_picture_is_no_hair():
    noise = np.random.default_rng(0).normal(0, 2, (SIDE, SIDE))
    heights = relief_heights(grey(120 + noise), classes(1), px_per_mm=PX_PER_MM)[40:-40, 40:-40]
    assert heights.std() < 0.1


def test_hair_lies_on_the_clothes_that_it_falls_over():
    shares = classes(2)
    shares[:128, :, 2], shares[:128, :, 1] = 0, 1
    heights = relief_heights(grey(np.full((SIDE, SIDE), 120.0)), shares, px_per_mm=PX_PER_MM)
    step = heights[100:118, 60:200].mean() - heights[138:156, 60:200].mean()
    assert HAIR_LIES_MM * 0.4 < step <= HAIR_LIES_MM


def test_strands_stay_and_grain_goes():
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    strands = np.sin((x + 0.5 * y) * 0.8).astype(np.float32)
    grain = np.random.default_rng(0).normal(size=(SIDE, SIDE)).astype(np.float32)
    inner = np.s_[30:-30, 30:-30]
    assert along_strands(strands, 5.0)[inner].std() > 0.9 * strands.std()
    assert along_strands(grain, 5.0)[inner].std() < 0.5 * grain.std()


def test_heights_come_back_from_the_normals_that_they_bend():
    """A wrinkled slope as a perfect network sees it, over the plain slope of the mesh."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    heights_mm = (0.3 * np.sin(x / 4) * np.cos(y / 6)).astype(np.float32)
    slopes = np.stack([np.gradient(heights_mm, axis=1), -np.gradient(heights_mm, axis=0)], -1) * PX_PER_MM

    def normals(slope: np.ndarray) -> np.ndarray:
        vectors = np.concatenate([-(slope + np.array([0.3, -0.1])), np.ones((SIDE, SIDE, 1))], -1)
        return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)

    sure, inner = np.ones((SIDE, SIDE), np.float32), np.s_[20:-20, 20:-20]
    estimate = Estimate(normals(slopes), np.full((SIDE, SIDE), np.nan, np.float32), sure)
    found = heights_from_normals(estimate, normals(0 * slopes), classes(0), px_per_mm=PX_PER_MM)
    assert np.abs(found - heights_mm)[inner].mean() < 0.1 * np.abs(heights_mm).mean()
    unsure = replace(estimate, confidence=0 * sure)
    assert not heights_from_normals(unsure, normals(0 * slopes), classes(0), px_per_mm=PX_PER_MM).any()


@pytest.mark.slow
def test_the_head_of_a_photo_holds_its_detail(fitted, head):
    assert fitted.relief.shape == (CROP_SIZE, CROP_SIZE)
    assert 1e-4 < np.abs(fitted.relief.astype(np.float32)).max() < 0.006
    assert fitted.classes.shape == (CROP_SIZE, CROP_SIZE, 3)
    relief = relief_of(fitted, head)
    verts = fitted_mesh(fitted, head)
    place = verts[:, :2] / verts[:, 2:] * fitted.focal_px + CROP_SIZE / 2
    assert np.abs(relief.places - place).max() < 0.01
    seen = fitted.relief_seen.astype(np.float32)
    assert seen[head.facial_mask.numpy() == 1].mean() > 0.5
    # Nothing of eyes or of the mouth's walls, and of teeth the upper row that she smiles with.
    assert seen[~head.part("skin", "teeth_upper", "teeth_lower").numpy()].max() == 0
    assert seen[head.part("teeth_upper").numpy()].max() > 0.5
    back = (fitted_mesh(fitted, head)[:, 2] > fitted.translation[2] + 0.06) & head.part("skin").numpy()
    assert seen[back].mean() < 0.05


@pytest.mark.slow
def test_a_network_shows_the_detail_that_is_in_its_normals(fitted, head, tmp_path, caplog):
    """A file with DAViD's inputs and outputs, which takes its picture for a normal map: that of the head itself."""
    fit_here = replace(fitted, crop=np.array([0, 0, CROP_SIZE], np.float32))
    verts, camera = (
        torch.from_numpy(fitted_mesh(fitted, head))[None],
        Camera.of_crop(fitted.focal_px, CROP_SIZE, CROP_SIZE),
    )
    bump = Bump.of(relief_of(fitted, head), scale=1.0)
    seen = render_buffers(verts, head.dense_faces, camera, bump=bump)
    with caplog.at_level("INFO"):
        found = with_detail(
            fit_here,
            head,
            encode(seen.normals[0].numpy()),
            seen.mask[0].numpy(),
            David(david_file(tmp_path / "d.onnx")),
        )
    assert found.relief.shape == (CROP_SIZE, CROP_SIZE)
    assert "correlates with that of" in caplog.text
    inner = cv2.erode((seen.normals[0, ..., 2] > 0.5).numpy().astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    bent = render_buffers(verts, head.dense_faces, camera, bump=Bump.of(relief_of(found, head), scale=1.0))
    plain = render_buffers(verts, head.dense_faces, camera)
    one, other = ((each.normals - plain.normals)[0].numpy()[inner].ravel() for each in (seen, bent))
    assert np.corrcoef(one, other)[0, 1] > 0.7


@pytest.mark.slow
def test_detail_can_be_left_out(photo_tracking: Tracking, head):
    plain = fit([photo_tracking], head, FitConfig(detail=False), quiet)
    assert plain.relief.size == 0
    assert not plain.relief_seen.any()
