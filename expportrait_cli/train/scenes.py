"""Scenes of prepared clips: a frame of the clip is the photo, and the clip drives it, as `generate --absolute` does.

Proxy films for training are thus made by the tool itself, with the faults that it has at inference.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit, Tracking
from expportrait_cli.config import PAPER, FitConfig, GenerateConfig, TrackConfig
from expportrait_cli.dataset.dataset import Clip
from expportrait_cli.detect.crop import Crop, crop_image
from expportrait_cli.detect.matte import Matte
from expportrait_cli.fitting import fit
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.head import HeadModel
from expportrait_cli.media.video import read_pictures
from expportrait_cli.media.writer import write_png
from expportrait_cli.painting.canvas import Canvas
from expportrait_cli.painting.scene import Scene
from expportrait_cli.pipeline.performance import CurvesFile, OffsetSource, write_meshes
from expportrait_cli.runtime import silent
from expportrait_cli.solve.state import distinct_rows
from expportrait_cli.tracking import track


def photo_rows(tracking: Tracking, count: int, *, end: int | None = None) -> np.ndarray:
    """Indices of up to `count` frames before `end` that differ most in rotation, jaw and expression.

    Only frames in which the face was found; empty if there are none.
    """
    seen = np.flatnonzero(tracking.sure[:end])
    if not len(seen):
        return seen
    values = np.concatenate([3 * tracking.rotation, 3 * tracking.jaw, tracking.expression], 1)[seen]
    return seen[distinct_rows(values, count)]


@contextmanager
def own_scene(clip: Clip, tracking: Tracking, row: int, head: HeadModel, *, size: int) -> Iterator[Scene]:
    """Make a scene whose photo is frame `row` of a clip and whose driver is the clip; the photo's crop, `size` px.

    The scene reads its meshes from a folder that is gone afterwards.

    Raises:
        InputError: no face is found in the frame by itself.
    """
    with TemporaryDirectory() as name:
        photo, path = Path(name) / "photo.png", Path(name) / "film.meshes.npz"
        write_png(photo, next(read_pictures(str(clip.video), np.array([row]))))
        own = track(photo, head, TrackConfig(), silent(""))
        head_fit = fit([own], head, FitConfig(same_person="yes"), silent(""), driver=tracking)
        _pose(path, head_fit, tracking, head, clip.head)
        yield Scene.of(head_fit, Meshes.open(path), head, GenerateConfig(size=size))


def in_crop(scene: Scene, crop: Crop, size: int) -> Scene:
    """The same scene on another crop of the photo (such as the clip's), `size` px wide and high."""
    shrink = size / crop.side
    own = Crop(*map(float, scene.fit.crop))
    scale = own.side / CROP_SIZE * shrink
    corner = ((own.left - crop.left) * shrink, (own.top - crop.top) * shrink)
    alpha = Matte().matte(crop_image(scene.whole, crop, CROP_SIZE))
    if size != CROP_SIZE:
        alpha = cv2.resize(alpha, (size, size), interpolation=cv2.INTER_LINEAR)
    centre = [at + CROP_SIZE / 2 * scale for at in corner]
    camera = Camera(scene.fit.focal_px * scale, centre[0], centre[1], size, size)
    return replace(scene, canvas=Canvas(crop_image(scene.whole, crop, size), alpha, camera, scale, corner))


def _pose(path: Path, head_fit: HeadFit, tracking: Tracking, head: HeadModel, driver: Path) -> None:
    # Dynamic offsets are the frames' own, as where a person drives their own photo.
    source = OffsetSource.of(PAPER, head.name, driver)
    write_meshes(
        path,
        {"inputs": {"curves": ""}},
        head_fit,
        tracking,
        head=head,
        head_hash="",
        source=source,
        table=CurvesFile(None, path, ()),
        progress=silent(""),
    )
