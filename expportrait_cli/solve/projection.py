"""The head's landmarks in the image of one camera, and how they move with every parameter.

Columns of every Jacobian: expression [E], jaw [3], gaze [4], rotation [3], translation [3].
"""

import numpy as np
from jaxtyping import Float

from expportrait_cli.head.facemesh import LandmarkModel
from expportrait_cli.head.model import EYE_LEFT, EYE_RIGHT, JAW
from expportrait_cli.solve.state import State, rotate


def cross_matrix(v: Float[np.ndarray, "*B 3"]) -> Float[np.ndarray, "*B 3 3"]:
    """Matrix of the cross product with v."""
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


class Projection:
    """Landmarks of a head model as one camera sees them."""

    def __init__(self, model: LandmarkModel, *, focal_px: float, centre_px: float):
        self.model, self.focal_px, self.centre_px = model, focal_px, centre_px
        self.size = model.expression.shape[2] + 13

    def points(self, identity: Float[np.ndarray, " K"]) -> Float[np.ndarray, "478 3"]:
        """Landmarks of the neutral head."""
        return self.model.template + self.model.identity @ identity

    def joints(self, identity: Float[np.ndarray, " K"]) -> Float[np.ndarray, "6 3"]:
        """Canonical joints."""
        return self.model.joint_template + self.model.joint_basis @ identity

    def predict(self, identity: Float[np.ndarray, " K"], state: State) -> Float[np.ndarray, "478 2"]:
        """Landmarks of the fitted head, px."""
        return self.project(self.points(identity), self.joints(identity), state)[0]

    def pinhole(
        self, points_cam: Float[np.ndarray, "P 3"]
    ) -> tuple[Float[np.ndarray, "P 2"], Float[np.ndarray, "P 2 3"]]:
        """Points in px, and their derivative by the points."""
        x, y, z = points_cam.T
        by_camera = np.zeros((len(x), 2, 3))
        by_camera[:, 0, 0] = by_camera[:, 1, 1] = self.focal_px / z
        by_camera[:, 0, 2], by_camera[:, 1, 2] = -self.focal_px * x / z**2, -self.focal_px * y / z**2
        return points_cam[:, :2] / z[:, None] * self.focal_px + self.centre_px, by_camera

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
        px, by_camera = self.pinhole(turned + state.translation)
        return px, by_camera @ jac, by_camera @ canonical_step

    def _lids(self, gaze: Float[np.ndarray, " 4"]) -> tuple[Float[np.ndarray, "478 3"], Float[np.ndarray, "478 3 4"]]:
        """Displacement by lids that follow the gaze, and its derivative."""
        signed = np.stack([gaze, -gaze], -1).ravel()
        slope = (signed > 0) / self.model.gaze_full_rad
        by_piece = self.model.gaze * slope
        return by_piece @ signed, by_piece[..., 0::2] - by_piece[..., 1::2]
