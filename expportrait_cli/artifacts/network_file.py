"""Files of trained networks: safetensors in 16 bits, with kind, version and origin in their metadata."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from expportrait_cli.artifacts.files import atomic_path
from expportrait_cli.artifacts.texts import parse_json
from expportrait_cli.errors import WeightsError

LONGEST_TABLE = 1 << 24
"""Largest safetensors header that is accepted, bytes; enough for 100,000 tensors."""


@dataclass(frozen=True)
class NetworkKind:
    """One kind of network: its identifier in files, and texts for messages."""

    name: str
    version: int
    title: str
    """Name for messages, such as "transfer network"."""
    remedy: str
    """Advice for a file that contains no such network."""


def write(path: Path, kind: NetworkKind, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> None:
    """Write a network; the same content gives the same bytes."""
    text = json.dumps({"kind": kind.name, "version": kind.version, **header}, sort_keys=True)
    halves = {name: _halved(value.detach().cpu().contiguous()) for name, value in tensors.items()}
    with atomic_path(path) as partial:
        partial.write_bytes(save(halves, {"expportrait": text}))


def _halved(value: torch.Tensor) -> torch.Tensor:
    return value.half() if value.is_floating_point() else value


def read_header(path: Path, kind: NetworkKind) -> dict[str, Any]:
    """Read the header of a network's file.

    Raises:
        WeightsError: the file cannot be read, or is no network of this kind and version.
    """
    try:
        _check_length(path)
        with safe_open(path, "pt") as file:
            header = parse_json((file.metadata() or {}).get("expportrait", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}. Train or copy it again.") from error
    if not isinstance(header, dict) or header.get("kind") != kind.name:
        raise WeightsError(f"{path} holds no {kind.title}. {kind.remedy}")
    if header.get("version") != kind.version:
        raise WeightsError(
            f"{path} has version {header.get('version')} of the {kind.title}, this tool reads {kind.version}. "
            "Train it again, or update the tool."
        )
    return header


def _check_length(path: Path) -> None:
    """Raise ValueError if the header, which is read at once, is larger than `LONGEST_TABLE`."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > LONGEST_TABLE:
        raise ValueError(f"its table of tensors has {length} bytes")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file, in single precision.

    Raises:
        WeightsError: the file cannot be read, or a tensor has numbers that are not finite.
    """
    try:
        _check_length(path)
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}. Train or copy it again.") from error
    check_finite(path, tensors)
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def check_finite(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise WeightsError if a number of a network is not finite."""
    for name, value in tensors.items():
        # The sum needs no extra memory, and in double precision it does not overflow for finite numbers.
        if value.is_floating_point() and value.element_size() > 1 and not value.sum(dtype=torch.float64).isfinite():
            raise WeightsError(f"{path} holds '{name}' with numbers that are not finite. Train or copy it again.")
