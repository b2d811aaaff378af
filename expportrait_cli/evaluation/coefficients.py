"""Expression and pose by networks that the user brings as ONNX: Deep3DFaceRecon and SMIRK's encoders.

Deep3DFaceRecon (Deng et al. 2019) gives the AED and APD of GOHA. Facts are those of
github.com/sicxu/Deep3DFaceRecon_pytorch: the crop from util/preprocess.py and util/load_mats.py at 3730e134 and
147e60d1, the range and the order of the channels from test.py at 1d8e2b80, the coefficients from `split_coeff` and
`compute_rotation` of models/bfm.py at 3730e134.

SMIRK (Retsinas et al., CVPR 2024): facts are those of github.com/georgeretsi/smirk: the crop, its scale, range and
channels from demo.py at 18ef7036, names and sizes of the outputs from src/smirk_encoder.py at 66fd6f60.

Nothing here was compared with the published networks: they were not at hand.
"""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

from expportrait_cli.evaluation.onnx_net import OnnxNet

DEEP3D, SMIRK = "deep3d", "smirk"
"""Entries of the catalogue."""
SIDE = 224
"""Of either crop, px."""
FACTOR = 102.0
"""Px that a unit of the template is long in Deep3DFaceRecon's crop (`rescale_factor`)."""
TEMPLATE = np.array(
    [
        [-0.31148657, 0.29036078, 0.13377953],
        [0.30979887, 0.28972036, 0.13179526],
        [0.0032535, -0.04617932, 0.55244243],
        [-0.25216928, -0.38133916, 0.22405732],
        [0.2484662, -0.38128236, 0.22235769],
    ]
)
"""Middles of the eyes, tip of the nose and corners of the mouth of the mean face, left in the picture first; y up, z to
the viewer. What similarity_Lm3D_all.mat comes to; several public programs write the numbers out, all the same."""
POINTS = ((33, 133), (362, 263), (4,), (61,), (291,))
"""The same among FaceMesh's landmarks; an eye is the middle of its corners, as there."""
COEFFICIENTS = 257
EXPRESSION, ANGLES = slice(80, 144), slice(224, 227)
"""Of the coefficients; angles about x, y and z in radians."""


class Deep3D:
    """Deep3DFaceRecon: takes [1, 3, 224, 224], RGB in 0..1, and gives the 257 coefficients."""

    columns = ("aed_deep3d_mean", "apd_deep3d_mean_rad")

    def __init__(self, path: Path) -> None:
        """Open the network.

        Raises:
            WeightsError: it takes or gives something else.
        """
        self._net = OnnxNet(path, "Deep3DFaceRecon", SIDE)
        self._names = list(self._net.outputs)
        shapes = list(self._net.outputs.values())
        if len(shapes) != 1 or shapes[0][1:] != [COEFFICIENTS]:
            raise self._net.refused(f"gives {shapes}", f"coefficients [1, {COEFFICIENTS}]")

    def read(self, image: UInt8[np.ndarray, "H W 3"], points: Float64[np.ndarray, "478 2"]) -> list[np.ndarray]:
        """Expression (64) and angles (3, radians) of the face with these landmarks. 4 GMAC."""
        picture = at_template(image, points).astype(np.float32).transpose(2, 0, 1) / 255
        (found,) = self._net.run(picture, self._names)
        return [found[EXPRESSION], found[ANGLES]]


