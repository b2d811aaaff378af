"""The film in segments, so that a killed run goes on in the middle of it."""

import logging
import shutil
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from expportrait_cli.media.video import VideoWriter
from expportrait_cli.progress import Progress

log = logging.getLogger(__name__)

SEGMENT = 120
"""Frames of a segment: what a kill can cost."""

Frames = Iterator[UInt8[np.ndarray, "H W 3"]]


def write_segments(
    paint: Callable[[int], Frames],
    folder: Path,
    *,
    frame_count: int,
    rate: Fraction,
    progress: Progress,
) -> list[Path]:
    """Write the segments that `folder` lacks; `paint` yields the frames from a given one on.

    A segment is renamed into place when it is complete, so that each one found was finished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{start:08d}.mp4" for start in range(0, frame_count, SEGMENT)]
    done = next((index for index, path in enumerate(paths) if not path.is_file()), len(paths))
    if done == len(paths):
        return paths
    first = done * SEGMENT
    if done:
        log.info("Going on at frame %d of %d.", first, frame_count)
    progress(first, frame_count)
    frames = paint(first)
    for start, path in zip(range(first, frame_count, SEGMENT), paths[done:], strict=True):
        expected = min(SEGMENT, frame_count - start)
        with VideoWriter(path, rate=rate) as writer:
            for index, frame in enumerate(islice(frames, expected), start + 1):
                writer.write(frame)
                progress(index, frame_count)
            if writer.frame_count != expected:
                raise RuntimeError(f"{writer.frame_count} frames were painted from {start} on, expected {expected}")
    return paths


def forget_others(folder: Path) -> None:
    """Remove the segments of earlier settings: they would only fill the disk."""
    for other in folder.parent.glob(f"{folder.name.partition('-')[0]}-*"):
        if other != folder:
            shutil.rmtree(other)
