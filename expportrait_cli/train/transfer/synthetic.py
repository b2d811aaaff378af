"""Synthetic people for training: random identities and expressions of a head model, with folds as dynamic offsets."""

from functools import cache
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Float32, Float64
from scipy.sparse.linalg import splu
from torch import Tensor

from expportrait_cli.geometry.mesh import face_normals, normalize
from expportrait_cli.geometry.rotations import matrix
from expportrait_cli.head import HeadModel, coarse, dense, joints, landmarks
from expportrait_cli.head.facemesh import LID_PAIRS, LIP_PAIRS, LandmarkSpread
from expportrait_cli.head.model import JAW
from expportrait_cli.retargeting.face import Face
from expportrait_cli.retargeting.gaps import UPPER_SHARE
from expportrait_cli.runtime import Progress, counted
from expportrait_cli.train.transfer import folds
from expportrait_cli.train.transfer.clips import SYNTHETIC, FaceClip, Stored, stored

ANCHOR = 1e-3
"""Weight of the model's own displacement of each vertex, relative to the gradients: it fixes the position of each
connected component of the mesh, which gradients leave undetermined."""


class Proportion:
    """Deformation transfer of a head model's expressions from its mean head to other identities."""

    def __init__(self, head: HeadModel):
        """Compute the deformation gradient of every triangle of the mean head by each expression."""
        self.faces = head.faces.cpu().long()
        self.template = head.template.double().cpu()
        self.steps = head.expression_basis.double().cpu().permute(2, 0, 1)
        at_rest = self._edges(self.template)
        self.gradients = self._edges(self.template + self.steps) @ torch.linalg.inv(at_rest) - torch.eye(3).double()

    def _edges(self, verts: Float[Tensor, "*B N 3"]) -> Float[Tensor, "*B F 3 3"]:
        """Two sides of each triangle, and its unit normal, as the columns of a matrix."""
        a, b, c = (verts.index_select(-2, self.faces[:, corner]) for corner in range(3))
        return torch.stack([b - a, c - a, normalize(face_normals(verts, self.faces))], -1)

    def beyond(self, coarse_neutral: Float[Tensor, "N 3"]) -> Float64[np.ndarray, "E N 3"]:
        """Corrections to the expression basis for this face, m at coefficient 1.

        With them, each triangle of the face is deformed by the mean head's gradient; least squares over its sides.
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
        """Half the cotangent of the angle opposite each side, clamped to 0.05..5, as it may be negative."""
        weights = []
        for corner in (2, 0, 1):
            here, left, right = (verts[self.faces[:, (corner + k) % 3]] for k in range(3))
            u, v = left - here, right - here
            area = torch.linalg.cross(u, v).norm(dim=-1)
            weights.append((u * v).sum(-1) / (2 * area.clamp(min=1e-12)))
        return torch.cat(weights).clamp(0.05, 5.0)


SLACK_NOISE = 0.35
"""Standard deviation of the random part of slackness; the part that follows from the shape has 1."""
ALIKE = 0.8
"""Share of frames in which the expressions of both sides of the face are equal."""
OPEN_RAD = 0.4
"""Largest opening of the jaw."""
REFERENCE = 200
"""Random faces that give the mean and deviation of slackness."""


class Synthesis:
    """Makes clips of synthetic people of one head model."""

    def __init__(self, head: HeadModel, face: Face):
        """Compute the expression gradients of the mean head, and the distribution of slackness in the model."""
        self.head, self.face = head, face
        self.proportion = Proportion(head)
        count = head.identity_basis.shape[-1]
        spread = LandmarkSpread(head, np.zeros(count, np.float32))
        rows = np.full(len(head.facial_mask), -1)
        rows[spread.vertices] = np.arange(len(spread.vertices))
        inside = rows[face.vertices]
        self.moved_marks = np.unique(np.array(LID_PAIRS + LIP_PAIRS))
        near = spread.matrix[inside][:, self.moved_marks]
        self.spread_rows = np.where((inside >= 0)[:, None], near, 0.0)
        generator = torch.Generator().manual_seed(0)
        self.rest = torch.zeros(count)
        several = torch.randn(REFERENCE, count, generator=generator)
        ranks = np.array([folds.slackness(folds.face_marks(head, self.neutral(beta))) for beta in several])
        self.slack_mean, self.slack_std = ranks.mean(), ranks.std()

    def neutral(self, identity: Float32[Tensor, " K"]) -> Float32[Tensor, "V 3"]:
        """Dense neutral head of an identity; head frame, m."""
        shape = self.head.template + self.head.identity_basis @ identity
        return dense(self.head, shape)

    def identity(self, seed: int) -> Float32[Tensor, " K"]:
        """Draw the identity coefficients of a synthetic person, standard normal, from a seed."""
        return torch.randn(self.head.identity_basis.shape[-1], generator=torch.Generator().manual_seed(seed))

    def clip(self, seed: int, frames: int, *, script: int | None = None) -> FaceClip:
        """Make a clip of the synthetic person `seed`; the first frame is neutral.

        Expressions are random, by `seed`; or by `script`, if given: people with the same `script` then have the same
        expressions.
        """
        identity = self.identity(seed)
        generator = torch.Generator().manual_seed(seed + 1_000_003)
        source = generator if script is None else torch.Generator().manual_seed(script)
        psi, jaw = random_expressions(self.head, frames, source)
        neutral = self.neutral(identity)
        by_shape = (folds.slackness(folds.face_marks(self.head, neutral)) - self.slack_mean) / self.slack_std
        at_random = SLACK_NOISE * float(torch.randn((), generator=generator))
        slack = float(1 / (1 + np.exp(-1.5 * (by_shape + at_random))))
        neutral, offset = neutral[self.face.vertices].numpy(), self.offsets(identity, psi, jaw, slack)
        name, ones = person_name(seed), np.ones(frames, np.float32)
        return FaceClip(name, name, neutral, psi.numpy(), jaw.numpy(), offset.astype(np.float16), ones)

    def offsets(
        self, identity: Float32[Tensor, " K"], psi: Float32[Tensor, "T E"], jaw: Float32[Tensor, "T 3"], slack: float
    ) -> Float32[np.ndarray, "T P 3"]:
        """Dynamic offsets of a synthetic person, beyond the model's own expressions; canonical, m."""
        head, rows = self.head, self.face.vertices
        beyond = self.proportion.beyond(head.template + head.identity_basis @ identity)
        correction = dense(head, torch.einsum("te,enc->tnc", psi, torch.from_numpy(beyond).float()))
        neutral, turns = self.neutral(identity), matrix(jaw)
        posed = self.jawed(self.expressed(identity, psi) + correction, joints(head, identity), turns)
        points, marks = neutral[rows].double().numpy(), folds.face_marks(head, neutral)
        normals = folds.normals_of(self.face, points)
        skin = folds.Skin(self.face, points, folds.expression_lines(points, marks, normals))
        weight = head.skinning[rows, JAW, None].numpy()
        result = []
        for t, share in enumerate(self._lid_shares(psi)):
            step = self._contact(marks, folds.face_marks(head, posed[t]), share)
            rise = folds.heights(skin, posed[t, rows].double().numpy() + step, slack)[:, None] * normals
            # The skinning is undone: what moves with the jaw is rotated back.
            step = (1 - weight) * step + weight * (step @ turns[t].double().numpy())
            result.append(correction[t, rows].numpy() + step + rise)
        return (np.stack(result) * self.face.mask.numpy()[:, None]).astype(np.float32)

    def jawed(
        self, canonical: Float32[Tensor, "T V 3"], at: Float32[Tensor, "6 3"], turns: Float32[Tensor, "T 3 3"]
    ) -> Float32[Tensor, "T V 3"]:
        """Rotate the jaws of canonical heads about their joint in `at`; head frame, m."""
        weight, pivot = self.head.skinning[:, JAW, None], at[JAW]
        return canonical + weight * ((canonical - pivot) @ turns.mT + pivot - canonical)

    def _contact(self, rest: np.ndarray, marks: np.ndarray, share: np.ndarray) -> Float64[np.ndarray, "P 3"]:
        """Displacements, m, that give lids the opening `share` of that at rest, and move apart lips that overlap."""
        steps = np.zeros((478, 3))
        for (upper, lower), part in zip(LID_PAIRS, share, strict=True):
            excess = (marks[upper] - marks[lower])[1] - part * (rest[upper] - rest[lower])[1]
            steps[upper, 1] -= UPPER_SHARE * excess
            steps[lower, 1] += (1 - UPPER_SHARE) * excess
        for upper, lower in LIP_PAIRS:
            overlap = max(marks[lower, 1] - marks[upper, 1], 0.0)
            steps[upper, 1] += overlap / 2
            steps[lower, 1] -= overlap / 2
        return self.spread_rows @ steps[self.moved_marks]

    def _lid_shares(self, psi) -> Float64[np.ndarray, "T 6"]:
        """Opening of the mean head's lids in each frame, as a share of that at rest."""
        marks = landmarks(self.head, self.expressed(torch.zeros_like(self.rest), psi)).numpy()
        rest = folds.face_marks(self.head, self.neutral(self.rest))
        upper, lower = np.array(LID_PAIRS).T
        gaps = (marks[:, upper] - marks[:, lower])[..., 1]
        return np.clip(gaps / (rest[upper] - rest[lower])[:, 1], 0.0, 1.6)

    def expressed(self, identity: Float32[Tensor, " K"], psi: Float32[Tensor, "T E"]) -> Float32[Tensor, "T V 3"]:
        """Dense canonical heads with the model's own expressions, jaw at rest; head frame, m."""
        shape = coarse(
            self.head, identity.expand(len(psi), -1), psi, torch.zeros(len(psi), 3), torch.zeros(len(psi), 4)
        )
        return dense(self.head, shape)


