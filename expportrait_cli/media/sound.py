"""How the sound of one file goes with a film of another."""

import os
from dataclasses import dataclass

from expportrait_cli.media import ffmpeg

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
    source = ffmpeg.input_file(audio)
    _, _, report = ffmpeg.run(*source)
    codec = report.partition(": Audio: ")[2].split(" ", 1)[0].strip(",")
    length = ["-t", f"{length_s:.6f}"]
    # Packets are some 20 ms long: sound that starts inside one must be cut as samples.
    # Matroska cannot say which samples of the first AAC packet to skip: copied sound would come 20 ms late.
    if codec in COPIED and start_s < 1e-3 and container != "matroska":
        return Sound([*length, *source], ["-map", "1:a:0?", "-c:a", "copy"])
    encoder = ["-c:a", "flac"] if container == "matroska" else ["-c:a", "aac", "-b:a", "192k"]
    how = [*encoder, "-af", "aresample=async=1:first_pts=0"]
    return Sound(["-ss", f"{start_s:.6f}", *length, *source], ["-map", "1:a:0?", *how])