def at_template(
    image: UInt8[np.ndarray, "H W 3"], points: Float64[np.ndarray, "478 2"]
) -> UInt8[np.ndarray, "224 224 3"]:
    """The face at the template's size and place, not turned, RGB; black beyond the picture.

    As if the whole picture were scaled, with PIL's bicubic filter, and cut at whole pixels, as published: the crop
    moves by jumps of a pixel, which are part of the figures that others have.
    """
    height, width = image.shape[:2]
    # Pixel centres lie at whole numbers there, and y points up.
    five = np.stack([points[list(group)].mean(0) for group in POINTS]) - 0.5
    five[:, 1] = height - 1 - five[:, 1]
    (x, y), unit_px = place(five)
    scale = FACTOR / unit_px
    size = int(width * scale), int(height * scale)
    left = int(size[0] / 2 - SIDE / 2 + (x - width / 2) * scale)
    top = int(size[1] / 2 - SIDE / 2 + (height / 2 - y) * scale)
    # Only what the filter sees of it is scaled: whole frames with a small face would grow to hundreds of megabytes.
    margin = int(np.ceil(2 * max(scale, 1))) + 1
    low = max(left - margin, 0), max(top - margin, 0)
    high = min(left + SIDE + margin, size[0]), min(top + SIDE + margin, size[1])
    steps = width / size[0], height / size[1]
    box = low[0] * steps[0], low[1] * steps[1], min(high[0] * steps[0], width), min(high[1] * steps[1], height)
    part = Image.fromarray(image).resize((high[0] - low[0], high[1] - low[1]), Image.Resampling.BICUBIC, box=box)
    corner = left - low[0], top - low[1]
    return np.array(part.crop((*corner, corner[0] + SIDE, corner[1] + SIDE)))


def place(five: Float64[np.ndarray, "5 2"]) -> tuple[Float64[np.ndarray, " 2"], float]:
    """Place, px, of the template's origin among the points that it was seen at, and length of its unit, px.

    The least-squares affine camera; its scale is the mean length of its two rows.
    """
    known = np.c_[TEMPLATE, np.ones(len(TEMPLATE))]
    rows = np.linalg.lstsq(known, five, rcond=None)[0]
    return rows[3], float(np.linalg.norm(rows[:3], axis=0).mean())


SCALE = 1.4
"""How much wider SMIRK's crop is than the mean side of the landmarks' box."""
OUTPUTS = {"expression_params": 50, "pose_params": 3}
"""By the names that SMIRK gives them: coefficients of FLAME's expression, and the head's turn as an axis times radians.
A file may give others, too."""


class Smirk:
    """SMIRK's encoders: take [1, 3, 224, 224], RGB in 0..1, and give `OUTPUTS`."""

    columns = ("aed_smirk_mean", "apd_smirk_mean_rad")

    def __init__(self, path: Path) -> None:
        """Open the network.

        Raises:
            WeightsError: it takes or gives something else.
        """
        self._net = OnnxNet(path, "SMIRK's encoders", SIDE)
        given = {name: shape[-1] for name, shape in self._net.outputs.items() if shape}
        if any(given.get(name) != size for name, size in OUTPUTS.items()):
            wanted = " and ".join(f"{name} [1, {size}]" for name, size in OUTPUTS.items())
            raise self._net.refused(f"gives {self._net.outputs}", wanted)

    def read(self, image: UInt8[np.ndarray, "H W 3"], points: Float64[np.ndarray, "478 2"]) -> list[np.ndarray]:
        """Expression (50) and turn (3, radians) of the face with these landmarks."""
        picture = around_landmarks(image, points).astype(np.float32).transpose(2, 0, 1) / 255
        return self._net.run(picture, list(OUTPUTS))


def around_landmarks(
    image: UInt8[np.ndarray, "H W 3"], points: Float64[np.ndarray, "478 2"]
) -> UInt8[np.ndarray, "224 224 3"]:
    """The landmarks' box, made square and wider, RGB; black beyond the picture."""
    low, high = points.min(0), points.max(0)
    side = max(int((high - low).mean() * SCALE), 1)
    # As published, landmarks count pixels from their edges and the picture from their centres: half a pixel apart.
    corner, scale = (low + high) / 2 - side / 2, (SIDE - 1) / side
    matrix = np.c_[np.eye(2) * scale, -corner * scale]
    return cv2.warpAffine(image, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR)
