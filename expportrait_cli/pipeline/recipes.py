"""`compare-recipes`: a film painted by wan-vace with several settings, each measured against the proxy."""

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from expportrait_cli.artifacts import guard
from expportrait_cli.artifacts.files import write_text
from expportrait_cli.config import GenerateConfig, WanConfig
from expportrait_cli.evaluation.report import data_uri
from expportrait_cli.media.video import frame_count, read_pictures
from expportrait_cli.pages import figures, notes, page, table
from expportrait_cli.painting.stage import choose, note_comparison
from expportrait_cli.pipeline import commands
from expportrait_cli.pipeline.film import generate
from expportrait_cli.pipeline.job import Job
from expportrait_cli.runtime import Stage

PLAIN = WanConfig(control="holes", keep=False, strength=1.0, guidance=1.0, shift=3.0)
RECIPES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("holes", "the proxy film with holes, from noise alone, without guidance", {}),
    ("grey", "and grey levels of the proxy in the holes", {"control": "proxy"}),
    ("guidance", "and guidance 5 with the negative prompt", {"guidance": 5.0}),
    ("shift", "and shift 16", {"shift": 16.0}),
    ("start", "and a start from the proxy film, strength 0.7", {"strength": 0.7}),
    ("keep", "and the proxy's own pixels where nothing is to be repainted", {"keep": True}),
)
"""Name and description of each recipe, and the settings that it changes, in addition to those of the recipes before."""
MEASURES = {
    "lip_gap_error": "lips, % of the eye distance",
    "lid_gap_error": "lids, % of the eye distance",
    "gaze_own_deg": "gaze, degrees",
    "identity_dlib": "identity, distance from the photo",
    "flicker": "flicker, levels",
}
SHOWN = 5
"""Number of frames of each film on the page."""


def compare(photo: Path, clip: Path, folder: Path, config: GenerateConfig, stage: Stage) -> tuple[Path, dict[str, Any]]:
    """Make the proxy film and a wan-vace film for each recipe, and measure them; returns the page and the scores.

    Films that `folder` has are kept. It is recorded that the weights of wan-vace were compared on this machine: from
    then on `backend=auto` may choose them.

    Raises:
        InputError, UsageError, WeightsError: as for a film of wan-vace.
    """
    config = replace(config, backend="wan-vace")
    weights = choose(config).folder
    assert weights is not None
    guard.check(
        [folder / "index.html", *(folder / f"{name}.scores.json" for name in ("proxy", *(row[0] for row in RECIPES)))]
    )
    folder.mkdir(parents=True, exist_ok=True)
    proxy = Job(photo, clip, folder / "proxy.mp4", generate=replace(config, backend="proxy", wan=WanConfig()))
    generate(proxy, stage)
    scores = {"proxy": _scores(proxy.out, photo, clip, stage)}
    change: dict[str, Any] = {}
    for name, _, more in RECIPES:
        change |= more
        wan = replace(config.wan, **{key: getattr(PLAIN, key) for key in CHANGED} | change)
        # Head and meshes of the proxy's run are the inputs, so that only the painting differs.
        head = proxy.work / "reference.head.npz"
        job = Job(head, proxy.meshes, folder / f"{name}.mp4", generate=replace(config, wan=wan, audio="none"))
        generate(job, stage)
        scores[name] = _scores(job.out, photo, clip, stage)
    path = folder / "index.html"
    write_text(path, _page(folder, scores))
    note_comparison(weights, path)
    return path, {"scores": scores}


CHANGED = ("control", "keep", "strength", "guidance", "shift")


def _scores(film: Path, photo: Path, clip: Path, stage: Stage) -> dict[str, float | None]:
    out = film.with_suffix(".scores.json")
    means = commands.evaluate(film, clip, out, reference=photo, stage=stage).scores.means
    return {name: means.get(name) for name in MEASURES}


def _page(folder: Path, scores: dict[str, dict[str, float | None]]) -> str:
    words = {"proxy": "the proxy film", **{name: said for name, said, _ in RECIPES}}
    rows = [[name, words[name], *(_number(own[measure]) for measure in MEASURES)] for name, own in scores.items()]
    heads = [("", "film"), ("", "made with"), *(("n", said) for said in MEASURES.values())]
    said = "Each film adds one change to the one above it. Lower is better, for flicker near 0. Look at the films."
    films = {name: [figures(_frames(folder / f"{name}.mp4"), "sheet", name)] for name in scores}
    return page("Recipes of wan-vace", {"": [notes([said]), table(heads, rows)], **films})


def _frames(film: Path) -> Sequence[tuple[str, str]]:
    rows = np.unique(np.linspace(0, frame_count(film) - 1, SHOWN).round().astype(int))
    return [(f"frame {row}", data_uri(frame)) for row, frame in zip(rows, read_pictures(str(film), rows), strict=True)]


def _number(value: float | None) -> str:
    return f"{value:.2f}" if value is not None and isfinite(value) else "-"
