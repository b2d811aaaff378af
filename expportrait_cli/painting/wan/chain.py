"""A film painted a segment after the other, each of which is given the last frames of the one before."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from expportrait_cli.artifacts.files import atomic_path
from expportrait_cli.artifacts.npz import BROKEN
from expportrait_cli.painting.scene import Sketch, Sketches
from expportrait_cli.painting.wan.film import Model, Sampling, Told, paint_window
from expportrait_cli.painting.wan.masks import pasted
from expportrait_cli.painting.wan.vae import Decoding, Vae, pictures
from expportrait_cli.painting.wan.windows import STRIDE, Painted, Picture, Window, chunks, latent_of

log = logging.getLogger(__name__)

REACH = 320
"""Frames that a film may be thrown back by: those of a file of it, 120, and of two segments here."""


@dataclass(frozen=True)
class Link:
    """Beginning of a segment: the last frames of the segment before it."""

    begin: int
    painted: list[Picture]

    @property
    def end(self) -> int:
        """First frame that is still to be painted."""
        return self.begin + len(self.painted)

    @classmethod
    def before(cls, frame: int, folder: Path | None) -> "Link":
        """Read the last link in `folder` from which `frame` can be reached; without one, the beginning of the film."""
        for path in reversed([path for path in _kept(folder) if int(path.stem) <= frame]):
            try:
                with np.load(path, allow_pickle=False) as file:
                    frames = list(file["frames"])
            except (KeyError, *BROKEN):
                log.warning("%s is damaged: what was painted before it is painted again.", path)
                continue
            return cls(int(path.stem) - len(frames), frames)
        return cls(0, [])

    def save(self, folder: Path) -> None:
        """Keep it, and let go of those that nobody will ask for any more."""
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
    """Yield the frames from `start` on, painted a segment after the other; each is given the last frames before it.

    The model has to keep frames that nothing of is a guess. Every frame depends on all before it: in the folder `keep`
    are the frames that segments were given, without loss, so that a film that was stopped goes on with the segment that
    it was in. Without them it is painted from its beginning again.
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
    """A segment whose first frames are painted already."""
    blank = np.zeros(segment[0].guess.shape, np.float32)
    first = [Painted(frame, blank, sketch.draw) for sketch, frame in zip(segment, painted, strict=False)]
    return [*first, *segment[len(painted) :]]


def _segment(model: Model, vae: Vae, frames: list[Sketch], sampling: Sampling, begin: int) -> list[Picture]:
    """Paint one segment by itself."""
    count, (height, width) = len(frames), frames[0].proxy.shape[:2]
    groups = list(chunks(iter(frames), first=0, count=count))
    known = list(model.controls(iter(groups), 0))
    first = latent_of(begin)
    latents = paint_window(model, Told.joined(known), Window(0, first, first + len(known)), sampling)
    decoding = Decoding(vae)
    made = [
        frame
        for at, (told, group) in enumerate(zip(known, groups, strict=True))
        for frame in pasted(
            pictures(decoding.push(latents[:, :, at : at + 1]), height, width),
            [sketch.proxy for sketch in group],
            told.keep,
        )
    ]
    return made[:count]
