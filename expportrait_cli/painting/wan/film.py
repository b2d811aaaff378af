"""Sampling of a film with a Wan transformer, window by window."""

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from expportrait_cli.painting.scene import Sketch, Sketches
from expportrait_cli.painting.wan.masks import pasted
from expportrait_cli.painting.wan.vae import CHANNELS, Decoding, Vae, pictures
from expportrait_cli.painting.wan.windows import (
    STRIDE,
    Chunks,
    Grid,
    Picture,
    Window,
    chunks,
    latent_count,
    latent_of,
    noise_of,
)
from expportrait_cli.runtime import late

Latents = Float[Tensor, "B C T h w"]
Velocity = Callable[[Tensor, float], Tensor]
"""Predicted velocity (noise minus film) as a function of noisy latents and their sigma."""

FEW = 8
"""Up to this many steps the sampler is of first order (Euler): weights distilled to few steps were trained with it."""


def sigmas_of(steps: int, *, shift: float, strength: float = 1.0) -> list[float]:
    """Noise levels from `strength` to 0, evenly spaced and then shifted towards more noise.

    The last step starts at the shifted 1/steps; in diffusers' Euler schedule it starts at a thousandth, which wastes
    the last of four steps. As in diffusers' video-to-video, `strength` also scales the number of steps.
    """
    taken = max(1, round(steps * strength))
    even = [strength * (1 - step / taken) for step in range(taken)]
    return [shift * sigma / (1 + (shift - 1) * sigma) for sigma in even] + [0.0]


