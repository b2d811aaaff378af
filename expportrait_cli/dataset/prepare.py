"""A folder of videos to a set for training: clips cut out, judged, tracked and fitted, with a page that shows them."""

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
from expportrait_cli.dataset.make import Plan, Workshop, cut_out, finished, make, refused, scanned, worker_head
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
"""Least time between updates of `dataset.json`, and share of all time that they may take: it may be large."""


@dataclass(frozen=True)
class Found:
    """Results of the look at one video: the clips to make, and the rows of what is no clip."""

    source: Source
    digest: str
    plans: tuple[Plan, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Look:
    """The task of looking at one video."""

    source: Source
    shop: Workshop

    @property
    def out(self) -> Path:
        """Path of the video, which names the task."""
        return self.source.path

    def person(self) -> str:
        """Name of the person that the video shows."""
        return person_of(self.source.relative)


def prepare(
    folder: Path, out: Path, config: PrepareConfig, stage: Stage, *, head_model: HeadName, place: Place
) -> dict[str, Any]:
    """Make the set, or go on with it, with workers at `place`. Those of other machines need the same disk.

    Raises:
        InputError: no videos, a set of another folder, nothing accepted, or a fault in some clips.
        WeightsError: the executor's package is not installed.
    """
    check_folder(folder, out)
    sources = find_sources(folder, skipped=out)
    shop = Workshop(out, config, head_model)
    book = Book(shop, folder, head_by_name(head_model).name)
    is_here = place.executor == "local"
    with Workers(place.workers if is_here else 1) as workers:
        looked, plans = stage("look at the videos"), []
        tasks = [Look(source, shop) for source in sources]
        if not is_here:
            tasks = _elsewhere(place, shop, tasks, look, looked, book)
        for done, (task, result) in enumerate(workers.run(look, tasks), 1):
            looked(done, len(tasks))
            if isinstance(result, Exception):
                book.fail(str(task.source.path), result)
            else:
                plans.append(result)
        todo = book.take(plans)
        made = stage("track and fit the clips")
        if not is_here:
            todo = _elsewhere(place, shop, todo, finish, made, book)
        for done, (plan, result) in enumerate(workers.run(finish, todo), 1):
            made(done, len(todo))
            if isinstance(result, Exception):
                book.fail(plan.row.name, result)
            else:
                book.add(result)
    return book.close()


T = TypeVar("T", Look, Plan)


def _elsewhere(
    place: Place, shop: Workshop, tasks: list[T], work: Callable[[T], Any], progress: Progress, book: "Book"
) -> list[T]:
    """Have tasks done on other machines; those whose results are on the disk now, and come at once."""
    lost = spread(place, shop.folder / "work" / "rows", tasks, partial(_row, work), progress)
    for name, error in lost.items():
        book.fail(str(name), RuntimeError(error))
    return [task for task in tasks if task.out not in lost]


def _row(work: Callable[[T], Any], task: T, stage: Stage) -> None:
    work(task)


def look(task: Look) -> Found:
    """Scan a video and cut its clips out, in a worker. A video that cannot be read has a row that says so."""
    source, shop = task.source, task.shop
    try:
        found = scanned(source, shop)
        plans = cut_out(source, found, shop, person=task.person())
    except InputError as error:
        row = unreadable(task, str(error))
        return Found(source, "", (), (row,))
    return Found(
        source,
        found.digest,
        tuple(plan for plan in plans if plan.row.status == "accepted"),
        tuple(plan.row for plan in plans if plan.row.status == "rejected"),
    )


def unreadable(task: Look, reason: str) -> Row:
    """Row of a video that no clip can be taken from."""
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
        head_model=worker_head(task.shop.head_name).name,
    )


def finish(plan: Plan) -> Row:
    """Track and fit one clip, in a worker."""
    try:
        return make(plan)
    except InputError as error:
        return refused(plan, str(error), plan.row.figures)


def check_folder(folder: Path, out: Path) -> None:
    """Refuse a set that was made from another folder: its clips would be left out without a word.

    Raises:
        InputError: it was.
        UsageError: the set would lie among the videos, and be taken for some.
    """
    if folder.exists() and out.exists() and out.samefile(folder):
        raise UsageError(f"{out} holds the videos. Name another folder for the set with -o.")
    guard.check([out / "index.html"])
    if not (out / dataset.FILE).is_file():
        return
    made_from = Path(dataset.read(out)["folder"])
    if made_from.exists() and folder.exists() and not made_from.samefile(folder):
        raise InputError(f"{out} was made from {made_from}, not from {folder}. Name another folder with -o.")


class Book:
    """The rows so far, and their file."""

    def __init__(self, shop: Workshop, folder: Path, head_name: str) -> None:
        self._shop, self._folder, self._head_name = shop, folder, head_name
        self._rows: list[Row] = []
        self._failed: list[str] = []
        self._next = 0.0

    def take(self, found: list[Found]) -> list[Plan]:
        """Enter everything that is settled, and return what is to be made; a copy of a video is left out."""
        first: dict[str, str] = {}
        todo: list[Plan] = []
        for each in sorted(found, key=lambda each: str(each.source.relative)):
            twin = first.setdefault(each.digest, each.source.relative.as_posix()) if each.digest else None
            own = each.source.relative.as_posix()
            if twin not in (None, own):
                # On both sides of a split it would be training on the test.
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
        """Enter a clip that was made or refused; the file follows at most every few seconds."""
        self._rows.append(row)
        if monotonic() > self._next:
            self._write(complete=False)

    def fail(self, name: str, error: Exception) -> None:
        """Note a fault of the tool, so that the others go on; what concerns all clips is raised."""
        if isinstance(error, UserError | MemoryError):
            raise error
        log.error("%s", name, exc_info=error)
        self._failed.append(name)

    def close(self) -> dict[str, Any]:
        """Write everything; the set's figures."""
        self._write(complete=not self._failed)
        out = self._shop.folder
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
            raise InputError(f"None of {len(self._rows)} stretches of video was taken: {out / 'index.html'} says why.")
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
            self._shop.folder,
            self._sorted(),
            source=self._folder,
            head_model=self._head_name,
            settings=asdict(self._shop.config),
            complete=complete,
        )
        now = monotonic()
        self._next = now + max(UPDATE_S, (now - since) / UPDATE_SHARE)
