"""Errors that a user can solve, and their exit codes."""

import errno
import sys

FAULT, USAGE, INTERRUPTED = 1, 2, 130
"""Exit codes of endings other than a `UserError`: a fault of the tool, wrong usage, Ctrl-C."""


PLACE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG)
"""System errors that depend on a path, for example its permissions, and not on the tool."""


class UserError(Exception):
    """Base of the errors that a user can solve; the message is one line: found, expected, and what to do next."""

    exit_code = 3


class UsageError(UserError):
    """Wrong options or parameters, or ones that do not fit together."""

    exit_code = 2


class InputError(UserError):
    """A file that is missing, unreadable, of the wrong kind, or that shows no usable face."""

    exit_code = 3


class OutputError(UserError):
    """A result that could not be written: folder not writable, disk full."""

    exit_code = 3


class WeightsError(UserError):
    """A weight file that is missing or does not match its catalogue entry."""

    exit_code = 4


class OutOfMemoryError(UserError):
    """A job that does not fit this machine."""

    exit_code = 5


class FilmError(UserError):
    """A film that fails the check after its writing: a fault of the tool or of a library."""

    exit_code = FAULT


def one_line(error: BaseException, length: int = 160) -> str:
    """Shorten an error's text to one line of at most `length` characters, to quote it in a message."""
    return " ".join(str(error).split())[:length]


def known(error: BaseException) -> UserError | None:
    """Convert a recognised error to a `UserError`; None for a fault of the tool."""
    match error:
        case UserError():
            return error
        case MemoryError():
            return OutOfMemoryError("This machine's memory is full. Close other programs, or choose a smaller `size`.")
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG):
            return OutputError(
                f"{error.filename or 'The disk'}: no space left. Free some and run the same command again."
            )
        case OSError(errno=number, filename=str() as name) if number in PLACE:
            return OutputError(f"{name}: {error.strerror}. Change its permissions, or name another file or folder.")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return OutOfMemoryError(
            "The GPU's memory is full. Choose a smaller `size`, or hide it: CUDA_VISIBLE_DEVICES= ."
        )
    if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):
        return OutOfMemoryError("This machine's memory is full. Close other programs, or choose a smaller `size`.")
    return None
