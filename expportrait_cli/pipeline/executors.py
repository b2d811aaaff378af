"""Executors of rows: workers are processes on this machine, actors of Ray, or an array of Slurm's jobs.

Workers share out the rows by themselves (`pool.claim`), so that none is lost when one dies. Whoever started them only
watches the folder.
"""

import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from expportrait_cli.errors import UsageError, WeightsError, one_line
from expportrait_cli.pipeline.pool import END_S, Stopped, disk_clock
from expportrait_cli.pipeline.rows import KILLED, LEFT, TIMED_OUT, WAIT_S, Batch, Make, Row, RowResult, Work, work
from expportrait_cli.runtime import DEVICE, Progress

log = logging.getLogger(__name__)

Executor = Literal["local", "ray", "slurm"]
Told = Callable[[Row, RowResult], None]
IsAlive = Callable[[], bool]
LOST = (LEFT, TIMED_OUT)


@dataclass(frozen=True)
class Place:
    """Place and number of the workers of a command."""

    executor: Executor = "local"
    workers: int = 1
    options: tuple[tuple[str, Any], ...] = ()
    """Parameters of a Slurm job."""


def spread(
    place: Place, folder: Path, jobs: Sequence[Work], make: Make, progress: Progress, *, retries: int = 2
) -> dict[Path, str]:
    """Do each job by `make`, a function of a module, which leaves its results on the disk that all machines share.

    What was killed or ran out of memory is tried again. Returns the errors of jobs that nobody could end, by the path
    that names them; whatever else a job raises, it raises again when it is asked for its results.

    Raises:
        WeightsError, UsageError: as `run`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows, done = tuple(Row.of(job, folder) for job in jobs), 0
    batch = Batch(folder, rows, since=disk_clock(folder), retries=retries, make=make)

    def told(row: Row, result: RowResult) -> None:
        nonlocal done
        done += 1
        progress(done, len(rows))

    run(batch, place.executor, place.workers, told, options=dict(place.options))
    results = zip(rows, batch.results(), strict=True)
    return {
        row.job.out: result.error for row, result in results if result.exit_code in LOST or result.exit_code > KILLED
    }


def run(batch: Batch, executor: Executor, workers: int, told: Told, *, options: dict[str, Any] | None = None) -> None:
    """Start workers, and tell of each row as it is done, until all are or no worker is left.

    `options` are submitit's parameters of a Slurm job, such as partition and gpus_per_node.

    Raises:
        WeightsError: the executor's package is not installed.
        UsageError: options that it does not have.
    """
    if executor == "slurm":
        started = _slurm(batch, workers, dict(options or {}))
    else:
        started = _ray(batch, workers) if executor == "ray" else _local(batch, workers)
    with started as is_alive:
        _watch(batch, told, is_alive)


def _watch(batch: Batch, told: Told, is_alive: IsAlive) -> None:
    left = list(batch.rows)
    while left:
        # Asked before the look: what the last worker wrote before it ended is seen by it.
        alive = is_alive()
        for row in list(left):
            if (result := batch.result(row)) is not None:
                left.remove(row)
                told(row, result)
        if not alive:
            return
        time.sleep(WAIT_S)


@contextmanager
def _local(batch: Batch, workers: int) -> Iterator[IsAlive]:
    over = threading.Event()

    def share(index: int) -> None:
        try:
            work(batch, index, over.is_set)
        except Stopped:
            log.debug("worker %d was stopped", index)

    with ThreadPoolExecutor(workers) as pool:
        shares = [pool.submit(share, index) for index in range(workers)]

        def is_alive() -> bool:
            for each in shares:
                if each.done():
                    # A fault of a worker is one of the tool.
                    each.result()
            return not all(each.done() for each in shares)

        try:
            yield is_alive
        finally:
            over.set()


class _Worker:
    """An actor. Ray starts it again, here or on another node, when its process or its node dies."""

    def work(self, batch: Batch, index: int) -> None:
        """Make rows."""
        work(batch, index)


@contextmanager
def _ray(batch: Batch, workers: int) -> Iterator[IsAlive]:
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from ray.exceptions import RayActorError  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise WeightsError("Ray is not installed. Install the tool with its extra: pip install '.[ray]'.") from None
    was_up = ray.is_initialized()
    if not was_up:
        # A cluster is named by RAY_ADDRESS; without it Ray starts one on this machine.
        variables = {"PYTHONPATH": os.pathsep.join(place for place in sys.path if place)}
        if device := os.environ.get(DEVICE):
            variables[DEVICE] = device
        ray.init(runtime_env={"env_vars": variables}, log_to_driver=False, configure_logging=False)
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    # Types of Ray know no classes with options.
    actor: Any = ray.remote(num_cpus=batch.threads, num_gpus=int(has_gpus), max_restarts=-1, max_task_retries=-1)(
        _Worker
    )
    actors: list[Any] = [actor.remote() for _ in range(workers)]
    shares = [each.work.remote(batch, index) for index, each in enumerate(actors)]

    def is_alive() -> bool:
        done, left = ray.wait(shares, num_returns=len(shares), timeout=0)
        for each in done:
            try:
                ray.get(each)
            except RayActorError as error:
                log.warning(
                    "A worker is gone, and Ray could not start it again: %s", " ".join(str(error).split())[:200]
                )
                shares.remove(each)
        return bool(left)

    try:
        yield is_alive
    finally:
        for each in actors:
            ray.kill(each)
        if not was_up:
            ray.shutdown()


@contextmanager
def _slurm(batch: Batch, workers: int, options: dict[str, Any]) -> Iterator[IsAlive]:
    try:
        import submitit  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise WeightsError(
            "submitit is not installed. Install the tool with its extra: pip install '.[slurm]'."
        ) from None
    # The stand-in on this machine serves where there is no Slurm, and tests.
    cluster = options.pop("cluster", "slurm")
    if cluster == "slurm" and shutil.which("srun") is None:
        raise UsageError(
            "`executor=slurm`: this machine has no srun. Give the command on a machine of the cluster, or leave it out."
        )
    try:
        executor = submitit.AutoExecutor(folder=batch.folder.parent / "slurm", cluster=cluster)
        executor.update_parameters(**{"name": "expportrait", "cpus_per_task": batch.threads, **options})
    except (RuntimeError, ValueError, TypeError, NameError) as error:
        raise UsageError(f"`slurm`: {one_line(error, 200).rstrip('.')}. Leave the option out, or mend it.") from error
    if cluster == "slurm":
        executor.update_parameters(slurm_array_parallelism=workers)
    jobs = executor.map_array(work, [batch] * workers, range(workers))
    try:
        yield lambda: not all(job.done() for job in jobs)
        # Once all rows are done, workers end by themselves; one that is cancelled at it would talk of an interruption.
        until = time.monotonic() + END_S
        while time.monotonic() < until and not all(job.done() for job in jobs):
            time.sleep(WAIT_S)
    finally:
        for job in jobs:
            if not job.done():
                job.cancel(check=False)
