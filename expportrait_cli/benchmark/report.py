"""The HTML page of a benchmark: tables of means and intervals, curves, and the worst frame of each pair."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from expportrait_cli.benchmark.run import Outcome, Plan
from expportrait_cli.benchmark.scores import (
    CROSS_COLUMNS,
    PUBLISHED,
    PUBLISHED_NOTE,
    SELF_COLUMNS,
    SUITE_METHOD,
    SuiteScores,
    shown,
)
from expportrait_cli.evaluation.columns import COLUMNS, SUITE_COLUMNS, Mode
from expportrait_cli.evaluation.report import data_uri, definitions, pictures, ranking, versions_table, worst_frames
from expportrait_cli.evaluation.scores import Scores
from expportrait_cli.media.video import read_frame
from expportrait_cli.pages import cell, details, facts, figures, grid, histogram, key, notes, overlay, page, table
from expportrait_cli.pipeline.provenance import LicenceMap
from expportrait_cli.pipeline.sheets import normals_behind
from expportrait_cli.runtime import Progress

CURVES = {
    "self": ("psnr_head", "l1_frame", "lmk_nme", "aed_own", "apd_own_deg", "identity_dlib"),
    "cross": ("lmk_nme_aligned", "lip_gap_error", "aed_own", "aed_motion_own", "apd_motion_own_deg", "identity_dlib"),
}
"""Columns whose curves are drawn for each pair, by the pair's mode."""


@dataclass(frozen=True)
class WorstFrame:
    """The worst frame of a pair by the first method."""

    frame: int
    why: str
    pictures: list[tuple[str, str]]
    """Caption and data URI of each."""


def suite_report(
    scores: SuiteScores, worst: Mapping[str, WorstFrame], costs: Mapping[str, float], licences: Sequence[str]
) -> str:
    """Build the page: means with intervals, histograms, each pair's curves and worst frame, definitions, versions.

    `worst`: by pair; `costs`: seconds per film by method; `licences`: lines of text.
    """
    modes = {"self": "Self-reenactment", "cross": "Cross-reenactment"}
    sections = {
        "": [facts([(name, str(value)) for name, value in scores.settings.items()])],
        **{modes[mode]: _mode(scores, mode) for mode in scores.modes},
        "Published": [_published()],
        "Methods": [_methods(scores, costs)],
        "Pairs": [key(list(scores.methods)), *(_pair(scores, name, worst.get(name)) for name in scores.pairs)],
        "Definitions": [definitions(SUITE_COLUMNS)],
        "Versions": [versions_table()],
        "Licences": [notes(licences)],
    }
    return page(f"Suite {scores.settings['name']}", sections)


def _mode(scores: SuiteScores, mode: Mode) -> list[str]:
    why = scores.missing[mode]
    reasons = [
        f"not measured: {', '.join(name for name in why if why[name] == reason)} ({reason})"
        for reason in dict.fromkeys(why.values())
    ]
    return [_means(scores, mode), notes([f"interval: {SUITE_METHOD}.", *reasons]), *_histograms(scores, mode)]


def _means(scores: SuiteScores, mode: Mode) -> str:
    heads = [("name", "metric"), ("", "unit"), ("", "better")]
    first, *others = scores.methods
    heads += [("n", f"{method}, n = {len(scores.films(method, mode))}") for method in scores.methods]
    heads += [("n", f"{method} − {first}") for method in others]
    rows = []
    for column in scores.columns(mode):
        cells = [shown(scores.mean(method, mode, column.name)) for method in scores.methods]
        cells += [shown(scores.difference(method, mode, column.name)) for method in others]
        rows.append([column.name, column.unit, column.better_in(mode), *(_cell(text) for text in cells)])
    return table(heads, rows)


def _cell(text: str) -> str:
    mean, _, interval = text.partition(" ")
    return cell(mean, [interval] if interval else [])


def _histograms(scores: SuiteScores, mode: Mode) -> list[str]:
    first = next(iter(scores.methods))
    drawn = []
    for name in CURVES[mode]:
        columns = [film.column(name)[film.first_frame :] for film in scores.films(first, mode).values()]
        values = np.concatenate([column[np.isfinite(column)] for column in columns] or [np.empty(0)])
        if len(values):
            drawn.append((name, "", histogram(values, name)))
    return [notes([f"All frames of {first}:"]), grid(drawn)] if drawn else []


def _published() -> str:
    heads = [("name", "published, other clips")]
    heads += [("n", name) for name in SELF_COLUMNS] + [("n", f"cross {name}") for name in CROSS_COLUMNS]
    rows = [[row.method, *(f"{value:.4f}" for value in (*row.self_scores, *row.cross_scores))] for row in PUBLISHED]
    return table(heads, rows) + notes([PUBLISHED_NOTE])


def _methods(scores: SuiteScores, costs: Mapping[str, float]) -> str:
    rows = []
    for method, what in scores.methods.items():
        cost = f"{costs[method]:.1f}" if method in costs else "n/a"
        failed = [f"{pair}: {why}" for pair, why in scores.failed[method].items()] or ["none"]
        rows.append([method, what, cost, cell(failed[0], failed[1:], "")])
    heads = [("name", "method"), ("", "what it is"), ("n", "s a film"), ("", "pairs without scores")]
    return table(heads, rows)


def _pair(scores: SuiteScores, name: str, worst: WorstFrame | None) -> str:
    row: dict[str, Any] = scores.pairs[name]
    mode: Mode = row["mode"]
    films = {method: scores.scores[method].get(name) for method in scores.methods}
    first = next((film for film in films.values() if film is not None), None)
    if first is None:
        return details(f"{name}: no scores", [])
    drawn = []
    for column in (column for column in COLUMNS if column.name in CURVES[mode]):
        # A missing film has an empty curve, so that each method keeps its colour.
        none = np.full(len(first.values), np.nan)
        series = [film.column(column.name) if film is not None else none for film in films.values()]
        if np.isfinite(np.concatenate(series)).any():
            drawn.append((column.name, column.unit, overlay(series, column.name)))
    files = f"{row['reference']} driven by {row['driving']}" if mode == "cross" else row["driving"]
    parts = [notes([f"{files}, {len(first.values)} frames"])]
    if worst is not None:
        parts.append(notes([f"Worst frame, {worst.frame}: {worst.why}"], ""))
        parts.append(figures(worst.pictures, "sheet", f"frame {worst.frame} of {name}"))
    return details(name, [*parts, grid(drawn)])


def suite_page(plan: Plan, outcome: Outcome, licences: LicenceMap | None, progress: Progress) -> str:
    """Build the page. Reads each pair's films once more, for the worst frame of the first method."""
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
