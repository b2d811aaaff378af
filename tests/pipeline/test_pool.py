"""Processes that work, fail, are killed and are interrupted; their tasks are the standard library's."""

import math
import os
import signal
import subprocess
import sys
import time

import pytest

from expportrait_cli.errors import OutOfMemoryError
from expportrait_cli.pipeline.pool import Workers


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that ended and was not waited for is still there by name.
    with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
        return stat.read().rpartition(")")[2].split()[0] != "Z"


def ends(pid: int, within_s: float = 60.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not is_alive(pid):
            return True
        time.sleep(0.1)
    return False


def test_every_item_comes_back_with_its_result_or_error():
    with Workers(2) as workers:
        found = dict(workers.run(math.sqrt, [4.0, 9.0, -1.0]))
    assert (found[4.0], found[9.0]) == (2.0, 3.0)
    assert isinstance(found[-1.0], ValueError)


def test_a_process_has_one_thread_and_a_session_of_its_own():
    with Workers(1) as workers:
        assert dict(workers.run(os.getenv, ["OMP_NUM_THREADS"])) == {"OMP_NUM_THREADS": "1"}
        assert dict(workers.run(os.getsid, [0]))[0] != os.getsid(0)


def test_a_process_that_is_killed_is_noticed():
    with pytest.raises(OutOfMemoryError, match="fewer `jobs`"), Workers(1) as workers:
        list(workers.run(os._exit, [9]))


def test_an_interrupt_does_not_wait_for_the_work():
    since, pids = time.monotonic(), []
    with pytest.raises(KeyboardInterrupt), Workers(2) as workers:
        (pids,) = ([pid for _, pid in workers.run(_pid, [0])],)
        for _ in workers.run(time.sleep, [0.0, 60.0, 60.0, 60.0]):
            raise KeyboardInterrupt
    assert time.monotonic() - since < 30
    assert all(ends(pid) for pid in pids)


def test_processes_end_when_the_parent_is_killed():
    code = (
        "import os, time\n"
        "from expportrait_cli.pipeline.pool import Workers\n"
        "if __name__ == '__main__':\n"
        "    with Workers(1) as workers:\n"
        "        print([pid for _, pid in workers.run(os.getsid, [0])][0], flush=True)\n"
        "        list(workers.run(time.sleep, [60]))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    assert is_alive(worker)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert ends(worker)


def _pid(_: int) -> int:
    return os.getpid()
