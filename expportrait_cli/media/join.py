"""Segments of a film into one film, without encoding them again."""

import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from expportrait_cli.artifacts.atomic import atomic_path
from expportrait_cli.errors import OutputError
from expportrait_cli.media import ffmpeg
from expportrait_cli.media.writer import COPIED_AUDIO


def join(
    segments: Sequence[Path],
    path: str | os.PathLike[str],
    *,
    rate: Fraction,
    frame_count: int,
    audio: str | os.PathLike[str] | None = None,
    audio_start_s: float = 0.0,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Join segments that `VideoWriter` wrote at one rate; audio and metadata as there."""
    listing = segments[0].with_name("segments.txt")
    # Inside quotes only the quote itself needs care: it stands outside them, escaped.
    names = [str(segment.absolute()).replace("'", r"'\''") for segment in segments]
    listing.write_text("ffconcat version 1.0\n" + "".join(f"file 'file:{name}'\n" for name in names), "utf-8")
    with atomic_path(path) as partial:
        film = ["-protocol_whitelist", "file,pipe", "-f", "concat", "-safe", "0", "-i", f"file:{listing.absolute()}"]
        sound = _sound(audio, audio_start_s, float(frame_count / rate)) if audio is not None else ([], [])
        tags = [word for key, value in (metadata or {}).items() for word in ("-metadata", f"{key}={value}")]
        status, _, errors = ffmpeg.run(
            *[
                "-loglevel",
                "error",
                *film,
                *sound[0],
                "-map",
                "0:v:0",
                *sound[1],
                "-map_chapters",
                "-1",
                "-c:v",
                "copy",
            ],
            *["-video_track_timescale", str(rate.numerator * 512), *tags, "-movflags", "+faststart"],
            *["-f", "mp4", "-y", f"file:{partial}"],
        )
        if status != 0:
            raise OutputError(f"{path} could not be written: {ffmpeg.complaint(errors)}.")


def _sound(audio: str | os.PathLike[str], start_s: float, length_s: float) -> tuple[list[str], list[str]]:
    """Options that open the sound, and those that take it along."""
    source = ffmpeg.input_file(audio)
    _, _, report = ffmpeg.run(*source)
    codec = report.partition(": Audio: ")[2].split(" ", 1)[0].strip(",")
    is_copied = codec in COPIED_AUDIO and start_s < 1e-3
    how = ["-c:a", "copy"] if is_copied else ["-c:a", "aac", "-b:a", "192k", "-af", "aresample=async=1:first_pts=0"]
    return ["-ss", f"{start_s:.6f}", "-t", f"{length_s:.6f}", *source], ["-map", "1:a:0?", *how]
