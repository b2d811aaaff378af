"""Descriptors of faces, to tell whether two pictures show one person: dlib's network, and ArcFace as ONNX."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from expportrait_cli.evaluation.onnx_net import OnnxNet, first_operators
from expportrait_cli.geometry.rotations import similarity

PACKAGES = {"dlib": "dlib-bin", "face_recognition_models": "face-recognition-models"}
ALIGNER, NET = "shape_predictor_5_face_landmarks.dat", "dlib_face_recognition_resnet_model_v1.dat"
FOREHEAD = 0.1
"""dlib's own detector boxes reach this much higher than the landmarks, in heights of their bounding box."""


def missing_packages() -> str | None:
    """Name what has to be installed before identity can be measured."""
    missing = [package for module, package in PACKAGES.items() if find_spec(module) is None]
    if not missing:
        return None
    verb = "is" if len(missing) == 1 else "are"
    return f"{' and '.join(missing)} {verb} not installed: pip install {' '.join(missing)}"


class IdentityNet:
    """dlib's ResNet-29 on its own five-point alignment; needs `missing_packages()` to be None."""

    def __init__(self) -> None:
        import dlib

        # An extension without types.
        library: Any = dlib

        # Importing this package fails on a setuptools without pkg_resources; only its files are wanted.
        spec = find_spec("face_recognition_models")
        assert spec is not None and spec.submodule_search_locations is not None
        folder = Path(spec.submodule_search_locations[0]) / "models"
        self._rectangle = library.rectangle
        self._align = library.shape_predictor(str(folder / ALIGNER))
        self._net = library.face_recognition_model_v1(str(folder / NET))

    def describe(
        self, image: UInt8[np.ndarray, "H W 3"], points: Float64[np.ndarray, "478 2"]
    ) -> Float64[np.ndarray, "128"]:
        """Descriptor of the face with these landmarks, of about unit length. 20 to 40 ms."""
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        box = self._rectangle(int(left), int(top - FOREHEAD * (bottom - top)), int(right), int(bottom))
        return np.array(self._net.compute_face_descriptor(np.ascontiguousarray(image), self._align(image, box)))


ARCFACE = "arcface"
"""Entry of the catalogue."""
SIDE = 112
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Where ArcFace's training put the eyes, the tip of the nose and the corners of the mouth, px; left in the picture
first. From its publication's reference code."""
POINTS = [468, 473, 4, 61, 291]
"""The same points among FaceMesh's landmarks: irises, nose, mouth."""


FIRST_NODES = 8
"""Nodes of a graph among which its own scaling of the picture is looked for."""


class ArcFace:
    """A network that takes [1, 3, 112, 112] and gives one descriptor, in InsightFace's form.

    It is given RGB from -1 to 1, or from 0 to 255 if its graph begins by subtracting and scaling.
    """

    def __init__(self, path: Path) -> None:
        """Open the network.

        Raises:
            WeightsError: it takes or gives something else.
        """
        self._net = OnnxNet(path, "an ArcFace network", SIDE)
        # As InsightFace's own loader: a network that begins so takes levels of 0 to 255, and would be given them twice
        # as small.
        begins = first_operators(path, FIRST_NODES)
        self._scales_itself = "Sub" in begins and bool({"Mul", "Div"} & set(begins))
        self._names = list(self._net.outputs)
        if len(self._names) != 1:
            raise self._net.refused(f"gives {', '.join(self._names)}", "one descriptor")

    def describe(
        self, image: UInt8[np.ndarray, "H W 3"], points: Float64[np.ndarray, "478 2"]
    ) -> Float64[np.ndarray, " D"]:
        """Descriptor, of length 1, of the face with these landmarks. About 100 ms for a ResNet-50."""
        picture = aligned(image, points).astype(np.float32).transpose(2, 0, 1)
        (found,) = self._net.run(picture if self._scales_itself else (picture - 127.5) / 127.5, self._names)
        return found / max(float(np.linalg.norm(found)), 1e-12)


def aligned(image: UInt8[np.ndarray, "H W 3"], points: Float64[np.ndarray, "478 2"]) -> UInt8[np.ndarray, "112 112 3"]:
    """The face with its five points where the network was trained to have them, RGB."""
    # Pixel centres lie at +0.5 here, and at whole numbers in the template and in OpenCV.
    matrix = similarity(points[POINTS] - 0.5, TEMPLATE)
    return cv2.warpAffine(image, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR)
