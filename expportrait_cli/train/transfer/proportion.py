"""Expressions in proportion to a face: deformation transfer from the mean head (Sumner and Popovic 2004)."""

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Float64
from scipy.sparse.linalg import splu
from torch import Tensor

from expportrait_cli.geometry.mesh import face_normals, normalize
from expportrait_cli.head import HeadModel

ANCHOR = 1e-3
"""How firmly each vertex stays at the plain step, against the gradients: it fixes what gradients leave open, the place
of each piece of the mesh."""


class Proportion:
    """Steps of a head model's expressions on other identities."""

    def __init__(self, head: HeadModel):
        """Measure how each expression stretches and turns every triangle of the mean head."""
        self.faces = head.faces.cpu().long()
        self.template = head.template.double().cpu()
        self.steps = head.expression_basis.double().cpu().permute(2, 0, 1)
        at_rest = self._edges(self.template)
        self.gradients = self._edges(self.template + self.steps) @ torch.linalg.inv(at_rest) - torch.eye(3).double()

    def _edges(self, verts: Float[Tensor, "*B N 3"]) -> Float[Tensor, "*B F 3 3"]:
        """Two sides of each triangle and its unit normal, as columns."""
        a, b, c = (verts.index_select(-2, self.faces[:, corner]) for corner in range(3))
        return torch.stack([b - a, c - a, normalize(face_normals(verts, self.faces))], -1)

    def beyond(self, coarse_neutral: Float[Tensor, "N 3"]) -> Float64[np.ndarray, "E N 3"]:
        """What each expression does to a face in proportion, less the model's own step; m at full weight.

        Least squares over the sides of the face's own triangles, each turned and stretched as the mean head's is.
        """
        verts = coarse_neutral.double()
        ends = torch.cat([self.faces[:, [0, 1]], self.faces[:, [1, 2]], self.faces[:, [2, 0]]])
        sides = verts[ends[:, 0]] - verts[ends[:, 1]]
        gradients = torch.cat([self.gradients] * 3, 1)
        wanted = torch.einsum("efab,fb->efa", gradients, sides)
        weight = self._cotangents(verts).numpy()
        count, rows = len(verts), np.arange(len(ends))
        incidence = sp.csr_matrix(
            (np.r_[np.ones(len(ends)), -np.ones(len(ends))], (np.r_[rows, rows], ends.T.reshape(-1).numpy())),
            (len(ends), count),
        )
        weighted = sp.diags(weight) @ incidence
        factor = splu((incidence.T @ weighted + ANCHOR * sp.eye(count)).tocsc())
        plain = self.steps.permute(1, 0, 2).reshape(count, -1).numpy()
        pull = weighted.T @ wanted.permute(1, 0, 2).reshape(len(ends), -1).numpy() + ANCHOR * plain
        return (factor.solve(pull) - plain).reshape(count, -1, 3).transpose(1, 0, 2)

    def _cotangents(self, verts: Float[Tensor, "N 3"]) -> Float[Tensor, " F_3"]:
        """Half the cotangent opposite each side, at least a little: obtuse triangles must not pull backwards."""
        weights = []
        for corner in (2, 0, 1):
            here, left, right = (verts[self.faces[:, (corner + k) % 3]] for k in range(3))
            u, v = left - here, right - here
            area = torch.linalg.cross(u, v).norm(dim=-1)
            weights.append((u * v).sum(-1) / (2 * area.clamp(min=1e-12)))
        return torch.cat(weights).clamp(0.05, 5.0)
