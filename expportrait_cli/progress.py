"""How work says how far it has come."""

from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import TypeVar

T = TypeVar("T")

Progress = Callable[[int, int | None], None]
"""Called with the number of finished steps and the number of all steps, None where that is not known."""

Stage = Callable[[str], Progress]
"""Begin a stage of this name; the result is called as the stage goes on."""


def silent(name: str) -> Progress:
    """Begin a stage that nobody watches."""
    return lambda done, total: None


def counted(items: Iterable[T], total: int | None, progress: Progress) -> Iterator[T]:
    """Yield the items, and report each one once it was used."""
    for done, item in enumerate(items, 1):
        yield item
        progress(done, total)


class Stages:
    """Stages of one run, one after the other: each is announced, and the seconds that it took are kept."""

    def __init__(self, begin: Stage = silent) -> None:
        """`begin` is told the name of each stage that really runs."""
        self._begin = begin
        self.seconds: dict[str, float] = {}
        """By name, in the order of running; what was read from an earlier run is absent."""

    def run(self, name: str, work: Callable[[Progress], T]) -> T:
        """Run one stage; `work` is given what to report its progress to."""
        progress, since = self._begin(name), perf_counter()
        done = work(progress)
        self.seconds[name] = round(self.seconds.get(name, 0.0) + perf_counter() - since, 3)
        return done
