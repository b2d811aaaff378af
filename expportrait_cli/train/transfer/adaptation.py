"""What a transfer does on faces of which everything is known: dose, cycle and amplitude."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.geometry.rotations import FRONTAL, matrix
from expportrait_cli.head import joints, landmark_model
from expportrait_cli.head.facemesh import LID_PAIRS, LIP_PAIRS, OUTER_EYES
from expportrait_cli.solve.solver import ITERATIONS_FIRST, Solver
from expportrait_cli.solve.state import DISTANCE_M, columns_of
from expportrait_cli.train.transfer import folds
from expportrait_cli.train.transfer.methods import Predict, angles_deg
from expportrait_cli.train.transfer.performers import Performer
from expportrait_cli.train.transfer.synthetic import Synthesis

DOSES = 21
BROWS, NASION = (105, 334), 168
FOCAL_PX = 1400.0
FINE = 12
"""Steps of averaging below which shape counts as folds."""


def wrinkle_energy(
    predict: Predict, synthesis: Synthesis, young: Tensor, old: Tensor, frame: Performer
) -> Float64[np.ndarray, " D"]:
    """Energy of folds, mm rms of what is finer than a centimetre, on the way from one face to another."""
    face, result = synthesis.face, []
    for dose in np.linspace(0, 1, DOSES):
        identity = ((1 - dose) * young + dose * old).float()
        points = synthesis.neutral(identity)[face.vertices]
        person = replace(frame, neutral=points.numpy())
        height = 1000 * (predict(person)[-1] * vertex_normals(points, face.faces)).sum(-1, keepdim=True)
        smooth = height
        for _ in range(FINE):
            smooth = torch.sparse.mm(face.averaging, smooth)
        result.append(float((height - smooth).square().mean().sqrt()))
    return np.array(result)


@dataclass(frozen=True)
class Theatre:
    """Heads of known people under a method."""

    synthesis: Synthesis
    predict: Predict

    @torch.inference_mode()
    def heads(self, seed: int, performer: Performer) -> Float32[Tensor, "T V 3"]:
        """A person of the cast doing what a performer does; head frame, m."""
        s = self.synthesis
        identity = s.identity(seed)
        rest = s.neutral(identity)[s.face.vertices].numpy()
        own = replace(performer, person=f"synthetic-{seed}", neutral=rest)
        canonical = s.expressed(identity, torch.from_numpy(performer.expression))
        canonical[:, s.face.vertices] += self.predict(own)
        return s.jawed(canonical, joints(s.head, identity), matrix(torch.from_numpy(performer.jaw)))

    def amplitudes(self, seed: int, performer: Performer) -> Float64[np.ndarray, " 3"]:
        """How far lips, brows and lids move: deviation over the frames, in distances between the eyes."""
        return amplitudes(self.synthesis, self.heads(seed, performer))

    def cycle_deg(self, first: int, second: int, performer: Performer) -> float:
        """Angle between a face's normals and those after a round trip over another face and its tracking (rms)."""
        s = self.synthesis
        there = self.heads(second, performer)
        psi, jaw = tracked(s, second, there)
        back = replace(performer, expression=psi, jaw=jaw)
        one, two = (self.heads(first, p)[:, s.face.vertices] for p in (performer, back))
        return float(angles_deg(one, two, s.face)[:, s.face.mask > 0.5].square().mean().sqrt())


def tracked(
    synthesis: Synthesis, seed: int, heads: Float32[Tensor, "T V 3"]
) -> tuple[Float32[np.ndarray, "T E"], Float32[np.ndarray, "T 3"]]:
    """Expression and jaw that the landmark solver finds in heads that look into a camera."""
    solver = Solver(landmark_model(synthesis.head), focal_px=FOCAL_PX, centre_px=CROP_SIZE / 2)
    shape, states = synthesis.identity(seed).double().numpy(), []
    for verts in heads:
        marks = folds.face_marks(synthesis.head, verts) @ FRONTAL.T + np.array([0, 0, DISTANCE_M])
        seen = marks[:, :2] / marks[:, 2:] * FOCAL_PX + CROP_SIZE / 2
        states.append(solver.frame(shape, seen.astype(np.float32), iterations=ITERATIONS_FIRST))
    columns = columns_of(states)
    return columns["expression"], columns["jaw"]


def amplitudes(synthesis: Synthesis, heads: Float[Tensor, "T V 3"]) -> Float64[np.ndarray, " 3"]:
    """Deviation over the frames of the lips' gap, the brows' height and the lids' gap, in distances of the eyes."""
    marks = np.stack([folds.face_marks(synthesis.head, verts) for verts in heads])
    eyes = np.linalg.norm(marks[0, OUTER_EYES[0]] - marks[0, OUTER_EYES[1]])
    lips, lids = (_gaps(marks, pairs) for pairs in (LIP_PAIRS, LID_PAIRS))
    brows = (marks[:, BROWS, 1] - marks[:, NASION, None, 1]).mean(1)
    return np.array([values.std() for values in (lips, brows, lids)]) / eyes


def _gaps(marks: np.ndarray, pairs) -> np.ndarray:
    upper, lower = np.array(pairs).T
    return np.linalg.norm(marks[:, upper] - marks[:, lower], axis=-1).mean(1)
