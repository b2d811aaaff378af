"""The videos of a folder, and the person in each, by the file names of known datasets or by folders."""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path, PurePath

import numpy as np
from jaxtyping import UInt8

from expportrait_cli.artifacts.files import content_hash, sha256
from expportrait_cli.errors import InputError
from expportrait_cli.media.image import read_image
from expportrait_cli.media.video import probe, read_frames

VFHQ = re.compile(r"Clip\+(?P<video>[\w-]{11})\+P(?P<person>\d+)\+C\d+\+F\d+-\d+(?:_.*)?")
"""`Clip+<YouTube id>+P<person>+C<clip>+F<first>-<last>`: name of a file, or of a folder of frames, in VFHQ."""
HDTF = re.compile(r"(?P<group>RD|WDA|WRA)_(?P<name>.+?)_\d{3}(?:_.*)?")
"""Names in HDTF, such as `RD_Radio1_000` or `WDA_CarolynMaloney1_000`: group, name, number of the cut."""
RAVDESS = re.compile(r"\d\d(?:-\d\d){5}-(?P<actor>\d\d)")
"""Names in RAVDESS: modality, channel, emotion, intensity, statement, repetition, actor."""
CELEBV_HQ = re.compile(r"(?P<video>[\w-]{11})_\d+(?:_\d+)*")
"""Names in CelebV-HQ: `<YouTube id>_<number>`."""


def person_of(relative: PurePath) -> str:
    """Name of the person in a video, by its path relative to the folder of videos; a folder of frames counts as a file.

    File names of VFHQ, HDTF, RAVDESS and CelebV-HQ are recognised in any folder. Otherwise the first folder is the
    person, and each file outside of folders is a person of its own.
    """
    name = relative.name
    for ending in (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v"):
        name = name.removesuffix(ending)
    if found := VFHQ.fullmatch(name):
        return f"vfhq-{found['video']}-P{found['person']}"
    if found := HDTF.fullmatch(name):
        # `ChrisMurphy0` and `ChrisMurphy1` are two speeches of one senator; `Radio1` and `Radio2` are two people.
        is_stranger = found["group"] == "RD"
        return f"hdtf-{found['name'] if is_stranger else found['name'].rstrip('0123456789')}"
    if found := RAVDESS.fullmatch(name):
        return f"ravdess-{found['actor']}"
    if (found := CELEBV_HQ.fullmatch(name)) and is_random(found["video"]):
        return f"celebvhq-{found['video']}"
    if len(relative.parts) > 1:
        return f"folder-{relative.parts[0]}"
    return f"file-{name}"


def is_random(word: str) -> bool:
    """True if a word looks random (letters of both cases, digits), other than a word such as `interview_1`."""
    kinds = (any(c.islower() for c in word), any(c.isupper() for c in word), any(c.isdigit() for c in word))
    return sum(kinds) >= 2 and not re.fullmatch(r"[A-Z]?[a-z]+[_-]?\d*", word)


VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv", ".ogv")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
PICTURE_RATE = Fraction(25)
"""Frame rate of folders of pictures, which do not have one; most are made from videos of this rate."""
FEWEST = 8
"""Fewest numbered pictures for which a folder counts as a video."""
NUMBERED = re.compile(r"\D*(\d+)")


@dataclass(frozen=True)
class Source:
    """One video of the folder."""

    path: Path
    relative: PurePath
    """Path relative to the folder of videos."""
    pictures: tuple[Path, ...] = ()
    """Frames in order, if the video is a folder of pictures."""

    def digest(self) -> str:
        """sha256 of the file, or of the names and contents of the pictures."""
        if not self.pictures:
            return content_hash(self.path)
        lines = [f"{picture.name} {sha256(picture)}" for picture in self.pictures]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def rate(self) -> Fraction:
        """Frames per second."""
        return PICTURE_RATE if self.pictures else probe(self.path).rate

    def frames(self, *, end: int | None = None) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """Yield every frame up to `end`, upright, with one in memory.

        Raises:
            InputError: the file is no video or is damaged, or a picture has another size.
        """
        if not self.pictures:
            yield from read_frames(self.path, end=end)
            return
        first = None
        for path in islice(self.pictures, end):
            picture = read_image(path)
            first = picture.shape if first is None else first
            if picture.shape != first:
                raise InputError(f"{path} has another size than the pictures before it. Give each video its folder.")
            yield picture


def find_sources(folder: Path, *, skipped: Path) -> list[Source]:
    """List all videos in a folder and its subfolders, sorted by path; hidden ones and those in `skipped` are left out.

    Raises:
        InputError: there is no video, or no such folder.
    """
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {found}, expected a folder of videos.")
    sources: list[Source] = []
    for place, folders, names in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not _same(here / name, skipped))
        visible = sorted(name for name in names if not name.startswith("."))
        files = [here / name for name in visible if name.lower().endswith(VIDEOS)]
        sources += [Source(path, path.relative_to(folder)) for path in files]
        pictures = () if files or here == folder else numbered(here / name for name in visible)
        if pictures:
            sources.append(Source(here, here.relative_to(folder), pictures))
    if not sources:
        raise InputError(
            f"{folder} holds no videos. Expected files that end in {', '.join(VIDEOS[:5])} and the like, or folders of "
            "numbered pictures."
        )
    return sorted(sources, key=lambda source: str(source.relative))


def numbered(paths: Iterator[Path]) -> tuple[Path, ...]:
    """Pictures with a common prefix and a number as name, in order; none if others, or too few."""
    found = [(NUMBERED.fullmatch(path.stem), path) for path in paths if path.suffix.lower() in PICTURES]
    rows = [(path.stem[: match.start(1)], int(match[1]), path) for match, path in found if match is not None]
    if len(rows) < max(FEWEST, len(found)) or len({prefix for prefix, _, _ in rows}) > 1:
        return ()
    return tuple(path for _, _, path in sorted(rows))


def _same(a: Path, b: Path) -> bool:
    return b.exists() and a.samefile(b)
