"""Rows of a list of jobs: each is run once, by the worker that claims it, on any machine that shares the disk."""

import csv
import hashlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, Protocol, cast, runtime_checkable

from expportrait_cli.artifacts.files import atomic_path, write_json, write_text
from expportrait_cli.artifacts.texts import read_json
from expportrait_cli.errors import FAULT, OutOfMemoryError, UserError, known
from expportrait_cli.pages import link, page, table
from expportrait_cli.pipeline.pool import WorkerProcess, claim, notes, this_process
from expportrait_cli.runtime import Stage, silent

log = logging.getLogger(__name__)


@runtime_checkable
class Work(Protocol):
    """Protocol of a row's job: a `job.Job` (not imported here, which would be slow), or another kind of work."""

    @property
    def out(self) -> Path:
        """Path of the film, or another path that is unique to the row, and names it."""
        ...


Make = Callable[[Any, Stage], Any]
"""Function that does a job; by default `film.generate`."""
KILLED, TIMED_OUT = 128, 124
"""Exit codes, as in shells, of rows whose process was killed (plus the number of the signal), or took too long."""
LEFT = 75
"""Exit code of rows that were not run because no worker was left; the same command runs them."""
WAIT_S = 0.3
"""Time, s, between two looks for rows that are done or free."""


@dataclass(frozen=True)
class RowResult:
    """Outcome of a row."""

    exit_code: int
    """Exit code, as of the command line."""
    error: str
    """Message of the error; empty for a film that was made."""
    seconds: float
    attempts: int


@dataclass(frozen=True)
class Row:
    """One film of a list."""

    id: str
    """Stem of the names of the row's files."""
    job: Work

    @classmethod
    def of(cls, job: Work, folder: Path) -> "Row":
        """Make a row whose id depends on its output only, so that it keeps its files when the list changes."""
        place = os.path.relpath(job.out, folder)
        return cls(f"{job.out.stem[:60]}-{hashlib.sha256(place.encode('utf-8', 'replace')).hexdigest()[:8]}", job)


def run_row(job: Work, report: Stage = silent, make: Make | None = None) -> RowResult:
    """Do one job; an error becomes the exit code with which the command line would end."""
    since = perf_counter()
    code, reason = 0, ""
    try:
        if make is None:
            from expportrait_cli.pipeline import film

            make = cast(Make, film.generate)
        make(job, report)
    except Exception as error:
        # Any error ends only its row: the other rows must go on.
        mendable = known(error)
        if mendable is None:
            log.error("%s: a fault of the tool", job.out, exc_info=error)
        code, reason = (mendable.exit_code, str(mendable)) if mendable else (FAULT, f"{type(error).__name__}: {error}")
    return RowResult(code, reason, round(perf_counter() - since, 3), 1)


def checked_row(job: Work) -> RowResult | None:
    """Check a row before its work begins: the result of one that would fail, or None."""
    from expportrait_cli.painting.stage import choose
    from expportrait_cli.pipeline.job import behind_normals, check

    try:
        found = behind_normals(cast(Any, job))
        check(found)
        choose(found.generate)
    except UserError as error:
        return RowResult(error.exit_code, str(error), 0.0, 0)
    return None


@dataclass(frozen=True)
class Task:
    """A row's job, for a separate process."""

    job: Work
    log: Path
    make: Make | None


