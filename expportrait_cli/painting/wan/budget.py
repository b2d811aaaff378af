"""What a film costs before it is started: memory and time, from the shapes of the weights and of the film."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from expportrait_cli.artifacts.texts import read_json
from expportrait_cli.errors import OutOfMemoryError, WeightsError

GB = 1 << 30
VAE_FLOATS = {"cpu": 115, "cuda": 64}
"""Numbers that the autoencoder holds at a time, for each pixel and each channel of its first layer: four frames in a
few layers, and what its convolutions over time remember at full size. Measured on the CPU with Wan's own width, where
the convolutions bring their pictures into another order; counted, not measured, on GPUs."""
VAE_BYTES = 510_000_000
"""Weights of the autoencoder itself, in float32."""
ACHIEVED = 0.5
"""Share of the speed of a plain product of matrices that transformers reach; 0.42 on H200 and 0.65 on a 4090, by their
published times."""


@dataclass(frozen=True)
class Shape:
    """A transformer, as its folder describes it."""

    parameters: int
    width: int
    hidden: int
    """Width inside the feed-forward layers."""
    layers: int
    controls: int
    """Blocks of a side branch."""

    @classmethod
    def of(cls, folder: Path) -> "Shape":
        """Read `config.json` and the headers of the weights.

        Raises:
            WeightsError: no transformer of diffusers in safetensors files.
        """
        try:
            config: Mapping[str, Any] = read_json(folder / "config.json")
            for name in ("num_attention_heads", "attention_head_dim", "ffn_dim", "num_layers"):
                if type(config[name]) is not int or not 0 < config[name] < 10**6:
                    raise ValueError(f"its {name} is {config[name]!r}")
            return cls(
                parameters=sum(_count(path) for path in folder.glob("*.safetensors")),
                width=config["num_attention_heads"] * config["attention_head_dim"],
                hidden=config["ffn_dim"],
                layers=config["num_layers"],
                controls=len(config.get("vace_layers", ())),
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise WeightsError(
                f"{folder} is no transformer of diffusers: {error}. Download or copy it again."
            ) from error


def _count(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


@dataclass(frozen=True)
class Cost:
    """Of one film."""

    weights: int
    """Bytes on the device,"""
    work: int
    """and bytes beside them, at the worst moment."""
    windows: int
    flop: float
    """Operations of a window."""

    @classmethod
    def of(
        cls,
        shape: Shape,
        *,
        tokens: int,
        windows: int,
        calls: int,
        pixels: int,
        bytes_each: int,
        vae_width: int,
        resident: float = 1.0,
        device: str = "cuda",
    ) -> "Cost":
        """Cost of `windows` windows of `tokens`, each of which calls the transformer `calls` times.

        `bytes_each` is a parameter's size, `resident` the share of the parameters that is on the device at a time.
        A call is 2 operations a token and parameter, and 4 a pair of tokens, number and layer for attention.
        """
        layers = shape.layers + shape.controls
        call = 2 * tokens * shape.parameters + 4 * tokens**2 * shape.width * layers
        # A block holds its input, norms in float32, queries, keys, values and the feed-forward's inside.
        block = tokens * (shape.width * 20 + shape.hidden * 4)
        branch = tokens * shape.width * 2 * shape.controls
        autoencoder = VAE_BYTES + VAE_FLOATS[device] * vae_width * pixels * 4
        return cls(
            round(shape.parameters * bytes_each * resident),
            max(block + branch, autoencoder),
            windows,
            float(calls * call),
        )

    def line(self, speed: float) -> str:
        """In words, at a speed in operations a second."""
        seconds = self.flop / speed
        return (
            f"{self.weights / GB:.1f} GB of weights and about {self.work / GB:.1f} GB to work in; "
            f"about {_time(seconds)} for each of {self.windows} windows, {_time(seconds * self.windows)} in all"
        )

    def check(self, free: int, where: str) -> None:
        """Raise OutOfMemoryError unless it fits.

        Raises:
            OutOfMemoryError: more is needed than there is.
        """
        needed = self.weights + self.work
        if needed > free:
            raise OutOfMemoryError(
                f"This needs about {needed / GB:.1f} GB on {where}, where {free / GB:.1f} GB are free. Take `offload` "
                "group, `quantize=fp8`, `dtype=bf16` or a smaller `size`; or another `backend`."
            )


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had, with what this process holds on a GPU already: the film before left it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    import psutil

    return psutil.virtual_memory().available


def speed_of(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second that a transformer can be expected to do here; takes a tenth of a second."""
    side = 8192 if device.type == "cuda" else 512
    a = torch.ones(side, side, device=device, dtype=dtype)
    best = math.inf
    for _ in range(4):
        since = perf_counter()
        (a @ a).sum().item()
        best = min(best, perf_counter() - since)
    return ACHIEVED * 2 * side**3 / best


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
