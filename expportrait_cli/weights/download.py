"""Downloading a file of weights: resumed where it was cut, hashed, and named only when it is whole."""

import fcntl
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from expportrait_cli.artifacts.files import sha256
from expportrait_cli.errors import OutputError, WeightsError, one_line
from expportrait_cli.runtime import Progress
from expportrait_cli.version import __version__
from expportrait_cli.weights.catalogue import Weight, how_to_get

PIECE = 1 << 18
TIMEOUT_S = 30.0
"""Longest silence of the other side."""
RANGE_NOT_SATISFIABLE = 416
TEXTS = (".json", ".md", ".txt")


def fetch(weight: Weight, folder: Path, progress: Progress) -> Path:
    """Download a file into `folder`, unless it is there already.

    What has arrived stays in `.NAME.partial` when the connection breaks or the user interrupts; the next call goes on
    from there, provided that the other side still has the same file.

    Raises:
        WeightsError: the file cannot be downloaded at all, the other side cannot be reached or breaks off, or what
            arrived has another hash.
        OutputError: `folder` cannot be written to.
    """
    if not weight.downloads:
        raise WeightsError(f"{weight.name} cannot be downloaded by this command. {how_to_get(weight)}")
    target = folder / weight.file
    if target.is_file() and (not weight.sha256 or sha256(target) == weight.sha256):
        return target
    partial = target.with_name(f".{target.name}.partial")
    version = partial.with_name(f"{partial.name}.version")
    with _alone(partial) as stream:
        _download(weight.source, stream, version, progress, has_hash=bool(weight.sha256))
        stream.flush()
        fault = _fault(partial, target.suffix, weight.sha256)
        if fault:
            # It can never become right, and would be gone on with for ever.
            partial.unlink()
            version.unlink(missing_ok=True)
            raise WeightsError(
                f"{weight.source} {fault}: thrown away. Try again; if it stays so, its publisher has replaced it."
            )
        partial.replace(target)
        version.unlink(missing_ok=True)
    return target


def _fault(path: Path, suffix: str, digest: str) -> str:
    """Describe what shows that a file is not the requested one; empty if nothing does."""
    if digest:
        found = sha256(path)
        return "" if found == digest else f"has the sha256 {found}, expected {digest}"
    with path.open("rb") as file:
        start = file.read(256).lstrip()
    if suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np"):
                return ""
        except SafetensorError as error:
            return f"is no file of safetensors ({one_line(error)})"
    # Such as the login page of a local network, or the page of a publisher who has moved the file.
    return "is a web page" if start.startswith(b"<") and suffix not in TEXTS else ""


@contextmanager
def _alone(partial: Path) -> Iterator[IO[bytes]]:
    """Open a partial file for one process at a time."""
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        opened = partial.open("r+b")
    except OSError as error:
        raise OutputError(
            f"{partial.parent} cannot be written to: {error.strerror}. Change its permissions."
        ) from error
    with opened as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            busy = not partial.exists()
        except BlockingIOError:
            busy = True
        # Opened just before another process finished and renamed it: what is open is then the finished file.
        if busy:
            raise WeightsError(f"{partial} is in the hands of another download. Wait until that has ended.")
        try:
            yield stream
        finally:
            if os.fstat(stream.fileno()).st_size == 0:
                partial.unlink(missing_ok=True)


def _download(url: str, stream: IO[bytes], version: Path, progress: Progress, *, has_hash: bool) -> None:
    """Fill `stream` up to the end of what lies at `url`.

    `version` keeps the server's own mark of the file's version, without which a resumed file could be half old and
    half new.
    """
    have = stream.seek(0, os.SEEK_END)
    mark = version.read_text("utf-8") if have and version.exists() else ""
    response = _ask(url, {"Range": f"bytes={have}-", "If-Range": mark} if mark else {}, have)
    if response is None:
        return
    with response:
        if response.status != http.client.PARTIAL_CONTENT:
            have = 0
            stream.seek(0)
            stream.truncate()
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise WeightsError(f"{url} went on at another place than asked. Try again later.")
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() and len(length) < 16 else None
        # What comes in chunks says itself when it has ended.
        if total is None and not has_hash and not response.chunked:
            raise WeightsError(
                f"{url} does not say how long it is, and nobody published its sha256: nobody could tell whether all of "
                "it has arrived. Download it by hand."
            )
        if not have:
            version.write_text(_mark(response), "utf-8")
        for piece in _pieces(response, url):
            stream.write(piece)
            have += len(piece)
            progress(have, total)
    if total is not None and have != total:
        raise WeightsError(f"{url} broke off after {have} of {total} bytes. The same command goes on from there.")


def _ask(url: str, headers: dict[str, str], have: int) -> http.client.HTTPResponse | None:
    """Open `url`; None when the range that was asked for is empty, because all of it has arrived."""
    request = urllib.request.Request(url, headers={"User-Agent": f"expportrait/{__version__}", **headers})
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if headers and error.code == RANGE_NOT_SATISFIABLE:
            complete = error.headers.get("Content-Range", "") == f"bytes */{have}"
            return None if complete else _ask(url, {}, have)
        raise WeightsError(f"{url} answered {error.code} {error.reason}. Look on the publisher's page.") from error
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(url, error) from error


def _pieces(response: http.client.HTTPResponse, url: str) -> Iterator[bytes]:
    while True:
        # Only reading may fail because of the network: an error of writing is one of the disk.
        try:
            piece = response.read(PIECE)
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(url, error) from error
        if not piece:
            return
        yield piece


def _mark(response: http.client.HTTPResponse) -> str:
    """What the server knows this version of a file by; empty when it says nothing that may be relied upon."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _unreachable(url: str, error: Exception) -> WeightsError:
    reason = getattr(error, "reason", error)
    reason = getattr(reason, "strerror", None) or str(reason) or type(error).__name__
    return WeightsError(f"{url} cannot be reached: {reason}. Check the connection and run the same command again.")
