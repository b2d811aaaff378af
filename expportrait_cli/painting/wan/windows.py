"""Overlapping windows, of a length that fits the transformer, that cover a film of any length.

Windows lie on a fixed grid of latent frames, whichever frame painting starts at. Even-numbered ones, the anchors, are
sampled independently; odd-numbered ones, the bridges, are sampled after both of their neighbours, and blended with
them at their ends in every step. A frame thus depends on three windows at most, and painting can start anywhere.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from expportrait_cli.painting.scene import Sketch

STRIDE = 4
"""Frames of the film per latent frame; the first latent frame stands for frame 0 alone."""

Item = TypeVar("Item")


def latent_count(frames: int) -> int:
    """Number of latent frames of a film of `frames` frames."""
    return -(-(frames - 1) // STRIDE) + 1


def latent_of(frame: int) -> int:
    """Index of the latent frame that encodes a frame."""
    return -(-frame // STRIDE)


@dataclass(frozen=True)
class Window:
    """Latent frames from `begin` up to, but not including, `end`."""

    index: int
    begin: int
    end: int

    @property
    def is_bridge(self) -> bool:
        """True for a window that is sampled after both of its neighbours, and is blended with them at its ends."""
        return self.index % 2 == 1


@dataclass(frozen=True)
class Grid:
    """All windows of a film, by index."""

    count: int
    """Latent frames of the film."""
    length: int = 21
    """Latent frames of a window; 21 are the 81 frames that Wan was trained with."""
    overlap: int = 5
    """Latent frames that two neighbouring windows share."""

    def __post_init__(self) -> None:
        """Raise ValueError unless 1 <= `overlap` <= `length` / 2: otherwise three windows would overlap."""
        if self.overlap < 1 or 2 * self.overlap > self.length:
            raise ValueError(f"windows of {self.length} cannot overlap by {self.overlap}")

    @property
    def step(self) -> int:
        """Latent frames from the begin of one window to that of the next."""
        return self.length - self.overlap

    def __len__(self) -> int:
        """Number of windows."""
        return 1 + max(0, -(-(self.count - self.length) // self.step))

    def __getitem__(self, index: int) -> Window:
        """Return window `index`; the last one ends with the film."""
        begin = index * self.step
        return Window(index, begin, min(begin + self.length, self.count))

    def anchor_before(self, latent: int) -> int:
        """Index of the first anchor that latent frame `latent` depends on; painting begins there."""
        index = min(latent // self.step, len(self) - 1)
        if index % 2 == 0 and latent < self[index].begin + self.overlap:
            # The latent frame is taken from the bridge before.
            index = max(index - 1, 0)
        return index - index % 2

    def owned(self, window: Window) -> tuple[int, int]:
        """Begin and end of the latent frames taken from `window`: all of a bridge; of an anchor those in no bridge."""
        if window.is_bridge:
            return window.begin, window.end
        begin = window.begin + (self.overlap if window.index else 0)
        return begin, min((window.index + 1) * self.step, window.end) if window.index + 1 < len(self) else window.end

    def hold(self, window: Window) -> Float[Tensor, " W"]:
        """Weights, 0..1, of the neighbours' latents in a bridge: nearly 1 at its ends, 0 where it overlaps none."""
        ramp = torch.arange(self.overlap, 0, -1) / (self.overlap + 1)
        weights = torch.zeros(window.end - window.begin)
        weights[: self.overlap] = ramp
        if window.index + 1 < len(self):
            weights[-self.overlap :] = ramp.flip(0)
        return weights


def noise_of(seed: int, latents: Sequence[int], shape: tuple[int, int, int]) -> Float[Tensor, "1 C T h w"]:
    """Noise of some latent frames. Each is seeded by its index, so that it does not depend on the window."""
    return torch.stack([_noise(seed, index, shape) for index in latents], 1)[None]


def _noise(seed: int, index: int, shape: tuple[int, int, int]) -> Tensor:
    # Indices of reference frames are negative, which a seed sequence does not take: the sign is a word of its own.
    words = np.random.SeedSequence([seed, abs(index), int(index < 0)]).generate_state(2, np.uint32)
    generator = torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
    return torch.randn(shape, generator=generator)


Chunks = Iterator[list[Sketch]]
"""For each latent frame, the sketches that it stands for: one for the first, then four each."""
Picture = UInt8[np.ndarray, "H W 3"]


class Painted(Sketch):
    """A frame that is already painted, with which the next segment begins."""


def chunks(frames: Iterator[Item], *, first: int, count: int) -> Iterator[list[Item]]:
    """Yield the frames of each latent frame from `first` on: one, and then four each.

    `frames` begins with frame `4 * first`. The last latent frame is filled by reflecting the frames at the end.
    """
    seen: deque[Item] = deque(maxlen=STRIDE)
    for latent in range(first, latent_count(count)):
        chunk = []
        for index in range(STRIDE * latent - (STRIDE - 1 if latent > first else 0), STRIDE * latent + 1):
            if index < count:
                seen.append(next(frames))
                chunk.append(seen[-1])
            else:
                chunk.append(seen[_back(index - count, len(seen))])
        yield chunk


def _back(steps: int, length: int) -> int:
    """Index that is `steps` past the last of `length` items, reflected at both ends."""
    if length == 1:
        return 0
    phase = (length + steps) % (2 * (length - 1))
    return phase if phase < length else 2 * (length - 1) - phase
