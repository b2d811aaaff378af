"""Train the transfer network: its batches, its losses, its schedule (paper 3.2)."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from expportrait_cli.fitting.losses import huber, length
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.retargeting.face import Face, Neutral, stacked
from expportrait_cli.retargeting.network import Kind, NetworkConfig, TransferNetwork
from expportrait_cli.runtime import Progress
from expportrait_cli.train.config import TransferTraining
from expportrait_cli.train.state import follow, load_state, save_state
from expportrait_cli.train.transfer.performers import Performer, expression_scale

MM = 1000.0
HUBER_MM = 0.5
NORMALS, LAPLACIAN, CHANGE, COEFFICIENTS = 5.0, 0.1, 0.1, 1e-3
"""Weights of the losses beside that of the offsets (mm): one minus the cosine of normals, what averaging leaves of the
error, the change from frame to frame, and the square of the coefficients."""
WHOLE_EVERY = 8
"""Steps between those that see a whole face, for its normals."""
BY_ENERGY = 0.7
"""Share of the vertices in a batch that are drawn where offsets are large."""
STEEP = 4.0
"""Largest weight of a vertex."""
JUDGED, JUDGED_FRAMES = 24, 8
"""Held-out performers, and frames of each, that the curve is measured on."""


@dataclass(frozen=True)
class Pupil:
    """A performer with what the network reads from the face at rest."""

    performer: Performer
    neutral: Neutral
    code: Float[Tensor, " G"]
    chance: Float[Tensor, " P"]
    """Of each vertex to be drawn."""


@dataclass(frozen=True)
class Batch:
    """Some frames of several people at some vertices each."""

    neutral: Neutral
    code: Float[Tensor, "B G"]
    psi: Float[Tensor, "B T E"]
    jaw: Float[Tensor, "B T 3"]
    rows: Int64[Tensor, "B R"]
    wanted: Float[Tensor, "B T R 3"]
    weight: Float[Tensor, "B T"]


def fresh_network(kind: Kind, face: Face, performers: Sequence[Performer], *, seed: int) -> TransferNetwork:
    """A network at its start: random weights, and the identity code and the scales of these performers."""
    torch.manual_seed(seed)
    network = TransferNetwork(NetworkConfig(kind, expression=performers[0].expression.shape[1]), face)
    network.psi_scale.copy_(expression_scale(performers))
    faces = torch.stack([_neutral(p, face).points[face.code_rows] for p in performers])
    network.code_mean.copy_(faces.mean(0))
    flat = (faces - network.code_mean).flatten(1)
    _, size, axes = torch.linalg.svd(flat, full_matrices=False)
    keep = min(len(network.code_basis), len(size), len(performers) - 1)
    # Whitened: each component divided by its deviation; those that few people have would be noise.
    deviation = size[:keep] / np.sqrt(max(len(performers) - 1, 1))
    basis = axes[:keep] / deviation.clamp(min=0.05 * deviation[0])[:, None]
    network.code_basis[:keep] = basis.unflatten(1, network.code_mean.shape)
    return network


def train(
    network: TransferNetwork,
    learners: Sequence[Performer],
    judges: Sequence[Performer],
    config: TransferTraining,
    *,
    state: Path,
    progress: Progress,
    log: Callable[[int, dict[str, float]], None],
) -> TransferNetwork:
    """Train, or go on from `state`; `log` gets the step and its figures now and then. The averaged network.

    The same performers, settings and machine give the same weights, interrupted or not.
    """
    pupils = [_pupil(network, performer) for performer in learners]
    exam = [_pupil(network, performer) for performer in list(judges)[:JUDGED]]
    steep = _steepness(learners)
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.rate, weight_decay=config.decay)
    average = copy.deepcopy(network)
    begin = load_state(state, network, average, optimizer, generator)
    for step in range(begin, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = _rate(config, step)
        batch = _batch(network, pupils, config, generator, whole=step % WHOLE_EVERY == WHOLE_EVERY - 1)
        loss = _loss(network, batch, steep)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        follow(average.parameters(), network.parameters(), min(config.average, (step + 1) / (step + 10)))
        if (step + 1) % config.report_every == 0 or step + 1 == config.steps:
            log(step + 1, {"loss": float(loss.detach()), **judged(average, exam)})
            save_state(state, step + 1, network, average, optimizer, generator)
        progress(step + 1, config.steps)
    return average


@torch.inference_mode()
def judged(network: TransferNetwork, exam: Sequence[Pupil]) -> dict[str, float]:
    """Error on people that the network never saw, as a share of what predicting no offset gives."""
    sums = {"filmed": [0.0, 0.0], "synthetic": [0.0, 0.0]}
    for pupil in exam:
        count = len(pupil.performer.weight)
        frames = np.unique(np.linspace(0, count - 1, min(JUDGED_FRAMES, count)).round().astype(int))
        batch = _gathered(network, [(pupil, frames, torch.arange(len(pupil.chance)))], None)
        error, zero = (_offsets(network, batch) - batch.wanted).square().sum(-1), batch.wanted.square().sum(-1)
        part = sums["synthetic" if pupil.performer.is_synthetic else "filmed"]
        part[0] += float((error.mean(-1) * batch.weight).sum())
        part[1] += float((zero.mean(-1) * batch.weight).sum())
    return {name: float(np.sqrt(error / zero)) for name, (error, zero) in sums.items() if zero > 0}


def judged_by(network: TransferNetwork, performers: Sequence[Performer]) -> dict[str, float]:
    """`judged` on every frame in `JUDGED_FRAMES` of all these people."""
    return judged(network, [_pupil(network, performer) for performer in performers])


def _rate(config: TransferTraining, step: int) -> float:
    """Half a cosine, after a short rise."""
    low = config.rate / 50
    rise = min((step + 1) / 200, 1.0)
    return rise * (low + (config.rate - low) * 0.5 * (1 + np.cos(np.pi * step / config.steps)))


@torch.no_grad()
def _neutral(performer: Performer, face: Face) -> Neutral:
    return Neutral.of(torch.from_numpy(performer.neutral), face)


def _pupil(network: TransferNetwork, performer: Performer) -> Pupil:
    neutral = _neutral(performer, network.face)
    energy = np.sqrt((performer.offset.astype(np.float32) ** 2).sum(-1).mean(0))
    share = BY_ENERGY * energy / max(energy.sum(), 1e-12) + (1 - BY_ENERGY) / len(energy)
    return Pupil(performer, neutral, network.code(neutral), torch.from_numpy(share.astype(np.float32)))


def _steepness(performers: Sequence[Performer]) -> Float[Tensor, " P"]:
    """Weight of each vertex: the root of how much it moves, so that a quiet forehead is not forgotten for a lip."""
    moved = np.mean([(p.offset.astype(np.float32) ** 2).sum(-1).mean(0) for p in performers], 0)
    weight = np.sqrt(np.sqrt(moved))
    return torch.from_numpy(np.minimum(weight / max(weight.mean(), 1e-12), STEEP).astype(np.float32))


def _batch(network, pupils: Sequence[Pupil], config: TransferTraining, generator, *, whole: bool) -> Batch:
    """Draw people, consecutive frames in pairs, and vertices; a whole face where its normals are wanted."""
    favour = torch.tensor([1.0 if p.performer.is_synthetic else config.filmed for p in pupils])
    count = 1 if whole else config.people
    chosen = torch.multinomial(favour, count, replacement=True, generator=generator)
    rows = []
    for index in chosen.tolist():
        pupil = pupils[index]
        weight = torch.from_numpy(pupil.performer.weight[:-1] + 1e-3)
        first = torch.multinomial(weight, config.frames // 2, replacement=True, generator=generator)
        frames = torch.stack([first, first + 1], 1).flatten().numpy()
        if whole:
            points = torch.arange(len(pupil.chance))
        else:
            # One perceptron for all sees each frame's vertices anew: fewer of them for the same work.
            few = config.frames if network.config.kind == "concat" else 1
            points = torch.multinomial(pupil.chance, config.vertices // few, replacement=True, generator=generator)
        rows.append((pupil, frames, points))
    return _gathered(network, rows, generator, config)


def _gathered(network, rows, generator, config: TransferTraining | None = None) -> Batch:
    """Collect a batch; with settings, blur what the network is told, so that it does not lean on any one number."""
    psi = torch.stack([torch.from_numpy(p.performer.expression[frames]) for p, frames, _ in rows])
    jaw = torch.stack([torch.from_numpy(p.performer.jaw[frames]) for p, frames, _ in rows])
    code = torch.stack([p.code for p, _, _ in rows])
    if config is not None:
        code = code + config.code_noise * torch.randn(code.shape, generator=generator)
        psi = psi + config.psi_noise * network.psi_scale * torch.randn(psi.shape, generator=generator)
    wanted = [torch.from_numpy(p.performer.offset[frames][:, points.numpy()]).float() for p, frames, points in rows]
    weight = torch.stack([torch.from_numpy(p.performer.weight[frames]) for p, frames, _ in rows])
    points = torch.stack([points for _, _, points in rows])
    neutral = stacked([p.neutral.at(points) for p, _, points in rows])
    return Batch(neutral, code, psi, jaw, points, torch.stack(wanted), weight)


def _offsets(network, batch: Batch) -> Float[Tensor, "B T R 3"]:
    return network.offsets(batch.neutral, batch.code, batch.psi, batch.jaw, rows=batch.rows)


def _loss(network: TransferNetwork, batch: Batch, steep: Float[Tensor, " P"]) -> Float[Tensor, ""]:
    found = _offsets(network, batch)
    error = MM * (found - batch.wanted)
    weight = batch.weight[..., None] * steep[batch.rows][:, None]
    loss = (weight * huber(length(error), HUBER_MM)).mean()
    change = error[:, 1::2] - error[:, ::2]
    loss = loss + CHANGE * (weight[:, 1::2] * huber(length(change), HUBER_MM)).mean()
    if network.config.kind != "concat":
        loss = loss + COEFFICIENTS * network.coefficients(batch.code, batch.psi, batch.jaw).square().mean()
    if len(batch.rows) == 1:
        loss = loss + _surface_loss(network.face, batch, found, error)
    return loss


def _surface_loss(face: Face, batch: Batch, found, error) -> Float[Tensor, ""]:
    """Normals and roughness of one whole face."""
    at_rest = batch.neutral.points[0]
    cosine = (
        vertex_normals(at_rest + found[0], face.faces) * vertex_normals(at_rest + batch.wanted[0], face.faces)
    ).sum(-1)
    columns = error[0].transpose(0, 1).flatten(1)
    rough = columns - torch.sparse.mm(face.averaging, columns)
    weight = batch.weight[0]
    return NORMALS * (weight[:, None] * (1 - cosine)).mean() + LAPLACIAN * rough.abs().mean() * weight.mean()


def whole_faces(
    network: TransferNetwork, performers: Sequence[Performer]
) -> Iterator[tuple[Performer, Neutral, Tensor]]:
    """Each performer with the rest face and the identity code that the network gives it."""
    for performer in performers:
        neutral = _neutral(performer, network.face)
        yield performer, neutral, network.code(neutral)
