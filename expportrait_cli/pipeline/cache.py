"""What an artifact depends on, as one key; and the choice between reading it and making it again."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from expportrait_cli import __version__
from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.files import content_hash
from expportrait_cli.errors import InputError
from expportrait_cli.weights.catalogue import catalogue

log = logging.getLogger(__name__)

A = TypeVar("A")

REVISIONS = {
    "scan": 1,
    "clip": 1,
    "track": 1,
    "fit": 1,
    "transfer": 1,
    "render": 1,
    "generate": 1,
    "generator-cache": 1,
}
"""Revision of each stage. Raise one when the same inputs and settings give another result: what earlier versions of the
tool left is then made again. `tests/pipeline/test_revisions.py` holds results of every stage and tells when it is time.
"""


@dataclass(frozen=True)
class Keyed(Generic[A]):
    """An artifact, and what stands for it in the keys of what is made from it."""

    artifact: A
    key: str


def given(cls: type[A], path: Path) -> Keyed[A]:
    """Read an artifact that the user gave: its content is its key, whatever its header says of how it was made."""
    return Keyed(npz.load(cls, path), content_hash(path))


def made_by(stage: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any]:
    """Header of an artifact: the tool, the stage's settings, what it was made from, and the key of all that.

    `inputs` are content hashes, or the keys of artifacts that were made on the way.
    """
    weights = {weight.name: weight.sha256 for weight in catalogue() if stage in weight.needed_by}
    header = {
        "tool": f"expportrait {__version__}",
        "stage": stage,
        "revision": REVISIONS[stage],
        "settings": dict(settings),
        "inputs": dict(inputs),
        "weights": weights,
    }
    text = json.dumps(header, sort_keys=True)
    return {**header, "key": hashlib.sha256(text.encode()).hexdigest()}


def is_current(path: Path, header: Mapping[str, Any]) -> bool:
    """Whether the artifact at `path` was made from the same inputs with the same settings."""
    if not path.is_file():
        return False
    try:
        found = npz.read_header(path)["made_by"]
    except InputError as error:
        log.info("%s It is made again.", error)
        return False
    return isinstance(found, dict) and found.get("key") == header["key"]


def cached(cls: type[A], path: Path, header: Mapping[str, Any], make: Callable[[], A]) -> Keyed[A]:
    """Read the artifact when it is current, otherwise make and save it."""
    if is_current(path, header):
        try:
            return Keyed(npz.load(cls, path), header["key"])
        except InputError as error:
            log.info("%s It is made again.", error)
    artifact = make()
    npz.save(artifact, path, header)
    return Keyed(artifact, header["key"])
