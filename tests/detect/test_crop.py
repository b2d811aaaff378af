import numpy as np
import pytest

from expportrait_cli.detect import crop
from expportrait_cli.detect.crop import Crop, crop_image, crop_points, steady_crop, uncrop_points
from expportrait_cli.errors import InputError, UsageError


def blob(size: tuple[int, int], x: float, y: float, sigma: float) -> np.ndarray:
    columns, rows = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    grey = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=2)


def centroid(image: np.ndarray) -> np.ndarray:
    weights = image[..., 0].astype(np.float64)
    columns, rows = np.meshgrid(np.arange(image.shape[1]) + 0.5, np.arange(image.shape[0]) + 0.5)
    return np.array([(weights * columns).sum(), (weights * rows).sum()], np.float64) / weights.sum()


@pytest.mark.parametrize("crop", [Crop(20, 10, 128), Crop(20, 10, 256), Crop(20, 10, 90), Crop(20.4, 9.7, 333.3)])
def test_a_spot_lands_where_crop_points_says(crop: Crop) -> None:
    image = blob((400, 380), 70.0, 60.5, 6)
    spot = crop_points(np.array([70.0, 60.5], np.float32), crop, 128)
    np.testing.assert_allclose(centroid(crop_image(image, crop, 128)), spot, atol=0.06)


def test_points_come_back() -> None:
    points = np.random.default_rng(0).uniform(-50, 900, (5, 478, 2)).astype(np.float32)
    crop = Crop(-31, 17, 613)
    np.testing.assert_allclose(uncrop_points(crop_points(points, crop, 512), crop, 512), points, atol=1e-3)


def test_a_crop_at_its_own_size_copies_pixels(picture: np.ndarray) -> None:
    np.testing.assert_array_equal(crop_image(picture, Crop(11, 7, 64), 64), picture[7:71, 11:75])


def test_beyond_the_border_the_last_pixel_goes_on(picture: np.ndarray) -> None:
    seen = crop_image(picture, Crop(-30, -20, 90), 90)
    np.testing.assert_array_equal(seen[20:, 30:], picture[:70, :60])
    assert (seen[:20, 30:] == picture[0, :60]).all()
    assert (seen[20:, :30] == picture[:70, :1]).all()


def test_a_crop_outside_the_picture_is_refused(picture: np.ndarray) -> None:
    with pytest.raises(ValueError, match="outside"):
        crop_image(picture, Crop(500, 0, 50), 64)


def square(x: float, y: float, size: float) -> list[list[float]]:
    return [[x - size / 2, y - size / 2], [x + size / 2, y + size / 2]]


def test_a_still_face_gets_hair_and_shoulders() -> None:
    crop = steady_crop(np.array([square(900, 500, 200)] * 10), (1920, 1080))
    assert 2.2 * 200 <= crop.side <= 2.4 * 200
    assert crop.top < 400 - 0.35 * 200 and crop.top + crop.side > 600 + 0.5 * 200


def test_the_crop_holds_every_place_of_a_moving_face() -> None:
    faces = np.array([square(400 + 8 * t, 500 + 2 * t, 150 + t) for t in range(60)] + [[[np.nan] * 2] * 2])
    crop = steady_crop(faces, (1920, 1080))
    seen = faces[:-1]
    assert (seen.min(axis=(0, 1)) > crop[:2]).all()
    assert (seen.max(axis=(0, 1)) < np.array(crop[:2]) + crop.side).all()


def test_one_outlier_does_not_widen_the_crop() -> None:
    faces = np.array([square(900, 500, 200)] * 200)
    wild = faces.copy()
    wild[17] += 600
    assert steady_crop(wild, (1920, 1080)).side == pytest.approx(steady_crop(faces, (1920, 1080)).side, abs=10)


def test_a_tight_portrait_is_used_to_its_border_and_not_beyond() -> None:
    assert steady_crop(np.array([square(256, 270, 280)]), (512, 512)) == Crop(0, 0, 512)
    crop = steady_crop(np.array([square(120, 300, 200)]), (1000, 620))
    assert crop.left == 0 and crop.top >= 0 and crop.top + crop.side <= 620


def face_at(x: float, y: float, width: float, height: float) -> np.ndarray:
    return np.array([[x, y], [x + width, y + height]], np.float32)


@pytest.mark.parametrize(
    ("aspect", "size", "shape"),
    [("1:1", 512, (512, 512)), ("9:16", 512, (512, 910)), ("16:9", 256, (456, 256)), ("4:5", 512, (512, 640))],
)
def test_the_short_side_has_the_size(aspect, size, shape):
    assert crop.shape_of(aspect, size) == shape


@pytest.mark.parametrize("aspect", ["9x16", "0:1", "1:4", "16:0", "a:b", "-9:16", "9:16:1"])
def test_shapes_that_are_none_are_refused(aspect):
    with pytest.raises(UsageError, match="expected"):
        crop.shape_of(aspect, 512)


def test_a_tall_film_keeps_the_crops_width_and_room_above_the_head():
    face = face_at(450, 400, 150, 200)
    box = crop.framing(face, crop.Crop(295, 300, 460), (1080, 1920), (512, 910))
    assert abs(box.width - 460) <= 1 and abs(box.height - 460 * 910 / 512) <= 1 and box.left == 295
    # The head with its hair begins above the upper third's line, and the shoulders are below the chin.
    assert box.top < 400 - 0.38 * 200 and box.top + box.height > 600 + 0.52 * 200
    eyes = (460 - box.top) / box.height
    assert 0.28 < eyes < 0.42


def test_a_film_shows_nothing_beside_the_photo():
    face = face_at(150, 60, 150, 200)
    box = crop.framing(face, crop.Crop(-5, -30, 460), (450, 700), (512, 910))
    assert box.left >= 0 and box.top >= 0 and box.left + box.width <= 450 and box.top + box.height <= 700
    assert abs(box.width / box.height - 512 / 910) < 0.01


def test_a_shape_in_which_the_head_does_not_fit_is_refused():
    with pytest.raises(InputError, match="does not fit"):
        crop.framing(face_at(150, 150, 150, 200), crop.Crop(0, 70, 400), (400, 600), (910, 512))
