"""Descriptors of faces by an ArcFace network that the user brings as ONNX: the CSIM of papers.

ONNX holds a graph of known operators and cannot bring code of its own.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from expportrait_cli.errors import WeightsError
from expportrait_cli.geometry.similarity import similarity
from expportrait_cli.weights import folders

FILE = "arcface.onnx"
SIDE = 112
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Where ArcFace's training put the eyes, the tip of the nose and the corners of the mouth, px; left in the picture
first. From its publication's reference code."""
POINTS = [468, 473, 4, 61, 291]
"""The same points among FaceMesh's landmarks: irises, nose, mouth."""


def find() -> Path | None:
    """The network, in the first of the weights folders that has one."""
    return next((folder / FILE for folder in folders() if (folder / FILE).is_file()), None)


def missing_weights() -> str | None:
    """Say what the user has to bring before it can be used."""
    if find() is None:
        return f"needs an ArcFace network as {FILE} in {folders()[-1]} or in the folder that EXPPORTRAIT_WEIGHTS names"
    if find_spec("onnxruntime") is None:
        return "onnxruntime is not installed: pip install 'expportrait-cli[normals]'"
    return None


class ArcFace:
    """A network that takes [1, 3, 112, 112] and gives one descriptor; needs `missing_weights()` to be None."""

    def __init__(self, path: Path) -> None:
        """Open the network.

        Raises:
            WeightsError: it takes or gives something else.
        """
        import onnxruntime

        # An extension whose errors have no common class but RuntimeError's, and some not even that.
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, InvalidProtobuf

        try:
            self._session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf) as error:
            raise WeightsError(f"{path} is no ONNX network that could be read. Download it again.") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = list(inputs[0].shape[1:])
        if len(inputs) != 1 or shape != [3, SIDE, SIDE] or len(outputs) != 1:
            raise WeightsError(f"{path} takes {shape}, expected ArcFace's one picture of [3, {SIDE}, {SIDE}].")
        self._input = inputs[0].name

    def describe(
        self, image: UInt8[np.ndarray, "H W 3"], points: Float64[np.ndarray, "478 2"]
    ) -> Float64[np.ndarray, " D"]:
        """Descriptor, of length 1, of the face with these landmarks. About 100 ms for a ResNet-50."""
        picture = aligned(image, points).astype(np.float32).transpose(2, 0, 1)[None]
        found = self._session.run(None, {self._input: (picture - 127.5) / 127.5})[0].ravel().astype(np.float64)
        return found / max(float(np.linalg.norm(found)), 1e-12)


def aligned(image: UInt8[np.ndarray, "H W 3"], points: Float64[np.ndarray, "478 2"]) -> UInt8[np.ndarray, "112 112 3"]:
    """The face with its five points where the network was trained to have them, RGB."""
    # Pixel centres lie at +0.5 here, and at whole numbers in the template and in OpenCV.
    matrix = similarity(points[POINTS] - 0.5, TEMPLATE)
    return cv2.warpAffine(image, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR)
