"""Training loop of the transfer network: batches, losses, learning rate (paper 3.2)."""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from scipy.linalg import eigh
from torch import Tensor

from expportrait_cli.fitting.losses import huber, length
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.retargeting.face import Face, Neutral, aligned, stacked
from expportrait_cli.retargeting.network import Kind, NetworkConfig, TransferNetwork, on_device
from expportrait_cli.runtime import Progress, Stage, best_device, counted
from expportrait_cli.train.config import TransferTraining
from expportrait_cli.train.state import follow, load_state, save_state
from expportrait_cli.train.transfer.clips import FaceClipLike, expression_scale

MM = 1000.0
HUBER_MM = 0.5
"""Offset error, mm, at which the Huber loss turns from quadratic to linear."""
NORMALS, LAPLACIAN, CHANGE, COEFFICIENTS = 5.0, 0.1, 0.1, 1e-3
"""Loss weights, where that of the offsets (mm) has 1: of one minus the cosine of normals, of the roughness of the error
(mm), of the error of the change between frames (mm), and of the squared coefficients."""
WHOLE_EVERY = 8
"""Interval, in steps, of the batches with all vertices of a face, which the loss of normals needs."""
BY_ENERGY = 0.7
"""Share of the vertices of a batch that are sampled in proportion to their offsets; the rest are uniform."""
STEEP = 4.0
"""Largest loss weight of a vertex, where the mean is 1."""
JUDGED, JUDGED_FRAMES = 24, 8
"""Most held-out clips, and most frames of each, on which the validation error is measured."""


@dataclass(frozen=True)
class PreparedClip:
    """A clip with the network's inputs from its neutral face.

    `file` has for each vertex the 17 numbers of `Neutral` and the probability that it is sampled: large datasets do not
    fit into memory. `code` is the identity code.
    """

    clip: FaceClipLike
    file: Path
    code: Float[Tensor, " G"]

    def read(self) -> tuple[Neutral, Float[Tensor, " P"]]:
        """Read the neutral face, and the probability with which each vertex is sampled."""
        rows = torch.from_numpy(np.load(self.file))
        points, frames, normals, curvature, chance = rows.split([3, 9, 3, 2, 1], -1)
        return Neutral(points, frames.unflatten(-1, (3, 3)), normals, curvature), chance[:, 0]


@dataclass(frozen=True)
class Batch:
    """Frames of B people, T each, at R sampled vertices (`rows`), with the true offsets (`wanted`; canonical, m)."""

    neutral: Neutral
    code: Float[Tensor, "B G"]
    psi: Float[Tensor, "B T E"]
    jaw: Float[Tensor, "B T 3"]
    rows: Int64[Tensor, "B R"]
    wanted: Float[Tensor, "B T R 3"]
    weight: Float[Tensor, "B T"]


def fresh_network(
    kind: Kind, face: Face, clips: Sequence[FaceClipLike], progress: Progress, *, seed: int
) -> TransferNetwork:
    """Make an untrained network: random weights; identity basis and expression scales are computed from these clips."""
    torch.manual_seed(seed)
    network = TransferNetwork(NetworkConfig(kind, expression=clips[0].expression.shape[1]), face)
    network.psi_scale.copy_(expression_scale(clips))
    # Not `Neutral.of`: the normals, frames and curvature of thousands of people take minutes, and are not used here.
    read = counted(clips, len(clips), progress)
    faces = torch.stack([aligned(torch.from_numpy(p.neutral), face.template)[2][face.code_rows] for p in read])
    network.code_mean.copy_(faces.mean(0))
    flat = (faces - network.code_mean).flatten(1).double().numpy()
    keep = min(len(network.code_basis), flat.shape[1], len(clips) - 1)
    deviation, axes = principal_axes(flat, keep)
    # Whitened: divided by each component's deviation, at least 0.05 of the first's, as weak ones would be noise.
    basis = torch.from_numpy(axes / deviation.clip(0.05 * deviation[:1])[:, None])
    network.code_basis[:keep] = basis.unflatten(1, network.code_mean.shape)
    return network


