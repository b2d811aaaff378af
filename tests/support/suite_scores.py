"""Scores of a benchmark without films."""

import numpy as np

from expportrait_cli.evaluation.columns import NAMES
from expportrait_cli.evaluation.scores import Scores

FRAMES = 12


def film(psnr: float, mode="self", *, broken: int | None = None) -> Scores:
    """A film of one PSNR, and of landmarks that get worse; without a face in one frame."""
    values = np.full((FRAMES, len(NAMES)), np.nan)
    if mode == "self":
        values[:, NAMES.index("psnr_head")] = psnr
    values[:, NAMES.index("lmk_nme_aligned")] = np.linspace(0, 2, FRAMES)
    values[:, NAMES.index("found")] = 1
    if broken is not None:
        values[broken, NAMES.index("lmk_nme_aligned")] = np.nan
    return Scores(mode, "film.mp4", "clip.mkv", "photo.png", values, {"flip": "needs <flip>"})
