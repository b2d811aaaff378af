"""One pass over a source: the chosen face's landmarks, the shoulders, and image motion, in every frame."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from expportrait_cli.artifacts.types import CROP_SIZE, DISTRUSTED
from expportrait_cli.config import Stretch, TrackConfig
from expportrait_cli.detect.crop import Crop, crop_image, crop_points, steady_crop
from expportrait_cli.detect.faces import FaceBox, FaceFinder, check_portrait, choose_face
from expportrait_cli.detect.flow import RegionFlow, Shots, rebased
from expportrait_cli.detect.matte import Matte, Shoulders
from expportrait_cli.detect.mesh import FaceMesh, extent
from expportrait_cli.errors import InputError
from expportrait_cli.head import LandmarkModel
from expportrait_cli.media.image import is_image, read_image
from expportrait_cli.media.stretch import frames_of, ranges
from expportrait_cli.media.video import probe, read_frames
from expportrait_cli.runtime import Progress, read_ahead
from expportrait_cli.tracking.trust import Skin, Unroller, doubts

log = logging.getLogger(__name__)

SHOULDERS_EVERY = 12
"""Interval, in frames, between detections of the shoulders, which move slowly and cost as much as three faces."""
INTERPOLATE_S = 0.5
"""Longest gap that is interpolated, s."""
RIVAL = 0.5
"""Least size of a face, relative to the largest one, that makes the choice ambiguous; smaller ones are background."""
BOX_TO_MESH = 1.25
"""Size of a face's landmarks over the side of its box."""
TRACKED, INTERPOLATED, HELD = 0, 1, 2
STILL = np.array([1.0, 0.0, 0.0, 0.0])
NO_MOTION = np.stack([STILL, STILL])
AHEAD = 3
"""Number of frames that are decoded, and in which faces are detected, in advance."""
MEASURES = 16
"""Most scenes whose first frame is kept, for shots that continue after interruptions."""


@dataclass(frozen=True)
class Observations:
    """Measurements of a clip, every frame filled; px of the crop."""

    size: tuple[int, int]
    rate: Fraction
    crop: Crop
    landmarks: Float32[np.ndarray, "T 478 2"]
    shoulders: Float32[np.ndarray, "T 2 2"]
    flow: Float32[np.ndarray, "T 2 4"]
    flow_trust: Float32[np.ndarray, "T 2"]
    shot: Int64[np.ndarray, " T"]
    state: UInt8[np.ndarray, " T"]
    doubt: Float32[np.ndarray, " T"]
    first_frame: int = 0
    """Frame of the source that row 0 belongs to."""


ShowFaces = Callable[[UInt8[np.ndarray, "H W 3"], list[FaceBox]], Path]
"""Function that writes a picture with the faces numbered as in `TrackConfig.face`, and returns its path."""


def observe(
    source: Path,
    model: LandmarkModel,
    config: TrackConfig,
    progress: Progress,
    show_faces: ShowFaces | None = None,
) -> Observations:
    """Measure every frame in one pass, with a few frames in memory.

    `show_faces` is called if there are several faces without a choice, or if the choice is none of them.

    Raises:
        InputError: no face, no usable photo, several faces or missing ones where the settings do not allow that.
    """
    if is_image(source):
        image = read_image(source)
        seen = _Seen(source, model, config, Fraction(0, 1), show_faces)
        return _gather(seen, iter([image]), 1, progress)
    info = probe(source)
    first, end = frames_of(config.stretch, info.rate)
    total = max(round(info.duration_s * info.rate), 1)
    frames = read_frames(source, start=first, end=end)
    seen = _Seen(source, model, config, info.rate, show_faces)
    found = _gather(seen, frames, max(min(total, end or total) - first, 1), progress)
    if config.stretch != Stretch():
        log.info("%s: frames %d to %d are taken.", source, first, first + len(found.shot) - 1)
    return replace(found, first_frame=first)


class _Shot:
    """Motion relative to the first frame of a shot."""

    def __init__(self, image, landmarks, matte: Matte):
        height, width = image.shape[:2]
        self.crop = steady_crop(landmarks[None], (width, height))
        first = crop_image(image, self.crop, CROP_SIZE)
        points = crop_points(landmarks, self.crop, CROP_SIZE)
        self.flow = RegionFlow(first, points, matte.matte(first))

    def measure(self, image) -> tuple[np.ndarray, np.ndarray]:
        """Similarities of head and torso, source px, and their confidence, 0..1."""
        motion = self.flow.step(crop_image(image, self.crop, CROP_SIZE))
        k = self.crop.side / CROP_SIZE
        corner = np.array([self.crop.left, self.crop.top])
        return np.stack([rebased(row, k, corner) for row in motion.flow]), motion.confidence


