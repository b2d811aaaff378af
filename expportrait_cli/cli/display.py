"""Progress on stderr: one line a stage, with the time that it still needs."""

import sys
from time import perf_counter
from types import TracebackType
from typing import Any

from expportrait_cli.cli.boundary import command_line
from expportrait_cli.cli.options import output
from expportrait_cli.progress import Progress


class Display:
    """Show stages one below the other; a context manager.

    A terminal gets live bars; a file or a pipe gets one line when a stage is done; `--quiet` gets nothing.
    """

    def __init__(self) -> None:
        self._bars: Any = None
        self._name, self._since, self._done, self._total = "", 0.0, 0, None

    def __enter__(self) -> "Display":
        """Take over stderr when it is a terminal."""
        if not output.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description:<24}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
            )
            # stdout carries results only: nothing of it may pass through the display.
            self._bars = Progress(*columns, console=Console(stderr=True), redirect_stdout=False)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give stderr back; a stage that was under way is left as it is."""
        if kind is None:
            self._finish()
        if self._bars is not None:
            self._bars.stop()

    def stage(self, name: str) -> Progress:
        """Begin a stage; what it returns is told how many of how many steps are done."""
        self._finish()
        self._name, self._since, self._done, self._total = name, perf_counter(), 0, None
        task = self._bars.add_task(name, total=None) if self._bars is not None else None

        def progress(done: int, total: int | None) -> None:
            command_line.check()
            self._done, self._total = done, total
            if task is not None:
                self._bars.update(task, completed=done, total=total)

        return progress

    def _finish(self) -> None:
        if self._name and self._bars is None and not output.quiet:
            steps = f"{self._done} of {self._total}, " if self._total else ""
            print(f"{self._name}: {steps}{perf_counter() - self._since:.1f} s", file=sys.stderr)
        elif self._name and self._bars is not None:
            task = self._bars.tasks[-1]
            # A stage without steps of its own is done when the next begins.
            self._bars.update(task.id, total=task.total or 1, completed=task.total or 1)
        self._name = ""
