"""Scores of a benchmark: means over clips with intervals, and published scores beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float64

from expportrait_cli.evaluation.columns import (
    CLASSES,
    COLUMNS,
    FVD,
    LEAST_WINDOWS,
    NAMES,
    SUITE_COLUMNS,
    WIDTH,
    WINDOW,
    Column,
    Mode,
)
from expportrait_cli.evaluation.fvd import frechet_distance
from expportrait_cli.evaluation.onnx_net import missing_file
from expportrait_cli.evaluation.scores import LEVEL_PERCENT, RESAMPLES, Scores, over_clips, versions
from expportrait_cli.version import __version__

PUBLISHED_NOTE = (
    "published, other clips: Table 1 of the ExpPortrait paper, 20 clips of RAVDESS and 80 of NeRSemble at 512 px. It "
    "does not say which estimators its AED and APD rest on, nor which networks its CSIM and LPIPS: "
    "read them beside each other, never subtract them. The cross AED and APD of two of its rows are identical."
)


@dataclass(frozen=True)
class PublishedRow:
    """One method of Table 1."""

    method: str
    self_scores: tuple[float, ...]
    """Scores of self mode, in the order of `SELF_COLUMNS`."""
    cross_scores: tuple[float, ...]
    """Scores of cross mode, in the order of `CROSS_COLUMNS`."""


SELF_COLUMNS = ("PSNR", "SSIM", "LPIPS", "L1", "AED", "APD", "CSIM")
CROSS_COLUMNS = ("AED", "APD", "CSIM")
PUBLISHED = (
    PublishedRow(
        "LivePortrait", (23.2897, 0.82985, 0.37339, 0.04619, 0.12924, 0.02144, 0.82972), (0.28641, 0.23048, 0.72869)
    ),
    PublishedRow(
        "AniPortrait", (22.2527, 0.80838, 0.30018, 0.04078, 0.17581, 0.01631, 0.76038), (0.22753, 0.08784, 0.62998)
    ),
    PublishedRow(
        "Follow-Your-Emoji",
        (25.6872, 0.84146, 0.23645, 0.02905, 0.14717, 0.01485, 0.80284),
        (0.22069, 0.02338, 0.68373),
    ),
    PublishedRow(
        "HunyuanPortrait", (22.9453, 0.79333, 0.27573, 0.03962, 0.15593, 0.02329, 0.81150), (0.22753, 0.08784, 0.67451)
    ),
    PublishedRow(
        "X-NeMo", (21.5618, 0.78051, 0.32411, 0.04760, 0.13671, 0.01789, 0.83018), (0.17092, 0.02101, 0.72164)
    ),
    PublishedRow(
        "ExpPortrait", (26.5507, 0.85908, 0.18394, 0.02160, 0.13185, 0.00948, 0.83506), (0.21092, 0.01277, 0.72917)
    ),
)


def published_json() -> dict[str, object]:
    """The published scores as plain JSON types."""
    return {
        "note": PUBLISHED_NOTE,
        "rows": [
            {
                "method": row.method,
                "self": dict(zip(SELF_COLUMNS, row.self_scores, strict=True)),
                "cross": dict(zip(CROSS_COLUMNS, row.cross_scores, strict=True)),
            }
            for row in PUBLISHED
        ],
    }


def published_text() -> str:
    """The published scores as a text table."""
    lines = [f"{'published':<18} " + " ".join(f"{name:>8}" for name in SELF_COLUMNS) + "   cross AED   x-APD  x-CSIM"]
    for row in PUBLISHED:
        own = " ".join(f"{value:8.4f}" for value in row.self_scores)
        lines.append(f"{row.method:<18} {own}   " + " ".join(f"{value:9.4f}" for value in row.cross_scores))
    return "\n".join([*lines, PUBLISHED_NOTE])


SUITE_METHOD = (
    f"{LEVEL_PERCENT} %, {RESAMPLES} resamples of whole clips; a clip counts once, by the mean over its frames. "
    "Several clips of one person are not independent"
)


WANTED = [*NAMES, FVD.name]


@dataclass(frozen=True)
class SuiteScores:
    """Scores of every method, on every pair of which it has a film."""

    KIND: ClassVar[str] = "suite-scores"
    VERSION: ClassVar[int] = 3
    """Since version 2 with the columns of version 4 of `Scores`, and `fvd_i3d`, whose entries have `windows`. Since
    version 3 with the columns of version 5 of `Scores`."""

    settings: dict[str, Any]
    """Settings of the suite (stride, size, ...), as plain JSON types."""
    pairs: Mapping[str, dict[str, Any]]
    """Mode, files and their hashes of each pair, by its name."""
    methods: Mapping[str, str]
    """Description of each method, by its name; all others are compared with the first one."""
    scores: Mapping[str, Mapping[str, Scores]]
    """Scores by method and pair."""
    failed: Mapping[str, Mapping[str, str]]
    """Reasons why there are no scores, by method and pair."""
    licences: dict[str, Any] = field(default_factory=dict)
    """Licences of the weights of the films and of the estimators."""

    def films(self, method: str, mode: Mode) -> dict[str, Scores]:
        """Scores of one method in one mode, by pair."""
        return {pair: scores for pair, scores in self.scores[method].items() if scores.mode == mode}

    def clip_means(self, method: str, mode: Mode, column: str) -> dict[str, float]:
        """Mean over the frames of each pair's film, if there is one, by pair."""
        means = {pair: scores.means[column] for pair, scores in self.films(method, mode).items()}
        return {pair: mean for pair, mean in means.items() if mean is not None}

    def mean(self, method: str, mode: Mode, column: str) -> dict[str, Any] | None:
        """Mean over clips with interval and count; for FVD, the value over all windows. None without any."""
        if column == FVD.name:
            return _fvd(list(self.films(method, mode).values()))
        return _summary(np.array(list(self.clip_means(method, mode, column).values())))

    def difference(self, method: str, mode: Mode, column: str) -> dict[str, Any] | None:
        """Mean, with interval, of this method's score minus the first method's, over clips that both have."""
        both = (method, next(iter(self.methods)))
        if column == FVD.name:
            return _difference(*self._on_common_pairs(both, mode))
        own, first = (self.clip_means(name, mode, column) for name in both)
        return _summary(np.array([own[pair] - first[pair] for pair in own if pair in first]))

    def _on_common_pairs(self, methods: tuple[str, str], mode: Mode) -> list[dict[str, Any] | None]:
        """FVD of two methods, over the pairs that both have."""
        films = [self.films(method, mode) for method in methods]
        common = [pair for pair in films[0] if pair in films[1]]
        return [_fvd([own[pair] for pair in common]) for own in films]

    def _most_windows(self, mode: Mode) -> int:
        """Largest number of windows that a method has."""
        return max(_windows(list(self.films(method, mode).values())).shape[1] for method in self.methods)

    @property
    def modes(self) -> list[Mode]:
        """Modes of the pairs."""
        wanted: list[Mode] = ["self", "cross"]
        return [mode for mode in wanted if any(pair["mode"] == mode for pair in self.pairs.values())]

    def columns(self, mode: Mode) -> list[Column]:
        """Columns of which at least one method has a mean."""
        shown = [c for c in COLUMNS if any(self.clip_means(method, mode, c.name) for method in self.methods)]
        return [*shown, FVD] if self._most_windows(mode) >= LEAST_WINDOWS else shown

    @property
    def missing(self) -> dict[Mode, dict[str, str]]:
        """Columns that no film of a mode has, with reasons, by mode."""
        found: dict[Mode, dict[str, str]] = {}
        for mode in self.modes:
            shown = {column.name for column in self.columns(mode)}
            films = [film for method in self.methods for film in self.films(method, mode).values()]
            reasons = {name: why for film in films for name, why in film.missing.items()}
            reasons[FVD.name] = _too_few(self._most_windows(mode))
            found[mode] = {
                name: reasons.get(name, "no frame could be measured") for name in WANTED if name not in shown
            }
        return found

    def to_json(self) -> dict[str, Any]:
        """All scores but those of single frames, as plain JSON types; they do not depend on the films' paths."""
        return {
            "kind": self.KIND,
            "version": self.VERSION,
            "made_by": f"expportrait {__version__}",
            "versions": versions(),
            "suite": self.settings,
            "pairs": dict(self.pairs),
            "methods": {method: self._method(method, what) for method, what in self.methods.items()},
            "interval_method": SUITE_METHOD,
            "missing": self.missing,
            "published": published_json(),
            "licences": self.licences,
            "definitions": {
                column.name: {key: value for key, value in asdict(column).items() if key != "name"}
                for column in SUITE_COLUMNS
            },
        }

    def _method(self, method: str, what: str) -> dict[str, Any]:
        is_first = method == next(iter(self.methods))
        means = {mode: {name: self.mean(method, mode, name) for name in WANTED} for mode in self.modes}
        differences = {mode: {name: self.difference(method, mode, name) for name in WANTED} for mode in self.modes}
        films = {pair: _film(scores) for pair, scores in self.scores[method].items()}
        row = {"what": what, "means": means, "films": films, "failed": dict(self.failed[method])}
        return row if is_first else {**row, "difference_from_first": differences}

    def table(self) -> str:
        """Text table of the means, with those of the paper and what is missing below."""
        blocks = [self._mode_table(mode) for mode in self.modes]
        return "\n\n".join([*blocks, published_text(), *self._remarks()])

    def _mode_table(self, mode: Mode) -> str:
        counts = {method: len(self.films(method, mode)) for method in self.methods}
        heads = [f"{method}, n = {count}" for method, count in counts.items()]
        width = max(26, *(len(head) + 1 for head in heads))
        lines = [f"{mode:<{WIDTH}} {'better':<18}" + "".join(f"{head:>{width}}" for head in heads)]
        for column in self.columns(mode):
            cells = (shown(self.mean(method, mode, column.name)) for method in self.methods)
            start = f"{column.name:<{WIDTH}} {column.better_in(mode):<18}"
            lines.append(start + "".join(f"{cell:>{width}}" for cell in cells))
        return "\n".join(lines)

    def _remarks(self) -> list[str]:
        lines = [f"interval: {SUITE_METHOD}"]
        for mode, columns in self.missing.items():
            for reason in dict.fromkeys(columns.values()):
                names = ", ".join(name for name, why in columns.items() if why == reason)
                lines.append(f"{mode}, not measured: {names} ({reason})")
        for method, pairs in self.failed.items():
            lines += [f"{method} has no scores of {pair}: {reason}" for pair, reason in pairs.items()]
        return ["\n".join(lines)]


