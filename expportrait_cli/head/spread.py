"""Spread what landmarks say beyond the model over the face around them (a smooth field through scattered points)."""

import numpy as np
from jaxtyping import Float32

from expportrait_cli.head.landmarks import FACE_OVAL, IRIS
from expportrait_cli.head.model import HeadModel, Part

SIGMA_M = 0.012
RIDGE = 0.1
"""Added to the Gram matrix: landmarks jitter by about a tenth of what they move."""
REACH_M = 0.035
FEATHER_M = 0.012
NOSE_BASE, CHIN = (2, 97, 326, 164), (152, 175, 199, 200)
EYE_CORNERS = ((263, 362), (33, 133))


class LandmarkSpread:
    """Linear map from 2-D steps of the 478 landmarks to steps of the vertices near them."""

    def __init__(self, head: HeadModel, open_mouth: Float32[np.ndarray, "V 3"]):
        """`open_mouth` is a canonical head with the lips apart, so that upper and lower lip do not pull each other."""
        triangles, weights = head.landmark_triangles.numpy(), head.landmark_barycentrics.numpy()
        centres = np.einsum("lk,lkj->lj", weights, open_mouth[triangles]).astype(np.float64)
        parts = head.parts.numpy()
        used = np.setdiff1d(np.arange(478), [*FACE_OVAL, *IRIS])
        centres = centres[used]
        distance = np.linalg.norm(open_mouth[:, None] - centres[None], axis=-1)
        nearest = distance.min(1)
        self.vertices = np.flatnonzero((nearest < REACH_M) & (parts == Part.SKIN))
        gram = self._kernel(np.linalg.norm(centres[:, None] - centres[None], axis=-1))
        field = np.linalg.solve(gram + RIDGE * np.eye(len(used)), self._kernel(distance[self.vertices]).T).T
        feather = np.clip((REACH_M - nearest[self.vertices]) / FEATHER_M, 0, 1)
        rows = np.zeros((len(open_mouth), 478), np.float32)
        rows[np.ix_(self.vertices, used)] = field * feather[:, None]
        # Eyeballs and teeth are rigid: they follow the corners of their eye, the base of the nose, the chin.
        for part, around in (
            (Part.EYE_LEFT, EYE_CORNERS[0]),
            (Part.EYE_RIGHT, EYE_CORNERS[1]),
            (Part.TEETH_UPPER, NOSE_BASE),
            (Part.TEETH_LOWER, CHIN),
        ):
            rows[np.ix_(np.flatnonzero(parts == part), around)] = 1 / len(around)
        self.vertices = np.flatnonzero(np.abs(rows).sum(1) > 0)
        self.matrix = rows[self.vertices]

    @staticmethod
    def _kernel(distance):
        return np.exp(-0.5 * (distance / SIGMA_M) ** 2)

    def __call__(self, steps: Float32[np.ndarray, "478 2"]) -> Float32[np.ndarray, "P 2"]:
        """Steps of `self.vertices`, in the unit of the landmarks' steps."""
        return self.matrix @ steps.astype(np.float32)
