"""How far two sets of vectors lie apart, each taken for a sample of a Gaussian."""

import numpy as np
from jaxtyping import Float64


def frechet_distance(a: Float64[np.ndarray, "N D"], b: Float64[np.ndarray, "M D"]) -> float:
    """Squared Frechet distance |m - n|^2 + tr(A + B - 2 (A B)^(1/2)) of Gaussians with the sets' moments.

    Needs two vectors of each; covariances are those with N - 1. Exact for any N, also where covariances have not full
    rank, in which a matrix square root by iteration loses its way: with A = P'P and B = Q'Q the trace of (A B)^(1/2) is
    the sum of the singular values of P Q'. Source: Dowson and Landau, The Frechet Distance between Multivariate Normal
    Distributions, 1982, Eq. 4.
    """
    roots = [_root(x) for x in (a, b)]
    shift = a.mean(0) - b.mean(0)
    spread = sum(float((root**2).sum()) for root in roots)
    shared = float(np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum())
    # Of equal sets the difference is 0 up to rounding, on either side.
    return max(float(shift @ shift) + spread - 2 * shared, 0.0)


def _root(vectors: Float64[np.ndarray, "N D"]) -> Float64[np.ndarray, "R D"]:
    """Some P with the covariance P'P, of D rows at most."""
    centred = (vectors - vectors.mean(0)) / np.sqrt(len(vectors) - 1)
    return np.linalg.qr(centred).R
