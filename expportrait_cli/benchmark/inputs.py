"""The inputs of a benchmark's pairs: choice of clips, and cropped photo and clip of each pair."""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from expportrait_cli.artifacts.files import content_hash
from expportrait_cli.benchmark.suite import Pair, Suite, check
from expportrait_cli.detect.crop import Crop, crop_image, steady_crop
from expportrait_cli.errors import InputError
from expportrait_cli.evaluation.face import LandmarkDetector
from expportrait_cli.media.video import frame_count, probe, read_frame, read_frames, read_pictures
from expportrait_cli.media.writer import VideoWriter, write_png
from expportrait_cli.pipeline.provenance import read_record, write_record
from expportrait_cli.runtime import Progress
from expportrait_cli.version import __version__

log = logging.getLogger(__name__)

Layout = Literal["auto", "clips", "ravdess", "nersemble"]
ENDINGS = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v")
RAVDESS = re.compile(r"0[12]-01-(?P<emotion>\d\d)-(?P<intensity>\d\d)-(?P<words>\d\d-\d\d)-(?P<actor>\d\d)")
"""Pattern of RAVDESS's file names: modality (01 with sound, 02 without), channel 01 (speech), emotion, intensity,
statement and repetition, actor."""
ACTORS, EMOTIONS = 20, ("03", "04", "05", "06", "07", "08", "02")
"""Number of actors, and codes of the emotions that they take in turn: happy, sad, angry, fearful, disgusted, surprised,
calm."""
FRONTAL = "cam_222200037"
"""NeRSemble's frontal camera."""
PERSON = re.compile(r"\d{3}")
PEOPLE, PER_PERSON = 20, 4
KINDS = ("EMO", "EXP", "SEN", "FREE")
"""Beginnings of NeRSemble's sequence names: acted emotions, single expressions, sentences, free motion."""
RULES = {
    "clips": "every clip of the folder, in the order of their names",
    "ravdess": f"speech; the first {ACTORS} actors by number; the k-th has the k-th of the emotions happy, sad, angry, "
    "fearful, disgusted, surprised, calm, again and again; of that: strong before normal intensity, first statement, "
    "first repetition, the film without sound before the one with it",
    "nersemble": f"camera {FRONTAL[4:]}; the first {PEOPLE} people by number with {PER_PERSON} sequences or more; of "
    "each the first EMO, EXP, SEN and FREE sequence by name, and in place of one that is missing the next by name",
}


def suite_of_folder(folder: Path, layout: Layout) -> Suite:
    """Choose clips of a folder for self-reenactment; `auto` recognises both datasets by their file names.

    Raises:
        InputError: the folder has no clip of the layout.
    """
    clips = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and not _is_hidden(path, folder)
    )
    found = _layout(clips) if layout == "auto" else layout
    match found:
        case "ravdess":
            chosen = _ravdess(clips)
            wanted = ACTORS
        case "nersemble":
            chosen = _nersemble(clips, folder)
            wanted = PEOPLE * PER_PERSON
        case _:
            chosen = [(_name(path, folder), path) for path in clips if path.parent == folder]
            wanted = 0
    if not chosen:
        raise InputError(f"{folder} holds no clip of the layout '{found}'. Give another folder, or `layout=clips`.")
    if len(chosen) < wanted:
        log.warning("%s has %d of the %d clips that the rule for %s asks for.", folder, len(chosen), wanted, found)
    pairs = tuple(Pair(name, "self", path.relative_to(folder).as_posix()) for name, path in chosen)
    return check(Suite(folder.name or "suite", folder, pairs, rule=f"{found}: {RULES[found]}"), folder)


def _layout(clips: list[Path]) -> Literal["clips", "ravdess", "nersemble"]:
    if any(RAVDESS.fullmatch(path.stem) for path in clips):
        return "ravdess"
    return "nersemble" if any(path.stem == FRONTAL for path in clips) else "clips"


def _ravdess(clips: list[Path]) -> list[tuple[str, Path]]:
    actors: dict[str, list[tuple[re.Match[str], Path]]] = defaultdict(list)
    for path in clips:
        if found := RAVDESS.fullmatch(path.stem):
            actors[found["actor"]].append((found, path))
    chosen = []
    for index, (_, films) in enumerate(sorted(actors.items())[:ACTORS]):
        emotion = EMOTIONS[index % len(EMOTIONS)]
        # For an actor without that emotion, the first clip in the order.
        _, path = min(films, key=lambda film: _ravdess_order(film[0], film[1], emotion))
        chosen.append((path.stem, path))
    return chosen


def _ravdess_order(found: re.Match[str], path: Path, emotion: str) -> tuple[bool, int, str, int, str]:
    return (found["emotion"] != emotion, -int(found["intensity"]), found["words"], -int(path.stem[:2]), str(path))


