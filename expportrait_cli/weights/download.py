"""Download of weight files, and of folders of them from the Hugging Face hub.

`huggingface_hub` lists files, logs in, finds the user's endpoint and cache, and transfers. Partial files, locks and
hashes are handled here, because its own downloads restart after an interruption and check no hash; those of pooch
restart too.
"""

import hashlib
import re
import shutil
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expportrait_cli.artifacts.files import alone, note_of, noted, sha256, write_json, write_text
from expportrait_cli.artifacts.texts import read_json
from expportrait_cli.errors import OutputError, WeightsError, one_line
from expportrait_cli.runtime import Progress
from expportrait_cli.version import __version__
from expportrait_cli.weights.catalogue import FETCHED, Weight, how_to_get

HUB = "https://huggingface.co/"
HUB_FILE = re.compile(rf"({HUB}[^/]+/[^/]+)/resolve/([^/]+)/(.+)")
REVISION = "main"
TIMEOUT_S = 30.0
"""Longest time without an answer of the hub to a listing, s."""
RANGE_NOT_SATISFIABLE = 416
TEXTS = (".json", ".md", ".txt")
LARGE = ".safetensors"
"""Suffix of the files that the hub lists with a sha256."""


@dataclass(frozen=True)
class Remote:
    """A file on a server."""

    url: str
    sha256: str
    """Published hash; empty if there is none."""
    file: str = ""
    """Path in a repository of the hub; empty for a file at any other address."""
    git: str = ""
    """Git's hash, which the hub lists for every file; small files are checked by it."""
    bytes: int = 0
    cached: str = ""
    """Path in the hub's own cache; empty if it is not there."""


def fetch(weight: Weight, folder: Path, progress: Progress) -> Path:
    """Download a file, or the `parts` of a repository, into `folder`, unless they exist already.

    If the connection breaks or the user interrupts, the data stay in `.NAME.partial`, and the next call resumes; a file
    gets its name when its hash is right. Without a published hash, that of the first download is recorded (`note_of`),
    and later downloads must have the same. Files of a repository are of one commit, which is recorded beside them with
    their hashes; later calls use the same commit.

    Raises:
        WeightsError: the file cannot be downloaded by this tool, the server cannot be reached, breaks off or does not
            list the file, or the file has another hash.
        OutputError: the disk is too small, or `folder` cannot be written to.
    """
    if not weight.downloads:
        raise WeightsError(f"{weight.name} cannot be downloaded by this command. {how_to_get(weight)}")
    with _errors_of(weight.source):
        return _fetch_folder(weight, folder, progress) if weight.parts else _fetch_file(weight, folder, progress)


def _fetch_file(weight: Weight, folder: Path, progress: Progress) -> Path:
    target = folder / weight.file
    remote = Remote(weight.source, weight.sha256 or noted(target))
    if _is_there(target, remote):
        return target
    if found := HUB_FILE.fullmatch(weight.source):
        repository, revision, name = found.groups()
        _, (remote,) = _listing(repository, revision, (name,), {name: remote.sha256} if remote.sha256 else {})
    _check_room({target: remote})
    _get(remote, target, progress)
    if not weight.sha256:
        write_text(note_of(target), f"{sha256(target)}  {target.name}\n")
    return target


def _fetch_folder(weight: Weight, folder: Path, progress: Progress) -> Path:
    target = folder / weight.file
    first, known = _noted(target / FETCHED)
    commit, files = _listing(weight.source, first or REVISION, weight.parts, {**known, **dict(weight.pinned)})
    # None of these can contain code that runs.
    wanted = {target / remote.file: remote for remote in files if remote.file.endswith((LARGE, *TEXTS))}
    _check_room(wanted)
    done, total = 0, sum(remote.bytes for remote in wanted.values())
    for path, remote in wanted.items():
        if not _is_there(path, remote):
            _get(remote, path, lambda have, _, before=done: progress(before + have, total))
        done += remote.bytes
        progress(done, total)
    rows = [
        {"file": remote.file, "bytes": remote.bytes, "sha256": sha256(path), "git": remote.git}
        for path, remote in wanted.items()
    ]
    write_json(target / FETCHED, {"repository": weight.source, "revision": commit, "files": rows})
    return target


