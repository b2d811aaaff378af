"""What one film shows against what was asked of it: pose, expression, identity, flicker; no target is needed."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from expportrait_cli.artifacts.types import CROP_SIZE, Curves, HeadFit
from expportrait_cli.detect.crop import Crop, crop_points
from expportrait_cli.evaluate import image
from expportrait_cli.evaluate.columns import IDENTITIES
from expportrait_cli.evaluate.estimators import Likeness, missing_columns
from expportrait_cli.evaluate.face import Looker
from expportrait_cli.evaluate.own import ITERATIONS, pitch_yaw_roll_deg
from expportrait_cli.geometry.rotations import from_turns
from expportrait_cli.head import LandmarkModel
from expportrait_cli.solve.solver import Solver

ANGLES = ("pitch", "yaw", "roll")
SERIES = Float64[np.ndarray, " T"]
Image = UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True)
class Asked:
    """What the meshes ask for, one value a frame."""

    angles_deg: Float64[np.ndarray, "T 3"]
    """Pitch, yaw and roll away from the frontal pose, in the crop's camera."""
    expression: Float64[np.ndarray, "T E"]
    jaw: SERIES
    """Opening over its full range."""

    @classmethod
    def of(cls, curves: Curves, model: LandmarkModel) -> "Asked":
        """From the curves that the meshes were posed by."""
        return cls(
            angles_of(curves.rotation),
            curves.expression.astype(np.float64),
            curves.jaw[:, 0].astype(np.float64) / model.jaw_full_rad,
        )


@dataclass(frozen=True)
class Shown:
    """What a film shows, one value a frame; NaN without a face."""

    angles_deg: Float64[np.ndarray, "T 3"]
    expression: Float64[np.ndarray, "T E"]
    jaw: SERIES
    identity: dict[str, SERIES]
    """Distance to the photo's face (`identity_dlib`), cosine with it (`csim_arcface`): what is installed."""
    flicker: SERIES
    """Mean second difference of luma, levels of 255; NaN in the first two frames."""
    missing: dict[str, str]
    """Columns of identity that there are none of, and why."""

    @property
    def found(self) -> SERIES:
        """1 where the film shows a face."""
        return np.isfinite(self.jaw).astype(np.float64)

    def expression_error(self, asked: Asked) -> SERIES:
        """Mean absolute difference of the expression coefficients and the jaw's opening, as `aed_own`."""
        own, wanted = (np.column_stack([side.expression, side.jaw]) for side in (self, asked))
        return np.abs(own - wanted).mean(1)

    def pose_error_deg(self, asked: Asked) -> SERIES:
        """Mean absolute difference of pitch, yaw and roll, as `apd_own_deg`."""
        turn = self.angles_deg - asked.angles_deg
        return np.abs((turn + 180) % 360 - 180).mean(1)


def angles_of(turns_rad: Float32[np.ndarray, "T 3"]) -> Float64[np.ndarray, "T 3"]:
    """Pitch, yaw and roll of turns as artifacts keep them, degrees."""
    return np.stack([pitch_yaw_roll_deg(rotation) for rotation in from_turns(turns_rad.astype(np.float64))])


def measure_run(
    frames: Iterable[Image],
    photo: Image,
    head_fit: HeadFit,
    model: LandmarkModel,
    *,
    pasted: bool,
    progress: Callable[[int, int | None], None],
) -> Shown:
    """Solve each frame of a film with the very head and camera that it was made from.

    `pasted` films show the whole photo, others the crop. Holds three frames.
    """
    missing = missing_columns(has_truth=False, side=CROP_SIZE)
    likeness, looker = Likeness(missing), Looker()
    solver = Solver(model, focal_px=float(head_fit.focal_px), centre_px=CROP_SIZE / 2)
    identity = head_fit.identity.astype(np.float64)
    points = Looker().look(photo)
    if points is not None and not likeness.is_empty:
        likeness.compare_with(photo, points)
    rows, lumas = [], deque(maxlen=3)
    for done, frame in enumerate(frames, 1):
        lumas.append(image.luma(frame))
        row: dict[str, np.ndarray | float] = {"flicker": image.flicker(list(lumas)) if len(lumas) == 3 else np.nan}
        seen = looker.look(frame)
        if seen is not None:
            state = solver.frame(identity, _in_crop(seen, frame, head_fit, pasted=pasted), iterations=ITERATIONS)
            row |= {"angles": pitch_yaw_roll_deg(state.rotation), "expression": state.expression}
            row |= {"jaw": state.jaw[0] / model.jaw_full_rad, **likeness.measure(frame, seen)}
        rows.append(row)
        progress(done, None)
    size = head_fit.expression.shape[-1]
    return Shown(
        np.stack([row.get("angles", np.full(3, np.nan)) for row in rows]).astype(np.float64),
        np.stack([row.get("expression", np.full(size, np.nan)) for row in rows]).astype(np.float64),
        _column(rows, "jaw"),
        {name: _column(rows, name) for name in likeness.columns},
        _column(rows, "flicker"),
        {name: why for name, why in missing.items() if name in IDENTITIES},
    )


def _column(rows: list[dict], name: str) -> SERIES:
    return np.array([row.get(name, np.nan) for row in rows], np.float64)


def _in_crop(
    points: Float64[np.ndarray, "478 2"], frame: Image, head_fit: HeadFit, *, pasted: bool
) -> Float32[np.ndarray, "478 2"]:
    """Film px to px of the photo's crop."""
    if not pasted:
        return (points * (CROP_SIZE / frame.shape[1])).astype(np.float32)
    on_photo = (points * (float(head_fit.size[0]) / frame.shape[1])).astype(np.float32)
    return crop_points(on_photo, Crop(*(float(n) for n in head_fit.crop)), CROP_SIZE)
