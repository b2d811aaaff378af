"""The boundary of the command line: errors become one red line and an exit code."""

import errno
import logging
import sys
import traceback

import typer

from expportrait_cli.errors import FAULT, USAGE, OutOfMemoryError, OutputError, UserError


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
    line = " ".join(message.split())
    typer.secho(f"error: {line}", err=True, fg=typer.colors.RED)
