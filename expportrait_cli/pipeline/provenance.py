"""Where a result comes from: versions, weights, networks, how well it was tracked and fitted, and the run record."""

import json
import logging
import platform
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from expportrait_cli import __version__
from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.files import atomic_path, content_hash
from expportrait_cli.artifacts.types import HeadFit, Tracking
from expportrait_cli.config import FitConfig
from expportrait_cli.detect.estimator import available, sapiens_file
from expportrait_cli.errors import InputError
from expportrait_cli.weights.catalogue import catalogue, entry, locate

log = logging.getLogger(__name__)

DOUBTFUL = 4.0
"""Mean landmark error, percent of the inter-ocular distance, from which a fit is none. Real faces within 50 degrees of
the camera stay below 2.5, seen from the side they reach 8."""


def check_source(path: Path, artifact: HeadFit | Tracking) -> None:
    """Raise InputError unless the pictures that an artifact speaks of are still there and the same."""
    source = Path(artifact.source)
    if not source.is_file() or content_hash(source) != artifact.source_hash:
        raise InputError(f"{path} was made from {source}, which is gone or has changed. Make it again.")


def warn_of_misfit(source: Path, tracking: Tracking) -> None:
    """Say so when the head does not fit what was seen: a face from the side, or none of a person."""
    error = float(tracking.error.mean())
    if error > DOUBTFUL:
        log.warning(
            "%s: the head fits the face badly (%.1f %% of the distance between the eyes, expected below %.0f). "
            "Choose one that shows a person's face from the front.",
            source,
            error,
            DOUBTFUL,
        )


def tracking_quality(tracking: Tracking) -> dict[str, Any]:
    """How well the tracking explains what was seen."""
    return {
        "frames": len(tracking.error),
        "frames_interpolated": int((tracking.state == 1).sum()),
        "frames_held": int((tracking.state == 2).sum()),
        "landmark_error_percent_iod": round(float(tracking.error.mean()), 3),
    }


def fit_quality(head_fit: HeadFit) -> dict[str, Any]:
    """How well the head covers the person."""
    quality: dict[str, Any] = {"silhouette_iou": round(float(head_fit.silhouette_iou), 4)}
    if len(head_fit.dynamic_offset):
        quality["frames"] = len(head_fit.dynamic_offset)
    compared = np.isfinite(head_fit.dynamic_loss).all(1)
    if compared.any():
        without, with_folds = head_fit.dynamic_loss[compared].mean(0)
        quality["folds_explain_percent"] = round(float(100 * (1 - with_folds / without)), 1)
    return quality


PACKAGES = ("torch", "warp-lang", "mediapipe", "numpy", "opencv-contrib-python", "imageio-ffmpeg", "pillow")
SYNTHETIC = "AI-generated: synthetic portrait film, made from a photo by"


def synthetic_tags() -> dict[str, str]:
    """Metadata of every film that the tool writes."""
    maker = f"expportrait {__version__}"
    return {"comment": f"{SYNTHETIC} {maker}", "description": f"{SYNTHETIC} {maker}", "artist": maker}


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version(), "expportrait-cli": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def licences(stages: tuple[str, ...]) -> list[dict[str, str]]:
    """Weights that the stages used, each with what it allows."""
    return [
        {"name": weight.name, "licence": weight.licence, "source": weight.source, "sha256": weight.sha256}
        for weight in catalogue()
        if set(weight.needed_by) & set(stages)
    ]


def network_of(config: FitConfig) -> list[dict[str, str]]:
    """The network that a fit with these settings reads normals from on this machine, as `licences`; often none.

    Its sha256 is the file's own, not the published one, so that it also tells one file from another.
    """
    if config.quality == "draft" or config.supervision in ("shading", "none"):
        return []
    name = available()[0] if config.supervision == "auto" else config.supervision
    weight = {"david": entry("david"), "sapiens": sapiens_file()}.get(name)
    path = locate(weight) if weight is not None else None
    if weight is None or path is None:
        return []
    return [
        {
            "name": weight.name,
            "licence": weight.licence,
            "source": weight.source,
            "sha256": _digest(path, path.stat().st_size, path.stat().st_mtime_ns),
        },
    ]


@lru_cache(maxsize=8)
def _digest(path: Path, size: int, changed_ns: int) -> str:
    """Hash a large file once a process, as long as it stays the same."""
    return content_hash(path)


def networks_behind(head: Path) -> list[dict[str, str]]:
    """Networks that took part in a .head.npz, as its header names them.

    Heads from before headers did that name none, whatever they were made with.
    """
    made_by = npz.read_header(head)["made_by"]
    rows = made_by.get("networks") if isinstance(made_by, dict) else None
    return [
        {str(key): str(value) for key, value in row.items()}
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict) and {"name", "licence"} <= row.keys()
    ]


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write the record as JSON, in full or not at all."""
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_record(path: Path) -> dict[str, Any]:
    """Read a record; one that is absent or damaged is empty."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
