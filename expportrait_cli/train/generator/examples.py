"""Training examples of the generator. Each is determined by the seed and its number alone.

A run is thus resumed without a saved random state, and parallel processes need not exchange any.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from expportrait_cli.painting.wan.encoders import TEMPORAL, latent_frames
from expportrait_cli.painting.wan.portrait import TIMESTEPS
from expportrait_cli.render.buffers import decode
from expportrait_cli.train.config import GeneratorTask
from expportrait_cli.train.generator.cache import Entry

AROUND = 3
"""Latent frames before and after a window whose normals the pose encoder is given too."""
HELD = 4
"""Most clips that are in memory at a time."""


@dataclass(frozen=True)
class Example:
    """A training example: a window of a clip, its conditions, noise and the noise level; on the CPU."""

    film: Float[Tensor, "1 16 T h w"]
    normals: Float[Tensor, "1 3 F H W"]
    """Normal maps, -1..1, of the window and of up to `AROUND` latent frames on each side."""
    lead: int
    """Latent frames by which `normals` begin before the window."""
    photo: Float[Tensor, "1 16 1 h w"]
    still: Float[Tensor, "1 3 H W"]
    """Normal map of the photo, -1..1."""
    noise: Float[Tensor, "1 16 T h w"]
    sigma: float
    """Share of noise, 0..1."""
    hint: Float[Tensor, "1 16 T h w"] | None = None
    """Latents of the proxy film that is made from this photo; None for a generator without a hint."""
    tokens: Float[Tensor, "1 I E"] | None = None
    """CLIP's image tokens of the photo; None for a base without an image encoder."""
    control: Float[Tensor, "1 32 T h w"] | None = None
    """VACE's control: latents of a grey film and of the normal maps."""
    photo_noise: Float[Tensor, "1 16 1 h w"] | None = None
    """Noise for the photo's latent frame, which VACE denoises in front of the window."""
    weight: Float[Tensor, "1 1 T h w"] | None = None
    """Loss weight of each latent pixel, mean 1; None if all are 1."""
    drop_control: bool = False
    drop_reference: bool = False

    def noisy(self) -> Float[Tensor, "1 16 T h w"]:
        """Mix film and noise: (1 - sigma) film + sigma noise."""
        return torch.lerp(self.film, self.noise, self.sigma)

    def target(self) -> Float[Tensor, "1 16 T h w"]:
        """Velocity from the film to the noise: noise - film."""
        return self.noise - self.film

    def conditions(self, device: torch.device) -> dict[str, Tensor | int | None]:
        """Return timestep and conditions as arguments of `WanPortrait`, or of `VaceBranch` if there is a control."""
        timestep = torch.full((1,), TIMESTEPS * self.sigma, device=device)
        if self.control is not None and self.photo_noise is not None:
            return {
                "timestep": timestep,
                "control": self.control.to(device),
                "reference_latents": self.photo.to(device),
                "reference_noise": self.photo_noise.to(device),
            }
        return {
            "timestep": timestep,
            "normals": self.normals.to(device),
            "reference_latents": self.photo.to(device),
            "reference_normals": self.still.to(device),
            "hint": None if self.hint is None else self.hint.to(device),
            "image_embeds": None if self.tokens is None else self.tokens.to(device),
            "lead": self.lead,
            "drop_control": torch.tensor([self.drop_control], device=device),
            "drop_reference": torch.tensor([self.drop_reference], device=device),
        }


class Examples:
    """Endless, reproducible sequence of training examples from some clips."""

    def __init__(self, entries: Sequence[Entry], task: GeneratorTask, *, frames: int, seed: int):
        """`frames`: length of the windows, 4 k + 1; they are shorter in clips that are too short."""
        self._entries, self._task, self._seed = list(entries), task, seed
        self._window = latent_frames(frames)
        self._read = lru_cache(maxsize=HELD)(lambda index: (entries[index].read(), entries[index].read_normals()))
        counts = [max(1, round(entry.latent_count / self._window)) for entry in entries]
        self._order = np.repeat(np.arange(len(counts)), counts)

    def __len__(self) -> int:
        """Examples in an epoch: about as many as windows fit into the clips side by side."""
        return len(self._order)

    def example(self, number: int) -> Example:
        """Return example `number`, counted from 0 over all epochs; each epoch has its own random order of clips."""
        epoch, place = divmod(number, len(self))
        order = torch.randperm(len(self), generator=self._generator("epoch", epoch))
        random = self._generator("lesson", number)
        task, uniform = self._task, torch.rand(3, generator=random, dtype=torch.float64).tolist()
        sigma = task.shift * uniform[0] / (1 + (task.shift - 1) * uniform[0])
        return self._cut(
            int(self._order[int(order[place])]),
            random,
            sigma=sigma,
            drop_control=uniform[1] < task.drop_control,
            drop_reference=uniform[2] < task.drop_reference,
        )

    def validation(self, count: int) -> list[Example]:
        """Return `count` fixed examples with evenly spaced sigma, in which no condition is dropped."""
        shares = [(k + 0.5) / count for k in range(count)]
        places = [self._order[k % len(self)] for k in range(count)]
        return [
            self._cut(int(place), self._generator("exam", k), sigma=share)
            for k, (place, share) in enumerate(zip(places, shares, strict=True))
        ]

    def _generator(self, name: str, number: int) -> torch.Generator:
        digest = hashlib.sha256(f"{self._seed} {name} {number}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def _cut(self, index: int, random: torch.Generator, *, sigma: float, **dropped: bool) -> Example:
        clip, normals = self._read(index)
        count = clip.film.shape[1]
        photo = int(torch.randint(len(clip.rows), (1,), generator=random))
        # A window that contains the photo's frame would teach the model to copy it.
        at = -(-clip.rows[photo] // TEMPORAL)
        size = min(self._window, max(at, count - 1 - at, 1))
        begins = [begin for begin in range(count - size + 1) if begin > at or begin + size <= at] or [0]
        begin = begins[int(torch.randint(len(begins), (1,), generator=random))]
        first, last = max(begin - AROUND, 0), min(begin + size + AROUND, count)
        # Latent frame k encodes frames 4 k - 3 to 4 k.
        shown = normals[TEMPORAL * first : TEMPORAL * (last - 1) + 1]
        window = clip.film[None, :, begin : begin + size]
        return Example(
            film=window,
            normals=torch.from_numpy(decode(shown)).permute(3, 0, 1, 2)[None],
            lead=begin - first,
            photo=clip.photos[photo][None, :, None],
            still=torch.from_numpy(decode(normals[clip.rows[photo]])).permute(2, 0, 1)[None],
            noise=torch.randn(window.shape, generator=random),
            photo_noise=torch.randn(clip.photos[photo][None, :, None].shape, generator=random),
            sigma=sigma,
            hint=clip.hints[photo][None, :, begin : begin + size] if len(clip.hints) else None,
            tokens=clip.tokens[photo][None] if len(clip.tokens) else None,
            control=clip.control[None, :, begin : begin + size] if len(clip.control) else None,
            weight=self._weight(clip.features[:, begin : begin + size]),
            **dropped,
        )

    def _weight(self, features: Float[Tensor, "P T h w"]) -> Float[Tensor, "1 1 T h w"] | None:
        """Loss weights of mean 1, so that the learning rate need not change with them; None if all are 1."""
        if not len(features) or not (self._task.face or self._task.features):
            return None
        weight = 1 + self._task.face * features[0] + self._task.features * features[1]
        return (weight / weight.mean())[None, None]
