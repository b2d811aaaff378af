"""Curves and bars as SVG that take their colours from the page."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from expportrait_cli.pages import colour

WIDTH, HEIGHT, MARGIN = 360, 96, 6
BINS = 30


POINTS = 600
"""Longer films are drawn as means of neighbouring frames."""


def curve(values: Float64[np.ndarray, " T"], label: str) -> str:
    """Draw one metric over the frames as an SVG that takes its colours from the page; gaps where it is missing."""
    return overlay([values], label)


def overlay(series: Sequence[Float64[np.ndarray, " T"]], label: str) -> str:
    """Draw the same metric of several films in one picture, in the page's colours (`page.colour`).

    At least one has a finite value.
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
    """Means of neighbours, at most `POINTS` of them."""
    per_point = -(-len(values) // POINTS)
    padded = np.append(values, np.full(-len(values) % per_point, np.nan)).reshape(-1, per_point)
    finite = np.isfinite(padded)
    return np.where(finite, padded, 0).sum(1) / np.where(finite.any(1), finite.sum(1), np.nan)


def _line(means: Float64[np.ndarray, " N"], bounds: tuple[float, float], kind: str) -> str:
    known = np.flatnonzero(np.isfinite(means))
    low, high = bounds
    x = MARGIN + (WIDTH - 2 * MARGIN) * known / max(len(means) - 1, 1)
    # A flat line lies in the middle.
    share = (means[known] - low) / (high - low) if high > low else np.full(len(known), 0.5)
    y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * share
    # Metrics of every nth frame are joined; a hole in one of every frame is left open.
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
    """Draw how often values fall into each of equal bins between `bounds`."""
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
    """Draw how often which value occurs; all are finite, and there is at least one."""
    counts, edges = np.histogram(values, BINS)
    return bars(counts, label, (float(edges[0]), float(edges[-1])))
