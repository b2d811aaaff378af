"""People of the head model who never were, with the dynamic offsets that a face of their shape would have.

Three things that the model's expressions, the same steps for everybody, leave out, and that follow from the shape:
expressions in proportion (`proportion`), lids and lips that meet whatever their size, and folds (`folds`).
"""

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.geometry.rotations import FRONTAL, matrix
from expportrait_cli.head import HeadModel, coarse, dense, joints, landmark_model, landmarks
from expportrait_cli.head.facemesh import LID_PAIRS, LIP_PAIRS
from expportrait_cli.head.model import JAW
from expportrait_cli.head.solve import ITERATIONS_FIRST, Solver
from expportrait_cli.head.spread import LandmarkSpread
from expportrait_cli.head.state import State, rotate
from expportrait_cli.train import folds
from expportrait_cli.train.performers import Performer
from expportrait_cli.train.proportion import Proportion
from expportrait_cli.transfer.face import Face

SHARE_UPPER = 0.9
"""Part of a lid gap that the upper lid closes."""
FOCAL_PX, DISTANCE_M = 1400.0, 1.1
"""Camera that performers are tracked in."""
TURN_RAD = (0.1, 0.15, 0.05)
"""Standard deviation of their pitch, yaw and roll."""
SLACK_NOISE = 0.35
"""Standard deviation of slackness that no shape tells, against 1 for what it tells."""
ALIKE = 0.8
"""Share of frames in which both sides of the face do the same."""
OPEN_RAD = 0.4
REFERENCE = 200
"""Faces that slackness is ranked among."""


