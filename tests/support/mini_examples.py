"""Examples for the small painter that need no film: a picture, and a proxy that has lost a part of it."""

import cv2
import numpy as np

from expportrait_cli.train.config import MiniTraining
from expportrait_cli.train.mini.loop import SIZE, TIMES, Example

TINY = MiniTraining(steps=30, windows=2, side=64, report_every=15, faults=0.0, rate=2e-3)


def example(person: str, seed: int) -> Example:
    """A coloured picture of which the proxy has lost a disc, in a colour that says nothing."""
    draw = np.random.default_rng(seed)
    photo = cv2.resize(draw.integers(40, 216, (5, 5, 3), dtype=np.uint8), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    disc = np.zeros((SIZE, SIZE), np.uint8)
    cv2.circle(disc, (128, 128), 60, 255, -1)
    truth = np.broadcast_to(photo, (2, TIMES, SIZE, SIZE, 3)).copy()
    proxy = truth.copy()
    proxy[:, :, disc > 0] = 0
    normals = np.zeros((2, TIMES, SIZE, SIZE, 3), np.int8)
    normals[..., 2] = 127
    guess = np.broadcast_to(disc, (2, TIMES, SIZE, SIZE)).copy()
    return Example(person, photo, normals[0, 0], proxy, guess, normals, truth)
