"""Items made ahead: the same ones in order, no more than asked for, and errors where they belong."""

import threading
from collections.abc import Iterator
from itertools import islice

import pytest

from expportrait_cli.runtime import ahead, read_ahead


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
    items = read_ahead(counted(made), depth)
    assert list(islice(items, 5)) == [0, 1, 2, 3, 4]
    items.close()
    assert len(made) <= 5 + depth
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


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
