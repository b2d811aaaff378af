"""Networks for faces, landmarks, person mattes and body points, through MediaPipe Tasks, on numpy images.

Their models lie in the weights folder: the wheels of mediapipe 1 and later contain none.
Coordinates are pixels of the image that was passed in, pixel centres at +0.5.
"""

import atexit
import importlib
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8

from expportrait_cli.errors import WeightsError, one_line
from expportrait_cli.runtime import silenced
from expportrait_cli.weights.catalogue import checked_file

Image = UInt8[np.ndarray, "H W 3"]
NEEDED = "Run `pip install 'mediapipe>=1'`."
GREY = np.full((64, 64, 3), 128, np.uint8)
STEP_MS = 3_600_000
"""Time between two frames that MediaPipe is given, ms. Its smoothing of landmarks over time cannot be switched off, but
after an hour only 0.1 % of the frame before is left."""


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Replace modules by empty ones during an import, if they are not loaded yet."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update({name: ModuleType(name) for name in absent})
    try:
        yield
    finally:
        for name in absent:
            sys.modules.pop(name, None)


@cache
def vision() -> ModuleType:
    """Import MediaPipe Tasks.

    Raises:
        WeightsError: mediapipe is missing, older than 1, or cannot be loaded.
    """
    os.environ.setdefault("GLOG_minloglevel", "3")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        found = version("mediapipe")
    except PackageNotFoundError as error:
        raise WeightsError(f"The Python package mediapipe is not installed. {NEEDED}") from error
    if found.startswith("0."):
        # Its graph for small faces is built with the anchors of another model, and finds no face.
        raise WeightsError(f"mediapipe {found} is installed, expected version 1 or later. {NEEDED}")
    # Without PortAudio mediapipe stores an exception whose traceback keeps all stack frames of the importing thread
    # alive, with the pictures and networks in them: so a new thread imports it. Its module for drawing imports
    # matplotlib, which takes seconds to load.
    with silenced(), _without("matplotlib", "matplotlib.pyplot"), ThreadPoolExecutor(1) as aside:
        try:
            return aside.submit(importlib.import_module, "mediapipe.tasks.python.vision").result()
        except (ImportError, OSError) as error:
            raise WeightsError(f"mediapipe {found} cannot be loaded: {one_line(error)}. {NEEDED}") from error


class Task:
    """One graph of MediaPipe Tasks. stderr is silenced until the first detection (`spoke`): it prints warnings then.

    It runs in a thread of its own: an interrupt while mediapipe waits for its threads would free the picture and the
    graph while they are in use, and the process would end with a segmentation fault.
    """

    def __init__(
        self, weight: str, make: Callable[[ModuleType, Any], Any], run: Callable[[Any, Any, int], Any]
    ) -> None:
        tasks, file = vision(), checked_file(weight)
        self._run = run
        self._time_ms = 0
        self.spoke = False
        self._thread = ThreadPoolExecutor(1)
        try:
            self._thread.submit(self._begin, tasks, str(file), make).result()
            self(GREY)
        except (RuntimeError, ValueError, OSError) as error:
            raise WeightsError(_unreadable(file, error)) from error

    def _begin(self, tasks: ModuleType, file: str, make: Callable[[ModuleType, Any], Any]) -> None:
        from mediapipe.tasks.python import BaseOptions

        with silenced():
            _close_ended()
            self._graph = make(tasks, BaseOptions(model_asset_path=file))
        # MediaPipe's own finaliser would run in a garbage collection, perhaps while this thread holds the lock that it
        # waits for; it also prints, and raises at interpreter exit. So the graph is kept, and closed later.
        weakref.finalize(self, _ended.append, self._graph).atexit = False

    def __call__(self, image: Image) -> Any:
        """Run mediapipe on the next image; returns its own result."""
        self._time_ms += STEP_MS
        return self._thread.submit(self._look, image, self._time_ms).result()

    def _look(self, image: Image, time_ms: int) -> Any:
        from mediapipe import Image as Picture
        from mediapipe import ImageFormat

        with nullcontext() if self.spoke else silenced():
            picture = Picture(image_format=ImageFormat.SRGB, data=np.ascontiguousarray(image))
            return self._run(self._graph, picture, time_ms)


_ended: list[Any] = []
"""Graphs of deleted tasks that are still open."""


def _close_ended() -> None:
    with suppress(IndexError):
        while True:
            _ended.pop().close()


@atexit.register
def _leave_open() -> None:
    """At interpreter exit, disable closing: mediapipe's threads have ended by then, and it would raise."""
    for graph in _ended:
        graph.close = lambda: None


