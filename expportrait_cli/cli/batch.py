"""`expportrait batch`: many films from one list; a job that fails does not stop the others."""

import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from expportrait_cli.cli import options
from expportrait_cli.cli.boundary import Display, as_options, output, say, shown
from expportrait_cli.cli.command import COLUMNS
from expportrait_cli.cli.options import RUN, launched
from expportrait_cli.errors import InputError, UsageError, UserError
from expportrait_cli.runtime import cpu_count

if TYPE_CHECKING:
    from expportrait_cli.pipeline.job import Job
    from expportrait_cli.pipeline.rows import Batch, Row, RowResult, Task

log = logging.getLogger(__name__)

SUMMARIES = ("summary.csv", "summary.html")
"""Files about all films, in JOBS.work."""
ExecutorName = Annotated[
    Literal["local", "ray", "slurm"],
    typer.Option(help="Where the workers run: on this machine, on a Ray cluster (RAY_ADDRESS), or as Slurm jobs."),
]
SlurmOptions = Annotated[
    str,
    typer.Option(
        metavar="KEY=VALUE,...", help="Options of Slurm jobs, such as partition=gpu,gpus_per_node=1,timeout_min=240."
    ),
]


def batch(
    ctx: options.Context,
    jobs: Annotated[
        str,
        typer.Argument(
            metavar="JOBS",
            help="A list: .csv, .tsv, .xlsx or .jsonl. Or a pattern of photos in quotes, such as 'photos/*.jpg'.",
            show_default=False,
        ),
    ],
    *,
    driving: Annotated[
        str,
        typer.Option(
            "--driving",
            "-d",
            metavar="PATTERN",
            help="Pattern of clips, for a pattern of photos: each clip drives each photo.",
        ),
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Folder for films whose row has no output."),
    ] = None,
    executor: ExecutorName = "local",
    workers: Annotated[int, typer.Option(min=1, help="Number of films that are made at a time.")] = 1,
    retries: Annotated[
        int, typer.Option(min=0, help="Further attempts at a film whose process was killed or ran out of memory.")
    ] = 2,
    timeout: Annotated[
        float | None, typer.Option(min=1, help="Longest time for a film, s.", show_default=False)
    ] = None,
    slurm: SlurmOptions = "",
    status: Annotated[
        bool, typer.Option("--status", help="Only list the state of each film.", rich_help_panel=RUN)
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only check all rows, and say what each would take.", rich_help_panel=RUN),
    ] = False,
    part: Annotated[
        str,
        typer.Option(
            metavar="I/N",
            help="Only every N-th film, from the I-th on: one call for each GPU, with its CUDA_VISIBLE_DEVICES.",
        ),
    ] = "1/1",
    as_json: options.Json = False,
) -> None:
    """Make one film for each row: columns reference, driving, output, and any setting by its name (size, region, ...).

    Paths are taken relative to the list. Several faces in a picture need a choice (column face or driving_face). Run
    the same list again to make only what is missing; on machines that share the disk it may run at the same time. The
    folder JOBS.work has the state and the log of each film, and summary.html.
    """
    if (count := launched()) > 1:
        raise UsageError(
            f"{count} processes were launched, and each would make every film. Start one for each GPU, with its "
            f"CUDA_VISIBLE_DEVICES and its share of the list: --part 1/{count}, --part 2/{count}, ..."
        )
    from expportrait_cli.pipeline import rows
    from expportrait_cli.pipeline.pool import disk_clock

    in_processes = executor != "local" or workers > 1 or timeout is not None
    listing, jobs_of = _listed(jobs, driving, out or Path(), ctx.meta.get(COLUMNS, {}), absolute=in_processes)
    work = listing.with_name(f"{listing.stem}.work")
    from expportrait_cli.pipeline.joblist import part_of

    listed = tuple(rows.Row.of(job, listing.parent) for job in jobs_of(work))
    whole = rows.Batch((work / "rows").absolute(), listed, since=0.0)
    if status:
        _say_status(rows.status(whole), as_json=as_json)
        return
    found = replace(whole, rows=tuple(part_of(listed, part)))
    _check(found, listing)
    options.writable(found.folder)
    if dry_run:
        _say_plans(found, as_json=as_json)
        return
    found.folder.mkdir(parents=True, exist_ok=True)
    more = slurm_options(slurm, executor)
    threads = max(1, cpu_count() // workers) if executor == "local" else more.get("cpus_per_task", min(4, cpu_count()))
    found = replace(found, since=disk_clock(found.folder), retries=retries, timeout_s=timeout, threads=threads)
    on_done = partial(_tell, as_json=as_json)
    _refuse(found)
    if in_processes:
        from expportrait_cli.pipeline import executors

        executors.run(found, executor, workers, on_done, options=more)
    else:
        rows.work(found, process=_ThisProcess(len(found.rows)), on_done=on_done)
    rows.write_summary(whole, work)
    _report(found, as_json=as_json)


def _listed(
    jobs: str, driving: str, out: Path, defaults: dict[str, Any], *, absolute: bool
) -> tuple[Path, Callable[[Path], list["Job"]]]:
    """Return the path of the list (for patterns, where it would be), and what makes the jobs from a shared folder."""
    from expportrait_cli.pipeline.joblist import is_pattern, pattern_jobs, read_jobs

    if is_pattern(jobs):
        if not driving:
            raise UsageError(f"{jobs} is a pattern of photos: name the clips with --driving 'clips/*.mp4'.")
        folder = out.absolute() if absolute else out
        photos, clips = (str(Path(text).absolute()) if absolute else text for text in (jobs, driving))
        return folder / "batch", lambda work: pattern_jobs(photos, clips, folder, shared=work, defaults=defaults)
    if driving:
        raise UsageError("--driving needs a pattern of photos, such as 'photos/*.jpg': a list has its own clips.")
    path = options.existing(Path(jobs))
    path, folder = (path.absolute(), out.absolute()) if absolute else (path, out)
    return path, lambda work: read_jobs(path, folder, shared=work, defaults=defaults)


def _check(found: "Batch", listing: Path) -> None:
    """Refuse outputs that are inputs, of the same or another row; what concerns the whole list ends the command."""
    from expportrait_cli.artifacts.guard import check_foreign, check_outputs

    jobs = [cast("Job", row.job) for row in found.rows]
    inputs = [*([listing] if listing.exists() else []), *(path for job in jobs for path in job.inputs())]
    summaries = [found.folder.parent / name for name in SUMMARIES]
    check_outputs([*summaries, *(path for job in jobs for path in job.outputs())], inputs)
    check_foreign(summaries)


def _refuse(found: "Batch") -> None:
    """Check every row before the first film is made, and record those that cannot be made as failed."""
    from expportrait_cli.pipeline.rows import checked_row

    for row in found.rows:
        if (result := checked_row(row.job)) is not None:
            found.write(row, "done", result)
            log.error("%s: %s", row.job.out, result.error)


def _say_plans(found: "Batch", *, as_json: bool) -> None:
    """Say what each film would take, and which cannot be made; the first one's exit code is the command's."""
    from expportrait_cli.pipeline.plan import plan

    plans, failed = [], []
    for row in found.rows:
        try:
            plans.append(plan(cast("Job", row.job)))
        except UserError as error:
            log.error("%s: %s", row.job.out, error)
            failed.append(error)
    typer.echo(
        json.dumps([each.to_json() for each in plans], indent=2)
        if as_json
        else shown("\n".join(each.lines()[0] for each in plans), keep="\n")
    )
    total = sum(each.seconds for each in plans) / 60
    say(f"{len(plans)} of {len(found.rows)} films can be made, in about {total:.1f} min one after the other.")
    if failed:
        refusal = InputError(f"{len(failed)} of {len(found.rows)} films cannot be made; they are listed above.")
        refusal.exit_code = failed[0].exit_code
        raise refusal


def slurm_options(text: str, executor: str) -> dict[str, Any]:
    """Parse the parameters of Slurm jobs, by name; whole numbers become `int`."""
    if text and executor != "slurm":
        raise UsageError("--slurm needs --executor slurm: add it, or leave out --slurm.")
    found: dict[str, Any] = {}
    for pair in filter(None, text.split(",")):
        name, is_pair, value = pair.partition("=")
        if not is_pair:
            raise UsageError(f"--slurm {pair}: expected KEY=VALUE, such as partition=gpu.")
        found[name.strip()] = int(value) if value.strip().isdecimal() else value.strip()
    return found


class _ThisProcess:
    """Runs rows in this process, with a display of their progress."""

    def __init__(self, count: int) -> None:
        self._count, self._number = count, 0

    def run(self, task: "Task", **_: Any) -> "RowResult":
        """Run a row."""
        from expportrait_cli.pipeline.rows import run_row

        self._number += 1
        log.info("film %d of %d: %s", self._number, self._count, task.job.out)
        with Display() as display:
            return run_row(task.job, display.stage, task.make)

    def stop(self) -> None:
        """Do nothing: there is no other process to stop."""


def _tell(row: "Row", result: "RowResult", *, as_json: bool) -> None:
    output.tell("row", **_as_json(row, result))
    if not as_json and result.exit_code == 0:
        typer.echo(str(row.job.out))


def _as_json(row: "Row", result: "RowResult") -> dict[str, Any]:
    return {"id": row.id, "output": str(row.job.out), **asdict(result), "error": as_options(result.error)}


def _say_status(found: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    counts = Counter(row["state"] for row in found)
    for row in found:
        said = f"exit code {row['exit_code']}: {row['error']}" if row["exit_code"] else row["by"]
        typer.echo(shown(f"{row['state']:<12} {row['output']}  {said}"))
    say(", ".join(f"{count} {state}" for state, count in counts.items()))


def _report(found: "Batch", *, as_json: bool) -> None:
    """Report what failed, and raise an error with the exit code of the first row that did."""
    results = list(zip(found.rows, found.results(), strict=True))
    if as_json:
        typer.echo(json.dumps([_as_json(row, result) for row, result in results], indent=2))
    failed = [(row, result) for row, result in results if result.exit_code]
    for row, result in failed:
        log.error("%s: %s", row.job.out, result.error)
    if failed:
        error = InputError(
            f"{len(failed)} of {len(results)} films failed; they are listed above, and in "
            f"{found.folder.parent / 'summary.html'}."
        )
        error.exit_code = failed[0][1].exit_code
        raise error
