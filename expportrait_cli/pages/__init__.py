"""Builders of self-contained HTML pages: no server, no script, nothing from the network.

Callers pass the content as HTML; charts use the page's CSS colours.
"""

from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Float64, Int64

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
rect { fill: var(--curve) } .s1 { stroke: #d1495b } .s2 { stroke: #2a9d8f } .s3 { stroke: #b8860b }
.s4 { stroke: #8e5bd0 }
circle.s1 { fill: #d1495b } circle.s2 { fill: #2a9d8f } circle.s3 { fill: #b8860b } circle.s4 { fill: #8e5bd0 }
.key { display: inline-block; width: 1.6em; height: 0; border-top: 3px solid var(--curve); margin: 0 .4em .25em 1em }
.key.s1 { border-color: #d1495b } .key.s2 { border-color: #2a9d8f } .key.s3 { border-color: #b8860b }
.key.s4 { border-color: #8e5bd0 } .sheet { display: grid; grid-template-columns: repeat(5, 1fr); gap: .5rem }
summary { cursor: pointer; font-weight: 600; padding: .3rem 0 } details { border-bottom: 1px solid var(--rule) }
@media (max-width: 700px) { .row, .sheet { grid-template-columns: repeat(2, 1fr) } }
.row { display: grid; grid-template-columns: repeat(3, 1fr); gap: .6rem; max-width: 1000px }
figure { margin: 0 } img { width: 100%; display: block; border-radius: 4px }
"""


SERIES = 5
"""Number of different colours of curves in a chart; a sixth curve has the first colour again."""


def page(title: str, body: Sequence[str]) -> str:
    """Build a page; title and body are HTML, and are not escaped."""
    about = '<meta name="viewport" content="width=device-width"><meta name="generator" content="expportrait">'
    head = f'<meta charset="utf-8">{about}<title>{title}</title>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>' + "\n".join(
        [f"<h1>{title}</h1>", *body, "</body></html>\n"]
    )


def table(heads: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    """Build a table; each head is (CSS class, text); texts and cells are HTML, and are not escaped."""
    top = "".join(f'<th class="{kind}">{text}</th>' for kind, text in heads)
    kinds = [kind for kind, _ in heads]
    lines = ("".join(f'<td class="{kind}">{cell}</td>' for kind, cell in zip(kinds, row, strict=True)) for row in rows)
    inside = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div class=wide><table><thead><tr>{top}</tr></thead><tbody>{inside}</tbody></table></div>"


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """Build a table of two columns, name and value; both are plain text, and are escaped."""
    cells = "".join(f"<tr><th>{escape(name)}</th><td class=path>{escape(text)}</td></tr>" for name, text in rows)
    return f"<div class=wide><table>{cells}</table></div>"


def figures(pictures: Sequence[tuple[str, str]], kind: str, of: str) -> str:
    """Build a row of pictures, given as (caption, data URI); `of`: their subject, for the alternative text.

    `kind`: CSS class, `row` for three columns, `sheet` for five.
    """
    captions = [escape(caption) for caption, _ in pictures]
    inside = "".join(
        f'<figure><img alt="{caption} of {escape(of)}" src="{uri}"><figcaption>{caption}</figcaption></figure>'
        for caption, (_, uri) in zip(captions, pictures, strict=True)
    )
    return f"<div class={kind}>{inside}</div>"


def notes(lines: Sequence[str]) -> str:
    """Build a paragraph for each line of plain text, which is escaped."""
    return "".join(f"<p class=note>{escape(line)}</p>" for line in lines)


def key(names: Sequence[str]) -> str:
    """Build a legend of the curves' colours."""
    return "<p>" + "".join(f"<span class='key {colour(i)}'></span>{escape(n)}" for i, n in enumerate(names)) + "</p>"


def colour(index: int) -> str:
    """CSS class of the curve with this index."""
    return f"s{index % SERIES}"


WIDTH, HEIGHT, MARGIN = 360, 96, 6
"""Size and margin of a chart, px."""
BINS = 30


POINTS = 600
"""Most points of a curve; longer series are drawn as means of neighbouring values."""


def curve(values: Float64[np.ndarray, " T"], label: str) -> str:
    """Draw one series over the frames as an SVG, in the page's colour, with gaps where values are NaN."""
    return overlay([values], label)


def overlay(series: Sequence[Float64[np.ndarray, " T"]], label: str) -> str:
    """Draw several series over the frames as one SVG, in the page's colours (`colour`).

    At least one value must be finite.
    """
    means = [_thinned(values) for values in series]
    finite = np.concatenate([line[np.isfinite(line)] for line in means])
    low, high = float(finite.min()), float(finite.max())
    lines = "".join(
        _line(line, (low, high), colour(index) if len(means) > 1 else "") for index, line in enumerate(means)
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}: {low:.4g} to {high:.4g}">{lines}</svg>'
        f"<p class=range>{low:.4g} .. {high:.4g}</p>"
    )


def _thinned(values: Float64[np.ndarray, " T"]) -> Float64[np.ndarray, " N"]:
    """Means of neighbouring values, at most `POINTS` of them."""
    per_point = -(-len(values) // POINTS)
    padded = np.append(values, np.full(-len(values) % per_point, np.nan)).reshape(-1, per_point)
    finite = np.isfinite(padded)
    return np.where(finite, padded, 0).sum(1) / np.where(finite.any(1), finite.sum(1), np.nan)


def _line(means: Float64[np.ndarray, " N"], bounds: tuple[float, float], kind: str) -> str:
    known = np.flatnonzero(np.isfinite(means))
    low, high = bounds
    x = MARGIN + (WIDTH - 2 * MARGIN) * known / max(len(means) - 1, 1)
    # A constant series is drawn in the middle.
    share = (means[known] - low) / (high - low) if high > low else np.full(len(known), 0.5)
    y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * share
    # Values of every nth frame are joined; missing values between those of every frame leave a gap.
    step = int(np.diff(known).min()) if len(known) > 1 else 1
    parts = np.split(np.arange(len(known)), np.flatnonzero(np.diff(known) > step) + 1) if len(known) else []
    wears = f' class="{kind}"' if kind else ""
    return "".join(
        f'<polyline{wears} points="{" ".join(f"{x[i]:.1f},{y[i]:.1f}" for i in part)}"/>'
        if len(part) > 1
        else f'<circle{wears} cx="{x[part[0]]:.1f}" cy="{y[part[0]]:.1f}" r="2"/>'
        for part in parts
    )


def bars(counts: Int64[np.ndarray, " N"], label: str, bounds: tuple[float, float]) -> str:
    """Draw the counts of equal bins between `bounds` as an SVG."""
    wide, top = (WIDTH - 2 * MARGIN) / len(counts), max(int(counts.max()), 1)
    edges = np.linspace(*bounds, len(counts) + 1)
    drawn = "".join(
        f'<rect x="{MARGIN + wide * index:.1f}" y="{HEIGHT - MARGIN - tall:.1f}" width="{wide - 1:.1f}" '
        f'height="{tall:.1f}"><title>{edges[index]:.4g} to {edges[index + 1]:.4g}: {count}</title></rect>'
        for index, (count, tall) in enumerate(
            zip(counts.tolist(), ((HEIGHT - 2 * MARGIN) * counts / top).tolist(), strict=True)
        )
        if count
    )
    span = f"{bounds[0]:.4g} .. {bounds[1]:.4g}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}, {span}">{drawn}</svg>'
        f"<p class=range>{span}, {counts.sum()} frames, highest bar {counts.max()}</p>"
    )


def histogram(values: Float64[np.ndarray, " N"], label: str) -> str:
    """Draw the histogram of values, which must be finite, and one at least."""
    counts, edges = np.histogram(values, BINS)
    return bars(counts, label, (float(edges[0]), float(edges[-1])))
