"""Head parameters from landmarks: Gauss-Newton with analytic Jacobians, one small dense system a frame.

Residuals are in units of 2 % of the inter-ocular distance, so that one set of weights serves every image size.
Columns of every Jacobian: expression [E], jaw [3], gaze [4], rotation [3], translation [3].
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Float

from expportrait_cli.artifacts.types import Tracking
from expportrait_cli.head.bounded import Quadratic, least
from expportrait_cli.head.facemesh import FACE_OVAL, IRIS, LID_PAIRS, LIP_PAIRS, OUTER_EYES, RIGID
from expportrait_cli.head.landmarks import LandmarkModel
from expportrait_cli.head.model import EYE_LEFT, EYE_RIGHT, JAW

UNIT_IOD = 0.02
DISTANCE_M = 1.1
"""Assumed distance of the head from the camera: one photo does not tell, and a portrait is taken from about there."""
LID_WEIGHT, LIP_WEIGHT = 14.0, 10.0
"""Of the pairs across an opening: whether it is shut is worth more than where it is."""
IRIS_WEIGHT = 1.0
JAW_PRIOR = np.array([1.0, 40.0, 40.0])
GAZE_PRIOR = 0.05
JAW_RANGE_RAD = (-0.03, 0.6)
UNDISTORTED = np.zeros(4)


@dataclass(frozen=True)
class Anchors:
    """Points of the head that were seen to move: they speak on the pose alone."""

    points: Float[np.ndarray, "P 3"]
    """In the head frame, m."""
    targets_px: Float[np.ndarray, "P 2"]
    weight: float
    """Of all of them together, in landmarks."""


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


def cross_matrix(v: Float[np.ndarray, "*B 3"]) -> Float[np.ndarray, "*B 3 3"]:
    """Matrix of the cross product with v."""
    out = np.zeros((*v.shape, 3))
    out[..., 0, 1], out[..., 0, 2], out[..., 1, 2] = -v[..., 2], v[..., 1], -v[..., 0]
    out[..., 1, 0], out[..., 2, 0], out[..., 2, 1] = v[..., 2], -v[..., 1], v[..., 0]
    return out


def rotate(axis_angle_rad: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "3 3"]:
    """Rotation matrix of one axis-angle; OpenCV's takes 3 microseconds, a batched one 80."""
    return cv2.Rodrigues(axis_angle_rad)[0]


def eye(pitch_yaw: Float[np.ndarray, " 2"]) -> tuple[Float[np.ndarray, "3 3"], list[Float[np.ndarray, "3 3"]]]:
    """Rotation of an eyeball in the head (`model.eye_rotation`) and its derivatives by pitch and yaw."""
    pitch, yaw = pitch_yaw
    yawed, pitched = rotate(np.array([0.0, yaw, 0.0])), rotate(np.array([-pitch, 0.0, 0.0]))
    by_pitch = yawed @ cross_matrix(np.array([-1.0, 0.0, 0.0])) @ pitched
    by_yaw = cross_matrix(np.array([0.0, 1.0, 0.0])) @ yawed @ pitched
    return yawed @ pitched, [by_pitch, by_yaw]


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


def focal_for(model: LandmarkModel, landmarks: Float[np.ndarray, "478 2"], *, crop_size: int) -> float:
    """Focal length at which the average head lies `DISTANCE_M` away."""
    guess = 2.0 * crop_size
    state = initial_state(model, model.template, landmarks, focal_px=guess, centre_px=crop_size / 2)
    return float(np.clip(guess * DISTANCE_M / state.translation[2], crop_size, 8 * crop_size))


