"""An ONNX file with the inputs and outputs of DAViD."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from expportrait_cli.detect.estimator import AXES


def david_file(
    path: Path, *, axes: np.ndarray = AXES, order: tuple[str, ...] = ("depth", "normals", "matte"), side: int = 512
) -> Path:
    """A network in DAViD's shape: vectors = axes^T @ (2 rgb - 1), matte = their length, depth = 3 - their own z."""

    def constant(name: str, values: np.ndarray) -> onnx.TensorProto:
        return onnx.numpy_helper.from_array(values, name)

    kernel = np.linalg.inv(axes).astype(np.float32)[:, :, None, None]
    nodes = [
        # Blue comes first: only a picture in that order gives the right vectors.
        helper.make_node("Gather", ["input", "rgb_order"], ["rgb"], axis=1),
        helper.make_node("Mul", ["rgb", "two"], ["doubled"]),
        helper.make_node("Sub", ["doubled", "one"], ["own"]),
        helper.make_node("Conv", ["own", "kernel"], ["normals"]),
        helper.make_node("ReduceL2", ["own", "channel"], ["matte"], keepdims=1),
        helper.make_node("Gather", ["own", "z"], ["height"], axis=1),
        helper.make_node("Sub", ["three", "height"], ["depth"]),
    ]
    shapes = {"depth": [1, side, side], "normals": [1, 3, side, side], "matte": [1, 1, side, side]}
    graph = helper.make_graph(
        nodes,
        "david",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, side, side])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in order],
        [
            constant("rgb_order", np.array([2, 1, 0])),
            constant("two", np.float32(2)),
            constant("one", np.float32(1)),
            constant("three", np.float32(3)),
            constant("channel", np.array([1])),
            constant("z", np.array(2)),
            constant("kernel", kernel),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
