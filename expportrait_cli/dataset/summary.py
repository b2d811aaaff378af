"""Figures of a dataset, its HTML page, and contact sheets of clips: frames with the normals of their heads."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from PIL import Image

from expportrait_cli.artifacts.files import atomic_path, write_text
from expportrait_cli.artifacts.types import CROP_SIZE, Curves, HeadFit, Tracking
from expportrait_cli.config import PrepareConfig
from expportrait_cli.dataset.dataset import Row
from expportrait_cli.detect.crop import Crop, crop_image
from expportrait_cli.fitting.clip import neutral_weights, torso_turns
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.rotations import from_turns
from expportrait_cli.head import HeadModel
from expportrait_cli.head.fitted import person_joints, posed_meshes, relief_of
from expportrait_cli.head.model import NECK
from expportrait_cli.media.video import read_pictures
from expportrait_cli.pages import bars, cell, figures, grid, items, notes, page, table
from expportrait_cli.pipeline.provenance import fit_quality
from expportrait_cli.render.buffers import BACKGROUND, Bump, encode, render_buffers

TURNS = ("pitch", "yaw", "roll")
"""Components of the rotation from facing the camera: about x (right), y (down), z (ahead)."""
PERCENTILES = (5, 50, 95)


@dataclass(frozen=True)
class Axis:
    """Range and bins of a histogram."""

    name: str
    label: str
    low: float
    high: float
    bins: int = 20

    @property
    def edges(self) -> Float[np.ndarray, " N"]:
        """Edges of the bins; values outside are counted in the outermost bins."""
        return np.linspace(self.low, self.high, self.bins + 1)


AXES = (
    Axis("yaw", "yaw, degrees", -60.0, 60.0),
    Axis("pitch", "pitch, degrees", -40.0, 40.0),
    Axis("jaw", "jaw opening, degrees", 0.0, 30.0),
    Axis("expression", "mean |ψ|", 0.0, 0.3),
    Axis("error", "landmark error, % of the distance between the eyes", 0.0, 6.0),
)


def per_frame(tracking: Tracking) -> dict[str, Float[np.ndarray, " T"]]:
    """Values for the histograms, by frame; frames without a face are left out."""
    seen = tracking.state == 0
    turns = np.degrees(tracking.rotation[seen])
    return {
        **{name: turns[:, index] for index, name in enumerate(TURNS)},
        "jaw": np.degrees(np.linalg.norm(tracking.jaw[seen], axis=1)),
        "expression": np.abs(tracking.expression[seen]).mean(1),
        "error": tracking.error[seen],
    }


def tracked_figures(tracking: Tracking) -> dict[str, Any]:
    """Figures of a tracking: percentiles 5, 50, 95 of rotation and jaw, degrees; means of the rest."""
    values = per_frame(tracking)
    spread = {f"{name}_deg": np.percentile(values[name], PERCENTILES).round(1).tolist() for name in (*TURNS, "jaw")}
    return {
        "landmark_error_percent": round(float(tracking.error.mean()), 2),
        "filled_share": round(float((tracking.state != 0).mean()), 3),
        "shots": int(tracking.shot.max()) + 1,
        **spread,
        "mean_abs_psi": round(float(values["expression"].mean()), 4),
    }


def fitted_figures(fit: HeadFit) -> dict[str, Any]:
    """Figures of a fit: overlap with the matte, and the error that folds explain."""
    return {name: value for name, value in fit_quality(fit).items() if name != "frames"}


def tracked_refusal(figures: dict[str, Any], config: PrepareConfig) -> str:
    """Reason why a tracked clip is rejected; empty if it is accepted."""
    error, filled = figures["landmark_error_percent"], figures["filled_share"]
    if error > config.max_error_percent:
        return (
            f"landmark error {error:.2f} % of the distance between the eyes after tracking, "
            f"at most {config.max_error_percent:g} %"
        )
    if filled > 1 - config.face_share:
        return f"no landmarks in {filled:.0%} of the tracked frames, at most {1 - config.face_share:.0%}"
    if figures["shots"] > 1:
        return f"{figures['shots']} shots in the cropped clip, expected 1"
    return ""


def counts(tracking: Tracking) -> dict[str, list[int]]:
    """Frames in each bin of each histogram."""
    values = per_frame(tracking)
    return {
        axis.name: np.histogram(np.clip(values[axis.name], axis.low, axis.high), axis.edges)[0].tolist()
        for axis in AXES
    }


NUMBER = re.compile(r"\d[\d.]*")
COLUMNS = "Columns: most neutral, widest jaw, largest turn, largest expression. Rows: picture, both, normals."


def write_summary(folder: Path, rows: Sequence[Row]) -> None:
    """Write the HTML page; its pictures are in `sheets/`."""
    accepted = [row for row in rows if row.status == "accepted"]
    rejected = [row for row in rows if row.status == "rejected"]
    title = f"{len(accepted)} clips of {len({row.person for row in accepted})} persons"
    sections = {
        "": [
            notes([f"{sum(row.frames for row in accepted)} frames taken; {len(rejected)} stretches of video not."], "")
        ],
        "What the frames show": [grid([(axis.label, "", _chart(axis, accepted)) for axis in AXES])],
        "What was not taken": reasons(rejected),
        "Taken": [notes([COLUMNS], ""), figures([sheet(row) for row in accepted], "row")],
    }
    write_text(folder / "index.html", page(title, sections))


def _chart(axis: Axis, rows: Sequence[Row]) -> str:
    """HTML of a histogram over all frames of the dataset."""
    total = np.sum([row.histograms[axis.name] for row in rows if row.histograms], axis=0, initial=0)
    counts = np.broadcast_to(total, axis.bins).astype(np.int64)
    return bars(counts, axis.label, (axis.low, axis.high))


def reasons(rows: Sequence[Row]) -> list[str]:
    """A table of everything that was left out."""
    if not rows:
        return [notes(["Nothing."])]
    files = len({row.source for row in rows})
    kinds = Counter(NUMBER.sub("…", row.reason) for row in rows).most_common()
    totals = items([f"{count} × {kind}" for kind, count in kinds])
    heads = [("path", "video"), ("n", "from frame"), ("n", "frames"), ("", "why")]
    cells = [[row.source, str(row.first_frame), str(row.frames), row.reason] for row in rows]
    return [notes([f"From {files} videos."], ""), totals, table(heads, cells)]


def sheet(row: Row) -> tuple[str, str]:
    """One clip: its figures, and the address of its contact sheet."""
    figures = row.figures
    said = (
        f"{row.frames} frames; face {figures['face_px']:.0f} px, sharpness {figures['sharpness']:.0f}, motion "
        f"{figures['motion_percent']:.1f} %; yaw {_range(figures['yaw_deg'])}, pitch {_range(figures['pitch_deg'])}; "
        f"jaw up to {figures['jaw_deg'][-1]:.0f}°; mean |ψ| {figures['mean_abs_psi']:.3f}; landmark error "
        f"{figures['landmark_error_percent']:.2f} %; outline {figures['silhouette_iou']:.3f}"
    )
    warned = [f"⚠ {note}" for note in row.notes]
    return cell(f"{row.name}, {row.person}", [said, *warned], ""), f"sheets/{row.name}.jpg"


def _range(percentiles: Sequence[float]) -> str:
    return f"{percentiles[0]:.0f} to {percentiles[-1]:.0f}°"


def clip_curves(fit: HeadFit, tracking: Tracking, head: HeadModel, rows: Int64[np.ndarray, " R"]) -> Curves:
    """Curves of the head in some frames of its own clip; the torso is attached at the neck joint."""
    rotation, translation = fit.dynamic_rotation[rows], fit.dynamic_translation[rows]
    neck = person_joints(fit, head)[NECK].numpy()
    return Curves(
        expression=fit.dynamic_expression[rows],
        jaw=fit.dynamic_jaw[rows],
        gaze=fit.dynamic_gaze[rows],
        rotation=rotation,
        translation=translation,
        torso_rotation=torso_turns(tracking)[rows],
        torso_translation=(from_turns(rotation) @ neck + translation).astype(np.float32),
    )


def clip_meshes(
    fit: HeadFit, tracking: Tracking, head: HeadModel, rows: Int64[np.ndarray, " R"]
) -> Float32[np.ndarray, "R V 3"]:
    """Dense vertices of some frames with static and dynamic offsets, camera of the tracking's crop, m (Eq. 1 to 4)."""
    curves = clip_curves(fit, tracking, head, rows)
    meshes = []
    for index, row in enumerate(rows.tolist()):
        folds = np.zeros_like(fit.frame_offset)
        folds[fit.dynamic_vertices] = fit.dynamic_offset[row]
        one = Curves(**{name: values[index : index + 1] for name, values in vars(curves).items()})
        meshes.append(posed_meshes(replace(fit, frame_offset=folds), head, one)[0])
    return np.stack(meshes)


