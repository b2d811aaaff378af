"""Reports of scores: the HTML page of a film, and the table of `eval --normals`."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from jaxtyping import Float64, Int64, UInt8

from expportrait_cli.evaluation import image
from expportrait_cli.evaluation.columns import COLUMNS, Column
from expportrait_cli.evaluation.normals import DETAIL_TURNS_DEG, HIGH_PASS_MM, OUTLINE_TURNS_DEG, SHIFT_PX, mean, span
from expportrait_cli.evaluation.scores import METHOD, Scores, remarks, versions
from expportrait_cli.media.video import read_pictures
from expportrait_cli.pages import curve, facts, figures, grid, notes, page, table
from expportrait_cli.version import __version__


def report_page(scores: Scores, *, licences: Sequence[str] = ()) -> str:
    """Build the page: means and their intervals, curves, the worst frames, estimators and versions.

    Reads the films again for the worst frames. `licences`: lines about the use that is permitted.
    """
    sections = {
        "": [_films(scores)],
        "Means": [_means(scores), notes(remarks(scores))],
        "Worst frames": _worst(scores),
        "Frame by frame": [_curves(scores)],
        "Definitions": [definitions()],
        "Versions": [versions_table()],
        "Licences": [notes(licences)],
    }
    return page(f"Scores of {scores.output.rpartition('/')[2]}", sections)


def _films(scores: Scores) -> str:
    what = "the truth, pixel by pixel" if scores.mode == "self" else "the driver, another picture"
    first = " Frame 0 is the reference and counts in no mean." if scores.first_frame else ""
    rows = [("film", scores.output), (f"target ({what})", scores.target), ("identity of", scores.reference)]
    return facts([*rows, ("frames", f"{len(scores.values)}.{first}")])


def _means(scores: Scores) -> str:
    means, counts, intervals = scores.means, scores.counts, scores.intervals
    total = len(scores.values) - scores.first_frame
    rows = []
    for column in COLUMNS:
        mean, bounds = means[column.name], intervals[column.name]
        if mean is None or bounds is None:
            shown = ["n/a", scores.missing.get(column.name, "no frame could be measured")]
        else:
            shown = [f"{mean:.4f}", f"{bounds[0]:.4f} .. {bounds[1]:.4f}"]
        measured = f"{counts[column.name]} of {total}"
        rows.append([column.name, *shown, column.unit, column.better_in(scores.mode), measured])
    heads = [("name", "metric"), ("n", "mean"), ("", "95 % interval"), ("", "unit"), ("", "better"), ("n", "frames")]
    return table(heads, rows) + notes([f"Interval: {METHOD}. It says nothing about other films."])


def _worst(scores: Scores) -> list[str]:
    name, badness = ranking(scores)
    frames = worst_frames(badness)
    shown = pictures(scores, frames)
    parts = [notes([f"By {name}, a tenth of the film apart; a frame whose face was lost comes first."])]
    for frame in frames.tolist():
        value = badness[frame]
        why = f"{value:.4g}" if np.isfinite(value) else "no face found in the film"
        parts.append(figures(shown[frame], "row", f"frame {frame}", f"Frame {frame}: {why}"))
    return parts


def _curves(scores: Scores) -> str:
    drawn = [(column, scores.column(column.name)) for column in COLUMNS]
    return grid(
        [
            (column.name, column.unit, curve(values, column.name))
            for column, values in drawn
            if np.isfinite(values).any()
        ]
    )


def definitions(columns: Sequence[Column] = COLUMNS) -> str:
    """Explain every metric."""
    rows = [[column.name, column.definition, column.unit, column.estimator, column.source] for column in columns]
    return table([("name", "metric"), ("", "definition"), ("", "unit"), ("", "estimator"), ("", "source")], rows)


def versions_table() -> str:
    """Versions of all that figures depend on."""
    rows = [[name, number or "not installed"] for name, number in versions().items()]
    return table([("name", "package"), ("", "version")], rows)


DEFINITIONS = {
    "outline.iou": "overlap of the drawn head and the matte above the chin, at turns of 15 to 60 degrees",
    "outline.mm": "distance of the drawn outline and the matte's behind the ear, along rays from between the ears; "
    "signed_mm is positive where the head is drawn too large; p90_mm over the rays of a frame; max_mm over all frames",
    "detail.r": "correlation of the high-passed log shading of the normals with the high-passed log luminance of the "
    "picture, which also holds colours: what a photo's albedo copied into the normals correlates with is counted too",
    "detail.r_registered": f"the largest r when the picture is moved by up to {SHIFT_PX} px; of unrelated detail about "
    "0.1",
    "detail.gain": "strength of the drawn detail along the picture's; 1 is right",
    "detail.explained": "1 - mean |picture - drawn| / mean |picture|; negative where detail is added that is not there",
    "ears": "share of pixels of drawn ears with the photo's colour of skin, or of hair where the head covers the ear",
    "relief.r": "correlation of the photo's static detail, as heights carried here by the head, with the heights that "
    "this frame shows by itself; both are high-passed",
    "relief.r_registered": f"the largest r when this frame is moved by up to {SHIFT_PX} px",
    "steady_deg": "mean angle by which normals change between frames that hardly move, at the same pixels",
    "steady_mesh_deg": "the same without detail: what the tracked pose does",
    "steady_detail_deg": "change of what detail adds to the normals, at the same spots of the surface",
    "folds": "r, gain and explained of the folds of the face in frames between those that were fitted",
}
"""Meaning of each score, by its name in the file."""


@dataclass(frozen=True)
class NormalScores:
    """Scores of fitted heads, by clip."""

    KIND: ClassVar[str] = "normal-scores"
    VERSION: ClassVar[int] = 1

    clips: Mapping[str, dict[str, Any]]
    """By the clip's name: the result of `measure`, with `steady_deg`, `folds` and the source."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """By the clip's name: the reason why it could not be measured."""

    @property
    def mean(self) -> dict[str, Any]:
        """Mean over the clips of all scores, except those of single frames; each clip counts once."""
        return _over_clips([{k: v for k, v in clip.items() if k != "frames"} for clip in self.clips.values()])

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON types; unknown values are null."""
        scores = {"clips": dict(self.clips), "mean": self.mean, "failed": dict(self.failed)}
        header = {"kind": self.KIND, "version": self.VERSION, "made_by": f"expportrait {__version__}"}
        return {**header, "definitions": DEFINITIONS, **_known(scores)}

    def table(self) -> str:
        """Text table with a row per clip and a row of means; below, the detail by rotation."""
        wide = max([4, *map(len, self.clips)])
        turns = [span(*turn) for turn in OUTLINE_TURNS_DEG]
        heads = [
            "frames",
            "IoU",
            "mm",
            "signed",
            "p90",
            "max",
            *turns,
            *HIGH_PASS_MM,
            "ears",
            "steady",
            "mesh",
            "bends",
        ]
        lines = [f"{'clip':<{wide}} " + " ".join(f"{head:>8}" for head in heads)]
        for name, clip in (*self.clips.items(), ("mean", self.mean)):
            if clip:
                lines.append(f"{name:<{wide}} " + " ".join(f"{shown:>8}" for shown in _cells(clip, turns)))
        lines += ["IoU to 45-60: outline at turns from the first frame, mm behind the ear, also by turn in degrees;"]
        lines += [
            "skin to clothes: registered r of the relief carried here and read here; ears: share of right colour;"
        ]
        lines += ["steady, mesh, bends: degrees between still frames, all, without detail, detail along the surface"]
        if self.clips:
            lines += ["", *_by_turn("relief", self.mean["relief"]), "", *_by_turn("detail", self.mean["detail"])]
        if folds := self.mean.get("folds"):
            lines += ["", *(f"folds, {region:<9} {_text(values)}" for region, values in folds.items())]
        return "\n".join([*lines, *(f"{name}: {why}" for name, why in self.failed.items())])


