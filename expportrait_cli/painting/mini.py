"""The painter `mini`: a small network with Wan's architecture that corrects what the proxy guessed."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from expportrait_cli.artifacts import network_file
from expportrait_cli.artifacts.network_file import NetworkKind
from expportrait_cli.errors import UsageError, WeightsError
from expportrait_cli.painting.scene import Sketch, Sketches, Still
from expportrait_cli.painting.wan import require_packages
from expportrait_cli.runtime import Between, Checked, use_threads

PLANES = 7
"""Input channels: colour (3), guessed share (1), normal (3)."""
PROMPT = 8
"""Width of the text embedding, which the transformer requires; it is zero."""
CELL = 16
"""Side of a token, px, of which the picture's sides must be multiples."""


@dataclass(frozen=True)
class MiniShape(Checked):
    """Sizes of the network."""

    channels: tuple[int, int, int] = (32, 48, 96)
    """Channels of the convolutions at a half, a quarter and an eighth of the picture's size."""
    heads: Annotated[int, Between(1, 64)] = 4
    head_width: Annotated[int, Between(6, 512)] = 48
    layers: Annotated[int, Between(1, 64)] = 4
    spread: Annotated[int, Between(1, 16)] = 3
    """Width of the feed-forward layers, as a multiple of the tokens' width."""


class MiniNet(nn.Module):
    """Predicts the correction (residual) of a few consecutive proxy frames."""

    def __init__(self, shape: MiniShape) -> None:
        from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

        super().__init__()
        self.shape = shape
        half, quarter, eighth = shape.channels
        width = shape.heads * shape.head_width
        self.enter = nn.Sequential(nn.PixelUnshuffle(2), _block(4 * PLANES, half))
        self.down = nn.ModuleList([_down(half, quarter), _down(quarter, eighth)])
        self.trunk = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=shape.heads,
            attention_head_dim=shape.head_width,
            in_channels=eighth,
            out_channels=eighth,
            text_dim=PROMPT,
            freq_dim=32,
            ffn_dim=shape.spread * width,
            num_layers=shape.layers,
            cross_attn_norm=True,
            rope_max_seq_len=64,
        )
        self.up = nn.ModuleList([_block(eighth + quarter, quarter), _block(quarter + half, half)])
        last = nn.Conv2d(half, 12, 3, padding=1)
        # Before training, the residual is zero.
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.leave = nn.Sequential(last, nn.PixelShuffle(2))

    def forward(
        self, frames: Float[Tensor, "B T 7 H W"], still: Float[Tensor, "B 7 H W"]
    ) -> Float[Tensor, "B T 3 H W"]:
        """Residuals of colours in -1..1; height and width are multiples of `CELL`."""
        batch, times = frames.shape[:2]
        planes = torch.cat([still[:, None], frames], 1).flatten(0, 1)
        halves = self.enter(planes)
        quarters = self.down[0](halves)
        eighths = self.down[1](quarters)
        volume = eighths.unflatten(0, (batch, times + 1)).transpose(1, 2)
        moment = torch.zeros(batch, device=planes.device)
        prompt = planes.new_zeros(batch, 1, PROMPT)
        (mixed,) = self.trunk(volume, moment, prompt, return_dict=False)
        deep = (volume + mixed).transpose(1, 2)[:, 1:].flatten(0, 1)
        skips = [each.unflatten(0, (batch, times + 1))[:, 1:].flatten(0, 1) for each in (quarters, halves)]
        for block, skip in zip(self.up, skips, strict=True):
            deep = block(torch.cat([_twice(deep), skip], 1))
        return self.leave(deep).unflatten(0, (batch, times))


def _block(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1), nn.SiLU(), nn.Conv2d(outside, outside, 3, padding=1), nn.SiLU()
    )


def _down(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, inside, 3, stride=2, padding=1), nn.SiLU(), _block(inside, outside))


def _twice(values: Tensor) -> Tensor:
    return nn.functional.interpolate(values, scale_factor=2.0, mode="nearest")


