"""The HTML page of a benchmark: tables of means and intervals, curves, and the worst frame of each pair."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
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
from expportrait_cli.pages import facts, figures, histogram, key, notes, overlay, page, table
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
    title = f"Suite {escape(str(scores.settings['name']))}"
    body = [
        facts([(name, str(value)) for name, value in scores.settings.items()]),
        *_modes(scores),
        "<h2>Published</h2>",
        _published(),
        "<h2>Methods</h2>",
        _methods(scores, costs),
        "<h2>Pairs</h2>",
        key(list(scores.methods)),
        *(_pair(scores, name, worst.get(name)) for name in scores.pairs),
        "<h2>Definitions</h2>",
        definitions(SUITE_COLUMNS),
        "<h2>Versions</h2>",
        versions_table(),
        *(["<h2>Licences</h2>", notes(licences)] if licences else []),
    ]
    return page(title, body)


def _modes(scores: SuiteScores) -> list[str]:
    lines = []
    for mode in scores.modes:
        why = scores.missing[mode]
        reasons = [
            f"not measured: {', '.join(name for name in why if why[name] == reason)} ({reason})"
            for reason in dict.fromkeys(why.values())
        ]
        head = f"<h2>{'Self-reenactment' if mode == 'self' else 'Cross-reenactment'}</h2>"
        lines += [
            head,
            _means(scores, mode),
            notes([f"interval: {SUITE_METHOD}.", *reasons]),
            _histograms(scores, mode),
        ]
    return lines


def _means(scores: SuiteScores, mode: Mode) -> str:
    heads = [("name", "metric"), ("", "unit"), ("", "better")]
    first, *others = scores.methods
    for method in scores.methods:
        heads.append(("n", f"{escape(method)}, n = {len(scores.films(method, mode))}"))
    heads += [("n", f"{escape(method)} &minus; {escape(first)}") for method in others]
    rows = []
    for column in scores.columns(mode):
        cells = [shown(scores.mean(method, mode, column.name)) for method in scores.methods]
        cells += [shown(scores.difference(method, mode, column.name)) for method in others]
        rows.append(
            [column.name, escape(column.unit), escape(column.better_in(mode)), *(_cell(cell) for cell in cells)]
        )
    return table(heads, rows)


def _cell(text: str) -> str:
    mean, _, interval = text.partition(" ")
    return f"{mean}<br><span class=range>{interval}</span>" if interval else mean


def _histograms(scores: SuiteScores, mode: Mode) -> str:
    first = next(iter(scores.methods))
    drawn = []
    for name in CURVES[mode]:
        columns = [film.column(name)[film.first_frame :] for film in scores.films(first, mode).values()]
        values = np.concatenate([column[np.isfinite(column)] for column in columns] or [np.empty(0)])
        if len(values):
            drawn.append(f"<div><h3><code>{name}</code></h3>{histogram(values, name)}</div>")
    if not drawn:
        return ""
    return f"<p class=note>All frames of {escape(first)}:</p><div class=grid>{''.join(drawn)}</div>"


def _published() -> str:
    heads = [("name", "published, other clips")]
    heads += [("n", name) for name in SELF_COLUMNS] + [("n", f"cross {name}") for name in CROSS_COLUMNS]
    rows = [[row.method, *(f"{value:.4f}" for value in (*row.self_scores, *row.cross_scores))] for row in PUBLISHED]
    return table(heads, rows) + notes([PUBLISHED_NOTE])


def _methods(scores: SuiteScores, costs: Mapping[str, float]) -> str:
    rows = []
    for method, what in scores.methods.items():
        cost = f"{costs[method]:.1f}" if method in costs else "n/a"
        failed = "<br>".join(f"{escape(pair)}: {escape(why)}" for pair, why in scores.failed[method].items())
        rows.append([escape(method), escape(what), cost, failed or "none"])
    heads = [("name", "method"), ("", "what it is"), ("n", "s a film"), ("", "pairs without scores")]
    return table(heads, rows)


def _pair(scores: SuiteScores, name: str, worst: WorstFrame | None) -> str:
    row: dict[str, Any] = scores.pairs[name]
    mode: Mode = row["mode"]
    films = {method: scores.scores[method].get(name) for method in scores.methods}
    first = next((film for film in films.values() if film is not None), None)
    if first is None:
        return f"<details><summary>{escape(name)}: no scores</summary></details>"
    drawn = []
    for column in (column for column in COLUMNS if column.name in CURVES[mode]):
        # A missing film has an empty curve, so that each method keeps its colour.
        none = np.full(len(first.values), np.nan)
        series = [film.column(column.name) if film is not None else none for film in films.values()]
        if np.isfinite(np.concatenate(series)).any():
            head = f"<h3><code>{column.name}</code> <span class=range>{escape(column.unit)}</span></h3>"
            drawn.append(f"<div>{head}{overlay(series, column.name)}</div>")
    files = f"{row['reference']} driven by {row['driving']}" if mode == "cross" else row["driving"]
    found = ""
    if worst is not None:
        pictures = figures(worst.pictures, "sheet", f"frame {worst.frame} of {name}")
        found = f"<p>Worst frame, {worst.frame}: {escape(worst.why)}</p>{pictures}"
    return (
        f"<details open><summary>{escape(name)}</summary><p class=note>{escape(files)}, {len(first.values)} frames</p>"
        f"{found}<div class=grid>{''.join(drawn)}</div></details>"
    )


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
