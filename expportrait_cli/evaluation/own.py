"""Expression, pose and gaze solved from landmarks with the tool's own head model.

Like `expportrait track`, but independently in each frame: nothing is smoothed over time, and the motion of hair is not
used, so that jitter of a film shows in its scores.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from scipy.spatial.transform import Rotation

from expportrait_cli.artifacts.types import CROP_SIZE, Curves, HeadFit
from expportrait_cli.detect.crop import Box, Crop, crop_points, steady_crop
from expportrait_cli.evaluation import image
from expportrait_cli.evaluation.columns import IDENTITIES
from expportrait_cli.evaluation.estimators import Likeness, missing_columns
from expportrait_cli.evaluation.face import LandmarkDetector
from expportrait_cli.geometry.rotations import FRONTAL, from_turns
from expportrait_cli.head import LandmarkModel
from expportrait_cli.runtime import Progress
from expportrait_cli.solve.solver import IDENTITY_PRIOR, Solver
from expportrait_cli.solve.state import State, distinct_rows, focal_for, normalised

Clip = Float32[np.ndarray, "T 478 2"]
KEY_FRAMES, DIFFERENT = 12, 1e-3
"""Frames to which the identity is fitted, and the smallest difference between their normalised landmarks."""
ITERATIONS = 6
"""Solver iterations of a frame that starts from PnP; further ones change no coefficient by 1e-8."""
KINDS = {
    "aed": ("aed_own", "aed_motion_own"),
    "apd": ("apd_own_deg", "apd_motion_own_deg"),
    "gaze": ("gaze_own_deg",),
}
"""Columns of each kind of measure: the difference, and the difference of the motion about the median."""
COLUMNS = [name for names in KINDS.values() for name in names]


class Person:
    """Identity and camera of a clip's face, which all its frames share."""

    def __init__(self, landmarks: Clip, size: tuple[int, int], model: LandmarkModel) -> None:
        """`landmarks`: px in pictures of `size` (width, height); NaN without a face, which at least one frame has."""
        self._model = model
        self._crop = steady_crop(landmarks, size)
        seen = crop_points(landmarks[np.isfinite(landmarks).all((1, 2))], self._crop, CROP_SIZE)
        shapes = normalised(seen)
        keys = seen[distinct_rows(shapes.reshape(len(shapes), -1), KEY_FRAMES, least=DIFFERENT)]
        focal_px = float(np.median([focal_for(model, key, crop_size=CROP_SIZE) for key in keys]))
        self._solver = Solver(model, focal_px=focal_px, centre_px=CROP_SIZE / 2)
        self._identity, _ = self._solver.identity(keys, prior=IDENTITY_PRIOR)

    def solve(self, landmarks: Float32[np.ndarray, "478 2"]) -> State:
        """Solve expression, jaw, gaze and pose of one frame from its landmarks, px."""
        points = crop_points(landmarks, self._crop, CROP_SIZE)
        return self._solver.frame(self._identity, points, iterations=ITERATIONS)

    def measures(self, state: State) -> dict[str, Float64[np.ndarray, " N"]]:
        """Expression (coefficients, and the jaw's opening over its full range), pose and gaze (degrees) of a frame."""
        return {
            "aed": np.append(state.expression, state.jaw[0] / self._model.jaw_full_rad),
            "apd": pitch_yaw_roll_deg(state.rotation),
            "gaze": np.degrees(state.gaze),
        }


def pitch_yaw_roll_deg(rotation: Float64[np.ndarray, "3 3"]) -> Float64[np.ndarray, " 3"]:
    """Angles of R_cam_head relative to the frontal pose: Rz(roll) Ry(yaw) Rx(pitch), axes of the camera."""
    return Rotation.from_matrix(rotation @ FRONTAL).as_euler("xyz", degrees=True)


