"""What moves in one frame, and where to start from: pose by PnP, focal length, the frames of a clip that matter."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int64

from expportrait_cli.artifacts.types import Tracking
from expportrait_cli.geometry.rotations import to_turns
from expportrait_cli.head.facemesh import OUTER_EYES, RIGID, LandmarkModel

DISTANCE_M = 1.1
"""Assumed distance of the head from the camera: one photo does not tell, and a portrait is taken from about there."""
UNDISTORTED = np.zeros(4)


@dataclass(frozen=True)
class State:
    """What moves in one frame."""

    expression: Float[np.ndarray, " E"]
    jaw: Float[np.ndarray, " 3"]
    gaze: Float[np.ndarray, " 4"]
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, " 3"]

    def vector(self) -> Float[np.ndarray, " P"]:
        """Expression, jaw and gaze in one vector."""
        return np.concatenate([self.expression, self.jaw, self.gaze])


def columns_of(states: Sequence[State]) -> dict[str, Float32[np.ndarray, "T _"]]:
    """States of all frames as a tracking keeps them: rotations as turns."""
    names = ("expression", "jaw", "gaze", "translation")
    columns = {name: np.stack([getattr(state, name) for state in states]) for name in names}
    columns["rotation"] = to_turns(np.stack([state.rotation for state in states]))
    return {name: column.astype(np.float32) for name, column in columns.items()}


def rotate(axis_angle_rad: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "3 3"]:
    """Rotation matrix of one axis-angle; OpenCV's takes 3 microseconds, a batched one 80."""
    return cv2.Rodrigues(axis_angle_rad)[0]


def interocular_px(landmarks: Float[np.ndarray, "478 2"]) -> float:
    """Distance of the outer eye corners."""
    return float(np.linalg.norm(landmarks[OUTER_EYES[0]] - landmarks[OUTER_EYES[1]]))


def initial_state(
    model: LandmarkModel,
    points: Float[np.ndarray, "478 3"],
    landmarks: Float[np.ndarray, "478 2"],
    *,
    focal_px: float,
    centre_px: float,
) -> State:
    """Pose of a neutral head by PnP on the landmarks that expressions move least."""
    camera = np.array([[focal_px, 0, centre_px], [0, focal_px, centre_px], [0, 0, 1]])
    obj, img = points[RIGID].copy(), landmarks[RIGID].astype(np.float64)
    _, vector, shift = cv2.solvePnP(obj, img, camera, UNDISTORTED, flags=cv2.SOLVEPNP_SQPNP)
    vector, shift = cv2.solvePnPRefineLM(obj, img, camera, UNDISTORTED, vector, shift)
    return State(
        expression=np.zeros(model.expression.shape[2]),
        jaw=np.zeros(3),
        gaze=np.zeros(4),
        rotation=rotate(vector[:, 0]),
        translation=shift[:, 0],
    )


def normalised(landmarks: Float[np.ndarray, "T 478 2"]) -> Float[np.ndarray, "T 478 2"]:
    """Landmarks without position and size, in inter-ocular distances."""
    size = np.array([interocular_px(frame) for frame in landmarks])
    return (landmarks - landmarks.mean(1, keepdims=True)) / size[:, None, None]


def photo_distance(landmarks: Float[np.ndarray, "478 2"], tracking: Tracking) -> Float[np.ndarray, " T"]:
    """Mean distance of a clip's landmarks from these, frame by frame, in inter-ocular distances."""
    return np.linalg.norm(normalised(tracking.landmarks) - normalised(landmarks[None]), axis=-1).mean(-1)


def nearest_frame(landmarks: Float[np.ndarray, "478 2"], tracking: Tracking) -> tuple[int, float]:
    """Frame of a clip whose landmarks are most like these, and their distance."""
    distance = photo_distance(landmarks, tracking)
    return int(distance.argmin()), float(distance.min())


def distinct_rows(values: Float[np.ndarray, "R D"], count: int, *, least: float = 0.0) -> Int64[np.ndarray, " _"]:
    """Rows that differ most from each other, in rising order: the most usual one, then the farthest from those chosen.

    There are fewer than `count` when the next one is less than `least` away.
    """
    chosen = [int(np.linalg.norm(values - values.mean(0), axis=1).argmin())]
    distance = np.full(len(values), np.inf)
    while len(chosen) < min(count, len(values)):
        distance = np.minimum(distance, np.linalg.norm(values - values[chosen[-1]], axis=1))
        if distance.max() < least:
            break
        chosen.append(int(distance.argmax()))
    return np.sort(chosen)


def focal_for(model: LandmarkModel, landmarks: Float[np.ndarray, "478 2"], *, crop_size: int) -> float:
    """Focal length at which the average head lies `DISTANCE_M` away."""
    guess = 2.0 * crop_size
    state = initial_state(model, model.template, landmarks, focal_px=guess, centre_px=crop_size / 2)
    return float(np.clip(guess * DISTANCE_M / state.translation[2], crop_size, 8 * crop_size))
