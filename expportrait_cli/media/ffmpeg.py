"""Running of ffmpeg, restrictions on what it may open, evaluation of its reports, and sound."""

import logging
import os
import re
import subprocess
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import IO

import imageio_ffmpeg
import numpy as np

from expportrait_cli.errors import InputError, one_line

log = logging.getLogger(__name__)

# Scaling and chroma interpolation without the rounding error of the defaults, which would shift colours.
SCALE_FLAGS = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"


def start(
    *arguments: str, stderr: IO[bytes] | int, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start ffmpeg without a shell. `stderr` must be a file, or be read: a full pipe would stop ffmpeg.

    Raises:
        InputError: there is no ffmpeg, or it is not executable.
    """
    place = os.environ.get("IMAGEIO_FFMPEG_EXE", "")
    remedy = "Unset IMAGEIO_FFMPEG_EXE." if place else "Install the package imageio-ffmpeg again."
    try:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-hide_banner", *arguments]
        return subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr)
    except (FileNotFoundError, PermissionError, RuntimeError) as error:
        raise InputError(
            f"ffmpeg cannot be run{f' from {place}' * bool(place)}: {one_line(error)}. {remedy}"
        ) from error


def run(*arguments: str) -> tuple[int, str, str]:
    """Run ffmpeg to its end: exit status, stdout, stderr."""
    with start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            out, err = process.communicate()
        except BaseException:
            process.kill()
            raise
    return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")


STANDARD_RATES = [Fraction(rate * 1000, 1001) for rate in (24, 30, 48, 60, 120)] + [
    Fraction(rate) for rate in (5, 6, 8, 10, 12, 15, 16, 18, 20, 23, 24, 25, 30, 48, 50, 60, 90, 100, 120)
]
MAX_RATE = 1000
MAX_GAP_S = 60
"""Longest time between two pictures, s; a larger gap means damaged time stamps."""

MAX_PIXELS = 8192 * 4320
"""Most pixels of a clip's picture, because several pictures are in memory at a time."""
CONTAINERS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "asf", "ogg", "mxf", "gxf", "nut", "dv", "wtv"),
    *("rm", "ivf", "obu", "h264", "hevc", "vvc", "av1", "m4v", "h263", "vc1", "mjpeg", "yuv4mpegpipe", "gif", "apng"),
    *("wav", "w64", "mp3", "flac", "aac", "ac3", "eac3", "aiff", "caf"),
)
"""Container formats that are read; not playlists and scripts, which make ffmpeg open other files."""


def input_file(path: str | os.PathLike[str]) -> list[str]:
    """Options that open a local file of any name, and nothing else; pictures of up to `MAX_PIXELS`."""
    limits = ["-protocol_whitelist", "file,pipe", "-format_whitelist", ",".join(CONTAINERS)]
    return [*limits, "-max_pixels", str(MAX_PIXELS), "-i", f"file:{Path(path).absolute()}"]


def complaint(stderr: str) -> str:
    """First line of ffmpeg's error log, without its `[demuxer @ 0x..]` prefix."""
    lines = [re.sub(r"^(\[[^]]*\] *)+", "", line).strip() for line in stderr.splitlines() if line.strip()]
    return lines[0] if lines else "no reason given"


@lru_cache(maxsize=256)
def say_once(note: str) -> None:
    """Log a note only the first time that it occurs."""
    log.info("%s", note)


PICTURES = re.compile(r"Stream #0:\d+.*?: Video: (?!.*\(attached pic\))(?P<codec>\w+)(?P<form>.*)")


PLAYLIST = re.compile(
    rb"\s*(\xef\xbb\xbf)?\s*(#EXTM3U|ffconcat|\[playlist\]|<smil|v=0\r?\n|(<\?xml.*?)?<MPD)", re.DOTALL
)
PHOTO = re.compile(rb"\xff\xd8\xff|\x89PNG|BM|II\*\0|MM\0\*|RIFF....WEBP", re.DOTALL)


