"""Whether a picture will do as a portrait."""

import numpy as np
from jaxtyping import Float32, UInt8

from expportrait_cli.detect.faces import FaceBox
from expportrait_cli.errors import InputError

MIN_FACE_PX = 72
"""Smallest face, by the size of its landmarks, from the hairline to the chin: then the eyes are 26 px apart."""
MAX_CUT = 0.05
"""Share of the landmarks that may lie outside the picture. A face cut at one eye has 0.11, an eighth cut off none."""
MAX_ROLL_DEG = 60.0
NEXT = f"Use a photo in which one face is upright, whole and at least {MIN_FACE_PX} px high."


def check_portrait(
    image: UInt8[np.ndarray, "H W 3"], face: FaceBox | None, landmarks: Float32[np.ndarray, "478 2"] | None
) -> None:
    """Refuse a picture without a usable face. Drawings, paintings and statues pass: no score tells them from people.

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