def _nersemble(clips: Iterable[Path], folder: Path) -> list[tuple[str, Path]]:
    people: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in clips:
        parts = path.relative_to(folder).parent.parts
        person = next((part for part in parts if PERSON.fullmatch(part)), None)
        sequence = next((part for part in reversed(parts) if part.partition("-")[0] in KINDS), None)
        if path.stem == FRONTAL and person and sequence:
            people[person].setdefault(sequence, path)
    enough = [(person, films) for person, films in sorted(people.items()) if len(films) >= PER_PERSON]
    return [(f"{person}_{name}", films[name]) for person, films in enough[:PEOPLE] for name in _four(films)]


def _four(films: Iterable[str]) -> list[str]:
    names = sorted(films)
    first = [next((name for name in names if name.partition("-")[0] == kind), None) for kind in KINDS]
    chosen = [name for name in first if name is not None]
    return sorted([*chosen, *(name for name in names if name not in chosen)][:PER_PERSON])


def _name(path: Path, folder: Path) -> str:
    return "-".join(path.relative_to(folder).with_suffix("").parts)


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


LOOKS = 24
"""Frames, evenly spaced, whose faces the crop contains."""

Image = UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True)
class Inputs:
    """Cropped files of a pair, all of one size."""

    reference: Path
    """Photo of the person, PNG."""
    driving: Path
    """Driving clip, lossless .mkv without sound; in self mode also the ground truth."""
    reference_hash: str
    """sha256 of the photo's pixels (files with the same pixels may differ)."""
    driving_hash: str
    """sha256 of the clip's pixels, frame after frame."""
    frames: int
    size: int
    """Side, px."""


def prepare(suite: Suite, pair: Pair, folder: Path, progress: Progress) -> Inputs:
    """Crop a pair and write its files into `folder`, unless they exist from the same clip and settings.

    In self mode the photo is frame 0 of the clip.

    Raises:
        InputError: the clip has fewer than two frames, or no face is found.
    """
    clip, photo = suite.path(pair.driving), suite.path(pair.reference) if pair.reference else None
    made_from = {
        "tool": __version__,
        "driving": content_hash(clip),
        "reference": content_hash(photo) if photo else "",
        "stride": suite.stride,
        "frames": suite.frames,
        "size": suite.size,
    }
    reference, driving, note = folder / "reference.png", folder / "driving.mkv", folder / "inputs.json"
    known = read_record(note)
    if known.get("made_from") == made_from and reference.is_file() and driving.is_file():
        return Inputs(reference, driving, known["reference"], known["driving"], known["frames"], suite.size)
    folder.mkdir(parents=True, exist_ok=True)
    count, driving_hash = _write_driving(suite, clip, driving, progress)
    first = read_frame(driving, 0) if photo is None else _square(photo, suite.size)
    write_png(reference, first)
    inputs = Inputs(reference, driving, sha256(first.tobytes()).hexdigest(), driving_hash, count, suite.size)
    hashes = {"reference": inputs.reference_hash, "driving": inputs.driving_hash}
    # The record is written last: without it, files of an interrupted run are made again.
    write_record(note, {"made_from": made_from, **hashes, "frames": count})
    return inputs


def _write_driving(suite: Suite, clip: Path, path: Path, progress: Progress) -> tuple[int, str]:
    """Write the cropped clip; returns the number of frames, and a hash of their pixels."""
    rows = range(0, frame_count(clip), suite.stride)
    rows = rows[: suite.frames] if suite.frames else rows
    if len(rows) < 2:
        raise InputError(f"{clip} has {len(rows)} frames at a stride of {suite.stride}, expected 2 or more.")
    crop, pixels = _crop(clip, rows), sha256()
    with VideoWriter(path, rate=probe(clip).rate / suite.stride, lossless=True) as writer:
        for done, frame in enumerate(_strided(clip, rows), 1):
            square = crop_image(frame, crop, suite.size)
            pixels.update(square.tobytes())
            writer.write(square)
            progress(done, len(rows))
    return len(rows), pixels.hexdigest()


def _strided(clip: Path, rows: range) -> Iterator[Image]:
    return islice(read_frames(clip, end=rows[-1] + 1), 0, None, rows.step)


def _crop(clip: Path, rows: range) -> Crop:
    """Square crop that contains the clip's main face in all frames."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(LOOKS, len(rows))).round().astype(np.int64)) * rows.step
    return _around(read_pictures(clip, chosen), clip)


def _square(photo: Path, size: int) -> Image:
    image = read_frame(photo, 0)
    return crop_image(image, _around(iter([image]), photo), size)


def _around(pictures: Iterator[Image], source: Path) -> Crop:
    detector, seen, size = LandmarkDetector(), [], (0, 0)
    for picture in pictures:
        size = (picture.shape[1], picture.shape[0])
        points = detector.detect(picture)
        if points is not None:
            seen.append(points)
    if not seen:
        raise InputError(f"{source} shows no face to crop around. Leave it out of the suite.")
    return steady_crop(np.stack(seen), size)