def refusal(path: str | os.PathLike[str], status: int, report: str, source: str) -> str:
    """Message that explains why a clip cannot be read; `source`: the part of ffmpeg's report about the file."""
    if status < 0:
        return f"{path} made ffmpeg crash (signal {-status}). Convert it to MP4, or update imageio-ffmpeg."
    with Path(path).open("rb") as file:
        begin = file.read(4096)
    if "profile: 5, level" in source:
        return f"{path} is Dolby Vision of profile 5, whose colours cannot be read. Convert it to HLG or SDR."
    if size := re.search(r"Picture size (\d+x\d+) exceeds", report):
        return too_large(path, size[1])
    if PLAYLIST.match(begin):
        return f"{path} is a playlist, not a clip. Give the clip that it names, or join its parts to one file."
    if PHOTO.match(begin):
        return f"{path} is a photo that is damaged or too large. Copy or download it again, or scale it down."
    if "Stream #0" not in source:
        if begin[4:8] == b"ftyp" and "moov atom not found" in report:
            return f"{path} was cut off before its index was written: nothing can be decoded. Copy or record it again."
        return f"{path} is not a clip. Give an MP4, MOV, MKV, WebM, AVI or GIF file."
    if not PICTURES.search(source):
        return f"{path} holds sound but no picture. Give a clip with a video stream."
    reason = complaint(report[len(source) :])
    return f"{path} could not be decoded (ffmpeg ended with {status}: {reason}). Convert it to H.264 and try again."


def too_large(path: str | os.PathLike[str], size: str) -> str:
    """Message for pictures that are too large."""
    return f"{path} has pictures of {size} px, more than {MAX_PIXELS // 10**6} megapixels. Scale it down."


@dataclass(frozen=True)
class Timing:
    """Timing of the frames of a clip; fields as in `VideoInfo`."""

    rate: Fraction
    variable: bool
    duration_s: float
    repeated: int = 0


def packets(framecrc: str) -> list[list[str]]:
    """Parse ffmpeg's framecrc output: stream, decoding and presentation time, duration and more of each packet."""
    return [line.split(",") for line in framecrc.splitlines() if line and line[0].isdigit()]


def timing(path: str | os.PathLike[str], framecrc: str, decoded: str, source: str) -> Timing:
    """Determine frame rate, its constancy, and duration from the packets' time stamps.

    Raises:
        InputError: the time stamps are damaged.
    """
    found = re.search(r"frame_rate: ([1-9]\d*)/([1-9]\d*)", decoded)
    guess = Fraction(int(found[1]), int(found[2])) if found else Fraction(25)
    guess = guess if guess <= MAX_RATE else Fraction(25)
    base = re.search(r"#tb 0: (\d+)/(\d+)", framecrc)
    # F=0x4 marks packets that an edit list hides; -2**63 is a missing time stamp. 0x2 marks damaged packets: those at
    # the end are left out, others are decoded as far as possible.
    shown = [row for row in packets(framecrc) if not any(word in row for word in (" F=0x4", " F=0x5", " F=0x6"))]
    while len(shown) > 1 and any(word in shown[-1] for word in (" F=0x2", " F=0x3")):
        shown.pop()
    stamps = sorted((int(row[2]), int(row[3])) for row in shown if abs(int(row[2])) < 1 << 62)
    if base is None or len(stamps) < max(2, len(shown)) or stamps[0][0] == stamps[-1][0]:
        if len(shown) > 1 and len(stamps) == len(shown):
            say_once(f"The frames of {path} have equal time stamps: they are read at {guess} frames/s.")
        return Timing(guess, False, float(max(len(shown), 1) / guess))
    tick = Fraction(int(base[1]), int(base[2]))
    ticks = np.array([stamp[0] for stamp in stamps], np.int64)
    gaps_s = np.diff(ticks) * float(tick)
    if gaps_s.max() > MAX_GAP_S:
        before = int(gaps_s.argmax())
        raise InputError(
            f"{path} shows no new picture for {gaps_s[before]:.0f} s after frame {before}, more than {MAX_GAP_S} s: "
            "its time stamps are damaged. Cut it there, or convert it to a constant frame rate."
        )
    found = _spaced(ticks, tick, guess) or _varying(ticks, tick, guess, stamps[-1][1] * tick, source)
    if found.rate > MAX_RATE or found.duration_s * found.rate > 10 * len(ticks) + MAX_GAP_S * found.rate:
        raise InputError(
            f"{path} has {len(ticks)} frames for {found.duration_s:.0f} s at {float(found.rate):.5g} frames/s: its "
            "time stamps are damaged. Convert it to a constant frame rate."
        )
    return found


