"""Every default of every stage, once."""

from dataclasses import dataclass
from typing import Literal

SIZES = (256, 512, 768)
OnMissing = Literal["hold", "interpolate", "fail"]
Supervision = Literal["auto", "none", "shading", "david", "sapiens"]
Recenter = Literal["neutral", "mean"]
Quality = Literal["draft", "standard", "high"]
Audio = Literal["driving", "reference", "none"]


@dataclass(frozen=True)
class TrackConfig:
    """How a photo or clip is tracked."""

    face: str = "largest"
    """largest, left, right, or the index of the face counted from the left."""
    on_missing: OnMissing = "interpolate"
    """What stands in for a frame without a face: a short gap is interpolated, a long one held; or fail."""
    several: Literal["note", "fail"] = "note"
    """Several faces without a choice: take the largest with a note, or refuse."""


@dataclass(frozen=True)
class FitConfig:
    """How the static head is fitted."""

    quality: Quality = "standard"
    """draft: landmarks and outline alone; standard: folds by shading, or by a network that is installed; high: more
    steps for them."""
    supervision: Supervision = "auto"
    """What folds are read from: auto is the best network installed, otherwise shading for clips."""
    recenter: Recenter = "neutral"
    """Which mean over a clip's frames counts as the person's own shape: of its neutral frames, or of all."""
    rounds: int = 8
    """Rounds of the silhouette fit."""
    iterations: int = 25
    """Steps of the folds' descent a window of frames; twice as many at high quality."""


@dataclass(frozen=True)
class TransferConfig:
    """How the driver's performance is put onto the person's head."""

    absolute: bool = False
    """Take the driver's own expression and pose instead of the change from the neutral frame."""
    neutral_frame: str = "auto"
    """Driver frame that counts as neutral: auto or its index."""
    expression_scale: float = 1.0
    pose_scale: float = 1.0
    region: str = "all"
    """Comma-separated list of pose, expression, lips, eyes, gaze; or all."""
    smooth: float = 0.0
    """Standard deviation of the temporal smoothing, frames."""
    turn_limit_deg: float | None = 45.0
    """Turn of the head, away from the photo's, beyond which it is damped; None leaves every turn as it is."""


@dataclass(frozen=True)
class RenderConfig:
    """How meshes become normal maps."""

    size: int = 512
    antialias: bool = True


@dataclass(frozen=True)
class GenerateConfig:
    """How the film is made."""

    backend: Literal["auto", "proxy"] = "auto"
    size: int = 512
    paste_back: bool = False
    audio: Audio = "driving"
    seed: int = 0