def _noted(note: Path) -> tuple[str, dict[str, str]]:
    """Recorded commit of a folder, and the hashes of its large files; empty without a record."""
    try:
        content = read_json(note)
        hashes = {str(row["file"]): str(row["sha256"]) for row in content["files"] if row["file"].endswith(LARGE)}
        return str(content["revision"]), hashes
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "", {}


def _listing(repository: str, revision: str, parts: tuple[str, ...], known: dict[str, str]) -> tuple[str, list[Remote]]:
    """Commit of a revision, and its files that are `parts` or lie in them; hashes must equal the `known` ones."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    place = urllib.parse.urlsplit(repository)
    # The user's token and endpoint are never used for another server.
    endpoint = constants.ENDPOINT if repository.startswith(HUB) else f"{place.scheme}://{place.netloc}"
    name, files = place.path.strip("/"), []
    try:
        api = HfApi(endpoint, token=None if repository.startswith(HUB) else False)
        info = api.model_info(name, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
        for row in info.siblings or []:
            file = row.rfilename
            if any(_is_under(file, part) for part in parts):
                digest, size = (row.lfs.sha256, row.lfs.size) if row.lfs else ("", int(row.size or 0))
                url = f"{endpoint}/{name}/resolve/{info.sha}/{urllib.parse.quote(file)}"
                cached = try_to_load_from_cache(name, file, revision=info.sha)
                cached = cached if isinstance(cached, str) else ""
                files.append(Remote(url, digest, file, str(row.blob_id), size, cached))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{repository} does not list files as the hub does. Look on that page.") from error
    for remote in files:
        expected = known.get(remote.file, remote.sha256)
        if remote.sha256 != expected:
            raise WeightsError(
                f"{repository} lists {remote.file} with the sha256 {remote.sha256}, expected {expected}: its publisher "
                "has replaced it. Update the tool."
            )
    missing = [part for part in parts if not any(_is_under(remote.file, part) for remote in files)]
    if missing:
        raise WeightsError(f"{repository} has no {', '.join(missing)}: its publisher has changed it.")
    return str(info.sha), files


def _is_under(path: str, part: str) -> bool:
    is_inside = all(piece not in ("", ".", "..") for piece in path.split("/")) and "\\" not in path
    return is_inside and (path == part or path.startswith(f"{part}/"))


def _check_room(files: dict[Path, Remote]) -> None:
    lacking = 0
    for path, remote in files.items():
        if not path.is_file():
            lacking += remote.bytes - (_partial(path).stat().st_size if _partial(path).is_file() else 0)
    place = next(place for place in next(iter(files)).absolute().parents if place.exists())
    free = shutil.disk_usage(place).free
    if lacking > free:
        raise OutputError(
            f"{place} has {free / 1e9:.1f} GB free, and {lacking / 1e9:.1f} GB are to come. Free some, or point "
            "EXPPORTRAIT_WEIGHTS and the download at another disk."
        )


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def _get(remote: Remote, target: Path, progress: Progress) -> None:
    """Copy a file from the hub's cache, or download it, and check it."""
    partial = _partial(target)
    with alone(target):
        if remote.cached and _is_there(Path(remote.cached), remote):
            _take(Path(remote.cached), partial)
        elif not (remote.sha256 and _is_there(partial, remote)):
            _download(remote, partial, progress)
        fault = _fault(partial, target.suffix, remote)
        if fault:
            # A wrong file must not be resumed.
            partial.unlink()
            raise WeightsError(
                f"{remote.url} {fault}: it was deleted. Try again; if that happens again, its publisher has replaced it"
                + (f"; delete {note_of(target)} to accept the new one." if noted(target) else ".")
            )
        partial.replace(target)


def _take(cached: Path, partial: Path) -> None:
    """Link a file of the hub's cache, or copy it where the file system cannot link."""
    partial.unlink(missing_ok=True)
    try:
        partial.hardlink_to(cached.resolve())
    except OSError:
        shutil.copyfile(cached, partial)


