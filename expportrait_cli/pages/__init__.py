"""Self-contained HTML pages, from the templates in `parts.html`: no server, no script, nothing from the network.

Callers pass plain text, which the templates escape, or HTML that another function of this module returned. Charts use
the page's CSS colours.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64


@cache
def _parts() -> Any:
    """Macros of the templates, each of which returns HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    kept = Environment(
        loader=PackageLoader(__name__, ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return kept.get_template("parts.html").module


def page(title: str, sections: Mapping[str, Sequence[str]]) -> str:
    """HTML of a page; `sections`: parts by the heading above them, without the headings that have no parts."""
    filled = [(heading, [part for part in parts if part]) for heading, parts in sections.items()]
    return str(_parts().page(title, filled)) + "\n"


def table(heads: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    """HTML of a table; each head is (CSS class, text)."""
    return _parts().table(heads, rows)


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """HTML of a table of two columns, name and value."""
    return _parts().facts(rows)


def figures(pictures: Sequence[tuple[str, str]], kind: str, of: str = "", heading: str = "") -> str:
    """HTML of a row of pictures, given as (caption, address), and a heading above them.

    `kind`: CSS class, `row` for three columns, `sheet` for five. `of`: their subject, for the alternative text.
    """
    return _parts().figures(pictures, kind, of, heading)


def notes(lines: Sequence[str], kind: str = "note") -> str:
    """HTML of a paragraph for each line, of a CSS class."""
    return _parts().lines(lines, kind) if lines else ""


def items(lines: Sequence[str]) -> str:
    """HTML of a list."""
    return _parts().items(lines)


def cell(first: str, others: Sequence[str], kind: str = "range") -> str:
    """HTML of a table cell, or a caption, of several lines; those after the first are of a CSS class."""
    return _parts().cell(first, others, kind)


def link(text: str, address: str) -> str:
    """HTML of a link to a file, relative to the page."""
    return _parts().link(text, address)


def details(summary: str, parts: Sequence[str]) -> str:
    """HTML of parts below a line of summary, on which a click hides them."""
    return _parts().details(summary, [part for part in parts if part])


def grid(charts: Sequence[tuple[str, str, str]]) -> str:
    """Charts side by side, as (name, unit, drawing)."""
    return _parts().grid(charts) if charts else ""


def key(names: Sequence[str]) -> str:
    """Legend of the curves' colours."""
    return _parts().key([(name, _colour(index)) for index, name in enumerate(names)])


SERIES = 5
"""Colours of curves that share a picture; a sixth takes the first again."""
WIDTH, HEIGHT, MARGIN = SIZE = 360, 96, 6
BINS = 30
POINTS = 600
"""Most points of a curve; longer series are drawn as means of neighbouring values."""


def _colour(index: int) -> str:
    return f"s{index % SERIES}"


def curve(values: Float64[np.ndarray, " T"], label: str) -> str:
    """Draw one series over the frames as an SVG, in the page's colour, with gaps where values are NaN."""
    return overlay([values], label)


def overlay(series: Sequence[Float64[np.ndarray, " T"]], label: str, note: str = "") -> str:
    """Draw the same metric of several films in one picture, in the colours of `key`, with a note below it.

    At least one value must be finite.
    """
    means = [_thinned(values) for values in series]
    finite = np.concatenate([line[np.isfinite(line)] for line in means])
    low, high = float(finite.min()), float(finite.max())
    lines = [(_colour(index), part) for index, line in enumerate(means) for part in _line(line, (low, high))]
    span = f"{low:.4g} .. {high:.4g}"
    return _parts().curves(f"{label}: {low:.4g} to {high:.4g}", SIZE, lines, [span, note] if note else [span])


def _thinned(values: Float64[np.ndarray, " T"]) -> Float64[np.ndarray, " N"]:
    """Means of neighbouring values, at most `POINTS` of them."""
    per_point = -(-len(values) // POINTS)
    padded = np.append(values, np.full(-len(values) % per_point, np.nan)).reshape(-1, per_point)
    finite = np.isfinite(padded)
    return np.where(finite, padded, 0).sum(1) / np.where(finite.any(1), finite.sum(1), np.nan)


def _line(means: Float64[np.ndarray, " N"], bounds: tuple[float, float]) -> list[list[tuple[float, float]]]:
    """Points of a curve, in parts that holes divide."""
    known = np.flatnonzero(np.isfinite(means))
    low, high = bounds
    x = MARGIN + (WIDTH - 2 * MARGIN) * known / max(len(means) - 1, 1)
    # A constant series is drawn in the middle.
    share = (means[known] - low) / (high - low) if high > low else np.full(len(known), 0.5)
    y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * share
    # Values of every nth frame are joined; missing values between those of every frame leave a gap.
    step = int(np.diff(known).min()) if len(known) > 1 else 1
    parts = np.split(np.arange(len(known)), np.flatnonzero(np.diff(known) > step) + 1) if len(known) else []
    return [list(zip(x[part].tolist(), y[part].tolist(), strict=True)) for part in parts]


def bars(counts: Int64[np.ndarray, " N"], label: str, bounds: tuple[float, float]) -> str:
    """Draw the counts of equal bins between `bounds` as an SVG."""
    wide, top = (WIDTH - 2 * MARGIN) / len(counts), max(int(counts.max()), 1)
    edges = np.linspace(*bounds, len(counts) + 1)
    rows = []
    for index in np.flatnonzero(counts):
        tall = float((HEIGHT - 2 * MARGIN) * counts[index] / top)
        said = f"{edges[index]:.4g} to {edges[index + 1]:.4g}: {counts[index]}"
        rows.append((MARGIN + wide * index, HEIGHT - MARGIN - tall, wide - 1, tall, said))
    span = f"{bounds[0]:.4g} .. {bounds[1]:.4g}"
    return _parts().bars(f"{label}, {span}", SIZE, rows, f"{span}, {counts.sum()} frames, highest bar {counts.max()}")


def histogram(values: Float64[np.ndarray, " N"], label: str) -> str:
    """Draw the histogram of values, which must be finite, and one at least."""
    counts, edges = np.histogram(values, BINS)
    return bars(counts, label, (float(edges[0]), float(edges[-1])))
