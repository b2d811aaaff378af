"""Download of weight files, and of folders from a model hub.

An interrupted download is resumed; a file is hashed, and gets its name only when it is complete. Of a folder, only
needed files are downloaded, and checked by the hashes that the hub publishes.
"""

import fcntl
import hashlib
import http.client
import json
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from expportrait_cli.artifacts.files import atomic_path, note_of, noted, sha256
from expportrait_cli.artifacts.texts import parse_json
from expportrait_cli.errors import OutputError, WeightsError, one_line
from expportrait_cli.runtime import Progress
from expportrait_cli.version import __version__
from expportrait_cli.weights.catalogue import FETCHED, Weight, how_to_get

PIECE = 1 << 18
TIMEOUT_S = 30.0
"""Longest time without an answer of the server."""
RANGE_NOT_SATISFIABLE = 416
TEXTS = (".json", ".md", ".txt")
LARGE = ".safetensors"
"""Suffix of files that hubs list with a sha256."""


def fetch(weight: Weight, folder: Path, progress: Progress) -> Path:
    """Download a file into `folder`, unless it exists already.

    If the connection breaks or the user interrupts, the data stay in `.NAME.partial`, and the next call resumes, if the
    server still has the same file. Without a published hash, that of the first download is recorded (`note_of`), and
    later downloads must have the same.

    Raises:
        WeightsError: the tool cannot download the file, the server cannot be reached or breaks off, or the file has
            another hash.
        OutputError: `folder` cannot be written to.
    """
    if not weight.downloads:
        raise WeightsError(f"{weight.name} cannot be downloaded by this command. {how_to_get(weight)}")
    target = folder / weight.file
    pinned = weight.sha256 or noted(target)
    # The hash of a file that was copied here by hand may differ from the publisher's.
    is_first = not pinned and not target.is_file()
    _fetch(replace(weight, sha256=pinned), target, progress)
    if is_first:
        with atomic_path(note_of(target)) as note:
            note.write_text(f"{sha256(target)}  {target.name}\n", "utf-8")
    return target


def _fetch(weight: Weight, target: Path, progress: Progress) -> None:
    if target.is_file() and (not weight.sha256 or sha256(target) == weight.sha256):
        return
    partial = target.with_name(f".{target.name}.partial")
    version = partial.with_name(f"{partial.name}.version")
    with _alone(partial) as stream:
        _download(weight.source, stream, version, progress, has_hash=bool(weight.sha256))
        stream.flush()
        fault = _fault(partial, target.suffix, weight.sha256)
        if fault:
            # It is wrong for good, and must not be resumed.
            partial.unlink()
            version.unlink(missing_ok=True)
            raise WeightsError(
                f"{weight.source} {fault}: thrown away. Try again; if it stays so, its publisher has replaced it"
                + (f", and without {note_of(target)} the new one is taken." if noted(target) else ".")
            )
        partial.replace(target)
        version.unlink(missing_ok=True)


def _fault(path: Path, suffix: str, digest: str) -> str:
    """Reason why a file cannot be the requested one; empty if it may be."""
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
    # Such as a network's login page, or the publisher's page about a moved file.
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
        # `partial` is gone if another process has just finished and renamed it.
        if busy:
            raise WeightsError(f"{partial} is being downloaded by another process. Wait until that has ended.")
        try:
            yield stream
        finally:
            if os.fstat(stream.fileno()).st_size == 0:
                partial.unlink(missing_ok=True)


def _download(url: str, stream: IO[bytes], version: Path, progress: Progress, *, has_hash: bool) -> None:
    """Download `url` into `stream`, from the end of what it has.

    `version` is a file with the server's identifier of the file's version, without which a resumed file could be half
    old and half new.
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
            raise WeightsError(f"{url} resumed at another position than requested. Try again later.")
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() and len(length) < 16 else None
        # A chunked transfer marks its own end.
        if total is None and not has_hash and not response.chunked:
            raise WeightsError(
                f"{url} has no length, and its sha256 is not published: it cannot be checked whether all of it has "
                "arrived. Download it by hand."
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
    """Open `url`; None if the requested range is empty, because all has been downloaded."""
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
        # Only reading is inside: errors of writing are errors of the disk, not of the network.
        try:
            piece = response.read(PIECE)
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(url, error) from error
        if not piece:
            return
        yield piece


def _mark(response: http.client.HTTPResponse) -> str:
    """The server's identifier of this version of a file (ETag or date); empty without a reliable one."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _unreachable(url: str, error: Exception) -> WeightsError:
    reason = getattr(error, "reason", error)
    reason = getattr(reason, "strerror", None) or str(reason) or type(error).__name__
    return WeightsError(f"{url} cannot be reached: {reason}. Check the connection and run the same command again.")


REVISION = "main"
LONGEST = 1 << 26
"""Most bytes of an answer of the hub that are read."""
SUFFIXES = (".json", ".safetensors", ".md", ".txt")
"""Suffixes of files that are downloaded: none can contain code that runs."""


@dataclass(frozen=True)
class Listed:
    """A file as the hub lists it."""

    file: str
    bytes: int
    sha256: str
    """Hash of a large file; empty for a small one, for which hubs list only git's hash."""
    git: str
    """Git's hash of the file, by which small files are checked."""


