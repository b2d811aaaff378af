"""A suite from its list or folder to the files that it leaves: scores, times, a page."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from expportrait_cli.artifacts.files import atomic_path
from expportrait_cli.benchmark import run as suites
from expportrait_cli.benchmark.inputs import Layout, suite_of_folder
from expportrait_cli.benchmark.report import suite_page
from expportrait_cli.benchmark.suite import Suite, given_films, read_suite, write_list
from expportrait_cli.config import Backend
from expportrait_cli.errors import UsageError
from expportrait_cli.pipeline.provenance import read_record, write_record


@dataclass(frozen=True)
class Request:
    """What is asked for; None and empty leave what the list says."""

    source: Path
    """A list of pairs in TOML, or a folder of clips."""
    layout: Layout = "auto"
    stride: int | None = None
    frames: int | None = None
    size: int | None = None
    methods: tuple[str, ...] = ()
    """NAME=FOLDER each."""
    ablation: bool = False
    own: bool = True
    backend: Backend = "auto"
    """What paints our own films."""


def work_folder(out: Path) -> Path:
    """Where everything is kept that a second run can use again."""
    return out.with_name(f"{out.name.removesuffix('.json').removesuffix('.scores')}.work")


def load(request: Request) -> Suite:
    """Read the list, or choose the folder's clips.

    Raises:
        InputError: as `read_suite` and `suite_of_folder`.
        UsageError: a layout for a list.
    """
    if request.source.is_dir():
        suite = suite_of_folder(request.source, request.layout)
    elif request.layout != "auto":
        raise UsageError(f"`layout={request.layout}` serves folders; {request.source} is a list of pairs.")
    else:
        suite = read_suite(request.source)
    given = {"stride": request.stride, "frames": request.frames, "size": request.size}
    return replace(suite, **{name: value for name, value in given.items() if value is not None})


def evaluate(
    request: Request, out: Path, open_display: suites.OpenDisplay, *, page: Path | None = None
) -> suites.Outcome:
    """Score the suite and write the scores to `out`; beside it, in the work folder, the list of pairs and the times.

    `out` is the same, byte for byte, for the same films: what differs between runs is in `times.json`.
    """
    suite, work = load(request), work_folder(out)
    plan = suites.plan(
        suite,
        work,
        ablation=request.ablation,
        own=request.own,
        given=given_films(list(request.methods)),
        backend=request.backend,
    )
    with atomic_path(work / "pairs.toml") as partial:
        write_list(suite, partial)
    outcome = suites.run(plan, open_display)
    outcome = replace(outcome, seconds=_whole(outcome.seconds, read_record(work / "times.json").get("films")))
    if page is not None:
        with open_display() as display, atomic_path(page) as partial:
            partial.write_text(
                suite_page(plan, outcome, outcome.licences, display.stage("write the page")), "utf-8", "replace"
            )
    with atomic_path(out) as partial:
        partial.write_text(json.dumps(outcome.scores.to_json(), indent=2) + "\n", "utf-8")
    write_record(work / "times.json", {"unit": "s", "films": outcome.seconds})
    return outcome


def _whole(seconds: dict[str, dict[str, float]], known: Any) -> dict[str, dict[str, float]]:
    """Seconds of the films, or what earlier runs noted where that is more: a run that goes on makes a part only."""
    earlier = known if isinstance(known, dict) else {}
    return {
        method: {pair: max(taken, float(earlier.get(method, {}).get(pair, 0.0))) for pair, taken in films.items()}
        for method, films in seconds.items()
    }


def costs(outcome: suites.Outcome) -> str:
    """Seconds a film of each method of ours, and the licences of our films and of what scored them, as text."""
    lines = [
        f"{method:<18} {sum(films.values()) / len(films):8.1f} s a film, tracking and fit included"
        for method, films in outcome.seconds.items()
        if films
    ]
    return "\n".join([*lines, *(outcome.licences.lines() if outcome.licences is not None else [])])
