"""Pictures and films for inspection: grid, preview, pictures of faces and of normals."""

from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit
from expportrait_cli.config import RenderConfig
from expportrait_cli.detect.crop import Crop, crop_image
from expportrait_cli.detect.faces import FaceBox
from expportrait_cli.errors import InputError
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.mesh import edges
from expportrait_cli.media.image import is_image, read_image
from expportrait_cli.media.video import read_frame, read_frames
from expportrait_cli.media.writer import VideoWriter, write_png
from expportrait_cli.pipeline.performance import Driver
from expportrait_cli.pipeline.provenance import read_record, synthetic_tags
from expportrait_cli.render import render_normals
from expportrait_cli.render.buffers import Bump, encode, render_buffers
from expportrait_cli.render.files import beside
from expportrait_cli.render.stage import preview
from expportrait_cli.runtime import Progress

Image = UInt8[np.ndarray, "H W 3"]


def driver_frames(driver: Driver | None, size: int) -> Iterator[Image]:
    """Yield the driver's crop in every frame; grey if the clip is gone. Endless for a photo or without a clip."""
    if driver is None:
        yield from repeat(np.full((size, size, 3), 128, np.uint8))
    elif is_image(driver.source):
        yield from repeat(crop_image(read_image(driver.source), Crop(*map(float, driver.crop)), size))
    else:
        for frame in read_frames(driver.source, start=driver.first_frame):
            yield crop_image(frame, Crop(*map(float, driver.crop)), size)


def write_grid(
    path: Path,
    film: Path,
    head_fit: HeadFit,
    meshes: Meshes,
    driver: Driver | None,
    config: RenderConfig,
    progress: Progress,
) -> None:
    """Write photo, driver, normals and result side by side, `config.size` px high, with the film's frames and rate."""
    size = config.size
    photo = crop_image(read_frame(head_fit.source, head_fit.picture), Crop(*map(float, head_fit.crop)), size)
    drivers = driver_frames(driver, size)
    normals = render_normals(meshes, config)
    with VideoWriter(path, rate=meshes.rate, audio=film, metadata=synthetic_tags()) as writer:
        # The driver's iterator may be endless, so it must be the last.
        for index, (result, normal, drive) in enumerate(zip(read_frames(film), normals, drivers, strict=False), 1):
            writer.write(np.concatenate([photo, drive, normal.normals, _fit_height(result, size)], axis=1))
            progress(index, meshes.frame_count)


def write_preview(normals: Path, meshes: Meshes, driver: Driver | None, size: int, progress: Progress) -> Path:
    """Write driver | normals beside a film of normals."""
    path = beside(normals, "preview.mp4")
    pairs = zip(read_frames(normals), driver_frames(driver, size), strict=False)
    with VideoWriter(path, rate=meshes.rate, metadata=synthetic_tags()) as writer:
        for index, (normal, drive) in enumerate(pairs, 1):
            writer.write(preview(drive, normal))
            progress(index, meshes.frame_count)
    return path


def _fit_height(image: Image, height: int) -> Image:
    """Scale a picture to a height, with an even width, which the codec needs."""
    if image.shape[0] == height and image.shape[1] % 2 == 0:
        return image
    width = max(2, round(image.shape[1] * height / image.shape[0] / 2) * 2)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)


FACES = ".faces.png"
"""Suffix of pictures of faces."""
FACES_PX = 1280
"""Longer side of a picture of faces, px."""
MARK = (255, 210, 0)
"""Colour of boxes and numbers."""


def write_faces(path: Path, image: Image, faces: Sequence[FaceBox]) -> Path:
    """Write a picture with a box, the number and the position (px) of each face, numbered from left to right."""
    scale = FACES_PX / max(image.shape[:2])
    sheet = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    sheet = np.ascontiguousarray(sheet).astype(np.uint8)
    for index, face in enumerate(faces):
        x0, y0, x1, y1 = (round(scale * edge) for edge in (face.x0, face.y0, face.x1, face.y1))
        cv2.rectangle(sheet, (x0, y0), (x1, y1), MARK, 3)
        _write(sheet, str(index), (x0 + 6, max(y1 - 10, 30)), 1.6)
        _write(sheet, f"({face.centre[0]:.0f}, {face.centre[1]:.0f})", (x0, min(y1 + 24, sheet.shape[0] - 6)), 0.6)
    return write_png(path, sheet)


def _write(sheet: Image, text: str, place: tuple[int, int], size: float) -> None:
    # Yellow on black is readable on any photo.
    for colour, thickness in (((0, 0, 0), round(4 * size) + 3), (MARK, round(2 * size))):
        cv2.putText(sheet, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, colour, thickness, cv2.LINE_AA)


SIDE = 360
"""Side of the picture of normals, px."""


def normals_behind(film: Path, frame: int) -> UInt8[np.ndarray, "S S 3"] | None:
    """Normal map of one frame of a film of this tool; None if its meshes are gone or damaged."""
    path = film.with_name(f"{film.stem}.work") / "driving.meshes.npz"
    if not path.is_file():
        return None
    try:
        meshes = Meshes.open(path)
    except InputError:
        # The page is then made without that picture.
        return None
    settings = read_record(film.with_suffix(".json")).get("settings", {})
    return normals_of(meshes, frame, detail=settings.get("generate", {}).get("detail", True))


def normals_of(meshes: Meshes, frame: int, *, detail: bool) -> UInt8[np.ndarray, "S S 3"]:
    """Normal map of one frame of meshes, as by `render-normals`."""
    camera, faces = Camera.of_crop(meshes.focal_px, CROP_SIZE, SIDE), torch.from_numpy(meshes.faces).to(torch.int32)
    with torch.inference_mode():
        verts_cam = torch.from_numpy(next(meshes.frames(frame, frame + 1)))
        bump = Bump.of(meshes.relief if detail else meshes.relief.bare, scale=SIDE / CROP_SIZE)
        buffers = render_buffers(verts_cam[None], faces, camera, antialias=True, edges=edges(faces), bump=bump)
    return encode(buffers.normals[0].numpy())
