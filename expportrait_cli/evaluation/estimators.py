"""Networks that metrics use, as far as they are installed on this machine."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from expportrait_cli.evaluation import coefficients, face, image, lpips
from expportrait_cli.evaluation.columns import IDENTITIES, TRUTH
from expportrait_cli.evaluation.onnx_net import OnnxNet, find, first_operators, missing_file, missing_weights
from expportrait_cli.geometry.rotations import similarity

Image = UInt8[np.ndarray, "H W 3"]
Picture = Float32[np.ndarray, "H W 3"]
Descriptor = Float64[np.ndarray, " D"]
NETS: dict[str, lpips.Net] = {"lpips_alex": "alex", "lpips_vgg": "vgg"}
READERS = {coefficients.DEEP3D: coefficients.Deep3D, coefficients.SMIRK: coefficients.Smirk}
"""Networks for expression and pose from one picture, by the name of their weights in the catalogue."""


def missing_columns(*, has_truth: bool, side: int) -> dict[str, str]:
    """Columns that cannot be measured for these films or on this machine, with reasons; `side`: shorter one, px."""
    missing = {"flip": image.missing_package()}
    for column, reason in (("identity_dlib", missing_packages()), ("csim_arcface", missing_weights(ARCFACE))):
        missing |= dict.fromkeys((column, IDENTITIES[column]), reason)
    missing |= {column: missing_file(lpips.WEIGHTS[net]) for column, net in NETS.items()}
    for weights, reader in READERS.items():
        missing |= dict.fromkeys(reader.columns, missing_weights(weights))
    if side <= image.MS_SSIM_SIDE:
        missing["ms_ssim"] = f"its coarsest scale needs sides above {image.MS_SSIM_SIDE} px, the film has {side}"
    if not has_truth:
        missing |= dict.fromkeys(TRUTH, "needs a target that shows the same person in the same place")
    return {column: reason for column, reason in missing.items() if reason is not None}


PACKAGES = {"dlib": "dlib-bin", "face_recognition_models": "face-recognition-models"}
ALIGNER, NET = "shape_predictor_5_face_landmarks.dat", "dlib_face_recognition_resnet_model_v1.dat"
FOREHEAD = 0.1
"""Height by which boxes of dlib's detector exceed the landmarks' at the top, as a share of their bounding box."""


def missing_packages() -> str | None:
    """Message of what must be installed to measure identity; None if nothing is missing."""
    missing = [package for module, package in PACKAGES.items() if find_spec(module) is None]
    if not missing:
        return None
    verb = "is" if len(missing) == 1 else "are"
    return f"{' and '.join(missing)} {verb} not installed: pip install {' '.join(missing)}"


class IdentityNet:
    """dlib's ResNet-29 on its own five-point alignment; needs `missing_packages()` to be None."""

    def __init__(self) -> None:
        import dlib

        # An extension without type hints.
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
"""Name of the network in the catalogue."""
SIDE = 112
"""Side of its crop, px."""
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Positions, px, of eyes, tip of the nose and corners of the mouth in ArcFace's training crops, the left in the picture
first; from its reference code."""
TEMPLATE_POINTS = [468, 473, 4, 61, 291]
"""The same points among FaceMesh's landmarks: irises, nose, mouth."""


FIRST_NODES = 8
"""Number of first nodes of a graph that are searched for a normalisation of the picture."""


class ArcFace:
    """A network from a picture [1, 3, 112, 112] to one descriptor, as InsightFace publishes them.

    Its input is RGB in -1..1, or in 0..255 if the graph itself begins with a subtraction and a scaling.
    """

    def __init__(self, path: Path) -> None:
        """Open the network.

        Raises:
            WeightsError: the network has other inputs or outputs.
        """
        self._net = OnnxNet(path, "an ArcFace network", SIDE)
        # As InsightFace's loader: a graph that begins with a subtraction and a scaling normalises its input itself,
        # and gets 0..255.
        begins = first_operators(path, FIRST_NODES)
        self._scales_itself = "Sub" in begins and bool({"Mul", "Div"} & set(begins))
        self._names = list(self._net.outputs)
        if len(self._names) != 1:
            raise self._net.refused(f"gives {', '.join(self._names)}", "one descriptor")

    def describe(
        self, image: UInt8[np.ndarray, "H W 3"], points: Float64[np.ndarray, "478 2"]
    ) -> Float64[np.ndarray, " D"]:
        """Descriptor, of length 1, of the face with these landmarks. About 100 ms for a ResNet-50."""
        picture = arcface_crop(image, points).astype(np.float32).transpose(2, 0, 1)
        (found,) = self._net.run(picture if self._scales_itself else (picture - 127.5) / 127.5, self._names)
        return found / max(float(np.linalg.norm(found)), 1e-12)


