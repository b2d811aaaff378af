"""The boundary of the command line: errors become one red line and an exit code."""

import errno
import logging
import re
import signal
import sys
import traceback
from dataclasses import dataclass
from functools import lru_cache

import typer

from expportrait_cli.errors import FAULT, USAGE, OutOfMemoryError, OutputError, UserError


@dataclass
class CommandLine:
    """The command that runs: its options, and the signal that ended it."""

    app: typer.Typer | None = None
    ended_by: int | None = None

    def check(self) -> None:
        """Raise what a signal asks for, if one came."""
        if self.ended_by == signal.SIGINT:
            raise KeyboardInterrupt
        if self.ended_by is not None:
            raise SystemExit(128 + self.ended_by)


command_line = CommandLine()

PARAMETER = re.compile(r"`([a-z_]+)(?:=([^`]*))?`")
"""A parameter in a message, with or without its value, as Python knows it: `region=all`."""


def as_options(message: str) -> str:
    """Write the parameters of a message as the command line knows them: `--region all`, `--no-grid`.

    Functions speak of their parameters, since they are called from Python too.
    """
    return PARAMETER.sub(_as_option, message)


def _as_option(match: re.Match[str]) -> str:
    name, value = match.groups()
    names = _options().get(name)
    if names is None:
        return match[0]
    shown, negative = names
    if value in ("True", "False"):
        return negative if value == "False" and negative else shown
    return f"{shown} {value}" if value else shown


@lru_cache(maxsize=1)
def _options() -> dict[str, tuple[str, str]]:
    """Every option of every command by its parameter: its name, and that of its opposite."""
    found: dict[str, tuple[str, str]] = {}
    commands = [typer.main.get_command(command_line.app)] if command_line.app is not None else []
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name:
                found[parameter.name] = (parameter.opts[0], next(iter(parameter.secondary_opts), ""))
    return found


def known(error: BaseException) -> UserError | None:
    """What a user can mend about an error, or None for a fault of the tool."""
    match error:
        case UserError():
            return error
        case MemoryError():
            return OutOfMemoryError("This machine's memory is full. Close other programs, or choose a smaller --size.")
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG):
            return OutputError(
                f"{error.filename or 'The disk'}: no space left. Free some and run the same command again."
            )
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return OutOfMemoryError(
            "The GPU's memory is full. Choose a smaller --size, or hide it: CUDA_VISIBLE_DEVICES= ."
        )
    if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):
        return OutOfMemoryError("This machine's memory is full. Close other programs, or choose a smaller --size.")
    return None


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
        traceback.print_exception(error)
        return FAULT
    logging.getLogger(__name__).debug("where it came from", exc_info=error)
    say_error(str(mendable))
    return mendable.exit_code


def say_error(message: str) -> None:
    """Print one red line on stderr."""
    line = " ".join(as_options(message).split())
    typer.secho(f"error: {line}", err=True, fg=typer.colors.RED)
