"""What artifacts say about a result, and whether they still can be trusted."""

from pathlib import Path
from typing import Any

from expportrait_cli.artifacts.types import HeadFit, Tracking
from expportrait_cli.errors import InputError
from expportrait_cli.media.files import content_hash


def check_source(path: Path, artifact: HeadFit | Tracking) -> None:
    """Raise InputError unless the pictures that an artifact speaks of are still there and the same."""
    source = Path(artifact.source)
    if not source.is_file() or content_hash(source) != artifact.source_hash:
        raise InputError(f"{path} was made from {source}, which is gone or has changed. Make it again.")


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
    return {"silhouette_iou": round(float(head_fit.silhouette_iou), 4)}
