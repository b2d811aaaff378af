"""Batches on a cluster of Ray with two nodes, and by submitit, with workers and a node killed on the way."""

import os
import random
import signal
from contextlib import suppress

import pytest
from support.rows import batch_of, painted

from expportrait_cli.pipeline import executors

pytestmark = pytest.mark.slow

NAMES = ["good"] * 43 + ["kill-1"] * 5 + ["bad"] * 2
"""Fifty rows: five kill the process that makes them, once; two cannot be made."""
EXPECTED = [0] * 48 + [3] * 2


def kill_one(batch):
    """Kill a process that has a row at present, and return it; None if none has."""
    claims = list(batch.folder.glob("*.claim/*"))
    random.shuffle(claims)
    for path in claims:
        # A claim may be over before it is read.
        with suppress(OSError):
            holder = int(path.read_text().split()[1])
            os.kill(holder, signal.SIGKILL)
            return holder
    return None


def run(batch, executor, meanwhile=lambda done: None, **details):
    told: list[str] = []

    def tell(row, result):
        told.append(row.id)
        meanwhile(len(told))

    executors.run(batch, executor, 3, tell, **details)
    assert sorted(told) == sorted(row.id for row in batch.rows)
    assert [result.exit_code for result in batch.results()] == EXPECTED
    assert painted(batch) == [int(code == 0) for code in EXPECTED]
    assert not list(batch.folder.glob("*.claim"))


def started(start):
    """Start a node, which Ray gives 30 s, whatever else the machine does."""
    for _ in range(3):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return pytest.skip("This machine is too busy to start a node of Ray within 30 s.")


def test_fifty_rows_on_a_cluster_whose_workers_and_node_die(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["tests", os.environ.get("PYTHONPATH", "")]))
    # A machine that is busy with other tests answers late.
    monkeypatch.setenv("RAY_health_check_timeout_ms", "15000")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # A node's dashboard and its store of a third of the memory are what takes long to start, and rows use neither.
    small = {"num_cpus": 2, "object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = started(lambda: cluster_utils.Cluster(initialize_head=True, head_node_args=small))
    node = started(lambda: cluster.add_node(**small))
    ray.init(address=cluster.address, log_to_driver=False)
    left = [10, 20, 30]

    def meanwhile(done: int) -> None:
        if left and done >= left[0]:
            left.pop(0)
            if left:
                kill_one(batch)
            else:
                cluster.remove_node(node, allow_graceful=False)

    batch = batch_of(tmp_path, NAMES, retries=4)
    try:
        run(batch, "ray", meanwhile)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert not left


def test_fifty_rows_by_slurms_stand_in_whose_workers_die(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["tests", os.environ.get("PYTHONPATH", "")]))
    batch, killed, left = batch_of(tmp_path, NAMES, retries=4), [], [5, 12, 20, 30, 40]

    def meanwhile(done: int) -> None:
        # Rows are short: at times none is being made.
        if left and done >= left[0] and kill_one(batch):
            killed.append(left.pop(0))

    run(batch, "slurm", meanwhile, options={"cluster": "local", "timeout_min": 5})
    # More kills than workers: jobs that ended too early are submitted again.
    assert len(killed) > 3
