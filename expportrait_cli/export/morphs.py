"""Compression of an animation into few morph targets: principal components of the displacements of all frames."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Float, Float32, Int64

from expportrait_cli.export.shape import Morphs, normals_of

TOLERANCE_M = 1e-4
"""Largest error of a vertex that is accepted."""
LIMIT = 127
"""Most components: 128 targets with the origin, of 0.6 MB each. Films in which head and torso rotate far from each
other, with all expressions active, need 80 to 120; with 64 the error is up to 1.1 mm."""
COUNTS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120, LIMIT)
"""Numbers of components that are tried."""
ORIGIN = "origin"
"""Name of the target from the first frame to the least weights of all components."""
SPARE = 32
"""Components kept beyond the limit while frames are added, since those dropped early may matter later."""
CHUNK = 64
"""Frames added at a time: with fewer, updating the components would take more time than adding frames."""

Frames = Callable[[], Iterable[Float32[np.ndarray, "V 3"]]]


@dataclass(frozen=True)
class Compressed:
    """An animation as morph targets."""

    base: Float32[np.ndarray, "V 3"]
    """Vertices of the first frame."""
    morphs: Morphs
    weights: Float32[np.ndarray, "T M"]
    max_error_m: float
    """Largest error of a vertex in a frame."""


def compress(frames: Frames, faces: Int64[np.ndarray, "F 3"]) -> Compressed:
    """Find the fewest components (of `COUNTS`) that keep every vertex within `TOLERANCE_M`, else take `LIMIT`.

    All weights are in 0..1, since Blender clips others: each component begins at its least weight, and one more target,
    `ORIGIN`, is the displacement from the first frame to these least weights. `frames` is called three times, and must
    give the same frames: memory does not grow with the length of the film.
    """
    base = next(iter(frames())).astype(np.float32)
    start = base.ravel().astype(np.float64)
    rows = np.zeros((0, len(start)))
    for block in _blocks(frames()):
        rows = _principal(np.concatenate([rows, block - start]))
    # Rows of nearly zero length are not orthogonal; QR makes them so without dividing by their length.
    basis = np.linalg.qr(rows[:LIMIT].T)[0].T
    scores, count, max_error_m = _fewest(frames(), start, basis)
    if count == 0:
        empty = np.zeros((0, *base.shape), np.float32)
        weights = np.zeros((len(scores), 0), np.float32)
        return Compressed(base, Morphs((), empty, empty, weights[0]), weights, max_error_m)
    low, high = scores.min(0), scores.max(0)
    offsets = np.concatenate([low[None] @ basis[:count], basis[:count] * (high - low)[:, None]])
    weights = np.concatenate([np.ones((len(scores), 1)), (scores - low) / (high - low)], 1)
    morphs = Morphs(
        (ORIGIN, *(f"component{index:02d}" for index in range(1, count + 1))),
        offsets.reshape(count + 1, -1, 3).astype(np.float32),
        _normals(frames(), faces, weights, normals_of(base, faces)),
        np.zeros(count + 1, np.float32),
    )
    return Compressed(base, morphs, weights.astype(np.float32), max_error_m)


def _blocks(frames: Iterable[Float32[np.ndarray, "V 3"]]) -> Iterator[Float[np.ndarray, "n N"]]:
    """Yield `CHUNK` frames at a time, each flattened to a row."""
    rest = iter(frames)
    while block := list(islice(rest, CHUNK)):
        yield np.stack(block).reshape(len(block), -1).astype(np.float64)


def _fewest(
    frames: Iterable[Float32[np.ndarray, "V 3"]], start: Float[np.ndarray, " N"], basis: Float[np.ndarray, "m N"]
) -> tuple[Float[np.ndarray, "T k"], int, float]:
    """Weights of the components that are needed, their number, and the largest remaining error, m."""
    counts = [count for count in COUNTS if count < len(basis)] + [len(basis)]
    scores, errors_m = [], np.zeros(len(counts))
    for block in _blocks(frames):
        scores.append((block - start) @ basis.T)
        errors_m = np.maximum(errors_m, _errors(block - start, scores[-1], basis, counts))
    good = np.flatnonzero(errors_m < TOLERANCE_M)
    chosen = good[0] if len(good) else len(counts) - 1
    return np.concatenate(scores)[:, : counts[chosen]], counts[chosen], float(errors_m[chosen])


def _normals(
    frames: Iterable[Float32[np.ndarray, "V 3"]],
    faces: Int64[np.ndarray, "F 3"],
    weights: Float[np.ndarray, "T M"],
    base: Float32[np.ndarray, "V 3"],
) -> Float32[np.ndarray, "M V 3"]:
    """Changes of the normals by each target, by least squares to the true normals of all frames."""
    products = np.zeros((weights.shape[1], base.size))
    for index, block in enumerate(_blocks(normals_of(verts, faces) - base for verts in frames)):
        products += weights[index * CHUNK :][: len(block)].T @ block
    # A pseudoinverse, because weights may be linearly dependent in a short film.
    solved = np.linalg.pinv(weights.T @ weights, hermitian=True) @ products
    return solved.reshape(-1, *base.shape).astype(np.float32)


def _principal(rows: Float[np.ndarray, "n N"]) -> Float[np.ndarray, "m N"]:
    """Orthogonal rows with the same principal components, longest first, at most `LIMIT + SPARE`.

    Applied to its own result and new rows, it is incremental (Ross et al. 2008, sec. 2, without the mean).
    """
    _, turns = np.linalg.eigh(rows @ rows.T)
    return turns[:, ::-1][:, : LIMIT + SPARE].T @ rows


def _errors(
    block: Float[np.ndarray, "n N"],
    weights: Float[np.ndarray, "n m"],
    basis: Float[np.ndarray, "m N"],
    counts: list[int],
) -> Float[np.ndarray, " c"]:
    """Largest remaining error of a vertex, m, with the first n components, for each n of `counts`."""
    left, start, errors_m = block, 0, []
    for count in counts:
        left = left - weights[:, start:count] @ basis[start:count]
        errors_m.append(np.sqrt((left.reshape(-1, 3) ** 2).sum(-1).max()))
        start = count
    return np.array(errors_m)
