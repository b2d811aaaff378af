"""Parameters of one frame, and their projection to landmarks with derivatives."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int64

from expportrait_cli.artifacts.types import Tracking
from expportrait_cli.geometry.rotations import to_turns
from expportrait_cli.head.facemesh import OUTER_EYES, RIGID, LandmarkModel
from expportrait_cli.head.model import EYE_LEFT, EYE_RIGHT, JAW

DISTANCE_M = 1.1
"""Assumed distance of the head from the camera, m, typical for a portrait; one photo does not determine it."""
UNDISTORTED = np.zeros(4)


@dataclass(frozen=True)
class State:
    """Expression, jaw, gaze and pose (R_cam_head, m) of one frame."""

    expression: Float[np.ndarray, " E"]
    jaw: Float[np.ndarray, " 3"]
    gaze: Float[np.ndarray, " 4"]
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, " 3"]

    def vector(self) -> Float[np.ndarray, " P"]:
        """Expression, jaw and gaze in one vector."""
        return np.concatenate([self.expression, self.jaw, self.gaze])


def columns_of(states: Sequence[State]) -> dict[str, Float32[np.ndarray, "T _"]]:
    """Stack states to the arrays of a `Tracking`; rotations become axis-angles from the frontal pose."""
    names = ("expression", "jaw", "gaze", "translation")
    columns = {name: np.stack([getattr(state, name) for state in states]) for name in names}
    columns["rotation"] = to_turns(np.stack([state.rotation for state in states]))
    return {name: column.astype(np.float32) for name, column in columns.items()}


def rotate(axis_angle_rad: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "3 3"]:
    """Rotation matrix of one axis-angle, by OpenCV, which is faster for a single one than `rotations.matrix`."""
    return cv2.Rodrigues(axis_angle_rad)[0]


def interocular_px(landmarks: Float[np.ndarray, "478 2"]) -> float:
    """Distance of the outer eye corners, px."""
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
    """Mean distance of each frame's landmarks from `landmarks`, both normalised, in inter-ocular distances."""
    return np.linalg.norm(normalised(tracking.landmarks) - normalised(landmarks[None]), axis=-1).mean(-1)


def nearest_frame(landmarks: Float[np.ndarray, "478 2"], tracking: Tracking) -> tuple[int, float]:
    """Frame of a clip whose landmarks are nearest to `landmarks`, and their distance (`photo_distance`)."""
    distance = photo_distance(landmarks, tracking)
    return int(distance.argmin()), float(distance.min())


