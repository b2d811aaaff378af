"""Descriptors of faces by an ArcFace network that the user brings as ONNX: the CSIM of papers."""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from expportrait_cli.evaluate.onnx_net import OnnxNet
from expportrait_cli.geometry.similarity import similarity

WEIGHTS = "arcface"
"""Entry of the catalogue."""
SIDE = 112
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Where ArcFace's training put the eyes, the tip of the nose and the corners of the mouth, px; left in the picture
first. From its publication's reference code."""
POINTS = [468, 473, 4, 61, 291]
"""The same points among FaceMesh's landmarks: irises, nose, mouth."""


class ArcFace:
    """A network that takes [1, 3, 112, 112] and gives one descriptor."""

    def __init__(self, path: Path) -> None:
        """Open the network.

        Raises:
            WeightsError: it takes or gives something else.
        """
        self._net = OnnxNet(path, "an ArcFace network", SIDE)
        self._names = list(self._net.outputs)
        if len(self._names) != 1:
            raise self._net.refused(f"gives {', '.join(self._names)}", "one descriptor")

    def describe(
        self, image: UInt8[np.ndarray, "H W 3"], points: Float64[np.ndarray, "478 2"]
    ) -> Float64[np.ndarray, " D"]:
        """Descriptor, of length 1, of the face with these landmarks. About 100 ms for a ResNet-50."""
        picture = aligned(image, points).astype(np.float32).transpose(2, 0, 1)
        (found,) = self._net.run((picture - 127.5) / 127.5, self._names)
        return found / max(float(np.linalg.norm(found)), 1e-12)


def aligned(image: UInt8[np.ndarray, "H W 3"], points: Float64[np.ndarray, "478 2"]) -> UInt8[np.ndarray, "112 112 3"]:
    """The face with its five points where the network was trained to have them, RGB."""
    # Pixel centres lie at +0.5 here, and at whole numbers in the template and in OpenCV.
    matrix = similarity(points[POINTS] - 0.5, TEMPLATE)
    return cv2.warpAffine(image, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR)
