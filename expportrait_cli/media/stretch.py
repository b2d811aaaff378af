"""Conversion of a stretch, given by times or frame numbers, to the frames of a clip."""

import os
import re
from fractions import Fraction
from math import floor

import numpy as np
from jaxtyping import Int64

from expportrait_cli.config import Stretch
from expportrait_cli.errors import InputError, UsageError
from expportrait_cli.media.image import is_image
from expportrait_cli.media.video import probe

FRAME = re.compile(r"(\d{1,9})f", re.ASCII)
TIME = re.compile(r"(?:(?:(\d{1,4}):)?(\d{1,4}):)?(\d{1,6}(?:\.\d{1,9})?)s?", re.ASCII)
SLACK = 2
"""Largest error, in frames, of the length that a file states."""


def settled(stretch: Stretch, source: str | os.PathLike[str], *, prefix: str = "") -> Stretch:
    """Normalise a stretch to frame numbers of a clip, so that equal stretches have equal keys.

    `prefix`: prefix of the parameters' names in messages (`reference_start`).

    Raises:
        UsageError: the stretch cannot be read or ends before its start, or the source is a photo.
        InputError: the stretch starts after the clip's end, or the source is no clip.
    """
    if stretch == Stretch():
        return stretch
    given = next(name for name in ("start", "end", "max_frames") if getattr(stretch, name))
    if is_image(source):
        raise UsageError(f"`{prefix}{given}={getattr(stretch, given)}` is for clips, and {source} is a photo.")
    info = probe(source)
    first, end = frames_of(stretch, info.rate, prefix=prefix)
    length = round(info.duration_s * info.rate)
    if first >= length + SLACK:
        raise InputError(
            f"{source} has {length} frames ({info.duration_s:.2f} s), and `{prefix}start={stretch.start}` is frame "
            f"{first}. Begin earlier."
        )
    return Stretch(f"{first}f" if first else "", f"{end}f" if end is not None else "")


def frames_of(stretch: Stretch, rate: Fraction, *, prefix: str = "") -> tuple[int, int | None]:
    """First frame of a stretch, and the frame after its last one; None for the end of the file.

    A time is rounded to the nearest frame, so that two clips cut at one time neither lose nor share a frame.

    Raises:
        UsageError: a time that cannot be read, or an end that is not after the start.
    """
    first = _frame(f"{prefix}start", stretch.start, rate) if stretch.start else 0
    end = _frame(f"{prefix}end", stretch.end, rate) if stretch.end else None
    if end is not None and end <= first:
        start = f"`{prefix}start={stretch.start}`" if stretch.start else "the clip's beginning"
        raise UsageError(f"`{prefix}end={stretch.end}` is frame {end} and not after {start}, frame {first}.")
    if stretch.max_frames:
        end = min(first + stretch.max_frames, end) if end is not None else first + stretch.max_frames
    return first, end


def _frame(name: str, text: str, rate: Fraction) -> int:
    if frame := FRAME.fullmatch(text):
        return int(frame[1])
    time = TIME.fullmatch(text)
    if time is None:
        raise UsageError(f"`{name}={text[:60]}`: expected a time such as 3.2s or 1:02.5, or a frame such as 75f.")
    hours, minutes, seconds = time.groups()
    if minutes is None and not text.endswith("s"):
        raise UsageError(
            f"`{name}={text}`: write {text}s for the time" + (f", {text}f for the frame." if text.isdecimal() else ".")
        )
    if (hours is not None and int(minutes or 0) >= 60) or (minutes is not None and Fraction(seconds) >= 60):
        raise UsageError(f"`{name}={text}`: minutes and seconds after a colon go up to 59.")
    at = 3600 * int(hours or 0) + 60 * int(minutes or 0) + Fraction(seconds)
    return floor(at * rate + Fraction(1, 2))


def ranges(numbers: Int64[np.ndarray, " N"]) -> str:
    """Format sorted numbers as ranges, such as `3 to 5, 9`; of more than eight ranges, only the first eight."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs[:8]]
    return ", ".join(texts) + ", ..." * (len(runs) > 8)