def distinct_rows(values: Float[np.ndarray, "R D"], count: int, *, least: float = 0.0) -> Int64[np.ndarray, " _"]:
    """Indices of up to `count` rows by farthest-point sampling, from the row nearest to the mean; sorted.

    Sampling ends early when the next row is less than `least` away.
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
    """Focal length, px, at which the average head is `DISTANCE_M` away."""
    guess = 2.0 * crop_size
    state = initial_state(model, model.template, landmarks, focal_px=guess, centre_px=crop_size / 2)
    return float(np.clip(guess * DISTANCE_M / state.translation[2], crop_size, 8 * crop_size))


def cross_matrix(v: Float[np.ndarray, "*B 3"]) -> Float[np.ndarray, "*B 3 3"]:
    """Matrix of the cross product v x."""
    out = np.zeros((*v.shape, 3))
    out[..., 0, 1], out[..., 0, 2], out[..., 1, 2] = -v[..., 2], v[..., 1], -v[..., 0]
    out[..., 1, 0], out[..., 2, 0], out[..., 2, 1] = v[..., 2], -v[..., 1], v[..., 0]
    return out


def eye(pitch_yaw: Float[np.ndarray, " 2"]) -> tuple[Float[np.ndarray, "3 3"], list[Float[np.ndarray, "3 3"]]]:
    """Rotation of an eyeball in the head (`model.eye_rotation`) and its derivatives by pitch and yaw."""
    pitch, yaw = pitch_yaw
    yawed, pitched = rotate(np.array([0.0, yaw, 0.0])), rotate(np.array([-pitch, 0.0, 0.0]))
    by_pitch = yawed @ cross_matrix(np.array([-1.0, 0.0, 0.0])) @ pitched
    by_yaw = cross_matrix(np.array([0.0, 1.0, 0.0])) @ yawed @ pitched
    return yawed @ pitched, [by_pitch, by_yaw]


@dataclass(frozen=True)
class _Moved:
    """Landmarks in the head frame, m, with intermediate results."""

    canonical: Float[np.ndarray, "478 3"]
    """Landmarks before jaw and eyes rotate."""
    head: Float[np.ndarray, "478 3"]
    rotations: dict[int, Float[np.ndarray, "3 3"]]
    """Rotations of jaw and eyes, by their joint."""
    turned: dict[int, Float[np.ndarray, "478 3"]]
    """All landmarks relative to each of these joints, rotated with its bone."""
    lids_by_gaze: Float[np.ndarray, "478 3 4"]


class Projection:
    """Projection of a head model's landmarks to one camera."""

    def __init__(self, model: LandmarkModel, *, focal_px: float, centre_px: float):
        self.model, self.focal_px, self.centre_px = model, focal_px, centre_px
        self.size = model.expression.shape[2] + 13
        self._corrective = model.jaw_corrective / model.jaw_full_rad

    def points(self, identity: Float[np.ndarray, " K"]) -> Float[np.ndarray, "478 3"]:
        """Landmarks of the neutral head."""
        return self.model.template + self.model.identity @ identity

    def joints(self, identity: Float[np.ndarray, " K"]) -> Float[np.ndarray, "6 3"]:
        """Canonical joints."""
        return self.model.joint_template + self.model.joint_basis @ identity

    def predict(self, identity: Float[np.ndarray, " K"], state: State) -> Float[np.ndarray, "478 2"]:
        """Landmarks of the fitted head, px."""
        return self.placed(self.points(identity), self.joints(identity), state)

    def placed(
        self, points: Float[np.ndarray, "478 3"], joints: Float[np.ndarray, "J 3"], state: State
    ) -> Float[np.ndarray, "478 2"]:
        """Landmarks in px: `project` without its derivatives, which cost ten times as much."""
        turned = self._moved(points, joints, state).head @ state.rotation.T
        return self._pixels(turned + state.translation)

    def translation(
        self, identity: Float[np.ndarray, " K"], state: State, landmarks: Float[np.ndarray, "478 2"]
    ) -> Float[np.ndarray, " 3"]:
        """Translation, m, that brings the landmarks of `state` nearest to these, px, by linear least squares."""
        turned = self._moved(self.points(identity), self.joints(identity), state).head @ state.rotation.T
        rays = (landmarks - self.centre_px) / self.focal_px
        # On the ray of a landmark (x + a) / (z + c) is its slope: a - slope c = slope z - x, and so with y and b.
        system = np.zeros((len(rays), 2, 3))
        system[:, 0, 0] = system[:, 1, 1] = 1
        system[:, :, 2] = -rays
        shift = rays * turned[:, 2:] - turned[:, :2]
        return np.linalg.lstsq(system.reshape(-1, 3), shift.ravel())[0]

    def _pixels(self, points_cam: Float[np.ndarray, "P 3"]) -> Float[np.ndarray, "P 2"]:
        return points_cam[:, :2] / points_cam[:, 2:] * self.focal_px + self.centre_px

    def pinhole(
        self, points_cam: Float[np.ndarray, "P 3"]
    ) -> tuple[Float[np.ndarray, "P 2"], Float[np.ndarray, "P 2 3"]]:
        """Points in px, and their derivative by the points."""
        x, y, z = points_cam.T
        by_camera = np.zeros((len(x), 2, 3))
        by_camera[:, 0, 0] = by_camera[:, 1, 1] = self.focal_px / z
        by_camera[:, 0, 2], by_camera[:, 1, 2] = -self.focal_px * x / z**2, -self.focal_px * y / z**2
        return self._pixels(points_cam), by_camera

    def project(
        self, points: Float[np.ndarray, "478 3"], joints: Float[np.ndarray, "J 3"], state: State
    ) -> tuple[Float[np.ndarray, "478 2"], Float[np.ndarray, "478 2 P"], Float[np.ndarray, "478 2 3"]]:
        """Landmarks in px, their Jacobian by the frame's parameters, and by canonical displacements."""
        m, e = self.model, self.model.expression.shape[2]
        at = self._moved(points, joints, state)
        blend = np.broadcast_to(np.eye(3), (len(points), 3, 3)).copy()
        for joint, rotation in at.rotations.items():
            blend += m.skinning[:, joint, None, None] * (rotation - np.eye(3))
        turned = at.head @ state.rotation.T
        px, by_camera = self.pinhole(turned + state.translation)
        by_head = by_camera @ state.rotation
        by_canonical = by_head @ blend
        jac = np.empty((len(points), 2, self.size))
        np.matmul(by_canonical, m.expression, out=jac[:, :, :e])
        # The left Jacobian of the exponential is the identity to first order, and a jaw turns by 25 degrees at most.
        np.matmul(by_head, cross_matrix(-m.skinning[:, JAW, None] * at.turned[JAW]), out=jac[:, :, e : e + 3])
        # Canonical derivatives of each landmark: the jaw's corrective, and lids that move with the gaze.
        steps = np.concatenate([self._corrective[..., None], at.lids_by_gaze], 2)
        moved = by_canonical @ steps
        jac[:, :, e] += moved[:, :, 0]
        jac[:, :, e + 3 : e + 7] = moved[:, :, 1:]
        for side, joint in enumerate((EYE_LEFT, EYE_RIGHT)):
            by_angles = np.stack(eye(state.gaze[2 * side : 2 * side + 2])[1], -1)
            weighted = m.skinning[:, joint, None] * (at.canonical - joints[joint])
            turning = by_head @ np.tensordot(weighted, by_angles, (1, 1))
            jac[:, :, e + 3 + 2 * side : e + 5 + 2 * side] += turning
        np.matmul(by_camera, cross_matrix(-turned), out=jac[:, :, e + 7 : e + 10])
        jac[:, :, e + 10 :] = by_camera
        return px, jac, by_canonical

    def _moved(self, points: Float[np.ndarray, "478 3"], joints: Float[np.ndarray, "J 3"], state: State) -> "_Moved":
        m = self.model
        lids, by_gaze = self._lids(state.gaze)
        canonical = points + m.expression @ state.expression + lids + self._corrective * state.jaw[0]
        rotations = {
            JAW: rotate(state.jaw),
            EYE_LEFT: eye(state.gaze[:2])[0],
            EYE_RIGHT: eye(state.gaze[2:])[0],
        }
        head, turned = canonical.copy(), {}
        for joint, rotation in rotations.items():
            turned[joint] = (canonical - joints[joint]) @ rotation.T
            head += m.skinning[:, joint, None] * (turned[joint] + joints[joint] - canonical)
        return _Moved(canonical, head, rotations, turned, by_gaze)

    def _lids(self, gaze: Float[np.ndarray, " 4"]) -> tuple[Float[np.ndarray, "478 3"], Float[np.ndarray, "478 3 4"]]:
        """Displacement of the lids by the gaze, m, and its derivative by the gaze."""
        signed = np.stack([gaze, -gaze], -1).ravel()
        slope = (signed > 0) / self.model.gaze_full_rad
        by_piece = self.model.gaze * slope
        return by_piece @ signed, by_piece[..., 0::2] - by_piece[..., 1::2]
