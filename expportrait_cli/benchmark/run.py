"""Running a suite: inputs, films and scores of every pair are kept, so that a second run makes only what is missing."""

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from expportrait_cli.artifacts.files import content_hash
from expportrait_cli.benchmark.inputs import ENDINGS, Inputs, prepare
from expportrait_cli.benchmark.scores import SuiteScores
from expportrait_cli.benchmark.suite import Pair, Suite
from expportrait_cli.benchmark.variants import OWN, Making, PairFilms, Variant, variants
from expportrait_cli.errors import InputError, UserError
from expportrait_cli.evaluation import COLUMNS, evaluate
from expportrait_cli.evaluation.columns import Mode
from expportrait_cli.evaluation.scores import Scores, estimators, scores_from_json, versions
from expportrait_cli.pipeline import provenance
from expportrait_cli.pipeline.executors import Place, spread
from expportrait_cli.pipeline.provenance import LicenceMap, read_record, write_record
from expportrait_cli.runtime import Progress, Stage
from expportrait_cli.version import __version__

log = logging.getLogger(__name__)


@runtime_checkable
class Display(Protocol):
    """Protocol of displays of the progress of stages."""

    def stage(self, name: str) -> Progress:
        """Begin a stage."""
        ...


OpenDisplay = Callable[[], AbstractContextManager[Display]]


@dataclass(frozen=True)
class Plan:
    """Methods and pairs to measure, and the paths of all files."""

    suite: Suite
    work: Path
    variants: tuple[Variant, ...] = (OWN,)
    """Variants of the tool's films."""
    making: Making = field(default_factory=Making)
    """Settings of the tool's films."""
    given: dict[str, Path] = field(default_factory=dict)
    """Folders of films of other methods, by method."""

    @property
    def methods(self) -> dict[str, str]:
        """Methods with their descriptions; the tool's own come first."""
        own = {variant.name: variant.what for variant in self.variants}
        return own | dict.fromkeys(self.given, "films that another program made")

    def inputs(self, pair: Pair) -> Path:
        """Folder of the pair's photo and clip."""
        return self.work / "inputs" / pair.name

    def film(self, variant: Variant, pair: Pair) -> Path:
        """Path of a film of the tool."""
        return self.work / "films" / variant.name / f"{pair.name}.mp4"

    def scores(self, method: str, pair: Pair) -> Path:
        """Path of the scores of a film."""
        return self.work / "scores" / method / f"{pair.name}.json"


@dataclass(frozen=True)
class Outcome:
    """Results of a run."""

    scores: SuiteScores
    seconds: dict[str, dict[str, float]]
    """Seconds of the tool's films, by method and pair."""
    licences: LicenceMap | None
    """Licences of the weights of the tool's films, and of the estimators of the scores; None without scores."""


def plan(
    suite: Suite, work: Path, making: Making | None = None, *, ablation: bool, own: bool, given: dict[str, Path]
) -> Plan:
    """Plan a benchmark: choose the methods.

    Raises:
        InputError: there is no method, or two have the same name.
        WeightsError: as `variants.variants`.
    """
    making = making or Making()
    chosen = variants(ablation=ablation, making=making) if own else ()
    twice = {variant.name for variant in chosen} & set(given)
    if twice:
        raise InputError(
            f"{', '.join(sorted(twice))} is the name of a method of this tool. Give the other method another name."
        )
    if not chosen and not given:
        raise InputError("Nothing to score: `own=False` leaves our films out, and no `method` names others.")
    return Plan(suite, work, chosen, making, given)


@dataclass(frozen=True)
class Part:
    """One pair of a plan, as the job of a worker."""

    plan: Plan
    pair: Pair

    @property
    def out(self) -> Path:
        """Folder of the pair's inputs; identifies the part."""
        return self.plan.inputs(self.pair)


class _Log:
    """Display for workers, which writes to the log of their row."""

    def __init__(self, begin: Stage) -> None:
        self._begin = begin

    def stage(self, name: str) -> Progress:
        """Begin a stage."""
        return self._begin(name)


def make_part(part: Part, stage: Stage) -> None:
    """Make and measure one pair; `run` reads the results from the disk."""
    alone = replace(part.plan, suite=replace(part.plan.suite, pairs=(part.pair,)))
    run(alone, lambda: nullcontext(_Log(stage)))


def run_at(place: Place, plan: Plan, open_display: OpenDisplay) -> Outcome:
    """Make and measure what is missing with the workers of `place`, a row for each pair, and collect the results."""
    if place.executor == "local" and place.workers == 1:
        return run(plan, open_display)
    parts = [Part(plan, pair) for pair in plan.suite.pairs]
    with open_display() as display:
        lost = spread(place, plan.work / "rows", parts, make_part, display.stage("make and score the pairs"))
    return run(plan, open_display, {part.pair.name: lost[part.out] for part in parts if part.out in lost})


