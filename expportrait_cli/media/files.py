"""Files as such: what they hold, and how they are replaced."""

import os
from pathlib import Path

from expportrait_cli.artifacts.atomic import atomic_path as atomic_path
from expportrait_cli.artifacts.atomic import sha256
from expportrait_cli.errors import InputError


def content_hash(path: str | os.PathLike[str]) -> str:
    """Hash the content with sha256, in hexadecimal."""
    check_file(path)
    try:
        return sha256(Path(path))
    except OSError as error:
        raise InputError(f"{path} could not be read: {error.strerror}.") from error


def check_file(path: str | os.PathLike[str]) -> None:
    """Raise InputError unless `path` is a file with something in it."""
    file = Path(path)
    try:
        if file.is_dir():
            raise InputError(f"{path} is a folder. Name a photo or a clip.")
        if not file.exists():
            raise InputError(f"{path} does not exist. Check the name and the folder.")
        if file.is_file() and file.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes). Copy or download it again.")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} could not be read: {error}.") from error