class Solver:
    """Landmark fit of one camera: `frame` moves one frame, `identity` shares a shape between key frames."""

    def __init__(self, model: LandmarkModel, *, focal_px: float, centre_px: float):
        self.model, self.focal_px, self.centre_px = model, focal_px, centre_px
        weights = np.ones(len(model.template))
        weights[FACE_OVAL] = 0.0
        weights[IRIS] = 0.0
        self.weights = weights
        self.pairs = np.array(LID_PAIRS + LIP_PAIRS)
        self.pair_weights = np.sqrt([LID_WEIGHT] * len(LID_PAIRS) + [LIP_WEIGHT] * len(LIP_PAIRS))
        self.size = model.expression.shape[2] + 13
        self.prior = np.concatenate([model.expression_prior, JAW_PRIOR, np.full(4, GAZE_PRIOR)])

    def points(self, identity: Float[np.ndarray, " K"]) -> Float[np.ndarray, "478 3"]:
        """Landmarks of the neutral head."""
        return self.model.template + self.model.identity @ identity

    def joints(self, identity: Float[np.ndarray, " K"]) -> Float[np.ndarray, "6 3"]:
        """Canonical joints."""
        return self.model.joint_template + self.model.joint_basis @ identity

    def project(
        self, points: Float[np.ndarray, "478 3"], joints: Float[np.ndarray, "J 3"], state: State
    ) -> tuple[Float[np.ndarray, "478 2"], Float[np.ndarray, "478 2 P"], Float[np.ndarray, "478 2 3"]]:
        """Landmarks in px, their Jacobian by the frame's parameters, and by a canonical step."""
        m, e = self.model, self.model.expression.shape[2]
        lids, by_gaze = self._lids(state.gaze)
        corrective = m.jaw_corrective / m.jaw_full_rad
        canonical = points + m.expression @ state.expression + lids + corrective * state.jaw[0]
        jaw = rotate(state.jaw)
        eyes = [eye(state.gaze[:2]), eye(state.gaze[2:])]
        head = canonical.copy()
        blend = np.broadcast_to(np.eye(3), (len(points), 3, 3)).copy()
        moved = {}
        for joint, rotation in ((JAW, jaw), (EYE_LEFT, eyes[0][0]), (EYE_RIGHT, eyes[1][0])):
            w = m.skinning[:, joint, None]
            moved[joint] = (canonical - joints[joint]) @ rotation.T
            head += w * (moved[joint] + joints[joint] - canonical)
            blend += w[..., None] * (rotation - np.eye(3))
        turned = head @ state.rotation.T
        camera = turned + state.translation
        jac = np.zeros((len(points), 3, self.size))
        canonical_step = state.rotation @ blend
        jac[:, :, :e] = canonical_step @ m.expression
        # The left Jacobian of the exponential is the identity to first order, and a jaw turns by 25 degrees at most.
        jac[:, :, e : e + 3] = m.skinning[:, JAW, None, None] * (state.rotation @ -cross_matrix(moved[JAW]))
        jac[:, :, e] += np.einsum("lij,lj->li", canonical_step, corrective)
        jac[:, :, e + 3 : e + 7] = canonical_step @ by_gaze
        for side, joint in enumerate((EYE_LEFT, EYE_RIGHT)):
            for axis in range(2):
                derivative = (canonical - joints[joint]) @ eyes[side][1][axis].T @ state.rotation.T
                jac[:, :, e + 3 + 2 * side + axis] += m.skinning[:, joint, None] * derivative
        jac[:, :, e + 7 : e + 10] = -cross_matrix(turned)
        jac[:, :, e + 10 :] = np.eye(3)
        x, y, z = camera.T
        by_camera = np.zeros((len(points), 2, 3))
        by_camera[:, 0, 0] = by_camera[:, 1, 1] = self.focal_px / z
        by_camera[:, 0, 2], by_camera[:, 1, 2] = -self.focal_px * x / z**2, -self.focal_px * y / z**2
        px = camera[:, :2] / z[:, None] * self.focal_px + self.centre_px
        return px, by_camera @ jac, by_camera @ canonical_step

    def _lids(self, gaze: Float[np.ndarray, " 4"]) -> tuple[Float[np.ndarray, "478 3"], Float[np.ndarray, "478 3 4"]]:
        """Displacement by lids that follow the gaze, and its derivative."""
        signed = np.stack([gaze, -gaze], -1).ravel()
        slope = (signed > 0) / self.model.gaze_full_rad
        by_piece = self.model.gaze * slope
        return by_piece @ signed, by_piece[..., 0::2] - by_piece[..., 1::2]

    def _anchor_rows(self, anchors: Anchors, state: State, unit: float, columns: int):
        """Jacobian and residual of anchors, in the units of the landmarks."""
        turned = anchors.points @ state.rotation.T
        x, y, z = (turned + state.translation).T
        by_camera = np.zeros((len(x), 2, 3))
        by_camera[:, 0, 0] = by_camera[:, 1, 1] = self.focal_px / z
        by_camera[:, 0, 2], by_camera[:, 1, 2] = -self.focal_px * x / z**2, -self.focal_px * y / z**2
        jac = np.zeros((len(x), 2, columns))
        start = self.size - 6
        jac[:, :, start : start + 3] = by_camera @ -cross_matrix(turned)
        jac[:, :, start + 3 : start + 6] = by_camera
        px = np.stack([x, y], -1) / z[:, None] * self.focal_px + self.centre_px
        scale = np.sqrt(anchors.weight / len(x)) / unit
        return jac * scale, (px - anchors.targets_px) * scale

    def _system(self, points, joints, state, landmarks, previous, temporal, with_identity, anchors=None):
        """Normal equations of one frame, with identity behind its own parameters, and how far expressions may go."""
        e = self.model.expression.shape[2]
        unit = UNIT_IOD * interocular_px(landmarks)
        px, jac, by_canonical = self.project(points, joints, state)
        by_identity = by_canonical @ self.model.identity if with_identity else np.zeros((len(px), 2, 0))
        full = np.concatenate([jac, by_identity], -1)
        residual = (px - landmarks) / unit
        # Huber: a landmark that a hand or a strand of hair has pulled away must not drag the face along.
        length = np.linalg.norm(residual, axis=1)
        robust = self.weights / np.maximum(1.0, length / 3.0)
        iris = full[IRIS].copy()
        iris[:, :, :e] = iris[:, :, e : e + 3] = 0
        iris[:, :, e + 7 :] = 0
        a, b = self.pairs.T
        rows = [
            (full / unit * np.sqrt(robust)[:, None, None], residual * np.sqrt(robust)[:, None]),
            (
                (full[a] - full[b]) / unit * self.pair_weights[:, None, None],
                (residual[a] - residual[b]) * self.pair_weights[:, None],
            ),
            (iris / unit * np.sqrt(IRIS_WEIGHT), residual[IRIS] * np.sqrt(IRIS_WEIGHT)),
        ]
        if anchors is not None:
            rows.append(self._anchor_rows(anchors, state, unit, full.shape[2]))
        jacobian = np.concatenate([r[0].reshape(-1, full.shape[2]) for r in rows])
        error = np.concatenate([r[1].ravel() for r in rows])
        hessian, gradient = jacobian.T @ jacobian, jacobian.T @ error
        vector = state.vector()
        n = len(vector)
        hessian[np.arange(n), np.arange(n)] += self.prior + temporal
        gradient[:n] += self.prior * vector
        if previous is not None:
            gradient[:n] += temporal * (vector - previous.vector())
        low, high = np.full(self.size, -np.inf), np.full(self.size, np.inf)
        low[:e], high[:e] = self.model.expression_low - state.expression, self.model.expression_high - state.expression
        return Quadratic(hessian, gradient, low, high)

    def _step(self, state: State, step: Float[np.ndarray, " P"]) -> State:
        e = self.model.expression.shape[2]
        jaw = state.jaw + step[e : e + 3]
        jaw[0] = np.clip(jaw[0], *JAW_RANGE_RAD)
        return State(
            expression=np.clip(state.expression + step[:e], self.model.expression_low, self.model.expression_high),
            jaw=jaw,
            gaze=np.clip(state.gaze + step[e + 3 : e + 7], -0.7, 0.7),
            rotation=rotate(step[e + 7 : e + 10]) @ state.rotation,
            translation=state.translation + step[e + 10 : e + 13],
        )

    def rigid(self, identity: Float[np.ndarray, " K"], landmarks: Float[np.ndarray, "478 2"]) -> State:
        """Pose of the neutral head by PnP alone."""
        return initial_state(
            self.model, self.points(identity), landmarks, focal_px=self.focal_px, centre_px=self.centre_px
        )

    def frame(
        self,
        identity: Float[np.ndarray, " K"],
        landmarks: Float[np.ndarray, "478 2"],
        *,
        start: State | None = None,
        temporal: float = 0.0,
        iterations: int = 5,
        anchors: Anchors | None = None,
    ) -> State:
        """Solve one frame, from the previous one where there is one."""
        points, joints = self.points(identity), self.joints(identity)
        landmarks = landmarks.astype(np.float64)
        fresh = initial_state(self.model, points, landmarks, focal_px=self.focal_px, centre_px=self.centre_px)
        # The pose starts anew from PnP: it is better than the last frame's after a fast turn.
        state = fresh if start is None else replace(start, rotation=fresh.rotation, translation=fresh.translation)
        weight = temporal if start is not None else 0.0
        for _ in range(iterations):
            system = self._system(points, joints, state, landmarks, start, weight, False, anchors)
            state = self._step(state, least([system], np.zeros((0, 0)), np.zeros(0))[1][0])
        return state

    def identity(
        self, landmarks: Float[np.ndarray, "T 478 2"], *, prior: float, iterations: int = 8
    ) -> tuple[Float[np.ndarray, " K"], list[State]]:
        """Identity shared by key frames, each with its own state."""
        k = self.model.identity.shape[2]
        beta = np.zeros(k)
        points = self.points(beta)
        states = [
            initial_state(self.model, points, lm, focal_px=self.focal_px, centre_px=self.centre_px)
            for lm in landmarks.astype(np.float64)
        ]
        for _ in range(iterations):
            points, joints = self.points(beta), self.joints(beta)
            systems = [
                self._system(points, joints, state, lm, None, 0.0, True)
                for state, lm in zip(states, landmarks.astype(np.float64), strict=True)
            ]
            step, own = least(systems, np.eye(k) * prior, prior * beta)
            beta = beta + step
            states = [self._step(*pair) for pair in zip(states, own, strict=True)]
        return beta, states

    def predict(self, identity: Float[np.ndarray, " K"], state: State) -> Float[np.ndarray, "478 2"]:
        """Landmarks of the fitted head, px."""
        return self.project(self.points(identity), self.joints(identity), state)[0]

    def error_iod(
        self, identity: Float[np.ndarray, " K"], state: State, landmarks: Float[np.ndarray, "478 2"]
    ) -> float:
        """Mean distance over the inner face (no oval, no irises), percent of the inter-ocular distance."""
        distance = np.linalg.norm(self.predict(identity, state) - landmarks, axis=1)
        return float(distance[self.weights > 0].mean() / interocular_px(landmarks) * 100)