def run(plan: Plan, open_display: OpenDisplay, lost: Mapping[str, str] | None = None) -> Outcome:
    """Make and measure what is missing. A pair that fails is recorded, and the others go on.

    `lost`: pairs that are not tried, with reasons.
    """
    suite, total = plan.suite, len(plan.suite.pairs)
    rows: dict[str, dict[str, Any]] = {}
    scores: dict[str, dict[str, Scores]] = {method: {} for method in plan.methods}
    failed: dict[str, dict[str, str]] = {method: {} for method in plan.methods}
    seconds: dict[str, dict[str, float]] = defaultdict(dict)
    for number, pair in enumerate(suite.pairs, 1):
        log.info("%d of %d: %s", number, total, pair.name)
        rows[pair.name] = {"mode": pair.mode, "driving": pair.driving, "reference": pair.reference}
        with open_display() as display:
            try:
                if error := (lost or {}).get(pair.name):
                    raise InputError(error)
                inputs = prepare(suite, pair, plan.inputs(pair), display.stage("crop the pair"))
            except UserError as error:
                log.warning("%s is left out: %s", pair.name, error)
                for method in plan.methods:
                    failed[method][pair.name] = str(error)
                continue
            rows[pair.name] |= {"frames": inputs.frames, "photo": inputs.reference_hash, "clip": inputs.driving_hash}
            films = _Films(plan, pair, inputs, display)
            for method in plan.methods:
                try:
                    film = films.find(method)
                    scores[method][pair.name] = _scores(plan.scores(method, pair), pair, film, inputs, display)
                except UserError as error:
                    log.warning("%s has no scores of %s: %s", method, pair.name, error)
                    failed[method][pair.name] = str(error)
            for method, taken in films.seconds.items():
                seconds[method][pair.name] = taken
    found = _licences(plan, scores)
    terms = found.to_json() if found is not None else {}
    return Outcome(SuiteScores(suite.settings(), rows, plan.methods, scores, failed, terms), dict(seconds), found)


def _licences(plan: Plan, scores: dict[str, dict[str, Scores]]) -> LicenceMap | None:
    films = [Path(film.output) for variant in plan.variants for film in scores[variant.name].values()]
    maps = [found for found in map(provenance.of_film, films) if found is not None]
    behind = estimators(film for films in scores.values() for film in films.values())
    return provenance.with_estimators(provenance.together(maps), behind) if behind else None


class _Films:
    """The films of one pair, by method."""

    def __init__(self, plan: Plan, pair: Pair, inputs: Inputs, display: Display) -> None:
        self._plan, self._pair, self._display = plan, pair, display
        absolute = pair.mode == "self" or plan.suite.cross_absolute
        self._own = PairFilms(inputs, lambda variant: plan.film(variant, pair), plan.making, absolute=absolute)
        self.seconds: dict[str, float] = {}

    def find(self, method: str) -> Path:
        """Return the film of a method: a given one, or the tool's, which is made if it is missing."""
        folder, name = self._plan.given.get(method), self._pair.name
        if folder is not None:
            found = sorted(path for path in folder.iterdir() if path.stem == name and path.suffix.lower() in ENDINGS)
            if len(found) == 1:
                return found[0]
            raise InputError(f"{folder} has {len(found)} films named {name}, expected one, e.g. {name}.mp4.")
        variant = next(variant for variant in self._plan.variants if variant.name == method)
        made = self._own.make(variant, lambda name: self._display.stage(f"{method}: {name}"))
        self.seconds[method] = round(made.seconds, 3)
        return made.path


def _scores(path: Path, pair: Pair, film: Path, inputs: Inputs, display: Display) -> Scores:
    """Scores of a film; read from `path` if they are of the same film and inputs, otherwise measured."""
    key = _key(pair.mode, film, inputs)
    known = read_record(path)
    if known.get("key") == key:
        try:
            return scores_from_json(known["scores"])
        except (KeyError, TypeError, ValueError) as error:
            log.info("%s is damaged (%r). It is made again.", path, error)
    reference = inputs.reference if pair.mode == "cross" else None
    progress = display.stage(f"{path.parent.name}: evaluate")
    document = evaluate(film, inputs.driving, reference=reference, progress=progress).to_json()
    write_record(path, {"key": key, "scores": document})
    # Rounded as if read back, so that a resumed run has exactly the same figures.
    return scores_from_json(document)


def _key(mode: Mode, film: Path, inputs: Inputs) -> str:
    made_from = {
        "tool": __version__,
        "scores": Scores.VERSION,
        "columns": [asdict(column) for column in COLUMNS],
        "versions": versions(),
        "mode": mode,
        "film": content_hash(film),
        "driving": inputs.driving_hash,
        "reference": inputs.reference_hash,
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
