"""Preparation of a dataset from a folder of videos: clips are cut out, checked, tracked and fitted; with a page."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

from expportrait_cli.artifacts import guard
from expportrait_cli.config import PrepareConfig
from expportrait_cli.dataset import dataset
from expportrait_cli.dataset.dataset import Row
from expportrait_cli.dataset.make import Plan, Setup, cut_out, finished, make, refused, scanned, worker_head
from expportrait_cli.dataset.sources import Source, find_sources, person_of
from expportrait_cli.dataset.summary import write_summary
from expportrait_cli.errors import FAULT, InputError, UsageError, UserError
from expportrait_cli.head import HeadName
from expportrait_cli.pipeline.executors import Place, spread
from expportrait_cli.pipeline.heads import head_by_name
from expportrait_cli.pipeline.pool import Workers
from expportrait_cli.runtime import Progress, Stage

log = logging.getLogger(__name__)

UPDATE_S, UPDATE_SHARE = 10.0, 0.05
"""Shortest time, s, between updates of `dataset.json`, and largest share of the time for them."""


@dataclass(frozen=True)
class Found:
    """Result of scanning a video: the clips to make, and the rows of rejected parts."""

    source: Source
    digest: str
    plans: tuple[Plan, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class ScanTask:
    """Task of scanning one video."""

    source: Source
    setup: Setup

    @property
    def out(self) -> Path:
        """Path of the video; identifies the task."""
        return self.source.path

    def person(self) -> str:
        """Name of the person that the video shows."""
        return person_of(self.source.relative)


def prepare(
    folder: Path, out: Path, config: PrepareConfig, stage: Stage, *, head_model: HeadName, place: Place
) -> dict[str, Any]:
    """Make or resume a dataset with the workers of `place`, which must share the disk. Returns a summary.

    Raises:
        InputError: there are no videos, `out` is a dataset of another folder, no clip is accepted, or the tool
            failed on some clips.
        WeightsError: the executor's package is not installed.
    """
    check_folder(folder, out)
    sources = find_sources(folder, skipped=out)
    setup = Setup(out, config, head_model)
    row_log = RowLog(setup, folder, head_by_name(head_model).name)
    is_here = place.executor == "local"
    with Workers(place.workers if is_here else 1) as workers:
        looked, plans = stage("look at the videos"), []
        tasks = [ScanTask(source, setup) for source in sources]
        if not is_here:
            tasks = _elsewhere(place, setup, tasks, look, looked, row_log)
        for done, (task, result) in enumerate(workers.run(look, tasks), 1):
            looked(done, len(tasks))
            if isinstance(result, Exception):
                row_log.fail(str(task.source.path), result)
            else:
                plans.append(result)
        todo = row_log.take(plans)
        made = stage("track and fit the clips")
        if not is_here:
            todo = _elsewhere(place, setup, todo, finish, made, row_log)
        for done, (plan, result) in enumerate(workers.run(finish, todo), 1):
            made(done, len(todo))
            if isinstance(result, Exception):
                row_log.fail(plan.row.name, result)
            else:
                row_log.add(result)
    return row_log.close()


T = TypeVar("T", ScanTask, Plan)


def _elsewhere(
    place: Place, setup: Setup, tasks: list[T], work: Callable[[T], Any], progress: Progress, row_log: "RowLog"
) -> list[T]:
    """Do tasks on other machines; returns those that ended, whose results can now be read from the disk."""
    lost = spread(place, setup.folder / "work" / "rows", tasks, partial(_row, work), progress)
    for name, error in lost.items():
        row_log.fail(str(name), RuntimeError(error))
    return [task for task in tasks if task.out not in lost]


def _row(work: Callable[[T], Any], task: T, stage: Stage) -> None:
    work(task)


def look(task: ScanTask) -> Found:
    """Scan a video and cut its clips out, in a worker. A video that cannot be read gets a row with the reason."""
    source, setup = task.source, task.setup
    try:
        found = scanned(source, setup)
        plans = cut_out(source, found, setup, person=task.person())
    except InputError as error:
        row = unreadable(task, str(error))
        return Found(source, "", (), (row,))
    return Found(
        source,
        found.digest,
        tuple(plan for plan in plans if plan.row.status == "accepted"),
        tuple(plan.row for plan in plans if plan.row.status == "rejected"),
    )


def unreadable(task: ScanTask, reason: str) -> Row:
    """Make the row of a video that cannot be read."""
    return Row(
        name="",
        person=task.person(),
        source=task.source.relative.as_posix(),
        source_sha256="",
        first_frame=0,
        frames=0,
        rate="0",
        status="rejected",
        reason=reason,
        head_model=worker_head(task.setup.head_name).name,
    )


def finish(plan: Plan) -> Row:
    """Track and fit one clip, in a worker; an InputError rejects the clip."""
    try:
        return make(plan)
    except InputError as error:
        return refused(plan, str(error), plan.row.figures)


def check_folder(folder: Path, out: Path) -> None:
    """Refuse a dataset that was made from another folder, whose clips would be dropped silently.

    Raises:
        InputError: it was made from another folder.
        UsageError: `out` is the folder of videos itself.
    """
    if folder.exists() and out.exists() and out.samefile(folder):
        raise UsageError(f"{out} holds the videos. Name another folder for the set with -o.")
    guard.check([out / "index.html"])
    if not (out / dataset.FILE).is_file():
        return
    made_from = Path(dataset.read(out)["folder"])
    if made_from.exists() and folder.exists() and not made_from.samefile(folder):
        raise InputError(f"{out} was made from {made_from}, not from {folder}. Name another folder with -o.")


class RowLog:
    """Collects the rows of a run, and writes them to `dataset.json`."""

    def __init__(self, setup: Setup, folder: Path, head_name: str) -> None:
        self._setup, self._folder, self._head_name = setup, folder, head_name
        self._rows: list[Row] = []
        self._failed: list[str] = []
        self._next = 0.0

    def take(self, found: list[Found]) -> list[Plan]:
        """Add the rows that are final, and return the clips still to be made; copies of a video are rejected."""
        first: dict[str, str] = {}
        todo: list[Plan] = []
        for each in sorted(found, key=lambda each: str(each.source.relative)):
            twin = first.setdefault(each.digest, each.source.relative.as_posix()) if each.digest else None
            own = each.source.relative.as_posix()
            if twin not in (None, own):
                # A copy could be on the other side of a split, so that training data were tested on.
                rows = [replace(plan.row, status="rejected", reason=f"a copy of {twin}") for plan in each.plans]
                self._rows += [*rows, *each.rows]
                continue
            self._rows += each.rows
            for plan in each.plans:
                row = finished(plan)
                if row is None:
                    todo.append(plan)
                else:
                    self._rows.append(row)
        self._write(complete=False)
        return todo

    def add(self, row: Row) -> None:
        """Add the row of a clip; the file is written at most every few seconds."""
        self._rows.append(row)
        if monotonic() > self._next:
            self._write(complete=False)

    def fail(self, name: str, error: Exception) -> None:
        """Record a fault of the tool, so that other clips go on; errors that concern all clips are raised."""
        if isinstance(error, UserError | MemoryError):
            raise error
        log.error("%s", name, exc_info=error)
        self._failed.append(name)

    def close(self) -> dict[str, Any]:
        """Write `dataset.json` and the page; returns a summary.

        Raises:
            InputError: some clips failed, or none was accepted.
        """
        self._write(complete=not self._failed)
        out = self._setup.folder
        write_summary(out, self._sorted())
        accepted = [row for row in self._rows if row.status == "accepted"]
        if self._failed:
            error = InputError(
                f"{len(self._failed)} videos or clips met a fault of the tool, which is listed above: "
                f"{', '.join(self._failed[:3])}. The others are done."
            )
            error.exit_code = FAULT
            raise error
        if not accepted:
            raise InputError(
                f"None of {len(self._rows)} stretches of video was accepted: {out / 'index.html'} lists why."
            )
        persons = {row.person for row in accepted}
        if len(persons) == 1:
            log.warning("All clips count as one person, %s: such a set cannot be split by person.", *persons)
        return {
            "accepted": len(accepted),
            "rejected": len(self._rows) - len(accepted),
            "persons": len(persons),
            "frames": sum(row.frames for row in accepted),
            "summary": str(out / "index.html"),
        }

    def _sorted(self) -> list[Row]:
        return sorted(self._rows, key=lambda row: (row.source, row.first_frame))

    def _write(self, *, complete: bool) -> None:
        since = monotonic()
        dataset.write(
            self._setup.folder,
            self._sorted(),
            source=self._folder,
            head_model=self._head_name,
            settings=asdict(self._setup.config),
            complete=complete,
        )
        now = monotonic()
        self._next = now + max(UPDATE_S, (now - since) / UPDATE_SHARE)
