"""The catalogue of weights: path, hash and licence of each file; and folders of painters' weights."""

import hashlib
import importlib.util
import json
import logging
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from expportrait_cli.artifacts.files import atomic_path, noted, sha256
from expportrait_cli.artifacts.texts import read_json, read_toml
from expportrait_cli.errors import OutputError, UsageError, WeightsError, one_line

PACKAGED = Path(__file__).parents[1] / "_weights"
CHECKOUT = Path(__file__).parents[2] / "weights"

HASH, NAME = re.compile("([0-9a-f]{64})?"), re.compile(r"[\w ./+-]{1,200}")
"""Allowed forms of a sha256 and of a file name."""

FETCHED = "fetched.json"
"""File in a downloaded folder with the source, the commit, and the hash of each file."""

TINY_DECODER = "taew2.1"
"""Name of the entry of the decoder for previews of Wan films."""

PAIRS = ("data", "pinned")
"""Settings of an entry that are lists of pairs."""

State = Literal["ok", "missing", "wrong", "unknown"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weight:
    """One entry of the catalogue."""

    name: str
    file: str
    """Path in the weights folder, or in the package that ships it."""
    source: str
    sha256: str
    """Hash of the file; empty if none is published: then any file is accepted, and the first download pins the hash."""
    licence: str
    needed_by: tuple[str, ...]
    """Parts of the tool that need it."""
    package: str = ""
    """Import name of the package whose wheel holds the file; empty for a file of the weights folder."""
    optional: bool = False
    """True if it may be missing, since only an optional part needs it."""
    form: str = ""
    """Page where the user must accept a licence to get the file; empty if there is none."""
    parts: tuple[str, ...] = ()
    """If the entry is a folder: parts of the repository `source` that are downloaded."""
    pinned: tuple[tuple[str, str], ...] = ()
    """Files of the folder whose sha256 is known; the hub must list the same."""
    data: tuple[tuple[str, str], ...] = ()
    """Data that it was made from or trained on, with the licence of each; empty if unknown."""

    @property
    def downloads(self) -> bool:
        """True if `expportrait weights fetch` can download it."""
        return self.source.startswith(("https://", "http://")) and not self.form


def folders() -> tuple[Path, ...]:
    """Folders of weights in the order of search: the user's choice, the wheel, the checkout, the cache."""
    import platformdirs

    chosen = os.environ.get("EXPPORTRAIT_WEIGHTS")
    cached = platformdirs.user_cache_path("expportrait") / "weights"
    return (*((Path(chosen),) if chosen else ()), PACKAGED, CHECKOUT, cached)


def weights_file(name: str) -> Path:
    """Find a file in the weights folders.

    Raises:
        WeightsError: the file is missing.
    """
    chosen = os.environ.get("EXPPORTRAIT_WEIGHTS")
    if chosen and Path(chosen).exists() and not Path(chosen).is_dir():
        raise WeightsError(f"EXPPORTRAIT_WEIGHTS names {chosen}, which is no folder. Name one, or unset it.")
    for folder in folders():
        if (folder / name).is_dir():
            raise WeightsError(f"{folder / name} is a folder, expected a file. Remove it.")
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"weights/{name} is missing: looked in {', '.join(map(str, folders()))}. "
        "Run `expportrait weights verify`, reinstall, or point EXPPORTRAIT_WEIGHTS at the folder that has it."
    )


