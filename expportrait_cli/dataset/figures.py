"""What a tracking and a fit say about a clip: its row's figures, and counts for the histograms of the whole set."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from expportrait_cli.artifacts.types import HeadFit, Tracking
from expportrait_cli.config import PrepareConfig
from expportrait_cli.pipeline.quality import fit_quality

TURNS = ("pitch", "yaw", "roll")
"""Components of a turn away from the camera: about x (right), y (down), z (ahead)."""
PERCENTILES = (5, 50, 95)


@dataclass(frozen=True)
class Axis:
    """One histogram."""

    name: str
    label: str
    low: float
    high: float
    bins: int = 20

    @property
    def edges(self) -> Float[np.ndarray, " N"]:
        """Borders of the bins; what lies beyond is counted in the outermost."""
        return np.linspace(self.low, self.high, self.bins + 1)


AXES = (
    Axis("yaw", "yaw, degrees", -60.0, 60.0),
    Axis("pitch", "pitch, degrees", -40.0, 40.0),
    Axis("jaw", "jaw opening, degrees", 0.0, 30.0),
    Axis("expression", "mean |ψ|", 0.0, 0.3),
    Axis("error", "landmark error, % of the distance between the eyes", 0.0, 6.0),
)


def per_frame(tracking: Tracking) -> dict[str, Float[np.ndarray, " T"]]:
    """What the histograms count, frame by frame; frames without a face are left out."""
    seen = tracking.state == 0
    turns = np.degrees(tracking.rotation[seen])
    return {
        **{name: turns[:, index] for index, name in enumerate(TURNS)},
        "jaw": np.degrees(np.linalg.norm(tracking.jaw[seen], axis=1)),
        "expression": np.abs(tracking.expression[seen]).mean(1),
        "error": tracking.error[seen],
    }


def tracked_figures(tracking: Tracking) -> dict[str, Any]:
    """Figures of a tracking: percentiles 5, 50, 95 of turns and jaw in degrees, means of the rest."""
    values = per_frame(tracking)
    spread = {f"{name}_deg": np.percentile(values[name], PERCENTILES).round(1).tolist() for name in (*TURNS, "jaw")}
    return {
        "landmark_error_percent": round(float(tracking.error.mean()), 2),
        "filled_share": round(float((tracking.state != 0).mean()), 3),
        "shots": int(tracking.shot.max()) + 1,
        **spread,
        "mean_abs_psi": round(float(values["expression"].mean()), 4),
    }


def fitted_figures(fit: HeadFit) -> dict[str, Any]:
    """Figures of a fit: overlap of the outline, and what folds explain."""
    return {name: value for name, value in fit_quality(fit).items() if name != "frames"}


def tracked_refusal(figures: dict[str, Any], config: PrepareConfig) -> str:
    """Why a tracked clip is not taken; empty when it is."""
    error, filled = figures["landmark_error_percent"], figures["filled_share"]
    if error > config.max_error_percent:
        return (
            f"landmark error {error:.2f} % of the distance between the eyes after tracking, "
            f"at most {config.max_error_percent:g} %"
        )
    if filled > 1 - config.face_share:
        return f"no landmarks in {filled:.0%} of the tracked frames, at most {1 - config.face_share:.0%}"
    if figures["shots"] > 1:
        return f"{figures['shots']} shots in the cropped clip, expected 1"
    return ""


def counts(tracking: Tracking) -> dict[str, list[int]]:
    """Frames in each bin of each histogram."""
    values = per_frame(tracking)
    return {
        axis.name: np.histogram(np.clip(values[axis.name], axis.low, axis.high), axis.edges)[0].tolist()
        for axis in AXES
    }
