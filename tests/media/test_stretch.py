"""Stretches of clips: which frames times and numbers mean, and that exactly those are read, with their sound."""

from fractions import Fraction

import numpy as np
import pytest

from expportrait_cli.config import Stretch
from expportrait_cli.errors import InputError, UsageError
from expportrait_cli.media.stretch import frames_of, settled
from expportrait_cli.media.video import frame_count, read_frames
from expportrait_cli.media.writer import VideoWriter, write_png

NTSC = Fraction(30000, 1001)


@pytest.mark.parametrize(
    ("stretch", "rate", "frames"),
    [
        (Stretch(), 25, (0, None)),
        (Stretch("75f", "80f"), 25, (75, 80)),
        (Stretch("3.2s"), 25, (80, None)),
        (Stretch("1:02.5"), 24, (1500, None)),
        (Stretch("1:02.5s", "1:00:00"), 24, (1500, 86400)),
        (Stretch("10s"), NTSC, (300, None)),
        (Stretch("0.019s"), 25, (0, None)),
        (Stretch("0.02s"), 25, (1, None)),
        (Stretch("2s", max_frames=10), 25, (50, 60)),
        (Stretch("2s", "2.2s", 10), 25, (50, 55)),
        (Stretch(max_frames=3), 25, (0, 3)),
    ],
)
def test_moments_are_frames(stretch, rate, frames):
    assert frames_of(stretch, Fraction(rate)) == frames


@pytest.mark.parametrize(
    ("stretch", "says"),
    [
        (Stretch("75"), "write 75s for the time, 75f for the frame"),
        (Stretch("3.2"), "write 3.2s for the time"),
        (Stretch("1:75"), "up to 59"),
        (Stretch("1:60:00"), "up to 59"),
        (Stretch("-1s"), "expected a time such as"),
        (Stretch("1,5s"), "expected a time such as"),
        (Stretch("5f", "5f"), "frame 5 and not after"),
        (Stretch("٣s"), "expected a time such as"),
    ],
)
def test_what_is_no_stretch_is_refused(stretch, says):
    with pytest.raises(UsageError, match=says):
        frames_of(stretch, Fraction(25))


@pytest.fixture(scope="module")
def ramp(tmp_path_factory):
    """Frame k has the grey level 8 k."""
    path = tmp_path_factory.mktemp("ramp") / "ramp.mkv"
    with VideoWriter(path, rate=Fraction(10), lossless=True) as writer:
        for index in range(20):
            writer.write(np.full((32, 32, 3), 8 * index, np.uint8))
    return path


def test_exactly_these_frames_are_read(ramp):
    first, end = frames_of(Stretch("0.5s", "9f"), Fraction(10))
    levels = [int(frame[0, 0, 0]) for frame in read_frames(ramp, start=first, end=end)]
    assert levels == [40, 48, 56, 64] and frame_count(ramp, start=first, end=end) == 4
    assert frame_count(ramp, start=18, end=40) == 2 and frame_count(ramp, start=30) == 0


def test_one_stretch_has_one_form(ramp, tmp_path):
    assert settled(Stretch("0.5s", "0.9s"), ramp) == settled(Stretch("5f", max_frames=4), ramp) == Stretch("5f", "9f")
    assert settled(Stretch(), "nothing.mp4") == Stretch()
    with pytest.raises(InputError, match=r"20 frames \(2\.00 s\), and `reference_start=5s` is frame 50"):
        settled(Stretch("5s"), ramp, prefix="reference_")
    photo = write_png(tmp_path / "photo.png", np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(UsageError, match="`end=3f` is for clips"):
        settled(Stretch(end="3f"), photo)
