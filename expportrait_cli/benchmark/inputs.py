"""What every method of a suite is given for a pair: a square photo, and a square clip without loss."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from expportrait_cli import __version__
from expportrait_cli.benchmark.suite import Pair, Suite
from expportrait_cli.detect.crop import Crop, crop_image, steady_crop
from expportrait_cli.errors import InputError
from expportrait_cli.evaluate.face import Looker
from expportrait_cli.media.files import content_hash
from expportrait_cli.media.image import write_png
from expportrait_cli.media.source import read_frame, read_pictures
from expportrait_cli.media.video import VideoWriter, frame_count, probe, read_frames
from expportrait_cli.pipeline.provenance import read_record, write_record

LOOKS = 24
"""Frames, evenly spaced, that the crop is laid around."""

Progress = Callable[[int, int | None], None]
Image = UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True)
class Inputs:
    """A pair's files, all of one size."""

    reference: Path
    """Photo as PNG: the person to show."""
    driving: Path
    """Clip as lossless .mkv, without sound: what to do, and in self mode what to look like."""
    reference_hash: str
    """sha256 of its pixels: files of the same pixels differ,"""
    driving_hash: str
    """and of the clip's, frame after frame."""
    frames: int
    size: int
    """Side, px."""


def prepare(suite: Suite, pair: Pair, folder: Path, progress: Progress) -> Inputs:
    """Crop and write the pair's files into `folder`, unless they are there from the same clip and settings.

    In self mode the photo is frame 0 of the clip.

    Raises:
        InputError: fewer than two frames, or no face to crop around.
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
    # The note comes last: without it, what an interrupted run left is made again.
    write_record(note, {"made_from": made_from, **hashes, "frames": count})
    return inputs


def _write_driving(suite: Suite, clip: Path, path: Path, progress: Progress) -> tuple[int, str]:
    """Count of the frames, and hash of their pixels."""
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
    """The square that the clip's main face stays in."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(LOOKS, len(rows))).round().astype(np.int64)) * rows.step
    return _around(read_pictures(clip, chosen), clip)


def _square(photo: Path, size: int) -> Image:
    image = read_frame(photo, 0)
    return crop_image(image, _around(iter([image]), photo), size)


def _around(pictures: Iterator[Image], source: Path) -> Crop:
    looker, seen, size = Looker(), [], (0, 0)
    for picture in pictures:
        size = (picture.shape[1], picture.shape[0])
        points = looker.look(picture)
        if points is not None:
            seen.append(points)
    if not seen:
        raise InputError(f"{source} shows no face to crop around. Leave it out of the suite.")
    return steady_crop(np.stack(seen), size)
