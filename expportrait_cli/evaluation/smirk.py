"""Expression and pose by SMIRK's encoders (Retsinas et al., CVPR 2024), which the user brings as ONNX.

Facts are those of github.com/georgeretsi/smirk: the crop, its scale, range and channels from demo.py at 18ef7036, names
and sizes of the outputs from src/smirk_encoder.py at 66fd6f60. Nothing here was compared with the published network: it
was not at hand.
"""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from expportrait_cli.evaluation.onnx_net import OnnxNet

WEIGHTS = "smirk"
"""Entry of the catalogue."""
SIDE, SCALE = 224, 1.4
"""Of the crop, px; and how much wider it is than the mean side of the landmarks' box."""
OUTPUTS = {"expression_params": 50, "pose_params": 3}
"""By the names that SMIRK gives them: coefficients of FLAME's expression, and the head's turn as an axis times radians.
A file may give others, too."""


class Smirk:
    """A network that takes [1, 3, 224, 224], RGB in 0..1, and gives `OUTPUTS`."""

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
        picture = aligned(image, points).astype(np.float32).transpose(2, 0, 1) / 255
        return self._net.run(picture, list(OUTPUTS))


def aligned(image: UInt8[np.ndarray, "H W 3"], points: Float64[np.ndarray, "478 2"]) -> UInt8[np.ndarray, "224 224 3"]:
    """The landmarks' box, made square and wider, RGB; black beyond the picture."""
    low, high = points.min(0), points.max(0)
    side = max(int((high - low).mean() * SCALE), 1)
    # As published, landmarks count pixels from their edges and the picture from their centres: half a pixel apart.
    corner, scale = (low + high) / 2 - side / 2, (SIDE - 1) / side
    matrix = np.c_[np.eye(2) * scale, -corner * scale]
    return cv2.warpAffine(image, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR)
