"""What the small painter learns from: films that the real pipeline makes of prepared clips, whose truth is known."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Int8, UInt8

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.types import Tracking
from expportrait_cli.dataset.dataset import Clip
from expportrait_cli.detect.crop import Crop, crop_image
from expportrait_cli.head import HeadModel
from expportrait_cli.media.video import read_pictures
from expportrait_cli.painting.scene import Scene, Sketch
from expportrait_cli.runtime import Progress
from expportrait_cli.train.scenes import own_scene, photo_rows

SIZE = 256
"""Of the pictures, px: what the painter works at."""
TIMES = 4
"""Frames of a window."""
STRIDES = (1, 2, 3)
NORMAL = 127.0
"""A unit normal as 8 bits hold it."""


@dataclass(frozen=True)
class Lesson:
    """Windows of one film, and what the camera saw instead."""

    KIND: ClassVar[str] = "lesson"
    VERSION: ClassVar[int] = 1

    person: str
    photo: UInt8[np.ndarray, "S S 3"]
    still: Int8[np.ndarray, "S S 3"]
    """N^R in steps of 1/127."""
    proxy: UInt8[np.ndarray, "N T S S 3"]
    guess: UInt8[np.ndarray, "N T S S"]
    """In steps of 1/255."""
    normals: Int8[np.ndarray, "N T S S 3"]
    truth: UInt8[np.ndarray, "N T S S 3"]


def lessons(
    clips: Sequence[Clip], head: HeadModel, *, photos: int, windows: int, folder: Path, progress: Progress
) -> list[Path]:
    """Make the lessons that `folder` lacks: `photos` of each clip, as different as they come, `windows` of each."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, clip in enumerate(clips):
        progress(index, len(clips))
        tracking = replace(npz.load(Tracking, clip.tracking), source=str(clip.video.resolve()))
        for row in photo_rows(tracking, photos):
            path = folder / f"{clip.name}-{row:05d}.npz"
            if not path.is_file():
                npz.save(_lesson(clip, tracking, int(row), head, windows=windows), path, made_by={})
            paths.append(path)
    progress(len(clips), len(clips))
    return paths


def window_rows(frame_count: int, count: int, seed: int) -> list[np.ndarray]:
    """Windows spread over a film, in rising order, with every stride in turn."""
    draw = np.random.default_rng(seed)
    starts = np.sort(draw.integers(0, max(frame_count - max(STRIDES) * (TIMES - 1), 1), count))
    strides = [STRIDES[k % len(STRIDES)] for k in range(count)]
    rows = [start + stride * np.arange(TIMES) for start, stride in zip(starts, strides, strict=True)]
    return [np.minimum(each, frame_count - 1) for each in rows]


def _lesson(clip: Clip, tracking: Tracking, row: int, head: HeadModel, *, windows: int) -> Lesson:
    with own_scene(clip, tracking, row, head, size=SIZE) as scene:
        # The network corrects pictures by the mesh alone (`MiniPainter.detail`).
        scene = replace(scene, detail=False)
        chosen = window_rows(len(tracking.error), windows, seed=row)
        sketches = [[_at(scene, int(frame)) for frame in rows] for rows in chosen]
        still, crop = scene.still, Crop(*map(float, scene.fit.crop))
    needed = np.unique(np.concatenate(chosen))
    pictures = read_pictures(str(clip.video), needed)
    seen = dict(zip(needed.tolist(), (crop_image(picture, crop, SIZE) for picture in pictures), strict=True))
    return Lesson(
        person=clip.person,
        photo=still.photo,
        still=_steps(still.normals),
        proxy=np.stack([[s.proxy for s in window] for window in sketches]),
        guess=np.stack([[np.rint(255 * s.guess).astype(np.uint8) for s in window] for window in sketches]),
        normals=np.stack([[_steps(s.normals) for s in window] for window in sketches]),
        truth=np.stack([[seen[int(frame)] for frame in rows] for rows in chosen]),
    )


def _at(scene: Scene, frame: int) -> Sketch:
    return next(islice(scene.sketches(frame), 1))


def _steps(normals: Float32[np.ndarray, "S S 3"]) -> Int8[np.ndarray, "S S 3"]:
    return np.rint(NORMAL * normals).astype(np.int8)
