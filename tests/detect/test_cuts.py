from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest

from expportrait_cli.detect.flow import CutDetector
from expportrait_cli.media.video import probe, read_frames


def scene(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 16, 3), np.uint8)
    return cv2.resize(coarse, (640, 360), interpolation=cv2.INTER_CUBIC)


def cuts(frames: Iterable[np.ndarray]) -> list[int]:
    detector = CutDetector()
    return [index for index, frame in enumerate(frames) if detector.is_cut(frame)]


def test_a_cut_is_found_where_it_is() -> None:
    assert cuts([scene(0)] * 5 + [scene(1)] * 5 + [scene(2)]) == [5, 10]


def test_motion_and_flashes_are_no_cuts() -> None:
    pan = [np.roll(scene(0), 6 * t, axis=1) for t in range(8)]
    flash = [cv2.convertScaleAbs(pan[-1], alpha=alpha, beta=beta) for alpha, beta in ((0.5, 120), (1, 0), (0.3, 0))]
    assert cuts([*pan, *flash]) == []


def test_black_before_the_first_picture_is_a_shot_of_its_own() -> None:
    black = np.zeros((360, 640, 3), np.uint8)
    assert cuts([black, black, scene(0), scene(0)]) == [2]


@pytest.mark.slow
@pytest.mark.media
def test_real_cuts_and_nothing_else(media: Path) -> None:
    assert cuts_of(media / "hard" / "hard20_shot_cuts.mp4") == [22, 93]
    for clip in sorted((media / "driving").iterdir()):
        assert cuts_of(clip) == [], clip.name


def cuts_of(path: Path) -> list[int]:
    """Cuts of a clip, read at half its size: the detector looks at much smaller pictures."""
    info = probe(path)
    return cuts(read_frames(path, size=(info.width // 2, info.height // 2)))
