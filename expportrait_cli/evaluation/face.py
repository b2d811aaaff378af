"""Landmark metrics of a face, and detection of the landmarks in each frame.

Lengths are percent of the inter-ocular distance (IOD) between the outer corners of the eyes. In profile that distance
shrinks and the percentages grow.
"""

import numpy as np
from jaxtyping import Float64, UInt8

from expportrait_cli.detect.faces import FaceBox, FaceFinder
from expportrait_cli.detect.mesh import FaceMesh

Points = Float64[np.ndarray, "478 2"]

# FaceMesh's `FACEMESH_FACE_OVAL`. These landmarks slide along the outline of the head as it rotates, so that their
# errors depend on the detector more than on the film.
OVAL = [10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377]
OVAL += [152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109]
INNER = np.setdiff1d(np.arange(468), OVAL)
"""Landmarks inside the face oval."""
EYE_CORNERS = (33, 263)
LIPS = (13, 14)
"""Middle of the upper and of the lower lip, inner edge."""
LIDS = ((159, 145), (386, 374))
"""Middle of the upper and of the lower lid, right and left eye."""


class LandmarkDetector:
    """Detects the landmarks of a clip's main face, independently in each frame: FaceMesh in static mode, on a crop.

    Only the position is kept from frame to frame, to choose between several faces.
    """

    def __init__(self) -> None:
        self._finder = FaceFinder()
        self._mesh = FaceMesh(video=False)
        self._place: np.ndarray | None = None

    def detect(self, image: UInt8[np.ndarray, "H W 3"]) -> Points | None:
        """Landmarks, px, of the largest face, later of the face nearest to the last one; None without a face."""
        faces = self._finder.find(image)
        if not faces:
            return None
        box = max(faces, key=lambda face: face.side) if self._place is None else min(faces, key=self._distance)
        points = self._mesh.landmarks(image, box)
        if points is None:
            return None
        self._place = np.array(box.centre)
        return points.astype(np.float64)

    def _distance(self, face: FaceBox) -> float:
        return float(np.hypot(*(np.array(face.centre) - self._place)))


def iod(points: Points) -> float:
    """Distance between the outer eye corners, px."""
    return _gap(points, EYE_CORNERS)


def _gap(points: Points, pair: tuple[int, int]) -> float:
    return float(np.linalg.norm(points[pair[0]] - points[pair[1]]))


def lip_gap(points: Points) -> float:
    """Opening of the mouth, % IOD."""
    return 100 * _gap(points, LIPS) / iod(points)


def lid_gap(points: Points) -> Float64[np.ndarray, " 2"]:
    """Opening of the right and the left eye, % IOD."""
    return np.array([100 * _gap(points, pair) / iod(points) for pair in LIDS])


def nme(points: Points, target: Points) -> float:
    """Mean distance of the inner landmarks, % of the target's IOD."""
    return float(100 * np.linalg.norm(points[INNER] - target[INNER], axis=1).mean() / iod(target))


def aligned_nme(points: Points, target: Points) -> float:
    """`nme` after the similarity transform (position, size, rotation) that best aligns the inner landmarks."""
    # A similarity of the plane is z -> a z + b in complex numbers, and least squares gives a in closed form.
    own, wanted = (p[:, 0] + 1j * p[:, 1] for p in (points, target))
    own, wanted = own - own[INNER].mean(), wanted - wanted[INNER].mean()
    a = np.vdot(own[INNER], wanted[INNER]) / np.vdot(own[INNER], own[INNER]).real
    return float(100 * np.abs(a * own - wanted)[INNER].mean() / iod(target))


def jitter(before_last: Points, last: Points, now: Points) -> float:
    """Mean length of the inner landmarks' second difference over three frames, % of the last IOD."""
    bend = now - 2 * last + before_last
    return float(100 * np.linalg.norm(bend[INNER], axis=1).mean() / iod(now))
