"""Scores of one film: the columns of each frame, with their means and intervals."""

import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
from jaxtyping import Float64

from expportrait_cli.artifacts.files import sha256
from expportrait_cli.evaluation.columns import CLASSES, COLUMNS, FVD, NAMES, WIDTH, Mode
from expportrait_cli.evaluation.onnx_net import find
from expportrait_cli.version import __version__
from expportrait_cli.weights.catalogue import Weight, catalogue, entry

RESAMPLES, SEED = 2000, 0
LEVEL_PERCENT = 95
"""Level of the intervals."""


def interval(values: Float64[np.ndarray, " T"]) -> tuple[float, float] | None:
    """Interval of the mean of the finite values, by a bootstrap over blocks of frames; None without finite values.

    Blocks, because neighbouring frames are not independent. They are sqrt(T) frames long and wrap around; the bounds
    are percentiles of the resampled means. They apply to more frames of the same film, not to other films or people.
    Source: Politis and Romano, A Circular Block-Resampling Procedure for
    Stationary Data, 1992.
    """
    finite = np.isfinite(values)
    if not finite.any():
        return None
    count = len(values)
    length = int(np.ceil(np.sqrt(count)))
    starts = np.random.default_rng(SEED).integers(0, count, (RESAMPLES, -(-count // length)))
    sums = [_block_sums(x, length)[starts].sum(1) for x in (np.where(finite, values, 0.0), finite.astype(np.float64))]
    # A resample may have no frame with a value.
    drawn = sums[1] > 0.5
    low, high = np.percentile(sums[0][drawn] / sums[1][drawn], [50 - LEVEL_PERCENT / 2, 50 + LEVEL_PERCENT / 2])
    return float(low), float(high)


def over_clips(values: Float64[np.ndarray, " N"]) -> tuple[float, float] | None:
    """Interval of the mean over clips, by a bootstrap over whole clips; None for fewer than two.

    It applies to other clips that are chosen like these. It is too narrow if several clips are of one person.
    """
    if len(values) < 2:
        return None
    drawn = np.random.default_rng(SEED).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(1), [50 - LEVEL_PERCENT / 2, 50 + LEVEL_PERCENT / 2])
    return float(low), float(high)


def _block_sums(values: Float64[np.ndarray, " T"], length: int) -> Float64[np.ndarray, " T"]:
    """Sum of the block that starts at each frame."""
    rising = np.concatenate([[0.0], np.cumsum(np.concatenate([values, values[: length - 1]]))])
    return rising[length:] - rising[:-length]


FILMS = ("output", "target")
ESTIMATORS = ("mediapipe", "dlib-bin", "face-recognition-models", "flip-evaluator", "opencv-contrib-python", "numpy")
"""Packages on whose versions the figures depend."""
BROUGHT = ("arcface", "deep3d", "i3d", "lpips-alex", "lpips-vgg", "smirk")
"""Weights in the catalogue that the user provides, and on which the figures depend too."""
SERVES = {
    "arcface": "csim_arcface",
    "deep3d": "aed_deep3d_mean",
    "dlib-face-recognition": "identity_dlib",
    "dlib-five-landmarks": "identity_dlib",
    "i3d": FVD.name,
    "lpips-alex": "lpips_alex",
    "lpips-vgg": "lpips_vgg",
    "smirk": "aed_smirk_mean",
}
"""A column for which each of these weights is needed; other weights of `eval` are needed for all columns."""
METHOD = f"{LEVEL_PERCENT} %, {RESAMPLES} resamples of circular blocks of sqrt(T) frames of this one film"


def first_frame(mode: Mode) -> int:
    """First frame that the means include: in self mode frame 0 is the reference itself."""
    return 1 if mode == "self" else 0


@dataclass(frozen=True)
class Scores:
    """Scores of a film, frame by frame."""

    KIND: ClassVar[str] = "scores"
    VERSION: ClassVar[int] = 5

    mode: Mode
    output: str
    target: str
    reference: str
    """Photo to which the identity is compared; in self mode the target, whose first frame it is."""
    values: Float64[np.ndarray, "T C"]
    """A row per frame, a column per entry of `COLUMNS`; NaN where it could not be measured."""
    missing: dict[str, str]
    """Columns that could not be measured in any frame, with reasons."""
    windows: Float64[np.ndarray, "2 N 400"] = field(default_factory=lambda: np.empty((2, 0, CLASSES)))
    """Features of FVD's network for each window of film and target, from `first_frame` on, for a suite's FVD. N is 0
    without the network's weights."""
    target_from: int = 0
    """Frame of the target that the film's frame 0 is compared with."""

    @property
    def first_frame(self) -> int:
        """First frame that the means include."""
        return first_frame(self.mode)

    @property
    def means(self) -> dict[str, float | None]:
        """Mean of each column over the frames in which it could be measured; None without any."""
        return {name: _number(column[np.isfinite(column)].mean()) if n else None for name, column, n in self._scored()}

    @property
    def intervals(self) -> dict[str, list[float | None] | None]:
        """Bootstrap bounds of each mean (`interval`); None without one."""
        bounds = {name: interval(column) for name, column, _ in self._scored()}
        return {name: [_number(value) for value in pair] if pair else None for name, pair in bounds.items()}

    @property
    def counts(self) -> dict[str, int]:
        """Number of frames in each mean; frames without a face count only in `found`."""
        return {name: n for name, _, n in self._scored()}

    @property
    def frames_without_face(self) -> dict[str, list[int]]:
        """Frames of film and target, including frame 0, in which no face was found."""
        columns = {"output": "found", "target": "found_target"}
        return {film: np.flatnonzero(self.column(name) == 0).tolist() for film, name in columns.items()}

    @property
    def rows(self) -> list[dict[str, float | int | None]]:
        """The values as a dict per frame."""
        return [{"frame": t} | dict(zip(NAMES, map(_number, row), strict=True)) for t, row in enumerate(self.values)]

    def column(self, name: str) -> Float64[np.ndarray, " T"]:
        """One metric over all frames, including frame 0; NaN where it could not be measured."""
        return self.values[:, NAMES.index(name)]

    def _scored(self) -> list[tuple[str, np.ndarray, int]]:
        columns = self.values[self.first_frame :].T
        return [(name, c, int(np.isfinite(c).sum())) for name, c in zip(NAMES, columns, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """All scores, with the definitions, as plain JSON types.

        Since version 2 `definitions` (by name) replaces the list `columns`; `intervals`, `frames_without_face` and
        `versions` are new. Since version 3 there are `lpips_alex`, `lpips_vgg`, `csim_arcface`,
        `aed_motion_own` and `apd_motion_own_deg`. Since version 4 there are the columns of Deep3DFaceRecon and
        SMIRK, and `windows`. Since version 5 there are `identity_dlib_target` and `csim_arcface_target`, and
        `better_in_self` in the definitions.
        """
        return {
            "kind": self.KIND,
            "version": self.VERSION,
            "made_by": f"expportrait {__version__}",
            "versions": versions(),
            "mode": self.mode,
            "output": self.output,
            "target": self.target,
            "target_from": self.target_from,
            "reference": self.reference,
            "frames": len(self.values),
            "first_frame_of_means": self.first_frame,
            "frames_without_face": self.frames_without_face,
            "means": self.means,
            "intervals": self.intervals,
            "interval_method": METHOD,
            "counts": self.counts,
            "missing": self.missing,
            "definitions": {column.name: _definition(asdict(column)) for column in COLUMNS},
            "windows": dict(zip(FILMS, np.round(self.windows, 6).tolist(), strict=True)),
            "rows": self.rows,
        }


def scores_from_json(document: dict[str, Any]) -> Scores:
    """Convert the result of `Scores.to_json` back to scores, which are rounded to six digits.

    Raises:
        KeyError, TypeError, ValueError: the document is something else, or of another version.
    """
    if (document["kind"], document["version"]) != (Scores.KIND, Scores.VERSION):
        raise ValueError(f"it is a {document['kind']} file of version {document['version']}")
    if document["mode"] not in get_args(Mode):
        raise ValueError(f"a mode {document['mode']!r}")
    rows = [[row[name] for name in NAMES] for row in document["rows"]]
    values = np.array([[np.nan if value is None else value for value in row] for row in rows], np.float64)
    output, target, reference = (str(document[key]) for key in ("output", "target", "reference"))
    # Files of earlier versions, without trimmed targets, have none.
    target_from = int(document.get("target_from", 0))
    answers = [document["windows"][film] for film in FILMS]
    windows = np.array(answers, np.float64).reshape(2, len(answers[0]), CLASSES)
    return Scores(document["mode"], output, target, reference, values, dict(document["missing"]), windows, target_from)


def _definition(column: dict[str, str | None]) -> dict[str, str | None]:
    return {key: value for key, value in column.items() if key != "name"}


def versions() -> dict[str, str | None]:
    """Versions of Python, this tool, and the packages and weights of the estimators; None if not installed.

    Weights that the user provides have their hash, and the licence in the catalogue.
    """
    found: dict[str, str | None] = {"python": platform.python_version(), "expportrait": __version__}
    for package in ESTIMATORS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    for name in BROUGHT:
        path, weight = find(name), entry(name)
        found[weight.file] = None
        if path is not None:
            found[weight.file] = f"sha256 {_hash(path, path.stat().st_mtime_ns)}, licence {weight.licence}"
    return found


def estimators(films: Iterable[Scores]) -> list[Weight]:
    """Weights with which the figures of these films were measured."""
    films = list(films)
    measured = {name for film in films for name, count in film.counts.items() if count}
    if any(film.windows.size for film in films):
        measured.add(FVD.name)
    serving = [weight for weight in catalogue() if "eval" in weight.needed_by] if films else []
    return [weight for weight in serving if SERVES.get(weight.name) in (None, *measured)]


@cache
def _hash(path: Path, changed_ns: int) -> str:
    return sha256(path)


def _number(value: float) -> float | None:
    # JSON has no NaN. Six digits are far below what any estimator resolves.
    return round(float(value), 6) if np.isfinite(value) else None


def table(scores: Scores) -> str:
    """Text table of the means, with what is missing below."""
    means, counts, intervals = scores.means, scores.counts, scores.intervals
    total = len(scores.values) - scores.first_frame
    lines = [f"{'metric':<{WIDTH}} {'mean':>9} {'95 % of this film':>21} {'unit':<13} {'better':<18} frames"]
    for column in COLUMNS:
        name, bounds = column.name, intervals[column.name]
        if bounds is None:
            continue
        span = f"{bounds[0]:.4f} .. {bounds[1]:.4f}"
        shown = f"{name:<{WIDTH}} {means[name]:>9.4f} {span:>21} {column.unit:<13} {column.better_in(scores.mode):<18}"
        lines.append(f"{shown} {counts[name]} of {total}")
    return "\n".join([*lines, *remarks(scores)])


def remarks(scores: Scores) -> list[str]:
    """A line for each reason why columns were not measured, and for frames without a face."""
    lines = []
    for reason in dict.fromkeys(scores.missing.values()):
        names = [name for name, why in scores.missing.items() if why == reason]
        lines.append(f"not measured: {', '.join(names)} ({reason})")
    for film, frames in scores.frames_without_face.items():
        if frames:
            shown = ", ".join(map(str, frames[:10])) + (", ..." if len(frames) > 10 else "")
            lines.append(f"no face found in {len(frames)} of {len(scores.values)} frames of the {film}: {shown}")
    return lines
