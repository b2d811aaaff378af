"""Export of heads and animations for other programs."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from expportrait_cli.artifacts import guard, npz
from expportrait_cli.artifacts.files import atomic_folder, atomic_path, stem
from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit
from expportrait_cli.detect.crop import Crop, crop_image
from expportrait_cli.errors import InputError, OutputError, UsageError
from expportrait_cli.export import compress, exported_poses, write_glb, write_surface
from expportrait_cli.export.shape import FLIP, Motion, Shape, canonical, in_head, normal_map
from expportrait_cli.head import HeadModel
from expportrait_cli.head.fitted import fitted_mesh, relief_of
from expportrait_cli.media.video import read_frame
from expportrait_cli.painting.canvas import crop_canvas
from expportrait_cli.painting.proxy.anatomy import CAVITY, ENAMEL
from expportrait_cli.painting.proxy.layers import DEPTH_SLACK_M, prepare
from expportrait_cli.pipeline.heads import head_behind
from expportrait_cli.pipeline.job import behind
from expportrait_cli.pipeline.provenance import check_source
from expportrait_cli.render.buffers import FINENESS
from expportrait_cli.runtime import Progress, Stage

log = logging.getLogger(__name__)

FRAME = re.compile(r"frame_\d{5,}\.(obj|ply)")
"""Names of files in a folder of frames."""


def kind_of(path: Path) -> str:
    """Return `head` or `meshes`, by the file's content.

    Raises:
        InputError: the artifact is neither.
    """
    kind = npz.read_header(path)["kind"]
    if kind not in ("head", "meshes"):
        raise InputError(
            f"{path} is a '{kind}' artifact, expected 'head' or 'meshes'. Give a .head.npz or .meshes.npz."
        )
    return kind


def export_head(
    source: Path, path: Path, form: str, stage: Stage, *, neutral: bool, detail: bool = True
) -> dict[str, Any]:
    """Write the person's head as in the photo, or with `neutral` the canonical one; coloured if the photo still exists.

    A .glb also has textures: the photo, and the fine static detail as a normal map. Returns a summary.
    """
    guard.check([path], [source, *behind(source)])
    fit = npz.load(HeadFit, source)
    head = head_behind(source, fit)
    progress = stage("export the head")
    colours, faces = _colours(source, fit, head), head.dense_faces.numpy()
    if form == "glb":
        made = exported_poses(fit, head, neutral=neutral)
        focal_px = None if neutral else fit.focal_px
        with atomic_path(path) as partial:
            photo = None if colours is None else (_crop(fit), colours)
            bumps = normal_map(made.base, faces, relief_of(fit, head), photo) if detail else None
            shape = Shape(made.base, faces, colours, bumps)
            write_glb(partial, shape, made.morphs, made.motion, focal_px=focal_px, name=stem(source))
        targets, has_detail = len(made.morphs.names), bumps is not None
    else:
        verts_cam = fitted_mesh(canonical(fit) if neutral else fit, head)
        with atomic_path(path) as partial:
            write_surface(Shape((verts_cam * FLIP).astype(np.float32), faces, colours), partial, form)
        targets, has_detail = 0, False
    progress(1, 1)
    counts = {"vertices": len(head.parts), "faces": len(faces), "targets": targets}
    return {"kind": "head", "format": form, **counts, "coloured": colours is not None, "detail": has_detail}


def export_meshes(
    source: Path, path: Path, form: str, stage: Stage, *, frames: str, detail: bool = True
) -> dict[str, Any]:
    """Write an animation: a .glb (with detail as a normal map), the mesh of one frame, or a folder of meshes."""
    meshes = Meshes.open(source)
    chosen = chosen_frames(frames, meshes.frame_count)
    if form == "glb" or (frames and ":" not in frames):
        guard.check([path], [source, *behind(source)])
    progress = stage("export the animation")
    if form == "glb":
        summary = _animation(meshes, chosen, path, progress, detail=detail)
    else:
        is_single = bool(frames) and ":" not in frames
        (_single if is_single else _folder)(meshes, chosen, path, form, progress)
        summary = {}
    return {"kind": "meshes", "format": form, "frames": len(chosen), "faces": len(meshes.faces), **summary}


def chosen_frames(text: str, count: int) -> range:
    """Parse `frames`: one number, or START:END:STEP, each of which may be left out; END is not included.

    Raises:
        UsageError: the text is not of that form, or chooses no frame.
    """
    words = text.split(":") if text else ["", ""]
    if len(words) > 3 or not all(word.strip().isdecimal() or (not word.strip() and len(words) > 1) for word in words):
        raise UsageError(f"`frames={text}`: write one frame as 40, or several as START:END:STEP, such as 0:100:5.")
    numbers = [int(word) if word.strip() else None for word in words]
    if numbers[2:] == [0]:
        raise UsageError(f"`frames={text}`: the step must be 1 or more.")
    chosen = range(count)[slice(*numbers)] if len(words) > 1 else range(count)[numbers[0] : (numbers[0] or 0) + 1]
    if not chosen:
        raise UsageError(f"`frames={text}` chooses no frame: there are {count}, from 0 to {count - 1}.")
    return chosen


def _frames(meshes: Meshes, chosen: range) -> Iterator[tuple[int, Float32[np.ndarray, "V 3"]]]:
    """Yield the chosen frames with their numbers, in constant memory."""
    for index, verts_cam in enumerate(meshes.frames(chosen[0], chosen[-1] + 1), chosen[0]):
        if index in chosen:
            yield index, verts_cam


def _animation(meshes: Meshes, chosen: range, path: Path, progress: Progress, *, detail: bool) -> dict[str, Any]:
    done = 0

    def in_head_frame() -> Iterator[Float32[np.ndarray, "V 3"]]:
        nonlocal done
        for index, verts_cam in _frames(meshes, chosen):
            yield in_head(verts_cam, *meshes.poses[index])
            done += 1
            progress(min(done, 3 * len(chosen)), 3 * len(chosen))

    with atomic_path(path) as partial:
        made = compress(in_head_frame, meshes.faces)
        indices = np.array(chosen)
        motion = Motion.of_turns(
            ((indices - indices[0]) / float(meshes.rate)).astype(np.float32),
            meshes.poses[indices, 0],
            meshes.poses[indices, 1],
            made.weights,
        )
        bumps = normal_map(made.base, meshes.faces, meshes.relief) if detail else None
        shape = Shape(made.base, meshes.faces, detail=bumps)
        write_glb(partial, shape, made.morphs, motion, focal_px=meshes.focal_px, name=stem(Path(meshes.path)))
    count, error_mm = len(made.morphs.names), made.max_error_m * 1000
    log.info("%d frames as %d morph targets: the largest error of a vertex is %.3f mm.", len(chosen), count, error_mm)
    counts = {"vertices": len(made.base), "targets": count, "detail": bumps is not None}
    return {**counts, "max_error_mm": round(error_mm, 4), "rate": str(meshes.rate)}


def _single(meshes: Meshes, chosen: range, path: Path, form: str, progress: Progress) -> None:
    _, verts_cam = next(_frames(meshes, chosen))
    with atomic_path(path) as partial:
        write_surface(Shape((verts_cam * FLIP).astype(np.float32), meshes.faces), partial, form)
    progress(1, 1)


def _folder(meshes: Meshes, chosen: range, path: Path, form: str, progress: Progress) -> None:
    _check_folder(path)
    with atomic_folder(path) as partial:
        for done, (index, verts_cam) in enumerate(_frames(meshes, chosen), 1):
            shape = Shape((verts_cam * FLIP).astype(np.float32), meshes.faces)
            write_surface(shape, partial / f"frame_{index:05d}.{form}", form)
            progress(done, len(chosen))


def _colours(path: Path, fit: HeadFit, head: HeadModel) -> UInt8[np.ndarray, "V 3"] | None:
    """Colours of the vertices by the photo, continued smoothly to those it does not show; None without the photo."""
    try:
        check_source(path, fit)
    except InputError as error:
        log.warning("%s The head is exported without colours.", error)
        return None
    canvas = crop_canvas(read_frame(fit.source, fit.picture), fit, CROP_SIZE)
    layers = prepare(canvas.photo, canvas.alpha, fitted_mesh(fit, head), head, canvas.camera, canvas.hair(fit))
    colours = np.rint(layers.colour).clip(0, 255).astype(np.uint8)
    column, row = np.clip(np.floor(layers.xy).astype(int), 0, CROP_SIZE - 1).T
    is_hidden = (layers.depth > layers.zbuffer[row, column] + DEPTH_SLACK_M) | (layers.cosine <= 0)
    # Otherwise hidden parts behind the lips would be as bright as the lips.
    for name, colour in (("mouth_cavity", CAVITY), ("teeth_upper", ENAMEL), ("teeth_lower", ENAMEL)):
        # Not all head models have these parts.
        if name in head.part_names:
            colours[is_hidden & head.part(name).numpy()] = colour
    return colours


def _crop(fit: HeadFit) -> UInt8[np.ndarray, "S S 3"]:
    return crop_image(read_frame(fit.source, fit.picture), Crop(*map(float, fit.crop)), FINENESS * CROP_SIZE)


def _check_folder(path: Path) -> None:
    """Raise OutputError unless `path` is missing, or a folder with nothing but earlier frames."""
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file, expected a folder for the frames. Name a folder with -o.")
    others = [entry.name for entry in path.iterdir() if not FRAME.fullmatch(entry.name)] if path.exists() else []
    if others:
        raise OutputError(f"{path} holds other files ({sorted(others)[0]}). Name a new folder with -o.")
