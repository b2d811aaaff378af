"""FaceMesh's landmarks on a head model: indices by feature, a linear model, and spreading of offsets to vertices."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from jaxtyping import Float32, Float64
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist
from torch import Tensor

from expportrait_cli.head.model import HeadModel, HeadPose, coarse, dense, joints, landmarks, pose
from expportrait_cli.head.model import dense as subdivide

FACE_OVAL = [
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
]
"""Outline of the face; its points slide along the cheeks with the view, and are no anatomical points."""
IRIS = list(range(468, 478))
"""Irises: the person's right one (468 to 472), then the left; the first of each five is the centre."""
OUTER_EYES = (33, 263)
CHIN, FOREHEAD = 152, 10
LID_PAIRS = [(159, 145), (158, 153), (160, 144), (386, 374), (385, 380), (387, 373)]
"""Pairs of points on the upper and the lower lid."""
LIP_PAIRS = [(13, 14), (82, 87), (312, 317), (81, 178), (311, 402), (80, 88), (310, 318)]
"""Pairs of points on the inner borders of the upper and the lower lip."""
RIGID = [
    *(1, 2, 4, 5, 6, 168, 195, 197, 98, 327, 33, 133, 263, 362, 129, 358),
    *(151, 9, 8, 193, 417, 122, 351, 104, 333, 69, 299),
]
"""Points that expressions move least: nose, eye corners and forehead."""
EYE_RINGS = [
    *(33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246),
    *(263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466),
]
UPPER_LIDS = (
    (263, 466, 388, 387, 386, 385, 384, 398, 362),
    (33, 246, 161, 160, 159, 158, 157, 173, 133),
)
LOWER_LIDS = (
    (263, 249, 390, 373, 374, 380, 381, 382, 362),
    (33, 7, 163, 144, 145, 153, 154, 155, 133),
)
"""Rims of the lids from corner to corner, the person's left eye first; lower points lie below upper ones."""
BROWS = [
    *(70, 63, 105, 66, 107, 46, 53, 52, 65, 55, 68, 104, 69, 108),
    *(300, 293, 334, 296, 336, 276, 283, 282, 295, 285, 298, 333, 299, 337),
    *(8, 9, 151, 193, 417),
]
"""Brows: both rows of each brow and the row above, the person's right one first, and the skin between the brows."""
LIPS = [
    *(61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409),
    *(78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 191, 80, 81, 82, 13, 312, 311, 310, 415),
]
UPPER_LIPS = (
    (185, 40, 39, 37, 0, 267, 269, 270, 409),
    (184, 74, 73, 72, 11, 302, 303, 304, 408),
    (183, 42, 41, 38, 12, 268, 271, 272, 407),
    (191, 80, 81, 82, 13, 312, 311, 310, 415),
)
LOWER_LIPS = (
    (146, 91, 181, 84, 17, 314, 405, 321, 375),
    (77, 90, 180, 85, 16, 315, 404, 320, 307),
    (96, 89, 179, 86, 15, 316, 403, 319, 325),
    (95, 88, 178, 87, 14, 317, 402, 318, 324),
)
"""Rows of each lip without the corners, from its outer to its inner border; columns of both lips match."""
LIP_CORNERS, MOUTH_CORNERS = (78, 308), (61, 291)
"""Corners where the inner borders (LIP_CORNERS) and the outer borders (MOUTH_CORNERS) meet: right, then left."""
EYE_CORNERS = ((263, 362), (33, 133))
"""Outer and inner corner of the person's left eye, then of the right."""
NOSE_BASE, JAW_FRONT = (2, 97, 326, 164), (152, 175, 199, 200)