def differences(own: Clip, target: Clip, persons: tuple[Person, Person]) -> dict[str, Float64[np.ndarray, " T"]]:
    """Mean absolute differences in every frame, by column; NaN where a face is missing.

    aed_own: of the 40 expression coefficients and of the jaw's opening over its full range; unit 1.
    apd_own_deg: of pitch, yaw and roll, over three; degrees. gaze_own_deg: of pitch and yaw of both eyes; degrees.
    aed_motion_own and apd_motion_own_deg: of the same numbers, each less its median over the film's own frames, so that
    a film with the motion of its driver, but from another pose or neutral face, has none.
    Source: the form of AED and APD is that of Deep3DFaceRecon's users (mean L1 of its coefficients and angles), the
    coefficients are ours.
    """
    seen = np.isfinite(own).all((1, 2)) & np.isfinite(target).all((1, 2))
    columns = {name: np.full(len(own), np.nan) for name in COLUMNS}
    if not seen.any():
        return columns
    films = [
        [person.measures(person.solve(points)) for points in clip[seen]]
        for person, clip in zip(persons, (own, target), strict=True)
    ]
    for kind, names in KINDS.items():
        mine, wanted = (np.stack([frame[kind] for frame in film]) for film in films)
        columns[names[0]][seen] = _mean_difference(mine, wanted, kind)
        if len(names) > 1:
            mine, wanted = (film - np.median(film, axis=0) for film in (mine, wanted))
            columns[names[1]][seen] = _mean_difference(mine, wanted, kind)
    return columns


def _mean_difference(
    own: Float64[np.ndarray, "T N"], wanted: Float64[np.ndarray, "T N"], kind: str
) -> Float64[np.ndarray, " T"]:
    gap = own - wanted
    # Differences of angles are wrapped to -180..180 degrees.
    return np.abs((gap + 180) % 360 - 180 if kind == "apd" else gap).mean(1)


ANGLES = ("pitch", "yaw", "roll")
SERIES = Float64[np.ndarray, " T"]
Image = UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True)
class Asked:
    """Pose and expression of the meshes in each frame."""

    angles_deg: Float64[np.ndarray, "T 3"]
    """Pitch, yaw and roll away from the frontal pose, in the crop's camera."""
    expression: Float64[np.ndarray, "T E"]
    jaw: SERIES
    """Opening of the jaw, as a share of its full range."""

    @classmethod
    def of(cls, curves: Curves, model: LandmarkModel) -> "Asked":
        """Read the values from the curves that the meshes were posed by."""
        return cls(
            angles_of(curves.rotation),
            curves.expression.astype(np.float64),
            curves.jaw[:, 0].astype(np.float64) / model.jaw_full_rad,
        )


@dataclass(frozen=True)
class Shown:
    """Pose, expression, identity and flicker measured in each frame of a film; NaN without a face."""

    angles_deg: Float64[np.ndarray, "T 3"]
    expression: Float64[np.ndarray, "T E"]
    jaw: SERIES
    identity: dict[str, SERIES]
    """Distance to the photo's face (`identity_dlib`), and cosine with it (`csim_arcface`), if installed."""
    flicker: SERIES
    """Mean second difference of luma, levels of 255; NaN in the first two frames."""
    missing: dict[str, str]
    """Columns of identity that are not measured, with reasons."""

    @property
    def found(self) -> SERIES:
        """1 where a face is found in the film, else 0."""
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
    """Pitch, yaw and roll, degrees, of rotations as in artifacts (axis-angle, rad)."""
    return np.stack([pitch_yaw_roll_deg(rotation) for rotation in from_turns(turns_rad.astype(np.float64))])


def measure_run(
    frames: Iterable[Image],
    photo: Image,
    head_fit: HeadFit,
    model: LandmarkModel,
    *,
    box: Box,
    progress: Progress,
) -> Shown:
    """Measure each frame of a film, solving with the same head and camera that it was made with.

    `box`: part of the photo that the film shows. At most three frames are in memory.
    """
    missing = missing_columns(has_truth=False, side=CROP_SIZE)
    likeness, detector = Likeness(missing), LandmarkDetector()
    solver = Solver(model, focal_px=float(head_fit.focal_px), centre_px=CROP_SIZE / 2)
    identity = head_fit.identity.astype(np.float64)
    points = LandmarkDetector().detect(photo)
    if points is not None and not likeness.is_empty:
        likeness.compare_with(photo, points)
    rows, lumas = [], deque(maxlen=3)
    for done, frame in enumerate(frames, 1):
        lumas.append(image.luma(frame))
        row: dict[str, np.ndarray | float] = {"flicker": image.flicker(list(lumas)) if len(lumas) == 3 else np.nan}
        seen = detector.detect(frame)
        if seen is not None:
            state = solver.frame(identity, _in_crop(seen, frame, head_fit, box), iterations=ITERATIONS)
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
    points: Float64[np.ndarray, "478 2"], frame: Image, head_fit: HeadFit, box: Box
) -> Float32[np.ndarray, "478 2"]:
    """Convert px of the film to px of the photo's crop."""
    on_photo = points * (box.width / frame.shape[1]) + np.array([box.left, box.top])
    return crop_points(on_photo.astype(np.float32), Crop(*map(float, head_fit.crop)), CROP_SIZE)
