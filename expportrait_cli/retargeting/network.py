"""The identity-adaptive network of dynamic offsets (paper 3.2), and its weights file."""

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from expportrait_cli.artifacts import network_file
from expportrait_cli.artifacts.network_file import NetworkKind
from expportrait_cli.errors import UsageError, WeightsError
from expportrait_cli.geometry.rotations import matrix
from expportrait_cli.head import HeadModel
from expportrait_cli.retargeting.face import Face, Neutral
from expportrait_cli.runtime import Between, Checked

LIMIT_M = 0.008
UNIT_M = 0.001
"""Offset for an output of 1, m."""
DEVIATION_M = 0.01
"""Distance from the mean head for an input of 1, m."""
WIDTH_M = 0.1
"""Half the side of the box around the mean face, m: the period of the lowest frequency of the encoding is its side."""
CURVATURE_LIMIT = 3.0

Kind = Literal["learned", "blind", "concat"]


@dataclass(frozen=True)
class NetworkConfig(Checked):
    """Sizes of the module; stored in its weights file."""

    kind: Kind = "learned"
    """learned: coefficients times an identity-dependent basis; blind: the same without identity inputs; concat: one
    perceptron of position, shape and expression, a possible reading of the paper."""
    expression: Annotated[int, Between(1, 1000)] = 40
    code: Annotated[int, Between(0, 1000)] = 48
    """Number of components of the identity code."""
    hidden: Annotated[int, Between(1, 2048)] = 256
    depth: Annotated[int, Between(1, 16)] = 5
    rank: Annotated[int, Between(1, 512)] = 64
    """Number of fields of the basis."""
    driving: Annotated[int, Between(1, 2048)] = 128
    frequencies: Annotated[int, Between(0, 16)] = 8


def encoded(points: Float[Tensor, "*B 3"], frequencies: int) -> Float[Tensor, "*B C"]:
    """Positional encoding: coordinates with sines and cosines at octaves, C = 3 + 6 x frequencies."""
    octaves = torch.pi * 2.0 ** torch.arange(frequencies, dtype=points.dtype, device=points.device)
    angles = (points[..., None, :] * octaves[:, None]).flatten(-2)
    return torch.cat([points, angles.sin(), angles.cos()], -1)