def _spaced(ticks: np.ndarray, tick: Fraction, guess: Fraction) -> Timing | None:
    """Timing of frames that are evenly spaced, though some may be missing; None where the spacing varies."""
    span = (int(ticks[-1]) - int(ticks[0])) * tick
    precision = max(2e-5, float(tick / span))
    gaps = np.diff(ticks)
    usual = _usual_gaps(gaps)
    slots = np.concatenate([[0], np.cumsum(np.maximum(1, np.rint(gaps / usual.mean())).astype(np.int64))])
    missing = int(slots[-1]) - len(gaps)
    fitted = int(slots[-1]) / span
    # No frames are missing where gaps of two and three ticks alternate (24 frames/s in fields of 60), or where some
    # gaps of two ticks are among ones of one (960 frames/s in milliseconds).
    is_grid = len(usual) >= 0.3 * len(gaps) and abs(float(fitted * tick) * usual.mean() - 1) < 0.02
    if missing and is_grid and gaps.min() > 0 and (usual.mean() > 1 or guess * tick == 1):
        for rate in (_snap(guess, 2e-5), _snap(fitted, precision)):
            if np.abs((ticks - ticks[0]) * float(tick * rate) - slots).max() < 1 / 3:
                return Timing(rate, True, float((int(slots[-1]) + 1) / rate), missing)
    for rate in (_snap(guess, 2e-5), _snap(len(gaps) / span, precision)):
        # Time stamps in milliseconds jitter; each frame must be nearest to its own slot.
        drift = (ticks - ticks[0]) * float(tick * rate) - np.arange(len(ticks))
        if np.ptp(drift) < 1.0:
            return Timing(rate, False, float(len(ticks) / rate))
    return None


def _varying(ticks: np.ndarray, tick: Fraction, guess: Fraction, last: Fraction, source: str) -> Timing:
    """Timing of frames whose spacing varies; `last`: duration of the last one, s."""
    gaps = np.diff(ticks)
    usual = _usual_gaps(gaps)
    rate = _snap(len(usual) / (int(usual.sum()) * tick), 4e-4)
    if len(usual) < 0.3 * np.count_nonzero(gaps) or rate > 120:
        rate = min(guess, Fraction(60))
    span = (int(ticks[-1]) - int(ticks[0])) * tick
    length = span + (min(last, Fraction(MAX_GAP_S)) if last > 0 else 1 / rate)
    if clock := re.search(r"Duration: (\d+):(\d+):(\d+\.\d+)", source):
        played = int(clock[1]) * 3600 + int(clock[2]) * 60 + Fraction(clock[3])
        # The last frame's duration may exceed the container's.
        length = max(min(length, played - int(ticks[0]) * tick), span)
    return Timing(rate, True, float(length))


def _usual_gaps(gaps: np.ndarray) -> np.ndarray:
    """Select the gaps that are near the most common one."""
    values, counts = np.unique(gaps[gaps > 0], return_counts=True)
    common = int(values[counts.argmax()])
    return gaps[(gaps > 0) & (np.abs(gaps - common) <= min(max(1, 0.1 * common), 0.4 * common))]


def _snap(rate: Fraction, tolerance: float) -> Fraction:
    nearest = min(STANDARD_RATES, key=lambda standard: abs(standard - rate))
    return nearest if abs(nearest / rate - 1) < tolerance else rate.limit_denominator(1001)


