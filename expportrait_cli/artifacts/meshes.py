"""Posed dense vertices of a whole clip on disk, written and read a few frames at a time."""

import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int, Int64, UInt16

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.files import atomic_path
from expportrait_cli.artifacts.types import COUNT, FOCAL, PLACE, TURN, Curves, Range, Relief, rate_fault
from expportrait_cli.errors import InputError
from expportrait_cli.geometry.rotations import from_turns

KIND, VERSION = "meshes", 2
CHUNK = 16
RANGES = {
    "faces": COUNT,
    "focal_px": FOCAL,
    "poses": Range(np.array([[TURN.low], [PLACE.low]]), np.array([[TURN.high], [PLACE.high]])),
    "boxes": PLACE,
}


class MeshesWriter:
    """Write a `.meshes.npz` frame by frame; a context manager. Call `finish` with the curves before leaving it.

    Vertices are stored in the head frame, R^T (x - t), in which mainly the expression moves them. Each 16 frames share
    a bounding box and a zip member; coordinates are uint16 steps of the box's side / 65535, stored as differences from
    the frame before. A step is below 0.01 mm for a side of up to 0.65 m, and the error is half a step.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        faces: Int[np.ndarray, "F 3"],
        focal_px: float,
        rate: Fraction,
        head_model: str,
        head_hash: str,
        made_by: Mapping[str, Any],
        relief: Relief | None = None,
    ) -> None:
        """Set what all frames share. `focal_px`: focal length of the crop camera; `head_hash`: of the head's file."""
        relief = relief or Relief.none()
        self.path = Path(path)
        self._made_by = made_by
        self._shared = {
            "faces": np.asarray(faces, np.int64),
            "focal_px": np.float64(focal_px),
            "rate": np.array([rate.numerator, rate.denominator], np.int64),
            "head_model": np.array(head_model),
            "head_hash": np.array(head_hash),
            **{f"relief_{field.name}": getattr(relief, field.name) for field in fields(Relief)},
        }
        self._poses: list[Float32[np.ndarray, "2 3"]] = []
        self._pending: list[Float32[np.ndarray, "V 3"]] = []
        self._boxes: list[Float32[np.ndarray, "2 3"]] = []
        self._is_finished = False
        self._stack = ExitStack()

    def __enter__(self) -> "MeshesWriter":
        """Create the partial file."""
        with ExitStack() as stack:
            partial = stack.enter_context(atomic_path(self.path))
            self._archive = stack.enter_context(zipfile.ZipFile(partial, "w"))
            npz.write_header(self._archive, KIND, VERSION, self._made_by)
            self._stack = stack.pop_all()
        return self

    def write(
        self,
        verts_cam: Float[np.ndarray, "V 3"],
        rotation: Float[np.ndarray, " 3"],
        translation: Float[np.ndarray, " 3"],
    ) -> None:
        """Append a frame: vertices in the crop camera, m, and the head's pose as in `Curves`."""
        pose = np.stack([rotation, translation]).astype(np.float32)
        verts_head = (verts_cam - pose[1].astype(np.float64)) @ from_turns(pose[0])
        self._poses.append(pose)
        self._pending.append(verts_head.astype(np.float32))
        if len(self._pending) == CHUNK:
            self._flush()

    def finish(self, curves: Curves) -> None:
        """Complete the file with the curves of its frames, one row a frame."""
        if len(curves.rotation) != len(self._poses):
            raise ValueError(f"{len(self._poses)} frames were written, the curves have {len(curves.rotation)}")
        self._flush()
        npz.write_member(self._archive, "poses", np.array(self._poses, np.float32).reshape(-1, 2, 3))
        npz.write_member(self._archive, "boxes", np.array(self._boxes, np.float32).reshape(-1, 2, 3))
        for name, value in self._shared.items():
            npz.write_member(self._archive, name, np.asarray(value))
        for field in fields(Curves):
            npz.write_member(self._archive, f"curves_{field.name}", getattr(curves, field.name))
        self._is_finished = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Rename the partial file to its final name, or after an error remove it."""
        if kind is None and not self._is_finished:
            error = ValueError("finish() was not called")
            kind = ValueError
            self._stack.__exit__(kind, error, trace)
            raise error
        self._stack.__exit__(kind, error, trace)

    def _flush(self) -> None:
        if not self._pending:
            return
        verts_head = np.stack(self._pending)
        low, high = verts_head.min((0, 1)), verts_head.max((0, 1))
        steps = verts_head - low
        steps *= 65535 / np.maximum(high - low, 1e-9)
        steps = np.rint(steps, out=steps).astype(np.uint16)
        # The difference wraps around modulo 65536, and so does the sum that inverts it.
        steps[1:] -= steps[:-1].copy()
        # Not compressed: that took longer than the posing, and saved only a quarter.
        npz.write_member(self._archive, _chunk_name(len(self._boxes)), steps, level=0)
        self._boxes.append(np.stack([low, high]))
        self._pending.clear()


@dataclass(frozen=True)
class Meshes:
    """An opened `.meshes.npz`."""

    path: str
    faces: Int64[np.ndarray, "F 3"]
    focal_px: float
    """Focal length of the crop camera, px of the crop."""
    rate: Fraction
    head_model: str
    head_hash: str
    curves: Curves
    poses: Float32[np.ndarray, "T 2 3"]
    """Rotation (as in `Curves`) and translation (m) of the head frame in the camera."""
    boxes: Float32[np.ndarray, "C 2 3"]
    """Lowest and highest corner of each chunk's box, head frame, m."""
    relief: Relief
    """Static detail finer than the mesh, for normal maps."""

    @property
    def frame_count(self) -> int:
        """Number of frames."""
        return len(self.poses)

    @staticmethod
    def open(path: str | os.PathLike[str]) -> "Meshes":
        """Open a file and read everything but the vertices.

        Raises:
            InputError: as `npz.load`.
        """
        with npz.open_archive(path) as archive:
            npz.check_header(path, npz.header_of(path, archive), KIND, VERSION)
            names = [field.name for field in fields(Meshes) if field.name not in ("path", "curves", "relief")]
            columns = [f"curves_{field.name}" for field in fields(Curves)]
            details = [f"relief_{field.name}" for field in fields(Relief)]
            values = npz.read_members(path, archive, [*names, *columns, *details])
            rows = {name.removeprefix("curves_"): values.pop(name) for name in columns}
            detail = {name.removeprefix("relief_"): values.pop(name) for name in details}
            chunks = sum(name.startswith("verts_") for name in archive.namelist())
        curves, relief = npz.checked(path, KIND, Curves, rows), npz.checked(path, KIND, Relief, detail)
        arrays = {field.name: field.type for field in fields(Meshes) if field.name in ("faces", "poses", "boxes")}
        npz.check_arrays(path, KIND, values, {**arrays, "rate": Int64[np.ndarray, " 2"]})
        npz.check_values(path, values, RANGES)
        count, needed = len(values["poses"]), -(-len(values["poses"]) // CHUNK)
        if not count or len(curves.rotation) != count or len(values["boxes"]) != needed or chunks != needed:
            raise InputError(
                f"{path} is damaged: it has {count} frames, but curves for {len(curves.rotation)}, and "
                f"{len(values['boxes'])} boxes and {chunks} pieces of vertices, expected {needed} of both. Make it "
                "again."
            )
        if not len(values["faces"]):
            raise InputError(f"{path} holds no triangle. Make it again.")
        if relief.heights.size and len(relief.places) <= values["faces"].max():
            raise InputError(f"{path} holds the detail of {len(relief.places)} vertices, not of all. Make it again.")
        numerator, denominator = map(int, values["rate"])
        if fault := rate_fault(numerator, denominator):
            raise InputError(f"{path} holds {fault}. Make it again.")
        return Meshes(
            path=os.fspath(path),
            faces=values["faces"],
            focal_px=npz.scalar(path, "focal_px", values["focal_px"], float),
            rate=Fraction(numerator, denominator),
            head_model=npz.scalar(path, "head_model", values["head_model"], str),
            head_hash=npz.scalar(path, "head_hash", values["head_hash"], str),
            curves=curves,
            poses=values["poses"],
            boxes=values["boxes"],
            relief=relief,
        )

    def frames(self, start: int = 0, end: int | None = None) -> Iterator[Float32[np.ndarray, "V 3"]]:
        """Yield vertices in the crop camera, in constant memory: 16 frames at a time."""
        end = self.frame_count if end is None else min(end, self.frame_count)
        vertices = None
        with npz.open_archive(self.path) as archive:
            for chunk in range(start // CHUNK, -(-end // CHUNK)):
                first = chunk * CHUNK
                steps = self._steps(archive, chunk, min(CHUNK, self.frame_count - first), vertices)
                vertices = steps.shape[1]
                low, high = self.boxes[chunk].astype(np.float64)
                for index in range(max(start, first), min(end, first + len(steps))):
                    rotation, translation = self.poses[index].astype(np.float64)
                    turn = from_turns(rotation).T
                    # Scale and rotation are combined to one product a frame; single precision errs by 0.1 um.
                    scaled = ((high - low) / 65535)[:, None] * turn
                    verts_cam = steps[index - first].astype(np.float32) @ scaled.astype(np.float32)
                    verts_cam += (low @ turn + translation).astype(np.float32)
                    yield verts_cam

    def check(self) -> None:
        """Read all vertices once, which takes less than a millisecond a frame.

        Raises:
            InputError: some are damaged.
        """
        with npz.open_archive(self.path) as archive:
            for chunk in range(len(self.boxes)):
                self._steps(archive, chunk, min(CHUNK, self.frame_count - chunk * CHUNK), None)

    def _steps(
        self, archive: zipfile.ZipFile, chunk: int, count: int, vertices: int | None
    ) -> UInt16[np.ndarray, "n V 3"]:
        steps = npz.read_member(self.path, archive, _chunk_name(chunk))
        if (
            steps.dtype != np.uint16
            or steps.ndim != 3
            or steps.shape[::2] != (count, 3)
            or steps.shape[1] != (vertices or steps.shape[1])
            or self.faces.max() >= steps.shape[1]
        ):
            raise InputError(f"{self.path} holds damaged vertices ('{_chunk_name(chunk)}'). Make it again.")
        return np.cumsum(steps, axis=0, dtype=np.uint16)


def _chunk_name(chunk: int) -> str:
    return f"verts_{chunk:05d}"
