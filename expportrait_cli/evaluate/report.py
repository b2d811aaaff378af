"""One page that shows what a film scored: no server, no script, nothing from the net."""

from html import escape

import numpy as np

from expportrait_cli.evaluate.columns import COLUMNS, Column
from expportrait_cli.evaluate.figures import curve, pictures, ranking, worst_frames
from expportrait_cli.evaluate.scores import METHOD, Scores, remarks, versions

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --paper: #fff; --faint: #667; --rule: #d8dbe2; --curve: #0b62c4 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ec; --paper: #15171b; --faint: #9aa3b2; --rule: #333842; --curve: #6db3ff }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1180px;
  margin: 2rem auto; padding: 0 1rem }
h1, h2 { font-weight: 600; line-height: 1.2 } h2 { margin-top: 2.5rem }
.wide { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--rule); vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
code, .name { font-family: ui-monospace, monospace; font-size: .92em } .note, .range, figcaption { color: var(--faint) }
.range, figcaption { font-size: .85em; margin: .1rem 0 } .path { overflow-wrap: anywhere }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: 1rem }
.grid h3 { margin: 0; font-size: .95em } svg { width: 100%; border: 1px solid var(--rule); border-radius: 4px }
polyline { fill: none; stroke: var(--curve); stroke-width: 1.4; stroke-linejoin: round } circle { fill: var(--curve) }
.row { display: grid; grid-template-columns: repeat(3, 1fr); gap: .6rem; max-width: 1000px }
figure { margin: 0 } img { width: 100%; display: block; border-radius: 4px }
"""


def report(scores: Scores) -> str:
    """Build the page: means and their intervals, curves, the worst frames, estimators and versions.

    Reads the films again for the worst frames.
    """
    title = f"Scores of {escape(scores.output.rpartition('/')[2])}"
    body = [
        f"<h1>{title}</h1>",
        _films(scores),
        "<h2>Means</h2>",
        _means(scores),
        *(f"<p class=note>{escape(line)}</p>" for line in remarks(scores)),
        "<h2>Worst frames</h2>",
        *_worst(scores),
        "<h2>Frame by frame</h2>",
        _curves(scores),
        "<h2>Definitions</h2>",
        _definitions(),
        "<h2>Versions</h2>",
        _versions(),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>' + "\n".join(
        [*body, "</body></html>\n"]
    )


def _films(scores: Scores) -> str:
    what = "the truth, pixel by pixel" if scores.mode == "self" else "the driver, another picture"
    first = " Frame 0 is the reference and counts in no mean." if scores.first_frame else ""
    rows = [("film", scores.output), (f"target ({what})", scores.target), ("identity of", scores.reference)]
    cells = "".join(f"<tr><th>{name}</th><td class=path><code>{escape(path)}</code></td></tr>" for name, path in rows)
    return f"<div class=wide><table>{cells}</table></div><p>{len(scores.values)} frames.{first}</p>"


def _table(heads: list[tuple[str, str]], rows: list[list[str]]) -> str:
    """A table; each head is (CSS class, text), and cells are HTML already."""
    top = "".join(f'<th class="{kind}">{text}</th>' for kind, text in heads)
    kinds = [kind for kind, _ in heads]
    lines = ("".join(f'<td class="{kind}">{cell}</td>' for kind, cell in zip(kinds, row, strict=True)) for row in rows)
    inside = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div class=wide><table><thead><tr>{top}</tr></thead><tbody>{inside}</tbody></table></div>"


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
        unit, better = escape(column.unit), escape(column.better)
        rows.append([column.name, *shown, unit, better, f"{counts[column.name]} of {total}"])
    heads = [("name", "metric"), ("n", "mean"), ("", "95 % interval"), ("", "unit"), ("", "better"), ("n", "frames")]
    return _table(heads, rows) + f"<p class=note>Interval: {escape(METHOD)}. It says nothing about other films.</p>"


def _worst(scores: Scores) -> list[str]:
    name, badness = ranking(scores)
    frames = worst_frames(badness)
    shown = pictures(scores, frames)
    rule = f"By <code>{name}</code>, a tenth of the film apart; a frame whose face was lost comes first."
    lines = [f"<p class=note>{rule}</p>"]
    for frame in frames.tolist():
        value = badness[frame]
        figures = "".join(
            f'<figure><img alt="{caption} of frame {frame}" src="{uri}"><figcaption>{caption}</figcaption></figure>'
            for caption, uri in shown[frame]
        )
        why = f"{value:.4g}" if np.isfinite(value) else "no face found in the film"
        lines.append(f"<h3>Frame {frame}: {why}</h3><div class=row>{figures}</div>")
    return lines


def _curves(scores: Scores) -> str:
    drawn = [column for column in COLUMNS if np.isfinite(scores.column(column.name)).any()]
    return f"<div class=grid>{''.join(_curve(scores, column) for column in drawn)}</div>"


def _curve(scores: Scores, column: Column) -> str:
    svg = curve(scores.column(column.name), column.name)
    return f"<div><h3><code>{column.name}</code> <span class=range>{escape(column.unit)}</span></h3>{svg}</div>"


def _definitions() -> str:
    rows = [
        [column.name, escape(column.definition), escape(column.unit), escape(column.estimator), escape(column.source)]
        for column in COLUMNS
    ]
    return _table([("name", "metric"), ("", "definition"), ("", "unit"), ("", "estimator"), ("", "source")], rows)


def _versions() -> str:
    rows = [[escape(name), escape(number or "not installed")] for name, number in versions().items()]
    return _table([("name", "package"), ("", "version")], rows)
