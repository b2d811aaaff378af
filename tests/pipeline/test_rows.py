"""Rows that are claimed, killed, retried and taken over; what they make is a line of text."""

import csv
import os
import socket
import threading
import time
from contextlib import ExitStack

import pytest
from support.rows import batch_of, painted

from expportrait_cli.pipeline import executors, pool
from expportrait_cli.pipeline.pool import claim
from expportrait_cli.pipeline.rows import LEFT, TIMED_OUT, Row, run_row, status, work, write_summary


def made(batch, executor="local", workers=2, **details):
    told = []
    executors.run(batch, executor, workers, lambda row, result: told.append((row.id, result)), **details)
    assert sorted(name for name, _ in told) == sorted(row.id for row in batch.rows)
    return batch.results()


@pytest.mark.slow
def test_what_is_killed_is_tried_again_and_what_is_wrong_is_not(tmp_path):
    batch = batch_of(tmp_path, ["good", "kill-1", "bad", "kill-9", "memory", "good"], retries=2)
    results = made(batch)
    assert [result.exit_code for result in results] == [0, 0, 3, 128 + 9, 5, 0]
    assert [result.attempts for result in results] == [1, 2, 1, 3, 3, 1]
    assert painted(batch) == [1, 1, 0, 0, 0, 1]
    assert "shows no face" in results[2].error and "signal 9" in results[3].error
    assert not list(batch.folder.glob("*.claim"))

    page = write_summary(batch, tmp_path)
    assert "3 of 6 films made, 3 failed" in page.read_text()
    with (tmp_path / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["exit_code"] for row in rows] == ["0", "0", "3", "137", "5", "0"]
    states = ["done", "done", "failed", "failed", "failed", "done"]
    assert [row["state"] for row in status(batch)] == states == [row["state"] for row in rows]


@pytest.mark.slow
def test_a_row_that_takes_too_long_is_ended(tmp_path):
    batch = batch_of(tmp_path, ["slow", "good"], timeout_s=8.0)
    results = made(batch, workers=1)
    assert [result.exit_code for result in results] == [TIMED_OUT, 0] and results[0].attempts == 1


def test_one_worker_at_a_time_has_a_claim(tmp_path):
    path, times = tmp_path / "a.claim", {"heartbeat_s": 0.1, "stale_s": 1.0}
    with claim(path, **times) as first:
        with claim(path, **times) as second:
            assert (first, second) == (True, False)
        time.sleep(1.5)
        # It is older than a claim may be, and the worker's heart beats.
        with claim(path, **times) as third:
            assert not third
    assert not path.exists()


def leave_claim(path, holder, time_s):
    """Leave the claim of a worker whose last sign of life was at `time_s`."""
    path.mkdir()
    (path / "0").write_text(holder)
    os.utime(path / "0", (time_s, time_s))


@pytest.mark.parametrize(
    ("holder", "age_s", "is_taken"),
    [
        ("process 1 on elsewhere x", 0, False),
        ("process 1 on elsewhere x", 100, True),
        (f"process {2**22 + 1} on {socket.gethostname()} x", 0, True),
        (f"process {os.getpid()} on {socket.gethostname()} x", 0, False),
    ],
    ids=("elsewhere", "elsewhere-stale", "dead", "alive"),
)
def test_claims_of_workers_that_are_gone_are_taken_over(tmp_path, holder, age_s, is_taken):
    path = tmp_path / "a.claim"
    leave_claim(path, holder, time.time() - age_s)
    with claim(path, heartbeat_s=5.0, stale_s=60.0) as has:
        assert has == is_taken
    assert path.exists() != is_taken and len(list(tmp_path.iterdir())) == (not is_taken)


def test_a_stale_claim_has_one_heir(tmp_path):
    path, heirs = tmp_path / "a.claim", []
    leave_claim(path, "process 1 on elsewhere x", 0)
    begin, all_tried = threading.Barrier(8), threading.Barrier(8)

    def take() -> None:
        begin.wait()
        with claim(path, heartbeat_s=5.0, stale_s=60.0) as has:
            heirs.append(has)
            # The heir keeps it until each of the others has tried.
            all_tried.wait()

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(heirs) == [False] * 7 + [True]
    assert not path.exists()


def test_a_slow_worker_does_not_take_what_was_taken_over_in_the_meantime(tmp_path, monkeypatch):
    path, times = tmp_path / "a.claim", {"heartbeat_s": 5.0, "stale_s": 60.0}
    leave_claim(path, "process 1 on elsewhere x", 0)
    is_stale, held = pool._is_stale, ExitStack()

    def slowly(*given):
        found = is_stale(*given)
        monkeypatch.setattr(pool, "_is_stale", is_stale)
        # Between its look and its claim an heir has come, has ended, and another worker has begun.
        with claim(path, **times) as heir:
            assert heir
        assert held.enter_context(claim(path, **times))
        return found

    monkeypatch.setattr(pool, "_is_stale", slowly)
    with held:
        with claim(path, **times) as has:
            assert not has
        with claim(path, **times) as has:
            assert not has
    with claim(path, **times) as has:
        assert has
    assert not path.exists()


class Here:
    """Makes rows in this process."""

    def run(self, task, **_):
        return run_row(task.job, make=task.make)

    def stop(self):
        """Nothing to stop."""


def test_a_row_that_is_done_in_this_run_is_not_made_again_and_a_failure_is_in_the_next(tmp_path):
    batch = batch_of(tmp_path, ["good", "bad"])
    for _ in range(2):
        work(batch, process=Here())
    assert painted(batch) == [1, 0] and [result.attempts for result in batch.results()] == [1, 1]
    later = batch_of(tmp_path, ["good", "bad"])
    assert [result.exit_code for result in later.results()] == [LEFT, LEFT]
    work(later, process=Here())
    assert len((tmp_path / "001.begun").read_text().splitlines()) == 2


def test_a_row_keeps_its_files_when_the_list_changes(tmp_path):
    one, other = batch_of(tmp_path, ["good", "bad"]).rows[1], batch_of(tmp_path, ["x", "y", "z"]).rows[1]
    assert one.id == other.id and Row.of(one.job, tmp_path / "list.work").id != one.id
