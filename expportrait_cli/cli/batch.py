"""`expportrait batch`: many films from one list; a job that fails does not stop the others."""

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from expportrait_cli.cli import options
from expportrait_cli.cli.boundary import Display
from expportrait_cli.cli.options import launched
from expportrait_cli.errors import InputError, UsageError

log = logging.getLogger(__name__)


def batch(
    jobs: Annotated[Path, typer.Argument(metavar="JOBS", help="CSV with a header line, or JSONL.", show_default=False)],
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Folder for films whose row names no output."),
    ] = None,
    part: Annotated[
        str,
        typer.Option(
            metavar="I/N",
            help="Only every N-th film, from the I-th on: one call for each GPU, with its CUDA_VISIBLE_DEVICES.",
        ),
    ] = "1/1",
    as_json: options.Json = False,
) -> None:
    """Make one film a row: columns reference, driving, output, and any setting by its name (size, region, ...).

    Paths are taken relative to the list. Several faces in a picture need a choice (column face or driving_face). Run
    the same list again to make only what is missing.
    """
    options.existing(jobs)
    if (count := launched()) > 1:
        raise UsageError(
            f"{count} processes were launched, and each would make every film. Start one for each GPU, with its "
            f"CUDA_VISIBLE_DEVICES and its share of the list: --part 1/{count}, --part 2/{count}, ..."
        )
    from expportrait_cli.artifacts.guard import check_outputs
    from expportrait_cli.cli.boundary import known, say_fault
    from expportrait_cli.errors import FAULT
    from expportrait_cli.pipeline import film
    from expportrait_cli.pipeline.joblist import part_of, read_jobs

    work = part_of(read_jobs(jobs, out or Path(), shared=jobs.with_name(f"{jobs.stem}.work")), part)
    check_outputs([path for job in work for path in job.outputs()], [jobs, *(p for job in work for p in job.inputs())])
    rows = []
    for number, job in enumerate(work, 1):
        log.info("%d of %d: %s", number, len(work), job.out)
        try:
            options.writable(job.out.parent)
            with Display() as display:
                film.generate(job, display.stage)
        except Exception as error:
            # Whatever one job dies of, the next may be fine: this is the loop that the promise is about.
            mendable = known(error)
            if mendable is None:
                say_fault(error)
            code, reason = (
                (mendable.exit_code, str(mendable)) if mendable else (FAULT, f"{type(error).__name__}: {error}")
            )
            rows.append({"output": str(job.out), "exit_code": code, "error": reason})
        else:
            rows.append({"output": str(job.out), "exit_code": 0})
            if not as_json:
                typer.echo(str(job.out))
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    failed = [row for row in rows if row["exit_code"]]
    for row in failed:
        log.error("%s: %s", row["output"], row["error"])
    if failed:
        error = InputError(f"{len(failed)} of {len(rows)} films failed; they are listed above.")
        error.exit_code = failed[0]["exit_code"]
        raise error
