"""Build the five model files of mediapipe that the tool reads from the models inside the wheel of mediapipe 0.10.21.

    pip install mediapipe==0.10.21     # in an environment of its own, of Python 3.11 or 3.12
    python weights/bake_mediapipe.py weights

Later wheels hold no models, and MediaPipe Tasks wants other containers than the older solutions: pairs of nets in a zip
file, a description of the picture's scale, and one output with all 478 points of the face. No net is changed. The
writer of descriptions works in that version only. See mediapipe.md for source and licence.
"""

import argparse
import re
import zipfile
from pathlib import Path

import flatbuffers
import mediapipe
import numpy as np
from mediapipe.python.solutions.face_mesh import FaceMesh
from mediapipe.tasks.metadata import schema_py_generated as tflite
from mediapipe.tasks.python.metadata.metadata_writers import metadata_writer

CONCATENATION, GATHER, INT32 = 2, 36, 2
"""Operators and the type, by their numbers in the TensorFlow Lite schema."""
MESH, POINTS = 468, 478


def main() -> None:
    """Write the files into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    write_all(parser.parse_args().folder)


def model(name: str) -> bytes:
    """A model inside the wheel, such as `pose_detection/pose_detection`."""
    return (Path(mediapipe.__file__).parent / "modules" / f"{name}.tflite").read_bytes()


def write_all(folder: Path) -> None:
    """Write every file."""
    short = model("face_detection/face_detection_short_range")
    (folder / "face_detector_short.tflite").write_bytes(short)
    (folder / "face_detector_full.tflite").write_bytes(model("face_detection/face_detection_full_range_sparse"))
    (folder / "selfie_segmenter.tflite").write_bytes(model("selfie_segmentation/selfie_segmentation"))
    face = {
        "face_detector.tflite": short,
        "face_landmarks_detector.tflite": one_output(model("face_landmark/face_landmark_with_attention")),
    }
    # The solutions give the detector -1..1 and the landmarks 0..1. Tasks reads that from the metadata.
    pose = {
        "pose_detector.tflite": normalised(model("pose_detection/pose_detection"), mean=127.5, std=127.5),
        "pose_landmarks_detector.tflite": normalised(model("pose_landmark/pose_landmark_full"), mean=0, std=255),
    }
    for name, models in (("face_landmarker.task", face), ("pose_landmarker.task", pose)):
        # Stored, not packed: Tasks maps the parts into memory. The time is fixed, so that the hash is too.
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_STORED) as bundle:
            for part, content in models.items():
                bundle.writestr(zipfile.ZipInfo(part), content)


def normalised(content: bytes, *, mean: float, std: float) -> bytes:
    """A model with the metadata that says how its picture is to be scaled: (value - mean) / std."""
    writer = metadata_writer.MetadataWriter.create(bytearray(content))
    return bytes(writer.add_image_input([mean] * 3, [std] * 3).populate()[0])


def one_output(content: bytes) -> bytes:
    """The face model with attention, its six outputs gathered into 478 points as the solutions do afterwards.

    Tasks expects two tensors: 478 x, y, z; and whether there is a face.
    """
    model = tflite.ModelT.InitFromObj(tflite.Model.GetRootAsModel(content, 0))
    graph = model.subgraphs[0]
    *parts, flag = graph.outputs
    sizes = [int(graph.tensors[part].shape[-1]) for part in parts]
    joined = add_tensor(model, b"joined", [1, 1, 1, sum(sizes)])
    chosen = add_tensor(model, b"chosen", [3 * POINTS], np.array(sources(sizes), np.int32))
    landmarks = add_tensor(model, b"landmarks", [1, 1, 1, 3 * POINTS])
    concatenation, gather = tflite.ConcatenationOptionsT(), tflite.GatherOptionsT()
    concatenation.axis = gather.axis = 3
    add_operator(model, CONCATENATION, parts, joined, (tflite.BuiltinOptions.ConcatenationOptions, concatenation))
    add_operator(model, GATHER, [joined, chosen], landmarks, (tflite.BuiltinOptions.GatherOptions, gather))
    graph.outputs = [landmarks, flag]
    for entry in model.metadata:
        # It describes seven outputs. The picture is scaled to 0..1, which the new one says.
        entry.name = b"OLD_METADATA"
    builder = flatbuffers.Builder(1 << 22)
    builder.Finish(model.Pack(builder), b"TFL3")
    return normalised(bytes(builder.Output()), mean=0, std=255)


def add_tensor(model: tflite.ModelT, name: bytes, shape: list[int], values: np.ndarray | None = None) -> int:
    tensor, buffer = tflite.TensorT(), tflite.BufferT()
    tensor.name, tensor.shape, tensor.buffer = name, shape, len(model.buffers)
    if values is not None:
        tensor.type, buffer.data = INT32, np.frombuffer(values.tobytes(), np.uint8)
    model.buffers.append(buffer)
    model.subgraphs[0].tensors.append(tensor)
    return len(model.subgraphs[0].tensors) - 1


def add_operator(model: tflite.ModelT, code: int, inputs: list[int], output: int, options: tuple[int, object]) -> None:
    kind, operator = tflite.OperatorCodeT(), tflite.OperatorT()
    kind.builtinCode = kind.deprecatedBuiltinCode = code
    kind.version = 1
    model.operatorCodes.append(kind)
    operator.opcodeIndex, operator.inputs, operator.outputs = len(model.operatorCodes) - 1, inputs, [output]
    operator.builtinOptionsType, operator.builtinOptions = options
    model.subgraphs[0].operators.append(operator)


def sources(sizes: list[int]) -> list[int]:
    """For each of 478 x, y, z the place in the joined outputs that it is read from."""
    corners = np.cumsum([0, *sizes])
    # The ten points of the irises have no z of their own: that of the nose will do, nobody reads it.
    places = np.arange(3 * POINTS).reshape(POINTS, 3)
    places[MESH:, 2] = 2
    for points, corner in list(zip(refined_points(), corners, strict=False))[1:]:
        places[points, 0] = corner + 2 * np.arange(len(points))
        places[points, 1] = places[points, 0] + 1
    return places.ravel().tolist()


def refined_points() -> list[list[int]]:
    """For each output, which landmarks its points are: read off the graph of the solution."""
    text = FaceMesh(static_image_mode=True, refine_landmarks=True)._graph.text_config
    blocks = re.split(r"\n +refinement \{", text)[1:]
    return [[int(point) for point in re.findall(r"indexes_mapping: (\d+)", block)] for block in blocks]


if __name__ == "__main__":
    main()
