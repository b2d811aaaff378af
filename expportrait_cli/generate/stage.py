"""Make the film: frames painted from the photo and the posed meshes."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import HeadFit
from expportrait_cli.config import GenerateConfig
from expportrait_cli.generate.painters import choose, painter_of
from expportrait_cli.generate.proxy.canvas import Canvas
from expportrait_cli.generate.scene import Scene
from expportrait_cli.generate.wan.packages import require_packages
from expportrait_cli.head import HeadModel


def generate(
    head_fit: HeadFit,
    meshes: Meshes,
    head: HeadModel,
    config: GenerateConfig,
    *,
    start: int = 0,
    end: int | None = None,
    keep: Path | None = None,
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Paint frames `start` to `end`: the crop at `config.size`, or with paste-back the whole photo at its own size.

    In the folder `keep` the painter leaves what it needs to go on in the middle of the film.
    """
    scene = Scene.of(head_fit, meshes, head, config)
    frames = painter_of(config).paint(scene.still, scene.sketches, start=start, count=meshes.frame_count, keep=keep)
    for frame in islice(frames, None if end is None else end - start):
        yield paste(scene.whole, scene.canvas, frame) if config.paste_back else frame


def only_helps(config: GenerateConfig) -> bool:
    """Meet the processes that were launched for one film; true if this one has helped the first to make it.

    Raises:
        UsageError: the film is not one that several processes can make.
        WeightsError: packages are missing.
    """
    require_packages()
    from expportrait_cli.generate.wan import together
    from expportrait_cli.generate.wan.painters import WanPainter
    from expportrait_cli.generate.wan.runtime import device_of

    def load() -> tuple[together.Run, Callable[[], None]]:
        painter = painter_of(config)
        assert isinstance(painter, WanPainter)
        return painter.transformer()

    if together.gather_processes():
        together.help_first(load, device_of())
        return True
    together.first()
    choice = choose(config)
    together.check(choice.name, choice.folder and choice.folder.path, config.wan)
    return False


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
