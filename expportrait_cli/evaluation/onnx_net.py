"""Networks that the user provides: their files, and running them with onnxruntime.

An ONNX file has a graph of known operators, and no code.
"""

import mmap
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from expportrait_cli.errors import WeightsError
from expportrait_cli.runtime import thread_count
from expportrait_cli.weights.catalogue import entry, folders, locate


def find(name: str) -> Path | None:
    """File of the catalogue's entry `name`, in the first weights folder that has it; None without."""
    return locate(entry(name))


def missing_file(name: str) -> str | None:
    """Message of the file that the user must provide for the catalogue's entry `name`; None if it is there."""
    if find(name) is not None:
        return None
    return (
        f"needs {entry(name).file} in {folders()[-1]} or in the folder that EXPPORTRAIT_WEIGHTS names; "
        "`expportrait weights list` says where it comes from, docs/evaluation.md how to make it"
    )


def missing_weights(name: str) -> str | None:
    """Message of the file or package that is missing for the network `name` of the catalogue; None if none is."""
    found = missing_file(name)
    if found is None and find_spec("onnxruntime") is None:
        return "onnxruntime is not installed: pip install onnxruntime"
    return found


GRAPH, NODE, OPERATOR = 7, 1, 4
"""Field numbers in ONNX's protobuf: `graph` of a model, `node` of a graph, `op_type` of a node."""


def first_operators(path: Path, count: int) -> list[str]:
    """Operators of the first nodes of a network's graph (`Sub`, `Mul`, `Conv`, ...); empty if the file is no ONNX."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            for start, end in _fields(data, 0, len(data), GRAPH):
                nodes = islice(_fields(data, start, end, NODE), count)
                return [bytes(data[a:b]).decode() for node in nodes for a, b in _fields(data, *node, OPERATOR)]
        except (IndexError, UnicodeDecodeError):
            pass
    return []


def _fields(data: mmap.mmap, at: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each text or message in field `wanted` of a protobuf message."""
    while at < end:
        key, at = _number(data, at)
        match key & 7:
            case 0:
                _, at = _number(data, at)
            case 1:
                at += 8
            case 2:
                size, at = _number(data, at)
                if key >> 3 == wanted:
                    yield at, at + size
                at += size
            case 5:
                at += 4
            case _:
                return


def _number(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


class OnnxNet:
    """An ONNX network with one input, a picture [1, 3, side, side]; needs `missing_weights` to be None."""

    def __init__(self, path: Path, what: str, side: int) -> None:
        """Open the network; `what`: description of the expected network, for messages.

        Raises:
            WeightsError: the file is no ONNX network, or has another input.
        """
        import onnxruntime

        # The errors of this extension have no common base class.
        import onnxruntime.capi.onnxruntime_pybind11_state as errors

        unreadable = (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = thread_count()
        # Threads that spin while they wait slow down everything else on a busy machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except (*unreadable, errors.NotImplemented, errors.RuntimeException) as error:
            raise WeightsError(f"{path} is no ONNX network that could be read. Make or download it again.") from error
        self._session, self._path, self._what = session, path, what
        inputs = session.get_inputs()
        shapes = [list(one.shape) for one in inputs]
        if len(shapes) != 1 or shapes[0][1:] != [3, side, side] or inputs[0].type != "tensor(float)":
            taken = "; ".join(f"{one.type} {list(one.shape)}" for one in inputs)
            raise self.refused(f"takes {taken}", f"one tensor(float) [1, 3, {side}, {side}]")
        self._input = inputs[0].name
        self.outputs: dict[str, list[int | str | None]] = {one.name: list(one.shape) for one in session.get_outputs()}
        """Shapes of the outputs by name; a variable dimension is a text or None."""

    def refused(self, found: str, expected: str) -> WeightsError:
        """Make the error for a file of another network."""
        return WeightsError(f"{self._path} {found}, expected {self._what}: {expected}. README.md says how to get it.")

    def run(self, picture: Float32[np.ndarray, "3 S S"], names: list[str]) -> list[Float64[np.ndarray, " _"]]:
        """Run the network on one picture; returns the outputs `names`, flattened."""
        found = self._session.run(names, {self._input: np.ascontiguousarray(picture[None])})
        return [value.ravel().astype(np.float64) for value in found]
