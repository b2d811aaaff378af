"""Encoders of the conditions: of normal maps, and CLIP for image tokens."""

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from expportrait_cli.artifacts.files import sha256
from expportrait_cli.artifacts.texts import read_json
from expportrait_cli.errors import InputError, WeightsError, one_line
from expportrait_cli.painting.wan.manifest import TRANSFORMER

TEMPORAL, SPATIAL = 4, 8
"""Frames per latent frame (but one for the first), and side, px, of a latent pixel."""
MULTIPLE = 16
"""Sides of a film, px, are multiples of it: a token is two latent pixels wide and high."""
WIDTH, CHANNELS = 16, 16
"""Channels of the hidden layers of the encoders of normals, and of their output."""
SILU_GAIN = 1.68
"""One over the root mean square of SiLU(x), x standard normal."""


def latent_frames(frames: int) -> int:
    """Return the number of latent frames of a film: the first encodes one frame, each other one four.

    Raises:
        InputError: `frames` is not 1, 5, 9, ...
    """
    if frames < 1 or frames % TEMPORAL != 1:
        raise InputError(f"{frames} frames do not fit Wan, which takes 1, 5, 9, ..., 81. Repeat or leave out some.")
    return frames // TEMPORAL + 1


def check_size(height: int, width: int) -> None:
    """Raise InputError unless both sides are multiples of `MULTIPLE`."""
    if height % MULTIPLE or width % MULTIPLE or not height or not width:
        raise InputError(f"{width}x{height} px do not fit Wan: both sides must be multiples of {MULTIPLE}.")


class PoseEncoder(nn.Module):
    """Encodes the normal maps N^D of all frames into features that are concatenated to the noisy latents."""

    def __init__(self, channels: int = CHANNELS):
        """Six 3D convolutions: three at full size, three with stride 2 in space, the last two of these also in time."""
        super().__init__()
        layers: list[nn.Module] = []
        strides = ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2))
        for depth, stride in zip((3, *[WIDTH] * 5), strides, strict=True):
            layers += [nn.Conv3d(depth, WIDTH, 3, stride, padding=1), nn.SiLU()]
        self.layers = _woken(nn.Sequential(*layers, nn.Conv3d(WIDTH, channels, 1)))

    def forward(self, normals: Float[Tensor, "B 3 F H W"]) -> Float[Tensor, "B C T h w"]:
        """Encode maps in -1..1, zero in the background; T = (F - 1) / 4 + 1.

        Raises:
            InputError: F is not 4k + 1, or a side is no multiple of 16.
        """
        latent_frames(normals.shape[2])
        check_size(*normals.shape[3:])
        # The first latent frame encodes one frame, which is repeated four times here.
        first = normals[:, :, :1].expand(-1, -1, TEMPORAL - 1, -1, -1)
        return self.layers(torch.cat([first, normals], 2))


class ReferenceEncoder(nn.Module):
    """Encodes the normal map N^R of the photo into features of the reference frame."""

    def __init__(self, channels: int = CHANNELS):
        """Six 2D convolutions: three at full size, three with stride 2."""
        super().__init__()
        layers: list[nn.Module] = []
        for depth, stride in zip((3, *[WIDTH] * 5), (1, 1, 1, 2, 2, 2), strict=True):
            layers += [nn.Conv2d(depth, WIDTH, 3, stride, padding=1), nn.SiLU()]
        self.layers = _woken(nn.Sequential(*layers, nn.Conv2d(WIDTH, channels, 1)))

    def forward(self, normals: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Encode a map in -1..1, zero in the background.

        Raises:
            InputError: a side is no multiple of 16.
        """
        check_size(*normals.shape[2:])
        return self.layers(normals)


def _woken(layers: nn.Sequential) -> nn.Sequential:
    """Initialise so that each layer keeps the variance of its input (He et al. 2015, with the gain of SiLU).

    With torch's own initialisation, seven layers reduce the signal to three ten-thousandths.
    """
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            nn.init.normal_(layer.weight, std=SILU_GAIN / math.sqrt(layer.weight[0].numel()))
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return layers


IMAGE_ENCODER, CONFIG = "image_encoder", "config.json"
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of the colours (0..1, RGB) that every CLIP was trained with
(`preprocessor_config.json` of Wan2.1-I2V-14B-480P-Diffusers)."""


def find_image_encoder(folder: Path) -> Path | None:
    """Find the CLIP in a Wan model's folder; None if the transformer takes no image tokens, or there is no CLIP.

    Raises:
        WeightsError: the tokens of the CLIP have another width than the transformer takes.
    """
    return encoder_for(network_config(folder / TRANSFORMER).get("image_dim"), folder / IMAGE_ENCODER)


def encoder_for(reads: Any, folder: Path) -> Path | None:
    """Return `folder` if it has a CLIP; None if not, or if the transformer takes no tokens (`reads`: their width).

    Raises:
        WeightsError: as `find_image_encoder`.
    """
    if reads is None or not (folder / CONFIG).is_file():
        return None
    gives = network_config(folder).get("hidden_size")
    if gives != reads:
        raise WeightsError(
            f"{folder} gives tokens of {gives} numbers, and the transformer reads {reads}: it is another model's. "
            "Download the whole repository."
        )
    return folder


def network_config(folder: Path) -> dict[str, object]:
    """Read `config.json` of a network of diffusers or transformers.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    try:
        content = read_json(folder / CONFIG)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder / CONFIG} cannot be read: {error}. Download it again.") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{folder / CONFIG} holds no settings of a network. Download it again.")
    return content


class ImageEncoder:
    """A CLIP vision model; it is loaded at its first use."""

    def __init__(self, folder: Path, device: torch.device | None = None) -> None:
        self._folder, self._device = folder, device or torch.device("cpu")

    def digest(self) -> str:
        """Hash of the weights."""
        return "".join(sha256(path) for path in sorted(self._folder.glob("*.safetensors")))

    @torch.inference_mode()
    def tokens(self, picture: UInt8[np.ndarray, "H W 3"]) -> Float[Tensor, "1 I E"]:
        """Encode a picture into image tokens: CLIP's last layer but one, as Wan was trained with it.

        Raises:
            WeightsError: there is no CLIP in the folder.
        """
        shown = fitted(picture, self._model.config.image_size).to(self._device)
        return self._model(pixel_values=shown, output_hidden_states=True).hidden_states[-2]

    @cached_property
    def _model(self) -> Any:
        from transformers import CLIPVisionModel
        from transformers.utils import logging

        # transformers' progress bars would disturb the tool's.
        logging.disable_progress_bar()
        try:
            model: Any = CLIPVisionModel.from_pretrained(str(self._folder), use_safetensors=True, local_files_only=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            said = one_line(error)
            raise WeightsError(f"{self._folder} holds no CLIP vision model in safetensors files: {said}") from error
        return model.float().eval().requires_grad_(False).to(self._device)


def fitted(picture: UInt8[np.ndarray, "H W 3"], size: int) -> Float[Tensor, "1 3 S S"]:
    """Scale the shorter side to `size` px (bicubic, as CLIP was trained), crop the middle, normalise for CLIP."""
    height, width = picture.shape[:2]
    scale = size / min(height, width)
    shape = (max(size, int(width * scale)), max(size, int(height * scale)))
    small = np.asarray(Image.fromarray(picture).resize(shape, Image.Resampling.BICUBIC))
    top, left = (shape[1] - size) // 2, (shape[0] - size) // 2
    levels = small[top : top + size, left : left + size].astype(np.float32) / 255
    colours = (levels - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)
    return torch.from_numpy(colours).permute(2, 0, 1)[None]
