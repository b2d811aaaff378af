"""The HTML page of a run: requested and measured motion by frame, warnings, worst frames, figures and licences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64
from scipy.ndimage import median_filter

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.files import write_text
from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import DISTRUSTED, HeadFit, Tracking
from expportrait_cli.detect.crop import Crop, crop_image, shown_box
from expportrait_cli.errors import InputError
from expportrait_cli.evaluation.own import ANGLES, Asked, Shown, angles_of, measure_run
from expportrait_cli.evaluation.report import PICTURE_PX, data_uri, worst_frames
from expportrait_cli.head import landmark_model
from expportrait_cli.media.stretch import ranges
from expportrait_cli.media.video import read_frame, read_frames
from expportrait_cli.pages import facts, figures, grid, key, notes, overlay, page
from expportrait_cli.pipeline.heads import head_behind, tracking_head
from expportrait_cli.pipeline.job import Job
from expportrait_cli.pipeline.performance import OUTSIDE, Driver
from expportrait_cli.pipeline.provenance import DOUBTFUL, licence_map
from expportrait_cli.pipeline.sheets import normals_of
from expportrait_cli.runtime import Progress

FAR_DEG = 40.0
"""Rotation away from the photo, degrees, beyond which a painter must guess hidden parts of the head."""
STRONG = 1.15
"""Expression coefficient above which an expression is extrapolated beyond its model."""
STRANGER = 0.6
"""Distance of dlib's embeddings above which two faces count as different people."""

POP, CALM, AROUND = 2.5, 1.5, 11
"""How much more than what is usual around it, over so many frames, a change of the film is a jump, and one of the
driver explains it."""
FLICKER, JITTER_PX = 0.3, 0.3
"""Changes of a film (levels of 255) and of landmarks (px of the crop) that are noise."""

Series = Float64[np.ndarray, " T"]


@dataclass(frozen=True)
class Run:
    """Files of a film from which its page is made."""

    film: Path
    head: Path
    meshes: Path
    tracking: Path | None
    """None if the driver was given as meshes, or if its tracking is shared with other films."""
    detail: bool
    """True if the painter got normal maps with fine static detail."""

    @classmethod
    def of(cls, job: Job) -> "Run":
        """Find the files of a job.

        Raises:
            InputError: the film, its head or its meshes are missing.
        """
        head = job.reference if job.reference.suffix == ".npz" else job.work / "reference.head.npz"
        meshes = job.driving if job.driving.name.endswith(".meshes.npz") else job.meshes
        own = job.driving if job.driving.name.endswith(".track.npz") else job.work / "driving.track.npz"
        for path in (job.out, head, meshes):
            if not path.is_file():
                raise InputError(f"{path} is gone: a report needs intermediate results. Run with `keep_work`.")
        return cls(job.out, head, meshes, own if own.is_file() else None, job.generate.detail)


@dataclass(frozen=True)
class _Found:
    """Content of the page."""

    run: Run
    fit: HeadFit
    meshes: Meshes
    tracking: Tracking | None
    asked: Asked
    shown: Shown

    @property
    def turn_deg(self) -> Series:
        """Rotation of the head away from the photo's, degrees: the largest of the three angles, for each frame."""
        return np.abs(self.asked.angles_deg - angles_of(self.fit.rotation[None])).max(1)


def write_run_report(job: Job, record: Mapping[str, Any], path: Path, progress: Progress) -> Path:
    """Measure the job's film and write the page; `record` is its run record, as `generate` returns it.

    Takes 40 ms a frame, and 75 more where identity can be measured.

    Raises:
        InputError: intermediate results are missing.
    """
    run = Run.of(job)
    fit, meshes = npz.load(HeadFit, run.head), Meshes.open(run.meshes)
    tracking = npz.load(Tracking, run.tracking) if run.tracking is not None else None
    model = landmark_model(tracking_head(head_behind(run.head, fit)))
    photo = read_frame(fit.source, fit.picture)
    total = meshes.frame_count
    box = shown_box(fit, fit.landmarks, job.generate)
    shown = measure_run(
        read_frames(run.film), photo, fit, model, box=box, progress=lambda done, _: progress(done, total)
    )
    found = _Found(run, fit, meshes, tracking, Asked.of(meshes.curves, model), shown)
    write_text(path, _page(found, record))
    return path


