"""Filling in, taking a photo apart, and the geometry that the compositor stands on."""

import cv2
import numpy as np
import pytest
import torch

from expportrait_cli.artifacts.types import CROP_SIZE, Curves
from expportrait_cli.detect.crop import Crop, crop_points, uncrop_points
from expportrait_cli.geometry.rotations import from_turns, logarithm
from expportrait_cli.head.fitted import Bones, fitted_mesh
from expportrait_cli.head.model import HEAD, JAW, TORSO, HeadPose, bones
from expportrait_cli.media.image import read_image
from expportrait_cli.painting.canvas import crop_canvas, photo_canvas
from expportrait_cli.painting.proxy.layers import background, diffuse, membrane, unmix

pytest_plugins = ("support.astronaut",)

SIZES = [(64, 64), (63, 50), (17, 129)]


def hole(height: int, width: int) -> np.ndarray:
    """1 around an unknown ellipse."""
    y, x = np.mgrid[:height, :width]
    return (((x - width / 2) / (0.3 * width)) ** 2 + ((y - height / 2) / (0.3 * height)) ** 2 > 1).astype(np.float32)


def ramp(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.dstack([2 * x, y + 20, 200 - x])


@pytest.mark.parametrize("fill", [diffuse, membrane])
@pytest.mark.parametrize("size", SIZES)
def test_filling_keeps_what_is_known(fill, size):
    known, values = hole(*size), ramp(*size)
    result = fill(np.where(known[..., None] > 0, values, 777.0).astype(np.float32), known)
    assert result.shape == values.shape
    assert np.abs(result - values)[known > 0].max() < 1e-3
    # Nothing that was unknown shines through, and nothing beyond what is known is made up.
    inner = result[known == 0]
    assert inner.max() <= values.max() + 1e-3 and inner.min() >= values.min() - 1e-3


@pytest.mark.parametrize("fill", [diffuse, membrane])
@pytest.mark.parametrize("size", SIZES)
def test_a_constant_stays_constant(fill, size):
    known = hole(*size)
    values = np.full((*size, 3), 93.0, np.float32) * known[..., None]
    assert np.abs(fill(values, known) - 93).max() < 0.01


def test_diffuse_carries_weights():
    """Unsure zeros do not bleed into what is sure."""
    weight = np.full((32, 32), 1e-3, np.float32)
    weight[:, 10:20] = 1
    values = np.zeros((32, 32, 1), np.float32)
    values[:, 10:20] = 8
    assert diffuse(values, weight)[:, :, 0].min() > 7.5


def test_one_known_pixel_fills_the_picture():
    weight = np.zeros((32, 32), np.float32)
    weight[16, 16] = 1
    values = np.zeros((32, 32, 2), np.float32)
    values[16, 16] = [5, -3]
    result = diffuse(values, weight)
    assert np.abs(result - [5, -3]).max() < 1e-3


def test_a_membrane_meets_its_border_without_a_step():
    size = (128, 128)
    known = hole(*size)
    values = ramp(*size)
    film = membrane(values * known[..., None], known)
    across = np.abs(np.diff(film, axis=1)).max(), np.abs(np.diff(film, axis=0)).max()
    # The ramp itself rises by 2 a pixel.
    assert max(across) < 4
    assert np.abs(film - values).mean() < 4


def test_a_person_leaves_no_colour_in_the_plate():
    y, x = np.mgrid[:160, :160] + 0.5
    alpha = np.clip((45 - np.hypot(x - 80, y - 80)) / 6 + 0.5, 0, 1).astype(np.float32)
    red, green = np.array([220.0, 30.0, 30.0]), np.array([40.0, 170.0, 60.0])
    photo = (alpha[..., None] * red + (1 - alpha[..., None]) * green).astype(np.float32)
    plate = background(photo, alpha, trace=0.03, margin=0.012)
    foreground = unmix(photo, alpha, plate)
    assert np.abs(plate - green).max() < 2
    # And the background none in the person, also beyond the soft edge.
    assert np.abs(foreground - red)[alpha > 0.05].max() < 6
    again = alpha[..., None] * foreground + (1 - alpha[..., None]) * plate
    assert np.abs(again - photo).max() < 4


def test_bones_are_those_of_the_head_model(head):
    generator = np.random.default_rng(0)
    places = head.joint_template.numpy().astype(np.float64)
    turn, torso, jaw = generator.normal(size=(3, 3)) * [[0.4], [0.2], [0.1]]
    shift, neck = np.array([0.1, 0.0, 1.1]), np.array([0.1, 0.15, 1.15])
    rows = (np.zeros(1), jaw, np.zeros(4), turn, shift, torso, neck)
    curves = Curves(*(np.float32(row)[None] for row in rows))
    found = Bones.of(places, curves, 0)
    values = {
        "jaw": jaw,
        "gaze": np.zeros(4),
        "rotation": logarithm(from_turns(turn)),
        "translation": shift,
        "torso_rotation": logarithm(from_turns(torso)),
        "torso_translation": neck,
    }
    Rs, ts = bones(
        torch.from_numpy(places), HeadPose(**{name: torch.from_numpy(value) for name, value in values.items()})
    )
    for index, bone in ((HEAD, found.head), (JAW, found.jaw), (TORSO, found.torso)):
        assert np.abs(bone - np.c_[Rs[index].numpy(), ts[index].numpy()]).max() < 1e-6


@pytest.mark.parametrize("make", [crop_canvas, photo_canvas])
@pytest.mark.parametrize("size", [200, 512])
def test_a_canvas_puts_the_head_where_the_photo_has_it(fitted, head, make, size):
    image = read_image(fitted.source)
    canvas = make(image, fitted, size)
    assert canvas.alpha.shape == canvas.photo.shape[:2]
    assert (canvas.camera.width, canvas.camera.height) == canvas.photo.shape[1::-1]
    verts = torch.from_numpy(fitted_mesh(fitted, head))
    px = canvas.camera.project(verts).numpy()
    crop_px = (verts[:, :2] / verts[:, 2:] * fitted.focal_px + CROP_SIZE / 2).numpy()
    assert np.abs(crop_px * canvas.scale + np.array(canvas.corner) - px).max() < 0.01
    # Through the photo itself: the canvas is a scaled piece of it.
    source = uncrop_points(crop_px, Crop(*map(float, fitted.crop)), CROP_SIZE)
    if make is photo_canvas:
        assert np.abs(source * canvas.photo.shape[0] / image.shape[0] - px).max() < 0.6
    else:
        assert np.abs(crop_points(source, Crop(*map(float, fitted.crop)), size) - px).max() < 0.01
    # The face is the person's, the photo's upper corners are not.
    row, column = np.floor(px[(head.facial_mask == 1).numpy()].mean(0)).astype(int)[::-1]
    assert canvas.alpha[row, column] > 0.95
    assert canvas.alpha[2, -3] < 0.05


def test_the_whole_photo_is_never_enlarged(fitted):
    image = read_image(fitted.source)
    assert photo_canvas(image, fitted, 768).photo.shape == image.shape
    small = photo_canvas(image, fitted, 124).photo
    assert small.shape[0] == round(512 * 124 / fitted.crop[2])
    assert cv2.resize(image, small.shape[1::-1], interpolation=cv2.INTER_AREA).tolist() == small.tolist()
