"""Cut a film of any length into overlapping windows that fit the transformer, and join them again.

Windows lie on one grid of latent frames, whichever frame painting starts at. Those with an even number, the anchors,
are painted alone; those with an odd number, the bridges, are painted between the two anchors beside them and are led
over from the one to the other while they are painted. So a frame depends on three windows at most, and painting can
start anywhere.
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
"""Frames of the film that one latent frame stands for; the first one stands for frame 0 alone."""

Item = TypeVar("Item")


def latent_count(frames: int) -> int:
    """Latent frames of a film of `frames` frames."""
    return -(-(frames - 1) // STRIDE) + 1


def latent_of(frame: int) -> int:
    """Latent frame that shows a frame."""
    return -(-frame // STRIDE)


@dataclass(frozen=True)
class Window:
    """Latent frames `begin` to `end` of the film."""

    index: int
    begin: int
    end: int

    @property
    def is_bridge(self) -> bool:
        """True for a window that is painted after both of its neighbours, which hold its ends."""
        return self.index % 2 == 1


@dataclass(frozen=True)
class Grid:
    """Windows of a film."""

    count: int
    """Latent frames of the film."""
    length: int = 21
    """Latent frames of a window; 21 are the 81 frames that Wan was trained with."""
    overlap: int = 5

    def __post_init__(self) -> None:
        """Refuse overlaps of which a window would have more than two."""
        if self.overlap < 1 or 2 * self.overlap > self.length:
            raise ValueError(f"windows of {self.length} cannot overlap by {self.overlap}")

    @property
    def step(self) -> int:
        """Latent frames from one window's begin to the next one's."""
        return self.length - self.overlap

    def __len__(self) -> int:
        """Windows in all."""
        return 1 + max(0, -(-(self.count - self.length) // self.step))

    def __getitem__(self, index: int) -> Window:
        """Window of that number; the last one ends with the film."""
        begin = index * self.step
        return Window(index, begin, min(begin + self.length, self.count))

    def anchor_before(self, latent: int) -> int:
        """Index of the anchor that painting has to begin with so that `latent` comes out right."""
        index = min(latent // self.step, len(self) - 1)
        if index % 2 == 0 and latent < self[index].begin + self.overlap:
            # It belongs to the bridge before.
            index = max(index - 1, 0)
        return index - index % 2

    def owned(self, window: Window) -> tuple[int, int]:
        """Latent frames that the film takes from `window`: all of a bridge, and of an anchor what no bridge has."""
        if window.is_bridge:
            return window.begin, window.end
        begin = window.begin + (self.overlap if window.index else 0)
        return begin, min((window.index + 1) * self.step, window.end) if window.index + 1 < len(self) else window.end

    def hold(self, window: Window) -> Float[Tensor, " W"]:
        """Weights, 0..1, of the neighbours in a bridge: nearly 1 at its ends, 0 where it does not overlap them."""
        ramp = torch.arange(self.overlap, 0, -1) / (self.overlap + 1)
        weights = torch.zeros(window.end - window.begin)
        weights[: self.overlap] = ramp
        if window.index + 1 < len(self):
            weights[-self.overlap :] = ramp.flip(0)
        return weights


def noise_of(seed: int, latents: Sequence[int], shape: tuple[int, int, int]) -> Float[Tensor, "1 C T h w"]:
    """Noise of some latent frames; each has its own generator on the CPU, so that no frame's depends on a window."""
    return torch.stack([_noise(seed, index, shape) for index in latents], 1)[None]


def _noise(seed: int, index: int, shape: tuple[int, int, int]) -> Tensor:
    # Negative numbers, of frames before the film, are taken apart: a seed sequence knows none.
    words = np.random.SeedSequence([seed, abs(index), int(index < 0)]).generate_state(2, np.uint32)
    generator = torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
    return torch.randn(shape, generator=generator)


Chunks = Iterator[list[Sketch]]
"""Frames of one latent frame after the other: one, and then four each."""
Picture = UInt8[np.ndarray, "H W 3"]


class Painted(Sketch):
    """A frame that is painted already, and is given to what follows."""


def chunks(frames: Iterator[Item], *, first: int, count: int) -> Iterator[list[Item]]:
    """Frames of each latent frame from `first` on: one, and then four at a time.

    `frames` begins with frame `4 * first`. The film's end is filled up by running back from its last frame.
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
    """Position, in a row of `length`, of one who has gone past its end by `steps` and turns around at both ends."""
    if length == 1:
        return 0
    phase = (length + steps) % (2 * (length - 1))
    return phase if phase < length else 2 * (length - 1) - phase
