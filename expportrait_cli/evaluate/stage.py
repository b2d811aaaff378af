"""Score a film against its truth, or against its driver and a photo, one pair of frames at a time."""

from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from expportrait_cli.errors import InputError
from expportrait_cli.evaluate import face, image
from expportrait_cli.evaluate.identity import IdentityNet, missing_packages
from expportrait_cli.evaluate.scores import COLUMNS, NAMES, Mode, Scores
from expportrait_cli.media.source import read_frame
from expportrait_cli.media.video import frame_count, probe, read_frames

Image = UInt8[np.ndarray, "H W 3"]


def evaluate(
    output: Path, target: Path, *, reference: Path | None, progress: Callable[[int, int | None], None]
) -> Scores:
    """Measure every frame of `output` against the same frame of `target`, in constant memory.

    Without a reference the target is the truth (self): same size, same frames, and its first frame is the reference.
    With a photo as reference the target is the driver (cross): same frames, any size, no pixel metrics.

    Raises:
        InputError: the clips do not match, or the reference shows no face.
    """
    mode: Mode = "self" if reference is None else "cross"
    total = _check_pair(output, target, mode)
    missing = _missing(mode)
    identity = None if "identity_dlib" in missing else _Identity()
    if reference is not None and identity is not None:
        photo = read_frame(reference, 0)
        points = face.Looker().look(photo)
        if points is None:
            raise InputError(f"{reference} shows no face to compare identity with. Give a portrait of the person.")
        identity.compare_with(photo, points)
    pair = _Pair(mode, identity)
    rows = []
    for own, wanted in zip(read_frames(output), read_frames(target), strict=True):
        progress(len(rows), total)
        rows.append(pair.measure(own, wanted))
    progress(total, total)
    if identity is not None and not identity.is_ready:
        missing["identity_dlib"] = "the target's first frame shows no face"
    values = np.array([[row.get(name, np.nan) for name in NAMES] for row in rows])
    return Scores(mode, str(output), str(target), str(reference or target), values, missing)


def _check_pair(output: Path, target: Path, mode: Mode) -> int:
    """Count the frames that both clips have."""
    counts = frame_count(output), frame_count(target)
    if counts[0] != counts[1]:
        raise InputError(
            f"{output} has {counts[0]} frames, {target} has {counts[1]}. "
            "Frame by frame scores need as many: cut the longer one."
        )
    if mode == "cross":
        return counts[0]
    own, wanted = ((clip.width, clip.height) for clip in (probe(output), probe(target)))
    if own != wanted:
        raise InputError(
            f"{output} is {own[0]}x{own[1]}, {target} is {wanted[0]}x{wanted[1]}. A truth has the film's size; "
            "if it is only the driver, give the person's photo as --reference."
        )
    if counts[0] == 1:
        raise InputError(f"{target} has one frame, the reference itself: nothing is left to score. Give a longer clip.")
    return counts[0]


def _missing(mode: Mode) -> dict[str, str]:
    missing = {}
    if mode == "cross":
        truth = [column.name for column in COLUMNS if column.name.startswith(("psnr", "ssim", "l1"))]
        missing = dict.fromkeys([*truth, "lmk_nme"], "needs a target that shows the same person in the same place")
    packages = missing_packages()
    return missing if packages is None else missing | {"identity_dlib": packages}


class _Identity:
    """Distance of faces to one reference face."""

    def __init__(self) -> None:
        self._net = IdentityNet()
        self._reference: np.ndarray | None = None

    @property
    def is_ready(self) -> bool:
        return self._reference is not None

    def compare_with(self, photo: Image, points: face.Points) -> None:
        self._reference = self._net.describe(photo, points)

    def distance(self, frame: Image, points: face.Points) -> float:
        if self._reference is None:
            return float("nan")
        return float(np.linalg.norm(self._net.describe(frame, points) - self._reference))


class _Pair:
    """Measures of two clips as they run side by side: holds three landmark sets of each, and the first frame."""

    def __init__(self, mode: Mode, identity: _Identity | None) -> None:
        self._mode = mode
        self._identity = identity
        self._lookers = face.Looker(), face.Looker()
        self._last: tuple[deque, deque] = (deque(maxlen=3), deque(maxlen=3))
        self._first: Image | None = None

    def measure(self, own: Image, wanted: UInt8[np.ndarray, "H2 W2 3"]) -> dict[str, float]:
        """Scores of the next frame; what cannot be measured is left out."""
        points, target = (looker.look(frame) for looker, frame in zip(self._lookers, (own, wanted), strict=True))
        is_first, self._first = self._first is None, wanted if self._first is None else self._first
        row = {"found": float(points is not None), "found_target": float(target is not None)}
        row |= self._jitter(points, target)
        if self._mode == "self":
            row |= _pixels(own, wanted, self._first, target)
        if self._identity is not None:
            if is_first and self._mode == "self" and target is not None:
                self._identity.compare_with(wanted, target)
            if points is not None:
                row["identity_dlib"] = self._identity.distance(own, points)
        if points is not None and target is not None:
            row |= _landmarks(points, target)
            if self._mode == "self":
                row["lmk_nme"] = face.nme(points, target)
        return row

    def _jitter(self, *points: face.Points | None) -> dict[str, float]:
        row = {}
        for name, last, now in zip(("jitter_lmk", "jitter_lmk_target"), self._last, points, strict=True):
            last.append(now)
            if len(last) == 3 and all(p is not None for p in last):
                row[name] = face.jitter(*last)
        return row


def _landmarks(points: face.Points, target: face.Points) -> dict[str, float]:
    return {
        "lmk_nme_aligned": face.aligned_nme(points, target),
        "lip_gap_error": abs(face.lip_gap(points) - face.lip_gap(target)),
        "lid_gap_error": float(np.abs(face.lid_gap(points) - face.lid_gap(target)).mean()),
    }


def _pixels(own: Image, wanted: Image, first: Image, target: face.Points | None) -> dict[str, float]:
    a, b, still = (image.as_float(frame) for frame in (own, wanted, first))
    height, width = wanted.shape[:2]
    squared, squared_still = ((x - b) ** 2 for x in (a, still))
    squared, squared_still, absolute = (d.mean(axis=2) for d in (squared, squared_still, np.abs(a - b)))
    likeness, inside = image.ssim_map(a, b), image.whole_windows(height, width)
    regions = {"frame": np.ones((height, width), bool)}
    if target is not None:
        regions["head"] = image.head_region(target, height, width)
        regions["face"] = image.face_region(target, height, width)
    row = {}
    for name, region in regions.items():
        row[f"psnr_{name}"] = image.psnr(squared, region)
        row[f"ssim_g11_{name}"] = image.mean_over(likeness, region & inside)
        row[f"l1_{name}"] = image.mean_over(absolute, region)
        if name != "face":
            row[f"psnr_{name}_still"] = image.psnr(squared_still, region)
    return row