def _cells(clip: Mapping[str, Any], turns: Sequence[str]) -> list[str]:
    edge = clip["outline"]
    whole = edge["all"]
    millimetres = [whole["mm"], whole["signed_mm"], whole["p90_mm"], whole["max_mm"], *(edge[t]["mm"] for t in turns)]
    relief_r = [clip["relief"]["all"][region]["r_registered"] for region in HIGH_PASS_MM]
    steady = [clip[name] for name in ("steady_deg", "steady_mesh_deg", "steady_detail_deg")]
    return [
        f"{whole['frames']:.0f}",
        _number(whole["iou"], 3),
        *(_number(value, 1) for value in millimetres),
        *(_number(value, 2) for value in (*relief_r, clip["ears"], *steady)),
    ]


def _by_turn(name: str, found: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} at {turn + ' degrees':<14} {region:<9} {_text(found[turn][region])}"
        for turn in (span(*each) for each in DETAIL_TURNS_DEG)
        for region in HIGH_PASS_MM
    ]


def _text(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {_number(value, 2)}" for name, value in values.items())


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "-"


def _over_clips(rows: Sequence[Any]) -> Any:
    """Mean of nested numbers over clips; texts are left out."""
    if not rows:
        return {}
    if not isinstance(rows[0], Mapping):
        return mean(rows)
    names = [name for name, value in rows[0].items() if not isinstance(value, str)]
    return {name: _over_clips([row[name] for row in rows]) for name in names}


def _known(value: Any) -> Any:
    """Replace NaN, which JSON does not have, by None, in nested values."""
    match value:
        case Mapping():
            return {name: _known(each) for name, each in value.items()}
        case list():
            return [_known(each) for each in value]
        case float():
            return value if np.isfinite(value) else None
    return value


WORST = 3
"""Most frames that are shown as the worst."""
PICTURE_PX, QUALITY = 360, 85
"""Longest side, and JPEG quality, of the frames that are shown."""
L1_FULL = 0.25
"""Absolute difference that is drawn brightest, without FLIP."""


def ranking(scores: Scores) -> tuple[str, Float64[np.ndarray, " T"]]:
    """Measure by which the worst frames are chosen: its name, and its value in each frame; NaN is never chosen.

    It is infinite in frames in which a face is found in the target, but not in the film.
    """
    name = "l1_frame" if scores.mode == "self" else "lmk_nme_aligned"
    badness = scores.column(name).copy()
    badness[(scores.column("found") == 0) & (scores.column("found_target") == 1)] = np.inf
    badness[: scores.first_frame] = np.nan
    return name, badness


def worst_frames(badness: Float64[np.ndarray, " T"]) -> Int64[np.ndarray, " R"]:
    """Up to three frames, the worst first, at least a tenth of the film apart, since neighbours are alike."""
    left, chosen = badness.copy(), []
    reach = len(badness) // 10
    while len(chosen) < WORST and not np.isnan(left).all():
        worst = int(np.nanargmax(left))
        chosen.append(worst)
        left[max(0, worst - reach) : worst + reach + 1] = np.nan
    return np.array(chosen, np.int64)


def pictures(scores: Scores, frames: Int64[np.ndarray, " R"]) -> dict[int, list[tuple[str, str]]]:
    """Target, film and, in self mode, their error map, as (caption, data URI), for each of these frames.

    Reads both clips once more, as far as the last of the frames.
    """
    rising = np.sort(frames)
    if not len(rising):
        return {}
    films = read_pictures(Path(scores.target), rising + scores.target_from), read_pictures(Path(scores.output), rising)
    shown = {}
    for frame, target, output in zip(rising.tolist(), *films, strict=True):
        shown[frame] = [("target", data_uri(target)), ("film", data_uri(output))]
        if scores.mode == "self":
            shown[frame].append(error_map(output, target))
    return shown


def error_map(output: UInt8[np.ndarray, "H W 3"], target: UInt8[np.ndarray, "H W 3"]) -> tuple[str, str]:
    """Draw the error of a picture against its target; returns a caption, and the drawing as a data URI."""
    own, wanted = image.as_float(output), image.as_float(target)
    if image.missing_package() is None:
        caption, errors = "FLIP, 0 black, 1 bright", image.error_map(own, wanted)
    else:
        caption, errors = f"absolute difference, {L1_FULL} brightest", np.abs(own - wanted).mean(axis=2) / L1_FULL
    levels = np.rint(255 * np.clip(errors, 0, 1)).astype(np.uint8)
    return caption, data_uri(cv2.applyColorMap(levels, cv2.COLORMAP_MAGMA)[:, :, ::-1])


def data_uri(rgb: UInt8[np.ndarray, "H W 3"]) -> str:
    """Encode a picture as a data URI with a JPEG, at most `PICTURE_PX` wide and high."""
    scale = min(1.0, PICTURE_PX / max(rgb.shape[:2]))
    size = tuple(max(1, round(side * scale)) for side in rgb.shape[1::-1])
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    done, jpeg = cv2.imencode(".jpg", small[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert done
    return "data:image/jpeg;base64," + b64encode(jpeg.tobytes()).decode()
