"""Painting of a film in consecutive segments, each of which begins with the last frames of the one before."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from expportrait_cli.artifacts.files import atomic_path
from expportrait_cli.artifacts.npz import BROKEN
from expportrait_cli.painting.scene import Sketch, Sketches
from expportrait_cli.painting.wan.film import Conditions, Model, Sampling, paint_window
from expportrait_cli.painting.wan.masks import pasted
from expportrait_cli.painting.wan.vae import Decoding, Vae, pictures
from expportrait_cli.painting.wan.windows import STRIDE, Painted, Picture, Window, chunks, latent_of

log = logging.getLogger(__name__)

REACH = 320
"""Frames behind the newest link for which links are kept: a resumed film restarts up to one video file (120 frames)
and two segments earlier."""


@dataclass(frozen=True)
class Link:
    """The last frames of a segment, with which the next one begins."""

    begin: int
    """Index in the film of the first of these frames."""
    painted: list[Picture]

    @property
    def end(self) -> int:
        """Index of the first frame that is not painted yet."""
        return self.begin + len(self.painted)

    @classmethod
    def before(cls, frame: int, folder: Path | None) -> "Link":
        """Read the last link in `folder` that ends at `frame` or before; without one, the beginning of the film."""
        for path in reversed([path for path in _kept(folder) if int(path.stem) <= frame]):
            try:
                with np.load(path, allow_pickle=False) as file:
                    frames = list(file["frames"])
            except (KeyError, *BROKEN):
                log.warning("%s is damaged: frames are painted again from an earlier segment on.", path)
                continue
            return cls(int(path.stem) - len(frames), frames)
        return cls(0, [])

    def save(self, folder: Path) -> None:
        """Write the link to `folder`, and delete links that are more than `REACH` frames older."""
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / f"{self.end:08d}.npz") as partial, partial.open("wb") as file:
            np.savez(file, frames=np.stack(self.painted))
        for path in _kept(folder):
            if int(path.stem) < self.end - REACH:
                path.unlink()


def _kept(folder: Path | None) -> list[Path]:
    return sorted(folder.glob("*.npz")) if folder is not None else []


def paint_chain(
    model: Model,
    vae: Vae,
    sketches: Sketches,
    sampling: Sampling,
    *,
    given: int,
    start: int,
    count: int,
    keep: Path | None = None,
) -> Iterator[Picture]:
    """Yield the frames from `start` on, painted in segments that begin with the last `given` frames of the one before.

    The model must leave frames unchanged whose `guess` is zero. Every frame depends on all before it: the folder `keep`
    gets the frames that each segment begins with, losslessly, so that a film that was stopped resumes at its segment.
    Without `keep` it is painted from its beginning again.
    """
    link = Link.before(start, keep)
    if start > link.end:
        log.info("Frames %d to %d are painted again: with `chain`, what follows depends on them.", link.end, start - 1)
    frames = sketches(link.begin)
    held_back = list(islice(frames, len(link.painted)))
    size = STRIDE * (sampling.length - 1) + 1
    while link.end < count:
        segment = [*held_back, *islice(frames, min(size, count - link.begin) - len(held_back))]
        held_back = segment[-given:]
        painted = _segment(model, vae, _given(segment, link.painted), sampling, link.begin)
        new, first = painted[len(link.painted) :], link.end
        link = Link(link.begin + len(segment) - len(held_back), painted[-given:])
        if keep is not None:
            link.save(keep)
        for index, frame in enumerate(new, first):
            if index >= start:
                yield frame


def _given(segment: list[Sketch], painted: list[Picture]) -> list[Sketch]:
    """Replace the first frames of a segment by those that are already painted, with a `guess` of zero."""
    blank = np.zeros(segment[0].guess.shape, np.float32)
    first = [Painted(frame, blank, sketch.draw) for sketch, frame in zip(segment, painted, strict=False)]
    return [*first, *segment[len(painted) :]]


def _segment(model: Model, vae: Vae, frames: list[Sketch], sampling: Sampling, begin: int) -> list[Picture]:
    """Paint one segment as a single window."""
    count, (height, width) = len(frames), frames[0].proxy.shape[:2]
    groups = list(chunks(iter(frames), first=0, count=count))
    known = list(model.controls(iter(groups), 0))
    first = latent_of(begin)
    latents = paint_window(model, Conditions.joined(known), Window(0, first, first + len(known)), sampling)
    decoding = Decoding(vae)
    made = [
        frame
        for at, (conditions, group) in enumerate(zip(known, groups, strict=True))
        for frame in pasted(
            pictures(decoding.push(latents[:, :, at : at + 1]), height, width),
            [sketch.proxy for sketch in group],
            conditions.keep,
        )
    ]
    return made[:count]