def _unreadable(file: Path, error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0]
    return f"{file} cannot be read by mediapipe ({reason}). Run `expportrait weights verify` for a remedy."


class FaceDetector:
    """Face detector BlazeFace, for short range (selfies) or full range (small faces)."""

    def __init__(self, reach: Literal["short", "full"], *, min_score: float) -> None:
        self._task = Task(
            f"face-detector-{reach}",
            lambda tasks, base: tasks.FaceDetector.create_from_options(
                tasks.FaceDetectorOptions(base_options=base, min_detection_confidence=min_score)
            ),
            _look,
        )
        self._task.spoke = True

    def __call__(self, image: Image) -> Float32[np.ndarray, "N 17"]:
        """Rows of x0, y0, x1, y1, score and six points: right and left eye, nose, mouth, right and left ear.

        Tasks rounds the boxes to whole pixels, not the points.
        """
        height, width = image.shape[:2]
        rows = []
        for found in self._task(image).detections:
            box = found.bounding_box
            corners = [box.origin_x, box.origin_y, box.origin_x + box.width, box.origin_y + box.height]
            points = [value for p in found.keypoints for value in (p.x * width, p.y * height)]
            rows.append([*corners, found.categories[0].score, *points])
        return np.array(rows, np.float32).reshape(-1, 17)


class LandmarkNet:
    """FaceMesh with refined eyes and lips on an image with one face.

    With `video`, the network's input region is placed by the landmarks of the previous image.
    """

    def __init__(self, *, video: bool, min_score: float = 0.5) -> None:
        self._task = Task(
            "face-landmarks",
            lambda tasks, base: tasks.FaceLandmarker.create_from_options(
                tasks.FaceLandmarkerOptions(
                    base_options=base,
                    running_mode=tasks.RunningMode.VIDEO if video else tasks.RunningMode.IMAGE,
                    num_faces=1,
                    min_face_detection_confidence=min_score,
                    min_face_presence_confidence=min_score,
                )
            ),
            _follow if video else _look,
        )

    def __call__(self, image: Image) -> Float32[np.ndarray, "478 2"] | None:
        """Landmarks, px; None if no face is found."""
        faces = self._task(image).face_landmarks
        self._task.spoke |= bool(faces)
        if not faces:
            return None
        height, width = image.shape[:2]
        points = np.array([(p.x, p.y) for p in faces[0]], np.float32)
        return points * np.array([width, height], np.float32)

    def forget(self) -> None:
        """Discard the previous landmarks, by running on a grey image: a new graph would cost 70 ms."""
        self._task(GREY)


class SelfieNet:
    """Person segmentation with MediaPipe's general (square) selfie model."""

    def __init__(self) -> None:
        self._task = Task(
            "selfie-segmenter",
            lambda tasks, base: tasks.ImageSegmenter.create_from_options(
                tasks.ImageSegmenterOptions(base_options=base, output_confidence_masks=True)
            ),
            lambda task, picture, _: task.segment(picture),
        )
        self._task.spoke = True

    def __call__(self, image: Image) -> Float32[np.ndarray, "H W"]:
        """Share of the person in each pixel, 0..1."""
        # The person comes last, whether or not the background has a mask of its own.
        mask = self._task(image).confidence_masks[-1].numpy_view()
        return np.array(mask, np.float32).reshape(image.shape[:2])


class PoseNet:
    """Body points with BlazePose's full model."""

    def __init__(self, *, video: bool) -> None:
        self._task = Task(
            "pose-landmarks",
            lambda tasks, base: tasks.PoseLandmarker.create_from_options(
                tasks.PoseLandmarkerOptions(
                    base_options=base,
                    running_mode=tasks.RunningMode.VIDEO if video else tasks.RunningMode.IMAGE,
                )
            ),
            _follow if video else _look,
        )

    def __call__(self, image: Image) -> Float32[np.ndarray, "33 3"] | None:
        """Body points: x, y in px and visibility 0..1; None if no person is found."""
        bodies = self._task(image).pose_landmarks
        self._task.spoke |= bool(bodies)
        if not bodies:
            return None
        height, width = image.shape[:2]
        points = np.array([(p.x, p.y, p.visibility) for p in bodies[0]], np.float32)
        return points * np.array([width, height, 1], np.float32)


def _look(task: Any, picture: Any, time_ms: int) -> Any:
    return task.detect(picture)


def _follow(task: Any, picture: Any, time_ms: int) -> Any:
    return task.detect_for_video(picture, time_ms)
