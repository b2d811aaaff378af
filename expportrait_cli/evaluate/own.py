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
from expportrait_cli.solve.solver import IDENTITY_PRIOR, Solver
from expportrait_cli.solve.state import State, distinct_rows, focal_for, normalised

Clip = Float32[np.ndarray, "T 478 2"]
KEY_FRAMES, DIFFERENT = 12, 1e-3
"""Frames that the identity comes from, and the least difference of their normalised landmarks."""
ITERATIONS = 6
"""Of a frame that starts from PnP: the next ones change no coefficient by 1e-8."""
KINDS = {
    "aed": ("aed_own", "aed_motion_own"),
    "apd": ("apd_own_deg", "apd_motion_own_deg"),
    "gaze": ("gaze_own_deg",),
}
"""Columns of each kind of measure: the difference, and that of what moves."""
COLUMNS = [name for names in KINDS.values() for name in names]


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

    def measures(self, state: State) -> dict[str, Float64[np.ndarray, " N"]]:
        """Expression (coefficients, and the jaw's opening over its full range), pose and gaze (degrees) of a frame."""
        return {
            "aed": np.append(state.expression, state.jaw[0] / self._model.jaw_full_rad),
            "apd": pitch_yaw_roll_deg(state.rotation),
            "gaze": np.degrees(state.gaze),
        }


def pitch_yaw_roll_deg(rotation: Float64[np.ndarray, "3 3"]) -> Float64[np.ndarray, " 3"]:
    """Angles of R_cam_head away from the frontal pose: Rz(roll) Ry(yaw) Rx(pitch), axes of the camera."""
    return Rotation.from_matrix(rotation @ FRONTAL).as_euler("xyz", degrees=True)


def differences(own: Clip, target: Clip, persons: tuple[Person, Person]) -> dict[str, Float64[np.ndarray, " T"]]:
    """Mean absolute differences of every frame; NaN where a face is missing.

    aed_own: of the 40 expression coefficients and of the jaw's opening over its full range; unit 1.
    apd_own_deg: of pitch, yaw and roll, over three; degrees. gaze_own_deg: of pitch and yaw of both eyes; degrees.
    aed_motion_own and apd_motion_own_deg: of the same numbers, each less its median over the film's own frames, so that
    a film that moves as its driver does from another pose or face at rest has none.
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
    # An angle past half a turn comes back from the other side.
    return np.abs((gap + 180) % 360 - 180 if kind == "apd" else gap).mean(1)
