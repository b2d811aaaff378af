"""FaceMesh landmarks of one chosen face, in photos and along clips."""

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from expportrait_cli.detect.crop import Crop, crop_image, uncrop_points
from expportrait_cli.detect.faces import FaceBox, FaceFinder
from expportrait_cli.detect.nets import LandmarkNet
from expportrait_cli.head.facemesh import CHIN, FOREHEAD, LIP_PAIRS, LOWER_LIDS, NOSE_BASE, OUTER_EYES, UPPER_LIDS

Image = UInt8[np.ndarray, "H W 3"]
Landmarks = Float32[np.ndarray, "478 2"]
VIEW = 384
"""Side, px, of the crop that the network is given. It samples 192 points across three quarters of the crop, without
averaging, half a sample towards the origin: at 384 px that is 0.3 % of the inter-ocular distance, without aliasing."""
AROUND = 2.0
"""Side of that crop, in face sizes."""
LOOSE, TIGHT, OFF_CENTRE = 1.55, 2.6, 0.13
"""The crop is kept while its side is between LOOSE and TIGHT face sizes, and the face's centre is less than OFF_CENTRE
sides away from the crop's."""
LIDS_APART, LIDS_NEAR = 0.025, 0.03
"""The network places touching lids LIDS_APART apart; what is subtracted falls with the gap as exp(-(gap / LIDS_NEAR)²).
Both in inter-ocular distances."""

GAPING = (0.3, 0.42)
"""Gap between the lips, in inter-ocular distances, at which a second detection in a shortened picture has weight 0, and
1, in the lower face."""
SHORTENED = 0.75
"""Factor by which the face is shortened in that picture: the network places lower lip and chin too high in wide open
mouths, because such long faces are rare in its training data."""


def gaping(landmarks: Landmarks) -> float:
    """Weight (0..1) of the detection in a shortened picture: 0 for a gap of `GAPING[0]`, 1 for `GAPING[1]`."""
    upper, lower = landmarks[np.array(LIP_PAIRS).T]
    size = float(np.linalg.norm(landmarks[OUTER_EYES[0]] - landmarks[OUTER_EYES[1]]))
    gap = float(np.linalg.norm(upper - lower, axis=1).max()) / max(size, 1e-6)
    return float(np.clip((gap - GAPING[0]) / (GAPING[1] - GAPING[0]), 0, 1))