def arcface_crop(
    image: UInt8[np.ndarray, "H W 3"], points: Float64[np.ndarray, "478 2"]
) -> UInt8[np.ndarray, "112 112 3"]:
    """Crop the face so that its five points are nearest to `TEMPLATE`, RGB."""
    # Pixel centres lie at +0.5 here, and at whole numbers in the template and in OpenCV.
    matrix = similarity(points[TEMPLATE_POINTS] - 0.5, TEMPLATE)
    return cv2.warpAffine(image, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR)


class Likeness:
    """Similarity of faces to one reference face."""

    def __init__(self, missing: dict[str, str]) -> None:
        """Load the networks of `IDENTITIES` that are not missing."""
        self._nets: dict[str, Any] = {}
        if "identity_dlib" not in missing:
            self._nets["identity_dlib"] = IdentityNet()
        path = find(ARCFACE)
        if "csim_arcface" not in missing and path is not None:
            self._nets["csim_arcface"] = ArcFace(path)
        self._reference: dict[str, Descriptor] = {}

    @property
    def wants_reference(self) -> bool:
        """True while there is a network, and no reference yet."""
        return bool(self._nets) and not self._reference

    @property
    def is_empty(self) -> bool:
        """True without a network."""
        return not self._nets

    @property
    def columns(self) -> list[str]:
        """Names of the values of `measure`."""
        return list(self._nets)

    def compare_with(self, photo: Image, points: face.Points) -> None:
        """Set the reference to the face with these landmarks."""
        self._reference = {column: net.describe(photo, points) for column, net in self._nets.items()}

    def measure(self, frame: Image, points: face.Points) -> dict[str, float]:
        """Distance or cosine to the reference, by column; empty before there is a reference."""
        row = {}
        for column, reference in self._reference.items():
            own = self._nets[column].describe(frame, points)
            row[column] = float(np.linalg.norm(own - reference) if column == "identity_dlib" else own @ reference)
        return row


class Readers:
    """Compares pairs of faces by the networks of `READERS`; frames are independent."""

    def __init__(self, missing: dict[str, str]) -> None:
        """Load the networks, except those whose columns are in `missing` (the reasons why they are, by column)."""
        paths = {weights: find(weights) for weights, reader in READERS.items() if reader.columns[0] not in missing}
        self._nets = [READERS[weights](path) for weights, path in paths.items() if path is not None]

    def read(self, frame: Image, points: face.Points) -> dict[str, Float64[np.ndarray, " _"]]:
        """Coefficients of one face, by the column that they are for."""
        return {
            column: numbers
            for net in self._nets
            for column, numbers in zip(net.columns, net.read(frame, points), strict=True)
        }

    @staticmethod
    def compare(own: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Mean absolute differences between the coefficients of two faces, by column."""
        return {column: float(np.abs(numbers - wanted[column]).mean()) for column, numbers in own.items()}


def sparse_metrics(missing: dict[str, str]) -> dict[str, Callable[[Picture, Picture], float]]:
    """Metrics of a picture and its target (0..1) that are too slow for every frame, by column."""
    metrics: dict[str, Callable[[Picture, Picture], float]] = {}
    if "flip" not in missing:
        metrics["flip"] = lambda own, wanted: float(image.error_map(own, wanted).mean(dtype=np.float64))
    for column, net in NETS.items():
        if column not in missing:
            metrics[column] = lpips.load(net).of_frames
    return metrics