def _download(remote: Remote, partial: Path, progress: Progress) -> None:
    """Download a file into `partial`, from the end of what it has."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    def bar(*, initial: int, total: int | None, **_: Any) -> _Bar:
        if total is None and not (remote.sha256 or remote.git):
            raise WeightsError(
                f"{remote.url} has no length, and its sha256 is not published: it cannot be checked whether all of it "
                "has arrived. Download it by hand."
            )
        return _Bar(progress, initial, total)

    token = None if remote.url.startswith(f"{constants.ENDPOINT}/") else False
    headers = build_hf_headers(token=token, library_name="expportrait", library_version=__version__)
    # A text that is compressed for the transfer has no known length.
    headers["Accept-Encoding"] = "identity"
    # Without a hash, a file that is half of an older version would go unnoticed.
    begun = partial.stat().st_size if remote.sha256 and partial.is_file() else 0
    tqdm_class: Any = bar
    for start in dict.fromkeys((begun, 0)):
        try:
            with partial.open("ab" if start else "wb") as stream:
                http_get(remote.url, stream, resume_size=start, headers=headers, tqdm_class=tqdm_class)
        except HfHubHTTPError as error:
            if not start or error.response.status_code != RANGE_NOT_SATISFIABLE:
                raise
        finally:
            if partial.stat().st_size == 0:
                partial.unlink()
        # The partial file may have been of another version.
        if not start or _is_there(partial, remote):
            return


class _Bar:
    """Progress bar for `http_get`, with the interface of tqdm; calls `progress` with the number of bytes."""

    def __init__(self, progress: Progress, done: int, total: int | None) -> None:
        self._progress, self._done, self._total = progress, done, total

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *about: object) -> None:
        pass

    def update(self, count: int) -> None:
        self._done += count
        self._progress(self._done, self._total)


def _is_there(path: Path, remote: Remote) -> bool:
    """True if a file exists and has the published hash, if there is one."""
    return path.is_file() and _hash(path, remote) == (remote.sha256 or remote.git)


def _hash(path: Path, remote: Remote) -> str:
    """Hash of a file, of the kind that is published for it; empty if none is."""
    if remote.sha256 or not remote.git:
        return sha256(path) if remote.sha256 else ""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _fault(path: Path, suffix: str, remote: Remote) -> str:
    """Reason why a file cannot be the requested one; empty if it may be."""
    if expected := remote.sha256 or remote.git:
        found = _hash(path, remote)
        return "" if found == expected else f"has the hash {found}, expected {expected}"
    if suffix == LARGE:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np"):
                return ""
        except SafetensorError as error:
            return f"is not a safetensors file ({one_line(error)})"
    with path.open("rb") as file:
        start = file.read(256).lstrip()
    # Such as a network's login page, or the publisher's page about a moved file.
    return "is a web page" if start.startswith(b"<") and suffix not in TEXTS else ""


@contextmanager
def _errors_of(source: str) -> Iterator[None]:
    """Convert errors of a transfer from `source` to a `WeightsError` of one line."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils.logging import set_verbosity_error

    # The library logs each attempt; the last error is raised.
    set_verbosity_error()
    page = source.partition("/resolve/")[0]
    again = "Check the connection and run the same command again: it goes on where it stopped."
    login = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield
    except GatedRepoError as error:
        raise WeightsError(f"{source} requires that you accept its licence: do so on {page}, and {login}.") from error
    except HfHubHTTPError as error:
        code = error.response.status_code
        is_closed = code in (401, 403) and source.startswith(HUB)
        remedy = f"Look on {page}, and {login}" if is_closed else "Look on the publisher's page"
        raise WeightsError(f"{source} answered {code} {error.response.reason_phrase}. {remedy}.") from error
    except OfflineModeIsEnabled as error:
        raise WeightsError(f"{source} cannot be reached while HF_HUB_OFFLINE is set. Unset it.") from error
    except HTTPError as error:
        raise WeightsError(f"{source} cannot be reached: {one_line(error) or type(error).__name__}. {again}") from error
    except OSError as error:
        # Errors of the disk have a number; that of `http_get` about a wrong length has none.
        if error.errno is not None:
            raise
        raise WeightsError(f"{source} sent another number of bytes than announced. {again}") from error
