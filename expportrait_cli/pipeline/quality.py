"""What artifacts say about a result, and whether they still can be trusted."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from expportrait_cli.artifacts.types import HeadFit, Tracking
from expportrait_cli.errors import InputError
from expportrait_cli.media.files import content_hash

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
