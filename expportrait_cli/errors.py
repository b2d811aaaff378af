"""Errors that a user can mend, and the exit code of each kind."""

import errno
import sys

FAULT, USAGE, INTERRUPTED = 1, 2, 130
"""Exit codes of what is no `UserError`: a fault of the tool, wrong usage, Ctrl-C."""


PLACE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG)
"""Errors of the system that a place in the file system gives, whatever the tool does there."""


class UserError(Exception):
    """Say in one line what was found, what was expected and what to do next."""

    exit_code = 3


class UsageError(UserError):
    """Options that do not fit together."""

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
    """A film that its own check finds wrong: a fault of the tool, or of a library that it stands on."""

    exit_code = FAULT


def one_line(error: BaseException, length: int = 160) -> str:
    """Shorten the text of another library's error to one line, for the end of ours."""
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
