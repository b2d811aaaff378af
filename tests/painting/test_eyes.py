"""Eyeballs and lids: where their directions lie, in which colours, and the way down a lid."""

import numpy as np
import pytest
from support.astronaut import head as head

from expportrait_cli.head.facemesh import lid_travel
from expportrait_cli.head.model import dense
from expportrait_cli.painting.proxy.eyes import WHITE, Eye, View, from_top, saturation
from expportrait_cli.painting.proxy.lids import height_of

SKIN = np.array([200.0, 150.0, 120.0], np.float32)


def view(turn_deg: float = 0.0) -> View:
    """An eyeball of 20 px, turned about the vertical."""
    c, s = np.cos(np.radians(turn_deg)), np.sin(np.radians(turn_deg))
    return View(np.array([[20 * c, 0], [0, -20], [20 * s, 0]]), np.array([50.0, 40.0]))


@pytest.mark.parametrize("turn_deg", [0.0, 25.0, -40.0])
def test_directions_are_seen_where_they_lie(turn_deg):
    seen = view(turn_deg)
    assert seen.radius_px == pytest.approx(20, abs=1e-9)
    px = np.array([[50.0, 40.0], [58.0, 45.0], [36.0, 31.0]])
    rays = seen.rays(px)
    assert np.abs(np.linalg.norm(rays, axis=-1) - 1).max() < 1e-9
    assert np.abs(seen.place(rays) - px).max() < 1e-9
    # The middle of the ball is what faces the camera.
    expected = [np.sin(np.radians(turn_deg)) * -1, 0, np.cos(np.radians(turn_deg))]
    assert np.abs(np.abs(rays[0]) - np.abs(expected)).max() < 1e-9 and rays[0, 2] > 0


def bare(**colours) -> Eye:
    """An eye that a photo shows these pixels of."""
    eye = object.__new__(Eye)
    eye.skin, eye.axis, eye.iris = SKIN, np.array([0.0, 0.0, 1.0]), 0.4
    none = np.zeros((0, 3))
    eye.colours = {name: colours.get(name, none) for name in ("white", "iris", "pupil")}
    return eye


def test_an_eye_has_the_photos_colours_from_the_middle_outwards():
    blue, pale = np.tile([60.0, 90.0, 140.0], (20, 1)), np.tile([205.0, 200.0, 190.0], (20, 1))
    blue[:3] = 250.0
    eye = bare(iris=blue, white=pale, pupil=np.full((9, 3), 12.0))
    eye.settle(bare())
    pupil, iris, limbus, white = eye.model(np.array([0.0, 0.6, 0.93, 1.6]), 0.1)
    assert np.abs(pupil - 12).max() < 2
    # Three pixels mirror the light, which is no colour of the iris.
    assert np.abs(iris - [60, 90, 140]).max() < 3
    assert limbus.mean() < 0.95 * iris.mean()
    assert np.abs(white - pale[0]).max() < 2


def test_what_lids_shade_is_no_white_and_what_one_eye_hides_the_other_shows():
    grey, green = np.tile([70.0, 60.0, 55.0], (20, 1)), np.tile([70.0, 110.0, 80.0], (20, 1))
    eye = bare(white=grey)
    eye.settle(bare(iris=green))
    assert eye.white.mean() > 170 and saturation(eye.white[None])[0] < saturation(SKIN[None])[0]
    assert np.array_equal(eye.iris_colour, green[0])
    alone = bare()
    alone.settle(bare())
    assert 0.9 * SKIN.mean() < alone.white.mean() <= 1.1 * WHITE.mean()
    assert alone.iris_colour.mean() < 0.5 * alone.white.mean()


def test_shadows_fall_from_the_upper_lid():
    shown = np.zeros((6, 5), bool)
    shown[2:5, 1:4] = shown[1, 2] = True
    depth = from_top(shown)
    assert depth[:, 2].tolist() == [0, 0.5, 1.5, 2.5, 3.5, 0]
    assert depth[:, 1].tolist() == [0, 0, 0.5, 1.5, 2.5, 0]


@pytest.mark.parametrize("side", [0, 1])
def test_the_way_down_a_lid_ends_at_its_rim(head, side):
    """Also near the corners, where a blink moves the rim by less."""
    travel = lid_travel(head)[side]
    across = dense(head, head.template).numpy()[:, 0]
    height = height_of(across, travel)
    assert height.min() == 0 and height.max() == 1
    assert not height[travel < 1e-4].any()
    low, high = np.percentile(across[travel > 0.0008], [25, 75])
    for part in (across < low, across > high, (across > low) & (across < high)):
        assert height[part].max() > 0.85
