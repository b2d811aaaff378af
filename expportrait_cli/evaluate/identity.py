"""The only door to dlib: descriptors of faces, to tell whether two pictures show one person."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

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
    return f"{' and '.join(missing)} {verb} not installed: pip install 'expportrait-cli[eval]'"


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
