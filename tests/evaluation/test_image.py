import cv2
import numpy as np
import pytest
import torch

from expportrait_cli.evaluation import image

ALL = np.ones((96, 128), bool)


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a = cv2.GaussianBlur(rng.integers(0, 256, (96, 128, 3), np.uint8), (0, 0), 2)
    b = np.clip(a + rng.normal(0, 12, a.shape), 0, 255).astype(np.uint8)
    return a, b


def test_ssim_equals_skimage(pair):
    metrics = pytest.importorskip("skimage.metrics")
    a, b = (image.as_float(picture) for picture in pair)
    own = image.mean_over(image.over_channels(image.ssim_factors(a, b)[0]), image.whole_windows(96, 128))
    theirs = metrics.structural_similarity(
        a, b, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert 0.3 < own < 0.95
    # float32 windows: variances are differences of nearly equal numbers.
    assert own == pytest.approx(theirs, abs=1e-5)


def test_ms_ssim_equals_pytorch_msssim():
    library = pytest.importorskip("pytorch_msssim")
    rng = np.random.default_rng(0)
    a = cv2.GaussianBlur(rng.integers(0, 256, (240, 192, 3), np.uint8), (0, 0), 3).astype(np.float32) / 255
    b = np.clip(a + rng.normal(0, 0.05, a.shape), 0, 1).astype(np.float32)
    own = image.ms_ssim(a, b, image.ssim_factors(a, b))
    theirs = library.ms_ssim(*(torch.from_numpy(x).permute(2, 0, 1)[None] for x in (a, b)), data_range=1)
    assert 0.5 < own < 0.98
    # float32 windows: variances are differences of nearly equal numbers.
    assert own == pytest.approx(float(theirs), abs=1e-5)
    assert image.ms_ssim(a, a, image.ssim_factors(a, a)) == pytest.approx(1, abs=1e-6)


def test_ms_ssim_needs_room_for_five_scales():
    small = np.full((160, 400, 3), 0.5, np.float32)
    assert np.isnan(image.ms_ssim(small, small, image.ssim_factors(small, small)))


def test_flip_is_small_for_one_grey_level_and_one_for_black_on_white():
    if image.missing_package():
        pytest.skip("needs flip-evaluator")
    grey, white = np.full((64, 64, 3), 0.5, np.float32), np.ones((64, 64, 3), np.float32)
    assert image.error_map(grey, grey).max() == 0
    assert 0 < image.error_map(grey - np.float32(1 / 255), grey).mean() < 0.03
    assert image.error_map(np.zeros_like(white), white)[32, 32] > 0.9


def test_steady_fading_does_not_flicker():
    frames = [np.full((8, 8), level, np.float32) for level in (10, 14, 18)]
    assert image.flicker(frames) == 0
    assert image.flicker([frames[0], frames[2], frames[0]]) == pytest.approx(16)


def test_luma_is_that_of_the_standard():
    rgb = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert image.luma(rgb)[0] == pytest.approx([76.245, 149.685, 29.07], abs=1e-2)


def test_psnr_equals_its_definition(pair):
    a, b = (image.as_float(picture) for picture in pair)
    mse = np.mean((pair[0].astype(float) - pair[1]) ** 2)
    assert image.psnr(((a - b) ** 2).mean(axis=2), ALL) == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-4)


def test_equal_pictures_reach_the_cap(pair):
    a = image.as_float(pair[0])
    assert image.psnr(((a - a) ** 2).mean(axis=2), ALL) == pytest.approx(99)
    assert image.over_channels(image.ssim_factors(a, a)[0]) == pytest.approx(1, abs=1e-6)


def test_one_grey_level(pair):
    a = np.minimum(pair[0], 254)
    d = image.as_float(a) - image.as_float(a + 1)
    assert image.psnr((d**2).mean(axis=2), ALL) == pytest.approx(48.1308, abs=1e-3)
    assert image.mean_over(np.abs(d).mean(axis=2), ALL) == pytest.approx(1 / 255, abs=1e-7)


def test_nothing_measures_nan():
    empty = np.zeros((8, 8), bool)
    zeros = np.zeros((8, 8), np.float32)
    assert np.isnan(image.psnr(zeros, empty))
    assert not image.whole_windows(8, 8).any()


def test_regions_lie_where_the_landmarks_are():
    rng = np.random.default_rng(1)
    points = rng.uniform([60, 40], [100, 100], (478, 2))
    points[:2] = [60, 40], [100, 100]
    head, face = image.head_region(points, 140, 160), image.face_region(points, 140, 160)
    size = np.ptp(points, axis=0)
    assert head.sum() == pytest.approx(np.pi * 0.85 * size[0] * 0.95 * size[1], rel=0.01)
    assert not (face & ~head).any()
    ys, xs = np.nonzero(face)
    assert xs.min() >= 59 and xs.max() <= 100 and ys.min() >= 39 and ys.max() <= 100
    assert xs.mean() + 0.5 == pytest.approx(80, abs=1.5)