def _page(found: _Found, record: Mapping[str, Any]) -> str:
    remarks = warnings(found.asked, found.shown, found.tracking, found.turn_deg)
    quality = record.get("quality", {})
    if quality.get("outside_training", 0.0) > OUTSIDE:
        share = 100 * quality["outside_training"]
        remarks.append(f"{share:.0f} % of the frames have expressions outside the transfer network's training range.")
    remarks += held_back(quality.get("held_back", {}), found.meshes.frame_count)
    missing = [f"{name}: not measured, {why}" for name, why in found.shown.missing.items()]
    sections = {
        "": [facts(_facts(record))],
        "Where to look": [notes(remarks or ["Nothing out of the ordinary."])],
        "Worst frames": _worst(found),
        "Frame by frame": [key(["asked for", "the film shows"]), _curves(found), notes(missing)],
        "Quality, as the stages saw it": [facts(_texts({k: v for k, v in quality.items() if k != "held_back"}))],
        "Seconds": [facts(_texts(record.get("seconds", {})))],
        "Licences": [notes(licence_map(record).lines())],
        "Versions": [facts(_texts(record.get("versions", {})))],
    }
    return page(f"Run of {found.run.film.name}", sections)


def _texts(rows: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in rows.items()]


HELD = {
    "turn_damped": "Rotation is damped where it would show what the photo hides",
    "kept_in_frame": "Motion is limited to keep the head in the picture",
    "torso_guessed": "The driver's torso could not be tracked: shoulders are guessed",
    "mouth_guessed": "The mouth opens, but is shut in the photo: teeth and tongue are guessed",
    "face_limited": "The driver's expression is limited to the range of the head model",
}
"""Reasons why motion was changed or guessed, by their names in the header of meshes."""


def held_back(found: Mapping[str, Any], count: int) -> list[str]:
    """A line for each kind of motion that was changed or guessed, with the reason and the frames."""
    lines = []
    for name, why in HELD.items():
        row = found.get(name)
        if not isinstance(row, dict):
            continue
        rows = np.zeros(count, bool)
        for first, last in row["frames"]:
            rows[first : last + 1] = True
        most = f", by up to {row['most']} {row['unit']}" if "most" in row else ""
        lines += _where(rows, why + most)
    return lines


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    inputs = [(role, str(row.get("path", ""))) for role, row in record.get("inputs", {}).items()]
    names = ("output", "frames", "rate", "seed", "painter", "finished", "synthetic")
    return [*inputs, *((name, _words(record[name])) for name in names if name in record)]


def _words(value: Any) -> str:
    return ", ".join(f"{key} {text}" for key, text in value.items() if text) if isinstance(value, dict) else str(value)


def warnings(asked: Asked, shown: Shown, tracking: Tracking | None, turn_deg: Series) -> list[str]:
    """List possible faults of the film, one line each, with frames and limits."""
    lines = []
    if tracking is not None:
        error = float(tracking.error.mean())
        if error > DOUBTFUL:
            lines.append(
                f"The head fits the driver badly: {error:.1f} % of the eye distance, expected below {DOUBTFUL}."
            )
        for state, what in ((1, "interpolated"), (2, "held")):
            filled = tracking.state == state
            lines += _where(filled & ~tracking.distrusted, f"No face in the driver, {what}")
            lines += _where(filled & tracking.distrusted, f"The driver's face is covered, blurred or foreign, {what}")
    lines += _where(np.any(asked.expression > STRONG, axis=1), f"Asks for an expression above {100 * STRONG:.0f} %")
    lines += _where(turn_deg > FAR_DEG, f"Asks for a turn of more than {FAR_DEG:.0f} degrees away from the photo")
    lines += _where(shown.found == 0, "No face found in the film")
    if tracking is not None and len(tracking.error) == len(shown.flicker):
        lines += _where(pops(shown.flicker, tracking.landmarks), "The film jumps where the driver's face does not")
    if "identity_dlib" in shown.identity:
        far = np.nan_to_num(shown.identity["identity_dlib"]) > STRANGER
        lines += _where(far, f"Looks like somebody else (dlib above {STRANGER})")
    return lines


