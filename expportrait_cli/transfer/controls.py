"""What a user chooses of a performance: neutral frame, strength, regions, smoothing."""

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter1d

from expportrait_cli.errors import UsageError

REGIONS = ("pose", "expression", "lips", "eyes", "gaze")
LIPS = ("jaw", "mouth")
EYES = ("eye",)


def parse_regions(text: str) -> frozenset[str]:
    """Regions named in a comma-separated list; `all` is every one of them."""
    if text == "all":
        return frozenset(("pose", "expression", "gaze"))
    named = {part.strip() for part in text.split(",") if part.strip()}
    unknown = sorted(named - set(REGIONS))
    if unknown or not named:
        raise UsageError(f"--region {text!r}: expected a list of {', '.join(REGIONS)}, or all.")
    return frozenset(named)


def expression_mask(names: tuple[str, ...], regions: frozenset[str]) -> Float[np.ndarray, " E"]:
    """1 for the expression units that the chosen regions move, else 0."""
    if "expression" in regions:
        return np.ones(len(names))
    chosen = (LIPS if "lips" in regions else ()) + (EYES if "eyes" in regions else ())
    return np.array([float(name.startswith(chosen)) if chosen else 0.0 for name in names])


def moves_jaw(regions: frozenset[str]) -> bool:
    """Whether the jaw follows the driver."""
    return bool(regions & {"expression", "lips"})


def smooth(values: Float[np.ndarray, "T *C"], sigma_frames: float) -> Float[np.ndarray, "T *C"]:
    """Gaussian smoothing over time; 0 leaves the values as they are."""
    return gaussian_filter1d(values, sigma_frames, axis=0, mode="nearest") if sigma_frames > 0 else values
