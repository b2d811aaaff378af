"""The transfer network as a file: safetensors, with what it was made for and on in its metadata."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float32

from expportrait_cli.artifacts import network_file
from expportrait_cli.artifacts.network_file import NetworkKind
from expportrait_cli.errors import WeightsError
from expportrait_cli.head import HeadModel
from expportrait_cli.transfer.face import Face
from expportrait_cli.transfer.network import Kind, NetworkConfig, TransferNetwork

KIND = NetworkKind("transfer", 1, "transfer network", "Make one with `expportrait train transfer`.")
MARGIN = 1.15
"""Times the largest expression of the training that still counts as within its range."""
JAW_MARGIN_RAD = 0.05


@dataclass(frozen=True)
class Trained:
    """A network with the expressions that it has seen."""

    network: TransferNetwork
    psi_most: Float32[np.ndarray, " E"]
    """Largest absolute value of each expression in training,"""
    jaw_most: Float32[np.ndarray, " 3"]
    """and of the jaw, rad."""

    def outside(self, psi: Float32[np.ndarray, "T E"], jaw: Float32[np.ndarray, "T 3"]) -> float:
        """Share of the frames whose expression lies beyond what the network was trained on."""
        beyond = (np.abs(psi) > MARGIN * self.psi_most + 0.05).any(1)
        return float((beyond | (np.abs(jaw) > MARGIN * self.jaw_most + JAW_MARGIN_RAD).any(1)).mean())


def topology(face: Face) -> str:
    """What tells one head model's face from another's: its vertices, triangles and mean shape."""
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
    # Half the size, and 0.002 mm in the offsets.
    network_file.write(path, KIND, tensors, header)


def load_network(path: Path, head: HeadModel) -> Trained:
    """Read a network for a head model.

    Raises:
        WeightsError: it is none, or was trained on another head model or mesh.
    """
    header, face = network_file.read_header(path, KIND), Face.of(head)
    if header.get("topology") != topology(face):
        raise WeightsError(
            f"{path} was trained on the head model '{header.get('head_model')}', here it is '{head.name}', or another "
            "mesh of it. Train one with `expportrait train transfer`, or use --method direct."
        )
    tensors = network_file.read_tensors(path)
    try:
        config = NetworkConfig(**header["network"])
        if config.kind not in get_args(Kind):
            raise KeyError(config.kind)
        network = TransferNetwork(config, face)
        psi_most, jaw_most = tensors.pop("psi_most").numpy(), tensors.pop("jaw_most").numpy()
        network.load_state_dict(tensors)
    except (KeyError, RuntimeError, TypeError) as error:
        raise WeightsError(f"{path} is damaged: its tensors do not make the network that it names.") from error
    return Trained(network.eval().requires_grad_(False), psi_most, jaw_most)
