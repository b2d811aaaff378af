"""What a turned head shows and the photo does not: hair on hidden scalp, and no ear or background on it."""

import cv2
import numpy as np
import pytest
from support.plain_compositor import believed

from expportrait_cli.geometry.camera import Camera
from expportrait_cli.head import dense
from expportrait_cli.painting.canvas import Canvas
from expportrait_cli.painting.proxy.hidden import Hidden, hairiness, scalp_of, strands
from expportrait_cli.painting.stage import paste

pytest_plugins = ("support.astronaut",)

SIDE = 128


@pytest.fixture(scope="module")
def place(head):
    return dense(head, head.template).numpy()


def seen_from_ahead(place):
    """Pixels of the template in a picture of 128 px, upright and without perspective, and what faces it."""
    xy = np.c_[64 + 300 * place[:, 0], 64 - 300 * place[:, 1]].astype(np.float32)
    return xy, place[:, 2] > 0.02


def test_the_back_of_a_head_has_hair_if_its_front_has(head, place):
    xy, shown = seen_from_ahead(place)
    scalp, behind = scalp_of(head), place[:, 2] < -0.05
    above = np.zeros((SIDE, SIDE), np.float32)
    above[:40] = 1
    hairy = hairiness(head, above, xy, shown)
    assert hairy[scalp & behind].min() > 0.9
    assert hairy[~scalp].max() == 0
    assert hairiness(head, np.zeros_like(above), xy, shown).max() == 0


def test_ears_are_no_scalp_and_the_skull_behind_them_is(head, place):
    x, y, z = np.abs(place[:, 0]), place[:, 1], place[:, 2]
    scalp = scalp_of(head)
    tip = (x > 0.98 * x[(np.abs(y) < 0.04) & (np.abs(z) < 0.05)].max()) & (np.abs(y) < 0.04)
    assert tip.any() and not scalp[tip & (z > -0.04)].any()
    assert scalp[(z < -0.06) & (y > 0) & (y < 0.04)].all()


@pytest.mark.parametrize("turned", [False, True])
def test_strands_run_down_whichever_way_the_photo_has_them(turned):
    photo = np.full((SIDE, SIDE, 3), 90, np.uint8)
    photo[:, ::4] = 130
    photo = np.ascontiguousarray(photo.transpose(1, 0, 2)) if turned else photo
    hair = np.zeros((SIDE, SIDE), np.float32)
    hair[20:100, 30:110] = 1
    found = strands(photo, hair, 128.0)
    assert found is not None and found.shape[0] >= 60
    assert found.std(1).mean() > 10 * found.std(0).mean()
    # Relative to what is around: 130 over a mean of 100.
    assert found.max() == pytest.approx(0.3, abs=0.05)
    assert strands(photo, 0 * hair, 128.0) is None


def test_no_ear_and_no_background_is_believed_on_hair(head):
    alpha, hair = np.ones((SIDE, SIDE), np.float32), np.zeros((SIDE, SIDE), np.float32)
    hair[:64], alpha[:, 100:] = 1, 0
    photo = np.full((SIDE, SIDE, 3), 100, np.uint8)
    camera = Camera.of_crop(500.0, SIDE, SIDE)
    hairy = np.zeros(len(head.facial_mask), np.float32)
    hidden = Hidden(head, camera, photo, alpha, hair, hairy, depth_m=1.0, face_height_px=60.0)
    source = np.zeros((1, 4, 10), np.float32)
    # Hair that shows hair, hair that shows skin, skin that shows skin, and skin that shows the background.
    source[0, :, :2] = [[40, 20], [40, 100], [40, 100], [120, 100]]
    source[0, :2, -1] = 1
    assert believed(hidden, np.ones((1, 4), np.float32), source).round(3).tolist() == [[1, 0, 1, 0]]


def test_pasting_touches_what_changed_alone():
    small = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8), (0, 0), 3)
    photo = cv2.resize(small, (320, 240), interpolation=cv2.INTER_CUBIC)
    canvas = Canvas(small, np.ones((60, 80), np.float32), Camera(500.0, 40.0, 30.0, 80, 60), 1.0, (0.0, 0.0))
    assert np.array_equal(paste(photo, canvas, small), photo)
    frame = small.copy()
    frame[20:40, 30:50] = 255
    out = paste(photo, canvas, frame)
    large = cv2.resize(frame, (320, 240), interpolation=cv2.INTER_CUBIC)
    assert np.abs(out[84:156, 124:196].astype(int) - large[84:156, 124:196]).max() <= 2
    outside = np.ones((240, 320), bool)
    outside[48:192, 88:232] = False
    assert np.array_equal(out[outside], photo[outside])
