"""Make the film: frames painted from the photo and the posed meshes."""

from collections.abc import Iterator
from itertools import islice

import cv2
import numpy as np
from jaxtyping import UInt8

from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import HeadFit
from expportrait_cli.config import GenerateConfig
from expportrait_cli.generate.canvas import Canvas
from expportrait_cli.generate.painters import painter_of
from expportrait_cli.generate.scene import Scene
from expportrait_cli.head import HeadModel


def generate(
    head_fit: HeadFit,
    meshes: Meshes,
    head: HeadModel,
    config: GenerateConfig,
    *,
    start: int = 0,
    end: int | None = None,
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Paint frames `start` to `end`: the crop at `config.size`, or with paste-back the whole photo at its own size."""
    scene = Scene.of(head_fit, meshes, head, config)
    frames = painter_of(config).paint(scene.still, scene.sketches, start=start, count=meshes.frame_count)
    for frame in islice(frames, None if end is None else end - start):
        yield paste(scene.whole, scene.canvas, frame) if config.paste_back else frame


def paste(
    photo: UInt8[np.ndarray, "H W 3"], canvas: Canvas, frame: UInt8[np.ndarray, "h w 3"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Put a canvas frame into the photo: what did not change keeps the photo's own pixels."""
    if frame.shape == photo.shape:
        return frame
    height, width = photo.shape[:2]
    changed = cv2.absdiff(frame, canvas.photo).max(2) > 2
    changed = cv2.dilate(changed.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(np.float32)
    weight = cv2.GaussianBlur(cv2.resize(changed, (width, height), interpolation=cv2.INTER_LINEAR), (0, 0), 2)[
        ..., None
    ]
    large = cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.rint(photo * (1 - weight) + large * weight).astype(np.uint8)