TYPICAL = 0.87
"""For models with signed components: norm of the expression, in full weights, as RMS over the frames of tracked clips
of people who talk. Few frames differ from it by more than a factor of two."""


def random_expressions(head: HeadModel, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random expressions [T, E] and jaw rotations [T, 3] (rad) as tracking finds them; the first frame is neutral."""
    signed = bool((head.expression_low < 0).any())
    psi = _random_components(head, frames, generator) if signed else _random_units(head, frames, generator)
    opening = (_draw(generator, frames) < 0.5) * _draw(generator, frames) ** 1.5 * OPEN_RAD
    sideways = 0.04 * torch.randn(frames, 2, generator=generator) * (opening > 0)[:, None]
    psi[0], opening[0], sideways[0] = 0, 0, 0
    return psi, torch.cat([opening[:, None], sideways], 1)


def _draw(generator: torch.Generator, *size: int) -> Tensor:
    return torch.rand(*size, generator=generator)


def _random_units(head: HeadModel, frames: int, generator: torch.Generator) -> Float32[Tensor, "T E"]:
    """Random expression units: few are active in a frame; in `ALIKE` of the frames, left and right are equal."""
    names = head.expression_names
    twins = torch.tensor([names.index(_twin(name)) if _twin(name) in names else i for i, name in enumerate(names)])
    busy = (_draw(generator, frames, 1) * 0.3).clamp(min=0.05)
    at_work = (_draw(generator, frames, len(names)) < busy).float()
    psi = at_work * _draw(generator, frames, len(names)) ** 0.7
    alike = _draw(generator, frames, 1) < ALIKE
    return torch.where(alike, torch.maximum(psi, psi[:, twins]), psi) * head.expression_high.float().cpu()


def _random_components(head: HeadModel, frames: int, generator: torch.Generator) -> Float32[Tensor, "T E"]:
    """Random signed components, about normal.

    Their spread is proportional to how far they move the face: tracking leaves those near 0 that no landmark shows.
    """
    steps = dense(head, head.expression_basis.permute(2, 0, 1))[:, head.facial_mask > 0].cpu()
    moved = steps.square().sum((1, 2)).sqrt()
    spread = TYPICAL * head.expression_full.float().cpu() * moved / moved.norm().clamp(min=1e-12)
    strength = 0.5 + 0.86 * _draw(generator, frames, 1)
    psi = strength * spread * torch.randn(frames, len(spread), generator=generator)
    return psi.clamp(head.expression_low.float().cpu(), head.expression_high.float().cpu())


def _twin(name: str) -> str:
    return name.replace("Left", "Right") if "Left" in name else name.replace("Right", "Left")


def synthetic_clips(
    head: HeadModel, face: Face, count: int, frames: int, *, folder: Path, progress: Progress
) -> list[Stored]:
    """Clips of the synthetic people 0 to `count` - 1; kept in `folder`, which must be for this head model only."""
    synthesis = cache(lambda: Synthesis(head, face))

    def clip(seed: int) -> Stored:
        name = person_name(seed)
        return stored(folder / f"{seed:05d}-{frames}", name, name, lambda: synthesis().clip(seed, frames))

    return [clip(seed) for seed in counted(range(count), count, progress)]


def person_name(seed: int) -> str:
    """Name of the synthetic person, and of their clip."""
    return f"{SYNTHETIC}-{seed:05d}"