def perceptron(sizes: list[int]) -> nn.Sequential:
    """Multilayer perceptron: linear layers of these sizes with SiLU between them."""
    layers: list[nn.Module] = []
    for wide_in, wide_out in itertools.pairwise(sizes):
        layers += [nn.Linear(wide_in, wide_out), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


class TransferNetwork(nn.Module):
    """G(V_neutral, E(psi, omega)) of Eq. 8 and 9.

    The vertex network runs once for each identity and outputs `rank` fields; a frame's offsets are a sum of them. The
    identity is given as a whitened linear code of the neutral face, which is too smooth to contain folds, and as the
    shape around each vertex.
    """

    psi_scale: Tensor
    code_mean: Tensor
    code_basis: Tensor
    _position: Tensor

    def __init__(self, config: NetworkConfig, face: Face):
        super().__init__()
        self.config = config
        self.face = face
        points = len(face.code_rows)
        self.register_buffer("psi_scale", torch.ones(config.expression))
        self.register_buffer("code_mean", torch.zeros(points, 3))
        self.register_buffer("code_basis", torch.zeros(config.code, points, 3))
        self.driver = perceptron([config.expression + 6, config.hidden, config.hidden, config.driving])
        position = 3 + 6 * config.frequencies
        match config.kind:
            case "learned":
                shape, mixed = 3 + 3 + 3 + 2 + config.code, config.driving + config.code
            case "blind":
                shape, mixed = 3, config.driving
            case "concat":
                shape, mixed = 3 + 3 + config.driving, 0
        hidden = [config.hidden] * config.depth
        outputs = 3 if config.kind == "concat" else 4 * config.rank
        self.vertex = perceptron([position + shape, *hidden, outputs])
        if config.kind != "concat":
            self.mixer = perceptron([mixed, config.hidden, config.hidden, config.rank])
            # Most of the motion is linear in the expression; the perceptron adds the rest.
            self.linear = nn.Linear(config.expression + 6, config.rank, bias=False)
        self.register_buffer("_position", encoded(face.template / WIDTH_M, config.frequencies), persistent=False)

    def code(self, neutral: Neutral) -> Float[Tensor, " G"]:
        """Identity code g of a whole face: nearly standard normal over the people that it was computed from."""
        return torch.einsum("gpc,pc->g", self.code_basis, neutral.points[self.face.code_rows] - self.code_mean)

    def drive(self, psi: Float[Tensor, "*B E"], jaw: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B D"]:
        """Expression code q of Eq. 9."""
        return self.driver(self._scaled(psi, jaw))

    def _scaled(self, psi: Tensor, jaw: Tensor) -> Float[Tensor, "*B C"]:
        return torch.cat([psi / self.psi_scale, _six(jaw)], -1)

    def fields(
        self, neutral: Neutral, code: Float[Tensor, "*B G"], rows: Int64[Tensor, "*B R"]
    ) -> Float[Tensor, "*B R K 3"]:
        """The identity's basis at vertices `rows`, at which `neutral` is given too; in `UNIT_M`, canonical axes."""
        raw = self.vertex(self._features(neutral, code, rows)).unflatten(-1, (self.config.rank, 4))
        along = raw[..., 3:] * self.face.normals[rows][..., None, :]
        turned = (raw[..., :3] + along) @ neutral.frames.mT
        return turned * self.face.mask[rows][..., None, None]

    def coefficients(
        self, code: Float[Tensor, "*B G"], psi: Float[Tensor, "*B T E"], jaw: Float[Tensor, "*B T 3"]
    ) -> Float[Tensor, "*B T K"]:
        """Coefficients of the fields for an expression; exactly zero at rest."""
        rest = self._mixed(code, torch.zeros_like(psi[..., :1, :]), torch.zeros_like(jaw[..., :1, :]))
        return self._mixed(code, psi, jaw) - rest + self.linear(self._scaled(psi, jaw))

    def offsets(
        self,
        neutral: Neutral,
        code: Float[Tensor, "*B G"],
        psi: Float[Tensor, "*B T E"],
        jaw: Float[Tensor, "*B T 3"],
        *,
        rows: Int64[Tensor, "*B R"],
    ) -> Float[Tensor, "*B T R 3"]:
        """Dynamic offsets at vertices `rows`, at which `neutral` is given too; canonical, m."""
        if self.config.kind == "concat":
            rest = self._concatenated(
                neutral, torch.zeros_like(psi[..., :1, :]), torch.zeros_like(jaw[..., :1, :]), rows
            )
            return bounded((self._concatenated(neutral, psi, jaw, rows) - rest) * UNIT_M)
        return self.mixed(self.fields(neutral, code, rows), self.coefficients(code, psi, jaw))

    @staticmethod
    def mixed(fields: Float[Tensor, "*B R K 3"], coefficients: Float[Tensor, "*B T K"]) -> Float[Tensor, "*B T R 3"]:
        """Offsets, m: the fields times their coefficients, summed and bounded."""
        return bounded(torch.einsum("...rkc,...tk->...trc", fields, coefficients) * UNIT_M)

    @staticmethod
    def flat(fields: Float[Tensor, "R K 3"]) -> Float[Tensor, "K C"]:
        """The fields of one person as a matrix with C = 3 R columns, for `mixed_flat`."""
        return fields.transpose(0, 1).flatten(1).contiguous()

    @staticmethod
    def mixed_flat(fields: Float[Tensor, "K C"], coefficients: Float[Tensor, "T K"]) -> Float[Tensor, "T R 3"]:
        """Offsets, m, equal to `mixed`; `fields` is the matrix from `flat`, C = 3 R."""
        return bounded((coefficients @ fields).unflatten(1, (-1, 3)) * UNIT_M)

    def _mixed(self, code: Tensor, psi: Tensor, jaw: Tensor) -> Tensor:
        q = self.drive(psi, jaw)
        if self.config.kind == "learned":
            q = torch.cat([q, code[..., None, :].expand(*q.shape[:-1], -1)], -1)
        return self.mixer(q)

    def _features(self, neutral: Neutral, code: Tensor, rows: Tensor) -> Float[Tensor, "*B R C"]:
        position, normals = self._position[rows], self.face.normals[rows]
        if self.config.kind == "blind":
            return torch.cat([position, normals], -1)
        deviation = (neutral.points - self.face.template[rows]) / DEVIATION_M
        curvature = neutral.curvature.clamp(-CURVATURE_LIMIT, CURVATURE_LIMIT)
        parts = [position, normals, deviation, neutral.normals - normals, curvature]
        return torch.cat([*parts, code[..., None, :].expand(*position.shape[:-1], -1)], -1)

    def _concatenated(self, neutral: Neutral, psi: Tensor, jaw: Tensor, rows: Tensor) -> Tensor:
        deviation = (neutral.points - self.face.template[rows]) / DEVIATION_M
        position = encoded(neutral.points / WIDTH_M, self.config.frequencies)
        shape = torch.cat([position, neutral.normals, deviation], -1)
        q = self.drive(psi, jaw)
        frames, points = q.shape[-2], shape.shape[-2]
        both = [shape[..., None, :, :], q[..., :, None, :]]
        both = [part.expand(*part.shape[:-3], frames, points, part.shape[-1]) for part in both]
        return self.vertex(torch.cat(both, -1)) * self.face.mask[rows][..., None, :, None]


def on_device(network: TransferNetwork, device: torch.device | str) -> TransferNetwork:
    """Move a network and its face to a device, in place."""
    network.face = network.face.to(device)
    return network.to(device)


def bounded(offsets: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3"]:
    """Limit the length of offsets smoothly (tanh) to `LIMIT_M`; small ones hardly change."""
    size = offsets.norm(dim=-1, keepdim=True) / LIMIT_M
    # tanh(x)/x is 1 at 0; the clamp keeps its gradient finite there.
    return offsets * torch.where(size > 1e-3, torch.tanh(size.clamp(min=1e-3)) / size.clamp(min=1e-3), 1 - size**2 / 3)


def _six(jaw: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 6"]:
    """First two columns of the jaw's rotation matrix minus the identity: zero at rest."""
    turn = matrix(jaw) - torch.eye(3, dtype=jaw.dtype, device=jaw.device)
    return turn[..., :2].flatten(-2)


KIND = NetworkKind("transfer", 1, "transfer network", "Make one with `expportrait train transfer`.")
MARGIN = 1.15
"""Factor on the largest expressions of the training, up to which an expression counts as inside its range."""
JAW_MARGIN_RAD = 0.05


@dataclass(frozen=True)
class Trained:
    """A network with the range of expressions of its training."""

    network: TransferNetwork
    psi_most: Float32[np.ndarray, " E"]
    """Largest absolute value of each expression in training."""
    jaw_most: Float32[np.ndarray, " 3"]
    """Largest absolute value of each angle of the jaw in training, rad."""

    def outside(self, psi: Float32[np.ndarray, "T E"], jaw: Float32[np.ndarray, "T 3"]) -> float:
        """Share (0..1) of the frames whose expression lies outside the range of the training."""
        beyond = (np.abs(psi) > MARGIN * self.psi_most + 0.05).any(1)
        return float((beyond | (np.abs(jaw) > MARGIN * self.jaw_most + JAW_MARGIN_RAD).any(1)).mean())


def topology(face: Face) -> str:
    """Hash of a face's vertices, triangles and mean shape, which identifies a head model's mesh."""
    digest = hashlib.sha256(face.vertices.astype(np.int64).tobytes())
    digest.update(face.faces.numpy().astype(np.int64).tobytes())
    digest.update((face.template.numpy().astype(np.float64) * 1e5).round().astype(np.int64).tobytes())
    return digest.hexdigest()


def save_network(trained: Trained, path: Path, head: HeadModel, made_by: Mapping[str, Any]) -> None:
    """Write a network; the same network and `made_by` give the same bytes."""
    tensors = dict(trained.network.state_dict())
    tensors |= {"psi_most": torch.from_numpy(trained.psi_most), "jaw_most": torch.from_numpy(trained.jaw_most)}
    header = {
        "head_model": head.name,
        "topology": topology(trained.network.face),
        "network": asdict(trained.network.config),
        "made_by": dict(made_by),
    }
    # Stored in half precision, which changes offsets by 0.002 mm.
    network_file.write(path, KIND, tensors, header)


def load_network(path: Path, head: HeadModel) -> Trained:
    """Read a network for a head model.

    Raises:
        WeightsError: the file is no network, damaged, or was trained on another head model or mesh.
    """
    header, face = network_file.read_header(path, KIND), Face.of(head)
    if header.get("topology") != topology(face):
        raise WeightsError(
            f"{path} was trained on the head model '{header.get('head_model')}', here it is '{head.name}', or another "
            "mesh of it. Train one with `expportrait train transfer`, or use `method=direct`."
        )
    tensors = network_file.read_tensors(path)
    try:
        config = NetworkConfig(**header["network"])
        network = TransferNetwork(config, face)
        psi_most, jaw_most = tensors.pop("psi_most").numpy(), tensors.pop("jaw_most").numpy()
        network.load_state_dict(tensors)
    except (KeyError, RuntimeError, TypeError, UsageError) as error:
        raise WeightsError(f"{path} is damaged: its tensors do not make the network that it names.") from error
    return Trained(network.eval().requires_grad_(False), psi_most, jaw_most)