@cache
def catalogue() -> tuple[Weight, ...]:
    """Read all entries of weights/catalogue.toml.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    path = weights_file("catalogue.toml")
    try:
        rows = read_toml(path)["weight"]
        if not isinstance(rows, list) or not rows:
            raise ValueError("it has no entries")
        found = tuple(_weight(row) for row in rows)
        if len({weight.name for weight in found}) < len(found):
            raise ValueError("it has two entries of one name")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} is no catalogue of weights: {one_line(error)}. Take it out of EXPPORTRAIT_WEIGHTS, or install the "
            "tool again."
        ) from error
    return found


def _weight(row: Any) -> Weight:
    """Check and convert an entry; lists become tuples, which are hashable."""
    if not isinstance(row, dict):
        raise ValueError("an entry is no table")
    name, values = str(row.get("name"))[:60], {key: _hashable(value) for key, value in row.items()}
    for key, value in values.items():
        kind = tuple if key in ("needed_by", "parts", *PAIRS) else bool if key == "optional" else str
        rows = value if key in PAIRS and type(value) is tuple else [value] if kind is tuple else []
        is_sound = all(type(row) is tuple and all(isinstance(text, str) for text in row) for row in rows)
        if type(value) is not kind or not is_sound or (key in PAIRS and any(len(row) != 2 for row in rows)):
            raise ValueError(f"{key} of {name!r} is {str(value)[:60]!r}")
    weight = Weight(**values)
    inside = Path(weight.file)
    if not weight.name or not all(HASH.fullmatch(text) for text in (weight.sha256, *dict(weight.pinned).values())):
        raise ValueError(f"sha256 of {name!r} is {weight.sha256[:70]!r}, or it has no name")
    if not NAME.fullmatch(weight.file) or inside.is_absolute() or ".." in inside.parts or inside == Path():
        raise ValueError(f"file of {name!r} is {weight.file[:60]!r}, expected a path below the folder")
    if weight.package and not weight.package.isidentifier():
        raise ValueError(f"package of {name!r} is {weight.package[:60]!r}")
    return weight


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def locate(weight: Weight) -> Path | None:
    """Path of an entry's file or folder; None if missing. The package that ships it is not imported."""
    if weight.package:
        spec = importlib.util.find_spec(weight.package)
        roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
    else:
        roots = list(folders())
    # A folder is complete if it has `FETCHED`, which is written last.
    sign = f"{weight.file}/{FETCHED}" if weight.parts else weight.file
    return next((root / weight.file for root in roots if (root / sign).is_file()), None)


def state(weight: Weight) -> State:
    """Check that an entry's file exists and has the right hash; `unknown` if no hash is known."""
    path = locate(weight)
    if path is None:
        return "missing"
    if weight.parts:
        return "ok" if _is_as_fetched(path) else "wrong"
    expected = weight.sha256 or noted(path)
    if not expected:
        return "unknown"
    return "ok" if sha256(path) == expected else "wrong"


def _is_as_fetched(folder: Path) -> bool:
    """True if every file of a folder has the hash that was recorded after its download."""
    try:
        rows = read_json(folder / FETCHED)["files"]
        return bool(rows) and all(sha256(folder / row["file"]) == row["sha256"] for row in rows)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def entry(name: str) -> Weight:
    """Return the entry `name`.

    Raises:
        UsageError: there is no such entry.
    """
    found = next((weight for weight in catalogue() if weight.name == name), None)
    if found is None:
        known = ", ".join(weight.name for weight in catalogue() if weight.downloads)
        raise UsageError(f"{name!r} is not in the catalogue of weights. These can be downloaded: {known}.")
    return found


def how_to_get(weight: Weight) -> str:
    """Sentence that tells the user how to get a missing file."""
    if weight.downloads:
        return (
            f"Run `expportrait weights fetch {weight.name}`, or put {weight.source} into {folders()[-1]} or into the "
            "folder that EXPPORTRAIT_WEIGHTS names."
        )
    if weight.form:
        return f"Accept its licence on {weight.form}, and put {weight.file} into {folders()[-1]}."
    if weight.optional and not weight.package:
        return f"It is not in the wheel: copy it from the folder `weights` of a checkout to {folders()[-1]}."
    return f"Install {weight.source}." if weight.package else "Install the tool again."


def found_file(weight: Weight) -> Path:
    """Path of an entry's file.

    Raises:
        WeightsError: the file is in none of the folders.
    """
    path = locate(weight)
    if path is None:
        raise WeightsError(f"{weight.file} is missing. {how_to_get(weight)}")
    return path


def checked_file(name: str) -> Path:
    """Path of the file of entry `name`. Warns if its hash is not that of the catalogue.

    Raises:
        WeightsError: the file is in none of the folders.
    """
    weight = entry(name)
    path = found_file(weight)
    if weight.sha256 and sha256(path) != weight.sha256:
        log.warning("%s is not the published %s: the figures of this tool may not hold.", path, weight.file)
    return path


