"""The page of a suite: what `evaluate.suite_report` draws, with pictures from the inputs, films and meshes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from expportrait_cli.benchmark.report import WorstFrame, suite_report
from expportrait_cli.benchmark.run import Outcome, Plan
from expportrait_cli.evaluate.pictures import data_uri, pictures, ranking, worst_frames
from expportrait_cli.evaluate.scores import Scores
from expportrait_cli.media.source import read_frame
from expportrait_cli.pipeline.licences import LicenceMap
from expportrait_cli.pipeline.sheets import normals_behind


def suite_page(
    plan: Plan, outcome: Outcome, licences: LicenceMap | None, progress: Callable[[int, int | None], None]
) -> str:
    """Build the page. Reads each pair's films once more, for the frame that the first method shows worst."""
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