COPIED = ("aac", "mp3", "ac3", "eac3")


@dataclass(frozen=True)
class Sound:
    """Options for adding sound with ffmpeg, whose first input is the film."""

    opening: list[str]
    """Options that open the sound's file as the next input."""
    taking: list[str]
    """Options that map and encode its sound track; empty without one."""


def sound(audio: str | os.PathLike[str], *, start_s: float, length_s: float, container: str) -> Sound:
    """Options for the sound from `start_s` on, cut to the film's length; copied if the container supports that.

    Otherwise it is encoded as AAC, in Matroska as FLAC.

    Raises:
        InputError: as `choose_track`.
    """
    source, length = input_file(audio), ["-t", f"{length_s:.6f}"]
    track = choose_track(audio)
    if track is None:
        return Sound(source, [])
    take = ["-map", f"1:a:{track.index}"]
    # Packets are some 20 ms long: sound that starts inside one must be cut as samples. Matroska cannot store which
    # samples of the first AAC packet to skip: copied sound would be 20 ms late.
    if track.codec in COPIED and not track.mixing and start_s < 1e-3 and container != "matroska":
        return Sound([*length, *source], [*take, "-c:a", "copy"])
    encoder = ["-c:a", "flac"] if container == "matroska" else ["-c:a", "aac", "-b:a", "192k"]
    filters = ",".join([*track.mixing, "aresample=async=1:first_pts=0"])
    return Sound(["-ss", f"{start_s:.6f}", *length, *source], [*take, *encoder, "-af", filters])


@dataclass(frozen=True)
class Track:
    """A sound track that can be used."""

    index: int
    """Index of the track among the file's sound tracks, from 0."""
    codec: str
    mixing: list[str]
    """Filters that reduce channels that no encoder supports to two or one."""
    note: str
    """Message about unexpected choices, in one line; empty without any."""


def choose_track(path: str | os.PathLike[str]) -> Track | None:
    """Choose the default sound track, else the first, else another one that can be decoded and encoded.

    None for a file without sound. More than 8 channels, and ambisonic sound, are mixed to stereo; if their layout is
    unknown, the first two channels are taken, or the first one of ambisonic sound, which is omnidirectional.

    Raises:
        InputError: no track can be used; quotes the first one's error.
    """
    source = input_file(path)
    tracks = re.findall(r"Stream #0:\d+.*?: Audio: (\w+)(.*)", run(*source)[2])
    said = ""
    for index in sorted(range(len(tracks)), key=lambda index: "(default)" not in tracks[index][1]):
        codec, form = tracks[index]
        plain = "pan=mono|c0=c0" if "ambisonic" in form else "pan=stereo|c0=c0|c1=c1"
        faults = []
        for mixing in ([], ["aformat=channel_layouts=stereo"], [plain]):
            filters = ["-af", ",".join(mixing)] if mixing else []
            test = ["-map", f"0:a:{index}", "-t", "0.2", *filters, "-c:a", "aac", "-f", "null", "-"]
            status, _, report = run("-loglevel", "error", *source, *test)
            if status == 0:
                notes = (
                    [f"Sound track {index + 1} of {path} is taken: another cannot be used ({said})."] if said else []
                )
                if mixing:
                    what = "The first channels" if plain in mixing else "All channels"
                    notes.append(
                        f"{what} of the sound of {path} become {'mono' if 'pan=mono' in mixing[0] else 'stereo'}."
                    )
                return Track(index, codec, mixing, " ".join(notes))
            faults.append(complaint(report))
        said = said or faults[0]
    if tracks:
        raise InputError(
            f"{path} has sound that cannot be used ({said}). Leave it out with `audio=none`, or convert it."
        )
    return None


def check_sound(path: str | os.PathLike[str]) -> None:
    """Check before any painting that a file's sound can be used, and warn of unexpected choices (`Track.note`).

    Raises:
        InputError: as `choose_track`.
    """
    track = choose_track(path)
    if track is not None and track.note:
        log.warning("%s", track.note)
