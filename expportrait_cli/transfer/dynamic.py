"""Dynamic offsets of another person's performance: predicted for this face, or copied as they are (paper 3.2)."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from expportrait_cli.artifacts.types import Curves, HeadFit
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.head import HeadModel
from expportrait_cli.head.finer import Finer
from expportrait_cli.head.fitted import neutral_mesh
from expportrait_cli.transfer.face import Neutral, shortest_turn
from expportrait_cli.transfer.network import Trained


@runtime_checkable
class Offsets(Protocol):
    """What moves beyond the expressions, as change from the photo: nothing where the photo's own expression is."""

    @property
    def vertices(self) -> Int64[np.ndarray, " P"]:
        """Dense vertices that move."""
        ...

    def __call__(self, rows: slice, curves: Curves) -> Float32[np.ndarray, "T P 3"]:
        """Offsets of some frames, canonical, m; `curves` are these frames' own."""
        ...


class Learned:
    """The network's offsets: they depend on the person's neutral head, expression and jaw, and on nothing else.

    Frame by frame: neither the order of frames nor how many are asked for at once changes a bit.
    """

    def __init__(self, trained: Trained, head_fit: HeadFit, head: HeadModel):
        """Evaluate the person's basis once."""
        network = trained.network
        self.vertices, self._network = network.face.vertices, network
        with torch.inference_mode():
            self._neutral = Neutral.of(neutral_mesh(head_fit, head)[self.vertices], network.face)
            self._code = network.code(self._neutral)
            self._rows = torch.arange(len(self.vertices))
            is_split = network.config.kind != "concat"
            self._fields = network.fields(self._neutral, self._code, self._rows) if is_split else None
            self._photo = self._frame(head_fit.expression, head_fit.jaw)

    def __call__(self, rows: slice, curves: Curves) -> Float32[np.ndarray, "T P 3"]:
        """See `Offsets`."""
        with torch.inference_mode():
            frames = [
                self._frame(psi, jaw) - self._photo for psi, jaw in zip(curves.expression, curves.jaw, strict=True)
            ]
        return torch.stack(frames).numpy()

    def _frame(self, psi: np.ndarray, jaw: np.ndarray) -> Float32[Tensor, "P 3"]:
        given = (torch.from_numpy(psi.astype(np.float32))[None], torch.from_numpy(jaw.astype(np.float32))[None])
        if self._fields is None:
            return self._network.offsets(self._neutral, self._code, *given, rows=self._rows)[0]
        return self._network.mixed(self._fields, self._network.coefficients(self._code, *given))[0]


@dataclass(frozen=True)
class Copied:
    """The offsets that were fitted to the driver's clip, turned into the person's surface, and nothing more."""

    vertices: Int64[np.ndarray, " P"]
    offset: Float32[np.ndarray, "T P 3"]
    """Of the driver, from the neutral frame."""
    turns: Float32[np.ndarray, "P 3 3"]
    """From the driver's neutral surface to the person's."""

    @classmethod
    def of(cls, driver: HeadFit, neutral: int, head_fit: HeadFit, head: HeadModel, *, strength: float) -> "Copied":
        """Copy a driver's fit; `neutral` is the frame whose offsets count as none."""
        vertices = driver.dynamic_vertices
        offset = driver.dynamic_offset.astype(np.float32)
        theirs, own = (
            vertex_normals(neutral_mesh(fit, head), head.dense_faces)[vertices] for fit in (driver, head_fit)
        )
        return cls(vertices, strength * (offset - offset[neutral]), shortest_turn(theirs, own).numpy())

    def __call__(self, rows: slice, curves: Curves) -> Float32[np.ndarray, "T P 3"]:
        """See `Offsets`."""
        return np.einsum("pab,tpb->tpa", self.turns, self.offset[rows])


class Lifted:
    """Offsets on a head of half the edges (`head.finer`)."""

    def __init__(self, offsets: Offsets, mesh: Finer):
        """Find the finer vertices that lie between those that move."""
        self._offsets = offsets
        near = mesh.lift.tocsc()[:, offsets.vertices]
        self.vertices = np.flatnonzero(np.asarray(near.sum(1))[:, 0] > 0)
        self._carry = mesh.carry[self.vertices][:, offsets.vertices].astype(np.float32)

    def __call__(self, rows: slice, curves: Curves) -> Float32[np.ndarray, "T P 3"]:
        """See `Offsets`."""
        return np.stack([self._carry @ step for step in self._offsets(rows, curves)])
