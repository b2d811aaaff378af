"""LPIPS, a perceptual distance of pictures by a network, from a weights file that the user provides.

The tool has no such weights, and reads no file that could run code: a safetensors file with the tensors of
torchvision's `features` and of LPIPS' linear heads under their published names. README.md says how to make one.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from expportrait_cli.errors import WeightsError
from expportrait_cli.evaluation.onnx_net import find, missing_file
from expportrait_cli.runtime import best_device

Net = Literal["alex", "vgg"]
WEIGHTS: dict[Net, str] = {"alex": "lpips-alex", "vgg": "lpips-vgg"}
"""Names of the weights in the catalogue."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and deviation by which pictures in -1..1 are normalised: Zhang et al.'s constants."""
LEAST = 1e-10
"""Added to the length of feature vectors, to avoid a division by 0."""

# Convolutions of torchvision's AlexNet and VGG-16 by their index in `features`, block by block. LPIPS uses the
# output of each block. Blocks of VGG, except the first, begin with a pooling layer.
ALEX = ((0,), (3,), (6,), (8,), (10,))
VGG = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
ALEX_FORM = {0: (4, 2), 3: (1, 2)}
"""Stride and padding of AlexNet's convolutions where they are not 1 and 1, by index."""
ALEX_POOLS = {3, 6}
"""AlexNet's convolutions that follow a pooling layer, by index."""


class Lpips(nn.Module):
    """LPIPS 0.1 on AlexNet or VGG-16; Zhang et al., The Unreasonable Effectiveness of Deep Features, 2018, Eq. 1."""

    def __init__(self, net: Net, path: Path) -> None:
        """Read the weights.

        Raises:
            WeightsError: the file lacks a tensor of this network, or has one of another shape.
        """
        super().__init__()
        self._net: Net = net
        self._blocks = ALEX if net == "alex" else VGG
        tensors = _read(path)
        for index, (inputs, outputs, side) in _shapes(net).items():
            self._take(tensors, path, f"features.{index}.weight", (outputs, inputs, side, side))
            self._take(tensors, path, f"features.{index}.bias", (outputs,))
        for level, block in enumerate(self._blocks):
            channels = _shapes(net)[block[-1]][1]
            self._take(tensors, path, f"lin{level}.model.1.weight", (1, channels, 1, 1))
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])

    def _take(self, tensors: dict[str, Tensor], path: Path, name: str, shape: tuple[int, ...]) -> None:
        found = tensors.get(name)
        if found is None or tuple(found.shape) != shape:
            has = "is missing" if found is None else f"has the shape {tuple(found.shape)}"
            raise WeightsError(f"{path}: {name} {has}, expected {shape}. Make the file again as README.md says.")
        self.register_buffer(name.replace(".", "_"), found.float())

    @torch.inference_mode()
    def forward(self, a: Float[Tensor, "B 3 H W"], b: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
        """Distance of pictures in -1..1; 0 is equal. H and W of 64 or more."""
        total = torch.zeros(len(a), device=a.device)
        for level, (own, other) in enumerate(zip(self._features(a), self._features(b), strict=True)):
            squared = (_unit(own) - _unit(other)) ** 2
            total += functional.conv2d(squared, self.get_buffer(f"lin{level}_model_1_weight")).mean((1, 2, 3))
        return total

    def _features(self, pictures: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        x = (pictures - self.get_buffer("shift")) / self.get_buffer("scale")
        found = []
        for level, block in enumerate(self._blocks):
            x = self._pool(x, block[0]) if level else x
            for index in block:
                stride, padding = ALEX_FORM.get(index, (1, 1)) if self._net == "alex" else (1, 1)
                weight, bias = (self.get_buffer(f"features_{index}_{part}") for part in ("weight", "bias"))
                x = functional.relu(functional.conv2d(x, weight, bias, stride=stride, padding=padding))
            found.append(x)
        return found

    def _pool(self, x: Tensor, following: int) -> Tensor:
        if self._net == "vgg":
            return functional.max_pool2d(x, 2)
        return functional.max_pool2d(x, 3, 2) if following in ALEX_POOLS else x

    def of_frames(self, own: Float32[np.ndarray, "H W 3"], wanted: Float32[np.ndarray, "H W 3"]) -> float:
        """Distance of two pictures in 0..1."""
        device = self.get_buffer("shift").device
        pair = (torch.from_numpy(picture).to(device).permute(2, 0, 1)[None] * 2 - 1 for picture in (own, wanted))
        return float(self(*pair))


def load(net: Net) -> Lpips:
    """Load LPIPS with the weights that the user provides, onto a GPU if there is one.

    Raises:
        WeightsError: the weights are missing or damaged.
    """
    path = find(WEIGHTS[net])
    if path is None:
        raise WeightsError(f"LPIPS {missing_file(WEIGHTS[net])}.")
    return Lpips(net, path).to(best_device())


def _shapes(net: Net) -> dict[int, tuple[int, int, int]]:
    """Input channels, output channels and side of each convolution."""
    if net == "alex":
        return {0: (3, 64, 11), 3: (64, 192, 5), 6: (192, 384, 3), 8: (384, 256, 3), 10: (256, 256, 3)}
    shapes, inputs = {}, 3
    for block, outputs in zip(VGG, (64, 128, 256, 512, 512), strict=True):
        for index in block:
            shapes[index] = (inputs, outputs, 3)
            inputs = outputs
    return shapes


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + LEAST)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is no safetensors file ({error}). Make it again as README.md says.") from error
