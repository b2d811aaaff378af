"""A trained network as a file: safetensors in 16 bits, with what it is and how it was made in its metadata."""

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
"""Largest table of tensors that is read, bytes: enough for 100,000 tensors."""


@dataclass(frozen=True)
class NetworkKind:
    """One kind of network, as its files name it."""

    name: str
    version: int
    title: str
    """Name for messages, such as "transfer network"."""
    remedy: str
    """Advice for a file that holds no such network."""


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
        WeightsError: it is none of this kind.
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
    """Raise ValueError if the table of tensors, which is read at once, is larger than that of any network."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > LONGEST_TABLE:
        raise ValueError(f"its table of tensors has {length} bytes")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file, in single precision.

    Raises:
        WeightsError: one has numbers that are not finite, or it is no such file.
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
    """Raise WeightsError if a number of a network is not finite: one of them spoils every result."""
    for name, value in tensors.items():
        # One pass without memory of its own; a double holds the sum of any numbers of fewer bits.
        if value.is_floating_point() and value.element_size() > 1 and not value.sum(dtype=torch.float64).isfinite():
            raise WeightsError(f"{path} holds '{name}' with numbers that are not finite. Train or copy it again.")
