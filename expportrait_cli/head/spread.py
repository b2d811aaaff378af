"""Landmark steps spread over the mesh, apart on the two lids of an eye and the two lips."""

import numpy as np
import torch
from jaxtyping import Float32
from scipy.spatial.distance import cdist

from expportrait_cli.head.facemesh import EYE_CORNERS, FACE_OVAL, IRIS, JAW_FRONT, NOSE_BASE
from expportrait_cli.head.model import HeadModel, coarse, dense, joints, pose


def lid_travel(head: HeadModel) -> Float32[np.ndarray, "2 V"]:
    """How far a blink moves the skin of the left and of the right eye, m; zero for a head without that expression."""
    travel = torch.zeros(2, len(head.parts))
    for side, name in enumerate(("eyeBlinkLeft", "eyeBlinkRight")):
        if name in head.expression_names:
            moved = dense(head, head.expression_basis[..., head.expression_names.index(name)])
            travel[side] = moved.norm(dim=-1) * head.part("skin")
    return travel.numpy()


SIGMA_M = 0.012
RIDGE = 0.1
"""Added to the Gram matrix: landmarks jitter by about a tenth of what they move."""
REACH_M = 0.035
FEATHER_M = 0.012
OPEN_RAD = 0.3
"""Jaw angle of the head in which distances are taken,"""
APART_M = 0.02
"""and how far the upper lids stand out of it, so that they and the lower ones do not pull each other."""


def open_mouth(head: HeadModel, identity: Float32[np.ndarray, " K"]) -> Float32[np.ndarray, "V 3"]:
    """A person's head with the lips apart, so that upper and lower lip do not pull each other."""
    beta = torch.from_numpy(identity)
    zero, jaw, gaze = torch.zeros(3), torch.tensor([OPEN_RAD, 0.0, 0.0]), torch.zeros(4)
    at = joints(head, beta)
    shape = coarse(head, beta, torch.zeros(len(head.expression_names)), jaw, gaze)
    still = {"rotation": zero, "translation": zero, "torso_rotation": zero, "torso_translation": at[1]}
    return pose(head, dense(head, shape), at, jaw=jaw, gaze=gaze, **still).numpy()


class LandmarkSpread:
    """Linear map from 2-D steps of the 478 landmarks to steps of the vertices near them."""

    def __init__(self, head: HeadModel, identity: Float32[np.ndarray, " K"]):
        """Distances are the person's own."""
        shape = open_mouth(head, identity)
        triangles, weights = head.landmark_triangles.numpy(), head.landmark_barycentrics.numpy()
        travel = lid_travel(head).max(0)
        shape = np.column_stack([shape, APART_M * travel / max(float(travel.max()), 1e-9)])
        centres = np.einsum("lk,lkj->lj", weights, shape[triangles]).astype(np.float64)
        used = np.setdiff1d(np.arange(478), [*FACE_OVAL, *IRIS])
        centres = centres[used]
        # Not by broadcasting: the differences of a head with two subdivisions fill a gigabyte.
        distance = cdist(shape, centres)
        nearest = distance.min(1)
        self.vertices = np.flatnonzero((nearest < REACH_M) & head.part("skin", "mouth_cavity").numpy())
        gram = self._kernel(np.linalg.norm(centres[:, None] - centres[None], axis=-1))
        field = np.linalg.solve(gram + RIDGE * np.eye(len(used)), self._kernel(distance[self.vertices]).T).T
        feather = np.clip((REACH_M - nearest[self.vertices]) / FEATHER_M, 0, 1)
        rows = np.zeros((len(shape), 478), np.float32)
        rows[np.ix_(self.vertices, used)] = field * feather[:, None]
        # Eyeballs and teeth are rigid: they follow the corners of their eye, the base of the nose, the chin.
        for part, around in (
            ("eye_left", EYE_CORNERS[0]),
            ("eye_right", EYE_CORNERS[1]),
            ("teeth_upper", NOSE_BASE),
            ("teeth_lower", JAW_FRONT),
        ):
            rows[np.ix_(np.flatnonzero(head.part(part).numpy()), np.array(around))] = 1 / len(around)
        self.vertices = np.flatnonzero(np.abs(rows).sum(1) > 0)
        self.matrix = rows[self.vertices]

    @staticmethod
    def _kernel(distance):
        return np.exp(-0.5 * (distance / SIGMA_M) ** 2)

    def __call__(self, steps: Float32[np.ndarray, "T 478 2"]) -> Float32[np.ndarray, "T P 2"]:
        """Steps of `self.vertices`, in the unit of the landmarks' steps. Many frames cost hardly more than one."""
        columns = steps.transpose(1, 0, 2).reshape(steps.shape[1], -1)
        return (self.matrix @ columns).reshape(len(self.vertices), -1, 2).transpose(1, 0, 2)