class _Choice:
    """Choice of the tracked face: made once; after each cut the most similar face in place and size is taken."""

    def __init__(self, choice: str) -> None:
        self._choice = choice
        self._last: tuple[np.ndarray, float] | None = None
        self.rivals = 0
        """Largest number of faces of similar size in a frame."""
        self.refusal: InputError | None = None
        """Error that explains why none of the faces was taken."""

    def face(self, faces: list[FaceBox], size: tuple[int, int]) -> FaceBox | None:
        """The face to track; None as long as the chosen one is absent."""
        if not faces:
            return None
        largest = max(face.side for face in faces)
        self.rivals = max(self.rivals, sum(face.side > RIVAL * largest for face in faces))
        if self._last is not None:
            return min(faces, key=self._change)
        try:
            return choose_face(faces, self._choice, size=size)
        except InputError as error:
            # The chosen person may appear later in the clip.
            self.refusal = error
            return None

    def keep(self, points: Float32[np.ndarray, "478 2"]) -> None:
        """Store the last place and size of the face."""
        self._last = extent(points)

    def _change(self, face: FaceBox) -> float:
        """Distance in place and size of a face from the tracked one before the cut, relative to its size."""
        assert self._last is not None
        centre, size = self._last
        away = float(np.hypot(*(np.array(face.centre) - centre))) / max(BOX_TO_MESH * face.side, size)
        return away + abs(float(np.log(BOX_TO_MESH * face.side / size)))


class _Look(NamedTuple):
    """One frame with the landmarks of the chosen face (source px) and the number of its scene."""

    image: UInt8[np.ndarray, "H W 3"]
    points: Float32[np.ndarray, "478 2"] | None
    scene: int


class _Seen:
    """Measurements so far: one row a frame, source px."""

    def __init__(
        self, source: Path, model: LandmarkModel, config: TrackConfig, rate: Fraction, show_faces: ShowFaces | None
    ) -> None:
        self._show_faces = show_faces
        self._most: tuple[UInt8[np.ndarray, "H W 3"], list[FaceBox]] | None = None
        self.source, self.config, self.rate = source, config, rate
        self.shots, self.choice, self.is_clip = Shots(rate), _Choice(config.face), rate > 0
        self.landmarks: list[np.ndarray] = []
        self.shoulders: list[np.ndarray] = []
        self.flow: list[np.ndarray] = []
        self.trust: list[np.ndarray] = []
        self.skins: list[Skin | None] = []
        self._finder, self._mesh, self._matte = FaceFinder(), FaceMesh(video=self.is_clip), Matte()
        self._measures: dict[int, _Shot] = {}
        """Motion measurements relative to the first frame of each of the latest scenes, by scene."""
        self._pose, self.unroll, self._following = Shoulders(), Unroller(model), False

    def looks(self, frames: Iterable[UInt8[np.ndarray, "H W 3"]]) -> Iterator["_Look"]:
        """Detect the face in each frame."""
        for image in frames:
            is_new = self.shots.is_new(image)
            points = self._face(image, is_new)
            if points is not None:
                self.choice.keep(points)
            yield _Look(image, points, self.shots.scene)

    def add(self, look: "_Look") -> None:
        """Measure texture, motion and shoulders in the next frame."""
        image, points, scene = look
        self.landmarks.append(np.full((478, 2), np.nan, np.float32) if points is None else points)
        self.skins.append(self.unroll(image, points) if points is not None and self.is_clip else None)
        if points is not None and scene not in self._measures and self.is_clip:
            self._measures[scene] = _Shot(image, points, self._matte)
            if len(self._measures) > MEASURES:
                del self._measures[min(self._measures)]
        measure = self._measures.get(scene)
        similar, sure = measure.measure(image) if measure is not None else (NO_MOTION, np.zeros(2))
        self.flow.append(similar)
        self.trust.append(sure)
        is_due = (len(self.landmarks) - 1) % SHOULDERS_EVERY == 0
        seen = self._pose.shoulders(image) if is_due else None
        self.shoulders.append(np.full((2, 2), np.nan, np.float32) if seen is None else seen)

    def _face(self, image: UInt8[np.ndarray, "H W 3"], is_new: bool) -> Float32[np.ndarray, "478 2"] | None:
        """Landmarks of the chosen face, source px, tracked from frame to frame; None without it."""
        if is_new:
            self._mesh.reset()
            self._following = False
        if self._following:
            return self._mesh.landmarks(image)
        faces = self._finder.find(image)
        if faces and (self._most is None or len(faces) > len(self._most[1])):
            self._most = image, faces
        box = self.choice.face(faces, (image.shape[1], image.shape[0]))
        points = self._mesh.landmarks(image, box) if box is not None else None
        self._following = points is not None
        if not self.is_clip and self.choice.refusal is None:
            _check_photo(self.source, image, box, points)
        return points

    def faces(self) -> str:
        """Text with the places of the faces in the frame that has most, and the path of a picture of them."""
        if self._most is None:
            return ""
        image, faces = self._most
        places = ", ".join(f"{index} at ({x:.0f}, {y:.0f})" for index, (x, y) in enumerate(f.centre for f in faces))
        sheet = f"; {self._show_faces(image, faces)} shows them by number" if self._show_faces is not None else ""
        return f"Faces, px: {places}{sheet}."