KIND = NetworkKind("mini", 1, "small painter", "Make one with `expportrait train mini`.")
SIZE = 256
"""Largest side of the crop, px, on which the network runs; it was trained at that size."""
TIMES = 4
"""Frames that are corrected together."""


class MiniPainter:
    """Corrects the proxy in fixed groups of four frames, so that frames do not depend on where painting starts."""

    name = "mini"
    detail = False
    """False: normal maps without static detail, as in training."""

    def __init__(self, network: MiniNet, size: int) -> None:
        """`size` is the crop's side in the film, px."""
        self._network, self._size = network, size

    def paint(
        self, still: Still, sketches: Sketches, *, start: int, count: int, keep: Path | None = None
    ) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """Yield corrected frames; at most one group of them is in memory."""
        scale = min(1.0, SIZE / self._size)
        shown = planes(_shrunk(still.photo, scale), None, _shrunk(still.normals, scale))
        first = start - start % TIMES
        frames = sketches(first)
        for index in range(first, count, TIMES):
            window = list(islice(frames, min(TIMES, count - index)))
            yield from self._corrected(window, shown, scale)[max(start - index, 0) :]

    def _corrected(self, window: list[Sketch], still: Tensor, scale: float) -> list[UInt8[np.ndarray, "H W 3"]]:
        """Correct a group, which may be shorter at the end: the network takes any length."""
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
    """Stack colours (as -1..1), guessed share (None: 0, for the photo) and normals into the network's input."""
    unsure = np.zeros(colour.shape[:2], np.float32) if guess is None else guess
    both = np.concatenate([colour.astype(np.float32) / 127.5 - 1, unsure[..., None], normals], -1)
    return torch.from_numpy(np.ascontiguousarray(both.transpose(2, 0, 1)))


def correct(
    network: MiniNet, frames: Float[Tensor, "B T 7 H W"], still: Float[Tensor, "B 7 H W"]
) -> Float[Tensor, "B T 3 H W"]:
    """Predict the correction of proxy frames (colours in -1..1), weighted by the share that the proxy guessed.

    Elsewhere the proxy has the photo's own pixels, which are sharper, and by 0.5 dB nearer to the truth, than corrected
    ones.
    """
    height, width = frames.shape[-2:]
    pad = (0, -width % CELL, 0, -height % CELL)
    filled = torch.nn.functional.pad(frames.flatten(0, 1), pad, mode="replicate").unflatten(0, frames.shape[:2])
    device = next(network.parameters()).device
    residual = network(filled.to(device), torch.nn.functional.pad(still, pad, mode="replicate").to(device))
    return residual[..., :height, :width].to(frames.device) * frames[:, :, 3:4]


def _shrunk(picture: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return picture
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def save_mini(network: MiniNet, path: Path, made_by: Mapping[str, Any]) -> None:
    """Write the network's weights."""
    header = {"network": asdict(network.shape), "made_by": dict(made_by)}
    network_file.write(path, KIND, network.state_dict(), header)


def load_mini(path: Path) -> MiniNet:
    """Read a network.

    Raises:
        WeightsError: the file is no `mini` network, or diffusers is not installed.
    """
    require_packages()
    use_threads()
    header = network_file.read_header(path, KIND)
    try:
        sizes = dict(header["network"])
        channels, tensors = tuple(sizes.pop("channels")), network_file.read_tensors(path)
        if len(channels) != 3 or any(type(count) is not int or not 0 < count <= 4096 for count in channels):
            raise ValueError(f"channels {channels}")
        shape = MiniShape(channels, **sizes)
        # First on `meta`, without memory: the header of a small file could describe a network of any size.
        with torch.device("meta"):
            expected = {name: tensor.shape for name, tensor in MiniNet(shape).state_dict().items()}
        if expected != {name: tensor.shape for name, tensor in tensors.items()}:
            raise ValueError("other shapes")
        network = MiniNet(shape)
        network.load_state_dict(tensors)
    except (KeyError, RuntimeError, TypeError, ValueError, UsageError) as error:
        raise WeightsError(f"{path} is damaged: its tensors do not fit the network in its header.") from error
    return network.eval().requires_grad_(False)
