"""What a painter is: it makes the frames of the film from the photo, the proxy film and the normals (paper 3.3)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from expportrait_cli.render.buffers import Buffers


@dataclass(frozen=True)
class Still:
    """The photo on the canvas of the film, and the head that was fitted to it."""

    photo: UInt8[np.ndarray, "H W 3"]
    normals: Float32[np.ndarray, "H W 3"]
    """N^R: x right, y up, z to the viewer; zero where there is no head."""


@dataclass(frozen=True)
class Sketch:
    """One frame as the proxy film has it, and the posed head in it."""

    proxy: UInt8[np.ndarray, "H W 3"]
    guess: Float32[np.ndarray, "H W"]
    """How far the proxy made a pixel up: 0 where it shows the photo's, 1 where the photo had nothing to show."""
    draw: Callable[[], Buffers]
    """Draws the posed head, for those who ask."""

    @property
    def normals(self) -> Float32[np.ndarray, "H W 3"]:
        """N^D, as N^R."""
        return self._buffers.normals[0].numpy()

    @property
    def depth(self) -> Float32[np.ndarray, "H W"]:
        """Distance along the optical axis, m; zero where there is no head."""
        return self._buffers.depth[0].numpy()

    @cached_property
    def _buffers(self) -> Buffers:
        return self.draw()


Sketches = Callable[[int], Iterator[Sketch]]
"""The frames from a given one on to the end of the film, made as they are asked for."""


@runtime_checkable
class Painter(Protocol):
    """Makes frames of one film; memory must not grow with its length."""

    @property
    def name(self) -> str:
        """As in `--backend`."""
        ...

    def paint(
        self, still: Still, sketches: Sketches, *, start: int, count: int, keep: Path | None = None
    ) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """Yield the frames from `start` on of a film of `count`.

        They are the same whatever `start` is: a painter that looks at frames before it asks for them, or finds in the
        folder `keep` what it left there when it painted them.
        """
        ...


class ProxyPainter:
    """The proxy film as it is."""

    name = "proxy"

    def paint(
        self, still: Still, sketches: Sketches, *, start: int, count: int, keep: Path | None = None
    ) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """Yield the proxy's frames."""
        return (sketch.proxy for sketch in sketches(start))
