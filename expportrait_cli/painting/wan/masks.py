"""Mask of the parts of the proxy film to repaint (on the latent grid, stable over time), and blending by the mask."""

from collections import deque
from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from expportrait_cli.head.facemesh import EYE_RINGS, LID_PAIRS, LIPS
from expportrait_cli.painting.scene import Sketch, Still
from expportrait_cli.painting.wan.vae import SPACE, filled
from expportrait_cli.painting.wan.windows import Chunks, Painted, Picture

AROUND = 6
"""Latent frames before and after a latent frame over which the doubt for its mask is averaged, to keep it stable."""
LEAST = 0.02
"""Doubt of a cell (0..1) above which it is repainted."""
MOST = 0.15
"""Largest share of the picture that is repainted; cells with most doubt come first."""
SHARES = (0.3, 0.25, 0.45)
"""Weights of three terms of a pixel's doubt: the proxy guessed it; outside the face, it differs from the photo, since
motion is extrapolated there; and it differs at an edge, where a wrong position is most visible. Fitted, on films of
four people who drive their own photo, to where the proxy is wrong by more than 24 levels."""
CHANGED = (12.0, 60.0)
"""Difference from the photo, levels, at which the second term is 0, and 1."""
EDGE = 24.0
"""Gradient, levels a pixel, and difference from the photo, levels, from which on the third term is 1."""
LARGE = 0.003
"""Smallest region that is repainted, as a share of the picture."""
OPEN = 0.12
"""Opening of an eye, in eye widths, above which the photo shows the eye."""
COVERED = 0.2
"""Share of a latent pixel covered by eyes or lips from which on it is kept."""
INSIDE = 0.5
"""Share of a latent pixel covered by the inside of a guessed mouth above which it is repainted."""
FEATHER = 6 / 512
"""Width, in picture heights, over which repainted pixels are blended in: three quarters of a cell, so that a region one
cell wide is still visible."""
EYES = (EYE_RINGS[:16], EYE_RINGS[16:])
LIDS = (LID_PAIRS[:3], LID_PAIRS[3:])
OUTER_LIPS, INNER_LIPS = LIPS[:20], LIPS[20:]


