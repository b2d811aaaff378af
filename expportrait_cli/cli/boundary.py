"""Output of a command on stderr: progress, log, and errors as one red line and an exit code."""

import json
import logging
import os
import re
import signal
import sys
import traceback
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter
from types import TracebackType
from typing import Any, TextIO

import typer

from expportrait_cli.errors import FAULT, USAGE, UsageError, known
from expportrait_cli.runtime import Progress


@dataclass
class CommandLine:
    """The running command: its app, and the signal that ended it."""

    app: typer.Typer | None = None
    ended_by: int | None = None

    def check(self) -> None:
        """If a signal came, raise KeyboardInterrupt (SIGINT) or SystemExit (others)."""
        if self.ended_by == signal.SIGINT:
            raise KeyboardInterrupt
        if self.ended_by is not None:
            raise SystemExit(128 + self.ended_by)


command_line = CommandLine()

PARAMETER = re.compile(r"`([a-z_]+)(?:=([^`]*))?`")
"""A parameter in a message, with or without its value, as Python knows it: `region=all`."""


def as_options(message: str) -> str:
    """Replace the parameters in a message by options of the command line: `--region all`, `--no-grid`.

    Messages name parameters, since functions are called from Python too.
    """
    return PARAMETER.sub(_as_option, message)


def _as_option(match: re.Match[str]) -> str:
    name, value = match.groups()
    names = _options().get(name)
    if names is None:
        return match[0]
    shown, negative = names
    if value in ("True", "False") or (negative and value in ("yes", "no")):
        return negative if value in ("False", "no") and negative else shown
    return f"{shown} {value}" if value else shown


@lru_cache(maxsize=1)
def _options() -> dict[str, tuple[str, str]]:
    """Names of the options of all commands, by parameter: the option, and its negation (or an empty text)."""
    found: dict[str, tuple[str, str]] = {}
    commands = [typer.main.get_command(command_line.app)] if command_line.app is not None else []
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name:
                found[parameter.name] = (parameter.opts[0], next(iter(parameter.secondary_opts), ""))
    return found


USAGE_ERROR = typer.BadParameter.__mro__[1]
"""Class of all usage errors, which typer does not export."""


def report(error: Exception) -> int:
    """Print an error on stderr and return its exit code."""
    if isinstance(error, USAGE_ERROR):
        message = error.format_message()  # pyright: ignore[reportAttributeAccessIssue]
        say_error(f"{message} Try `--help`.")
        return USAGE
    mendable = known(error)
    if mendable is None:
        say_fault(error)
        return FAULT
    logging.getLogger(__name__).debug("where it came from", exc_info=error)
    say_error(str(mendable))
    return mendable.exit_code


CONTROLS = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udc9f\\udd00-\\udfff]"
)
"""Characters that a terminal does not display, but obeys: control characters, and marks that change the direction of
writing. Bytes of names that are not UTF-8 (udc80 to udcff) count if they are control characters in other encodings."""


def shown(text: str, *, keep: str = "") -> str:
    """Make a text safe for a terminal: control characters are replaced, except those in `keep`."""
    return CONTROLS.sub(
        lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode(), text
    )


def say_error(message: str) -> None:
    """Print an error on stderr, as one red line."""
    line = shown(" ".join(as_options(message).split()))
    output.tell("error", message=line)
    if output.is_json:
        return
    typer.secho(f"error: {line}", err=True, fg=typer.colors.RED)


def say_fault(error: Exception) -> None:
    """Print the traceback of a fault of the tool on stderr."""
    text = shown("".join(traceback.format_exception(error)), keep="\n")
    output.tell("error", message=text)
    if not output.is_json:
        print(text, end="", file=sys.stderr)


def say(text: str) -> None:
    """Print lines on stderr that are not the command's result."""
    if output.is_json:
        output.tell("log", level="info", message=shown(text, keep="\n"))
    else:
        typer.echo(shown(text, keep="\n"), err=True)