def sample(velocity: Velocity, state: Latents, sigmas: list[float]) -> Latents:
    """Integrate the velocity from `state`, at the first of `sigmas`, to the last one.

    Up to `FEW` steps by Euler; with more by DPM-Solver++ 2M (Lu et al. 2022, eq. 4.1 with alpha = 1 - sigma), which
    also uses the step before. An exact model gives the exact film in any number of steps.
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
    """Extrapolate the estimated film to the middle of the next step, from its change since the last one."""
    if following == 0 or earlier[0] >= 1:
        # The log signal-to-noise ratio is infinite there: the step is of first order.
        return film
    ratio = (_log_snr(sigma) - _log_snr(earlier[0])) / (_log_snr(following) - _log_snr(sigma))
    return film + (film - earlier[1]) / (2 * ratio)


def _log_snr(sigma: float) -> float:
    return float(torch.logit(torch.tensor(1 - sigma, dtype=torch.float64)))


def guided(conditional: Velocity, unconditional: Velocity, scale: float) -> Velocity:
    """Extrapolate from the unconditional to the conditional velocity (classifier-free guidance; Ho, Salimans 2022)."""

    def velocity(state: Tensor, sigma: float) -> Tensor:
        without = unconditional(state, sigma)
        return without + scale * (conditional(state, sigma) - without)

    return velocity


def held(velocity: Velocity, film: Latents, hold: Float[Tensor, "1 1 T #h #w"]) -> Velocity:
    """At every step, blend the model's estimate of the clean latents with `film` by `hold` (1: only `film`, 0: none).

    Latents with `hold` 1 go straight from their noise to `film`, and their neighbours attend to them at each step.
    """
    weights = hold.to(film)

    def led(state: Tensor, sigma: float) -> Tensor:
        guess = state - sigma * velocity(state, sigma)
        return (state - torch.lerp(guess, film, weights)) / sigma

    return led


def skipping(velocity: Velocity, skipped: frozenset[float]) -> Velocity:
    """Extrapolate the velocity at the `skipped` noise levels from the two levels before, instead of computing it.

    Along the straight paths that flow matching is trained on, the velocity changes slowly with the noise; it is
    extrapolated linearly in sigma.
    """
    seen: list[tuple[float, Tensor]] = []

    def quick(state: Tensor, sigma: float) -> Tensor:
        if sigma in skipped and len(seen) == 2:
            (first, a), (second, b) = seen
            return b + (b - a) * ((sigma - second) / (second - first))
        found = velocity(state, sigma)
        seen.append((sigma, found))
        del seen[:-2]
        return found

    return quick


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conditions:
    """Conditions on which a window, or one latent frame, is painted."""

    control: Float[Tensor, "1 C T h w"]
    """Control channels of the transformer."""
    film: Float[Tensor, "1 c T h w"] | None = None
    """Latents of the proxy film: sampling starts from them with noise added; None starts from noise alone."""
    keep: Float[Tensor, "1 1 T h w"] | None = None
    """1 where the proxy film is kept, 0 where it is repainted; None repaints all."""

    @classmethod
    def joined(cls, parts: list["Conditions"]) -> "Conditions":
        """Concatenate conditions over time."""

        def one(tensors: list[Tensor | None]) -> Tensor | None:
            known = [tensor for tensor in tensors if tensor is not None]
            return torch.cat(known, 2) if known else None

        return cls(
            torch.cat([part.control for part in parts], 2),
            one([part.film for part in parts]),
            one([part.keep for part in parts]),
        )


@runtime_checkable
class Model(Protocol):
    """A transformer, conditioned on the photo of one film."""

    memory: int
    """Latent frames before a latent frame on which its conditions depend."""

    @property
    def front(self) -> Float[Tensor, "1 c T h w"] | None:
        """Clean latents of reference frames, which are denoised in front of each window, then dropped; None without."""
        ...

    def controls(self, frames: Chunks, first: int) -> Iterator[Conditions]:
        """Yield the conditions of each latent frame from `first` on, where `frames` begins."""
        ...

    def velocity(self, control: Float[Tensor, "1 C T h w"]) -> Velocity:
        """Velocity of a window, conditioned on `control`."""
        ...

    def unconditional(self, control: Float[Tensor, "1 C T h w"]) -> Velocity:
        """Velocity of the negative branch of classifier-free guidance."""
        ...


@dataclass(frozen=True)
class Sampling:
    """Settings of the sampler, the same for every window."""

    sigmas: list[float]
    guidance: float = 1.0
    seed: int = 0
    skipped: frozenset[float] = frozenset()
    """Noise levels at which the velocity is extrapolated (`skipping`)."""
    length: int = 21
    """Latent frames of a window."""
    overlap: int = 5
    """Latent frames that two neighbouring windows share."""

    @property
    def calls(self) -> int:
        """Calls of the transformer per window."""
        return (len(self.sigmas) - 1 - len(self.skipped)) * (1 if self.guidance == 1 else 2)


def paint_windows(
    model: Model, vae: Vae, sketches: Sketches, sampling: Sampling, *, start: int, count: int
) -> Iterator[Picture]:
    """Yield the frames of a film of `count` from `start` on.

    Decoding begins `decoder_memory` latent frames before `start`, so that frames do not depend on where it began;
    windows begin at the anchor that these latent frames need.
    """
    grid = Grid(latent_count(count), sampling.length, sampling.overlap)
    first = max(0, latent_of(start) - vae.decoder_memory)
    anchor = grid.anchor_before(first)
    begin = max(0, grid[anchor].begin - model.memory)
    conditions = _FilmConditions(model, sketches(STRIDE * begin), begin, count)
    decoding = Decoding(vae)
    with ThreadPoolExecutor(1) as pool:

        def finished() -> Iterator[tuple[int, Future[list[Picture]]]]:
            for latent, content in _latents(model, conditions, grid, anchor, sampling):
                proxies, known = conditions.taken(latent)
                if latent >= first:
                    frames = pictures(decoding.push(content), conditions.height, conditions.width)
                    # The decoder's first latent frame gives one frame only, which is the last of the four.
                    yield latent, pool.submit(pasted, frames, proxies[-len(frames) :], known.keep)

        for latent, future in late(finished(), sampling.length):
            frames = future.result()
            for index, frame in enumerate(frames, STRIDE * latent - len(frames) + 1):
                if start <= index < count:
                    yield frame


class _FilmConditions:
    """Conditions of a film by latent frame, made as far as windows need them and kept until `forget`."""

    def __init__(self, model: Model, frames: Iterator[Sketch], begin: int, count: int) -> None:
        self.height = self.width = 0
        self._proxies: dict[int, list[Picture]] = {}
        groups = enumerate(chunks(frames, first=begin, count=count), begin)
        self._controls = enumerate(model.controls(self._seen(groups), begin), begin)
        self._kept: dict[int, Conditions] = {}

    def of(self, window: Window) -> Conditions:
        """Conditions of a window, concatenated over time; latent frames that were forgotten cannot be had again."""
        while window.end - 1 not in self._kept:
            index, known = next(self._controls)
            self._kept[index] = known
        return Conditions.joined([self._kept[index] for index in range(window.begin, window.end)])

    def taken(self, latent: int) -> tuple[list[Picture], Conditions]:
        """Proxy frames and conditions of a latent frame that has been painted; drops earlier proxy frames."""
        # In place: a thread that reads ahead may be adding to this dictionary.
        for index in [index for index in list(self._proxies) if index < latent]:
            del self._proxies[index]
        return self._proxies[latent], self._kept[latent]

    def forget(self, before: int) -> None:
        """Drop the conditions of latent frames before `before`."""
        self._kept = {index: known for index, known in self._kept.items() if index >= before}

    def _seen(self, groups: Iterator[tuple[int, list[Sketch]]]) -> Chunks:
        for index, chunk in groups:
            self.height, self.width = chunk[0].proxy.shape[:2]
            self._proxies[index] = [sketch.proxy for sketch in chunk]
            yield chunk


def _latents(
    model: Model, conditions: _FilmConditions, grid: Grid, anchor: int, sampling: Sampling
) -> Iterator[tuple[int, Float[Tensor, "1 C 1 h w"]]]:
    """Yield index and content of each latent frame, from the first one that is taken from `anchor` on."""
    earlier: Tensor | None = None
    for index in range(anchor, len(grid) + 1, 2):
        later = None
        if index < len(grid):
            later = paint_window(model, conditions.of(grid[index]), grid[index], sampling)
        if earlier is not None and index - 1 < len(grid):
            bridge = grid[index - 1]
            film = _between(earlier, later, bridge, grid)
            made = paint_window(model, conditions.of(bridge), bridge, sampling, film=film, hold=grid.hold(bridge))
            yield from _owned(made, bridge, grid)
        if later is not None:
            yield from _owned(later, grid[index], grid)
            conditions.forget(grid[index].begin + grid.step)
        earlier = later


def _owned(latents: Tensor, window: Window, grid: Grid) -> Iterable[tuple[int, Tensor]]:
    begin, end = grid.owned(window)
    for index in range(begin, end):
        at = index - window.begin
        yield index, latents[:, :, at : at + 1]


def _between(earlier: Tensor, later: Tensor | None, bridge: Window, grid: Grid) -> Float[Tensor, "1 C T h w"]:
    """Latents of a bridge, copied from the anchors that overlap it; zero elsewhere."""
    shape = (*earlier.shape[:2], bridge.end - bridge.begin, *earlier.shape[3:])
    film = earlier.new_zeros(shape)
    film[:, :, : grid.overlap] = earlier[:, :, -grid.overlap :]
    if later is not None:
        film[:, :, -grid.overlap :] = later[:, :, : grid.overlap]
    return film


def paint_window(
    model: Model,
    conditions: Conditions,
    window: Window,
    sampling: Sampling,
    *,
    film: Tensor | None = None,
    hold: Tensor | None = None,
) -> Float[Tensor, "1 c T h w"]:
    """Sample one window. `hold`, 0..1 by latent frame, blends it with the known latents `film`: see `held`."""
    log.debug("Painting latent frames %d to %d.", window.begin, window.end - 1)
    velocity = model.velocity(conditions.control)
    if sampling.guidance != 1:
        velocity = guided(velocity, model.unconditional(conditions.control), sampling.guidance)
    velocity = skipping(velocity, sampling.skipped)
    lead = 0 if model.front is None else model.front.shape[2]
    shape = (CHANNELS, conditions.control.shape[3], conditions.control.shape[4])
    frames = [*range(-lead, 0), *range(window.begin, window.end)]
    noise = noise_of(sampling.seed, frames, shape).to(conditions.control.device)
    state = sampling.sigmas[0] * noise
    if (known := conditions.film) is not None:
        known = known if model.front is None else torch.cat([model.front.to(known), known], 2)
        state = torch.lerp(known, noise, sampling.sigmas[0])
        if conditions.keep is not None:
            velocity = held(velocity, known, nn.functional.pad(conditions.keep, (0, 0, 0, 0, lead, 0)))
    if film is not None and hold is not None:
        ends = nn.functional.pad(hold, (lead, 0)).view(1, 1, -1, 1, 1)
        velocity = held(velocity, nn.functional.pad(film, (0, 0, 0, 0, lead, 0)), ends)
    return sample(velocity, state, sampling.sigmas)[:, :, lead:]
