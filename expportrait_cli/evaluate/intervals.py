"""How sure a mean over the frames of one film is."""

import numpy as np
from jaxtyping import Float64

RESAMPLES, SEED = 2000, 0
LEVEL_PERCENT = 95


def interval(values: Float64[np.ndarray, " T"]) -> tuple[float, float] | None:
    """Bounds of the mean of the finite values, by a bootstrap over blocks of neighbouring frames; None of nothing.

    Neighbouring frames are alike, so that single frames drawn at random would promise too much. Blocks are sqrt(T)
    frames long and wrap around; the bounds are percentiles of the resampled means. They speak of more frames of such a
    film, and not of other films or people. Source: Politis and Romano, A Circular Block-Resampling Procedure for
    Stationary Data, 1992.
    """
    finite = np.isfinite(values)
    if not finite.any():
        return None
    count = len(values)
    length = int(np.ceil(np.sqrt(count)))
    starts = np.random.default_rng(SEED).integers(0, count, (RESAMPLES, -(-count // length)))
    sums = [_block_sums(x, length)[starts].sum(1) for x in (np.where(finite, values, 0.0), finite.astype(np.float64))]
    # A resample may consist of frames without a value alone.
    drawn = sums[1] > 0.5
    low, high = np.percentile(sums[0][drawn] / sums[1][drawn], [50 - LEVEL_PERCENT / 2, 50 + LEVEL_PERCENT / 2])
    return float(low), float(high)


def over_clips(values: Float64[np.ndarray, " N"]) -> tuple[float, float] | None:
    """Bounds of the mean over clips, by a bootstrap over whole clips; None of fewer than two.

    They speak of other clips chosen like these. Clips of one person are alike: several of them promise too much.
    """
    if len(values) < 2:
        return None
    drawn = np.random.default_rng(SEED).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(1), [50 - LEVEL_PERCENT / 2, 50 + LEVEL_PERCENT / 2])
    return float(low), float(high)


def _block_sums(values: Float64[np.ndarray, " T"], length: int) -> Float64[np.ndarray, " T"]:
    """Sum of the block that starts at each frame."""
    rising = np.concatenate([[0.0], np.cumsum(np.concatenate([values, values[: length - 1]]))])
    return rising[length:] - rising[:-length]
