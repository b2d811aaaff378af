"""Detection of faces, choice of one, and check that a picture is a usable portrait."""

from dataclasses import dataclass
from math import atan2, degrees

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from expportrait_cli.detect.nets import FaceDetector
from expportrait_cli.errors import InputError, UsageError

MIN_SCORE = 0.7
"""Least detection score of a face. Real faces reach 0.85 with one of the two models, also in profile; cats and the
backs of heads stay below 0.1, an upside-down face has 0.67. Drawings, statues and paintings score like people."""
MARGIN_SCORE = 0.8
"""Least score of a face that is only found with a grey margin, where a cup of coffee reaches 0.77."""
TILE_SCORE = 0.75
"""Least score of a face that is found in a tile: tiles show more texture, which is mistaken for faces."""
GREY = (128, 128, 128)
LONGEST = 960
"""Longest side, px, that an image is shrunk to before detection; the networks' inputs have 128 and 192 px."""
TILED_FROM = 720
"""Longest side, px, from which an image is also searched in tiles, for faces smaller than a twentieth of it."""
WORDS = ("largest", "left", "right", "center", "centre")
SAME = 0.35
"""Overlap (intersection over union) of two boxes from which they count as one face."""


@dataclass(frozen=True)
class FaceBox:
    """A detected face in source px: the box reaches from the brows to the chin and from ear to ear."""

    x0: float
    y0: float
    x1: float
    y1: float
    score: float
    keypoints: Float32[np.ndarray, "6 2"]
    """The person's right and left eye, nose tip, mouth, right and left ear."""

    @property
    def side(self) -> float:
        """Longer side of the box, px."""
        return max(self.x1 - self.x0, self.y1 - self.y0)

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of the box, px."""
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2

    @property
    def roll_deg(self) -> float:
        """Rotation of the line through the eyes in the image plane, degrees clockwise; 0 upright, 180 upside down."""
        x, y = self.keypoints[1] - self.keypoints[0]
        return degrees(atan2(float(y), float(x)))


def overlap(a: FaceBox, b: FaceBox) -> float:
    """Intersection over union; 1 when the smaller box lies inside the other and is at least a third of it."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    areas = [(box.x1 - box.x0) * (box.y1 - box.y0) for box in (a, b)]
    if common > 0.85 * min(areas) and min(areas) > max(areas) / 3:
        return 1.0
    return common / (sum(areas) - common)


