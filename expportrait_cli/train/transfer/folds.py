"""Synthetic folds of the skin: place and depth of expression lines, after their anatomy."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Float64

from expportrait_cli.geometry.mesh import edges, scipy_matrix, vertex_normals
from expportrait_cli.head import HeadModel, landmarks
from expportrait_cli.retargeting.face import Face

FOREHEAD, GLABELLA, NASION = 151, 9, 168
"""FaceMesh landmarks on the midline."""
OUTER_EYES, MOUTH_CORNERS, NOSTRILS = (263, 33), (291, 61), (358, 129)
"""FaceMesh landmarks: the person's left, then right."""
SLACK_AT, FULL_AT = 0.02, 0.18
"""Relative shortening of the skin at which folds have depth 0, and 76 % (tanh 1) of their full depth."""
DEPTH_M = 0.0011
"""Amplitude of a full fold (crest over mean level) where `slack` is 1."""
BULGE_M = 0.006
"""Thickness of the soft tissue: where its area shrinks by a tenth, it rises by about a tenth of this."""
SMOOTHING = 14
"""Averaging steps that smooth the shortening over about 6 mm."""
CREASE_M = 0.005
"""Half width of the nasolabial fold."""


@dataclass(frozen=True)
class Lines:
    """One family of roughly parallel expression lines on a person's face."""

    across: Float64[np.ndarray, "P 3"]
    """Unit direction across the lines, in the neutral surface; shortening along it makes folds."""
    profile: Float64[np.ndarray, " P"]
    """Height profile of the folds, about -1 to 1."""
    where: Float64[np.ndarray, " P"]
    """Weight of this family of lines at each vertex, 0..1."""


def expression_lines(
    points: Float64[np.ndarray, "P 3"], marks: Float64[np.ndarray, "478 3"], normals: Float64[np.ndarray, "P 3"]
) -> list[Lines]:
    """Lines of forehead, frown, crow's feet, nasolabial folds and mouth corners of a face; head frame, m."""
    x, y, _ = points.T
    up, side = np.array([0.0, 1, 0]), np.array([1.0, 0, 0])
    brow = marks[GLABELLA, 1]
    forehead = _window(y, brow + 0.012, brow + 0.055, 0.01) * _window(x, -0.05, 0.05, 0.015)
    families = [
        _waves(normals, up, (y - brow) / 0.014, forehead),
        _waves(
            normals,
            side,
            np.abs(x) / 0.013 + 0.5,
            _window(y, marks[NASION, 1], brow + 0.02, 0.006) * _window(x, -0.014, 0.014, 0.006),
        ),
    ]
    for hand, sign in enumerate((1.0, -1.0)):
        eye, mouth, nose = (marks[group[hand]] for group in (OUTER_EYES, MOUTH_CORNERS, NOSTRILS))
        away = points - eye
        radius, angle = np.linalg.norm(away, axis=1), np.arctan2(away[:, 1], sign * away[:, 0])
        feet = _window(radius, 0.008, 0.03, 0.006) * _window(angle, -0.9, 0.8, 0.3)
        around = np.stack([-np.sin(angle) * sign, np.cos(angle), np.zeros_like(angle)], 1)
        families.append(_waves(normals, around, angle / 0.55, feet))
        families.append(_crease(points, normals, nose, mouth, sign))
        from_mouth = np.linalg.norm(points - mouth, axis=1)
        outside = sign * (x - mouth[0])
        corner = _window(from_mouth, 0.006, 0.028, 0.006) * _window(outside, 0.004, 1.0, 0.004)
        families.append(
            _waves(normals, (points - mouth) / np.maximum(from_mouth, 1e-6)[:, None], from_mouth / 0.013, corner)
        )
    return families


def _waves(normals, across, phase, where) -> Lines:
    """A periodic profile whose crests are wider than the creases between them; `phase` in periods."""
    turn = 2 * np.pi * phase
    return Lines(
        _in_surface(np.broadcast_to(across, normals.shape), normals), np.cos(turn) - 0.25 * np.cos(2 * turn), where
    )


