"""The small painter's network: Wan's transformer blocks between a convolutional stem and a head with skips.

It corrects the proxy film: the residual comes in one step, from the proxy, what it made up, the normals, and the photo
with its own normals as a frame before the first (paper 3.3 at the size of a toy; the codec of the latents is replaced
by the stem and the head, whose grid is the same eighth of the picture).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

PLANES = 7
"""Colour (3), guess (1), normals (3)."""
PROMPT = 8
"""Width of the text, of which there is none."""
CELL = 16
"""Pixels of a token's side: sizes have to be multiples."""


@dataclass(frozen=True)
class MiniShape:
    """Sizes of the network."""

    channels: tuple[int, int, int] = (32, 48, 96)
    """Of the stem at a half, a quarter and an eighth of the picture."""
    heads: int = 4
    head_width: int = 48
    layers: int = 4
    spread: int = 3
    """Width of the feed-forward layers, in widths of the tokens."""


class MiniNet(nn.Module):
    """Residual of a few consecutive frames."""

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
        # So that what is not trained yet is the proxy itself.
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
