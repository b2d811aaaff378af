"""Items made ahead: the same ones in order, no more than asked for. Sums that do not depend on threads."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count, islice

import pytest

from expportrait_cli.errors import UsageError
from expportrait_cli.runtime import DEVICE, THREADS, ahead, beside, best_device, choose_device, in_order, read_ahead


def counted(made: list[int], end: int = 1000) -> Iterator[int]:
    for number in range(end):
        made.append(number)
        yield number


@pytest.mark.parametrize("depth", [1, 3, 50])
def test_items_come_in_order(depth):
    assert list(read_ahead(range(20), depth)) == list(range(20))
    assert list(read_ahead([None, None], depth)) == [None, None] and list(read_ahead([], depth)) == []
    assert list(ahead(lambda number: -number, 3, 6)) == [(3, -3), (4, -4), (5, -5)]
    assert list(ahead(lambda number: -number, 6, 6)) == []


@pytest.mark.parametrize("depth", [1, 4])
def test_no_more_is_made_than_the_depth(depth):
    made: list[int] = []
    before = set(threading.enumerate())
    items = read_ahead(counted(made), depth)
    assert list(islice(items, 5)) == [0, 1, 2, 3, 4]
    items.close()
    assert len(made) <= 5 + depth
    assert set(threading.enumerate()) <= before


def test_it_is_made_while_the_one_before_is_worked_on():
    is_made = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        is_made.set()
        yield 1

    made = read_ahead(items(), 1)
    assert next(made) == 0 and is_made.wait(10)
    assert list(made) == [1]


def test_an_error_comes_where_the_item_would_have():
    def items() -> Iterator[int]:
        yield from range(3)
        raise OSError("the disk is gone")

    made = read_ahead(items(), 10)
    assert list(islice(made, 3)) == [0, 1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(made)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_items_that_are_made_at_once_come_in_order(monkeypatch, threads):
    monkeypatch.setenv(THREADS, threads)

    def late(number: int) -> int:
        time.sleep(0.02 * (number % 3 == 1))
        return -number

    asked: list[int] = []
    made = in_order(late, counted(asked))
    assert list(islice(made, 20)) == [-number for number in range(20)]
    # As many as threads are at work, and one to come.
    assert len(asked) <= 20 + int(threads) + 1
    made.close()
    assert list(in_order(late, [])) == []


def test_an_item_that_cannot_be_made_ends_those_after_it(monkeypatch):
    monkeypatch.setenv(THREADS, "2")
    made = in_order(lambda number: 1 // number, [2, 1, 0, 1])
    assert next(made) == 0 and next(made) == 1
    with pytest.raises(ZeroDivisionError):
        next(made)
    assert list(made) == []


def test_work_beside_is_waited_for_and_ends_when_nobody_waits():
    with beside(lambda progress: 7) as done:
        assert done() == 7
    begun, ended = threading.Event(), threading.Event()

    def endless(progress):
        try:
            for number in count():
                begun.set()
                progress(number, None)
        finally:
            ended.set()

    with pytest.raises(KeyboardInterrupt), beside(endless):
        assert begun.wait(10)
        raise KeyboardInterrupt
    assert ended.is_set()


SUMS = """
import hashlib
from expportrait_cli.runtime import settle_threads, use_threads
settle_threads()
import numpy as np, torch
use_threads()
generator = torch.Generator().manual_seed(0)
identity, basis = torch.randn(1, 6, 80, generator=generator), torch.randn(1, 80, 17919, generator=generator)
found = [(identity @ basis).numpy(), basis[0, :, :50].numpy().T @ basis[0].numpy()]
print(torch.get_num_threads(), hashlib.sha256(b"".join(each.tobytes() for each in found)).hexdigest())
"""


@pytest.mark.slow
def test_products_do_not_depend_on_the_number_of_threads():
    found = {}
    for threads in ("1", "2", "5"):
        done = subprocess.run(
            [sys.executable, "-c", SUMS],
            env={**os.environ, THREADS: threads},
            capture_output=True,
            text=True,
            check=True,
        )
        taken, digest = done.stdout.split()
        found[taken] = digest
    assert [*found] == ["1", "2", "5"] and len({*found.values()}) == 1


SETTLED = """
import os
from expportrait_cli.runtime import settle_threads, thread_count
settle_threads()
import cv2, numpy as np, scipy.linalg, torch
large = np.ones((600, 600), np.float32)
large @ large, scipy.linalg.solve(large + np.eye(600), large), torch.from_numpy(large) @ torch.from_numpy(large)
cv2.GaussianBlur(large, (0, 0), 9.0)
print(torch.get_num_threads(), cv2.getNumThreads(), len(os.listdir("/proc/self/task")), thread_count())
"""


@pytest.mark.slow
def test_every_library_has_one_thread_whatever_the_user_set():
    surroundings = {**os.environ, "OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "4"}
    surroundings.pop(THREADS, None)
    done = subprocess.run([sys.executable, "-c", SETTLED], env=surroundings, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1", "1", "3"]


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", "cuda:-1"])
def test_a_device_that_is_none_is_refused(monkeypatch, name):
    monkeypatch.setenv(DEVICE, name)
    with pytest.raises(UsageError, match="expected auto, cpu, cuda, or cuda:N"):
        best_device()


def test_the_device_of_a_run_is_chosen_once(monkeypatch):
    monkeypatch.setenv(DEVICE, "auto")
    choose_device("cpu")
    assert best_device().type == "cpu" and os.environ[DEVICE] == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    choose_device("cuda:1")
    assert str(best_device()) == "cuda:1"
    with pytest.raises(UsageError, match="finds 2 GPUs"):
        choose_device("cuda:2")