TILE = 192
QUALITY = 85
FILLED = 1e6
"""Subtracted from the scores of frames whose landmarks are not sure."""


def telling_frames(tracking: Tracking) -> Int64[np.ndarray, " 4"]:
    """Frames with the most neutral face, widest jaw, largest rotation, largest expression; only sure landmarks."""
    effort = np.abs(tracking.expression).sum(1)
    rest = neutral_weights(tracking.expression, tracking.jaw, tracking.sure)
    jaw, turn = (np.linalg.norm(column, axis=1) for column in (tracking.jaw, tracking.rotation))
    unseen = FILLED * ~tracking.sure
    return np.array([(column - unseen).argmax() for column in (rest, jaw, turn, effort)])


def write_sheet(path: Path, video: Path, tracking: Tracking, fit: HeadFit, head: HeadModel) -> None:
    """Write a JPEG with a column (see `column`) for each of the `telling_frames`."""
    rows = telling_frames(tracking)
    order, inverse = np.unique(rows, return_inverse=True)
    crop = Crop(*tracking.crop.tolist())
    pictures = [crop_image(picture, crop, TILE) for picture in read_pictures(video, order)]
    normals = normal_maps(fit, tracking, head, order)
    columns = [column(picture, normal) for picture, normal in zip(pictures, normals, strict=True)]
    sheet = np.concatenate([columns[index] for index in inverse], axis=1)
    with atomic_path(path) as partial:
        Image.fromarray(sheet).save(partial, format="JPEG", quality=QUALITY)


