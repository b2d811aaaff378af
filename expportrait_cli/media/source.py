"""Frames of a photo or a clip by their index."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from expportrait_cli.media.image import is_image, read_image
from expportrait_cli.media.video import read_frames


def read_frame(source: str | Path, index: int) -> UInt8[np.ndarray, "H W 3"]:
    """Read frame `index`, upright; a photo has one frame."""
    if is_image(source):
        return read_image(source)
    return next(iter(read_frames(source, start=index, end=index + 1)))


def read_pictures(source: str | Path, rows: Int64[np.ndarray, " R"]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Read some frames of a photo or a clip in one pass; `rows` rise."""
    if is_image(source):
        yield from (read_image(source) for _ in rows)
        return
    wanted = set(rows.tolist())
    start, end = int(rows[0]), int(rows[-1]) + 1
    for index, frame in enumerate(read_frames(source, start=start, end=end), start):
        if index in wanted:
            yield frame