def shown(summary: dict[str, Any] | None) -> str:
    """A mean as text, with its interval, or for FVD with the number of windows."""
    if summary is None:
        return "n/a"
    if "windows" in summary:
        return f"{summary['mean']:.4f} of {summary['windows']} windows"
    bounds = summary["interval"]
    return f"{summary['mean']:.4f}" + (f" {bounds[0]:.4f}..{bounds[1]:.4f}" if bounds else "")


def _windows(films: Sequence[Scores]) -> Float64[np.ndarray, "2 N 400"]:
    """Concatenate the features of all windows of films, and of their targets."""
    return np.concatenate([np.empty((2, 0, CLASSES)), *(film.windows for film in films)], axis=1)


def _fvd(films: Sequence[Scores]) -> dict[str, Any] | None:
    """FVD between films and their targets; None for too few windows."""
    windows = _windows(films)
    count = windows.shape[1]
    if count < LEAST_WINDOWS:
        return None
    return {
        "mean": round(frechet_distance(*windows), 6),
        "interval": None,
        "clips": sum(film.windows.shape[1] > 0 for film in films),
        "windows": count,
    }


def _difference(own: dict[str, Any] | None, first: dict[str, Any] | None) -> dict[str, Any] | None:
    if own is None or first is None:
        return None
    return {**own, "mean": round(own["mean"] - first["mean"], 6)}


def _too_few(windows: int) -> str:
    """Reason why there is no FVD for this number of windows."""
    why = missing_file("i3d") if not windows else None
    return why or f"needs {LEAST_WINDOWS} windows of {WINDOW} frames, there are {windows}"


def _film(scores: Scores) -> dict[str, Any]:
    return {
        "frames": len(scores.values),
        "means": scores.means,
        "counts": scores.counts,
        "frames_without_face": scores.frames_without_face,
    }


def _summary(values: Float64[np.ndarray, " N"]) -> dict[str, Any] | None:
    if not len(values):
        return None
    bounds = over_clips(values)
    return {
        "mean": round(float(values.mean()), 6),
        "interval": [round(bound, 6) for bound in bounds] if bounds else None,
        "clips": len(values),
    }
