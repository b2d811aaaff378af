"""Executors of rows: their workers are processes on this machine, Ray actors, or an array of Slurm jobs.

Workers claim rows by themselves (`pool.claim`), so that no row is lost if a worker dies. The process that started them
only watches the folder.
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
OnDone = Callable[[Row, RowResult], None]
IsAlive = Callable[[], bool]
LOST = (LEFT, TIMED_OUT)
"""Exit codes of rows that have no result of their own."""


@dataclass(frozen=True)
class Place:
    """Executor of a command, and number of its workers."""

    executor: Executor = "local"
    workers: int = 1
    options: tuple[tuple[str, Any], ...] = ()
    """Parameters of the Slurm jobs."""


def spread(
    place: Place, folder: Path, jobs: Sequence[Work], make: Make, progress: Progress, *, retries: int = 2
) -> dict[Path, str]:
    """Run `make`, a module's function, for each job; it writes its results to the disk that all machines share.

    Jobs that were killed or ran out of memory are tried again. Returns the errors of jobs that did not end by
    themselves (killed, timed out, or no worker left), by the job's path. Errors that a job raises are not returned.

    Raises:
        WeightsError, UsageError: as `run`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows, done = tuple(Row.of(job, folder) for job in jobs), 0
    batch = Batch(folder, rows, since=disk_clock(folder), retries=retries, make=make)

    def on_done(row: Row, result: RowResult) -> None:
        nonlocal done
        done += 1
        progress(done, len(rows))

    run(batch, place.executor, place.workers, on_done, options=dict(place.options))
    results = zip(rows, batch.results(), strict=True)
    return {
        row.job.out: result.error for row, result in results if result.exit_code in LOST or result.exit_code > KILLED
    }


def run(
    batch: Batch, executor: Executor, workers: int, on_done: OnDone, *, options: dict[str, Any] | None = None
) -> None:
    """Start workers, and call `on_done` for each row when it is done, until all are, or no worker is left.

    Workers that are killed are started again: by Ray without limit, as Slurm jobs up to `batch.retries` times each.

    `options`: submitit's parameters of the Slurm jobs, such as partition and gpus_per_node.

    Raises:
        WeightsError: the executor's package is not installed.
        UsageError: the executor does not have one of the options.
    """
    if executor == "slurm":
        started = _slurm(batch, workers, dict(options or {}))
    else:
        started = _ray(batch, workers) if executor == "ray" else _local(batch, workers)
    with started as is_alive:
        _watch(batch, on_done, is_alive)


def _watch(batch: Batch, on_done: OnDone, is_alive: IsAlive) -> None:
    left = list(batch.rows)
    while left:
        # Before the results are read, so that none is missed that the last worker wrote before it ended.
        alive = is_alive()
        for row in list(left):
            if (result := batch.result(row)) is not None:
                left.remove(row)
                on_done(row, result)
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
                    # Raises the exception of a worker, which is a fault of the tool.
                    each.result()
            return not all(each.done() for each in shares)

        try:
            yield is_alive
        finally:
            over.set()


class _Worker:
    """A Ray actor. Ray restarts it, on this or another node, if its process or node dies."""

    def work(self, batch: Batch, index: int) -> None:
        """Run rows, as the function `work`."""
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
        # Ray connects to the cluster RAY_ADDRESS; without it, it starts one on this machine.
        variables = {"PYTHONPATH": os.pathsep.join(place for place in sys.path if place)}
        if device := os.environ.get(DEVICE):
            variables[DEVICE] = device
        ray.init(runtime_env={"env_vars": variables}, log_to_driver=False, configure_logging=False)
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    # Ray's type hints do not cover classes with options.
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


def _submitting_again(executor: Any, batch: Batch, jobs: list[Any]) -> IsAlive:
    """Make the test whether a job is alive; it replaces jobs that were killed in `jobs`, `batch.retries` times each."""
    attempts = [0] * len(jobs)

    def is_alive() -> bool:
        for index, job in enumerate(jobs):
            # Without a result the job's process was killed. To ask submitit for the result would take 15 s then.
            if job.done() and attempts[index] < batch.retries and not job.paths.result_pickle.exists():
                log.warning("The job %s ended before its work was done, and is submitted again.", job.job_id)
                attempts[index] += 1
                jobs[index] = executor.submit(work, batch, index)
        return not all(job.done() for job in jobs)

    return is_alive


@contextmanager
def _slurm(batch: Batch, workers: int, options: dict[str, Any]) -> Iterator[IsAlive]:
    try:
        import submitit  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise WeightsError(
            "submitit is not installed. Install the tool with its extra: pip install '.[slurm]'."
        ) from None
    # submitit can also run the jobs on this machine, without Slurm; tests do so.
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
        yield _submitting_again(executor, batch, jobs)
        # Once all rows are done, workers end by themselves; a job that is cancelled then would log an interruption.
        until = time.monotonic() + END_S
        while time.monotonic() < until and not all(job.done() for job in jobs):
            time.sleep(WAIT_S)
    finally:
        for job in jobs:
            if not job.done():
                job.cancel(check=False)
