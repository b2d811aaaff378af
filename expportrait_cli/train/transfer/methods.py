"""Transfer methods that `train ablation` compares, and measures of how well each adapts to a face."""

from collections.abc import Callable, Mapping, Sequence
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
from expportrait_cli.retargeting.face import Face, Neutral, shortest_turn
from expportrait_cli.retargeting.network import TransferNetwork
from expportrait_cli.solve.solver import ITERATIONS_FIRST, Solver
from expportrait_cli.solve.state import DISTANCE_M, columns_of
from expportrait_cli.train.transfer import folds
from expportrait_cli.train.transfer.clips import FaceClip, FaceClipLike
from expportrait_cli.train.transfer.synthetic import Synthesis

FIRST_SEED = 1_000_000
"""First seed of the synthetic people of the evaluation; far from the seeds that are trained on."""
SCRIPT = 7
"""Seed of the expressions of the evaluation."""
RESAMPLES = 2000
"""Resamplings of a bootstrap."""

Predict = Callable[[FaceClipLike], Float[Tensor, "T P 3"]]


@dataclass(frozen=True)
class Errors:
    """Errors of one method for each of N people."""

    offset_mm: Float64[np.ndarray, " N"]
    """Root mean square distance of the vertices."""
    normal_deg: Float64[np.ndarray, " N"]
    """Root mean square angle of the normals."""

    def shares(self, none: "Errors") -> tuple[float, float]:
        """Mean offset and normal errors, as shares of the errors `none` without any predicted offset."""
        pairs = ((self.offset_mm, none.offset_mm), (self.normal_deg, none.normal_deg))
        return tuple(float(own.mean() / other.mean()) for own, other in pairs)  # pyright: ignore[reportReturnType]


def predictors(
    networks: Mapping[str, TransferNetwork], people: Sequence[FaceClipLike], face: Face
) -> dict[str, Predict]:
    """Make the methods, by name: no offsets (`none`), copied offsets (`direct`), and each network."""
    methods: dict[str, Predict] = {"none": _nothing, "direct": Direct(people, face)}
    return methods | {kind: Predicted(network) for kind, network in networks.items()}


def _nothing(person: FaceClipLike) -> Float[Tensor, "T P 3"]:
    return torch.zeros(*person.offset.shape)


@dataclass(frozen=True)
class Predicted:
    """A network as a method. With `shape` it is given that person's neutral face instead of the true one."""

    network: TransferNetwork
    shape: FaceClipLike | None = None

    @torch.inference_mode()
    def __call__(self, person: FaceClipLike) -> Float[Tensor, "T P 3"]:
        """Offsets of all frames."""
        face = self.network.face
        given = Neutral.of(torch.from_numpy((self.shape or person).neutral), face)
        code, psi, jaw = self.network.code(given), torch.from_numpy(person.expression), torch.from_numpy(person.jaw)
        rows = torch.arange(len(face.vertices))
        found = self.network.offsets(given, code, psi, jaw, rows=rows)
        if self.shape is None:
            return found
        # The offsets refer to the other face's surface: turn them into the local frames of this one.
        own = Neutral.of(torch.from_numpy(person.neutral), face)
        return torch.einsum("pab,pcb,tpc->tpa", own.frames, torch.linalg.inv(given.frames).mT, found)


@dataclass(frozen=True)
class Direct:
    """Copies another person's offsets of the most similar expression, rotated from their surface into this one's."""

    people: Sequence[FaceClipLike]
    face: Face

    def __call__(self, person: FaceClipLike) -> Float[Tensor, "T P 3"]:
        """Offsets of all frames."""
        names = [other.person for other in self.people]
        start = names.index(person.person) if person.person in names else 0
        order = [self.people[(start + k) % len(self.people)] for k in range(1, len(self.people) + 1)]
        giver = next(other for other in order if other.person != person.person)
        own, theirs = (np.c_[p.expression, 2 * p.jaw] for p in (person, giver))
        nearest = np.square(own[:, None] - theirs[None]).sum(-1).argmin(1)
        from_normals, to_normals = (
            vertex_normals(torch.from_numpy(p.neutral), self.face.faces) for p in (giver, person)
        )
        copied = torch.from_numpy(giver.offset[nearest].astype(np.float32))
        return torch.einsum("pab,tpb->tpa", shortest_turn(from_normals, to_normals), copied)


