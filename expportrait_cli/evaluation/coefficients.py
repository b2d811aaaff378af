"""Expression and pose by networks that the user provides as ONNX: Deep3DFaceRecon, and the encoders of SMIRK.

Deep3DFaceRecon (Deng et al. 2019) gives the AED and APD of GOHA. Sources:
github.com/sicxu/Deep3DFaceRecon_pytorch: the crop from util/preprocess.py and util/load_mats.py at 3730e134 and
147e60d1, the range and the order of the channels from test.py at 1d8e2b80, the coefficients from `split_coeff` and
`compute_rotation` of models/bfm.py at 3730e134.

SMIRK (Retsinas et al., CVPR 2024), github.com/georgeretsi/smirk: the crop, its scale, range and
channels from demo.py at 18ef7036, names and sizes of the outputs from src/smirk_encoder.py at 66fd6f60.

Nothing here was compared with results of the published networks, which were not available.
"""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

from expportrait_cli.evaluation.onnx_net import OnnxNet

DEEP3D, SMIRK = "deep3d", "smirk"
"""Names of the networks in the catalogue."""
SIDE = 224
"""Side of the crop of either network, px."""
FACTOR = 102.0
"""Length, px, of a unit of the template in Deep3DFaceRecon's crop (`rescale_factor`)."""
TEMPLATE = np.array(
    [
        [-0.31148657, 0.29036078, 0.13377953],
        [0.30979887, 0.28972036, 0.13179526],
        [0.0032535, -0.04617932, 0.55244243],
        [-0.25216928, -0.38133916, 0.22405732],
        [0.2484662, -0.38128236, 0.22235769],
    ]
)
"""Centres of the eyes, tip of the nose and corners of the mouth of the mean face, the left in the picture first; y up,
z to the viewer. The content of similarity_Lm3D_all.mat, as several public programs quote it."""
POINTS = ((33, 133), (362, 263), (4,), (61,), (291,))
"""FaceMesh's landmarks whose mean is each point of the template; an eye is the middle of its corners, as there."""
COEFFICIENTS = 257
"""Number of Deep3DFaceRecon's coefficients."""
EXPRESSION, ANGLES = slice(80, 144), slice(224, 227)
"""Ranges of the coefficients for the expression, and for the angles about x, y and z, radians."""


class Deep3D:
    """Deep3DFaceRecon: from a picture [1, 3, 224, 224], RGB in 0..1, to 257 coefficients."""

    columns = ("aed_deep3d_mean", "apd_deep3d_mean_rad")

    def __init__(self, path: Path) -> None:
        """Open the network.

        Raises:
            WeightsError: the network has other inputs or outputs.
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
    """Crop the face to the template's size and position, without rotation, RGB; black outside the picture.

    As published: the whole picture is scaled with PIL's bicubic filter, and cropped at whole pixels, so that the crop
    jumps by a pixel at times. Published figures include that.
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
    # Only the part that the filter needs is scaled: a whole frame with a small face would take hundreds of megabytes.
    margin = int(np.ceil(2 * max(scale, 1))) + 1
    low = max(left - margin, 0), max(top - margin, 0)
    high = min(left + SIDE + margin, size[0]), min(top + SIDE + margin, size[1])
    steps = width / size[0], height / size[1]
    box = low[0] * steps[0], low[1] * steps[1], min(high[0] * steps[0], width), min(high[1] * steps[1], height)
    part = Image.fromarray(image).resize((high[0] - low[0], high[1] - low[1]), Image.Resampling.BICUBIC, box=box)
    corner = left - low[0], top - low[1]
    return np.array(part.crop((*corner, corner[0] + SIDE, corner[1] + SIDE)))


def place(five: Float64[np.ndarray, "5 2"]) -> tuple[Float64[np.ndarray, " 2"], float]:
    """Position, px, of the template's origin in the picture, and length, px, of one template unit.

    By a least-squares affine camera, whose scale is the mean length of its two rows.
    """
    known = np.c_[TEMPLATE, np.ones(len(TEMPLATE))]
    rows = np.linalg.lstsq(known, five, rcond=None)[0]
    return rows[3], float(np.linalg.norm(rows[:3], axis=0).mean())


SCALE = 1.4
"""Side of SMIRK's crop, as a multiple of the mean side of the landmarks' bounding box."""
OUTPUTS = {"expression_params": 50, "pose_params": 3}
"""Sizes of the outputs that are used, by SMIRK's names: FLAME's expression coefficients, and the head's rotation
(axis-angle, radians). A file may have other outputs too."""


class Smirk:
    """SMIRK's encoders: from a picture [1, 3, 224, 224], RGB in 0..1, to `OUTPUTS`."""

    columns = ("aed_smirk_mean", "apd_smirk_mean_rad")

    def __init__(self, path: Path) -> None:
        """Open the network.

        Raises:
            WeightsError: the network has other inputs or outputs.
        """
        self._net = OnnxNet(path, "SMIRK's encoders", SIDE)
        given = {name: shape[-1] for name, shape in self._net.outputs.items() if shape}
        if any(given.get(name) != size for name, size in OUTPUTS.items()):
            wanted = " and ".join(f"{name} [1, {size}]" for name, size in OUTPUTS.items())
            raise self._net.refused(f"gives {self._net.outputs}", wanted)

    def read(self, image: UInt8[np.ndarray, "H W 3"], points: Float64[np.ndarray, "478 2"]) -> list[np.ndarray]:
        """Expression (50) and rotation (3, axis-angle, radians) of the face with these landmarks."""
        picture = around_landmarks(image, points).astype(np.float32).transpose(2, 0, 1) / 255
        return self._net.run(picture, list(OUTPUTS))


def around_landmarks(
    image: UInt8[np.ndarray, "H W 3"], points: Float64[np.ndarray, "478 2"]
) -> UInt8[np.ndarray, "224 224 3"]:
    """Crop the landmarks' bounding box, made square and wider by `SCALE`, RGB; black outside the picture."""
    low, high = points.min(0), points.max(0)
    side = max(int((high - low).mean() * SCALE), 1)
    # As published: landmarks are counted from pixel edges, and the picture from pixel centres, half a pixel apart.
    corner, scale = (low + high) / 2 - side / 2, (SIDE - 1) / side
    matrix = np.c_[np.eye(2) * scale, -corner * scale]
    return cv2.warpAffine(image, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR)
