"""Which network estimates normals and depth on this machine."""

import logging
from importlib.util import find_spec
from typing import Literal

from expportrait_cli.detect.estimate import INSTALL, Estimator
from expportrait_cli.weights.catalogue import Weight, downloaded_file, entry, locate

log = logging.getLogger(__name__)

EstimatorName = Literal["auto", "david", "sapiens", "none"]


SAPIENS_NORMALS = ("sapiens-normal", "sapiens-normal-state", "sapiens-normal-small", "sapiens-normal-small-state")
"""Entries of the catalogue, the better first."""


def available() -> tuple[Literal["david", "sapiens", "none"], str]:
    """Name the estimator that `auto` takes on this machine, and say why, in words for the user. Loads none."""
    found = locate(entry("david")) is not None
    runtime = find_spec("onnxruntime") is not None
    if found and runtime:
        return "david", "its file and onnxruntime are there"
    if sapiens_file() is not None:
        return "sapiens", "its file is there; DAViD's or onnxruntime is not"
    steps = [*([] if runtime else [INSTALL]), *([] if found else ["expportrait weights fetch david"])]
    missing = "`, then `".join(steps)
    return "none", f"no network for normals and depth; DAViD (MIT) would do: `{missing}`"


def sapiens_file() -> Weight | None:
    """Entry of the best file of Sapiens' normals that is there."""
    return next((weight for weight in map(entry, SAPIENS_NORMALS) if locate(weight) is not None), None)


def estimator(name: EstimatorName) -> Estimator | None:
    """Load an estimator. `auto` takes what is there, and says in one line how to get one where nothing is.

    Raises:
        WeightsError: it was asked for by name, and its file or the package that runs it is missing or unusable.
    """
    match name:
        case "none":
            return None
        case "auto":
            found, reason = available()
            log.info("normals and depth: %s", reason if found == "none" else f"{found}, {reason}")
            return estimator(found)
        case "david":
            from expportrait_cli.detect.david import David

            return David(downloaded_file("david"))
        case "sapiens":
            from expportrait_cli.detect.sapiens import Sapiens

            weight = sapiens_file()
            return Sapiens(downloaded_file(weight.name if weight else SAPIENS_NORMALS[0]))
