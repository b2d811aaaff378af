"""A long animation as few morph targets: principal components of the displacements, measured on every frame."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Float, Float32

from expportrait_cli.export.shape import Morphs

TOLERANCE_M = 1e-4
LIMIT = 64
"""Most targets. A film whose head and torso turn far from each other may need them all and still be off by 1 mm."""
COUNTS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48, 56, LIMIT)
"""Numbers of targets that are tried."""
SPARE = 32
"""Components kept beyond the limit while frames still come, because what is dropped early may matter later."""
CHUNK = 16

Frames = Callable[[], Iterable[Float32[np.ndarray, "V 3"]]]


@dataclass(frozen=True)
class Compressed:
    """An animation as morph targets."""

    base: Float32[np.ndarray, "V 3"]
    """First frame."""
    morphs: Morphs
    max_error_m: float
    """Largest distance of any vertex in any frame from where it should be."""


def compress(frames: Frames) -> Compressed:
    """Find the fewest targets (of `COUNTS`) that keep every vertex within `TOLERANCE_M`, else take `LIMIT`.

    Weights are scaled to reach -1 or 1 at their peak, because editors bound them. `frames` is called twice, and must
    give the same frames again: memory does not grow with the length of the film.
    """
    base = next(iter(frames())).astype(np.float64).ravel()
    rows = np.zeros((0, len(base)))
    for block in _displacements(frames(), base):
        rows = _principal(np.concatenate([rows, block]))
    # Rows of nearly no length are no longer orthogonal; QR makes them so without a division.
    basis = np.linalg.qr(rows[:LIMIT].T)[0].T
    counts = [count for count in COUNTS if count < len(basis)] + [len(basis)]
    blocks, errors_m = [], np.zeros(len(counts))
    for block in _displacements(frames(), base):
        weights = block @ basis.T
        blocks.append(weights)
        errors_m = np.maximum(errors_m, _errors(block, weights, basis, counts))
    good = np.flatnonzero(errors_m < TOLERANCE_M)
    chosen = good[0] if len(good) else len(counts) - 1
    count = counts[chosen]
    weights = np.concatenate(blocks)[:, :count]
    peaks = np.abs(weights).max(0)
    morphs = Morphs(
        tuple(f"component{index:02d}" for index in range(count)),
        (basis[:count] * peaks[:, None]).reshape(count, -1, 3).astype(np.float32),
        (weights / peaks).astype(np.float32),
    )
    return Compressed(base.reshape(-1, 3).astype(np.float32), morphs, float(errors_m[chosen]))


def _displacements(
    frames: Iterable[Float32[np.ndarray, "V 3"]], base: Float[np.ndarray, " N"]
) -> Iterator[Float[np.ndarray, "n N"]]:
    """Steps away from the base, a few frames at a time."""
    rest = iter(frames)
    while block := list(islice(rest, CHUNK)):
        yield np.stack(block).reshape(len(block), -1).astype(np.float64) - base


def _principal(rows: Float[np.ndarray, "n N"]) -> Float[np.ndarray, "m N"]:
    """Orthogonal rows with the same principal components, longest first, at most `LIMIT + SPARE`.

    Given its own result and new rows, it follows a film of any length (Ross et al. 2008, sec. 2, without the mean).
    """
    _, turns = np.linalg.eigh(rows @ rows.T)
    return turns[:, ::-1][:, : LIMIT + SPARE].T @ rows


def _errors(
    block: Float[np.ndarray, "n N"],
    weights: Float[np.ndarray, "n m"],
    basis: Float[np.ndarray, "m N"],
    counts: list[int],
) -> Float[np.ndarray, " c"]:
    """Largest distance that is left with the first so many components, for each of `counts`."""
    left, start, errors_m = block, 0, []
    for count in counts:
        left = left - weights[:, start:count] @ basis[start:count]
        errors_m.append(np.sqrt((left.reshape(-1, 3) ** 2).sum(-1).max()))
        start = count
    return np.array(errors_m)
