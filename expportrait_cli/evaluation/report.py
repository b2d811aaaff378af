"""One page that shows what a film scored."""

from collections.abc import Sequence
from html import escape

import numpy as np

from expportrait_cli.evaluation.columns import COLUMNS, Column
from expportrait_cli.evaluation.pictures import pictures, ranking, worst_frames
from expportrait_cli.evaluation.scores import METHOD, Scores, remarks, versions
from expportrait_cli.pages import facts, figures, notes, page, table
from expportrait_cli.pages.charts import curve


def report_page(scores: Scores, *, licences: Sequence[str] = ()) -> str:
    """Build the page: means and their intervals, curves, the worst frames, estimators and versions.

    Reads the films again for the worst frames. `licences` are lines about what the film may be used for.
    """
    title = f"Scores of {escape(scores.output.rpartition('/')[2])}"
    body = [
        _films(scores),
        "<h2>Means</h2>",
        _means(scores),
        notes(remarks(scores)),
        "<h2>Worst frames</h2>",
        *_worst(scores),
        "<h2>Frame by frame</h2>",
        _curves(scores),
        "<h2>Definitions</h2>",
        definitions(),
        "<h2>Versions</h2>",
        versions_table(),
        *(["<h2>Licences</h2>", notes(licences)] if licences else []),
    ]
    return page(title, body)


def _films(scores: Scores) -> str:
    what = "the truth, pixel by pixel" if scores.mode == "self" else "the driver, another picture"
    first = " Frame 0 is the reference and counts in no mean." if scores.first_frame else ""
    rows = [("film", scores.output), (f"target ({what})", scores.target), ("identity of", scores.reference)]
    return f"{facts(rows)}<p>{len(scores.values)} frames.{first}</p>"


def _means(scores: Scores) -> str:
    means, counts, intervals = scores.means, scores.counts, scores.intervals
    total = len(scores.values) - scores.first_frame
    rows = []
    for column in COLUMNS:
        mean, bounds = means[column.name], intervals[column.name]
        if mean is None or bounds is None:
            shown = ["n/a", escape(scores.missing.get(column.name, "no frame could be measured"))]
        else:
            shown = [f"{mean:.4f}", f"{bounds[0]:.4f} .. {bounds[1]:.4f}"]
        unit, better = escape(column.unit), escape(column.better_in(scores.mode))
        rows.append([column.name, *shown, unit, better, f"{counts[column.name]} of {total}"])
    heads = [("name", "metric"), ("n", "mean"), ("", "95 % interval"), ("", "unit"), ("", "better"), ("n", "frames")]
    return table(heads, rows) + f"<p class=note>Interval: {escape(METHOD)}. It says nothing about other films.</p>"


def _worst(scores: Scores) -> list[str]:
    name, badness = ranking(scores)
    frames = worst_frames(badness)
    shown = pictures(scores, frames)
    rule = f"By <code>{name}</code>, a tenth of the film apart; a frame whose face was lost comes first."
    lines = [f"<p class=note>{rule}</p>"]
    for frame in frames.tolist():
        value = badness[frame]
        why = f"{value:.4g}" if np.isfinite(value) else "no face found in the film"
        lines.append(f"<h3>Frame {frame}: {why}</h3>{figures(shown[frame], 'row', f'frame {frame}')}")
    return lines


def _curves(scores: Scores) -> str:
    drawn = [column for column in COLUMNS if np.isfinite(scores.column(column.name)).any()]
    return f"<div class=grid>{''.join(_curve(scores, column) for column in drawn)}</div>"


def _curve(scores: Scores, column: Column) -> str:
    svg = curve(scores.column(column.name), column.name)
    return f"<div><h3><code>{column.name}</code> <span class=range>{escape(column.unit)}</span></h3>{svg}</div>"


def definitions(columns: Sequence[Column] = COLUMNS) -> str:
    """What every metric is."""
    rows = [
        [column.name, escape(column.definition), escape(column.unit), escape(column.estimator), escape(column.source)]
        for column in columns
    ]
    return table([("name", "metric"), ("", "definition"), ("", "unit"), ("", "estimator"), ("", "source")], rows)


def versions_table() -> str:
    """Versions of all that figures depend on."""
    rows = [[escape(name), escape(number or "not installed")] for name, number in versions().items()]
    return table([("name", "package"), ("", "version")], rows)
