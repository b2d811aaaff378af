import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from expportrait_cli.errors import InputError
from expportrait_cli.media.image import is_image, read_image
from expportrait_cli.media.video import frame_count
from expportrait_cli.media.writer import write_png

TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: np.rot90,
    7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
    8: lambda a: np.rot90(a, -1),
}


def mean_error(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    assert found.dtype == np.uint8
    return float(np.abs(found.astype(int) - expected).mean())


def test_png_round_trip_makes_folders_and_leaves_nothing_else(tmp_path, picture):
    path = write_png(tmp_path / "new" / "面 (1).png", picture)
    assert np.array_equal(read_image(path), picture)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_exif_orientation_makes_it_upright(tmp_path, picture, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(TURNS[orientation](picture)))
    stored.save(tmp_path / f"a.{suffix}", exif=exif, quality=95)
    assert mean_error(read_image(tmp_path / f"a.{suffix}"), picture) < 2


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_colour_is_scaled(tmp_path, picture, suffix):
    deep = picture.astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), deep[..., ::-1])
    assert np.array_equal(read_image(tmp_path / f"a.{suffix}"), picture)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_is_scaled(tmp_path, picture, suffix):
    grey = picture[..., 0]
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), grey.astype(np.uint16) * 257)
    assert np.array_equal(read_image(tmp_path / f"a.{suffix}"), np.repeat(grey[..., None], 3, 2))


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "YCbCr"])
def test_colour_modes(tmp_path, picture, mode):
    image = Image.fromarray(picture).convert(mode)
    suffix = "png" if mode in ("L", "P", "1") else "jpg"
    image.save(tmp_path / f"a.{suffix}", **({"quality": 98} if suffix == "jpg" else {}))
    assert mean_error(read_image(tmp_path / f"a.{suffix}"), np.array(image.convert("RGB"))) < 3


def test_transparency_lies_on_white_without_a_dark_fringe(tmp_path, picture):
    alpha = np.zeros(picture.shape[:2], np.uint8)
    alpha[:, 80:] = 255
    alpha[:, 79] = 128
    # Black under the transparent part, as cut-out tools leave it.
    rgb = np.where(alpha[..., None] > 0, picture, 0).astype(np.uint8)
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert (read[:, :79] == 255).all()
    assert np.array_equal(read[:, 80:], picture[:, 80:])
    assert mean_error(read[:, 79:80], np.rint((picture[:, 79:80] * 128.0 + 255 * 127.0) / 255)) < 1


def test_transparent_palette_lies_on_white(tmp_path, picture):
    image = Image.fromarray(picture).convert("P")
    image.save(tmp_path / "a.png", transparency=bytes(256))
    assert (read_image(tmp_path / "a.png") == 255).all()


def test_a_damaged_colour_profile_is_ignored(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.png", icc_profile=b"not a profile")
    assert np.array_equal(read_image(tmp_path / "a.png"), picture)


def test_srgb_profile_changes_nothing(tmp_path, picture):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(picture).save(tmp_path / "a.png", icc_profile=profile)
    assert np.abs(read_image(tmp_path / "a.png").astype(int) - picture).max() <= 1


def test_content_decides_not_the_name(tmp_path, picture, make_clip):
    Image.fromarray(picture).save(tmp_path / "a.png", format="JPEG")
    assert is_image(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == picture.shape
    clip = make_clip("clip_for_image.mp4", seconds=0.2)
    (tmp_path / "clip.png").write_bytes(clip.read_bytes())
    assert not is_image(tmp_path / "clip.png")


def test_an_animated_gif_is_a_clip_and_a_still_one_a_photo(tmp_path, picture):
    frames = [Image.fromarray(np.roll(picture, 20 * k, 1)) for k in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "still.gif")
    assert not is_image(tmp_path / "moving.gif")
    assert is_image(tmp_path / "still.gif")


def _jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="JPEG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 bytes"),
        (b"hello, this is text", "is a text file"),
        (_jpeg(np.zeros((300, 300, 3), np.uint8))[:-300], "cut off"),
    ],
)
def test_refusals_are_one_line_with_the_name(tmp_path, content, said):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        read_image(path)
    assert "a.jpg" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_folder_tiny_and_huge_are_refused(tmp_path, monkeypatch, picture):
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    for path, said in [(tmp_path / "no.png", "does not exist"), (tmp_path, "folder"), (tmp_path / "one.png", "1x1")]:
        with pytest.raises(InputError, match=said):
            read_image(path)
    write_png(tmp_path / "a.png", picture)
    monkeypatch.setattr("expportrait_cli.media.image.MAX_PIXELS", 1000)
    with pytest.raises(InputError, match="Scale it down"):
        read_image(tmp_path / "a.png")


@pytest.mark.slow
def test_8k_photo_is_read(tmp_path):
    write_png(tmp_path / "a.png", np.zeros((8192, 8192, 3), np.uint8))
    assert read_image(tmp_path / "a.png").shape == (8192, 8192, 3)


def animation(path, count=6):
    pictures = [Image.fromarray(np.full((64, 64, 3), 20 * index, np.uint8)) for index in range(count)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40, loop=0)
    return path


@pytest.mark.parametrize("name", ["a.gif", "a.png"])
def test_animations_are_clips(tmp_path, name):
    path = animation(tmp_path / name)
    assert not is_image(path) and frame_count(path) == 6


def test_an_animated_webp_is_refused_and_a_still_one_is_a_photo(tmp_path):
    with pytest.raises(InputError, match="animation of 6 pictures"):
        is_image(animation(tmp_path / "a.webp"))
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "b.webp")
    assert is_image(tmp_path / "b.webp")