@dataclass(frozen=True)
class LandmarkModel:
    """Linear shape and skinning of the `L` = 478 landmarks, canonical head frame, metres and radians.

    A canonical landmark is template + identity·β + expression·ψ + gaze·(gaze_pieces(gaze) / gaze_full_rad)
    + jaw_corrective·(jaw[0] / jaw_full_rad); `skinning` then blends the bones of `model.bones` at the joints
    joint_template + joint_basis·β. `gaze_pieces` are the positive parts of (left pitch, -left pitch, left yaw,
    -left yaw, and the same four of the right eye). A landmark in a triangle whose corners have different bone weights
    has a small error; `landmarks(pose(...))` is exact.
    """

    template: Float64[np.ndarray, "L 3"]
    identity: Float64[np.ndarray, "L 3 K"]
    expression: Float64[np.ndarray, "L 3 E"]
    expression_low: Float64[np.ndarray, " E"]
    expression_high: Float64[np.ndarray, " E"]
    expression_prior: Float64[np.ndarray, " E"]
    """Stiffness of each expression towards 0, see `HeadModel.expression_prior`."""
    gaze: Float64[np.ndarray, "L 3 8"]
    gaze_full_rad: Float64[np.ndarray, " 8"]
    jaw_corrective: Float64[np.ndarray, "L 3"]
    jaw_full_rad: float
    skinning: Float64[np.ndarray, "L 6"]
    joint_template: Float64[np.ndarray, "6 3"]
    joint_basis: Float64[np.ndarray, "6 3 K"]
    spread: Float64[np.ndarray, " L"]
    """Median distance of each landmark's detections from its position, over views and identities, m."""


@lru_cache(8)
def landmark_model(head: HeadModel) -> LandmarkModel:
    """Make the landmark model of a head, by the subdivision and the landmarks' barycentrics; cached."""
    double = head.to("cpu", torch.float64)

    def at_landmarks(values: Tensor) -> np.ndarray:
        corners = values[double.landmark_triangles]
        weights = double.landmark_barycentrics.reshape(*double.landmark_barycentrics.shape, *[1] * (values.dim() - 1))
        return (corners * weights).sum(1).numpy()

    def shape(basis: Tensor) -> np.ndarray:
        return at_landmarks(subdivide(double, basis.permute(2, 0, 1)).permute(1, 2, 0))

    return LandmarkModel(
        template=at_landmarks(subdivide(double, double.template)),
        identity=shape(double.identity_basis),
        expression=shape(double.expression_basis),
        expression_low=double.expression_low.numpy(),
        expression_high=double.expression_high.numpy(),
        expression_prior=double.expression_prior.numpy(),
        gaze=shape(double.gaze_basis),
        gaze_full_rad=double.gaze_full_rad.numpy(),
        jaw_corrective=at_landmarks(subdivide(double, double.jaw_corrective)),
        jaw_full_rad=double.jaw_full_rad,
        skinning=at_landmarks(double.skinning),
        joint_template=double.joint_template.numpy(),
        joint_basis=double.joint_basis.numpy(),
        spread=double.landmark_spread.numpy(),
    )


LID_M = 0.008
"""Distance from the rim of the upper lid up to which a made-up blink moves skin, m. With it, and the square root below,
lengths correlate by 0.95 with those of the default head's own blink."""


def blinks(head: HeadModel) -> Float32[np.ndarray, "2 V 3"]:
    """Displacements of the skin, m, in a blink of the left and of the right eye.

    They are the expression units for blinks. In a model without such units the rim of the upper lid moves straight to
    that of the lower one, and the skin near it by a share of that.
    """
    names = head.expression_names
    steps = np.zeros((2, len(head.parts), 3), np.float32)
    for side, name in enumerate(("eyeBlinkLeft", "eyeBlinkRight")):
        if name in names:
            steps[side] = dense(head, head.expression_basis[..., names.index(name)]).numpy()
        else:
            steps[side] = _towards_lower_lid(head, side)
    return steps * head.part("skin").numpy()[:, None]


def _towards_lower_lid(head: HeadModel, side: int) -> Float32[np.ndarray, "V 3"]:
    at_rest = dense(head, head.template)
    points = landmarks(head, at_rest).numpy()
    rims = [points[[*rim[side]]] for rim in (UPPER_LIDS, LOWER_LIDS)]
    at, along = np.linspace(0, len(rims[0]) - 1, 8 * len(rims[0]) - 7), np.arange(len(rims[0]))
    upper, lower = (np.stack([np.interp(at, along, column) for column in rim.T], -1) for rim in rims)
    distance, nearest = KDTree(upper).query(at_rest.numpy())
    is_upper = distance < KDTree(lower).query(at_rest.numpy())[0]
    share = is_upper * np.sqrt(np.clip(1 - distance / LID_M, 0, 1))
    return (share[:, None] * (lower - upper)[nearest]).astype(np.float32)


def lid_travel(head: HeadModel) -> Float32[np.ndarray, "2 V"]:
    """Distance, m, that a blink of the left and of the right eye moves the skin."""
    return torch.from_numpy(blinks(head)).norm(dim=-1).numpy()