def shortened(image: Image, landmarks: Landmarks) -> tuple[Image, Float32[np.ndarray, "2 3"]]:
    """Compress the picture by `SHORTENED` along the face's axis; also the affine map of points back from it."""
    axis = landmarks[CHIN] - landmarks[FOREHEAD]
    axis = axis / max(float(np.linalg.norm(axis)), 1e-6)
    centre = (landmarks[CHIN] + landmarks[FOREHEAD]) / 2
    longer = np.eye(2) + (1 / SHORTENED - 1) * np.outer(axis, axis)
    back = np.c_[longer, centre - longer @ centre].astype(np.float32)
    # Pixel centres are at +0.5 in the landmarks, and at whole numbers in OpenCV.
    shift = back[:, :2] @ np.array([0.5, 0.5], np.float32) - 0.5
    place = np.c_[back[:, :2], back[:, 2] + shift]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    small = cv2.warpAffine(image, place, image.shape[1::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return small.astype(np.uint8), back


def meet_lids(landmarks: Landmarks) -> Landmarks:
    """Close the gap that the network leaves between touching lids, 1 to 2 % of the inter-ocular distance.

    A shut eye would otherwise be fitted, and painted, with a white slit. Open lids hardly move.
    """
    upper, lower = (np.array([rim[1:-1] for rim in lids]).ravel() for lids in (UPPER_LIDS, LOWER_LIDS))
    line = landmarks[lower] - landmarks[upper]
    size = float(np.linalg.norm(landmarks[OUTER_EYES[0]] - landmarks[OUTER_EYES[1]]))
    gap = np.linalg.norm(line, axis=1) / size
    excess = LIDS_APART * np.exp(-((gap / LIDS_NEAR) ** 2))
    step = line * (excess / np.maximum(gap, 1e-6) / 2)[:, None]
    met = landmarks.copy()
    met[upper] += step
    met[lower] -= step
    return met


def extent(landmarks: Landmarks) -> tuple[np.ndarray, float]:
    """Centre and longer side, px, of the landmarks' bounding box."""
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    return (low + high) / 2, float((high - low).max())


class FaceMesh:
    """478 landmarks of the face in a given box; with `video`, of the same face in every following frame.

    A clip's crop is fixed until the face leaves its middle, so that a still face gets still landmarks. Each frame is
    detected anew in the crop, because landmarks tracked from the previous ones drift by 1 % of the inter-ocular
    distance. Tracking is used only where no face is detected, as in profile.
    """

    def __init__(self, *, video: bool) -> None:
        self._net = LandmarkNet(video=False)
        self._follower = LandmarkNet(video=True) if video else None
        self._finder: FaceFinder | None = None
        self.reset()

    def reset(self) -> None:
        """Reset the tracking of the face, at a cut or before another clip."""
        self._view: Crop | None = None
        self._seen: Image | None = None
        self._following = False
        self._last: tuple[np.ndarray, float] | None = None
        self._lost = 0

    def landmarks(self, image: Image, box: FaceBox | None = None) -> Landmarks | None:
        """Landmarks in source px, or None without the face.

        With a box it starts at that face; without one it continues with the face of the frame before. A lost face is
        searched near its last place. Never jumps to a face of another size or place. 4 to 7 ms.
        """
        if box is not None:
            self.reset()
            return self._start(image, box)
        if self._view is not None:
            points = self._continue(image, self._view)
            if points is not None:
                return points
            self._view = None
        box = self._again(image)
        return None if box is None else self._start(image, box)

    def _start(self, image: Image, box: FaceBox) -> Landmarks | None:
        """Detect landmarks near a box, then once more in a crop centred on them."""
        for around in (AROUND, 1.5, 3.0):
            points = self._look(image, _square(np.array(box.centre), box.side * around))
            if points is not None and _is_in(points, box):
                self._keep(points)
                return self._settle(image, points)
        return None

    def _settle(self, image: Image, points: Landmarks) -> Landmarks:
        centre, size = extent(points)
        self._view = _square(centre, size * AROUND)
        better = self._look(image, self._view)
        if better is None or not self._same(better):
            return points
        self._keep(better)
        return better

    def _continue(self, image: Image, view: Crop) -> Landmarks | None:
        before = self._seen
        points = self._look(image, view)
        if points is None or not self._same(points):
            points = self._follow(before, view)
            if points is None or not self._same(points):
                return None
        else:
            self._following = False
        self._keep(points)
        centre, size = extent(points)
        away = float(np.abs(centre - np.array(view[:2]) - view.side / 2).max()) / view.side
        if LOOSE * size < view.side < TIGHT * size and away < OFF_CENTRE:
            return points
        if self._following:
            return points if away < 2 * OFF_CENTRE else None
        return self._settle(image, points)

    def _look(self, image: Image, view: Crop) -> Landmarks | None:
        try:
            self._seen = crop_image(image, view, VIEW)
        except ValueError:
            return None
        points = self._net(self._seen)
        if points is None:
            return None
        return uncrop_points(meet_lids(self._wide(self._seen, points)), view, VIEW)

    def _wide(self, seen: Image, points: Landmarks) -> Landmarks:
        """Landmarks with the lower face detected again in a shortened picture, if the mouth is wide open."""
        share = gaping(points)
        if share == 0:
            return points
        small, back = shortened(seen, points)
        again = self._net(small)
        if again is None:
            return points
        again = again @ back[:, :2].T + back[:, 2]
        if gaping(again.astype(np.float32)) == 0:
            return points
        axis = points[CHIN] - points[FOREHEAD]
        down = (points - points[OUTER_EYES, :].mean(0)) @ axis
        nose = float((points[NOSE_BASE[0]] - points[OUTER_EYES, :].mean(0)) @ axis)
        # Only from the middle of the nose downwards: the eyes are more exact in the unchanged picture.
        below = np.clip(2 * down / max(nose, 1e-6) - 1, 0, 1)[:, None]
        return (points + share * below * (again - points)).astype(np.float32)

    def _follow(self, before: Image | None, view: Crop) -> Landmarks | None:
        """Landmarks tracked from the frame before, in the same crop."""
        if self._follower is None or before is None or self._seen is None:
            return None
        if not self._following:
            self._follower.forget()
            if self._follower(before) is None:
                return None
        points = self._follower(self._seen)
        self._following = points is not None
        return None if points is None else uncrop_points(meet_lids(points), view, VIEW)

    def _again(self, image: Image) -> FaceBox | None:
        """The detected face nearest to where the lost one was, within a radius that grows with the frames since."""
        if self._finder is None:
            self._finder = FaceFinder()
        faces = self._finder.find(image)
        if self._last is None:
            return max(faces, key=lambda face: face.side, default=None)
        self._lost += 1
        centre, size = self._last
        reach = min(1.0 + 0.1 * self._lost, 3.0) * size
        near = [
            (float(np.hypot(*(np.array(face.centre) - centre))), face)
            for face in faces
            if 0.45 < face.side * 1.25 / size < 2.2
        ]
        distance, face = min(near, key=lambda pair: pair[0], default=(np.inf, None))
        return face if distance < reach else None

    def _keep(self, points: Landmarks) -> None:
        self._last = extent(points)
        self._lost = 0

    def _same(self, points: Landmarks) -> bool:
        """True if the landmarks continue the frame before: their size and place changed little."""
        if self._last is None:
            return True
        (centre, size), (before, size_before) = extent(points), self._last
        return 0.6 < size / size_before < 1.6 and float(np.hypot(*(centre - before))) < 0.5 * size_before


def _is_in(points: Landmarks, box: FaceBox) -> bool:
    centre, size = extent(points)
    distance = float(np.hypot(*(centre - np.array(box.centre))))
    return distance < 0.5 * box.side and 0.6 < size / box.side < 2.2


def _square(centre: np.ndarray, side: float) -> Crop:
    """Square of whole pixels, so that they are read without interpolation."""
    whole = max(16.0, float(round(side)))
    left, top = np.round(centre - whole / 2)
    return Crop(float(left), float(top), whole)
