"""Networks that look at pictures for the metrics, as far as this machine has them."""

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
"""Networks that read expression and pose from one picture, by the entry of their weights."""


def missing_columns(*, has_truth: bool, side: int) -> dict[str, str]:
    """Columns that these films cannot have, or this machine, and why; `side` is the target's shorter one, px."""
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
TEMPLATE_POINTS = [468, 473, 4, 61, 291]
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
        picture = arcface_crop(image, points).astype(np.float32).transpose(2, 0, 1)
        (found,) = self._net.run(picture if self._scales_itself else (picture - 127.5) / 127.5, self._names)
        return found / max(float(np.linalg.norm(found)), 1e-12)


def arcface_crop(
    image: UInt8[np.ndarray, "H W 3"], points: Float64[np.ndarray, "478 2"]
) -> UInt8[np.ndarray, "112 112 3"]:
    """The face with its five points where the network was trained to have them, RGB."""
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
        """Names of the values that `measure` gives once there is a reference."""
        return list(self._nets)

    def compare_with(self, photo: Image, points: face.Points) -> None:
        """Make this face the reference."""
        self._reference = {column: net.describe(photo, points) for column, net in self._nets.items()}

    def measure(self, frame: Image, points: face.Points) -> dict[str, float]:
        """Each network's column; nothing before there is a reference."""
        row = {}
        for column, reference in self._reference.items():
            own = self._nets[column].describe(frame, points)
            row[column] = float(np.linalg.norm(own - reference) if column == "identity_dlib" else own @ reference)
        return row


class Readers:
    """Reads pairs of faces with the networks of `READERS`; needs nothing of one frame for the next."""

    def __init__(self, missing: dict[str, str]) -> None:
        """Load the networks whose columns are not missing."""
        paths = {weights: find(weights) for weights, reader in READERS.items() if reader.columns[0] not in missing}
        self._nets = [READERS[weights](path) for weights, path in paths.items() if path is not None]

    def read(self, frame: Image, points: face.Points) -> dict[str, Float64[np.ndarray, " _"]]:
        """Numbers of one face, by the column that they serve."""
        return {
            column: numbers
            for net in self._nets
            for column, numbers in zip(net.columns, net.read(frame, points), strict=True)
        }

    @staticmethod
    def compare(own: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Mean absolute differences of what was read in two faces."""
        return {column: float(np.abs(numbers - wanted[column]).mean()) for column, numbers in own.items()}


def sparse_metrics(missing: dict[str, str]) -> dict[str, Callable[[Picture, Picture], float]]:
    """Metrics of a picture in 0..1 and its target that are too slow for every frame."""
    metrics: dict[str, Callable[[Picture, Picture], float]] = {}
    if "flip" not in missing:
        metrics["flip"] = lambda own, wanted: float(image.error_map(own, wanted).mean(dtype=np.float64))
    for column, net in NETS.items():
        if column not in missing:
            metrics[column] = lpips.load(net).of_frames
    return metrics
