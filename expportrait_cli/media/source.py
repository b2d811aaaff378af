"""One frame of a photo or a clip."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from expportrait_cli.media.image import is_image, read_image
from expportrait_cli.media.video import read_frames


def read_frame(source: str | Path, index: int) -> UInt8[np.ndarray, "H W 3"]:
    """Read frame `index`, upright; a photo has one frame."""
    if is_image(source):
        return read_image(source)
    return next(iter(read_frames(source, start=index, end=index + 1)))
