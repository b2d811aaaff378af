"""Measure a film against its ground truth, or against its driver and a photo, frame by frame."""

from collections import deque
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from expportrait_cli.config import Stretch
from expportrait_cli.errors import InputError
from expportrait_cli.evaluation import face, image, own
from expportrait_cli.evaluation.columns import IDENTITIES, LOOKS, NAMES, SPARSE_EVERY, TRACKED, Mode
from expportrait_cli.evaluation.estimators import Likeness, Readers, missing_columns, sparse_metrics
from expportrait_cli.evaluation.fvd import Windows
from expportrait_cli.evaluation.scores import Scores, first_frame
from expportrait_cli.head import landmark_model, load_head
from expportrait_cli.media.stretch import frames_of, settled
from expportrait_cli.media.video import frame_count, probe, read_frame, read_frames
from expportrait_cli.runtime import Progress, use_threads

Image = UInt8[np.ndarray, "H W 3"]


def evaluate(
    output: Path,
    target: Path,
    *,
    reference: Path | None,
    progress: Progress,
    stretch: Stretch = Stretch(),  # noqa: B008
) -> Scores:
    """Measure every frame of `output` against the corresponding frame of `stretch` of `target`.

    Without a reference the target is the ground truth (mode self): of the same size and number of frames, and its first
    frame is the reference. With a photo as reference the target is the driver (mode cross): the same number of frames,
    any size, no pixel metrics. Three frames of each clip are in memory, and 8 kB of landmarks and scores per frame.

    Raises:
        InputError: the clips do not match, or the reference shows no face.
    """
    use_threads()
    mode: Mode = "self" if reference is None else "cross"
    first, end = frames_of(settled(stretch, target), probe(target).rate)
    total = _check_pair(output, target, mode, (first, end))
    missing = missing_columns(has_truth=mode == "self", side=min(image_side(target)))
    likeness = Likeness(missing)
    if reference is not None and not likeness.is_empty:
        photo = read_frame(reference, 0)
        points = face.LandmarkDetector().detect(photo)
        if points is None:
            raise InputError(f"{reference} shows no face to compare identity with. Give a portrait of the person.")
        likeness.compare_with(photo, points)
    windows = Windows()
    pair = _Pair(mode, likeness, missing, total=total)
    image.reuse_memory()
    values, landmarks = np.full((total, len(NAMES)), np.nan), np.full((2, total, 478, 2), np.nan, np.float32)
    for t, frames in enumerate(zip(read_frames(output), read_frames(target, start=first, end=end), strict=True)):
        progress(t, total)
        row = pair.measure(*frames)
        if t >= first_frame(mode):
            windows.add(*frames)
        values[t] = [row.get(name, np.nan) for name in NAMES]
        for clip, points in zip(landmarks, pair.last_points, strict=True):
            clip[t] = np.nan if points is None else points
    missing |= _fill_tracked(values, landmarks, (output, target), mode)
    progress(total, total)
    if likeness.wants_reference:
        names = [*IDENTITIES, *IDENTITIES.values()]
        missing = dict.fromkeys(names, "the target's first frame shows no face") | missing
    return Scores(mode, str(output), str(target), str(reference or target), values, missing, windows.answers, first)


def image_side(clip: Path) -> tuple[int, int]:
    """Width and height of a clip's frames."""
    info = probe(clip)
    return info.width, info.height


def _fill_tracked(
    values: Float64[np.ndarray, "T C"],
    landmarks: Float32[np.ndarray, "2 T 478 2"],
    clips: tuple[Path, Path],
    mode: Mode,
) -> dict[str, str]:
    """Fill the columns of expression, pose and gaze; returns the missing columns with reasons."""
    for name, points in zip(("output", "target"), landmarks, strict=True):
        if not np.isfinite(points).any():
            return dict.fromkeys(TRACKED, f"no frame of the {name} shows a face")
    model = landmark_model(load_head())
    wanted = own.Person(landmarks[1], image_side(clips[1]), model)
    # In self mode the film is solved with the target's identity and focal length: solved separately, these would
    # differ by noise, and so would expression and pose.
    person = wanted if mode == "self" else own.Person(landmarks[0], image_side(clips[0]), model)
    for name, column in own.differences(landmarks[0], landmarks[1], (person, wanted)).items():
        values[:, NAMES.index(name)] = column
    return {}


def _check_pair(output: Path, target: Path, mode: Mode, stretch: tuple[int, int | None]) -> int:
    """Check that the clips match, and return their number of frames."""
    counts = frame_count(output), frame_count(target, start=stretch[0], end=stretch[1])
    if counts[0] != counts[1]:
        raise InputError(
            f"{output} has {counts[0]} frames, {target} has {counts[1]}. "
            "Both need the same number of frames: cut the longer one, or trim the target with `start` and `end`."
        )
    if mode == "cross":
        return counts[0]
    own, wanted = ((clip.width, clip.height) for clip in (probe(output), probe(target)))
    if own != wanted:
        raise InputError(
            f"{output} is {own[0]}x{own[1]}, {target} is {wanted[0]}x{wanted[1]}. A ground truth has the film's size; "
            "if the target is only the driver, give the person's photo as `reference`."
        )
    if counts[0] == 1:
        raise InputError(f"{target} has one frame, the reference itself: nothing is left to score. Give a longer clip.")
    return counts[0]


