"""The page of a suite: what `evaluate.suite_report` draws, with pictures from the inputs, films and meshes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.benchmark.report import WorstFrame, suite_report
from expportrait_cli.benchmark.run import Outcome, Plan
from expportrait_cli.errors import InputError
from expportrait_cli.evaluate.pictures import data_uri, pictures, ranking, worst_frames
from expportrait_cli.evaluate.scores import Scores
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.mesh import edges
from expportrait_cli.media.source import read_frame
from expportrait_cli.pipeline.licences import LicenceMap
from expportrait_cli.render.buffers import render_buffers
from expportrait_cli.render.encode import encode

SIDE = 360
"""Of the normals, px."""


def suite_page(
    plan: Plan, outcome: Outcome, licences: LicenceMap | None, progress: Callable[[int, int | None], None]
) -> str:
    """Build the page. Reads each pair's films once more, for the frame that the first method shows worst."""
    first = next(iter(plan.methods))
    worst: dict[str, WorstFrame] = {}
    films = outcome.scores.scores[first]
    for done, pair in enumerate(plan.suite.pairs, 1):
        if pair.name in films:
            found = _worst(films[pair.name], plan.inputs(pair) / "reference.png")
            if found is not None:
                worst[pair.name] = found
        progress(done, len(plan.suite.pairs))
    costs = {method: sum(taken.values()) / len(taken) for method, taken in outcome.seconds.items() if taken}
    return suite_report(outcome.scores, worst, costs, licences.lines() if licences is not None else [])


def _worst(scores: Scores, photo: Path) -> WorstFrame | None:
    name, badness = ranking(scores)
    frames = worst_frames(badness)[:1]
    if not len(frames):
        return None
    frame = int(frames[0])
    why = f"{name} {badness[frame]:.4g}" if np.isfinite(badness[frame]) else "no face found in the film"
    target, film, *error = pictures(scores, frames)[frame]
    shown = [("photo", data_uri(read_frame(photo, 0))), ("driver" if scores.mode == "cross" else "truth", target[1])]
    normals = normals_behind(Path(scores.output), frame)
    if normals is not None:
        shown.append(("normals", data_uri(normals)))
    return WorstFrame(frame, why, [*shown, ("film", film[1]), *error])


def normals_behind(film: Path, frame: int) -> UInt8[np.ndarray, "S S 3"] | None:
    """Normal map of one frame of a film that the tool made, if its meshes are still there."""
    path = film.with_name(f"{film.stem}.work") / "driving.meshes.npz"
    if not path.is_file():
        return None
    try:
        meshes = Meshes.open(path)
    except InputError:
        # A page without that picture is better than none.
        return None
    return normals_of(meshes, frame)


def normals_of(meshes: Meshes, frame: int) -> UInt8[np.ndarray, "S S 3"]:
    """Normal map of one frame, as `render-normals` draws it."""
    camera, faces = Camera.of_crop(meshes.focal_px, CROP_SIZE, SIDE), torch.from_numpy(meshes.faces).to(torch.int32)
    with torch.inference_mode():
        verts_cam = torch.from_numpy(next(meshes.frames(frame, frame + 1)))
        buffers = render_buffers(verts_cam[None], faces, camera, antialias=True, edges=edges(faces))
    return encode(buffers.normals[0].numpy())
