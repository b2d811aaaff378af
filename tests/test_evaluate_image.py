import cv2
import numpy as np
import pytest

from expportrait_cli.evaluate import image

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
    own = image.mean_over(image.ssim_map(a, b), image.whole_windows(96, 128))
    theirs = metrics.structural_similarity(
        a, b, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert 0.3 < own < 0.95
    # float32 windows: variances are differences of nearly equal numbers.
    assert own == pytest.approx(theirs, abs=1e-5)


def test_psnr_equals_its_definition(pair):
    a, b = (image.as_float(picture) for picture in pair)
    mse = np.mean((pair[0].astype(float) - pair[1]) ** 2)
    assert image.psnr(((a - b) ** 2).mean(axis=2), ALL) == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-4)


def test_equal_pictures_reach_the_cap(pair):
    a = image.as_float(pair[0])
    assert image.psnr(((a - a) ** 2).mean(axis=2), ALL) == pytest.approx(99)
    assert image.ssim_map(a, a) == pytest.approx(1, abs=1e-6)


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