FolderName = Literal["wan-vace", "wan-v2v", "wan-portrait"]
MANIFEST = "generator.json"
READ = ("transformer", "vae")
"""Subfolders that painters use; folders of diffusers have more, such as a text encoder."""


@dataclass(frozen=True)
class Folder:
    """Folder with the weights of a painter, for example of wan-vace."""

    path: Path
    kind: FolderName
    sha256: str
    licence: str
    source: str

    def row(self) -> dict[str, str]:
        """Entry of the run record's list of weights."""
        return {"name": self.kind, "licence": self.licence, "source": self.source, "sha256": self.sha256}


def kind_of(path: Path) -> FolderName:
    """Return the painter that the weights of a folder are for.

    Raises:
        WeightsError: the weights are of no painter of the tool.
    """
    if (path / MANIFEST).is_file():
        return "wan-portrait"
    try:
        name = read_json(path / "transformer" / "config.json")["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} holds no weights of a painter: it has neither {MANIFEST} nor transformer/config.json. Name a "
            "folder of `weights fetch`, of `train generator`, or one that diffusers saved."
        ) from error
    kinds: dict[str, FolderName] = {"WanVACETransformer3DModel": "wan-vace", "WanTransformer3DModel": "wan-v2v"}
    if name not in kinds:
        raise WeightsError(f"{path} holds a {name}, expected a Wan or a Wan VACE transformer. Name another folder.")
    return kinds[name]


def read_folder(path: Path, kind: FolderName) -> Folder:
    """Hash a folder, and find its licence and source.

    Of a trained generator the manifest is hashed, which lists the hash of every file and is checked on loading. Of
    others all files are hashed; hashes of unchanged files are cached beside the downloaded weights.
    """
    if kind == "wan-portrait":
        manifest = path / MANIFEST
        try:
            content = read_json(manifest)
            licence, source = str(content["base"]["license"]), str(content["base"]["repo"])
            vae = Path(content["vae"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{manifest} is damaged. Copy the folder again.") from error
        # An autoencoder at another place is not in the manifest.
        files = [manifest, *(_files(vae) if vae.is_absolute() else [])]
        return Folder(path, kind, _hash_of(files, path), licence, f"trained from {source}")
    files = [file for part in READ for file in _files(path / part)]
    files += [file for file in (path / "prompt_embeds.safetensors",) if file.is_file()]
    named = licence_of(path)
    if named == "unknown":
        named += ": see where it came from"
    return Folder(path, kind, _hash_of(files, path), named, str(path))


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*") if file.suffix in (".json", ".safetensors"))


def _hash_of(files: list[Path], root: Path) -> str:
    """One hash of files and their names, which does not depend on the folder's path."""
    names = {file: file.name if file.parent == root else f"{file.parent.name}/{file.name}" for file in files}
    rows = [f"{names[file]} {digest}\n" for file, digest in _remembered(files).items()]
    return hashlib.sha256("".join(rows).encode()).hexdigest()


def licence_of(folder: Path) -> str:
    """Licence in the front matter of a model's README.md; `unknown` if none is named."""
    page = folder / "README.md"
    text = page.read_text("utf-8", errors="replace") if page.is_file() else ""
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license:\s*(\S+)", head[1], re.MULTILINE) if head else None
    return found[1] if found else "unknown"


def _remembered(files: list[Path]) -> dict[Path, str]:
    """Hash of each file; files of unchanged size and time are not read again."""
    memory = folders()[-1] / ".hashes.json"
    try:
        known = read_json(memory)
    except (OSError, ValueError):
        known = {}
    if not isinstance(known, dict):
        known = {}
    found = {}
    for file in files:
        status = file.stat()
        key = f"{os.path.realpath(file)} {status.st_size} {status.st_mtime_ns}"
        found[file] = (key, known.get(key) or sha256(file))
    fresh = dict(found.values())
    if not fresh.items() <= known.items():
        try:
            with atomic_path(memory) as partial:
                partial.write_text(json.dumps({**known, **fresh}, indent=1), "utf-8")
        except OutputError as error:
            # The hashes are then computed again next time.
            log.info("%s", error)
    return {file: digest for file, (_, digest) in found.items()}
