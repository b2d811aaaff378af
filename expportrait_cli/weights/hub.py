"""Downloading a folder of weights from a model hub: the files that are needed, by the hashes that the hub publishes."""

import hashlib
import http.client
import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from expportrait_cli.artifacts.files import atomic_path, sha256
from expportrait_cli.artifacts.texts import parse_json
from expportrait_cli.errors import OutputError, WeightsError
from expportrait_cli.runtime import Progress
from expportrait_cli.version import __version__
from expportrait_cli.weights.catalogue import FETCHED, Weight
from expportrait_cli.weights.download import TIMEOUT_S, fetch

REVISION = "main"
LONGEST = 1 << 26
"""Largest part of an answer that is read, bytes."""
SUFFIXES = (".json", ".safetensors", ".md", ".txt")
"""Files that may be taken: nothing that could be executed."""


@dataclass(frozen=True)
class Listed:
    """A file as the hub lists it."""

    file: str
    bytes: int
    sha256: str
    """Of large files;"""
    git: str
    """and git's own hash, for small ones."""


def fetch_folder(weight: Weight, folder: Path, progress: Progress) -> Path:
    """Download `weight.parts` of the repository `weight.source` into a folder of `folder`.

    What is there already is not fetched again, and a file that was cut short goes on. All files are of one commit,
    which is noted beside them, so that a second call takes the same.

    Raises:
        WeightsError: the hub cannot be reached, lists nothing of the kind, or what arrived has another hash.
        OutputError: the disk is too small, or cannot be written to.
    """
    target = folder / weight.file
    revision, files = _listing(weight)
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
            # Of an earlier commit: for lack of a sha256 it would be taken for the right one.
            path.unlink()
        fetch(one, folder, lambda have, _, before=done: progress(before + have, total))
        _check(path, listed, one.source)
        done += listed.bytes
        progress(done, total)
    rows = [{**asdict(listed), "sha256": listed.sha256 or sha256(target / listed.file)} for listed in files]
    note = {"repository": weight.source, "revision": revision, "files": rows}
    with atomic_path(target / FETCHED) as partial:
        partial.write_text(json.dumps(note, indent=1) + "\n", "utf-8")
    return target


def _listing(weight: Weight) -> tuple[str, list[Listed]]:
    """Commit that the hub has now, and the files of it that are needed."""
    place = urllib.parse.urlsplit(weight.source)
    api = f"{place.scheme}://{place.netloc}/api/models{place.path}"
    try:
        revision = str(_json(f"{api}/revision/{REVISION}")["sha"])
        rows = _json(f"{api}/tree/{revision}?recursive=true")
        files = [_listed(row) for row in rows if row["type"] == "file" and _is_wanted(row["path"], weight.parts)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{api} does not list files as a model hub does. Look on {weight.source}.") from error
    missing = [part for part in weight.parts if not any(_is_under(listed.file, part) for listed in files)]
    if missing:
        raise WeightsError(f"{weight.source} has no {', '.join(missing)}: its publisher has changed it.")
    return revision, files


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
    lacking = sum(listed.bytes for listed, path in zip(files, there, strict=True) if not path.is_file())
    place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if lacking > free:
        raise OutputError(
            f"{folder} has {free / 1e9:.1f} GB free, and {lacking / 1e9:.1f} GB are to come. Free some, or point "
            "EXPPORTRAIT_WEIGHTS and the download at another disk."
        )


def _check(path: Path, listed: Listed, url: str) -> None:
    """Large files were hashed when they arrived; small ones are known by git's hash."""
    if not listed.sha256 and _git_hash(path) != listed.git:
        path.unlink()
        raise WeightsError(f"{url} arrived with another content than the hub lists: thrown away. Try again.")


def _git_hash(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
