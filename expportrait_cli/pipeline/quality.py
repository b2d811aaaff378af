"""What the artifacts themselves say about a result."""

from typing import Any

from expportrait_cli.artifacts.types import HeadFit, Tracking


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
