"""Training data of the transfer network: neutral faces and frames, of prepared clips and of synthetic people."""

import hashlib
import logging
from collections.abc import Callable, Sequence
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

log = logging.getLogger(__name__)

WORST_IOD = 4.0
"""Landmark error from which on a frame has weight 0, percent of the inter-ocular distance."""
GOOD_IOD = 2.0
"""Landmark error up to which a frame has weight 1, percent of the inter-ocular distance."""


@runtime_checkable
class Person(Protocol):
    """Protocol of data that belong to one named person."""

    @property
    def person(self) -> str:
        """Name of the person."""
        ...


P = TypeVar("P", bound=Person)

SYNTHETIC = "synthetic"
"""Beginning of the names of synthetic people."""


@dataclass(frozen=True)
class FaceClip:
    """Neutral face of a person, and expression, jaw and dynamic offsets in T frames."""

    KIND: ClassVar[str] = "performer"
    VERSION: ClassVar[int] = 1

    name: str
    person: str
    """Name of the person; clips of one person are all trained on, or all held out."""
    neutral: Float32[np.ndarray, "P 3"]
    """Vertices of the neutral face; head frame, m."""
    expression: Float32[np.ndarray, "T E"]
    jaw: Float32[np.ndarray, "T 3"]
    """Rotation of the jaw, axis-angle, rad."""
    offset: Float16[np.ndarray, "T P 3"]
    """Dynamic offsets, canonical, m, minus their mean over the neutral frames."""
    weight: Float32[np.ndarray, " T"]
    """Weight of each frame, 0..1, which falls with its landmark error."""

    @property
    def is_synthetic(self) -> bool:
        """True for a synthetic person, of whom there is no video."""
        return self.person.startswith(SYNTHETIC)


@runtime_checkable
class FaceClipLike(Person, Protocol):
    """Protocol of `FaceClip`; the arrays may be in memory or on disk."""

    @property
    def name(self) -> str:
        """Name of the clip."""
        ...

    @property
    def neutral(self) -> Float32[np.ndarray, "P 3"]:
        """Same as `FaceClip.neutral`."""
        ...

    @property
    def expression(self) -> Float32[np.ndarray, "T E"]:
        """Same as `FaceClip.expression`."""
        ...

    @property
    def jaw(self) -> Float32[np.ndarray, "T 3"]:
        """Same as `FaceClip.jaw`."""
        ...

    @property
    def offset(self) -> Float16[np.ndarray, "T P 3"]:
        """Same as `FaceClip.offset`."""
        ...

    @property
    def weight(self) -> Float32[np.ndarray, " T"]:
        """Same as `FaceClip.weight`."""
        ...

    @property
    def is_synthetic(self) -> bool:
        """Same as `FaceClip.is_synthetic`."""
        ...


class Stored:
    """A `FaceClipLike` in a folder of `.npy` files, of which only the small ones are in memory.

    The others are opened at each access: ten hours of offsets take 62 GB, in more files than a process may have open.
    """

    SMALL, LARGE = ("expression", "jaw", "weight"), ("neutral", "offset")

    def __init__(self, folder: Path, name: str, person: str):
        """Read the small arrays, and open the others once, so that a damaged file is found now.

        Raises:
            ValueError: a file is damaged.
        """
        self.name, self.person, self._folder = name, person, folder
        self.expression, self.jaw, self.weight = (np.load(folder / f"{column}.npy") for column in self.SMALL)
        if len(self.offset) != len(self.weight) or len(self.neutral) != self.offset.shape[1]:
            raise ValueError(f"the files of {folder} are not of one clip")

    @property
    def is_synthetic(self) -> bool:
        """Same as `FaceClip.is_synthetic`."""
        return self.person.startswith(SYNTHETIC)

    @property
    def neutral(self) -> Float32[np.ndarray, "P 3"]:
        """Same as `FaceClip.neutral`."""
        return np.load(self._folder / "neutral.npy")

    @property
    def offset(self) -> Float16[np.ndarray, "T P 3"]:
        """Same as `FaceClip.offset`, memory-mapped: a frame is read when it is indexed."""
        return np.load(self._folder / "offset.npy", mmap_mode="r")


def stored(folder: Path, name: str, person: str, make: Callable[[], FaceClip]) -> Stored:
    """Return the clip that `folder` holds, or make and keep it there, for this run and for resumed ones."""
    # If the file that is written last exists, all do.
    if (folder / f"{Stored.SMALL[-1]}.npy").is_file():
        try:
            return Stored(folder, name, person)
        except (OSError, ValueError, EOFError) as error:
            log.warning("%s is damaged, and is made again.", folder)
            log.debug("%s", error)
    made = make()
    for column in (*Stored.LARGE, *Stored.SMALL):
        with atomic_path(folder / f"{column}.npy") as partial, partial.open("wb") as file:
            np.save(file, getattr(made, column))
    return Stored(folder, name, person)


def stored_clip(clip: Clip, head: HeadModel, face: Face, folder: Path) -> Stored:
    """Return a prepared clip as `read_clip` converts it, kept in a subfolder of `folder`.

    Raises:
        InputError: as `read_clip`.
    """
    made = hashlib.sha256("".join(_key(path) for path in (clip.head, clip.tracking)).encode()).hexdigest()
    own = folder / f"{clip.name}-{made[:16]}"
    return stored(own, clip.name, clip.person, lambda: read_clip(clip, head, face))


def _key(artifact: Path) -> str:
    return str(npz.read_header(artifact)["made_by"].get("key") or content_hash(artifact))


def read_clip(clip: Clip, head: HeadModel, face: Face) -> FaceClip:
    """Read the fit of a prepared clip at the vertices of `face`.

    Raises:
        InputError: the clip was fitted without dynamic offsets, or with another head model.
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
    return FaceClip(
        clip.name,
        clip.person,
        neutral_mesh(fit, head)[face.vertices].numpy(),
        psi.astype(np.float32),
        jaw.astype(np.float32),
        offset,
        weight.astype(np.float32),
    )


def _on_face(fit: HeadFit, face: Face) -> Float16[np.ndarray, "T P 3"]:
    """Dynamic offsets at the vertices of the face; 0 where the fit has none."""
    rows = np.full(len(fit.static_offset), -1)
    rows[fit.dynamic_vertices] = np.arange(len(fit.dynamic_vertices))
    found = rows[face.vertices]
    return np.where((found >= 0)[:, None], fit.dynamic_offset[:, found], np.float16(0))


def centred(offset: Float[np.ndarray, "T P 3"], weights: Float[np.ndarray, " T"]) -> Float16[np.ndarray, "T P 3"]:
    """Subtract the weighted mean over the frames: it depends on the person's shape, not on the expression."""
    mean = np.einsum("t,tpc->pc", weights.astype(np.float32), offset.astype(np.float32))
    return (offset - mean).astype(np.float16)


def held_out(clips: Sequence[P], share: float) -> tuple[list[P], list[P]]:
    """Split by person into (training, held out). The side depends on the person's name and `share` alone."""

    def is_out(person: str) -> bool:
        return int(hashlib.sha256(person.encode()).hexdigest()[:8], 16) < share * 2**32

    return [p for p in clips if not is_out(p.person)], [p for p in clips if is_out(p.person)]


def expression_scale(clips: Sequence[FaceClipLike]) -> Float32[torch.Tensor, " E"]:
    """Root mean square of each expression coefficient over all frames, at least 0.05."""
    rows = np.concatenate([p.expression for p in clips])
    return torch.from_numpy(np.sqrt((rows**2).mean(0)).clip(0.05).astype(np.float32))