def normal_maps(
    fit: HeadFit, tracking: Tracking, head: HeadModel, rows: Int64[np.ndarray, " R"]
) -> UInt8[np.ndarray, "R S S 3"]:
    """Normal maps of some frames, at the size of a tile."""
    camera = Camera.of_crop(tracking.focal_px, CROP_SIZE, TILE)
    faces = head.dense_faces.to(torch.int32)
    bump = Bump.of(relief_of(fit, head), scale=TILE / CROP_SIZE)
    maps = []
    for mesh in clip_meshes(fit, tracking, head, rows):
        with torch.inference_mode():
            drawn = render_buffers(torch.from_numpy(mesh)[None], faces, camera, bump=bump)
            maps.append(encode(drawn.normals[0].numpy()))
    return np.stack(maps)


def column(picture: UInt8[np.ndarray, "S S 3"], normal: UInt8[np.ndarray, "S S 3"]) -> UInt8[np.ndarray, "H S 3"]:
    """Stack the picture, the picture blended with the normals, and the normals."""
    shown = (normal != np.array(BACKGROUND, np.uint8)).any(-1, keepdims=True)
    both = np.where(shown, cv2.addWeighted(picture, 0.5, normal, 0.5, 0), picture)
    return np.concatenate([picture, both, normal], axis=0)
