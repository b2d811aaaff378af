"""One pass over a source: the chosen face's landmarks, shoulders and image motion, frame by frame, nothing dropped."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.config import TrackConfig
from expportrait_cli.detect.crop import Crop, crop_image, crop_points, steady_crop
from expportrait_cli.detect.cuts import CutDetector
from expportrait_cli.detect.faces import FaceFinder, choose_face
from expportrait_cli.detect.flow import RegionFlow
from expportrait_cli.detect.matte import Matte
from expportrait_cli.detect.mesh import FaceMesh
from expportrait_cli.detect.portrait import check_portrait
from expportrait_cli.detect.shoulders import Shoulders
from expportrait_cli.errors import InputError
from expportrait_cli.media.image import is_image, read_image
from expportrait_cli.media.video import frame_count, probe, read_frames

log = logging.getLogger(__name__)

SHOULDERS_EVERY = 5
INTERPOLATE_S = 0.5
TRACKED, INTERPOLATED, HELD = 0, 1, 2
STILL = np.array([1.0, 0.0, 0.0, 0.0])


@dataclass(frozen=True)
class Observations:
    """What was seen, every frame filled; px of the crop."""

    size: tuple[int, int]
    rate: Fraction
    crop: Crop
    landmarks: Float32[np.ndarray, "T 478 2"]
    shoulders: Float32[np.ndarray, "T 2 2"]
    flow: Float32[np.ndarray, "T 2 4"]
    flow_trust: Float32[np.ndarray, "T 2"]
    shot: Int64[np.ndarray, " T"]
    state: UInt8[np.ndarray, " T"]


def observe(source: Path, config: TrackConfig, progress: Callable[[int, int | None], None]) -> Observations:
    """Look at every frame once, holding one frame in memory."""
    if is_image(source):
        image = read_image(source)
        return _gather(source, config, iter([image]), 1, Fraction(0, 1), progress)
    rate = probe(source).rate
    return _gather(source, config, read_frames(source), frame_count(source), rate, progress)


class _Shot:
    """What is measured against the first frame of a shot."""

    def __init__(self, image, landmarks, matte: Matte):
        height, width = image.shape[:2]
        self.crop = steady_crop(landmarks[None], (width, height))
        first = crop_image(image, self.crop, CROP_SIZE)
        points = crop_points(landmarks, self.crop, CROP_SIZE)
        self.flow = RegionFlow(first, points, matte.matte(first))

    def measure(self, image) -> tuple[np.ndarray, np.ndarray]:
        """Similarities in source px, and how far they can be trusted."""
        motion = self.flow.step(crop_image(image, self.crop, CROP_SIZE))
        k = self.crop.side / CROP_SIZE
        corner = np.array([self.crop.left, self.crop.top])
        return np.stack([_rebase(row, k, corner) for row in motion.flow]), motion.confidence


def _rebase(row, k, corner):
    """A similarity of points p in terms of points k p + corner."""
    a, b, c, d = row
    turn = np.array([[a, -b], [b, a]])
    shift = k * np.array([c, d]) + corner - turn @ corner
    return np.array([a, b, *shift])


def _gather(source, config, frames: Iterator, total, rate, progress) -> Observations:
    finder, mesh, matte, cuts = FaceFinder(), FaceMesh(video=rate > 0), Matte(), CutDetector()
    pose = Shoulders()
    landmarks, shoulders, flow, trust, shots = [], [], [], [], []
    shot, size, shot_index, count = None, (0, 0), 0, 0
    for t, image in enumerate(frames):
        progress(t, total)
        size = (image.shape[1], image.shape[0])
        if cuts.is_cut(image):
            mesh.reset()
            shot, shot_index = None, shot_index + 1
        points = mesh.landmarks(image)
        if points is None:
            faces = finder.find(image)
            count = max(count, len(faces))
            if faces:
                chosen = choose_face(faces, config.face, size=size)
                points = mesh.landmarks(image, chosen)
                if rate == 0:
                    check_portrait(image, chosen, points)
        landmarks.append(np.full((478, 2), np.nan, np.float32) if points is None else points)
        if points is not None and shot is None and rate > 0:
            shot = _Shot(image, points, matte)
        similar, sure = shot.measure(image) if shot is not None else (np.stack([STILL, STILL]), np.zeros(2))
        flow.append(similar)
        trust.append(sure)
        shots.append(shot_index)
        seen = pose.shoulders(image) if t % SHOULDERS_EVERY == 0 else None
        shoulders.append(np.full((2, 2), np.nan, np.float32) if seen is None else seen)
    progress(len(landmarks), total)
    points = np.stack(landmarks)
    if np.isnan(points).all():
        raise InputError(
            f"{source}: no face in any of {len(points)} frames; expected one person, face to the camera. "
            "Choose another file."
        )
    if count > 1 and config.face == "largest":
        _several(source, config, count)
    filled, state = fill_missing(points, np.array(shots), config, rate, source)
    crop = steady_crop(points[state == TRACKED], size)
    k = CROP_SIZE / crop.side
    corner = -k * np.array([crop.left, crop.top])
    moved = np.stack([[_rebase(row, k, corner) for row in pair] for pair in flow])
    return Observations(
        size=size,
        rate=rate,
        crop=crop,
        landmarks=crop_points(filled, crop, CROP_SIZE),
        shoulders=crop_points(np.stack(shoulders), crop, CROP_SIZE),
        flow=moved.astype(np.float32),
        flow_trust=np.stack(trust).astype(np.float32),
        shot=np.array(shots),
        state=state,
    )


def _several(source, config, count):
    line = f"{source}: {count} faces found; --face left, right or a number chooses one."
    if config.several == "fail":
        raise InputError(line)
    log.warning("%s The largest was taken.", line)


def fill_missing(landmarks, shots, config: TrackConfig, rate: Fraction, source: Path):
    """Fill frames without a face: short gaps inside a shot are interpolated, the others hold the nearest frame."""
    missing = np.isnan(landmarks).any((1, 2))
    state = np.zeros(len(landmarks), np.uint8)
    if not missing.any():
        return landmarks, state
    if config.on_missing == "fail":
        raise InputError(
            f"{source}: no face in frame {int(missing.argmax())} ({int(missing.sum())} of {len(missing)} frames). "
            "Cut them out, or let --on-missing hold or interpolate fill them."
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
            filled[t] = landmarks[before[-1] if len(before) else after[0]]
            state[t] = HELD
    log.warning(
        "%s: no face in %d of %d frames: %d interpolated, %d held.",
        source,
        missing.sum(),
        len(missing),
        (state == INTERPOLATED).sum(),
        (state == HELD).sum(),
    )
    return filled, state
