"""The ffmpeg that is used, and sound."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import imageio_ffmpeg

from expportrait_cli.errors import InputError

# Frames whose rows or columns are averaged away, and chroma that is interpolated, without the default's rounding
# loss: a decoded and re-encoded film must not drift in colour.
SCALE_FLAGS = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"


def start(
    *arguments: str, stderr: IO[bytes] | int, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start ffmpeg without a shell. `stderr` must be a file, or be read: a full pipe would stop ffmpeg."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-hide_banner", *arguments]
    return subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr)


def run(*arguments: str) -> tuple[int, str, str]:
    """Run ffmpeg to its end: exit status, stdout, stderr."""
    with start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            out, err = process.communicate()
        except BaseException:
            process.kill()
            raise
    return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")


def input_file(path: str | os.PathLike[str]) -> list[str]:
    """Options that open a local file whatever its name holds; playlists inside it cannot reach the network."""
    return ["-protocol_whitelist", "file,pipe", "-i", f"file:{Path(path).absolute()}"]


def complaint(stderr: str) -> str:
    """Pick the first line of ffmpeg's log that says what went wrong, without its `[demuxer @ 0x..]` prefix."""
    lines = [line.split("] ", 1)[-1].strip() for line in stderr.splitlines() if line.strip()]
    return lines[0] if lines else "no reason given"


COPIED = ("aac", "mp3", "ac3", "eac3")


@dataclass(frozen=True)
class Sound:
    """Options for ffmpeg, whose first input is the film."""

    opening: list[str]
    """Open the file as the next input."""
    taking: list[str]
    """Take its first audio track along, if it has one."""


def sound(audio: str | os.PathLike[str], *, start_s: float, length_s: float, container: str) -> Sound:
    """Sound from `start_s` on, cut to the film's length: copied where the container takes it unchanged.

    Else it becomes AAC, FLAC in Matroska.
    """
    source = input_file(audio)
    _, _, report = run(*source)
    codec = report.partition(": Audio: ")[2].split(" ", 1)[0].strip(",")
    length = ["-t", f"{length_s:.6f}"]
    # Packets are some 20 ms long: sound that starts inside one must be cut as samples.
    # Matroska cannot say which samples of the first AAC packet to skip: copied sound would come 20 ms late.
    if codec in COPIED and start_s < 1e-3 and container != "matroska":
        return Sound([*length, *source], ["-map", "1:a:0?", "-c:a", "copy"])
    encoder = ["-c:a", "flac"] if container == "matroska" else ["-c:a", "aac", "-b:a", "192k"]
    how = [*encoder, "-af", "aresample=async=1:first_pts=0"]
    return Sound(["-ss", f"{start_s:.6f}", *length, *source], ["-map", "1:a:0?", *how])


def check_sound(path: str | os.PathLike[str]) -> None:
    """Refuse a file whose first audio track cannot be decoded, or coded as a film's sound: known before any painting.

    Raises:
        InputError: names the track's fault, and the way without it.
    """
    track = ["-map", "0:a:0", "-t", "0.2", "-c:a", "aac", "-f", "null", "-"]
    status, _, report = run("-loglevel", "error", *input_file(path), *track)
    if status != 0:
        said = complaint(report)
        raise InputError(
            f"{path} has sound that cannot be used ({said}). Leave it out with `audio=none`, or convert it."
        )