def pops(flicker: Series, landmarks: Float32[np.ndarray, "T 478 2"]) -> Bool[np.ndarray, " T"]:
    """Return the frames whose change in the film exceeds what the driver's change explains.

    Both are second differences in time, over what is usual around them.
    """
    jerk = np.zeros(len(flicker))
    jerk[2:] = np.linalg.norm(np.diff(landmarks.astype(np.float64), 2, axis=0), axis=-1).mean(1)
    shown = np.nan_to_num(flicker)
    film, driver = (median_filter(values, AROUND, mode="nearest") for values in (shown, jerk))
    return (shown > POP * film + FLICKER) & (jerk < CALM * driver + JITTER_PX)


def _where(rows: Bool[np.ndarray, " T"], what: str) -> list[str]:
    """A line with the ranges of the frames that are True in `rows`; no line if none is."""
    if not rows.any():
        return []
    return [f"{what}: {int(rows.sum())} of {len(rows)} frames, {ranges(np.flatnonzero(rows))}."]


def _curves(found: _Found) -> str:
    asked, shown = found.asked, found.shown
    drawn: list[tuple[str, Sequence[Series]]] = [
        (f"{name}, degrees", (asked.angles_deg[:, axis], shown.angles_deg[:, axis])) for axis, name in enumerate(ANGLES)
    ]
    drawn += [
        ("jaw opening, share of the full one", (asked.jaw, shown.jaw)),
        ("expression, mean coefficient", (asked.expression.mean(1), shown.expression.mean(1))),
        ("expression error", (shown.expression_error(asked),)),
        ("pose error, degrees", (shown.pose_error_deg(asked),)),
        *((f"{name}, to the photo", (values,)) for name, values in shown.identity.items()),
        ("flicker, levels of 255", (shown.flicker,)),
    ]
    if found.tracking is not None:
        error = found.tracking.error.astype(np.float64)
        drawn.append(("tracking error of the driver, % of the eye distance", (error,)))
        drawn.append(("driver: 0 tracked, 1 interpolated, 2 held", (found.tracking.state.astype(np.float64),)))
        drawn.append(
            (
                f"doubt about the driver's face: not trusted from {DISTRUSTED}",
                (found.tracking.doubt.astype(np.float64),),
            )
        )
    return grid(
        [
            (label, "", overlay(series, label, _means(series)))
            for label, series in drawn
            if np.isfinite(np.concatenate(series)).any()
        ]
    )


def _means(series: Sequence[Series]) -> str:
    known = [values[np.isfinite(values)] for values in series]
    means = " and ".join(f"{values.mean():.4g}" if len(values) else "n/a" for values in known)
    return f"mean {means}"


def _worst(found: _Found) -> list[str]:
    """HTML of photo, driver, normals and film in the frames in which the film differs most from the request."""
    badness = found.shown.expression_error(found.asked)
    badness[found.shown.found == 0] = np.inf
    crop = Crop(*map(float, found.fit.crop))
    photo = crop_image(read_frame(found.fit.source, found.fit.picture), crop, PICTURE_PX)
    driver = Driver.of(found.tracking) if found.tracking is not None else Driver.behind(found.run.meshes)
    parts = [notes(["By the expression error, a tenth of the film apart."])]
    for frame in worst_frames(badness).tolist():
        shown = [("photo", data_uri(photo))]
        if driver is not None and driver.source.is_file():
            shown.append(
                (
                    "driver",
                    data_uri(crop_image(driver.picture(frame), Crop(*map(float, driver.crop)), PICTURE_PX)),
                )
            )
        shown.append(("normals", data_uri(normals_of(found.meshes, frame, detail=found.run.detail))))
        shown.append(("film", data_uri(read_frame(found.run.film, frame))))
        why = f"{badness[frame]:.4g}" if np.isfinite(badness[frame]) else "no face found in the film"
        parts.append(figures(shown, "sheet", f"frame {frame}", f"Frame {frame}: {why}"))
    return parts
