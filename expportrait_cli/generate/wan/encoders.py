"""Normal maps to features on the latent grid of the Wan VAE: an eighth of the size, a quarter of the frames.

Convolutions alone, as UniAnimate-DiT encodes its pose pictures, which the paper follows. They start at random: what
makes them silent at first are the zeros of the channels that they go to (`widen`).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from expportrait_cli.errors import InputError

TEMPORAL, SPATIAL = 4, 8
"""Pixel frames of a latent frame, and pixels of a latent pixel."""
MULTIPLE = 16
"""Sides of a film are multiples of it: two latent pixels are one token."""
WIDTH, CHANNELS = 16, 16


def latent_frames(frames: int) -> int:
    """Latent frames of a film: the first codes one frame, every other four.

    Raises:
        InputError: not 1, 5, 9, ... frames.
    """
    if frames < 1 or frames % TEMPORAL != 1:
        raise InputError(f"{frames} frames do not fit Wan, which takes 1, 5, 9, ..., 81. Repeat or leave out some.")
    return frames // TEMPORAL + 1


def check_size(height: int, width: int) -> None:
    """Raise InputError unless Wan can paint pictures of that size."""
    if height % MULTIPLE or width % MULTIPLE or not height or not width:
        raise InputError(f"{width}x{height} px do not fit Wan: both sides must be multiples of {MULTIPLE}.")


class PoseEncoder(nn.Module):
    """N^D of every frame to features that go with the noisy latents."""

    def __init__(self, channels: int = CHANNELS):
        """Three layers at full size, three that halve it, the last two of them the frames too."""
        super().__init__()
        layers: list[nn.Module] = []
        strides = ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2))
        for depth, stride in zip((3, *[WIDTH] * 5), strides, strict=True):
            layers += [nn.Conv3d(depth, WIDTH, 3, stride, padding=1), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Conv3d(WIDTH, channels, 1))

    def forward(self, normals: Float[Tensor, "B 3 F H W"]) -> Float[Tensor, "B C T h w"]:
        """Encode maps in -1..1, zero in the background; T = (F - 1) / 4 + 1.

        Raises:
            InputError: F is not 4k + 1, or a side is no multiple of 16.
        """
        latent_frames(normals.shape[2])
        check_size(*normals.shape[3:])
        # The first latent frame codes one frame, which stands for four here.
        first = normals[:, :, :1].expand(-1, -1, TEMPORAL - 1, -1, -1)
        return self.layers(torch.cat([first, normals], 2))


class ReferenceEncoder(nn.Module):
    """N^R of the photo to features of the reference."""

    def __init__(self, channels: int = CHANNELS):
        """As the pose encoder, for one picture."""
        super().__init__()
        layers: list[nn.Module] = []
        for depth, stride in zip((3, *[WIDTH] * 5), (1, 1, 1, 2, 2, 2), strict=True):
            layers += [nn.Conv2d(depth, WIDTH, 3, stride, padding=1), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(WIDTH, channels, 1))

    def forward(self, normals: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Encode a map in -1..1, zero in the background.

        Raises:
            InputError: a side is no multiple of 16.
        """
        check_size(*normals.shape[2:])
        return self.layers(normals)