class Masks:
    """Computes the masks of films of one photo."""

    memory = AROUND + 1
    """Latent frames after the start of `chunks` from which on a mask does not depend on it."""

    def __init__(self, still: Still) -> None:
        """Find which eyes are open in the photo."""
        self._photo = still.photo.astype(np.int16)
        points = still.landmarks_px
        self._eyes = [] if points is None else [k for k in (0, 1) if _opening(points, k) > OPEN]

    def of(self, chunks: Chunks) -> Iterator[tuple[list[Sketch], Bool[np.ndarray, "h w"]]]:
        """Yield the sketches of each latent frame, and its mask: True where it is repainted."""
        seen: deque[tuple[list[Sketch], np.ndarray]] = deque(maxlen=2 * AROUND + 1)
        waiting = 0
        for chunk in chunks:
            seen.append((chunk, np.max([self._doubt(sketch) for sketch in chunk], 0)))
            waiting += 1
            if waiting > AROUND:
                yield self._mask(list(seen), len(seen) - waiting)
                waiting -= 1
        while waiting:
            yield self._mask(list(seen)[max(0, len(seen) - waiting - AROUND) :], min(len(seen) - waiting, AROUND))
            waiting -= 1

    def _mask(self, around: list, at: int) -> tuple[list[Sketch], Bool[np.ndarray, "h w"]]:
        chunk = around[at][0]
        doubt = np.mean([doubt for _, doubt in around], 0)
        if all(isinstance(sketch, Painted) for sketch in chunk):
            return chunk, np.zeros(doubt.shape, bool)
        mask = doubt > LEAST
        # Of cells with equal doubt the first ones are taken; a threshold would take all of them, or none.
        mask.ravel()[np.argsort(-doubt.ravel(), kind="stable")[int(MOST * doubt.size) :]] = False
        known, mouth = (np.max(shares, 0) for shares in zip(*map(self._features, chunk), strict=True))
        return chunk, (_large(mask) | (mouth > INSIDE)) & (known < COVERED)

    def _doubt(self, sketch: Sketch) -> Float32[np.ndarray, "h w"]:
        """Mean doubt of each cell, 0..1: how likely the proxy is wrong there."""
        if isinstance(sketch, Painted):
            return _means(np.zeros(sketch.guess.shape, np.float32))
        low, high = CHANGED
        changed = np.abs(sketch.proxy - self._photo).max(2).astype(np.float32)
        slopes = (cv2.Sobel(sketch.proxy, cv2.CV_32F, *axis, scale=0.25) for axis in ((1, 0), (0, 1)))
        edge = cv2.magnitude(*slopes).max(2)
        made_up, moved, at_edge = SHARES
        moving = moved * np.clip((changed - low) / (high - low), 0, 1)
        moving += at_edge * np.clip(edge / EDGE, 0, 1) * np.clip(changed / EDGE, 0, 1)
        if sketch.landmarks_px is not None:
            # In the face, change is the motion of known skin; what is guessed there is in `guess`.
            hull = cv2.convexHull(np.rint(sketch.landmarks_px).astype(np.int32))
            cv2.fillConvexPoly(moving, hull, (0.0,))
        return _means(made_up * sketch.guess + moving)

    def _features(self, sketch: Sketch) -> tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]:
        """Share of each cell covered by lips and eyes (if open in the photo); and by a guessed inside of the mouth."""
        known, mouth = (np.zeros(sketch.guess.shape, np.float32) for _ in range(2))
        if (points := sketch.landmarks_px) is not None:
            for polygon in [*(points[EYES[k]] for k in self._eyes), points[OUTER_LIPS]]:
                cv2.fillPoly(known, [np.rint(polygon).astype(np.int32)], (1.0,))
            cv2.fillPoly(mouth, [np.rint(points[INNER_LIPS]).astype(np.int32)], (1.0,))
            known[mouth > 0] = 0
            mouth *= sketch.guess
        return _means(known), _means(mouth)


def pasted(frames: list[Picture], proxies: list[Picture], keep: Float[Tensor, "1 1 1 h w"] | None) -> list[Picture]:
    """Blend painted frames into the proxy's: these stay where `keep` is 1, and painted pixels fade in beside them."""
    if keep is None:
        return frames
    painted = (keep[0, 0, 0].cpu().numpy() < 1).astype(np.uint8).repeat(SPACE, 0).repeat(SPACE, 1)
    if not painted.any():
        return proxies
    height, width = frames[0].shape[:2]
    # The grid is larger than a picture whose sides are no multiples of 16.
    inward = cv2.distanceTransform(np.ascontiguousarray(painted[:height, :width]), cv2.DIST_L2, 5)
    share = np.clip(inward / max(1.0, FEATHER * height), 0, 1)[..., None]
    return [
        np.rint(proxy + share * (frame.astype(np.float32) - proxy)).astype(np.uint8)
        for frame, proxy in zip(frames, proxies, strict=True)
    ]


def _large(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Remove regions of a mask that are smaller than `LARGE`."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    cells = np.asarray(stats)[:, cv2.CC_STAT_AREA]
    return mask & (cells[np.asarray(labels, np.intp)] >= LARGE * mask.size)


def _opening(points: Float32[np.ndarray, "L 2"], eye: int) -> float:
    """Gap between the lids of an eye, in eye widths."""
    gap = np.mean([np.linalg.norm(points[a] - points[b]) for a, b in LIDS[eye]])
    ring = points[EYES[eye]]
    return float(gap / max(np.linalg.norm(ring - ring[:, None], axis=-1).max(), 1.0))


def _means(picture: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "h w"]:
    """Mean over each cell (8 x 8 px), after padding to a multiple of 16 px."""
    whole = filled(picture)
    height, width = whole.shape[0] // SPACE, whole.shape[1] // SPACE
    return whole.reshape(height, SPACE, width, SPACE).mean((1, 3))
