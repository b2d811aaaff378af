"""Which clips show one person, from how the published sets name and sort their files.

A set is split by person, never by frame: a clip of a face that was trained on tests nothing. Where a name tells only
the video that it came from, the whole video counts as one person; two videos of one person count as two.
"""

import re
from pathlib import PurePath

VFHQ = re.compile(r"Clip\+(?P<video>[\w-]{11})\+P(?P<person>\d+)\+C\d+\+F\d+-\d+(?:_.*)?")
"""`Clip+<YouTube id>+P<person>+C<clip>+F<first>-<last>`: a file, or a folder of frames."""
HDTF = re.compile(r"(?P<group>RD|WDA|WRA)_(?P<name>.+?)_\d{3}(?:_.*)?")
"""`RD_Radio1_000`, `WDA_CarolynMaloney1_000`: source, name, number of the cut."""
RAVDESS = re.compile(r"\d\d(?:-\d\d){5}-(?P<actor>\d\d)")
"""Modality, channel, emotion, intensity, statement, repetition, actor."""
CELEBV_HQ = re.compile(r"(?P<video>[\w-]{11})_\d+(?:_\d+)*")
"""`<YouTube id>_<number>`."""


def person_of(relative: PurePath) -> str:
    """Person that a video shows, by its path below the folder of videos; a folder of frames counts as a file.

    The names of VFHQ, HDTF, RAVDESS and CelebV-HQ are known wherever they lie. Else the first folder is the person, and
    a file outside of any is a person of its own.
    """
    name = relative.name
    for ending in (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v"):
        name = name.removesuffix(ending)
    if found := VFHQ.fullmatch(name):
        return f"vfhq-{found['video']}-P{found['person']}"
    if found := HDTF.fullmatch(name):
        # `ChrisMurphy0` and `ChrisMurphy1` are two addresses of one senator; `Radio1` and `Radio2` two strangers.
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
    """Whether a word looks drawn from letters of both cases, digits and dashes, and is not `interview_1`."""
    kinds = (any(c.islower() for c in word), any(c.isupper() for c in word), any(c.isdigit() for c in word))
    return sum(kinds) >= 2 and not re.fullmatch(r"[A-Z]?[a-z]+[_-]?\d*", word)
