"""The plan of a run: results that exist, stages to run, weights, and estimates of memory and time."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.files import content_hash, sha256
from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import HeadFit, Tracking
from expportrait_cli.config import Stretch
from expportrait_cli.detect.crop import shape_of
from expportrait_cli.head import HeadModel
from expportrait_cli.media.image import is_image
from expportrait_cli.media.stretch import frames_of
from expportrait_cli.media.video import frame_count, probe
from expportrait_cli.painting.stage import Choice, choose, painter_of
from expportrait_cli.pipeline import steps
from expportrait_cli.pipeline.heads import head_model_of, kind_of_head, model_file, tracking_head
from expportrait_cli.pipeline.job import Job, behind_normals, check
from expportrait_cli.pipeline.performance import CurvesFile, OffsetSource, representation_of
from expportrait_cli.pipeline.provenance import network_of, read_record
from expportrait_cli.retargeting.stage import same_person
from expportrait_cli.weights.catalogue import catalogue, locate

SECONDS = {
    "track the photo": (1.3, 0.0),
    "track the driver": (0.6, 0.055),
    "fit the head": (8.0, 0.0),
    "fit the driver's frames": (1.5, 0.3),
    "transfer": (0.6, 0.037),
    "paint the film": (0.8, 0.1),
    "draw the control": (1.0, 0.1),
    "draw the grid": (1.0, 0.155),
    "write the report": (2.0, 0.115),
}
"""Seconds of a stage, and for each frame, at 512 px and standard quality: measured with 25 films of 1 to 178 frames on
an idle server with two cores and no GPU."""
PAINTED = 512
"""Size, px, of the films that `SECONDS` were measured with."""
MEMORY = 1.5
"""Main memory, GB, for a film of any length whose painter is not a Wan transformer: its process was measured to take
1.0 to 1.3, and ffmpeg takes the rest."""
GB = 1 << 30


@dataclass(frozen=True)
class Found:
    """The state of a job before a run, as `look` finds it."""

    hashes: dict[str, str]
    """Hashes of the inputs, by role."""
    known: Mapping[str, Any]
    """Run record of the existing film; empty without one."""
    table: CurvesFile
    painter: Choice
    key: str
    """Key of the film that is to be made."""
    is_current: bool
    """True if the film, and all files wanted beside it, exist and are up to date."""


def look(job: Job, kinds: tuple[str, str]) -> Found:
    """Find the inputs that a (checked) job depends on, and whether its film is up to date.

    Raises:
        WeightsError, UsageError: the painter is not installed, or its settings do not fit.
    """
    hashes = {"reference": content_hash(job.reference), "driving": content_hash(job.driving)}
    record = read_record(job.record)
    table = CurvesFile.of(job.curves, job.meshes, _strings(record.get("curves_written")))
    if edited := table.edited():
        hashes["curves"] = edited
    painter = choose(job.generate) if not job.show_control else Choice("proxy")
    key = film_key(job, hashes, painter.identity)
    # Meshes that this run makes have the representation of the settings.
    painter.check_shown(representation_of(job.driving) if kinds[1] == "meshes" else job.transfer.representation)
    known = record if _is_made(job.out, record.get("sha256")) and not job.show_control else {}
    return Found(hashes, known, table, painter, key, known.get("key") == key and _has_beside(job, known))


def _is_made(path: Path, digest: Any) -> bool:
    return path.is_file() and sha256(path) == digest


def _has_beside(job: Job, known: Mapping[str, Any]) -> bool:
    """True if all files wanted beside the film exist, unchanged since the run with record `known`."""
    beside = known.get("beside")
    hashes = beside if isinstance(beside, dict) else {}
    wanted = {job.grid_path: job.grid, job.report: job.with_report, job.curves: job.curves is not None}
    return all(_is_made(path, hashes.get(path.name)) for path, is_wanted in wanted.items() if is_wanted and path)


def _strings(found: Any) -> list[str]:
    return [str(each) for each in found] if isinstance(found, list) else []


def film_key(job: Job, hashes: Mapping[str, str], painter: Mapping[str, str]) -> str:
    """Key of a film: a hash of inputs, settings, painter, networks of the fit, and the revisions of all stages."""
    networks = {row["name"]: row["sha256"] for row in network_of(job.fit)}
    networks |= model_file(job.head_model or "anny")
    inputs = {**hashes, **painter, **networks, "revisions": json.dumps(steps.REVISIONS, sort_keys=True)}
    return str(steps.made_by("generate", job.settings(), inputs)["key"])


@dataclass(frozen=True)
class Step:
    """One stage of a plan."""

    name: str
    is_made: bool
    """True if the result of an earlier run is reused."""
    frames: int
    seconds: float
    """Estimated time; 0 if it is reused."""


@dataclass(frozen=True)
class Plan:
    """Stages, weights and estimates of a run."""

    film: Path
    steps: tuple[Step, ...]
    """Empty if the film is up to date."""
    painter: str
    weights: tuple[tuple[str, str, str], ...]
    """Name, licence, and path (or `missing`) of each."""
    memory_gb: float

    @property
    def seconds(self) -> float:
        """Estimated time of the whole run."""
        return sum(step.seconds for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        weights = [dict(zip(("name", "licence", "path"), row, strict=True)) for row in self.weights]
        return {
            "output": str(self.film),
            "up_to_date": not self.steps,
            "stages": [asdict(step) for step in self.steps],
            "painter": self.painter,
            "weights": weights,
            "memory_gb": round(self.memory_gb, 2),
            "minutes": round(self.seconds / 60, 2),
        }

    def lines(self) -> list[str]:
        """Format as lines of text."""
        if not self.steps:
            return [f"{self.film} is up to date: nothing is to do."]
        done = sum(step.is_made for step in self.steps)
        rows = [
            f"  {step.name:<24} {'reused' if step.is_made else f'about {step.seconds:.0f} s':<14} "
            f"{step.frames} frame{'s' * (step.frames != 1)}"
            for step in self.steps
        ]
        found = [f"  {name:<28} {licence:<14} {path}" for name, licence, path in self.weights]
        return [
            f"{self.film}: {len(self.steps) - done} of {len(self.steps)} stages to do, about {self.seconds / 60:.1f} "
            f"min and {self.memory_gb:.1f} GB, painted by {self.painter}",
            *rows,
            "weights:",
            *found,
        ]


def plan(job: Job) -> Plan:
    """Find what `film.generate` would do with a job, by the same checks and keys.

    Raises:
        UserError: as `film.generate`, for errors that can be found before the work.
    """
    job = behind_normals(job)
    kinds = check(job)
    found = look(job, kinds)
    shape = shape_of(job.generate.aspect, job.generate.size)
    if found.is_current:
        return Plan(job.out, (), found.painter.name, (), 0.0)
    # A picture of the conditions needs no weights.
    painter = painter_of(job.generate) if not job.show_control else None
    head = head_model_of(job, kinds)
    stages = tuple(_stages(job, kinds, found, head))
    memory = MEMORY
    if painter is not None and hasattr(painter, "cost"):
        cost, speed = painter.cost(shape[1], shape[0], stages[-1].frames)  # pyright: ignore[reportAttributeAccessIssue]
        memory = (cost.weights + cost.work) / GB
        painted = cost.flop / speed * cost.windows
        stages = tuple(_with_seconds(each, painted) if each.name == "paint the film" else each for each in stages)
    names = ("track", "fit", "transfer", "render", "generate", found.painter.name, kind_of_head(head.name))
    used = [weight for weight in catalogue() if set(weight.needed_by) & set(names)]
    rows = [(weight.name, weight.licence, str(locate(weight) or "missing")) for weight in used]
    rows += [(row["name"], row["licence"], "in the fit") for row in network_of(job.fit)]
    if found.painter.folder is not None:
        rows.append((found.painter.name, found.painter.licences[0]["licence"], str(found.painter.folder.path)))
    return Plan(job.control_picture if job.show_control else job.out, stages, found.painter.name, tuple(rows), memory)


def _with_seconds(step: Step, seconds: float) -> Step:
    return Step(step.name, step.is_made, step.frames, 0.0 if step.is_made else seconds)


def _stages(job: Job, kinds: tuple[str, str], found: Found, head: HeadModel) -> Iterator[Step]:
    """Yield the stages in order; the key of each follows from the keys of those before."""
    photo = driver = ""
    if kinds[0] != "head":
        photo, is_made = _tracking(job, "reference", found, head)
        yield _step("track the photo", _frames(job.reference, kinds[0], job.track.stretch), is_made)
    frames = _frames(job.driving, kinds[1], job.driving_stretch)
    if kinds[1] in ("photo", "clip"):
        driver, is_made = _tracking(job, "driving", found, head)
        yield _step("track the driver", frames, is_made)
    elif kinds[1] == "track":
        driver = found.hashes["driving"]
    head_key = found.hashes["reference"]
    if photo:
        header = steps.fit_header(job.fit, steps.fit_inputs([photo], driver))
        head_key = header["key"]
        yield _step("fit the head", 1, steps.is_current(job.work / "reference.head.npz", header))
    meshes_key = found.hashes["driving"]
    if kinds[1] != "meshes":
        fitted, is_made = _driver_fit(job, kinds, head, driver, frames)
        if fitted is not None:
            yield _step("fit the driver's frames", frames, is_made)
        source = OffsetSource.of(job.transfer, head.name, fitted if is_made else None)
        header = steps.transfer_header(source, head_key, driver, found.table.edited())
        meshes_key = header["key"]
        is_known = fitted is None or is_made
        yield _step("transfer", frames, is_known and steps.is_current(job.meshes, header))
    if job.show_control:
        yield _step("draw the control", frames, False)
        return
    painted = steps.painted_key(job.generate, head_key, meshes_key, found.painter.identity)
    area = (job.generate.size / PAINTED) ** 2
    yield _step("paint the film", frames, painted == found.known.get("painted"), area)
    if job.grid:
        yield _step("draw the grid", frames, False)
    if job.with_report:
        yield _step("write the report", frames, False)


def _tracking(job: Job, role: str, found: Found, head: HeadModel) -> tuple[str, bool]:
    """Return the key of a tracking, and True if it exists and is up to date."""
    _, config = job.tracked(role)
    header = steps.track_header(config, tracking_head(head).name, found.hashes[role])
    return header["key"], steps.is_current(job.tracking(role, header["key"]), header)


def _driver_fit(
    job: Job, kinds: tuple[str, str], head: HeadModel, driver: str, frames: int
) -> tuple[Path | None, bool]:
    """File of the fit to the driver's own frames (None if it is not needed), and True if it is up to date."""
    head_path = job.reference if kinds[0] == "head" else job.work / "reference.head.npz"
    tracking = job.driving if kinds[1] == "track" else job.tracking("driving", driver)
    # Without both files, it is not known whether the driver is the person, unless the user says so.
    is_known = head_path.is_file() and tracking.is_file()
    same = job.fit.same_person == "yes"
    if is_known:
        same = same_person(npz.load(HeadFit, head_path), npz.load(Tracking, tracking))
    if not steps.fits_driver(job.fit, job.transfer.method, frames, same=same):
        return None, False
    known = content_hash(head_path) if same and is_known else ""
    header = steps.fit_header(steps.driver_config(job.fit, head), steps.fit_inputs([driver], head=known))
    path = job.work / "driving.head.npz"
    return path, (not same or is_known) and steps.is_current(path, header)


def _step(name: str, frames: int, is_made: bool, area: float = 1.0) -> Step:
    once, each = SECONDS[name]
    return Step(name, is_made, frames, 0.0 if is_made else round(once + each * frames * area, 1))


def _frames(path: Path, kind: str, stretch: Stretch) -> int:
    if kind == "meshes":
        return Meshes.open(path).frame_count
    if kind == "track":
        return len(npz.load(Tracking, path).error)
    if is_image(path):
        return 1
    first, end = frames_of(stretch, probe(path).rate)
    return frame_count(path, start=first, end=end)
