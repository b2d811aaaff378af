"""Read films, and frames of a photo or a film by their index."""

import io
import logging
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Int64, UInt8

from expportrait_cli.artifacts.files import check_file
from expportrait_cli.errors import InputError
from expportrait_cli.media import ffmpeg
from expportrait_cli.media.image import is_image, read_image


def read_frame(source: str | Path, index: int) -> UInt8[np.ndarray, "H W 3"]:
    """Read frame `index`, upright; a photo has one frame."""
    if is_image(source):
        return read_image(source)
    return next(iter(read_frames(source, start=index, end=index + 1)))


def read_pictures(source: str | Path, rows: Int64[np.ndarray, " R"]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Read some frames of a photo or a clip in one pass; `rows` rise."""
    if is_image(source):
        yield from (read_image(source) for _ in rows)
        return
    wanted = set(rows.tolist())
    start, end = int(rows[0]), int(rows[-1]) + 1
    for index, frame in enumerate(read_frames(source, start=start, end=end), start):
        if index in wanted:
            yield frame


log = logging.getLogger(__name__)

STANDARD_RATES = [Fraction(rate * 1000, 1001) for rate in (24, 30, 48, 60, 120)] + [
    Fraction(rate) for rate in (5, 6, 8, 10, 12, 15, 16, 18, 20, 23, 24, 25, 30, 48, 50, 60, 90, 100, 120)
]
SHOWINFO = re.compile(
    r"n: *0 .*?pts_time:(?P<start>\S+).*? fmt:(?P<format>\S+) .*?sar:(?P<sar>\d+/\d+) s:(?P<width>\d+)x(?P<height>\d+)"
)


@dataclass(frozen=True)
class VideoInfo:
    """What a clip shows, as `read_frames` yields it."""

    path: str
    width: int
    """Upright, with square pixels."""
    height: int
    rate: Fraction
    """Exact, e.g. 30000/1001. Of a clip with variable rate: the constant rate that it is read at."""
    has_audio: bool
    codec: str
    pix_fmt: str
    variable_rate: bool
    """The frames are not evenly spaced: they are read repeated or dropped so that time runs as in the file."""
    duration_s: float
    start_s: float
    """When the first frame shows, counted from the start of the file (its audio may start before)."""
    matrix: str
    """YUV matrix of the file as ffmpeg names it, or the usual one for its size when the file is silent."""


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Read the clip's form: decode one frame, and go through all time stamps without decoding.

    Attached cover pictures do not count as video. Rotation and pixel aspect are applied to width and height.

    Raises:
        InputError: the file is missing, no clip, or without a picture.
    """
    check_file(path)
    video = ["-map", "0:V:0"]
    first_frame = [*video, "-frames:v", "1", "-vf", "showinfo=checksum=0", "-f", "null", "-"]
    time_stamps = [*video, "-c", "copy", "-f", "framecrc", "-"]
    status, stamps, report = ffmpeg.run(*ffmpeg.input_file(path), *first_frame, *time_stamps)
    source, _, decoded = report.partition("Stream mapping:")
    frame = SHOWINFO.search(decoded)
    if frame is None:
        raise InputError(_refusal(path, status, report, source))
    guess = re.search(r"frame_rate: ([1-9]\d*)/([1-9]\d*)", decoded)
    stream = re.search(r"Stream #0:\d+.*?: Video: (?!.*\(attached pic\))(\w+)", source)
    space = re.search(r"color_space:(\S+)", decoded)
    rate, variable, duration_s = _timing(
        stamps, Fraction(int(guess[1]), int(guess[2])) if guess else Fraction(25), _played(source)
    )
    width, height = _square_size(int(frame["width"]), int(frame["height"]), frame["sar"])
    hd = min(width, height) > 576 or max(width, height) >= 1280
    return VideoInfo(
        path=os.fspath(path),
        width=width,
        height=height,
        rate=rate,
        has_audio=": Audio: " in source,
        codec=stream[1] if stream else "unknown",
        pix_fmt=frame["format"],
        variable_rate=variable,
        duration_s=duration_s,
        start_s=max(0.0, float(frame["start"])),
        matrix=space[1]
        if space and space[1] not in ("unknown", "unspecified", "gbr")
        else "bt709"
        if hd
        else "smpte170m",
    )


def read_frames(
    path: str | os.PathLike[str], *, start: int = 0, end: int | None = None, size: tuple[int, int] | None = None
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yield RGB frames upright and with square pixels, in constant memory.

    `start` and `end` count frames as they come without these options; `size` is (width, height), whatever the aspect.
    A damaged or cut file yields what decodes, with one warning in the log. Closing the iterator stops ffmpeg.

    Raises:
        InputError: nothing of the file can be decoded.
    """
    info = probe(path)
    width, height = size or (info.width, info.height)
    if info.variable_rate:
        log.info("%s has a variable frame rate: read at %s frames/s, in sync with its audio.", path, info.rate)
    log.debug("reading %s", info)
    # A YUV matrix means nothing to RGB and grey clips, and swscale refuses it there.
    is_yuv = info.pix_fmt.startswith(("yuv", "nv", "p0", "y2"))
    matrix = f":in_color_matrix={SWSCALE_MATRIX.get(info.matrix, 'auto')}" if is_yuv else ""
    filters = [f"scale={width}:{height}:flags={ffmpeg.SCALE_FLAGS}{matrix}:out_range=pc", "format=rgb24"]
    yield from _decode(info, filters, np.dtype(np.uint8), (height, width, 3), start, end)


SWSCALE_MATRIX = {
    "bt709": "bt709",
    "smpte170m": "smpte170m",
    "bt470bg": "bt470",
    "fcc": "fcc",
    "smpte240m": "smpte240m",
    "bt2020nc": "bt2020",
    "bt2020c": "bt2020",
}


def frame_count(path: str | os.PathLike[str]) -> int:
    """Count the frames that `read_frames` yields, by decoding the clip once."""
    info = probe(path)
    status, out, report = ffmpeg.run(
        *["-loglevel", "error", *ffmpeg.input_file(path), "-map", "0:V:0", *_cadence(info, 0, None, [])],
        *["-f", "null", "-progress", "-", "-"],
    )
    counts = re.findall(r"^frame=(\d+)", out, re.MULTILINE)
    if status != 0 and not counts:
        raise InputError(f"{path} could not be decoded: {ffmpeg.complaint(report)}.")
    return int(counts[-1])


def _decode(
    info: VideoInfo, filters: list[str], dtype: np.dtype, shape: tuple[int, ...], start: int, end: int | None
) -> Iterator[np.ndarray]:
    if end is not None and end <= start:
        return
    with tempfile.TemporaryFile() as errors:
        process = ffmpeg.start(
            *[
                "-loglevel",
                "error",
                *ffmpeg.input_file(info.path),
                "-map",
                "0:V:0",
                *_cadence(info, start, end, filters),
            ],
            *["-f", "rawvideo", "-"],
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        count = 0
        try:
            pipe = cast(io.BufferedReader, process.stdout)
            while True:
                frame = np.empty(shape, dtype)
                if pipe.readinto(frame.data.cast("B")) < frame.nbytes:
                    break
                yield frame
                count += 1
            process.wait()
            errors.seek(0)
            _report_damage(info, start, count, errors.read(4096).decode(errors="replace"))
        finally:
            process.kill()
            if process.stdout is not None:
                process.stdout.close()
            process.wait()


def _cadence(info: VideoInfo, start: int, end: int | None, filters: list[str]) -> list[str]:
    """Filters that yield each frame once, or evenly spaced ones where the clip's are not, then cut the range."""
    chain = []
    if info.variable_rate:
        chain = [f"fps={info.rate}"]
        last = round(info.duration_s * info.rate)
        end = last if end is None else min(end, last)
    if start or end is not None:
        chain.append(f"trim=start_frame={start}" + (f":end_frame={end}" if end is not None else ""))
    return ["-fps_mode", "passthrough", "-vf", ",".join([*chain, *filters]) or "null"]


def _report_damage(info: VideoInfo, start: int, count: int, errors: str) -> None:
    if count == 0 and start == 0:
        raise InputError(
            f"{info.path} could not be decoded: {ffmpeg.complaint(errors)}. Convert it to H.264 and try again."
        )
    if errors.strip():
        log.warning(
            "%s is damaged: %d frames could be decoded (%s).", info.path, start + count, ffmpeg.complaint(errors)
        )


def _refusal(path: str | os.PathLike[str], status: int, report: str, source: str) -> str:
    if status < 0:
        return f"{path} made ffmpeg crash (signal {-status}). Convert it to MP4, or update imageio-ffmpeg."
    if "Stream #0" not in source:
        with Path(path).open("rb") as file:
            is_mp4 = file.read(8)[4:] == b"ftyp"
        if is_mp4 and "moov atom not found" in report:
            return f"{path} was cut off before its index was written: nothing can be decoded. Copy or record it again."
        return f"{path} is not a clip. Give an MP4, MOV, MKV, WebM, AVI or GIF file."
    if not any(": Video:" in line and "(attached pic)" not in line for line in source.splitlines()):
        return f"{path} holds sound but no picture. Give a clip with a video stream."
    reason = ffmpeg.complaint(report[len(source) :])
    return f"{path} could not be decoded (ffmpeg ended with {status}: {reason}). Convert it to H.264 and try again."


def _square_size(width: int, height: int, sar: str) -> tuple[int, int]:
    """Stretch the shorter direction of the pixel, so that no detail is lost."""
    numerator, denominator = map(int, sar.split("/"))
    # Within 1 % it is the rounding error of an earlier resize, not an anamorphic picture.
    if not numerator or not denominator or abs(numerator / denominator - 1) < 0.01:
        return width, height
    if numerator > denominator:
        return round(width * numerator / denominator), height
    return width, round(height * denominator / numerator)


def _played(report: str) -> Fraction:
    """Read the container's duration, s; zero when it names none."""
    clock = re.search(r"Duration: (\d+):(\d+):(\d+\.\d+)", report)
    return int(clock[1]) * 3600 + int(clock[2]) * 60 + Fraction(clock[3]) if clock else Fraction(0)


def _timing(framecrc: str, guess: Fraction, played: Fraction) -> tuple[Fraction, bool, float]:
    """Find rate, whether it varies, and duration from the packets' time stamps."""
    base = re.search(r"#tb 0: (\d+)/(\d+)", framecrc)
    rows = [line.split(",") for line in framecrc.splitlines() if line and line[0].isdigit()]
    # F=0x4 marks packets that an edit list hides, 0x2 those that are cut off; -2**63 is a missing time stamp.
    shown = [row for row in rows if not any(int(word.strip()[2:], 16) & 6 for word in row if word.startswith(" F="))]
    stamps = sorted((int(row[2]), int(row[3])) for row in shown if abs(int(row[2])) < 1 << 62)
    if base is None or len(stamps) < max(2, len(shown)):
        return guess, False, float(max(len(shown), 1) / guess)
    tick = Fraction(int(base[1]), int(base[2]))
    ticks = np.array([stamp[0] for stamp in stamps], np.int64)
    span = (int(ticks[-1]) - int(ticks[0])) * tick
    # The last frame's own duration may run past what the container plays.
    duration = (
        max(min(span + stamps[-1][1] * tick, played - ticks[0] * tick), span) if played else span + stamps[-1][1] * tick
    )
    average = (len(ticks) - 1) / span if span else guess
    for rate in (_snap(guess, 2e-5), _snap(average, max(2e-5, float(tick / span)) if span else 2e-5)):
        # Time stamps of containers that count milliseconds jitter; each frame must be nearest to its own slot.
        drift = (ticks - ticks[0]) * float(tick * rate) - np.arange(len(ticks))
        if np.ptp(drift) < 1.0:
            return rate, False, float(len(ticks) / rate)
    return _nominal_rate(ticks, tick, guess), True, float(duration)


def _nominal_rate(ticks: np.ndarray, tick: Fraction, guess: Fraction) -> Fraction:
    gaps = [int(b - a) for a, b in pairwise(ticks) if b > a]
    common = Counter(gaps).most_common(1)[0][0]
    near = [gap for gap in gaps if abs(gap - common) <= max(1, 0.1 * common)]
    rate = _snap(1 / (Fraction(sum(near), len(near)) * tick), 4e-4)
    is_typical = len(near) >= 0.3 * len(gaps) and rate <= 120
    return rate if is_typical else min(guess, Fraction(60))


def _snap(rate: Fraction, tolerance: float) -> Fraction:
    nearest = min(STANDARD_RATES, key=lambda standard: abs(standard - rate))
    return nearest if abs(nearest / rate - 1) < tolerance else rate.limit_denominator(1001)
