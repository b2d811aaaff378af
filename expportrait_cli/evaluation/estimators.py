"""What looks at pictures beyond plain arithmetic, as far as this machine has it."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from expportrait_cli.evaluation import deep3d, face, identity, image, lpips, smirk
from expportrait_cli.evaluation.columns import IDENTITIES, TRUTH
from expportrait_cli.evaluation.identity import IdentityNet, missing_packages
from expportrait_cli.evaluation.onnx_net import find, missing_file, missing_weights

Image = UInt8[np.ndarray, "H W 3"]
Picture = Float32[np.ndarray, "H W 3"]
Descriptor = Float64[np.ndarray, " D"]
NETS: dict[str, lpips.Net] = {"lpips_alex": "alex", "lpips_vgg": "vgg"}
READERS = {deep3d.WEIGHTS: deep3d.Deep3D, smirk.WEIGHTS: smirk.Smirk}
"""Networks that read expression and pose from one picture, by the entry of their weights."""


def missing_columns(*, has_truth: bool, side: int) -> dict[str, str]:
    """Columns that these films cannot have, or this machine, and why; `side` is the target's shorter one, px."""
    missing = {"flip": image.missing_package()}
    for column, reason in (("identity_dlib", missing_packages()), ("csim_arcface", missing_weights(identity.ARCFACE))):
        missing |= dict.fromkeys((column, IDENTITIES[column]), reason)
    missing |= {column: missing_file(lpips.WEIGHTS[net]) for column, net in NETS.items()}
    for weights, reader in READERS.items():
        missing |= dict.fromkeys(reader.columns, missing_weights(weights))
    if side <= image.MS_SSIM_SIDE:
        missing["ms_ssim"] = f"its coarsest scale needs sides above {image.MS_SSIM_SIDE} px, the film has {side}"
    if not has_truth:
        missing |= dict.fromkeys(TRUTH, "needs a target that shows the same person in the same place")
    return {column: reason for column, reason in missing.items() if reason is not None}


class Likeness:
    """How alike faces are to one reference face."""

    def __init__(self, missing: dict[str, str]) -> None:
        """Load the networks of `IDENTITIES` that are not missing."""
        self._nets: dict[str, Any] = {}
        if "identity_dlib" not in missing:
            self._nets["identity_dlib"] = IdentityNet()
        path = find(identity.ARCFACE)
        if "csim_arcface" not in missing and path is not None:
            self._nets["csim_arcface"] = identity.ArcFace(path)
        self._reference: dict[str, Descriptor] = {}

    @property
    def wants_reference(self) -> bool:
        """Whether there is a network, and no reference yet."""
        return bool(self._nets) and not self._reference

    @property
    def is_empty(self) -> bool:
        """Whether there is no network."""
        return not self._nets

    @property
    def columns(self) -> list[str]:
        """What `measure` gives once there is a reference."""
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
    """What the networks of `READERS` read in pairs of faces; needs nothing of one frame for the next."""

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