SIGMA_M = 0.012
RIDGE, RIM_RIDGE = 0.1, 0.005
"""Ridge added to the Gram matrix, for landmarks that jitter by about a tenth of their motion. RIM_RIDGE is for the rims
of lids and lips in films: their gaps are a few millimetres, where smoothing is more visible than jitter."""
REACH_M = 0.035
"""Distance from the landmarks up to which vertices are moved, m."""
FEATHER_M = 0.012
"""Width over which the motion fades out at that distance, m."""
OPEN_RAD = 0.3
"""Jaw angle of the head in which distances are measured."""
APART_M = 0.02
"""Distance in a fourth dimension by which upper lids are separated from lower ones, m, so that neither moves the
other."""


def open_mouth(head: HeadModel, identity: Float32[np.ndarray, " K"]) -> Float32[np.ndarray, "V 3"]:
    """A person's head with the mouth open by `OPEN_RAD`, in which upper and lower lip are far apart."""
    beta = torch.from_numpy(identity)
    zero, jaw, gaze = torch.zeros(3), torch.tensor([OPEN_RAD, 0.0, 0.0]), torch.zeros(4)
    at = joints(head, beta)
    shape = coarse(head, beta, torch.zeros(len(head.expression_names)), jaw, gaze)
    still = {"rotation": zero, "translation": zero, "torso_rotation": zero, "torso_translation": at[1]}
    return pose(head, dense(head, shape), at, HeadPose(jaw=jaw, gaze=gaze, **still)).numpy()


class LandmarkSpread:
    """Linear map from 2-D offsets of the 478 landmarks to offsets of the `P` vertices near them (Gaussian kernel)."""

    def __init__(self, head: HeadModel, identity: Float32[np.ndarray, " K"], *, rim_ridge: float = RIDGE):
        """Prepare the map, with distances on the person's head; `rim_ridge`: ridge of the rims of lids and lips."""
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
        ridge = np.where(np.isin(used, [*EYE_RINGS, *LIPS]), rim_ridge, RIDGE)
        feather = np.clip((REACH_M - nearest[self.vertices]) / FEATHER_M, 0, 1)
        self._used = used
        near = distance[self.vertices].astype(np.float32)
        self._near = self._kernel(near) * feather[:, None].astype(np.float32)
        self._settled = np.linalg.inv(gram + np.diag(ridge)).astype(np.float32)
        # Eyeballs and teeth are rigid: they follow the corners of their eye, the base of the nose, the chin.
        rigid = [
            (np.flatnonzero(head.part(part).numpy()), np.array(around))
            for part, around in (
                ("eye_left", EYE_CORNERS[0]),
                ("eye_right", EYE_CORNERS[1]),
                ("teeth_upper", NOSE_BASE),
                ("teeth_lower", JAW_FRONT),
            )
        ]
        skin = self.vertices
        self.vertices = np.union1d(skin, np.concatenate([rows for rows, _ in rigid]))
        self._skin = np.searchsorted(self.vertices, skin)
        self._rigid = [(np.searchsorted(self.vertices, rows), around) for rows, around in rigid]

    @cached_property
    def matrix(self) -> Float32[np.ndarray, "P 478"]:
        """The map as one matrix, from offsets of all landmarks to those of `vertices`."""
        return self(np.eye(478, dtype=np.float32)[..., None].repeat(2, -1))[..., 0].T

    @staticmethod
    def _kernel(distance):
        return np.exp(-0.5 * (distance / SIGMA_M) ** 2)

    def __call__(self, steps: Float32[np.ndarray, "T 478 2"]) -> Float32[np.ndarray, "T P 2"]:
        """Offsets of `self.vertices`, in the unit of the landmarks' offsets."""
        columns = steps.transpose(1, 0, 2).reshape(steps.shape[1], -1)
        moved = np.empty((len(self.vertices), columns.shape[1]), np.float32)
        # Two small products instead of `matrix`, which takes as long to compute as the offsets of a hundred clips.
        moved[self._skin] = self._near @ (self._settled @ columns[self._used])
        for rows, around in self._rigid:
            moved[rows] = columns[around].mean(0)
        return moved.reshape(len(self.vertices), -1, 2).transpose(1, 0, 2)