def principal_axes(
    centred: Float64[np.ndarray, "N D"], count: int
) -> tuple[Float64[np.ndarray, " C"], Float64[np.ndarray, "C D"]]:
    """Standard deviations along the first principal axes of centred rows, and the axes, largest first.

    Only these are computed, from the smaller one of both products of the matrix with itself: for thousands of rows and
    columns a full decomposition takes minutes.
    """
    is_wide = len(centred) <= centred.shape[1]
    gram = centred @ centred.T if is_wide else centred.T @ centred
    size = len(gram)
    squares, vectors = eigh(gram, subset_by_index=(size - count, size - 1)) if count else (np.zeros(0), gram[:, :0])
    length = np.sqrt(squares[::-1].clip(0))
    axes = vectors[:, ::-1].T
    if is_wide:
        axes = axes @ centred / np.maximum(length, 1e-9 * length.max(initial=1e-300))[:, None]
    return length / np.sqrt(max(len(centred) - 1, 1)), axes


def train(
    network: TransferNetwork,
    learners: Sequence[FaceClipLike],
    judges: Sequence[FaceClipLike],
    config: TransferTraining,
    *,
    state: Path,
    stage: Stage,
    log: Callable[[int, dict[str, float]], None],
) -> TransferNetwork:
    """Train, or resume from `state`; returns the network with averaged weights. `log` gets step and figures of reports.

    The same clips, settings and machine give the same weights, interrupted or not.
    """
    folder = state.parent / "pupils"
    prepared, energy = _prepared(network, counted(learners, len(learners), stage("prepare the clips")), folder)
    validation, _ = _prepared(network, list(judges)[:JUDGED], folder)
    # The people were read on the CPU; from here on all is on the run's device.
    device = best_device()
    steep = _steepness(energy).to(device)
    on_device(network, device)
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.rate, weight_decay=config.decay)
    average = copy.deepcopy(network)
    progress = stage("train")
    begin = load_state(state, network, average, optimizer, generator)
    for step in range(begin, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = _rate(config, step)
        batch = _batch(network, prepared, config, generator, whole=step % WHOLE_EVERY == WHOLE_EVERY - 1)
        loss = _loss(network, batch, steep)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        follow(average.parameters(), network.parameters(), min(config.average, (step + 1) / (step + 10)))
        if (step + 1) % config.report_every == 0 or step + 1 == config.steps:
            log(step + 1, {"loss": float(loss.detach()), **judged(average, validation)})
            save_state(state, step + 1, network, average, optimizer, generator)
        progress(step + 1, config.steps)
    on_device(network, "cpu")
    return on_device(average, "cpu")


@torch.inference_mode()
def judged(network: TransferNetwork, validation: Sequence[PreparedClip]) -> dict[str, float]:
    """RMS error of the offsets of held-out clips, as a share of the RMS offset, for `filmed` and `synthetic` people."""
    sums = {"filmed": [0.0, 0.0], "synthetic": [0.0, 0.0]}
    for one in validation:
        count, points = len(one.clip.weight), torch.arange(len(network.face.vertices))
        frames = np.unique(np.linspace(0, count - 1, min(JUDGED_FRAMES, count)).round().astype(int))
        batch = _gathered(network, [(one, frames, one.read()[0], points)], None)
        error, zero = (_offsets(network, batch) - batch.wanted).square().sum(-1), batch.wanted.square().sum(-1)
        part = sums["synthetic" if one.clip.is_synthetic else "filmed"]
        part[0] += float((error.mean(-1) * batch.weight).sum())
        part[1] += float((zero.mean(-1) * batch.weight).sum())
    return {name: float(np.sqrt(error / zero)) for name, (error, zero) in sums.items() if zero > 0}


def judged_by(network: TransferNetwork, clips: Sequence[FaceClipLike]) -> dict[str, float]:
    """`judged` on all of these clips, on up to `JUDGED_FRAMES` frames of each, evenly spread."""
    with TemporaryDirectory() as folder:
        return judged(network, _prepared(network, clips, Path(folder))[0])


def _rate(config: TransferTraining, step: int) -> float:
    """Learning rate of a step: a half cosine from `config.rate` to a fiftieth of it, times a warm-up of 200 steps."""
    low = config.rate / 50
    rise = min((step + 1) / 200, 1.0)
    return rise * (low + (config.rate - low) * 0.5 * (1 + np.cos(np.pi * step / config.steps)))


@torch.no_grad()
def _neutral(clip: FaceClipLike, face: Face) -> Neutral:
    return Neutral.of(torch.from_numpy(clip.neutral), face)


def _prepared(
    network: TransferNetwork, clips: Iterable[FaceClipLike], folder: Path
) -> tuple[list[PreparedClip], Float32[np.ndarray, " P"]]:
    """Prepare clips, reading each once; also returns the mean squared offset of each vertex, m^2, over the clips."""
    folder.mkdir(parents=True, exist_ok=True)
    prepared, total = [], np.zeros(len(network.face.vertices))
    for clip in clips:
        neutral = _neutral(clip, network.face)
        moved = np.mean([(frame.astype(np.float32) ** 2).sum(-1) for frame in clip.offset], 0)
        total += moved
        energy = np.sqrt(moved)
        share = BY_ENERGY * energy / max(energy.sum(), 1e-12) + (1 - BY_ENERGY) / len(energy)
        file = folder / f"{hashlib.sha256(clip.name.encode()).hexdigest()[:24]}.npy"
        columns = [neutral.points, neutral.frames.flatten(1), neutral.normals, neutral.curvature]
        np.save(file, np.column_stack([*(column.numpy() for column in columns), share]).astype(np.float32))
        prepared.append(PreparedClip(clip, file, network.code(neutral)))
    return prepared, (total / max(len(prepared), 1)).astype(np.float32)


def _steepness(moved: Float32[np.ndarray, " P"]) -> Float[Tensor, " P"]:
    """Loss weight of each vertex: root of its RMS offset, over the mean, at most `STEEP`: small motions count too."""
    weight = np.sqrt(np.sqrt(moved))
    return torch.from_numpy(np.minimum(weight / max(weight.mean(), 1e-12), STEEP).astype(np.float32))


def _batch(network, prepared: Sequence[PreparedClip], config: TransferTraining, generator, *, whole: bool) -> Batch:
    """Sample people, pairs of consecutive frames, and vertices; with `whole` one person, with all vertices."""
    favour = torch.tensor([1.0 if p.clip.is_synthetic else config.filmed for p in prepared])
    count = 1 if whole else config.people
    chosen = torch.multinomial(favour, count, replacement=True, generator=generator)
    rows = []
    for index in chosen.tolist():
        one = prepared[index]
        weight = torch.from_numpy(one.clip.weight[:-1] + 1e-3)
        first = torch.multinomial(weight, config.frames // 2, replacement=True, generator=generator)
        frames = torch.stack([first, first + 1], 1).flatten().numpy()
        neutral, chance = one.read()
        if whole:
            points = torch.arange(len(chance))
        else:
            # A network of kind `concat` runs once per vertex and frame: fewer vertices for the same cost.
            few = config.frames if network.config.kind == "concat" else 1
            points = torch.multinomial(chance, config.vertices // few, replacement=True, generator=generator)
        rows.append((one, frames, neutral, points))
    return _gathered(network, rows, generator, config)


def _gathered(network, rows, generator, config: TransferTraining | None = None) -> Batch:
    """Collect a batch; with `config`, add noise to identity codes and expressions, as regularisation."""
    psi = torch.stack([torch.from_numpy(p.clip.expression[frames]) for p, frames, *_ in rows])
    jaw = torch.stack([torch.from_numpy(p.clip.jaw[frames]) for p, frames, *_ in rows])
    code = torch.stack([p.code for p, *_ in rows])
    if config is not None:
        code = code + config.code_noise * torch.randn(code.shape, generator=generator)
        psi = psi + config.psi_noise * network.psi_scale.cpu() * torch.randn(psi.shape, generator=generator)
    # Indexed in two steps, so that each frame is read from the file in one piece.
    wanted = [torch.from_numpy(np.array(p.clip.offset[f])[:, at.numpy()]).float() for p, f, _, at in rows]
    weight = torch.stack([torch.from_numpy(p.clip.weight[frames]) for p, frames, *_ in rows])
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
    """Loss of the normals, and of the roughness of the error, on one whole face."""
    at_rest = batch.neutral.points[0]
    cosine = (
        vertex_normals(at_rest + found[0], face.faces) * vertex_normals(at_rest + batch.wanted[0], face.faces)
    ).sum(-1)
    columns = error[0].transpose(0, 1).flatten(1)
    rough = columns - torch.sparse.mm(face.averaging, columns)
    weight = batch.weight[0]
    return NORMALS * (weight[:, None] * (1 - cosine)).mean() + LAPLACIAN * rough.abs().mean() * weight.mean()


def whole_faces(
    network: TransferNetwork, clips: Sequence[FaceClipLike]
) -> Iterator[tuple[FaceClipLike, Neutral, Tensor]]:
    """Yield each clip with its neutral face and identity code."""
    for clip in clips:
        neutral = _neutral(clip, network.face)
        yield clip, neutral, network.code(neutral)
