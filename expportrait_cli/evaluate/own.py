"""Expression, pose and gaze of two films, solved from their landmarks with the tool's own head model.

As `expportrait track` solves them, but each frame on its own: nothing is smoothed over time and nothing is read from
the motion of the hair, so that what shakes in a film shakes in its scores.
"""

import numpy as np
from jaxtyping import Float32, Float64
from scipy.spatial.transform import Rotation

from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.detect.crop import crop_points, steady_crop
from expportrait_cli.geometry.rotations import FRONTAL
from expportrait_cli.head import LandmarkModel
from expportrait_cli.head.solve import IDENTITY_PRIOR, Solver
from expportrait_cli.head.state import State, distinct_rows, focal_for, normalised

Clip = Float32[np.ndarray, "T 478 2"]
KEY_FRAMES, DIFFERENT = 12, 1e-3
"""Frames that the identity comes from, and the least difference of their normalised landmarks."""
ITERATIONS = 6
"""Of a frame that starts from PnP: the next ones change no coefficient by 1e-8."""


class Person:
    """Identity and camera of a clip's face: what all its frames share."""

    def __init__(self, landmarks: Clip, size: tuple[int, int], model: LandmarkModel) -> None:
        """Landmarks are px of a picture of this width and height, NaN without a face; one frame at least has one."""
        self._model = model
        self._crop = steady_crop(landmarks, size)
        seen = crop_points(landmarks[np.isfinite(landmarks).all((1, 2))], self._crop, CROP_SIZE)
        shapes = normalised(seen)
        keys = seen[distinct_rows(shapes.reshape(len(shapes), -1), KEY_FRAMES, least=DIFFERENT)]
        focal_px = float(np.median([focal_for(model, key, crop_size=CROP_SIZE) for key in keys]))
        self._solver = Solver(model, focal_px=focal_px, centre_px=CROP_SIZE / 2)
        self._identity, _ = self._solver.identity(keys, prior=IDENTITY_PRIOR)

    def solve(self, landmarks: Float32[np.ndarray, "478 2"]) -> State:
        """Expression, jaw, gaze and pose of one frame, px of the picture."""
        points = crop_points(landmarks, self._crop, CROP_SIZE)
        return self._solver.frame(self._identity, points, iterations=ITERATIONS)

    def differences(self, own: State, target: State) -> dict[str, float]:
        """`aed_own`, `apd_own_deg` and `gaze_own_deg` of one frame: mean absolute differences.

        aed_own: of the 40 expression coefficients and of the jaw's opening over its full range; unit 1.
        apd_own_deg: of pitch, yaw and roll, over three; degrees. gaze_own_deg: of pitch and yaw of both eyes; degrees.
        Source: the form of AED and APD is that of Deep3DFaceRecon's users (mean L1 of its coefficients and angles),
        the coefficients are ours.
        """
        coefficients, wanted = (np.append(s.expression, s.jaw[0] / self._model.jaw_full_rad) for s in (own, target))
        turn = pitch_yaw_roll_deg(own.rotation) - pitch_yaw_roll_deg(target.rotation)
        return {
            "aed_own": float(np.abs(coefficients - wanted).mean()),
            "apd_own_deg": float(np.abs((turn + 180) % 360 - 180).mean()),
            "gaze_own_deg": float(np.degrees(np.abs(own.gaze - target.gaze)).mean()),
        }


def pitch_yaw_roll_deg(rotation: Float64[np.ndarray, "3 3"]) -> Float64[np.ndarray, " 3"]:
    """Angles of R_cam_head away from the frontal pose: Rz(roll) Ry(yaw) Rx(pitch), axes of the camera."""
    return Rotation.from_matrix(rotation @ FRONTAL).as_euler("xyz", degrees=True)


def differences(own: Clip, target: Clip, persons: tuple[Person, Person]) -> dict[str, Float64[np.ndarray, " T"]]:
    """`Person.differences` of every frame; NaN where a face is missing."""
    blank = {"aed_own": np.nan, "apd_own_deg": np.nan, "gaze_own_deg": np.nan}
    rows = []
    for points, wanted in zip(own, target, strict=True):
        if np.isfinite(points).all() and np.isfinite(wanted).all():
            states = persons[0].solve(points), persons[1].solve(wanted)
            rows.append(persons[1].differences(*states))
        else:
            rows.append(blank)
    return {name: np.array([row[name] for row in rows]) for name in blank}