def _gather(seen: _Seen, frames: Iterator, total: int, progress: Progress) -> Observations:
    size, source, config = (0, 0), seen.source, seen.config
    # Decoding, face detection and the other measurements run in three threads, each a few frames ahead of the next.
    for t, look in enumerate(read_ahead(seen.looks(read_ahead(frames, AHEAD)), AHEAD)):
        progress(t, total)
        size = (look.image.shape[1], look.image.shape[0])
        seen.add(look)
    if not seen.landmarks:
        first, _ = frames_of(config.stretch, seen.rate)
        raise InputError(f"{source} ends before frame {first}, where the stretch begins. Begin earlier.")
    progress(len(seen.landmarks), len(seen.landmarks))
    points, choice = np.stack(seen.landmarks), seen.choice
    if np.isnan(points).all():
        if choice.refusal is not None:
            raise InputError(f"{source}: {choice.refusal} {seen.faces()}")
        raise InputError(
            f"{source}: no face in any of {len(points)} frames; expected one person, face to the camera. "
            "Choose another file."
        )
    if choice.rivals > 1 and config.face == "largest":
        _several(seen)
    shot = np.array(seen.shots.index)
    doubt = doubts(points, seen.skins, shot, seen.rate, seen.unroll.mouth)
    doubt[seen.shots.glimpses] = 1.0
    doubt[np.isnan(points).any((1, 2))] = 0.0
    filled, state = fill_missing(points, shot, config, seen.rate, source, doubt=doubt)
    crop = steady_crop(points[state == TRACKED], size)
    k = CROP_SIZE / crop.side
    corner = -k * np.array([crop.left, crop.top])
    moved = np.stack([[rebased(row, k, corner) for row in pair] for pair in seen.flow])
    return Observations(
        size=size,
        rate=seen.rate,
        crop=crop,
        landmarks=crop_points(filled, crop, CROP_SIZE),
        shoulders=crop_points(np.stack(seen.shoulders), crop, CROP_SIZE),
        flow=moved.astype(np.float32),
        flow_trust=np.stack(seen.trust).astype(np.float32),
        shot=shot,
        state=state,
        doubt=doubt,
    )


def _check_photo(source, image, box, points):
    try:
        check_portrait(image, box, points)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def _several(seen: _Seen) -> None:
    line = f"{seen.source}: {seen.choice.rivals} faces found; `face` left, right or a number chooses one."
    if seen.config.several == "fail":
        raise InputError(f"{line} {seen.faces()}")
    log.warning("%s The largest was taken. %s", line, seen.faces())


def fill_missing(
    landmarks: Float32[np.ndarray, "T 478 2"],
    shots: Int64[np.ndarray, " T"],
    config: TrackConfig,
    rate: Fraction,
    source: Path,
    *,
    doubt: Float32[np.ndarray, " T"],
) -> tuple[Float32[np.ndarray, "T 478 2"], UInt8[np.ndarray, " T"]]:
    """Fill frames without a face, or with unreliable landmarks (`doubt` from `DISTRUSTED` on); also their `state`.

    Short gaps inside a shot are interpolated; others repeat the last frame with a face, or the next one if none is
    before, of the same shot if possible.

    Raises:
        InputError: there are such frames, and `on_missing` is fail.
    """
    absent, spoilt = np.isnan(landmarks).any((1, 2)), doubt >= DISTRUSTED
    if (absent | spoilt).all():
        spoilt = np.zeros_like(absent)
    missing = absent | spoilt
    state = np.zeros(len(landmarks), np.uint8)
    if not missing.any():
        return landmarks, state
    spoilt &= ~absent
    counts = [
        f"{what} in {int(rows.sum())}"
        for rows, what in ((absent, "no face"), (spoilt, "a covered, blurred or foreign face"))
        if rows.any()
    ]
    if config.on_missing == "fail":
        first = frames_of(config.stretch, rate)[0] + int(missing.argmax())
        raise InputError(
            f"{source}: {' and '.join(counts)} of {len(missing)} frames, first in frame {first}. "
            "Cut these frames out, or fill them with `on_missing=hold` or `on_missing=interpolate`."
        )
    known = np.flatnonzero(~missing)
    filled = landmarks.copy()
    longest = INTERPOLATE_S * float(rate) if config.on_missing == "interpolate" else 0
    for t in np.flatnonzero(missing):
        before, after = known[known < t], known[known > t]
        if len(before) and len(after) and after[0] - before[-1] - 1 <= longest and shots[before[-1]] == shots[after[0]]:
            a, b = before[-1], after[0]
            w = (t - a) / (b - a)
            filled[t] = (1 - w) * landmarks[a] + w * landmarks[b]
            state[t] = INTERPOLATED
        else:
            # A face from another shot would be in another place.
            own = known[shots[known] == shots[t]]
            before, after = (own[own < t], own[own > t]) if len(own) else (before, after)
            filled[t] = landmarks[before[-1] if len(before) else after[0]]
            state[t] = HELD
    between, held = (state == INTERPOLATED).sum(), (state == HELD).sum()
    where = ranges(np.flatnonzero(missing) + frames_of(config.stretch, rate)[0])
    text = f"{' and '.join(counts)} of {len(missing)} frames (numbers {where})"
    log.warning("%s: %s: %d interpolated, %d held.", source, text, between, held)
    return filled, state
