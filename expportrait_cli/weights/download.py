"""Downloading files of weights, and folders of them from the Hugging Face hub.

`huggingface_hub` lists, logs in, knows the user's endpoint and cache, and transfers. Names, locks and hashes are ours:
its own downloads begin anew after an interruption and hash nothing, and those of pooch begin anew too.
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
"""Longest silence of the hub when it lists."""
RANGE_NOT_SATISFIABLE = 416
TEXTS = (".json", ".md", ".txt")
LARGE = ".safetensors"
"""Files that the hub lists with a sha256."""


@dataclass(frozen=True)
class Remote:
    """A file of the other side."""

    url: str
    sha256: str
    """Empty where nobody published it."""
    file: str = ""
    """Its name in a repository of the hub; empty for a file of any other address."""
    git: str = ""
    """Git's own hash, which the hub lists for every file: small ones are checked by it."""
    bytes: int = 0
    cached: str = ""
    """Where the hub's own cache has it; empty if it does not."""


def fetch(weight: Weight, folder: Path, progress: Progress) -> Path:
    """Download a file, or the `parts` of a repository, into `folder`, unless they are there already.

    What has arrived stays in `.NAME.partial` when the connection breaks or the user interrupts, and the next call goes
    on from there; a file gets its name when its hash is right. Where nobody published a hash, that of the first
    download is noted (`note_of`), and every later one has to have it. Files of a repository are of one commit, which
    is noted beside them with their hashes: a later call takes the same ones, and only them.

    Raises:
        WeightsError: the file cannot be downloaded at all, the other side cannot be reached, breaks off or lists
            nothing of the kind, or what arrived has another hash.
        OutputError: the disk is too small, or `folder` cannot be written to.
    """
    if not weight.downloads:
        raise WeightsError(f"{weight.name} cannot be downloaded by this command. {how_to_get(weight)}")
    with _told(weight.source):
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
    # Nothing that could be executed.
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
    """Commit of a folder that was fetched before, and the hashes of its large files; empty if there is none."""
    try:
        content = read_json(note)
        hashes = {str(row["file"]): str(row["sha256"]) for row in content["files"] if row["file"].endswith(LARGE)}
        return str(content["revision"]), hashes
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "", {}


def _listing(repository: str, revision: str, parts: tuple[str, ...], known: dict[str, str]) -> tuple[str, list[Remote]]:
    """The commit of a revision, and its files that are `parts` or lie in them; hashes have to be the `known` ones."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    place = urllib.parse.urlsplit(repository)
    # The user's own token and endpoint are for the hub alone.
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
        raise WeightsError(f"{repository} does not list files as the hub does. Look there.") from error
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
    """Put a file at `target`."""
    partial = _partial(target)
    with alone(target):
        if remote.cached and _is_there(Path(remote.cached), remote):
            _take(Path(remote.cached), partial)
        elif not (remote.sha256 and _is_there(partial, remote)):
            _download(remote, partial, progress)
        fault = _fault(partial, target.suffix, remote)
        if fault:
            # It is wrong for good, and must not be resumed.
            partial.unlink()
            raise WeightsError(
                f"{remote.url} {fault}: thrown away. Try again; if it stays so, its publisher has replaced it"
                + (f", and without {note_of(target)} the new one is taken." if noted(target) else ".")
            )
        partial.replace(target)


def _take(cached: Path, partial: Path) -> None:
    """Take a file of the hub's cache: the same one under a second name, where the file system allows it."""
    partial.unlink(missing_ok=True)
    try:
        partial.hardlink_to(cached.resolve())
    except OSError:
        shutil.copyfile(cached, partial)


def _download(remote: Remote, partial: Path, progress: Progress) -> None:
    """Fill `partial` up to the end of what lies at an address."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    def bar(*, initial: int, total: int | None, **_: Any) -> _Bar:
        if total is None and not (remote.sha256 or remote.git):
            raise WeightsError(
                f"{remote.url} does not say how long it is, and nobody published its sha256: nobody could tell whether "
                "all of it has arrived. Download it by hand."
            )
        return _Bar(progress, initial, total)

    token = None if remote.url.startswith(f"{constants.ENDPOINT}/") else False
    headers = build_hf_headers(token=token, library_name="expportrait", library_version=__version__)
    # A text that is compressed on its way has no known length.
    headers["Accept-Encoding"] = "identity"
    # Without a hash nobody could tell that a file is half of one version and half of another.
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
        # What was begun may have been of another version.
        if not start or _is_there(partial, remote):
            return


class _Bar:
    """What `http_get` takes for a bar of tqdm: it tells `progress` how many bytes there are."""

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
    """Tell whether a file is there and has the published hash, if there is one."""
    return path.is_file() and _hash(path, remote) == (remote.sha256 or remote.git)


def _hash(path: Path, remote: Remote) -> str:
    """Hash of a file of the kind that was published; empty if none was."""
    if remote.sha256 or not remote.git:
        return sha256(path) if remote.sha256 else ""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _fault(path: Path, suffix: str, remote: Remote) -> str:
    """Describe what shows that a file is not the requested one; empty if nothing does."""
    if expected := remote.sha256 or remote.git:
        found = _hash(path, remote)
        return "" if found == expected else f"has the hash {found}, expected {expected}"
    if suffix == LARGE:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np"):
                return ""
        except SafetensorError as error:
            return f"is no file of safetensors ({one_line(error)})"
    with path.open("rb") as file:
        start = file.read(256).lstrip()
    # Such as the login page of a local network, or the page of a publisher who has moved the file.
    return "is a web page" if start.startswith(b"<") and suffix not in TEXTS else ""


@contextmanager
def _told(source: str) -> Iterator[None]:
    """Say in one line about `source` what stopped a transfer."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils.logging import set_verbosity_error

    # It announces each new attempt; the last error is raised.
    set_verbosity_error()
    page = source.partition("/resolve/")[0]
    again = "Check the connection and run the same command again: it goes on where it stopped."
    login = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield
    except GatedRepoError as error:
        raise WeightsError(f"{source} is for those who accept its licence: do so on {page}, and {login}.") from error
    except HfHubHTTPError as error:
        code = error.response.status_code
        is_closed = code in (401, 403) and source.startswith(HUB)
        remedy = f"Look on {page}, and {login}" if is_closed else "Look on the publisher's page"
        raise WeightsError(f"{source} answered {code} {error.response.reason_phrase}. {remedy}.") from error
    except OfflineModeIsEnabled as error:
        raise WeightsError(f"{source} is not asked while HF_HUB_OFFLINE is set. Unset it.") from error
    except HTTPError as error:
        raise WeightsError(f"{source} cannot be reached: {one_line(error) or type(error).__name__}. {again}") from error
    except OSError as error:
        # The disk's own errors have a number; what `http_get` says of a length has none.
        if error.errno is not None:
            raise
        raise WeightsError(f"{source} sent another length than it said. {again}") from error