class FaceFinder:
    """Face detector for any picture: short and full range, with a margin for close-ups and tiles for small faces."""

    def __init__(self) -> None:
        self._short = FaceDetector("short", min_score=0.5)
        self._full = FaceDetector("full", min_score=0.5)

    def find(self, image: UInt8[np.ndarray, "H W 3"]) -> list[FaceBox]:
        """Detect every face, sorted from left to right. 10 ms; 60 to 150 ms for large pictures."""
        height, width = image.shape[:2]
        scale = min(1.0, LONGEST / max(height, width))
        small_size = max(8, round(width * scale)), max(8, round(height * scale))
        small = cv2.resize(image, small_size, interpolation=cv2.INTER_AREA) if scale < 1 else image
        found = self._at(small, 1 / scale, (0.0, 0.0), MIN_SCORE)
        if not found:
            margin = max(small.shape[:2]) // 3
            padded = cv2.copyMakeBorder(small, margin, margin, margin, margin, cv2.BORDER_CONSTANT, value=GREY)
            found = self._at(padded, 1 / scale, (-margin / scale, -margin / scale), MARGIN_SCORE)
        if max(height, width) >= TILED_FROM:
            found += self._in_tiles(image)
        return sorted(distinct(found), key=lambda box: box.centre[0])

    def _in_tiles(self, image: UInt8[np.ndarray, "H W 3"]) -> list[FaceBox]:
        height, width = image.shape[:2]
        side = max(1, round(max(height, width) * 0.4))
        found = []
        for top in _steps(height, side):
            for left in _steps(width, side):
                tile = image[top : top + side, left : left + side]
                scale = min(1.0, 480 / max(tile.shape[:2]))
                if scale < 1:
                    tile = cv2.resize(tile, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
                for box in self._at(tile, 1 / scale, (float(left), float(top)), TILE_SCORE):
                    # A face that is cut by the tile's border is found whole in a neighbour or in the whole image.
                    inside = box.x0 > left and box.y0 > top and box.x1 < left + side and box.y1 < top + side
                    found += [box] if inside else []
        return found

    def _at(
        self, image: UInt8[np.ndarray, "H W 3"], scale: float, corner: tuple[float, float], min_score: float
    ) -> list[FaceBox]:
        rows = np.concatenate([self._short(image), self._full(image)])
        rows = rows[rows[:, 4] >= min_score]
        boxes = []
        for row in rows:
            points = row[5:].reshape(6, 2) * scale + np.array(corner, np.float32)
            x0, y0, x1, y1 = (row[:4].reshape(2, 2) * scale + np.array(corner)).ravel().tolist()
            boxes.append(FaceBox(x0, y0, x1, y1, float(row[4]), points.astype(np.float32)))
        return boxes


def _steps(length: int, side: int) -> list[int]:
    """Start positions, px, of overlapping tiles of `side` px that cover a length."""
    count = max(1, int(np.ceil((length - side) / (side * 0.6))) + 1)
    return np.linspace(0, max(0, length - side), count).round().astype(int).tolist()


def distinct(boxes: list[FaceBox]) -> list[FaceBox]:
    """Non-maximum suppression: of boxes that overlap, keep the one of highest score."""
    kept: list[FaceBox] = []
    for box in sorted(boxes, key=lambda box: -box.score):
        if all(overlap(box, other) < SAME for other in kept):
            kept.append(box)
    return kept


def check_choice(option: str, choice: str) -> None:
    """Raise UsageError unless `choice`, the value of the parameter `option`, is one that `choose_face` knows."""
    if choice not in WORDS and not choice.isdecimal():
        raise UsageError(f"`{option}={choice}`: expected largest, left, right, center or a number from 0.")


def choose_face(faces: list[FaceBox], choice: str, *, size: tuple[int, int]) -> FaceBox:
    """The face that `choice` means: largest, left, right, center, or an index from the left starting at 0.

    `size` is width and height of the picture.

    Raises:
        InputError: there is no such face, or the choice is not one of these words.
    """
    if not faces:
        raise InputError("No face was found. Expected a picture that shows at least one human face.")
    ordered = sorted(faces, key=lambda face: face.centre[0])
    match choice:
        case "largest":
            return max(ordered, key=lambda face: face.side)
        case "left":
            return ordered[0]
        case "right":
            return ordered[-1]
        case "center" | "centre":
            middle = np.array(size) / 2
            return min(ordered, key=lambda face: float(np.hypot(*(np.array(face.centre) - middle))))
        case _ if choice.isdecimal():
            return _by_index(ordered, int(choice))
        case _:
            raise InputError(f"Face {choice!r} was asked for. Expected largest, left, right, center or a number.")


def _by_index(ordered: list[FaceBox], index: int) -> FaceBox:
    count = len(ordered)
    if index < count:
        return ordered[index]
    numbers = "face 0" if count == 1 else f"faces 0 to {count - 1}, counted from the left"
    raise InputError(f"Face {index} was asked for, but only {count} found: choose among {numbers}.")


MIN_FACE_PX = 72
"""Least size of a face, px, by its landmarks, from the hairline to the chin: then the eyes are 26 px apart."""
MAX_CUT = 0.05
"""Largest share of landmarks outside the picture; a face that is cut at one eye has 0.11."""
MAX_ROLL_DEG = 60.0
NEXT = f"Use a photo in which one face is upright, whole and at least {MIN_FACE_PX} px high."


def check_portrait(
    image: UInt8[np.ndarray, "H W 3"], face: FaceBox | None, landmarks: Float32[np.ndarray, "478 2"] | None
) -> None:
    """Raise an error for a picture without a usable face. Drawings, paintings and statues are accepted.

    Raises:
        InputError: no face, not enough of its features, too small, cut off by the border, or lying on its side.
    """
    height, width = image.shape[:2]
    if face is None:
        raise InputError(f"No human face was found in the {width}x{height} picture. {NEXT}")
    if landmarks is None:
        raise InputError(f"A face was found at {_place(face)}, but its features are not visible. {NEXT}")
    inside = (landmarks >= 0).all(axis=1) & (landmarks < np.array([width, height])).all(axis=1)
    size = float(np.ptp(landmarks, axis=0).max())
    if size < MIN_FACE_PX:
        raise InputError(f"The face at {_place(face)} is {size:.0f} px high, too small. {NEXT}")
    if 1 - inside.mean() > MAX_CUT:
        cut = 100 * (1 - inside.mean())
        raise InputError(f"{cut:.0f} % of the face at {_place(face)} is cut off by the border. {NEXT}")
    if abs(face.roll_deg) > MAX_ROLL_DEG:
        turned = f"{face.roll_deg:.0f} degrees"
        raise InputError(f"The face at {_place(face)} is turned by {turned}. Rotate the photo upright first.")


def _place(face: FaceBox) -> str:
    return f"({face.centre[0]:.0f}, {face.centre[1]:.0f})"
