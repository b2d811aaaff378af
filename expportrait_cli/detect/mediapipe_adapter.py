"""The nets inside the wheel of mediapipe, as plain functions of numpy images.

Needs the legacy solutions of mediapipe 0.10; `tasks_adapter` has the same nets for later versions, and `nets` chooses.
Coordinates are pixels of the image that was passed in, pixel centres at +0.5.
"""

import os
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from types import ModuleType
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8

from expportrait_cli.errors import WeightsError

Image = UInt8[np.ndarray, "H W 3"]
SolutionName = Literal["face_detection", "face_mesh", "selfie_segmentation", "pose"]
GREY = np.full((64, 64, 3), 128, np.uint8)
RANGES = {"short": 0, "full": 1}
NEEDED = (
    "On Python 3.10 to 3.12 run `pip install mediapipe==0.10.21`, which has the models inside; from 3.13 on "
    "`pip install 'mediapipe>=1.0'`, and download the files that `expportrait weights list` names."
)


_stderr = threading.RLock()
"""Held while stderr leads nowhere: of two threads, the second would take that for where it leads to."""


@contextmanager
def silenced() -> Iterator[None]:
    """Keep what C++ writes to stderr away from the terminal: absl logs before mediapipe can be told not to."""
    with _stderr:
        sys.stderr.flush()
        kept = os.dup(2)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


PLOTS = ("matplotlib", "matplotlib.pyplot")


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Let an import do without modules that it asks for and nobody uses: empty ones stand in for them meanwhile.

    mediapipe takes three times as long with matplotlib, which it plots with, and with its interface to microphones.
    """
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update({name: ModuleType(name) for name in absent})
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


@cache
def solution(name: SolutionName) -> ModuleType:
    """Import one legacy solution.

    Raises:
        WeightsError: mediapipe is missing, or too new to have the models inside.
    """
    os.environ.setdefault("GLOG_minloglevel", "3")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import importlib

    with silenced(), without(*PLOTS, "mediapipe.tasks", "mediapipe.tasks.python"):
        try:
            import mediapipe
        except ModuleNotFoundError as error:
            raise WeightsError(f"The Python package mediapipe is not installed. {NEEDED}") from error
        try:
            return importlib.import_module(f"mediapipe.python.solutions.{name}")
        except ModuleNotFoundError as error:
            found = getattr(mediapipe, "__version__", "of unknown version")
            raise WeightsError(f"mediapipe {found} has no model for {name}. {NEEDED}") from error


_idle: dict[Any, list[Any]] = {}
"""Graphs that nobody uses, by what they were made from."""


class Graph:
    """One graph of mediapipe.

    Upstream keeps 10 to 100 MB of a graph that has ended, closed or not; so one that is no longer used serves the
    next that asks for the same.
    """

    def __init__(self, name: SolutionName, kind: str, **options: int | float) -> None:
        """Build the graph `kind` of a solution and run it once, silently: its interpreters talk in their own threads.

        One that was used forgets, with the grey image, what it followed.
        """
        make = getattr(solution(name), kind)
        idle = _idle.setdefault((kind, *options.items()), [])
        with silenced():
            self._graph = idle.pop() if idle else make(**options)
            self.process(GREY)
        weakref.finalize(self, idle.append, self._graph).atexit = False

    def process(self, image: Image) -> Any:
        """What the graph finds in the next image."""
        return self._graph.process(np.ascontiguousarray(image))


class FaceDetector:
    """BlazeFace, short range (selfies) or full range (small faces)."""

    def __init__(self, reach: Literal["short", "full"], *, min_score: float) -> None:
        self._graph = Graph(
            "face_detection", "FaceDetection", min_detection_confidence=min_score, model_selection=RANGES[reach]
        )

    def __call__(self, image: Image) -> Float32[np.ndarray, "N 17"]:
        """Rows of x0, y0, x1, y1, score and six points: right and left eye, nose, mouth, right and left ear."""
        height, width = image.shape[:2]
        rows = []
        for detection in self._graph.process(image).detections or ():
            box = detection.location_data.relative_bounding_box
            corners = [box.xmin, box.ymin, box.xmin + box.width, box.ymin + box.height]
            points = [value for p in detection.location_data.relative_keypoints for value in (p.x, p.y)]
            rows.append([*corners, detection.score[0], *points])
        table = np.array(rows, np.float32).reshape(-1, 17)
        table[:, [0, 2, 5, 7, 9, 11, 13, 15]] *= width
        table[:, [1, 3, 6, 8, 10, 12, 14, 16]] *= height
        return table


class LandmarkNet:
    """FaceMesh with refined eyes and lips on an image that holds one face.

    With `video`, the region that the net looks at follows the landmarks of the previous image.
    """

    def __init__(self, *, video: bool, min_score: float = 0.5) -> None:
        self._graph = Graph(
            "face_mesh",
            "FaceMesh",
            static_image_mode=not video,
            max_num_faces=1,
            refine_landmarks=True,
            min_detection_confidence=min_score,
            min_tracking_confidence=min_score,
        )
        self._spoke = False

    def __call__(self, image: Image) -> Float32[np.ndarray, "478 2"] | None:
        """Landmarks, px; None where no face is seen."""
        # One more warning comes with the first face, not at the start.
        with nullcontext() if self._spoke else silenced():
            faces = self._graph.process(image).multi_face_landmarks
        self._spoke = self._spoke or bool(faces)
        if not faces:
            return None
        height, width = image.shape[:2]
        points = np.array([(p.x, p.y) for p in faces[0].landmark], np.float32)
        return points * np.array([width, height], np.float32)

    def forget(self) -> None:
        """Lose the previous landmarks: a grey image, because restarting the graph costs 70 ms."""
        self._graph.process(GREY)


class SelfieNet:
    """Person segmentation, general (square) model."""

    def __init__(self) -> None:
        self._graph = Graph("selfie_segmentation", "SelfieSegmentation", model_selection=0)

    def __call__(self, image: Image) -> Float32[np.ndarray, "H W"]:
        """How much of each pixel is a person, 0..1."""
        return np.array(self._graph.process(image).segmentation_mask, np.float32)


class PoseNet:
    """BlazePose, the full model (the lite one is not in the wheel)."""

    def __init__(self, *, video: bool) -> None:
        self._graph = Graph("pose", "Pose", static_image_mode=not video, model_complexity=1, smooth_landmarks=False)
        self._spoke = False

    def __call__(self, image: Image) -> Float32[np.ndarray, "33 3"] | None:
        """Body points: x, y in pixels and visibility 0..1."""
        # The same warning comes with the first body.
        with nullcontext() if self._spoke else silenced():
            body = self._graph.process(image).pose_landmarks
        self._spoke = self._spoke or body is not None
        if body is None:
            return None
        height, width = image.shape[:2]
        points = np.array([(p.x, p.y, p.visibility) for p in body.landmark], np.float32)
        return points * np.array([width, height, 1], np.float32)
