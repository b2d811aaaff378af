"""Small films of a drawn face, and their scores."""

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from expportrait_cli.evaluation import Scores, evaluate
from expportrait_cli.media.writer import VideoWriter


def portrait() -> np.ndarray:
    data = pytest.importorskip("skimage.data")
    # The astronaut's head; no pixel so bright that one more grey level would not fit.
    head = cv2.resize(data.astronaut()[:240, 110:350], (320, 320), interpolation=cv2.INTER_AREA)
    return np.minimum(head, 254)


def moved(picture: np.ndarray, x: float, y: float) -> np.ndarray:
    height, width = picture.shape[:2]
    return cv2.warpAffine(
        picture, np.array([[1, 0, x], [0, 1, y]], np.float32), (width, height), borderMode=cv2.BORDER_REFLECT
    )


def clip(path: Path, frames: list[np.ndarray]) -> Path:
    with VideoWriter(path, rate=Fraction(25), lossless=True) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def score(output: Path, target: Path, reference: Path | None = None) -> Scores:
    return evaluate(output, target, reference=reference, progress=lambda done, total: None)
