"""Model files as MediaPipe Tasks reads them, made from the models inside the wheel of mediapipe 0.10.21.

The published ones cannot be had offline. Both hold the same families of nets; what differs is how they are packed.
"""

import importlib.util
import re
import shutil
import zipfile
from pathlib import Path

import flatbuffers
import numpy as np
from mediapipe.tasks.metadata import schema_py_generated as tflite
from mediapipe.tasks.python.metadata.metadata_writers import metadata_writer

CONCATENATION, GATHER, INT32 = 2, 36, 2
"""Operators and the type, by their numbers in the TensorFlow Lite schema."""
MESH, POINTS = 468, 478


def wheel_model(name: str) -> Path:
    """A model inside the wheel, such as `pose_detection/pose_detection`."""
    spec = importlib.util.find_spec("mediapipe")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "modules" / f"{name}.tflite"


def write_all(folder: Path) -> None:
    """Every file that the Tasks adapter looks for, under its published name."""
    shutil.copy(wheel_model("face_detection/face_detection_short_range"), folder / "blaze_face_short_range.tflite")
    shutil.copy(wheel_model("face_detection/face_detection_full_range_sparse"), folder / "blaze_face_full_range.tflite")
    shutil.copy(wheel_model("selfie_segmentation/selfie_segmentation"), folder / "selfie_segmenter.tflite")
    face = {
        "face_detector.tflite": wheel_model("face_detection/face_detection_short_range").read_bytes(),
        "face_landmarks_detector.tflite": one_output(wheel_model("face_landmark/face_landmark_with_attention")),
    }
    # The legacy graph gives the detector -1..1 and the landmarks 0..1. The Tasks graph reads that from the metadata.
    pose = {
        "pose_detector.tflite": normalised(wheel_model("pose_detection/pose_detection"), mean=127.5, std=127.5),
        "pose_landmarks_detector.tflite": normalised(wheel_model("pose_landmark/pose_landmark_full"), mean=0, std=255),
    }
    for name, models in (("face_landmarker.task", face), ("pose_landmarker_full.task", pose)):
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_STORED) as bundle:
            for part, model in models.items():
                bundle.writestr(part, model)


def normalised(path: Path, *, mean: float, std: float) -> bytes:
    """A model with the metadata that says how its picture is to be scaled: (value - mean) / std."""
    writer = metadata_writer.MetadataWriter.create(bytearray(path.read_bytes()))
    model, _ = writer.add_image_input([mean] * 3, [std] * 3).populate()
    return bytes(model)


def one_output(path: Path) -> bytes:
    """The face model with attention, its six outputs gathered into 478 points as the legacy graph does afterwards.

    The Tasks graph expects two tensors: 478 x, y, z; and whether there is a face.
    """
    model = tflite.ModelT.InitFromObj(tflite.Model.GetRootAsModel(path.read_bytes(), 0))
    graph = model.subgraphs[0]
    *parts, flag = graph.outputs
    sizes = [int(graph.tensors[part].shape[-1]) for part in parts]
    joined = _add_tensor(model, b"joined", [1, 1, 1, sum(sizes)])
    chosen = _add_tensor(model, b"chosen", [3 * POINTS], np.array(_sources(sizes), np.int32))
    landmarks = _add_tensor(model, b"landmarks", [1, 1, 1, 3 * POINTS])
    concatenation, gather = tflite.ConcatenationOptionsT(), tflite.GatherOptionsT()
    concatenation.axis = gather.axis = 3
    _add_operator(model, CONCATENATION, parts, joined, (tflite.BuiltinOptions.ConcatenationOptions, concatenation))
    _add_operator(model, GATHER, [joined, chosen], landmarks, (tflite.BuiltinOptions.GatherOptions, gather))
    graph.outputs = [landmarks, flag]
    for entry in model.metadata:
        # It describes seven outputs. The picture is scaled to 0..1, which the new one says.
        entry.name = b"OLD_METADATA"
    builder = flatbuffers.Builder(1 << 22)
    builder.Finish(model.Pack(builder), b"TFL3")
    writer = metadata_writer.MetadataWriter.create(bytearray(builder.Output()))
    return bytes(writer.add_image_input([0] * 3, [255] * 3).populate()[0])


def _add_tensor(model: tflite.ModelT, name: bytes, shape: list[int], values: np.ndarray | None = None) -> int:
    tensor, buffer = tflite.TensorT(), tflite.BufferT()
    tensor.name, tensor.shape, tensor.buffer = name, shape, len(model.buffers)
    if values is not None:
        tensor.type, buffer.data = INT32, np.frombuffer(values.tobytes(), np.uint8)
    model.buffers.append(buffer)
    model.subgraphs[0].tensors.append(tensor)
    return len(model.subgraphs[0].tensors) - 1


def _add_operator(model: tflite.ModelT, code: int, inputs: list[int], output: int, options: tuple[int, object]) -> None:
    kind, operator = tflite.OperatorCodeT(), tflite.OperatorT()
    kind.builtinCode = kind.deprecatedBuiltinCode = code
    kind.version = 1
    model.operatorCodes.append(kind)
    operator.opcodeIndex, operator.inputs, operator.outputs = len(model.operatorCodes) - 1, inputs, [output]
    operator.builtinOptionsType, operator.builtinOptions = options
    model.subgraphs[0].operators.append(operator)


def _sources(sizes: list[int]) -> list[int]:
    """For each of 478 x, y, z the place in the joined outputs that it is read from."""
    corners = np.cumsum([0, *sizes])
    # The ten points of the irises have no z of their own: that of the nose will do, nobody reads it.
    places = np.arange(3 * POINTS).reshape(POINTS, 3)
    places[MESH:, 2] = 2
    for part, points in enumerate(_refined_points()):
        if part:
            places[points, 0] = corners[part] + 2 * np.arange(len(points))
            places[points, 1] = places[points, 0] + 1
    return places.ravel().tolist()


def _refined_points() -> list[list[int]]:
    """For each output, which landmarks its points are: read off the graph of the legacy solution."""
    from mediapipe.python.solutions.face_mesh import FaceMesh

    text = FaceMesh(static_image_mode=True, refine_landmarks=True)._graph.text_config
    blocks = re.split(r"\n +refinement \{", text)[1:]
    return [[int(point) for point in re.findall(r"indexes_mapping: (\d+)", block)] for block in blocks]
