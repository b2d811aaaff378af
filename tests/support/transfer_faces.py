"""Faces, fits and performances that need no picture, and transfer networks of toy size with random weights."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from expportrait_cli.artifacts.types import CROP_SIZE, Curves, HeadFit, Tracking
from expportrait_cli.head import HeadModel, dense, landmark_model
from expportrait_cli.retargeting.face import Face, Neutral
from expportrait_cli.retargeting.network import Kind, NetworkConfig, Trained, TransferNetwork
from expportrait_cli.solve.solver import Solver
from expportrait_cli.solve.state import State
from support.known_head import blank_fit, tracking_of
from support.performers import performed, state_of

KINDS: tuple[Kind, ...] = ("learned", "blind", "concat")


def tiny(face: Face, kind: Kind = "learned", *, seed: int = 0) -> TransferNetwork:
    """A network of toy size; its offsets are millimetres, and its code has about the deviation 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = TransferNetwork(NetworkConfig(kind, code=6, hidden=24, depth=2, rank=8, driving=12), face)
        # At their usual start weights are so small that a deep perceptron hardly depends on what it is given.
        for layer in network.modules():
            if isinstance(layer, torch.nn.Linear):
                torch.nn.init.normal_(layer.weight, std=1.5 / np.sqrt(layer.in_features))
        network.code_mean.copy_(face.template[face.code_rows])
        network.code_basis.normal_().div_(0.003 * np.sqrt(network.code_basis[0].numel()))
    return network.requires_grad_(False)


def trained(network: TransferNetwork, *, most: float = 1.0) -> Trained:
    """The network with a range of expressions that it has seen."""
    return Trained(network, np.full(network.config.expression, most, np.float32), np.full(3, most, np.float32))


def identity_of(head: HeadModel, seed: int) -> np.ndarray:
    return 0.6 * np.random.default_rng(seed).normal(size=head.identity_basis.shape[-1])


def face_of(head: HeadModel, face: Face, seed: int) -> Float32[Tensor, "P 3"]:
    """Somebody's face at rest, m."""
    shape = head.template + head.identity_basis @ torch.from_numpy(identity_of(head, seed)).float()
    return dense(head, shape)[face.vertices]


def expressions(frames: int, *, seed: int = 0) -> tuple[Float32[Tensor, "T 40"], Float32[Tensor, "T 3"]]:
    """Expressions and jaws that mean nothing."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(frames, 40, generator=generator), 0.3 * torch.rand(frames, 3, generator=generator)


def every(face: Face) -> Tensor:
    """All rows of a face."""
    return torch.arange(len(face.vertices))


def offsets(network: TransferNetwork, verts: Tensor, psi: Tensor, jaw: Tensor) -> Tensor:
    """A network's offsets on a whole face."""
    neutral = Neutral.of(verts, network.face)
    return network.offsets(neutral, network.code(neutral), psi, jaw, rows=every(network.face))


def photo_of(head: HeadModel, seed: int, **values: np.ndarray) -> HeadFit:
    """A fit without a picture: landmarks are the head model's own; `values` are its expression or jaw."""
    found = replace(blank_fit(head, identity_of(head, seed)), **{k: v.astype(np.float32) for k, v in values.items()})
    rows = tracking_of(head, found.identity, 1, 0, Path("photo"))
    still = replace(
        rows, expression=found.expression[None], jaw=found.jaw[None], rotation=found.rotation[None] * np.float32(0),
        translation=found.translation[None],
    )  # fmt: skip
    shown = _solver(head).predict(found.identity.astype(float), state_of(still, 0))
    return replace(found, landmarks=shown.astype(np.float32))


def driver_of(head: HeadModel, states: list[State], *, seed: int) -> Tracking:
    """A clip of another person in the given states, with exact landmarks."""
    identity = identity_of(head, seed)
    start = tracking_of(head, identity, 1, 0, Path("driver.mp4"))
    exact = _solver(head).predict(start.identity.astype(float), state_of(start, 0))
    return performed(replace(start, landmarks=exact[None].astype(np.float32)), head, states)


def still_curves(head_fit: HeadFit, psi: Tensor, jaw: Tensor) -> Curves:
    """Expressions and jaws on a head that keeps the photo's pose."""

    def kept(values: np.ndarray) -> np.ndarray:
        return np.tile(values, (len(psi), 1))

    return Curves(
        psi.numpy(),
        jaw.numpy(),
        kept(head_fit.gaze),
        kept(head_fit.rotation),
        kept(head_fit.translation),
        kept(head_fit.torso_rotation),
        kept(head_fit.translation),
    )


def rows_of(curves: Curves, rows) -> Curves:
    return Curves(*(getattr(curves, name)[rows] for name in (field.name for field in fields(Curves))))


def _solver(head: HeadModel) -> Solver:
    return Solver(landmark_model(head), focal_px=2200.0, centre_px=CROP_SIZE / 2)