class Display:
    """Context manager that displays the progress of stages on stderr, one below the other.

    A terminal gets live bars; a file or a pipe gets one line when a stage is done; `--quiet` gets nothing.
    """

    def __init__(self) -> None:
        self._bars: Any = None
        self._name, self._since, self._done, self._total = "", 0.0, 0, None

    def __enter__(self) -> "Display":
        """Start live bars if stderr is a terminal."""
        if not output.quiet and output.events is None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                # A name with brackets must not be taken for markup.
                TextColumn("{task.description:<24}", markup=False),
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
        """Stop the bars; after an error, the current stage is not marked as done."""
        if kind is None:
            self._finish()
        if self._bars is not None:
            self._bars.stop()

    def stage(self, name: str) -> Progress:
        """Begin a stage; returns a function to call with the steps that are done, and the number of all (or None)."""
        self._finish()
        name = shown(name)
        output.tell("stage", stage=name)
        self._name, self._since, self._done, self._total = name, perf_counter(), 0, None
        task = self._bars.add_task(name, total=None) if self._bars is not None else None

        def progress(done: int, total: int | None) -> None:
            command_line.check()
            self._done, self._total = done, total
            output.tell_progress(name, done, total)
            if task is not None:
                self._bars.update(task, completed=done, total=total)

        return progress

    def _finish(self) -> None:
        if self._name and output.events is not None:
            output.tell("done", stage=self._name, seconds=round(perf_counter() - self._since, 3))
        elif self._name and self._bars is None and not output.quiet:
            steps = f"{self._done} of {self._total}, " if self._total else ""
            print(f"{self._name}: {steps}{perf_counter() - self._since:.1f} s", file=sys.stderr)
        elif self._name and self._bars is not None:
            task = self._bars.tasks[-1]
            # A stage without steps of its own is done when the next begins.
            self._bars.update(task.id, total=task.total or 1, completed=task.total or 1)
        self._name = ""


EVERY_S = 0.2
"""Shortest time between two JSON reports of a stage's progress."""


def _own_stderr() -> int:
    """The descriptor of `sys.stderr`, which is not 2 where `app.open_streams` has opened it."""
    try:
        return sys.stderr.fileno()
    except OSError:
        return 2


@dataclass
class Output:
    """Settings of the output of the whole command; set once, when it starts."""

    quiet: bool = False
    events: TextIO | None = None
    """Stream for events as JSON, one object per line; None without `--progress json`."""
    is_json: bool = False
    """True if nothing but JSON is written to stderr."""
    _last: tuple[str, float] = ("", 0.0)

    def report_as(self, form: str) -> None:
        """Report as `json` on stderr, or as `json:FD` on a file descriptor that the parent process has opened.

        Raises:
            UsageError: another form, or a descriptor that cannot be written to.
        """
        name, _, number = form.partition(":")
        if name != "json" or (number and not number.isdecimal()) or number == "1":
            raise UsageError(
                f"`progress={form[:60]}`: expected json, or json:3 for file descriptor 3; 1 is for results."
            )
        is_json = int(number or 2) == 2
        try:
            place = _own_stderr() if is_json else int(number)
            self.events = os.fdopen(place, "w", closefd=False, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"`progress={form}`: nothing can be written there ({error.strerror}).") from error
        self.is_json = is_json

    def tell(self, event: str, **details: Any) -> None:
        """Write one event, if `--progress json` was given; if its reader has gone, the command goes on without."""
        if self.events is None:
            return
        try:
            self.events.write(json.dumps({"event": event, **details}) + "\n")
            self.events.flush()
        except OSError:
            self.events, self.is_json = None, False

    def tell_progress(self, stage: str, done: int, total: int | None) -> None:
        """Write the progress of a stage as an event, a few times a second and at its end."""
        if self.events is None:
            return
        now = perf_counter()
        if self._last[0] != stage or done == total or now - self._last[1] >= EVERY_S:
            self._last = stage, now
            self.tell("progress", stage=stage, done=done, total=total)


output = Output()


class _Stderr(logging.StreamHandler):
    """Log handler for the current `sys.stderr`, which a progress display replaces while it is active."""

    def emit(self, record: logging.LogRecord) -> None:
        if output.is_json:
            output.tell("log", level=record.levelname.lower(), message=as_options(shown(record.getMessage())))
            return
        self.stream = sys.stderr
        super().emit(record)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.message = shown(record.getMessage())
        text = as_options(self.formatMessage(record))
        if record.exc_info:
            text += "\n" + shown(self.formatException(record.exc_info), keep="\n")
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"


def start_logging() -> None:
    """Send the package's log to stderr."""
    handler = _Stderr()
    handler.setFormatter(_Lines("%(message)s"))
    log = logging.getLogger("expportrait_cli")
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.INFO)
    output.quiet, output.events, output.is_json = False, None, False