def fetch_folder(weight: Weight, folder: Path, progress: Progress) -> Path:
    """Download `weight.parts` of the repository `weight.source` into a subfolder of `folder`; returns its path.

    Existing files are not downloaded again, and interrupted ones are resumed. All files are of one commit, which is
    recorded beside them with their hashes; later calls use the same commit.

    Raises:
        WeightsError: the hub cannot be reached, does not list the files, or a file has another hash.
        OutputError: the disk is too small, or cannot be written to.
    """
    target = folder / weight.file
    revision, files = _listing(weight, target / FETCHED)
    _check_room(folder, target, files)
    total = sum(listed.bytes for listed in files)
    done = 0
    for listed in files:
        one = replace(
            weight,
            file=f"{weight.file}/{listed.file}",
            source=f"{weight.source}/resolve/{revision}/{urllib.parse.quote(listed.file)}",
            sha256=listed.sha256,
            parts=(),
        )
        path = target / listed.file
        if not listed.sha256 and path.is_file() and _git_hash(path) != listed.git:
            # The file is of another commit; without a sha256, `_fetch` would accept it.
            path.unlink()
        _fetch(one, path, lambda have, _, before=done: progress(before + have, total))
        _check(path, listed, one.source)
        done += listed.bytes
        progress(done, total)
    rows = [{**asdict(listed), "sha256": listed.sha256 or sha256(target / listed.file)} for listed in files]
    note = {"repository": weight.source, "revision": revision, "files": rows}
    with atomic_path(target / FETCHED) as partial:
        partial.write_text(json.dumps(note, indent=1) + "\n", "utf-8")
    return target


def _listing(weight: Weight, note: Path) -> tuple[str, list[Listed]]:
    """Return the recorded commit, or else the hub's present one, and the needed files of it."""
    first, known = _noted(note)
    place = urllib.parse.urlsplit(weight.source)
    api = f"{place.scheme}://{place.netloc}/api/models{place.path}"
    try:
        revision = first or str(_json(f"{api}/revision/{REVISION}")["sha"])
        rows = _json(f"{api}/tree/{revision}?recursive=true")
        files = [_listed(row) for row in rows if row["type"] == "file" and _is_wanted(row["path"], weight.parts)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{api} does not list files as a model hub does. Look on {weight.source}.") from error
    for listed in files:
        expected = {**known, **dict(weight.pinned)}.get(listed.file, listed.sha256)
        if listed.sha256 != expected:
            raise WeightsError(
                f"{weight.source} lists {listed.file} with the sha256 {listed.sha256}, expected {expected}: its "
                "publisher has replaced it. Update the tool."
            )
    missing = [part for part in weight.parts if not any(_is_under(listed.file, part) for listed in files)]
    if missing:
        raise WeightsError(f"{weight.source} has no {', '.join(missing)}: its publisher has changed it.")
    return revision, files


def _noted(note: Path) -> tuple[str, dict[str, str]]:
    """Recorded commit of a folder, and the hashes of its large files; empty without a record."""
    try:
        content = parse_json(note.read_bytes())
        hashes = {str(row["file"]): str(row["sha256"]) for row in content["files"] if row["file"].endswith(LARGE)}
        return str(content["revision"]), hashes
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "", {}


def _is_under(path: str, part: str) -> bool:
    return path == part or path.startswith(f"{part}/")


def _is_wanted(path: str, parts: tuple[str, ...]) -> bool:
    inside = all(piece not in ("", ".", "..") for piece in path.split("/")) and "\\" not in path
    return inside and path.endswith(SUFFIXES) and any(_is_under(path, part) for part in parts)


def _listed(row: dict[str, Any]) -> Listed:
    large = row.get("lfs") or {}
    return Listed(row["path"], int(large.get("size", row["size"])), str(large.get("oid", "")), str(row["oid"]))


def _json(url: str) -> Any:
    request = urllib.request.Request(url, headers={"User-Agent": f"expportrait/{__version__}"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return parse_json(response.read(LONGEST))
    except urllib.error.HTTPError as error:
        raise WeightsError(f"{url} answered {error.code} {error.reason}. Look on the publisher's page.") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise WeightsError(
            f"{url} cannot be read: {reason}. Check the connection and run the command again."
        ) from error


def _check_room(folder: Path, target: Path, files: list[Listed]) -> None:
    there = [target / listed.file for listed in files]
    begun = [path.with_name(f".{path.name}.partial") for path in there]
    lacking = sum(
        listed.bytes - (part.stat().st_size if part.is_file() else 0)
        for listed, path, part in zip(files, there, begun, strict=True)
        if not path.is_file()
    )
    place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if lacking > free:
        raise OutputError(
            f"{folder} has {free / 1e9:.1f} GB free, and {lacking / 1e9:.1f} GB are to come. Free some, or point "
            "EXPPORTRAIT_WEIGHTS and the download at another disk."
        )


def _check(path: Path, listed: Listed, url: str) -> None:
    """Check a small file by git's hash; large ones were checked by their sha256 after their download."""
    if not listed.sha256 and _git_hash(path) != listed.git:
        path.unlink()
        raise WeightsError(f"{url} arrived with another content than the hub lists: thrown away. Try again.")


def _git_hash(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
