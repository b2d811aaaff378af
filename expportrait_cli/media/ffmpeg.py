"""The one place that starts ffmpeg: the binary that the imageio-ffmpeg wheel ships."""

import os
import subprocess
from pathlib import Path
from typing import IO

import imageio_ffmpeg

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
