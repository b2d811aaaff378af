"""The small painter: the proxy film, corrected by a network of our own where the proxy had to guess."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from expportrait_cli.artifacts import network_file
from expportrait_cli.artifacts.network_file import NetworkKind
from expportrait_cli.errors import WeightsError
from expportrait_cli.generate.mini_net import CELL, MiniNet, MiniShape
from expportrait_cli.generate.painter import Sketch, Sketches, Still
from expportrait_cli.generate.wan.packages import require_packages

KIND = NetworkKind("mini", 1, "small painter", "Make one with `expportrait train mini`.")
SIZE = 256
"""Side of the crop that the network sees, px; it was trained at that size."""
TIMES = 4
"""Frames that it corrects together."""


class MiniPainter:
    """Corrects four frames at a time, always the same four, so that it does not matter where one starts."""

    name = "mini"

    def __init__(self, network: MiniNet, size: int) -> None:
        """`size` is the crop's side in the film, px."""
        self._network, self._size = network, size

    def paint(
        self, still: Still, sketches: Sketches, *, start: int, count: int, keep: Path | None = None
    ) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """Yield corrected frames; a window is the most that is held."""
        scale = min(1.0, SIZE / self._size)
        shown = planes(_shrunk(still.photo, scale), None, _shrunk(still.normals, scale))
        first = start - start % TIMES
        frames = sketches(first)
        for index in range(first, count, TIMES):
            window = list(islice(frames, min(TIMES, count - index)))
            yield from self._corrected(window, shown, scale)[max(start - index, 0) :]

    def _corrected(self, window: list[Sketch], still: Tensor, scale: float) -> list[UInt8[np.ndarray, "H W 3"]]:
        """The last windows may be short: the network takes any length."""
        given = torch.stack([planes(*(_shrunk(each, scale) for each in (s.proxy, s.guess, s.normals))) for s in window])
        with torch.no_grad():
            residual = correct(self._network, given[None], still[None])[0]
        frames = []
        for sketch, change in zip(window, residual.permute(0, 2, 3, 1).numpy(), strict=True):
            height, width = sketch.guess.shape
            large = cv2.resize(127.5 * change, (width, height), interpolation=cv2.INTER_LINEAR)
            frames.append(np.rint(sketch.proxy + large).clip(0, 255).astype(np.uint8))
        return frames


def planes(
    colour: UInt8[np.ndarray, "H W 3"],
    guess: Float32[np.ndarray, "H W"] | None,
    normals: Float32[np.ndarray, "H W 3"],
) -> Float32[Tensor, "7 H W"]:
    """A picture as the network takes it: colours in -1..1; the photo has no guesses."""
    unsure = np.zeros(colour.shape[:2], np.float32) if guess is None else guess
    both = np.concatenate([colour.astype(np.float32) / 127.5 - 1, unsure[..., None], normals], -1)
    return torch.from_numpy(np.ascontiguousarray(both.transpose(2, 0, 1)))


def correct(
    network: MiniNet, frames: Float[Tensor, "B T 7 H W"], still: Float[Tensor, "B 7 H W"]
) -> Float[Tensor, "B T 3 H W"]:
    """What to add to the proxies (colours in -1..1): nothing but what the proxy guessed.

    Elsewhere it shows the photo's own pixels, which are sharper, and nearer to the truth by 0.5 dB than corrected ones.
    """
    height, width = frames.shape[-2:]
    pad = (0, -width % CELL, 0, -height % CELL)
    filled = torch.nn.functional.pad(frames.flatten(0, 1), pad, mode="replicate").unflatten(0, frames.shape[:2])
    residual = network(filled, torch.nn.functional.pad(still, pad, mode="replicate"))
    return residual[..., :height, :width] * frames[:, :, 3:4]


def _shrunk(picture: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return picture
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def save_mini(network: MiniNet, path: Path, made_by: Mapping[str, Any]) -> None:
    """Write the network's weights."""
    header = {"network": asdict(network.shape), "made_by": dict(made_by)}
    network_file.write(path, KIND, network.state_dict(), header)


def has_passed(path: Path) -> bool:
    """Whether these weights were found better than the proxy (`expportrait train gate`).

    Raises:
        WeightsError: the file is no such network.
    """
    return bool(network_file.read_header(path, KIND)["made_by"].get("gate", {}).get("passed"))


def load_mini(path: Path) -> MiniNet:
    """Read a network.

    Raises:
        WeightsError: the file is no such network, or diffusers is not installed.
    """
    require_packages()
    header = network_file.read_header(path, KIND)
    try:
        sizes = dict(header["network"])
        network = MiniNet(MiniShape(tuple(sizes.pop("channels")), **sizes))
        network.load_state_dict(network_file.read_tensors(path))
    except (KeyError, RuntimeError, TypeError) as error:
        raise WeightsError(f"{path} is damaged: its tensors do not make the network that it names.") from error
    return network.eval().requires_grad_(False)
