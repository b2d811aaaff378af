"""Training examples of the generator; the seed and the number of a lesson determine all of it.

So a run needs no memory of random numbers to go on, and processes agree without talking to each other.
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
"""Latent frames before and after a window whose normals the pose encoder sees, too."""
HELD = 4
"""Clips that are kept in memory."""


@dataclass(frozen=True)
class Lesson:
    """A window of a clip, noise, and how much of it; on the CPU."""

    film: Float[Tensor, "1 16 T h w"]
    normals: Float[Tensor, "1 3 F H W"]
    """Normal maps of the window, and of some frames around it."""
    lead: int
    """Latent frames of normals before the window."""
    photo: Float[Tensor, "1 16 1 h w"]
    still: Float[Tensor, "1 3 H W"]
    noise: Float[Tensor, "1 16 T h w"]
    sigma: float
    """Share of noise, 0..1."""
    hint: Float[Tensor, "1 16 T h w"] | None = None
    """Latents of the proxy film that is drawn from this photo."""
    tokens: Float[Tensor, "1 I E"] | None = None
    """CLIP's image tokens of the photo."""
    control: Float[Tensor, "1 32 T h w"] | None = None
    """VACE's control: latents of a grey film and of the normal maps."""
    photo_noise: Float[Tensor, "1 16 1 h w"] | None = None
    """Noise on the photo, which VACE paints as the first frame."""
    weight: Float[Tensor, "1 1 T h w"] | None = None
    """Weight of each latent pixel's error, mean 1; None if all count the same."""
    drop_control: bool = False
    drop_reference: bool = False

    def noisy(self) -> Float[Tensor, "1 16 T h w"]:
        """Mix film and noise: (1 - sigma) film + sigma noise."""
        return torch.lerp(self.film, self.noise, self.sigma)

    def target(self) -> Float[Tensor, "1 16 T h w"]:
        """Velocity from the film to the noise: noise - film."""
        return self.noise - self.film

    def told(self, device: torch.device) -> dict[str, Tensor | int | None]:
        """Return the conditions as arguments of `WanPortrait`, or of `VaceBranch` where there is a control."""
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


class Lessons:
    """Lessons on some clips, without end."""

    def __init__(self, entries: Sequence[Entry], task: GeneratorTask, *, frames: int, seed: int):
        """Windows are `frames` long, or as long as the clip."""
        self._entries, self._task, self._seed = list(entries), task, seed
        self._window = latent_frames(frames)
        self._read = lru_cache(maxsize=HELD)(lambda index: (entries[index].read(), entries[index].read_normals()))
        counts = [max(1, round(entry.latent_count / self._window)) for entry in entries]
        self._order = np.repeat(np.arange(len(counts)), counts)

    def __len__(self) -> int:
        """Lessons of an epoch: about as many windows as the clips have."""
        return len(self._order)

    def lesson(self, number: int) -> Lesson:
        """Lesson `number`, counted from 0 over all epochs, of which each is in an order of its own."""
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

    def exam(self, count: int) -> list[Lesson]:
        """Lessons that are always the same, from little noise to much, in which nothing is dropped."""
        shares = [(k + 0.5) / count for k in range(count)]
        places = [self._order[k % len(self)] for k in range(count)]
        return [
            self._cut(int(place), self._generator("exam", k), sigma=share)
            for k, (place, share) in enumerate(zip(places, shares, strict=True))
        ]

    def _generator(self, name: str, number: int) -> torch.Generator:
        digest = hashlib.sha256(f"{self._seed} {name} {number}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def _cut(self, index: int, random: torch.Generator, *, sigma: float, **dropped: bool) -> Lesson:
        clip, normals = self._read(index)
        count = clip.film.shape[1]
        photo = int(torch.randint(len(clip.rows), (1,), generator=random))
        # Never a window that holds the photo: copying it would be all that there is to learn.
        at = -(-clip.rows[photo] // TEMPORAL)
        size = min(self._window, max(at, count - 1 - at, 1))
        begins = [begin for begin in range(count - size + 1) if begin > at or begin + size <= at] or [0]
        begin = begins[int(torch.randint(len(begins), (1,), generator=random))]
        first, last = max(begin - AROUND, 0), min(begin + size + AROUND, count)
        # Latent frame k codes the frames up to 4 k.
        shown = normals[TEMPORAL * first : TEMPORAL * (last - 1) + 1]
        window = clip.film[None, :, begin : begin + size]
        return Lesson(
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
        """Weights of mean 1, so that the rate of learning means the same with them and without."""
        if not len(features) or not (self._task.face or self._task.features):
            return None
        weight = 1 + self._task.face * features[0] + self._task.features * features[1]
        return (weight / weight.mean())[None, None]