def errors(predict: Predict, people: Sequence[FaceClipLike], face: Face) -> Errors:
    """Measure a method against the true offsets and normals of these people."""
    distances, angles = [], []
    for person in people:
        true, found = torch.from_numpy(person.offset.astype(np.float32)), predict(person)
        weight = torch.from_numpy(person.weight / max(person.weight.sum(), 1e-9))
        distance = (found - true).square().sum(-1).mean(-1)
        rest = torch.from_numpy(person.neutral)
        angle = torch.stack(
            [angles_deg(rest + a, rest + b, face).square().mean() for a, b in zip(found, true, strict=True)]
        )
        distances.append(1000 * float((weight * distance).sum().sqrt()))
        angles.append(float((weight * angle).sum().sqrt()))
    return Errors(np.array(distances), np.array(angles))


def angles_deg(first: Float[Tensor, "*B P 3"], second: Float[Tensor, "*B P 3"], face: Face) -> Float[Tensor, "*B P"]:
    """Angles between the normals of two faces, degrees."""
    cosine = (vertex_normals(first, face.faces) * vertex_normals(second, face.faces)).sum(-1)
    return torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))


def interval(better: Errors, worse: Errors) -> tuple[float, float]:
    """95 % interval of the ratio of two methods' mean offset errors, by a bootstrap over people."""
    generator = np.random.default_rng(0)
    rows = generator.integers(len(better.offset_mm), size=(RESAMPLES, len(better.offset_mm)))
    ratio = better.offset_mm[rows].mean(1) / worse.offset_mm[rows].mean(1)
    low, high = np.percentile(ratio, [2.5, 97.5])
    return float(low), float(high)


def swap_penalty(network: TransferNetwork, people: Sequence[FaceClipLike]) -> float:
    """Relative growth of the offset error when the network is given the next person's neutral face."""
    own = errors(Predicted(network), people, network.face).offset_mm.mean()
    swapped = [
        errors(Predicted(network, people[(k + 1) % len(people)]), [person], network.face).offset_mm[0]
        for k, person in enumerate(people)
    ]
    return float(np.mean(swapped) / own - 1)


@torch.inference_mode()
def leak(network: TransferNetwork, people: Sequence[FaceClipLike]) -> tuple[float, float]:
    """Accuracy, 0..1, of a linear probe that predicts the person from the expression code, and that of chance.

    All people have the same expressions, which were tracked: accuracy above chance is identity that leaks through the
    tracking. The probe is fitted on every other frame, and tested on those between.
    """
    codes = torch.stack([network.drive(torch.from_numpy(p.expression), torch.from_numpy(p.jaw)) for p in people])
    codes = codes - codes.mean(0)
    train, test = codes[:, ::2].flatten(0, 1).double(), codes[:, 1::2].flatten(0, 1).double()
    count = len(people)
    labels = torch.eye(count).double()
    wanted = labels.repeat_interleave(codes[:, ::2].shape[1], 0) - 1 / count
    ridge = (1e-2 * (train**2).sum() / train.shape[1] + 1e-12) * torch.eye(train.shape[1]).double()
    weights = torch.linalg.solve(train.T @ train + ridge, train.T @ wanted)
    truth = torch.arange(count).repeat_interleave(codes[:, 1::2].shape[1])
    return float(((test @ weights).argmax(1) == truth).double().mean()), 1 / count


DOSES = 21
"""Faces between the least and the most slack one."""
BROWS, NASION = (105, 334), 168
FOCAL_PX = 1400.0
FINE = 12
"""Averaging steps; what they remove from the heights counts as folds."""


