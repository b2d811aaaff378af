"""The catalogue of weights: where each file lies, what it must hash to, and what its licence allows."""

import importlib.util
import json
import logging
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from expportrait_cli.artifacts.files import sha256
from expportrait_cli.errors import UsageError, WeightsError

PACKAGED = Path(__file__).parents[1] / "_weights"
CHECKOUT = Path(__file__).parents[2] / "weights"

FETCHED = "fetched.json"
"""Note in a folder that was downloaded: from where, which commit, and the hash of each file."""

State = Literal["ok", "missing", "wrong", "unknown"]
Interface = Literal["legacy", "tasks"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weight:
    """One entry of the catalogue."""

    name: str
    file: str
    """Path in the weights folder, or in the package that ships it."""
    source: str
    sha256: str
    """Empty where nobody published it: then any file of that name is taken."""
    licence: str
    needed_by: tuple[str, ...]
    """Parts that cannot work without it."""
    package: str = ""
    """Import name of the package whose wheel holds the file; empty for a file of the weights folder."""
    optional: bool = False
    """Missing is fine: the part that needs it is an extra."""
    interface: str = ""
    """Only used where mediapipe is spoken to through this interface; empty for what every machine uses."""
    form: str = ""
    """Page where the user has to accept a licence to get the file; empty where none stands before it."""
    parts: tuple[str, ...] = ()
    """For a folder instead of a file: what of the repository `source` it is made of."""
    data: tuple[tuple[str, str], ...] = ()
    """What it was made from or rests on, and the licence of that; empty where it is not known."""

    @property
    def downloads(self) -> bool:
        """Whether `expportrait weights fetch` can get it."""
        return self.source.startswith(("https://", "http://")) and not self.form


def folders() -> tuple[Path, ...]:
    """Where weights are looked for, first match wins: the user's choice, the wheel, the checkout, the cache."""
    import platformdirs

    chosen = os.environ.get("EXPPORTRAIT_WEIGHTS")
    cached = platformdirs.user_cache_path("expportrait") / "weights"
    return (*((Path(chosen),) if chosen else ()), PACKAGED, CHECKOUT, cached)


def weights_file(name: str) -> Path:
    """Path of a file of the weights folder."""
    for folder in folders():
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"weights/{name} is missing: looked in {', '.join(map(str, folders()))}. "
        "Run `expportrait weights verify`, reinstall, or point EXPPORTRAIT_WEIGHTS at the folder that has it."
    )


def mediapipe_interface() -> Interface:
    """How the installed mediapipe is spoken to: its own solutions, with models inside, or Tasks, which reads files.

    Looks without importing it. Without any mediapipe it is the solutions, which then say what to install.
    """
    spec = importlib.util.find_spec("mediapipe")
    roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
    return "tasks" if roots and not any((root / "python" / "solutions").is_dir() for root in roots) else "legacy"


@cache
def entries() -> tuple[Weight, ...]:
    """Every entry of weights/catalogue.toml."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    rows = tomllib.loads(weights_file("catalogue.toml").read_text("utf-8"))["weight"]
    return tuple(_weight(row) for row in rows)


def _weight(row: dict[str, Any]) -> Weight:
    """An entry; lists become tuples, which can be hashed."""
    return Weight(**{name: _hashable(value) for name, value in row.items()})


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


@cache
def catalogue() -> tuple[Weight, ...]:
    """The entries that this machine uses: one of the two sets of mediapipe's models, and all others."""
    used = ("", mediapipe_interface())
    return tuple(entry for entry in entries() if entry.interface in used)


def locate(weight: Weight) -> Path | None:
    """Path of an entry's file, or None. Does not import the package that ships it."""
    if weight.package:
        spec = importlib.util.find_spec(weight.package)
        roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
    else:
        roots = list(folders())
    # A folder is there when all of it has arrived, which is noted last.
    sign = f"{weight.file}/{FETCHED}" if weight.parts else weight.file
    return next((root / weight.file for root in roots if (root / sign).is_file()), None)


def state(weight: Weight) -> State:
    """Whether an entry's file is there and is the one that the catalogue names."""
    path = locate(weight)
    if path is None:
        return "missing"
    if weight.parts:
        return "ok" if _is_as_fetched(path) else "wrong"
    if not weight.sha256:
        return "unknown"
    return "ok" if sha256(path) == weight.sha256 else "wrong"


def _is_as_fetched(folder: Path) -> bool:
    """Whether every file of a folder has the hash that was noted when it arrived."""
    try:
        rows = json.loads((folder / FETCHED).read_text("utf-8"))["files"]
        return all(sha256(folder / row["file"]) == row["sha256"] for row in rows)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def entry(name: str) -> Weight:
    """Entry of that name, whether or not this machine uses it.

    Raises:
        UsageError: there is none.
    """
    found = next((weight for weight in entries() if weight.name == name), None)
    if found is None:
        known = ", ".join(weight.name for weight in entries() if weight.downloads)
        raise UsageError(f"{name!r} is not in the catalogue of weights. These can be downloaded: {known}.")
    return found


def how_to_get(weight: Weight) -> str:
    """What the user has to do for a file that is missing, in a sentence."""
    if weight.downloads:
        return (
            f"Run `expportrait weights fetch {weight.name}`, or put {weight.source} into {folders()[-1]} or into the "
            "folder that EXPPORTRAIT_WEIGHTS names."
        )
    if weight.form:
        return f"Accept its licence on {weight.form}, and put {weight.file} into {folders()[-1]}."
    return f"Install {weight.source}." if weight.package else "Install the tool again."


def downloaded_file(name: str) -> Path:
    """Path of the entry `name`, a file that the user has to download. Warns when it is not the published one.

    Raises:
        WeightsError: it is in none of the folders.
    """
    weight = entry(name)
    path = locate(weight)
    if path is None:
        raise WeightsError(f"{weight.file} is missing. {how_to_get(weight)}")
    if weight.sha256 and sha256(path) != weight.sha256:
        log.warning("%s is not the published %s: the figures of this tool may not hold.", path, weight.file)
    return path
