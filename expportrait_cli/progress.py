"""How work says how far it has come."""

from collections.abc import Callable, Iterable, Iterator
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