class Synthesis:
    """Makes performers of one head model."""

    def __init__(self, head: HeadModel, face: Face):
        """Measure the mean head, and how slack faces of the model are."""
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
        self.solver = Solver(landmark_model(head), focal_px=FOCAL_PX, centre_px=CROP_SIZE / 2)
        generator = torch.Generator().manual_seed(0)
        self.rest = torch.zeros(count)
        several = torch.randn(REFERENCE, count, generator=generator)
        ranks = np.array([folds.slackness(self._marks(self._neutral(beta))) for beta in several])
        self.slack_mean, self.slack_std = ranks.mean(), ranks.std()

    def _neutral(self, identity):
        shape = self.head.template + self.head.identity_basis @ identity
        return dense(self.head, shape)

    def _marks(self, verts) -> Float64[np.ndarray, "478 3"]:
        return folds.face_marks(self.head, verts)

    def performer(self, seed: int, frames: int) -> Performer:
        """One person, the same for the same seed; the first frame is at rest."""
        generator = torch.Generator().manual_seed(seed)
        identity = torch.randn(self.head.identity_basis.shape[-1], generator=generator)
        psi, jaw = random_expressions(self.head, frames, generator)
        turns = torch.randn(frames, 3, generator=generator) * torch.tensor(TURN_RAD)
        neutral = self._neutral(identity)
        told = (folds.slackness(self._marks(neutral)) - self.slack_mean) / self.slack_std
        untold = SLACK_NOISE * float(torch.randn((), generator=generator))
        slack = float(1 / (1 + np.exp(-1.5 * (told + untold))))
        faces, rises = self.faces(identity, psi, jaw, slack)
        states, steps = self.tracked(identity, faces, turns.numpy().astype(np.float64))
        return Performer(
            f"synthetic-{seed:05d}",
            f"synthetic-{seed:05d}",
            neutral[self.face.vertices].numpy(),
            np.stack([state.expression for state in states]).astype(np.float32),
            np.stack([state.jaw for state in states]).astype(np.float32),
            ((steps + rises) * self.face.mask.numpy()[:, None]).astype(np.float16),
            np.ones(frames, np.float32),
        )

    def faces(self, identity, psi, jaw, slack: float) -> tuple[Float32[Tensor, "T V 3"], Float64[np.ndarray, "T P 3"]]:
        """A person's heads in the head frame without their folds, and how these rise from them (canonical), m."""
        head, rows = self.head, self.face.vertices
        beyond = self.proportion.beyond(head.template + head.identity_basis @ identity)
        correction = torch.einsum("te,enc->tnc", psi, torch.from_numpy(beyond).float())
        canonical = self._expressed(identity, psi) + dense(head, correction)
        posed = self._jawed(canonical, joints(head, identity), matrix(jaw))
        neutral = self._neutral(identity)
        points = neutral[rows].double().numpy()
        marks, shares = self._marks(neutral), self._lid_shares(psi)
        normals = folds.normals_of(self.face, points)
        skin = folds.Skin(self.face, points, folds.expression_lines(points, marks, normals))
        rises = []
        for verts, share in zip(posed, shares, strict=True):
            moved = verts[rows].double().numpy() + self._contact(marks, self._marks(verts), share)
            rises.append(folds.heights(skin, moved, slack)[:, None] * normals)
            verts[rows] = torch.from_numpy(moved).float()
        return posed, np.stack(rises)

    def tracked(self, identity, faces, turns) -> tuple[list[State], Float64[np.ndarray, "T P 3"]]:
        """What tracking finds in the landmarks of these heads, and the steps across the view that it leaves, m.

        The tracker takes a part of what is beyond the expressions for expression, here as with real people: what the
        network learns must be what remains. Depth remains unknown to it, as to every fit of landmarks.
        """
        head, rows = self.head, self.face.vertices
        shape = identity.double().numpy()
        states, steps = [], []
        for verts, turn in zip(faces, turns, strict=True):
            R, t = rotate(turn) @ FRONTAL, np.array([0.0, 0.0, DISTANCE_M])
            marks = self._marks(verts) @ R.T + t
            seen = marks[:, :2] / marks[:, 2:] * FOCAL_PX + CROP_SIZE / 2
            states.append(state := self.solver.frame(shape, seen.astype(np.float32), iterations=ITERATIONS_FIRST))
            psi, jaw = torch.from_numpy(state.expression).float(), torch.from_numpy(state.jaw).float()
            found = self._jawed(self._expressed(identity, psi[None]), joints(head, identity), matrix(jaw[None]))[
                0, rows
            ]
            true = verts[rows].double().numpy() @ R.T + t
            found = found.numpy() @ state.rotation.T + state.translation
            step = np.zeros_like(true)
            step[:, :2] = (true[:, :2] / true[:, 2:] - found[:, :2] / found[:, 2:]) * found[:, 2:]
            beyond = step @ state.rotation
            # The skinning undone: what hangs on the jaw turns back with it.
            weight = head.skinning[rows, JAW, None].numpy()
            steps.append((1 - weight) * beyond + weight * (beyond @ matrix(jaw.double()).numpy()))
        return states, np.stack(steps)

    def _jawed(self, canonical, at, turns) -> Float32[Tensor, "T V 3"]:
        """Heads with their jaws turned, in the head frame."""
        weight, pivot = self.head.skinning[:, JAW, None], at[JAW]
        return canonical + weight * ((canonical - pivot) @ turns.mT + pivot - canonical)

    def _contact(self, rest: np.ndarray, marks: np.ndarray, share: np.ndarray) -> Float64[np.ndarray, "P 3"]:
        """Lids close by the share that the mean head's do, and lips do not pass through each other."""
        steps = np.zeros((478, 3))
        for (upper, lower), part in zip(LID_PAIRS, share, strict=True):
            excess = (marks[upper] - marks[lower])[1] - part * (rest[upper] - rest[lower])[1]
            steps[upper, 1] -= SHARE_UPPER * excess
            steps[lower, 1] += (1 - SHARE_UPPER) * excess
        for upper, lower in LIP_PAIRS:
            overlap = max(marks[lower, 1] - marks[upper, 1], 0.0)
            steps[upper, 1] += overlap / 2
            steps[lower, 1] -= overlap / 2
        return self.spread_rows @ steps[self.moved_marks]

    def _lid_shares(self, psi) -> Float64[np.ndarray, "T 6"]:
        """Opening of the mean head's lids with each expression, against its opening at rest."""
        marks = landmarks(self.head, self._expressed(torch.zeros_like(self.rest), psi)).numpy()
        rest = self._marks(self._neutral(self.rest))
        upper, lower = np.array(LID_PAIRS).T
        gaps = (marks[:, upper] - marks[:, lower])[..., 1]
        return np.clip(gaps / (rest[upper] - rest[lower])[:, 1], 0.0, 1.6)

    def _expressed(self, identity, psi):
        shape = coarse(
            self.head, identity.expand(len(psi), -1), psi, torch.zeros(len(psi), 3), torch.zeros(len(psi), 4)
        )
        return dense(self.head, shape)


def random_expressions(head: HeadModel, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Expressions of which few units are at work, both sides mostly alike, with a jaw that opens now and then."""
    names = head.expression_names
    low, high = head.expression_low.float().cpu(), head.expression_high.float().cpu()

    def draw(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator)

    twins = torch.tensor([names.index(_twin(name)) if _twin(name) in names else i for i, name in enumerate(names)])
    busy = (draw(frames, 1) * 0.3).clamp(min=0.05)
    at_work = (draw(frames, len(names)) < busy).float()
    psi = at_work * draw(frames, len(names)) ** 0.7
    alike = draw(frames, 1) < ALIKE
    psi = torch.where(alike, torch.maximum(psi, psi[:, twins]), psi)
    psi = low + (high - low) * psi if bool((low < 0).any()) else psi * high
    opening = (draw(frames) < 0.5) * draw(frames) ** 1.5 * OPEN_RAD
    sideways = 0.04 * torch.randn(frames, 2, generator=generator) * (opening > 0)[:, None]
    psi[0], opening[0], sideways[0] = 0, 0, 0
    return psi, torch.cat([opening[:, None], sideways], 1)


def _twin(name: str) -> str:
    return name.replace("Left", "Right") if "Left" in name else name.replace("Right", "Left")
