"""Small results of every stage on the astronaut and the driving clip of the examples: what `stages.json` holds."""

from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from PIL import Image

from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.config import FitConfig, GenerateConfig, PrepareConfig, RenderConfig, TrackConfig, TransferConfig
from expportrait_cli.dataset.make import Setup, cut_out, scanned
from expportrait_cli.dataset.sources import Source
from expportrait_cli.media.video import read_frames
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.painting import paint
from expportrait_cli.pipeline.heads import head_by_name
from expportrait_cli.pipeline.performance import OffsetSource
from expportrait_cli.pipeline.steps import Steps
from expportrait_cli.render import render_normals
from expportrait_cli.runtime import Stages
from support.places import ROOT

FRAMES, STEP = 8, 12
"""Frames of the clip, and every how many of the example's: so few show a whole turn."""


def stage_results(folder: Path) -> dict[str, list[float]]:
    """A few dozen numbers a stage, of about unit size; what a stage changes anywhere moves some of them."""
    photo, clip = folder / "photo.png", folder / "clip.mkv"
    Image.fromarray(skimage.data.astronaut()).save(photo)
    with VideoWriter(clip, rate=Fraction(25), lossless=True) as writer:
        for frame in islice(read_frames(ROOT / "examples" / "driving.mp4"), 0, FRAMES * STEP, STEP):
            writer.write(frame)
    head = head_by_name("anny")
    steps = Steps(head, Stages())
    own, driver = (steps.track(path, folder / f"{path.stem}.track.npz", TrackConfig()) for path in (photo, clip))
    fit = steps.fit([own], folder / "own.head.npz", FitConfig())
    folds = steps.fit([driver], folder / "driver.head.npz", FitConfig(iterations=4))
    source = OffsetSource.of(TransferConfig(), head.name)
    meshes = steps.transfer(fit, driver, folder / "film.meshes.npz", source, head_path=folder / "own.head.npz").artifact
    normals = [frame.normals for frame in render_normals(meshes, RenderConfig(size=256))][:: FRAMES - 1]
    film = list(paint(fit.artifact, meshes, head, GenerateConfig(backend="proxy", size=256)))[:: FRAMES - 1]
    setup = Setup(folder / "set", replace(PrepareConfig(), min_s=0.2), "anny")
    video = Source(clip, Path(clip.name))
    found = scanned(video, setup)
    plans = cut_out(video, found, setup, person="somebody")
    cut = next(iter(read_frames(plans[0].clip.video)))
    track, verts = driver.artifact, np.stack([*meshes.frames(0, 1)])
    sizes = {"static": 1e3 * fit.artifact.static_offset, "folds": 1e3 * folds.artifact.dynamic_offset.astype(float)}
    return {
        "track": [*_few(track.expression), *_few(track.rotation), *_few(track.landmarks / CROP_SIZE)],
        "fit": [fit.artifact.silhouette_iou, *_few(sizes["static"]), *_few(np.abs(sizes["folds"]).mean((0, 2)))],
        "transfer": [*_few(meshes.curves.expression), *_few(meshes.curves.rotation), *_few(10 * verts)],
        "render": _picture(normals),
        "generate": _picture(film),
        "scan": [
            float(n) for stretch in found.stretches for n in (stretch.first, stretch.frames, *(stretch.crop or ()))
        ],
        "clip": _picture([cut]),
    }


def _few(values: np.ndarray, count: int = 12) -> list[float]:
    """Means over equal parts of an array, in their order."""
    return [float(part.mean()) for part in np.array_split(np.asarray(values, np.float64).ravel(), count)]


def _picture(frames: list[np.ndarray], side: int = 4) -> list[float]:
    """Grey levels, 0..1, of a coarse grid on each frame."""
    small = [cv2.resize(frame.mean(2), (side, side), interpolation=cv2.INTER_AREA) for frame in frames]
    return [float(value) for value in np.ravel(small) / 255]