class _Pair:
    """Measures two clips frame by frame; keeps the luma and landmarks of three frames of each, and the first frame."""

    def __init__(self, mode: Mode, likeness: Likeness, missing: dict[str, str], *, total: int) -> None:
        self._mode = mode
        self._look_every = max(1, (total - 1) // LOOKS)
        self._likeness = likeness
        self._sparse = sparse_metrics(missing) if mode == "self" else {}
        self._readers = Readers(missing)
        self._detectors = face.LandmarkDetector(), face.LandmarkDetector()
        self._landmarks: tuple[deque, deque] = (deque(maxlen=3), deque(maxlen=3))
        self._lumas: tuple[deque, deque] = (deque(maxlen=3), deque(maxlen=3))
        self._first: image.Picture | None = None
        self._frame = -1

    @property
    def last_points(self) -> tuple[face.Points | None, face.Points | None]:
        """Landmarks of the last measured frame, of film and target."""
        return self._landmarks[0][-1], self._landmarks[1][-1]

    def measure(self, own: Image, wanted: UInt8[np.ndarray, "H2 W2 3"]) -> dict[str, float]:
        """Measure the next frame; columns that cannot be measured are left out."""
        self._frame += 1
        points, target = (
            detector.detect(frame) for detector, frame in zip(self._detectors, (own, wanted), strict=True)
        )
        row = {"found": float(points is not None), "found_target": float(target is not None)}
        row |= self._jitter(points, target) | self._flicker(own, wanted)
        if self._mode == "self":
            pair = image.as_float(own), image.as_float(wanted)
            self._first = pair[1] if self._first is None else self._first
            row |= _pixels(*pair, self._first, target)
            if self._frame == 0 and target is not None:
                self._likeness.compare_with(wanted, target)
            # From frame 1 on, since frame 0 is the reference.
            if self._frame % SPARSE_EVERY == 1:
                row |= {name: metric(*pair) for name, metric in self._sparse.items()}
            if target is not None and self._frame and (self._frame - 1) % self._look_every == 0:
                reached = self._likeness.measure(wanted, target)
                row |= {IDENTITIES[name]: value for name, value in reached.items()}
        if points is not None:
            row |= self._likeness.measure(own, points)
        if points is not None and target is not None:
            row |= _landmarks(points, target)
            row |= self._readers.compare(self._readers.read(own, points), self._readers.read(wanted, target))
            if self._mode == "self":
                row["lmk_nme"] = face.nme(points, target)
        return row

    def _jitter(self, *points: face.Points | None) -> dict[str, float]:
        row = {}
        for name, last, now in zip(("jitter_lmk", "jitter_lmk_target"), self._landmarks, points, strict=True):
            last.append(now)
            if len(last) == 3 and all(p is not None for p in last):
                row[name] = face.jitter(*last)
        if len(row) == 2:
            row["landmark_jitter"] = row["jitter_lmk"] - row["jitter_lmk_target"]
        return row

    def _flicker(self, *frames: UInt8[np.ndarray, "_ _ 3"]) -> dict[str, float]:
        for lumas, frame in zip(self._lumas, frames, strict=True):
            lumas.append(image.luma(frame))
        if len(self._lumas[0]) < 3:
            return {}
        own, wanted = (image.flicker(list(lumas)) for lumas in self._lumas)
        return {"flicker": own - wanted}


def _landmarks(points: face.Points, target: face.Points) -> dict[str, float]:
    return {
        "lmk_nme_aligned": face.aligned_nme(points, target),
        "lip_gap_error": abs(face.lip_gap(points) - face.lip_gap(target)),
        "lid_gap_error": float(np.abs(face.lid_gap(points) - face.lid_gap(target)).mean()),
    }


def _pixels(
    own: image.Picture, wanted: image.Picture, first: image.Picture, target: face.Points | None
) -> dict[str, float]:
    height, width = wanted.shape[:2]
    # In place, as in `image.ssim_factors`.
    gap = own - wanted
    absolute = image.over_channels(np.abs(gap, out=gap))
    squared = image.over_channels(np.square(gap, out=gap))
    np.subtract(first, wanted, out=gap)
    squared_still = image.over_channels(np.square(gap, out=gap))
    factors = image.ssim_factors(own, wanted)
    likeness, inside = image.over_channels(factors[0]), image.whole_windows(height, width)
    regions = {"frame": np.ones((height, width), bool)}
    if target is not None:
        regions["head"] = image.head_region(target, height, width)
        regions["face"] = image.face_region(target, height, width)
    row = {"ms_ssim": image.ms_ssim(own, wanted, factors)}
    for name, region in regions.items():
        row[f"psnr_{name}"] = image.psnr(squared, region)
        row[f"ssim_g11_{name}"] = image.mean_over(likeness, region & inside)
        row[f"l1_{name}"] = image.mean_over(absolute, region)
        if name != "face":
            row[f"psnr_{name}_still"] = image.psnr(squared_still, region)
    return row