def make_in_process(task: Task) -> RowResult:
    """Do a row's job in a separate process, whose output and log go to the row's log file."""
    task.log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(task.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    own = logging.getLogger("expportrait_cli")
    said = logging.StreamHandler(open(2, "w", closefd=False, encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115
    said.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    own.handlers = [notes, said]
    own.setLevel(logging.INFO)

    def begin(name: str) -> Callable[[int, int | None], None]:
        own.info("%s", name)
        return lambda done, total: None

    return run_row(task.job, begin, task.make)


@dataclass(frozen=True)
class Batch:
    """Rows that workers divide among themselves by files in `folder`; can be sent to other machines."""

    folder: Path
    """Folder with, for each row, ID.claim (a folder) while a worker has it, ID.json with its state, and ID.log."""
    rows: tuple[Row, ...]
    since: float
    """Beginning of this run by the clock of the folder's disk; results of earlier runs do not count."""
    retries: int = 2
    """Further attempts at a row whose process was killed, or ran out of memory."""
    timeout_s: float | None = None
    threads: int = 1
    heartbeat_s: float = 5.0
    stale_s: float = 60.0
    """Age of the last heartbeat, s, from which on a claim is void."""
    make: Make | None = None

    def state(self, row: Row) -> dict[str, Any]:
        """Read the state of a row in this run; empty if there is none."""
        path = self.folder / f"{row.id}.json"
        try:
            found = read_json(path) if path.stat().st_mtime >= self.since else {}
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def result(self, row: Row) -> RowResult | None:
        """Read the result of a row in this run; None if there is none yet."""
        state = self.state(row)
        if state.get("state") != "done":
            return None
        return RowResult(**{field.name: state[field.name] for field in fields(RowResult)})

    def write(self, row: Row, state: Literal["running", "done"], result: RowResult) -> None:
        """Write the state of a row."""
        content = {"id": row.id, "output": str(row.job.out), "state": state, "by": this_process(), **asdict(result)}
        write_json(self.folder / f"{row.id}.json", content)

    def results(self) -> list[RowResult]:
        """List the results of all rows; a row that was not run has the exit code `LEFT`."""
        left = RowResult(LEFT, "no worker was left to make it. Run the same command again.", 0.0, 0)
        return [self.result(row) or left for row in self.rows]


@runtime_checkable
class Maker(Protocol):
    """Protocol of what runs tasks: a `WorkerProcess`, or this process."""

    def run(self, task: Task, *, timeout_s: float | None, is_over: Callable[[], bool]) -> RowResult | int:
        """Run a task; returns what `WorkerProcess.run` returns."""
        ...

    def stop(self) -> None:
        """Stop the process that runs the tasks; does nothing where they run in this process."""
        ...


def work(
    batch: Batch,
    index: int = 0,
    is_over: Callable[[], bool] = lambda: False,
    process: Maker | None = None,
    on_done: Callable[[Row, RowResult], None] = lambda row, result: None,
) -> None:
    """Run rows that no other worker has claimed, until all rows of the batch are done.

    `index`: number of the worker; each begins at another row. If a worker dies, others take over its row. Rows are run
    in a separate process, unless `process` is given. `on_done` is called for each row when it is done.

    Raises:
        Stopped: `is_over` became true.
    """
    begin = index % max(len(batch.rows), 1)
    pending = [*batch.rows[begin:], *batch.rows[:begin]]
    process = process or WorkerProcess(make_in_process, threads=batch.threads)
    try:
        while pending and not is_over():
            left = [row for row in pending if not _try(batch, row, process, is_over, on_done)]
            if len(left) == len(pending):
                time.sleep(WAIT_S)
            pending = left
    finally:
        process.stop()


def _try(
    batch: Batch,
    row: Row,
    process: Maker,
    is_over: Callable[[], bool],
    on_done: Callable[[Row, RowResult], None],
) -> bool:
    """Run a row if it is free; True if it is done, by this or another worker."""
    result = batch.result(row)
    if result is None and not is_over():
        path = batch.folder / f"{row.id}.claim"
        with claim(path, heartbeat_s=batch.heartbeat_s, stale_s=batch.stale_s) as is_free:
            # Before the claim, another worker may have finished the row.
            result = batch.result(row) if is_free else None
            if is_free and result is None:
                result = attempted(batch, row, process, is_over)
                batch.write(row, "done", result)
    if result is not None:
        on_done(row, result)
    return result is not None


def attempted(batch: Batch, row: Row, process: Maker, is_over: Callable[[], bool]) -> RowResult:
    """Run a row, and again if its process was killed or ran out of memory; attempts of dead workers count too."""
    earlier = batch.state(row).get("attempts", 0)
    attempts, result = earlier if isinstance(earlier, int) else 0, None
    since = perf_counter()
    while attempts <= batch.retries and (result is None or _is_worth_another(result)):
        attempts += 1
        batch.write(row, "running", RowResult(0, "", 0.0, attempts))
        task = Task(row.job, batch.folder / f"{row.id}.log", batch.make)
        ended = process.run(task, timeout_s=batch.timeout_s, is_over=is_over)
        if isinstance(ended, RowResult):
            result = ended
        elif ended:
            result = RowResult(
                KILLED + ended, f"its process was killed (signal {ended}), perhaps by a full memory.", 0.0, 0
            )
        else:
            result = RowResult(TIMED_OUT, f"it took more than {batch.timeout_s:g} s (`timeout`).", 0.0, 0)
    if result is None:
        result = RowResult(KILLED + 9, f"the workers that tried it died, {attempts} in all.", 0.0, 0)
    return replace(result, attempts=attempts, seconds=round(perf_counter() - since, 3))


def _is_worth_another(result: RowResult) -> bool:
    return result.exit_code == OutOfMemoryError.exit_code or result.exit_code > KILLED


KEPT = ("exit_code", "error", "seconds", "attempts", "by")


def status(batch: Batch) -> list[dict[str, Any]]:
    """List the state of each row (waiting, running, interrupted, done or failed), from the last run that reached it."""
    rows = []
    for row in batch.rows:
        state = replace(batch, since=0.0).state(row)
        found = {"id": row.id, "output": str(row.job.out), "state": state.get("state", "waiting")}
        if found["state"] == "running" and not (batch.folder / f"{row.id}.claim").exists():
            found["state"] = "interrupted"
        if found["state"] == "done" and state.get("exit_code"):
            found["state"] = "failed"
        rows.append({**found, **{name: state.get(name, "") for name in KEPT}})
    return rows


def write_summary(batch: Batch, folder: Path) -> Path:
    """Write `summary.csv`, and `summary.html` with links to films and logs; returns the page."""
    rows = status(batch)
    with atomic_path(folder / "summary.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["id", "output", "state", *KEPT])
        writer.writeheader()
        writer.writerows(rows)
    done, failed = (sum(row["state"] == state for row in rows) for state in ("done", "failed"))
    heads = [("", "film"), ("", "state"), ("n", "exit code"), ("n", "seconds"), ("n", "attempts")]
    heads += [("", "error"), ("", "log")]
    cells = []
    for row in rows:
        log_link = ""
        if (batch.folder / f"{row['id']}.log").is_file():
            log_link = link("log", f"{os.path.relpath(batch.folder, folder)}/{row['id']}.log")
        film_link = link(Path(row["output"]).name, os.path.relpath(row["output"], folder))
        figures = [str(row[name]) for name in ("exit_code", "seconds", "attempts", "error")]
        cells.append([film_link, row["state"], *figures, log_link])
    title = f"{done} of {len(rows)} films made, {failed} failed"
    path = folder / "summary.html"
    write_text(path, page(title, {"": [table(heads, cells)]}))
    return path
