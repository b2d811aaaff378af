"""Mask of what is painted anew of the proxy film, steady cells of the latent grid; and how it comes back into it."""

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
"""Latent frames before and after one whose doubts count for its mask, so that it moves slowly."""
LEAST = 0.02
"""Doubt of a cell from which it is painted."""
MOST = 0.15
"""Largest share of the picture that is painted; the most doubtful cells come first."""
SHARES = (0.3, 0.25, 0.45)
"""Shares in the doubt of a pixel: that the proxy made it up; outside the face, that it differs from the photo's, since
what moves there is extrapolated; and that it does so at an edge, which shows a wrong place most. Fitted, on films of
four people who perform their own clip, to where the proxy is wrong by more than 24 levels."""
CHANGED = (12.0, 60.0)
"""Difference from the photo, levels, between whose ends a pixel becomes doubtful."""
EDGE = 24.0
"""Differences between neighbouring pixels, and from the photo, levels, from which an edge counts in full."""
LARGE = 0.003
"""Share of the picture of the smallest region."""
OPEN = 0.12
"""Gap between the lids of an eye, in its widths, from which the photo shows it."""
COVERED = 0.2
"""Share of a latent pixel that eyes or lips cover, from which it is theirs and is kept."""
INSIDE = 0.5
"""Share of a latent pixel that shows a mouth that the proxy made up, from which it is painted."""
FEATHER = 6 / 512
"""Width, in heights of the picture, over which what is painted fades in beside what is kept: three quarters of a cell,
so that the narrowest region comes through."""
EYES = (EYE_RINGS[:16], EYE_RINGS[16:])
LIDS = (LID_PAIRS[:3], LID_PAIRS[3:])
OUTER_LIPS, INNER_LIPS = LIPS[:20], LIPS[20:]


class Masks:
    """Finds them, for one photo."""

    memory = AROUND + 1
    """Latent frames after which nothing of a mask depends on where the film was begun."""

    def __init__(self, still: Still) -> None:
        """Find out which eyes the photo shows."""
        self._photo = still.photo.astype(np.int16)
        points = still.landmarks_px
        self._eyes = [] if points is None else [k for k in (0, 1) if _opening(points, k) > OPEN]

    def of(self, chunks: Chunks) -> Iterator[tuple[list[Sketch], Bool[np.ndarray, "h w"]]]:
        """Each latent frame's pictures, and its mask on the latent grid, the same for all of them."""
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
        # Of equal ones the first: a threshold would take all of them, or none.
        mask.ravel()[np.argsort(-doubt.ravel(), kind="stable")[int(MOST * doubt.size) :]] = False
        known, mouth = (np.max(shares, 0) for shares in zip(*map(self._features, chunk), strict=True))
        return chunk, (_large(mask) | (mouth > INSIDE)) & (known < COVERED)

    def _doubt(self, sketch: Sketch) -> Float32[np.ndarray, "h w"]:
        """Mean doubt of each cell: where the proxy is likely to be wrong."""
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
            # A face that moves shows its own skin elsewhere; how far that is made up is known.
            hull = cv2.convexHull(np.rint(sketch.landmarks_px).astype(np.int32))
            cv2.fillConvexPoly(moving, hull, (0.0,))
        return _means(made_up * sketch.guess + moving)

    def _features(self, sketch: Sketch) -> tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]:
        """Share of each latent pixel that shows an eye that the photo shows too, or a lip; and a mouth made up."""
        known, mouth = (np.zeros(sketch.guess.shape, np.float32) for _ in range(2))
        if (points := sketch.landmarks_px) is not None:
            for polygon in [*(points[EYES[k]] for k in self._eyes), points[OUTER_LIPS]]:
                cv2.fillPoly(known, [np.rint(polygon).astype(np.int32)], (1.0,))
            cv2.fillPoly(mouth, [np.rint(points[INNER_LIPS]).astype(np.int32)], (1.0,))
            known[mouth > 0] = 0
            mouth *= sketch.guess
        return _means(known), _means(mouth)


def pasted(frames: list[Picture], proxies: list[Picture], keep: Float[Tensor, "1 1 1 h w"] | None) -> list[Picture]:
    """Put the proxy's own pixels where they are kept; what is painted fades in inside its own region."""
    if keep is None:
        return frames
    painted = (keep[0, 0, 0].cpu().numpy() < 1).astype(np.uint8).repeat(SPACE, 0).repeat(SPACE, 1)
    if not painted.any():
        return proxies
    height, width = frames[0].shape[:2]
    # The grid reaches over the picture where its sides do not divide by the transformer's.
    inward = cv2.distanceTransform(np.ascontiguousarray(painted[:height, :width]), cv2.DIST_L2, 5)
    share = np.clip(inward / max(1.0, FEATHER * height), 0, 1)[..., None]
    return [
        np.rint(proxy + share * (frame.astype(np.float32) - proxy)).astype(np.uint8)
        for frame, proxy in zip(frames, proxies, strict=True)
    ]


def _large(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Keep the regions of a mask that are more than specks."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    cells = np.asarray(stats)[:, cv2.CC_STAT_AREA]
    return mask & (cells[np.asarray(labels, np.intp)] >= LARGE * mask.size)


def _opening(points: Float32[np.ndarray, "L 2"], eye: int) -> float:
    """Gap between the lids of an eye, in its widths."""
    gap = np.mean([np.linalg.norm(points[a] - points[b]) for a, b in LIDS[eye]])
    ring = points[EYES[eye]]
    return float(gap / max(np.linalg.norm(ring - ring[:, None], axis=-1).max(), 1.0))


def _means(picture: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "h w"]:
    """Mean of each cell, of the picture filled up to the transformer's grid."""
    whole = filled(picture)
    height, width = whole.shape[0] // SPACE, whole.shape[1] // SPACE
    return whole.reshape(height, SPACE, width, SPACE).mean((1, 3))