def _crease(points, normals, nose, mouth, sign) -> Lines:
    """The nasolabial fold, from the wing of the nose past the corner of the mouth; raised on the side of the cheek."""
    start, end = nose + np.array([sign * 0.004, 0.004, 0]), mouth + np.array([sign * 0.009, -0.004, 0])
    line = (end - start)[:2]
    length = float(np.linalg.norm(line))
    along = (points - start)[:, :2] @ line / length
    outward = np.array([-line[1], line[0]]) / length
    outward *= np.sign(outward[0]) * sign
    distance = (points - start)[:, :2] @ outward / CREASE_M
    profile = distance * np.exp(0.5 - 0.5 * distance**2) - 0.6 * np.exp(-((distance / 0.6) ** 2))
    across = _in_surface(np.broadcast_to([*outward, 0.0], normals.shape), normals)
    return Lines(across, profile, _window(along, 0.0, length, 0.008) * _window(distance, -3.0, 3.0, 0.5))


def _window(value, low: float, high: float, soft: float):
    return 1 / (1 + np.exp((low - value) / (soft / 3))) / (1 + np.exp((value - high) / (soft / 3)))


def _in_surface(direction: np.ndarray, normals: np.ndarray) -> Float64[np.ndarray, "P 3"]:
    flat = direction - (direction * normals).sum(1, keepdims=True) * normals
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)


class Skin:
    """Measures how much the skin of a face is shortened along given directions."""

    def __init__(self, face: Face, points: Float64[np.ndarray, "P 3"], lines: list[Lines]):
        """`points`: vertices of the neutral face, m; `lines`: families of expression lines."""
        self.ends = edges(face.faces).verts.numpy()
        at, to = self.ends.T
        sides = points[to] - points[at]
        self.lengths = np.linalg.norm(sides, axis=1)
        across = np.stack([family.across for family in lines])
        share = np.einsum("ec,fec->ef", sides, across[:, at]) ** 2 / self.lengths[:, None] ** 2 + 1e-6
        rows, count = np.arange(len(at)), len(points)
        # Strain of a vertex: mean over its edges, weighted by their alignment across the lines; last, equal weights.
        self.gather = sp.csr_matrix((np.ones(2 * len(at)), (np.r_[at, to], np.r_[rows, rows])), (count, len(at)))
        self.share = np.concatenate([share, np.ones((len(at), 1))], 1)
        self.total = self.gather @ self.share
        self.smoothing = scipy_matrix(face.averaging)
        self.profile = np.stack([family.profile * family.where for family in lines], 1)

    def shortening(self, moved: Float64[np.ndarray, "P 3"]) -> Float64[np.ndarray, "P F"]:
        """Relative shortening, smoothed, across each family of lines, and last the mean over all directions."""
        at, to = self.ends.T
        strain = 1 - np.linalg.norm(moved[to] - moved[at], axis=1) / self.lengths
        values = (self.gather @ (self.share * strain[:, None])) / self.total
        for _ in range(SMOOTHING):
            values = self.smoothing @ values
        return values


def heights(skin: Skin, moved: Float64[np.ndarray, "P 3"], slack: float) -> Float64[np.ndarray, " P"]:
    """Height of bulges and folds along the normal, m; `slack`: slackness of the skin, 0 (child) to 1 (old person)."""
    shortening = skin.shortening(moved)
    across, crowding = shortening[:, :-1], 2 * shortening[:, -1]
    depth = np.tanh((across - SLACK_AT).clip(0) / (FULL_AT - SLACK_AT))
    bulge = BULGE_M * np.tanh(crowding.clip(-0.1, 0.5)) * (0.7 + 0.6 * slack)
    return bulge + DEPTH_M * slack * (depth * skin.profile).sum(1)


def slackness(marks: Float64[np.ndarray, "478 3"]) -> float:
    """Slackness: minus the thickness of the lips (in mouth widths), minus the opening of the lids (in eye widths).

    Both shrink with age, so that the value grows with it.
    """
    lips = np.linalg.norm(marks[0] - marks[13]) + np.linalg.norm(marks[14] - marks[17])
    mouth = np.linalg.norm(marks[61] - marks[291])
    lids = np.linalg.norm(marks[159] - marks[145]) + np.linalg.norm(marks[386] - marks[374])
    eyes = np.linalg.norm(marks[33] - marks[133]) + np.linalg.norm(marks[263] - marks[362])
    return float(-(lips / mouth) - lids / eyes)


def face_marks(head: HeadModel, verts: Float[torch.Tensor, "*B V 3"]) -> Float64[np.ndarray, "*B 478 3"]:
    """FaceMesh's landmarks on dense heads, m."""
    return landmarks(head, verts).double().numpy()


def normals_of(face: Face, points: Float[np.ndarray, "P 3"]) -> Float64[np.ndarray, "P 3"]:
    """Unit normals at the vertices of a face."""
    return vertex_normals(torch.from_numpy(points), face.faces).numpy().astype(np.float64)
