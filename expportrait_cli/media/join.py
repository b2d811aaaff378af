"""Segments of a film into one film, without encoding them again."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from expportrait_cli.artifacts.atomic import atomic_path
from expportrait_cli.errors import OutputError
from expportrait_cli.media import ffmpeg
from expportrait_cli.media.sound import Sound, sound


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
    """Join segments that `VideoWriter` wrote at one rate into an .mp4; audio and metadata as there."""
    # Inside quotes only the quote itself needs care: it stands outside them, escaped.
    names = [str(segment.absolute()).replace("'", r"'\''") for segment in segments]
    track = Sound([], [])
    if audio is not None:
        track = sound(audio, start_s=audio_start_s, length_s=float(frame_count / rate), container="mp4")
    tags = [word for key, value in (metadata or {}).items() for word in ("-metadata", f"{key}={value}")]
    with atomic_path(path) as partial, tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as listing:
        listing.write("ffconcat version 1.0\n" + "".join(f"file 'file:{name}'\n" for name in names))
        listing.flush()
        film = ["-protocol_whitelist", "file,pipe", "-f", "concat", "-safe", "0", "-i", f"file:{listing.name}"]
        status, _, errors = ffmpeg.run(
            *["-loglevel", "error", *film, *track.opening, "-map", "0:v:0", *track.taking],
            *["-map_chapters", "-1", "-c:v", "copy"],
            *["-video_track_timescale", str(rate.numerator * 512), *tags, "-movflags", "+faststart"],
            *["-f", "mp4", "-y", f"file:{partial}"],
        )
        if status != 0:
            raise OutputError(f"{path} could not be written: {ffmpeg.complaint(errors)}.")
