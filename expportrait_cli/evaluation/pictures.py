"""Frames as data URIs, and which ones a report shows: without a file beside it."""

from base64 import b64encode
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float64, Int64, UInt8

from expportrait_cli.evaluation import image
from expportrait_cli.evaluation.scores import Scores
from expportrait_cli.media.video import read_pictures

WORST = 3
PICTURE_PX, QUALITY = 360, 85
"""Longest side, and JPEG quality, of the frames that are shown."""
L1_FULL = 0.25
"""Absolute difference that is drawn brightest where FLIP is missing."""


def ranking(scores: Scores) -> tuple[str, Float64[np.ndarray, " T"]]:
    """What the worst frames are chosen by: its name, and how bad each frame is; NaN cannot be chosen.

    A frame in which the film, and not the target, lost its face is the worst of all.
    """
    name = "l1_frame" if scores.mode == "self" else "lmk_nme_aligned"
    badness = scores.column(name).copy()
    badness[(scores.column("found") == 0) & (scores.column("found_target") == 1)] = np.inf
    badness[: scores.first_frame] = np.nan
    return name, badness


def worst_frames(badness: Float64[np.ndarray, " T"]) -> Int64[np.ndarray, " R"]:
    """Up to three frames, worst first, a tenth of the film apart: neighbours show the same fault."""
    left, chosen = badness.copy(), []
    reach = len(badness) // 10
    while len(chosen) < WORST and not np.isnan(left).all():
        worst = int(np.nanargmax(left))
        chosen.append(worst)
        left[max(0, worst - reach) : worst + reach + 1] = np.nan
    return np.array(chosen, np.int64)


def pictures(scores: Scores, frames: Int64[np.ndarray, " R"]) -> dict[int, list[tuple[str, str]]]:
    """Target, film and, against a truth, the map of their error as (caption, data URI), for each of these frames.

    Reads both clips once more, as far as the last of the frames.
    """
    rising = np.sort(frames)
    if not len(rising):
        return {}
    films = (read_pictures(Path(clip), rising) for clip in (scores.target, scores.output))
    shown = {}
    for frame, target, output in zip(rising.tolist(), *films, strict=True):
        shown[frame] = [("target", data_uri(target)), ("film", data_uri(output))]
        if scores.mode == "self":
            shown[frame].append(error_map(output, target))
    return shown


def error_map(output: UInt8[np.ndarray, "H W 3"], target: UInt8[np.ndarray, "H W 3"]) -> tuple[str, str]:
    """Where a picture differs from what it should be: caption, and address of the picture."""
    own, wanted = image.as_float(output), image.as_float(target)
    if image.missing_package() is None:
        caption, errors = "FLIP, 0 black, 1 bright", image.error_map(own, wanted)
    else:
        caption, errors = f"absolute difference, {L1_FULL} brightest", np.abs(own - wanted).mean(axis=2) / L1_FULL
    levels = np.rint(255 * np.clip(errors, 0, 1)).astype(np.uint8)
    return caption, data_uri(cv2.applyColorMap(levels, cv2.COLORMAP_MAGMA)[:, :, ::-1])


def data_uri(rgb: UInt8[np.ndarray, "H W 3"]) -> str:
    """Encode a picture as a JPEG inside an address, shrunk to `PICTURE_PX`."""
    scale = min(1.0, PICTURE_PX / max(rgb.shape[:2]))
    size = tuple(max(1, round(side * scale)) for side in rgb.shape[1::-1])
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    done, jpeg = cv2.imencode(".jpg", small[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert done
    return "data:image/jpeg;base64," + b64encode(jpeg.tobytes()).decode()
