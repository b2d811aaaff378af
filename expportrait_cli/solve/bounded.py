"""Newton steps within bounds, of frames that share some of their parameters."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

PASSES = 10
"""Two or three are the rule; where the sets went round in circles the last step would be as good as any."""
SLACK = 1e-9


@dataclass(frozen=True)
class Quadratic:
    """What a step costs in one frame, x·H·x / 2 + g·x: `P` parameters of its own come first, then `K` shared ones."""

    hessian: Float[np.ndarray, "N N"]
    gradient: Float[np.ndarray, " N"]
    low: Float[np.ndarray, " P"]
    """Least step of each own parameter."""
    high: Float[np.ndarray, " P"]

    def reply(self, held: Float[np.ndarray, " P"]) -> Float[np.ndarray, "P columns"]:
        """Best own step as an affine function of the shared one, constant last; `held` is NaN where a step is free."""
        own = len(held)
        free = np.isnan(held)
        out = np.zeros((own, len(self.gradient) - own + 1))
        out[~free, -1] = held[~free]
        slope = self.gradient[:own] + self.hessian[:own, :own] @ out[:, -1]
        right = np.c_[self.hessian[:own, own:], slope][free]
        out[free] = -np.linalg.solve(self.hessian[:own, :own][np.ix_(free, free)], right)
        return out

    def hold(
        self, held: Float[np.ndarray, " P"], step: Float[np.ndarray, " P"], shared: Float[np.ndarray, " K"]
    ) -> Float[np.ndarray, " P"]:
        """Hold what leaves its bounds, and keep holding what still pushes against them."""
        push = -(self.hessian[: len(held)] @ np.r_[step, shared] + self.gradient[: len(held)])
        at_low = (step < self.low - SLACK) | ((held == self.low) & (push < 0))
        at_high = (step > self.high + SLACK) | ((held == self.high) & (push > 0))
        return np.where(at_low, self.low, np.where(at_high, self.high, np.nan))


def least(
    frames: list[Quadratic], hessian: Float[np.ndarray, "K K"], gradient: Float[np.ndarray, " K"]
) -> tuple[Float[np.ndarray, " K"], list[Float[np.ndarray, " P"]]]:
    """Find the shared step and each frame's own at which the sum of all costs is least.

    `hessian` and `gradient` are what the shared step costs by itself. The frames are eliminated (Schur complement); the
    bounds are met by a primal-dual active set (Hintermüller, Ito & Kunisch 2002, SIAM J. Optim. 13).
    """
    held = [np.full_like(frame.low, np.nan) for frame in frames]
    shared, steps = np.zeros_like(gradient), []
    for _ in range(PASSES):
        reduced, slope = hessian.copy(), gradient.copy()
        replies = [frame.reply(fixed) for frame, fixed in zip(frames, held, strict=True)]
        for frame, reply in zip(frames, replies, strict=True):
            own = len(reply)
            reduced += frame.hessian[own:, own:] + frame.hessian[own:, :own] @ reply[:, :-1]
            slope += frame.gradient[own:] + frame.hessian[own:, :own] @ reply[:, -1]
        shared = -np.linalg.solve(reduced, slope)
        steps = [reply @ np.r_[shared, 1.0] for reply in replies]
        before = held
        held = [frame.hold(fixed, step, shared) for frame, fixed, step in zip(frames, before, steps, strict=True)]
        if all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, held, strict=True)):
            break
    return shared, steps
