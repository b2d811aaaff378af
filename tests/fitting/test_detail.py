"""Fine static detail read from a photo, and what normal maps show of it."""

import cv2
import numpy as np
import pytest
from support.performers import quiet

from expportrait_cli.artifacts.types import CROP_SIZE, Tracking
from expportrait_cli.config import FitConfig
from expportrait_cli.fitting import fit
from expportrait_cli.fitting.detail import BANDS, HAIR_LIES_MM, along_strands, relief_heights
from expportrait_cli.head.fitted import fitted_mesh, relief_of

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
    assert np.abs(heights).max() <= BANDS[0].limit_mm


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


def test_strands_stay_and_grain_goes():
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    strands = np.sin((x + 0.5 * y) * 0.8).astype(np.float32)
    grain = np.random.default_rng(0).normal(size=(SIDE, SIDE)).astype(np.float32)
    inner = np.s_[30:-30, 30:-30]
    assert along_strands(strands, 5.0)[inner].std() > 0.9 * strands.std()
    assert along_strands(grain, 5.0)[inner].std() < 0.5 * grain.std()


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
    # Nothing of the back of the head, of eyes or of teeth is shown.
    assert seen[~head.part("skin").numpy()].max() == 0
    back = (fitted_mesh(fitted, head)[:, 2] > fitted.translation[2] + 0.06) & head.part("skin").numpy()
    assert seen[back].mean() < 0.05


@pytest.mark.slow
def test_detail_can_be_left_out(photo_tracking: Tracking, head):
    plain = fit([photo_tracking], head, FitConfig(detail=False), quiet)
    assert plain.relief.size == 0
    assert not plain.relief_seen.any()
