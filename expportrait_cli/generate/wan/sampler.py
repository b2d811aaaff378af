"""Flow matching: from noise to a film along a straight path whose direction the model guesses.

A state at sigma is z = (1 - sigma) x0 + sigma noise, and a model guesses its velocity noise - x0.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

Latents = Float[Tensor, "B C T h w"]
Velocity = Callable[[Tensor, float], Tensor]
"""Velocity at a state and its sigma."""

FEW = 8
"""Steps up to which a step of first order is taken: weights that were distilled to few steps were taught with it."""


def sigmas_of(steps: int, *, shift: float, strength: float = 1.0) -> list[float]:
    """Noise levels from that of `strength` to 0, evenly spaced and then shifted towards noise.

    The last step starts at the shifted 1/steps. diffusers' own schedule for Euler spreads them down to a thousandth
    instead, which wastes the last of four steps. As in its video-to-video, `strength` is a share of the steps.
    """
    taken = max(1, round(steps * strength))
    even = [strength * (1 - step / taken) for step in range(taken)]
    return [shift * sigma / (1 + (shift - 1) * sigma) for sigma in even] + [0.0]


def sample(velocity: Velocity, state: Latents, sigmas: list[float]) -> Latents:
    """Follow the velocity from `state`, which lies at the first of `sigmas`, to the last.

    With few steps each is straight; with more, each corrects itself by the one before (DPM-Solver++ 2M, Lu et al.
    2022, eq. 4.1 with alpha = 1 - sigma). An exact model gives the exact film in any number of steps.
    """
    second = len(sigmas) - 1 > FEW
    earlier: tuple[float, Tensor] | None = None
    for sigma, following in pairwise(sigmas):
        film = state - sigma * velocity(state, sigma)
        guess = _extrapolated(film, sigma, following, earlier) if second and earlier else film
        # Written so that the last step, to sigma 0, returns the guess itself to the last bit.
        state = guess + (following / sigma) * (state - guess)
        earlier = (sigma, film)
    return state


def _extrapolated(film: Tensor, sigma: float, following: float, earlier: tuple[float, Tensor]) -> Tensor:
    """The film as it will look half a step on, from how it changed since the last step."""
    if following == 0 or earlier[0] >= 1:
        # The logarithmic signal-to-noise ratio is infinite there: what is left is first order.
        return film
    ratio = (_log_snr(sigma) - _log_snr(earlier[0])) / (_log_snr(following) - _log_snr(sigma))
    return film + (film - earlier[1]) / (2 * ratio)


def _log_snr(sigma: float) -> float:
    return float(torch.logit(torch.tensor(1 - sigma, dtype=torch.float64)))


def guided(told: Velocity, untold: Velocity, scale: float) -> Velocity:
    """Go further the way that the control leads (classifier-free guidance)."""

    def velocity(state: Tensor, sigma: float) -> Tensor:
        without = untold(state, sigma)
        return without + scale * (told(state, sigma) - without)

    return velocity


def held(velocity: Velocity, film: Latents, hold: Float[Tensor, " T"]) -> Velocity:
    """Lead the sample to a film that is known, each latent frame as firmly as `hold` says: 1 is all, 0 not at all.

    What is mixed is the film that is guessed and the film that is known, at every step: a frame that is held wholly
    runs straight from its noise to what is known, and its neighbours see it on its way.
    """
    weights = hold.to(film)[:, None, None]

    def led(state: Tensor, sigma: float) -> Tensor:
        guess = state - sigma * velocity(state, sigma)
        return (state - torch.lerp(guess, film, weights)) / sigma

    return led
