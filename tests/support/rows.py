"""Fast rows of a batch: what they do instead of a film, and how workers are killed at it."""

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from expportrait_cli.errors import InputError
from expportrait_cli.pipeline.pool import disk_clock
from expportrait_cli.pipeline.rows import Batch, Row
from expportrait_cli.runtime import Stage

STEP_S = 0.02


@dataclass(frozen=True)
class Line:
    """As much of a job as rows look at; its reference's name says what goes wrong."""

    reference: Path
    out: Path


def make(job: Line, stage: Stage) -> None:
    """Write a line; `kill-2` kills the process of the first two attempts, `bad` is refused."""
    if job.out.exists():
        # As a film: a worker that died after it had made one, and before it could say so, leaves it to be found.
        return
    begun = job.out.with_suffix(".begun")
    with begun.open("a") as file:
        file.write(f"{os.getpid()}\n")
    attempts = len(begun.read_text().splitlines())
    name = job.reference.stem
    if name == "bad":
        raise InputError(f"{job.reference} shows no face.")
    if name.startswith("kill-") and attempts <= int(name.removeprefix("kill-")):
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "slow":
        time.sleep(60)
    if name == "memory":
        raise MemoryError
    time.sleep(STEP_S)
    with job.out.open("a") as file:
        file.write(json.dumps({"row": job.out.stem}) + "\n")


def batch_of(folder: Path, names: list[str], **details) -> Batch:
    """Rows whose references have these names."""
    rows = folder / "list.work" / "rows"
    rows.mkdir(parents=True, exist_ok=True)
    jobs = [Line(folder / f"{name}.png", folder / f"{n:03d}.mp4") for n, name in enumerate(names)]
    listed = tuple(Row.of(job, folder) for job in jobs)
    return Batch(rows, listed, since=disk_clock(rows), make=make, **{"heartbeat_s": 0.2, "stale_s": 2.0, **details})


def painted(batch: Batch) -> list[int]:
    """How often each row was made to its end."""
    return [len(row.job.out.read_text().splitlines()) if row.job.out.exists() else 0 for row in batch.rows]
