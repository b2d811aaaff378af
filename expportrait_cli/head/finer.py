"""A head model on a mesh of half the edges: every dense quad or triangle split in four once more.

Parameters, coarse vertices and landmarks are those of the model that it is made from; only what is dense differs.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from scipy import sparse
from torch import Tensor

from expportrait_cli.geometry.mesh import csr_tensor, scipy_matrix
from expportrait_cli.head.model import MARK, HeadModel, is_finer
from expportrait_cli.head.subdivision import Subdivision, subdivide, subdivide_triangles

NEGLIGIBLE = 1e-6
"""Weights below this are left out: less than a micrometre of a metre."""


@dataclass(frozen=True)
class Finer:
    """A head with `V_fine` dense vertices, the first `V` of which are those of the head behind it."""

    head: HeadModel
    lift: sparse.csr_matrix
    """Midpoint weights [V_fine, V], for masks. Rows sum to one and are not negative."""
    carry: sparse.csr_matrix
    """Weights [V_fine, V] for offsets: the old vertices keep theirs, the new ones lie on a smooth surface between.
    Linear between them, every edge of the mesh below would show as a crease."""

    def lifted(self, values: Float32[np.ndarray, "V *C"]) -> Float32[np.ndarray, "V_fine *C"]:
        """Offsets of the dense vertices on the finer mesh; exactly zero wherever all around is zero."""
        moved = self.lift @ (values != 0).astype(np.float64) > 0
        return np.where(moved, self.carry @ values.astype(np.float64), 0).astype(np.float32)


def finer(head: HeadModel) -> Finer:
    """Subdivide the dense mesh of a head with one subdivision. 0.4 s the first time.

    Shape has the weights of the first level (Catmull-Clark for quads, modified butterfly for triangles) behind one step
    of `_kept`, so that the surface is as smooth and still goes through the vertices that the tracking and the
    one-level fit put in place. Skinning weights, masks and parts are linear. Landmarks keep their triangles, whose
    corners are vertices of the finer mesh too: they stay within 0.04 mm.

    Raises:
        ValueError: the head has two subdivisions already.
    """
    if is_finer(head.name):
        raise ValueError(f"{head.name} is subdivided twice already")
    division = _division(head.dense_faces.cpu().numpy().tobytes(), len(head.parts))
    device, lift = head.template.device, division.linear
    smooth = sparse.csr_matrix(_kept(division.smooth))
    operator = sparse.csr_matrix(smooth @ scipy_matrix(head.operator))
    operator.data[np.abs(operator.data) < NEGLIGIBLE] = 0
    operator.eliminate_zeros()
    parts = _parts(lift, head)
    skin = parts == head.part_names.index("skin")

    def real(values: Float[np.ndarray, "V_fine *C"]) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.float32)).to(device)

    made = replace(
        head,
        name=head.name + MARK,
        skinning=real(lift @ head.skinning.cpu().double().numpy()),
        dense_faces=torch.from_numpy(division.triangles).to(device),
        operator=csr_tensor(operator).to(device),
        parts=torch.from_numpy(parts).to(device),
        facial_mask=real((lift @ head.facial_mask.cpu().double().numpy()) * skin),
    )
    old = sparse.identity(len(head.parts), format="csr")
    return Finer(made, lift, sparse.csr_matrix(sparse.vstack([old, smooth[len(head.parts) :]])))


@lru_cache(maxsize=2)
def _division(faces: bytes, vertices: int) -> Subdivision:
    """Split a topology, given as the bytes of its triangles."""
    triangles = np.frombuffer(faces, np.int64).reshape(-1, 3)
    quads = _quads(triangles)
    return subdivide_triangles(triangles, vertices) if quads is None else subdivide(quads, vertices)


def _quads(triangles: Int64[np.ndarray, "F 3"]) -> Int64[np.ndarray, "Q 4"] | None:
    """The quads that `subdivide` has cut along their diagonals, or None for a mesh that never had any."""
    first, second = triangles[0::2], triangles[1::2]
    if len(first) != len(second) or not np.array_equal(first[:, [0, 2]], second[:, [0, 1]]):
        return None
    return np.concatenate([first, second[:, 2:]], 1)


def _kept(smooth: sparse.csr_matrix) -> sparse.csr_matrix:
    """Weights behind which the old vertices stay: those of 2 x - S x instead of x, S being what moves them.

    Catmull-Clark pulls them inwards by 0.04 mm on average and up to 0.2 mm in the face; of that 0.002 and 0.04 remain.
    A scheme that keeps its vertices is not touched: its S is the identity.
    """
    count = smooth.get_shape()[1]
    return smooth @ (2 * sparse.identity(count, format="csr") - smooth[:count])


def _parts(lift: sparse.csr_matrix, head: HeadModel) -> np.ndarray:
    """Part of a vertex: skin as soon as it touches skin, as on the first level."""
    own, skin = head.parts.cpu().numpy(), head.part_names.index("skin")
    shares = np.stack([lift @ (own == part).astype(float) for part in range(len(head.part_names))], -1)
    return np.where(shares[:, skin] > 0, skin, shares.argmax(1)).astype(np.uint8)
