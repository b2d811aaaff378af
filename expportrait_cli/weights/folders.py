"""Folders of large weights, looked at without loading them: whose they are, their licence, and one hash for all."""

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from expportrait_cli.artifacts.files import atomic_path, sha256
from expportrait_cli.artifacts.texts import read_json
from expportrait_cli.errors import OutputError, WeightsError
from expportrait_cli.weights.catalogue import folders

log = logging.getLogger(__name__)

FolderName = Literal["wan-vace", "wan-v2v", "wan-portrait"]
MANIFEST = "generator.json"
READ = ("transformer", "vae")
"""Parts that are painted with; a folder of diffusers holds a text encoder and more beside them."""


@dataclass(frozen=True)
class Folder:
    """Weights of one painter."""

    path: Path
    kind: FolderName
    sha256: str
    licence: str
    source: str

    def row(self) -> dict[str, str]:
        """As the run record lists weights."""
        return {"name": self.kind, "licence": self.licence, "source": self.source, "sha256": self.sha256}


def kind_of(path: Path) -> FolderName:
    """Whose weights a folder holds.

    Raises:
        WeightsError: nobody's that the tool knows.
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
    """Hash a folder, and find what may be done with it.

    A trained generator is known by its manifest, which lists the hash of every file and is checked on loading. Others
    are hashed whole; hashes of files that did not change since are remembered beside the downloaded weights.
    """
    if kind == "wan-portrait":
        manifest = path / MANIFEST
        try:
            content = read_json(manifest)
            licence, source = str(content["base"]["license"]), str(content["base"]["repo"])
            vae = Path(content["vae"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{manifest} is damaged. Copy the folder again.") from error
        # An autoencoder that lies elsewhere is in no manifest.
        files = [manifest, *(_files(vae) if vae.is_absolute() else [])]
        return Folder(path, kind, _hash_of(files, path), licence, f"trained from {source}")
    files = [file for part in READ for file in _files(path / part)]
    files += [file for file in (path / "prompt_embeds.safetensors",) if file.is_file()]
    return Folder(path, kind, _hash_of(files, path), _licence(path), str(path))


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*") if file.suffix in (".json", ".safetensors"))


def _hash_of(files: list[Path], root: Path) -> str:
    """One hash for files and their names; the folder that holds them may be moved."""
    names = {file: file.name if file.parent == root else f"{file.parent.name}/{file.name}" for file in files}
    rows = [f"{names[file]} {digest}\n" for file, digest in _remembered(files).items()]
    return hashlib.sha256("".join(rows).encode()).hexdigest()


def _licence(path: Path) -> str:
    """As the front matter of a model's README says."""
    try:
        lines = (path / "README.md").read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return "unknown: see where it came from"
    named = [line.partition(":")[2].strip() for line in lines[:40] if line.startswith("license:")]
    return named[0] if named else "unknown: see where it came from"


def _remembered(files: list[Path]) -> dict[Path, str]:
    """Hash of each file; known ones of the same size and time are not read again."""
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
            # They are found out again next time.
            log.info("%s", error)
    return {file: digest for file, (_, digest) in found.items()}