def wrinkle_energy(
    predict: Predict, synthesis: Synthesis, young: Tensor, old: Tensor, frame: FaceClip
) -> Float64[np.ndarray, " D"]:
    """RMS height, mm, of offsets finer than about a centimetre, for `DOSES` identities between two."""
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
class Reenactment:
    """Heads of synthetic people, posed with the dynamic offsets of a method."""

    synthesis: Synthesis
    predict: Predict

    @torch.inference_mode()
    def heads(self, seed: int, clip: FaceClip) -> Float32[Tensor, "T V 3"]:
        """Heads of the synthetic person `seed` with the expressions of a clip; head frame, m."""
        s = self.synthesis
        identity = s.identity(seed)
        rest = s.neutral(identity)[s.face.vertices].numpy()
        own = replace(clip, person=f"synthetic-{seed}", neutral=rest)
        canonical = s.expressed(identity, torch.from_numpy(clip.expression))
        canonical[:, s.face.vertices] += self.predict(own)
        return s.jawed(canonical, joints(s.head, identity), matrix(torch.from_numpy(clip.jaw)))

    def amplitudes(self, seed: int, clip: FaceClip) -> Float64[np.ndarray, " 3"]:
        """`amplitudes` of these heads."""
        return amplitudes(self.synthesis, self.heads(seed, clip))

    def cycle_deg(self, first: int, second: int, clip: FaceClip) -> float:
        """RMS angle, degrees, between the normals of `first` and those after a round trip.

        The round trip: the clip is transferred to `second`, which is tracked, and transferred back to `first`.
        """
        s = self.synthesis
        there = self.heads(second, clip)
        psi, jaw = tracked(s, second, there)
        back = replace(clip, expression=psi, jaw=jaw)
        one, two = (self.heads(first, p)[:, s.face.vertices] for p in (clip, back))
        return float(angles_deg(one, two, s.face)[:, s.face.mask > 0.5].square().mean().sqrt())


def tracked(
    synthesis: Synthesis, seed: int, heads: Float32[Tensor, "T V 3"]
) -> tuple[Float32[np.ndarray, "T E"], Float32[np.ndarray, "T 3"]]:
    """Expression and jaw (axis-angle) that the landmark solver finds in heads seen from the front."""
    solver = Solver(landmark_model(synthesis.head), focal_px=FOCAL_PX, centre_px=CROP_SIZE / 2)
    shape, states = synthesis.identity(seed).double().numpy(), []
    for verts in heads:
        marks = folds.face_marks(synthesis.head, verts) @ FRONTAL.T + np.array([0, 0, DISTANCE_M])
        seen = marks[:, :2] / marks[:, 2:] * FOCAL_PX + CROP_SIZE / 2
        states.append(solver.frame(shape, seen.astype(np.float32), iterations=ITERATIONS_FIRST))
    columns = columns_of(states)
    return columns["expression"], columns["jaw"]


def amplitudes(synthesis: Synthesis, heads: Float[Tensor, "T V 3"]) -> Float64[np.ndarray, " 3"]:
    """Standard deviation over frames of lip gap, brow height and lid gap, as shares of the outer eye distance."""
    marks = np.stack([folds.face_marks(synthesis.head, verts) for verts in heads])
    eyes = np.linalg.norm(marks[0, OUTER_EYES[0]] - marks[0, OUTER_EYES[1]])
    lips, lids = (_gaps(marks, pairs) for pairs in (LIP_PAIRS, LID_PAIRS))
    brows = (marks[:, BROWS, 1] - marks[:, NASION, None, 1]).mean(1)
    return np.array([values.std() for values in (lips, brows, lids)]) / eyes


def _gaps(marks: np.ndarray, pairs) -> np.ndarray:
    upper, lower = np.array(pairs).T
    return np.linalg.norm(marks[:, upper] - marks[:, lower], axis=-1).mean(1)
