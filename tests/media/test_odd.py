"""Technically odd photos and clips of real people behave as a sound tool has them."""

import logging
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from expportrait_cli.errors import InputError
from expportrait_cli.media.image import is_image, read_image
from expportrait_cli.media.video import frame_count, probe, read_frames
from expportrait_cli.media.writer import VideoWriter

pytestmark = pytest.mark.media

# number: width, height, rate, frames, variable, whether there is sound
CLIPS = {
    1: (512, 512, Fraction(25), 183, True, True),
    2: (540, 960, Fraction(25), 125, False, True),
    3: (501, 333, Fraction(25), 125, False, True),
    4: (501, 333, Fraction(25), 125, False, True),
    5: (512, 512, Fraction(30), 97, False, True),
    6: (480, 480, Fraction(30), 240, False, True),
    7: (512, 512, Fraction(25), 158, False, False),
    8: (480, 480, Fraction(60), 240, False, True),
    9: (256, 256, Fraction(12), 36, False, False),
    10: (480, 480, Fraction(30), 178, False, True),
    11: (480, 480, Fraction(30), 90, False, False),
    12: (512, 512, Fraction(25), 1, False, False),
    15: (512, 512, Fraction(25), 104, False, True),
    19: (512, 512, Fraction(25), 98, False, False),
    20: (512, 512, Fraction(25), 125, False, True),
    21: (480, 480, Fraction(30), 60, False, True),
    22: (480, 480, Fraction(30), 60, False, True),
    23: (480, 480, Fraction(30), 178, False, True),
    24: (512, 512, Fraction(25), 50, False, True),
}
# number: the file it was made from, and how close it must come, dB
TWINS = {
    35: ("ref22", 40),
    36: ("ref15", 38),
    37: ("ref13", 38),
    33: ("ref01", 60),
    34: ("ref05", 33),
    41: ("ref08", 99),
}


def odd(media: Path, number: int) -> Path:
    return next(media.glob(f"odd/odd{number:02d}*"))


def psnr(a, b) -> float:
    return float(20 * np.log10(255 / max(np.sqrt(np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2)), 1e-9)))


@pytest.mark.parametrize("number", CLIPS)
def test_clip(media, number):
    width, height, rate, count, variable, has_audio = CLIPS[number]
    path = odd(media, number)
    assert not is_image(path)
    info = probe(path)
    assert (info.width, info.height, info.rate) == (width, height, rate)
    assert (info.variable_rate, info.has_audio) == (variable, has_audio)
    shapes = [frame.shape for frame in read_frames(path)]
    assert shapes == [(height, width, 3)] * count
    assert frame_count(path) == count


@pytest.mark.parametrize("number", [13, 14, 16, 18])
def test_no_clip(media, number):
    for read in (probe, frame_count, lambda path: next(read_frames(path))):
        with pytest.raises(InputError, match=f"odd{number}") as error:
            read(odd(media, number))
        assert "\n" not in str(error.value)


def test_a_cut_clip_warns_once(media, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(list(read_frames(odd(media, 15)))) == 104
    assert len(caplog.records) == 1


def test_clips_look_like_what_they_were_made_from(media):
    """Upright, undistorted, and not the cover picture."""
    for number, name, size in [(2, "drv01", (540, 960)), (20, "drv23", None), (24, "drv05", None), (1, "drv05", None)]:
        original = next(read_frames(next(media.glob(f"driving/{name}*")), size=size))
        assert psnr(next(read_frames(odd(media, number))), original) > 28


def test_variable_rate_shows_each_moment_when_it_was(media):
    original = list(read_frames(next(media.glob("driving/drv05*"))))
    varying = list(read_frames(odd(media, 1)))
    assert len(varying) == len(original)
    # A picture is held for up to three frames, so the best match lies at most two frames back.
    for index in range(10, 180, 17):
        errors = [psnr(varying[index], original[k]) for k in range(index - 6, min(index + 7, len(original)))]
        assert -2 <= int(np.argmax(errors)) - 6 <= 0 or max(errors) - errors[6] < 1


def test_no_frame_comes_twice(media):
    for number in (7, 8, 22):
        frames = [cv2.resize(frame, (32, 32)).tobytes() for frame in read_frames(odd(media, number))]
        assert len(set(frames)) >= 0.9 * len(frames)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["drv18", "drv19", "drv02"])
def test_real_clip_through_the_writer(media, tmp_path, name):
    clip = next(media.glob(f"driving/{name}*"))
    info = probe(clip)
    expected = {"drv18": Fraction(30000, 1001), "drv19": Fraction(24000, 1001), "drv02": Fraction(30)}[name]
    assert info.rate == expected
    with VideoWriter(tmp_path / "a.mp4", rate=info.rate, audio=clip, audio_start_s=info.start_s) as writer:
        for frame in read_frames(clip):
            writer.write(frame)
    assert probe(tmp_path / "a.mp4").rate == expected
    assert frame_count(tmp_path / "a.mp4") == frame_count(clip)
    assert psnr(next(read_frames(tmp_path / "a.mp4")), next(read_frames(clip))) > 40


@pytest.mark.parametrize("number", TWINS)
def test_photo_looks_like_its_twin(media, number):
    name, least = TWINS[number]
    found = read_image(odd(media, number))
    twin = read_image(next(media.glob(f"*/{name}*")))
    if twin.shape != found.shape:
        twin = cv2.resize(twin, found.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert psnr(found, twin) > least


def test_other_photos(media):
    for number, shape in {
        30: (859, 1222),
        31: (1024, 1024),
        32: (450, 450),
        38: (1137, 910),
        42: (333, 501),
        43: (48, 48),
    }.items():
        assert is_image(odd(media, number))
        assert read_image(odd(media, number)).shape == (*shape, 3)
    grey = read_image(odd(media, 32))
    twin = cv2.cvtColor(read_image(next(media.glob("*/ref17*"))), cv2.COLOR_RGB2GRAY)
    assert psnr(grey[..., 1], twin) > 40


def test_cut_out_has_a_white_ground_and_no_dark_fringe(media):
    alpha = cv2.imread(str(odd(media, 30)), cv2.IMREAD_UNCHANGED)[..., 3]
    photo = read_image(odd(media, 30))
    assert (photo[alpha == 0] == 255).all()
    fringe = (alpha > 0) & (alpha < 64)
    assert photo[fringe].min() > 150


@pytest.mark.parametrize("number", [17, 39, 40])
def test_no_photo(media, number):
    with pytest.raises(InputError, match=f"odd{number}") as error:
        read_image(odd(media, number))
    assert "\n" not in str(error.value)


def test_every_other_photo_and_clip_is_read(media):
    for path in [*media.glob("reference/*"), *media.glob("hard/*"), *media.glob("driving/*")]:
        if path.suffix.lower() in (".mp4", ".mkv", ".webm", ".mov"):
            info = probe(path)
            assert next(read_frames(path)).shape == (info.height, info.width, 3)
            assert not info.variable_rate
        else:
            assert read_image(path).ndim == 3
