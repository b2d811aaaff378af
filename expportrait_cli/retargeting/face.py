"""The part of a neutral head that moves, as the transfer network sees it (V_neutral of paper Eq. 8)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from expportrait_cli.geometry.mesh import averaging, vertex_normals
from expportrait_cli.head import HeadModel, dense

CODE_POINTS = 1200
"""Vertices that the identity code is read from: the code is smooth, so that every tenth is enough."""
SMOOTHING = (4, 32)
"""Steps of averaging whose remainder is the curvature: of about 2 and 6 edges' width."""


@dataclass(frozen=True)
class Face:
    """Constants of a head model's face: `P` dense vertices where the facial mask is above 0."""

    vertices: Int64[np.ndarray, " P"]
    faces: Int64[Tensor, "F_face 3"]
    """Triangles between them, as indices into `vertices`."""
    mask: Float32[Tensor, " P"]
    template: Float32[Tensor, "P 3"]
    """Mean head, head frame, m."""
    normals: Float32[Tensor, "P 3"]
    """Of the mean head."""
    averaging: Tensor
    """Sparse [P, P]: each vertex becomes half itself, half the mean of its neighbours."""
    code_rows: Int64[Tensor, " S"]
    """Rows of the vertices that the identity code is read from."""

    @classmethod
    def of(cls, head: HeadModel) -> "Face":
        """The face of a head model."""
        mask = head.facial_mask.float().cpu()
        vertices = torch.nonzero(mask > 0)[:, 0]
        index = torch.full((len(mask),), -1)
        index[vertices] = torch.arange(len(vertices))
        whole = index[head.dense_faces.cpu()]
        faces = whole[(whole >= 0).all(1)]
        template = dense(head, head.template).float().cpu()[vertices]
        step = max(len(vertices) // CODE_POINTS, 1)
        return cls(
            vertices.numpy(),
            faces,
            mask[vertices],
            template,
            vertex_normals(template, faces),
            averaging(faces, len(vertices)),
            torch.arange(0, len(vertices), step),
        )


@dataclass(frozen=True)
class Neutral:
    """A person's face at rest, with what the network reads from it."""

    points: Float32[Tensor, "*B P 3"]
    """Head frame, m, with the template's place, turn and size (Umeyama): rigid motion and size are no shape."""
    frames: Float32[Tensor, "*B P 3 3"]
    """Shortest turn from the mean head's normal to the person's, times the person's size: takes steps on the mean
    head's surface to steps on theirs."""
    normals: Float32[Tensor, "*B P 3"]
    curvature: Float32[Tensor, "*B P 2"]
    """What averaging over the surface leaves along the normal, at two widths, mm."""

    @classmethod
    def of(cls, verts: Float32[Tensor, "P 3"], face: Face) -> "Neutral":
        """Read a neutral face, whatever its place, turn and size."""
        turn, scale, points = _aligned(verts, face.template)
        normals = vertex_normals(points, face.faces)
        # The turn that leads back from the aligned head, so that steps come out in the axes of `verts`.
        frames = scale * (turn.T @ shortest_turn(face.normals, normals))
        smooth, rest = points, []
        for step in range(max(SMOOTHING)):
            smooth = torch.sparse.mm(face.averaging, smooth)
            if step + 1 in SMOOTHING:
                rest.append(1000 * ((points - smooth) * normals).sum(-1))
        return cls(points, frames, normals, torch.stack(rest, -1))

    def at(self, rows: Int64[Tensor, " R"]) -> "Neutral":
        """The same person at some vertices only."""
        return Neutral(*(getattr(self, field.name)[rows] for field in fields(Neutral)))


def stacked(people: Sequence[Neutral]) -> Neutral:
    """Several people, of as many vertices each, along a first axis."""
    return Neutral(*(torch.stack([getattr(p, field.name) for p in people]) for field in fields(Neutral)))


def _aligned(points: Float[Tensor, "P 3"], to: Float[Tensor, "P 3"]) -> tuple[Tensor, Tensor, Tensor]:
    """Turn and size of points against others (Umeyama 1991), and the points with both taken away."""
    centre, goal = points.mean(0), to.mean(0)
    a, b = points - centre, to - goal
    u, s, vh = torch.linalg.svd(b.T @ a)
    sign = torch.ones(3, dtype=s.dtype)
    sign[2] = torch.sign(torch.linalg.det(u @ vh))
    turn = u @ torch.diag(sign) @ vh
    scale = (a * a).sum() / (s * sign).sum()
    return turn, scale, a @ turn.T / scale + goal


def shortest_turn(start: Float[Tensor, "P 3"], end: Float[Tensor, "P 3"]) -> Float[Tensor, "P 3 3"]:
    """Rotation of least angle from one unit vector to another; they must not be opposite."""
    axis = torch.linalg.cross(start, end)
    cosine = (start * end).sum(-1).clamp(min=-0.9)
    x, y, z = axis.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)
    return torch.eye(3) + skew + skew @ skew / (1 + cosine)[:, None, None]
