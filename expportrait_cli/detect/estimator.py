"""Choice of the network that estimates normals and depth; and the adapter of DAViD, whose licence permits any use.

DAViD (Saleh et al., ICCV 2025) runs through onnxruntime and gives normals, relative depth and a matte from one picture:
the published multi-task model; MIT, also its code. Trained on rendered people only.
"""

import logging
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8

from expportrait_cli.detect.estimate import INSTALL, Estimate, Estimator, assemble, resized
from expportrait_cli.errors import WeightsError, one_line
from expportrait_cli.runtime import thread_count
from expportrait_cli.weights.catalogue import Weight, checked_file, entry, locate

log = logging.getLogger(__name__)

EstimatorName = Literal["auto", "david", "sapiens", "none"]
SAPIENS_NORMALS = ("sapiens-normal", "sapiens-normal-state", "sapiens-normal-small", "sapiens-normal-small-state")
"""Names of the weights in the catalogue, best first."""


def available() -> tuple[Literal["david", "sapiens", "none"], str]:
    """Name of the estimator that `auto` takes on this machine, and the reason, as text for the user. Loads none."""
    found = locate(entry("david")) is not None
    runtime = find_spec("onnxruntime") is not None
    if found and runtime:
        return "david", "its file and onnxruntime are there"
    if sapiens_file() is not None:
        return "sapiens", "its file is there; DAViD's or onnxruntime is not"
    steps = [*([] if runtime else [INSTALL]), *([] if found else ["expportrait weights fetch david"])]
    missing = "`, then `".join(steps)
    return "none", f"no network for normals and depth; DAViD (MIT) would do: `{missing}`"


def sapiens_file() -> Weight | None:
    """Catalogue entry of the best installed file of Sapiens' normals; None without one."""
    return next((weight for weight in map(entry, SAPIENS_NORMALS) if locate(weight) is not None), None)


def estimator(name: EstimatorName) -> Estimator | None:
    """Load an estimator; None for `none`. `auto` takes the best installed one and logs its name, or returns None.

    Raises:
        WeightsError: the file of a named estimator, or the package that runs it, is missing or unusable.
    """
    match name:
        case "none":
            return None
        case "auto":
            found, reason = available()
            if found == "none":
                # The usual case, which is not logged: the download would be 1.4 GB.
                return None
            log.info("normals and depth: %s, %s", found, reason)
            return estimator(found)
        case "david":
            return David(checked_file("david"))
        case "sapiens":
            from expportrait_cli.detect.sapiens import Sapiens

            weight = sapiens_file()
            return Sapiens(checked_file(weight.name if weight else SAPIENS_NORMALS[0]))


SIDE = 512
AXES = np.eye(3, dtype=np.float32)
"""Axes of DAViD's normals (see `Axes.matrix`): x right, y up, z to the viewer, as here. They are documented nowhere;
public reports agree on y and z and differ on x. `tests/detect/test_estimate.py` establishes them on the file that
EXPPORTRAIT_DAVID names."""
OUTPUTS = ("depth", "matte", "normals")


class David:
    """DAViD's multi-task model. 390 GMAC a picture: seconds on a CPU."""

    name = "david"
    licence = "MIT"

    def __init__(self, path: Path) -> None:
        runtime = _runtime()
        self._session = _session(runtime, path)
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or list(inputs[0].shape[1:]) != [3, SIDE, SIDE]:
            taken = "; ".join(f"{one.type} {one.shape}" for one in inputs)
            raise _foreign(path, f"it takes {taken}, expected one tensor(float) [1, 3, {SIDE}, {SIDE}]")
        self._input = inputs[0].name
        shapes = self._shapes()
        roles = [_role(shape) for shape in shapes]
        if sorted(roles) != sorted(OUTPUTS):
            raise _foreign(
                path, f"it gives {shapes}, expected depth [1, H, W], normals [1, 3, H, W], matte [1, 1, H, W]"
            )
        self._roles = roles

    def _shapes(self) -> list[list[Any]]:
        """Shapes of the outputs: as declared, or from a test run if the number of channels is not declared."""
        declared = [list(one.shape) for one in self._session.get_outputs()]
        if all(len(shape) != 4 or isinstance(shape[1], int) for shape in declared):
            return declared
        picture = np.zeros((1, 3, SIDE, SIDE), np.float32)
        return [list(value.shape) for value in self._session.run(None, {self._input: picture})]

    def raw(self, crop: UInt8[np.ndarray, "S S 3"]) -> dict[str, Float32[np.ndarray, "S S *C"]]:
        """Raw outputs of the model at the crop's size: `normals` in its own axes, `depth`, `matte`."""
        side = crop.shape[0]
        # As in the published code, which reads pictures with OpenCV: BGR, 0..1, no mean subtracted.
        picture = resized(crop[..., ::-1].astype(np.float32) / 255, SIDE).transpose(2, 0, 1)[None]
        values = self._session.run(None, {self._input: np.ascontiguousarray(picture)})
        maps = {role: value[0] for role, value in zip(self._roles, values, strict=True)}
        planes = {
            "normals": maps["normals"].transpose(1, 2, 0),
            "depth": maps["depth"],
            "matte": maps["matte"][0],
        }
        return {role: resized(plane.astype(np.float32), side) for role, plane in planes.items()}

    def __call__(self, crop: UInt8[np.ndarray, "S S 3"]) -> Estimate:
        """Estimate an RGB crop."""
        raw = self.raw(crop)
        # The multi-task model's depth grows with the distance: the published code shows it inverted, and negates that
        # of the model for depth alone first. That one is refused, because it has no normals.
        return assemble(raw["normals"], AXES, depth=raw["depth"], matte=raw["matte"])


def _runtime() -> ModuleType:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise WeightsError(f"DAViD needs the Python package onnxruntime, which is missing: `{INSTALL}`.") from error
    return onnxruntime


def _session(runtime: ModuleType, path: Path) -> Any:
    """Open an ONNX model, which is a graph of known operators and contains no code."""
    import onnxruntime.capi.onnxruntime_pybind11_state as errors

    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = thread_count()
    # Threads that spin while they wait slow down everything else on a busy machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted = [one for one in ("CUDAExecutionProvider",) if one in runtime.get_available_providers()]
    unreadable = (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf, errors.NoSuchFile)
    try:
        session = runtime.InferenceSession(str(path), options, providers=[*wanted, "CPUExecutionProvider"])
    except (*unreadable, errors.NotImplemented, errors.RuntimeException) as error:
        said = one_line(error, 400)
        raise WeightsError(
            f"{path} cannot be read: {said} Fetch it again: `expportrait weights fetch david`."
        ) from error
    # onnxruntime falls back to the CPU without a word when CUDA's libraries do not fit.
    if wanted and session.get_providers()[0] != wanted[0]:
        log.warning("onnxruntime cannot use CUDA here: DAViD runs on the CPU.")
    return session


def _role(shape: list[Any]) -> str:
    # By shape: two of the three names are numbers that the export made up.
    match shape:
        case [_, _, _]:
            return "depth"
        case [_, 3, _, _]:
            return "normals"
        case [_, 1, _, _]:
            return "matte"
        case _:
            return "unknown"


def _foreign(path: Path, what: str) -> WeightsError:
    return WeightsError(f"{path} is not DAViD's multi-task model: {what}. Run `expportrait weights fetch david`.")
