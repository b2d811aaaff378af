"""Training data of the transfer network: faces at rest and frames of them, of prepared clips and synthetic people."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.files import atomic_path, content_hash
from expportrait_cli.artifacts.types import HeadFit, Tracking
from expportrait_cli.dataset.dataset import Clip
from expportrait_cli.errors import InputError
from expportrait_cli.fitting.clip import neutral_weights
from expportrait_cli.head import HeadModel
from expportrait_cli.head.fitted import neutral_mesh
from expportrait_cli.retargeting.face import Face

WORST_IOD = 4.0
"""Landmark error from which a frame has weight 0, percent of the inter-ocular distance."""
GOOD_IOD = 2.0
"""Landmark error up to which a frame has weight 1, in the same unit."""


@runtime_checkable
class Person(Protocol):
    """Anything that belongs to one person."""

    @property
    def person(self) -> str:
        """Name of the person."""
        ...


P = TypeVar("P", bound=Person)


@dataclass(frozen=True)
class Performer:
    """A face at rest, and frames of it."""

    KIND: ClassVar[str] = "performer"
    VERSION: ClassVar[int] = 1

    name: str
    person: str
    """Performers of one person stay on one side of a split."""
    neutral: Float32[np.ndarray, "P 3"]
    """Head frame, m."""
    expression: Float32[np.ndarray, "T E"]
    jaw: Float32[np.ndarray, "T 3"]
    offset: Float16[np.ndarray, "T P 3"]
    """Dynamic offsets, canonical, m; what is common to the neutral frames is not among them."""
    weight: Float32[np.ndarray, " T"]
    """Weight, 0..1, of each frame: 0 for one that is not believed."""

    @property
    def is_synthetic(self) -> bool:
        """True for a made-up person, of whom there is no film."""
        return self.person.startswith("synthetic")


@runtime_checkable
class Actor(Person, Protocol):
    """A `Performer`, wherever its arrays are."""

    @property
    def name(self) -> str:
        """Name of the clip."""
        ...

    @property
    def neutral(self) -> Float32[np.ndarray, "P 3"]:
        """Same as `Performer.neutral`."""
        ...

    @property
    def expression(self) -> Float32[np.ndarray, "T E"]:
        """Same as `Performer.expression`."""
        ...

    @property
    def jaw(self) -> Float32[np.ndarray, "T 3"]:
        """Same as `Performer.jaw`."""
        ...

    @property
    def offset(self) -> Float16[np.ndarray, "T P 3"]:
        """Same as `Performer.offset`."""
        ...

    @property
    def weight(self) -> Float32[np.ndarray, " T"]:
        """Same as `Performer.weight`."""
        ...

    @property
    def is_synthetic(self) -> bool:
        """True for a made-up person, of whom there is no film."""
        ...


class Stored:
    """A performer in a folder of `.npy` files, of which only the small ones are in memory.

    The others are opened at every look: ten hours of offsets are 62 GB, and more files than a process may hold open.
    """

    SMALL, LARGE = ("expression", "jaw", "weight"), ("neutral", "offset")
    is_synthetic = False

    def __init__(self, folder: Path, name: str, person: str):
        """Read the small arrays."""
        self.name, self.person, self._folder = name, person, folder
        self.expression, self.jaw, self.weight = (np.load(folder / f"{column}.npy") for column in self.SMALL)

    @property
    def neutral(self) -> Float32[np.ndarray, "P 3"]:
        """Same as `Performer.neutral`."""
        return np.load(self._folder / "neutral.npy")

    @property
    def offset(self) -> Float16[np.ndarray, "T P 3"]:
        """Frames are read when they are taken out of it."""
        return np.load(self._folder / "offset.npy", mmap_mode="r")


def stored(clip: Clip, head: HeadModel, face: Face, folder: Path) -> Stored:
    """A prepared clip as `performer` reads it, kept in `folder` for this run and for those that go on.

    Raises:
        InputError: as `performer`.
    """
    made = hashlib.sha256("".join(_key(path) for path in (clip.head, clip.tracking)).encode()).hexdigest()
    own = folder / f"{clip.name}-{made[:16]}"
    # The last one stands for all.
    if not (own / f"{Stored.SMALL[-1]}.npy").is_file():
        found = performer(clip, head, face)
        for column in (*Stored.LARGE, *Stored.SMALL):
            with atomic_path(own / f"{column}.npy") as partial, partial.open("wb") as file:
                np.save(file, getattr(found, column))
    return Stored(own, clip.name, clip.person)


def _key(artifact: Path) -> str:
    return str(npz.read_header(artifact)["made_by"].get("key") or content_hash(artifact))


def performer(clip: Clip, head: HeadModel, face: Face) -> Performer:
    """A prepared clip.

    Raises:
        InputError: it was fitted without dynamic offsets, or with another head model.
    """
    fit, tracking = npz.load(HeadFit, clip.head), npz.load(Tracking, clip.tracking)
    if fit.head_model != head.name or not len(fit.dynamic_offset):
        raise InputError(
            f"{clip.head} holds {len(fit.dynamic_offset)} frames of dynamic offsets on the head model "
            f"'{fit.head_model}', expected those of a clip on '{head.name}'. Prepare the dataset again."
        )
    psi, jaw = fit.dynamic_expression, fit.dynamic_jaw
    offset = centred(_on_face(fit, face), neutral_weights(head.shares(psi), jaw, tracking.sure))
    weight = np.clip((WORST_IOD - tracking.error) / (WORST_IOD - GOOD_IOD), 0, 1) * (tracking.state == 0)
    return Performer(
        clip.name,
        clip.person,
        neutral_mesh(fit, head)[face.vertices].numpy(),
        psi.astype(np.float32),
        jaw.astype(np.float32),
        offset,
        weight.astype(np.float32),
    )


def _on_face(fit: HeadFit, face: Face) -> Float16[np.ndarray, "T P 3"]:
    """Dynamic offsets at the vertices of the face."""
    rows = np.full(len(fit.static_offset), -1)
    rows[fit.dynamic_vertices] = np.arange(len(fit.dynamic_vertices))
    found = rows[face.vertices]
    return np.where((found >= 0)[:, None], fit.dynamic_offset[:, found], np.float16(0))


def centred(offset: Float[np.ndarray, "T P 3"], weights: Float[np.ndarray, " T"]) -> Float16[np.ndarray, "T P 3"]:
    """Subtract the mean over neutral frames: a clip's static remainder would tell the person, not the expression."""
    mean = np.einsum("t,tpc->pc", weights.astype(np.float32), offset.astype(np.float32))
    return (offset - mean).astype(np.float16)


def held_out(performers: Sequence[P], share: float) -> tuple[list[P], list[P]]:
    """Split by person: (to train on, to judge by). The same person falls on the same side whoever else is there."""

    def is_out(person: str) -> bool:
        return int(hashlib.sha256(person.encode()).hexdigest()[:8], 16) < share * 2**32

    return [p for p in performers if not is_out(p.person)], [p for p in performers if is_out(p.person)]


def expression_scale(performers: Sequence[Actor]) -> Float32[torch.Tensor, " E"]:
    """Root mean square of each expression over all frames, at least 0.05."""
    rows = np.concatenate([p.expression for p in performers])
    return torch.from_numpy(np.sqrt((rows**2).mean(0)).clip(0.05).astype(np.float32))
