"""A film through a Wan transformer: its denoising steps, window by window."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from expportrait_cli.painting.scene import Sketch, Sketches
from expportrait_cli.painting.wan.vae import CHANNELS, Decoding, Vae, pictures
from expportrait_cli.painting.wan.windows import (
    STRIDE,
    Grid,
    Window,
    chunks,
    latent_count,
    latent_of,
    noise_of,
)

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


log = logging.getLogger(__name__)

Chunks = Iterator[list[Sketch]]
"""Frames of one latent frame after the other: one, and then four each."""
Picture = UInt8[np.ndarray, "H W 3"]


class Painted(Sketch):
    """A frame that is painted already, and is given to what follows."""


@runtime_checkable
class Model(Protocol):
    """A transformer that has seen the photo of one film."""

    lead: int
    """Latent frames that it paints beside the film, in front of it, and that are thrown away."""
    memory: int
    """Latent frames that `controls` looks back over."""

    def controls(self, frames: Chunks, first: int) -> Iterator[Float[Tensor, "1 C 1 h w"]]:
        """What the transformer is told of each latent frame from `first` on, where `frames` begins."""
        ...

    def velocity(self, control: Float[Tensor, "1 C T h w"]) -> Velocity:
        """Velocity of a window that is told that."""
        ...

    def untold(self, control: Float[Tensor, "1 C T h w"]) -> Velocity:
        """Velocity of one that is told nothing."""
        ...

    def start(self, control: Float[Tensor, "1 C T h w"], noise: Float[Tensor, "1 c T h w"], sigma: float) -> Tensor:
        """State that sampling begins with; `noise` and `control` without the lead."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How every window is sampled."""

    sigmas: list[float]
    guidance: float = 1.0
    seed: int = 0
    length: int = 21
    """Latent frames of a window, and of the overlap of two."""
    overlap: int = 5


def paint_windows(
    model: Model, vae: Vae, sketches: Sketches, sampling: Sampling, *, start: int, count: int
) -> Iterator[Picture]:
    """Yield the frames of a film of `count` from `start` on.

    The decoder begins so far ahead of `start` that it has forgotten where when it gets there, and the windows begin at
    the anchor that has to be known for that.
    """
    grid = Grid(latent_count(count), sampling.length, sampling.overlap)
    first = max(0, latent_of(start) - vae.decoder_memory)
    anchor = grid.anchor_before(first)
    begin = max(0, grid[anchor].begin - model.memory)
    told = _Told(model, sketches(STRIDE * begin), begin, count)
    decoding = Decoding(vae)
    for latent, content in _latents(model, told, grid, anchor, sampling):
        if latent < first:
            continue
        frames = pictures(decoding.push(content), told.height, told.width)
        for index, frame in enumerate(frames, STRIDE * latent - len(frames) + 1):
            if start <= index < count:
                yield frame


class _Told:
    """What the transformer is told, latent frame by latent frame, as far as windows still need it."""

    def __init__(self, model: Model, frames: Iterator[Sketch], begin: int, count: int) -> None:
        self.height = self.width = 0
        groups = chunks(self._seen(frames), first=begin, count=count)
        self._controls = enumerate(model.controls(groups, begin), begin)
        self._kept: dict[int, Tensor] = {}

    def of(self, window: Window) -> Float[Tensor, "1 C T h w"]:
        """Of a window; nothing more than a stride before it can be asked for afterwards."""
        while window.end - 1 not in self._kept:
            index, control = next(self._controls)
            self._kept[index] = control
        return torch.cat([self._kept[index] for index in range(window.begin, window.end)], 2)

    def forget(self, before: int) -> None:
        """Drop what lies before a latent frame."""
        self._kept = {index: control for index, control in self._kept.items() if index >= before}

    def _seen(self, frames: Iterator[Sketch]) -> Iterator[Sketch]:
        for frame in frames:
            self.height, self.width = frame.proxy.shape[:2]
            yield frame


def _latents(
    model: Model, told: _Told, grid: Grid, anchor: int, sampling: Sampling
) -> Iterator[tuple[int, Float[Tensor, "1 C 1 h w"]]]:
    """Number and content of each latent frame, from the first that belongs to `anchor` on."""
    earlier: Tensor | None = None
    for index in range(anchor, len(grid) + 1, 2):
        later = None
        if index < len(grid):
            later = paint_window(model, told.of(grid[index]), grid[index], sampling)
        if earlier is not None and index - 1 < len(grid):
            bridge = grid[index - 1]
            film = _between(earlier, later, bridge, grid)
            made = paint_window(model, told.of(bridge), bridge, sampling, film=film, hold=grid.hold(bridge))
            yield from _owned(made, bridge, grid)
        if later is not None:
            yield from _owned(later, grid[index], grid)
            told.forget(grid[index].begin + grid.step)
        earlier = later


def _owned(latents: Tensor, window: Window, grid: Grid) -> Iterable[tuple[int, Tensor]]:
    begin, end = grid.owned(window)
    for index in range(begin, end):
        at = index - window.begin
        yield index, latents[:, :, at : at + 1]


def _between(earlier: Tensor, later: Tensor | None, bridge: Window, grid: Grid) -> Float[Tensor, "1 C T h w"]:
    """What the anchors beside a bridge show of it; zero where they show nothing."""
    shape = (*earlier.shape[:2], bridge.end - bridge.begin, *earlier.shape[3:])
    film = earlier.new_zeros(shape)
    film[:, :, : grid.overlap] = earlier[:, :, -grid.overlap :]
    if later is not None:
        film[:, :, -grid.overlap :] = later[:, :, : grid.overlap]
    return film


def paint_window(
    model: Model,
    control: Float[Tensor, "1 C T h w"],
    window: Window,
    sampling: Sampling,
    *,
    film: Tensor | None = None,
    hold: Tensor | None = None,
) -> Float[Tensor, "1 c T h w"]:
    """Paint one window; where `hold` is above zero it is led to `film`."""
    log.debug("Painting latent frames %d to %d.", window.begin, window.end - 1)
    velocity = model.velocity(control)
    if sampling.guidance != 1:
        velocity = guided(velocity, model.untold(control), sampling.guidance)
    shape = (CHANNELS, control.shape[3], control.shape[4])
    noise = noise_of(sampling.seed, range(window.begin, window.end), shape).to(control.device)
    state = model.start(control, noise, sampling.sigmas[0])
    if model.lead:
        lead = noise_of(sampling.seed, range(-model.lead, 0), shape).to(control.device)
        state = torch.cat([sampling.sigmas[0] * lead, state], 2)
    if film is not None and hold is not None:
        front = film.new_zeros((*film.shape[:2], model.lead, *film.shape[3:]))
        hold = torch.cat([hold.new_zeros(model.lead), hold])
        velocity = held(velocity, torch.cat([front, film], 2), hold)
    return sample(velocity, state, sampling.sigmas)[:, :, model.lead :]
