"""Train the transfer network: its batches, its losses, its schedule (paper 3.2)."""

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from expportrait_cli.fitting.losses import huber, length
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.retargeting.face import Face, Neutral, stacked
from expportrait_cli.retargeting.network import Kind, NetworkConfig, TransferNetwork, on_device
from expportrait_cli.runtime import Progress, best_device
from expportrait_cli.train.config import TransferTraining
from expportrait_cli.train.state import follow, load_state, save_state
from expportrait_cli.train.transfer.performers import Actor, expression_scale

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
    """A performer with what the network reads from the face at rest.

    That is kept in a file, as large sets do not fit into memory: of each vertex the 17 numbers of `Neutral`, and its
    chance to be drawn.
    """

    performer: Actor
    file: Path
    code: Float[Tensor, " G"]

    def read(self) -> tuple[Neutral, Float[Tensor, " P"]]:
        """Read the face at rest, and the probability of each vertex to be drawn."""
        rows = torch.from_numpy(np.load(self.file))
        points, frames, normals, curvature, chance = rows.split([3, 9, 3, 2, 1], -1)
        return Neutral(points, frames.unflatten(-1, (3, 3)), normals, curvature), chance[:, 0]


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


def fresh_network(kind: Kind, face: Face, performers: Sequence[Actor], *, seed: int) -> TransferNetwork:
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
    learners: Sequence[Actor],
    judges: Sequence[Actor],
    config: TransferTraining,
    *,
    state: Path,
    progress: Progress,
    log: Callable[[int, dict[str, float]], None],
) -> TransferNetwork:
    """Train, or go on from `state`; `log` gets the step and its figures now and then. The averaged network.

    The same performers, settings and machine give the same weights, interrupted or not.
    """
    folder = state.parent / "pupils"
    pupils, energy = _pupils(network, learners, folder)
    exam, _ = _pupils(network, list(judges)[:JUDGED], folder)
    # The people were read on the CPU; from here on all is on the run's device.
    device = best_device()
    steep = _steepness(energy).to(device)
    on_device(network, device)
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
    on_device(network, "cpu")
    return on_device(average, "cpu")


@torch.inference_mode()
def judged(network: TransferNetwork, exam: Sequence[Pupil]) -> dict[str, float]:
    """Error on people that the network never saw, as a share of what predicting no offset gives."""
    sums = {"filmed": [0.0, 0.0], "synthetic": [0.0, 0.0]}
    for pupil in exam:
        count, points = len(pupil.performer.weight), torch.arange(len(network.face.vertices))
        frames = np.unique(np.linspace(0, count - 1, min(JUDGED_FRAMES, count)).round().astype(int))
        batch = _gathered(network, [(pupil, frames, pupil.read()[0], points)], None)
        error, zero = (_offsets(network, batch) - batch.wanted).square().sum(-1), batch.wanted.square().sum(-1)
        part = sums["synthetic" if pupil.performer.is_synthetic else "filmed"]
        part[0] += float((error.mean(-1) * batch.weight).sum())
        part[1] += float((zero.mean(-1) * batch.weight).sum())
    return {name: float(np.sqrt(error / zero)) for name, (error, zero) in sums.items() if zero > 0}


def judged_by(network: TransferNetwork, performers: Sequence[Actor]) -> dict[str, float]:
    """`judged` on every frame in `JUDGED_FRAMES` of all these people."""
    with TemporaryDirectory() as folder:
        return judged(network, _pupils(network, performers, Path(folder))[0])


def _rate(config: TransferTraining, step: int) -> float:
    """Half a cosine, after a short rise."""
    low = config.rate / 50
    rise = min((step + 1) / 200, 1.0)
    return rise * (low + (config.rate - low) * 0.5 * (1 + np.cos(np.pi * step / config.steps)))


@torch.no_grad()
def _neutral(performer: Actor, face: Face) -> Neutral:
    return Neutral.of(torch.from_numpy(performer.neutral), face)


def _pupils(
    network: TransferNetwork, performers: Sequence[Actor], folder: Path
) -> tuple[list[Pupil], Float32[np.ndarray, " P"]]:
    """Read every performer once; also how far each vertex moves, as the mean over people of its mean square."""
    folder.mkdir(parents=True, exist_ok=True)
    pupils, total = [], np.zeros(len(network.face.vertices))
    for performer in performers:
        neutral = _neutral(performer, network.face)
        moved = np.mean([(frame.astype(np.float32) ** 2).sum(-1) for frame in performer.offset], 0)
        total += moved
        energy = np.sqrt(moved)
        share = BY_ENERGY * energy / max(energy.sum(), 1e-12) + (1 - BY_ENERGY) / len(energy)
        file = folder / f"{hashlib.sha256(performer.name.encode()).hexdigest()[:24]}.npy"
        columns = [neutral.points, neutral.frames.flatten(1), neutral.normals, neutral.curvature]
        np.save(file, np.column_stack([*(column.numpy() for column in columns), share]).astype(np.float32))
        pupils.append(Pupil(performer, file, network.code(neutral)))
    return pupils, (total / max(len(pupils), 1)).astype(np.float32)


def _steepness(moved: Float32[np.ndarray, " P"]) -> Float[Tensor, " P"]:
    """Weight of each vertex: the root of how much it moves, so that a quiet forehead is not forgotten for a lip."""
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
        neutral, chance = pupil.read()
        if whole:
            points = torch.arange(len(chance))
        else:
            # One perceptron for all sees each frame's vertices anew: fewer of them for the same work.
            few = config.frames if network.config.kind == "concat" else 1
            points = torch.multinomial(chance, config.vertices // few, replacement=True, generator=generator)
        rows.append((pupil, frames, neutral, points))
    return _gathered(network, rows, generator, config)


def _gathered(network, rows, generator, config: TransferTraining | None = None) -> Batch:
    """Collect a batch; with settings, blur what the network is told, so that it does not lean on any one number."""
    psi = torch.stack([torch.from_numpy(p.performer.expression[frames]) for p, frames, *_ in rows])
    jaw = torch.stack([torch.from_numpy(p.performer.jaw[frames]) for p, frames, *_ in rows])
    code = torch.stack([p.code for p, *_ in rows])
    if config is not None:
        code = code + config.code_noise * torch.randn(code.shape, generator=generator)
        psi = psi + config.psi_noise * network.psi_scale.cpu() * torch.randn(psi.shape, generator=generator)
    # Two steps: the frames are read from the file in one piece each.
    wanted = [torch.from_numpy(np.array(p.performer.offset[f])[:, at.numpy()]).float() for p, f, _, at in rows]
    weight = torch.stack([torch.from_numpy(p.performer.weight[frames]) for p, frames, *_ in rows])
    points = torch.stack([at for *_, at in rows])
    neutral = stacked([neutral.at(at) for _, _, neutral, at in rows])
    device = network.psi_scale.device
    columns = (code, psi, jaw, points, torch.stack(wanted), weight)
    return Batch(neutral.to(device), *(column.to(device) for column in columns))


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


def whole_faces(network: TransferNetwork, performers: Sequence[Actor]) -> Iterator[tuple[Actor, Neutral, Tensor]]:
    """Each performer with the rest face and the identity code that the network gives it."""
    for performer in performers:
        neutral = _neutral(performer, network.face)
        yield performer, neutral, network.code(neutral)
