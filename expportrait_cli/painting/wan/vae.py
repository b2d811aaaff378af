"""Wan's VAE, run one latent frame at a time: films of any length in constant memory, without seams.

The class of diffusers takes a whole film, and keeps the caches of its causal convolutions inside; here they are kept
outside, so that a film can be pushed in chunks. The result is that of the whole film, to the last bit.

For previews, its decoder can be replaced by a tiny one: taew2_1 of https://github.com/madebyollin/taehv.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanCausalConv3d, WanResample
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from expportrait_cli.errors import WeightsError, one_line

SPACE = 8
"""Side of a latent pixel, px of the film."""
CHANNELS = 16
"""Channels of the latents."""


class Vae:
    """A VAE, with the mean and deviation by which its latents are normalised."""

    def __init__(
        self, model: AutoencoderKLWan, wake: Callable[[], None] = lambda: None, tiny: "TinyDecoder | None" = None
    ) -> None:
        """`wake` is called before each use of the model, which may be offloaded; `tiny` decodes in its place."""
        shrinks = model.config["scale_factor_spatial"]
        if (shrinks, model.config["z_dim"]) != (SPACE, CHANNELS):
            raise WeightsError(
                f"The autoencoder shrinks pictures {shrinks} times, expected {SPACE} times: "
                "take weights that are made from Wan 2.1 or Wan 2.2 A14B, not from Wan 2.2 5B."
            )
        self.model, self.wake, self.tiny = model, wake, tiny
        shape = (1, -1, 1, 1, 1)
        self._mean = torch.tensor(model.config["latents_mean"]).view(shape)
        self._deviation = torch.tensor(model.config["latents_std"]).view(shape)

    @property
    def encoder_memory(self) -> int:
        """Latent frames after the first from which on the encoder's output does not depend on where it began."""
        return _memory(self.model.encoder, frames_each=4)

    @property
    def decoder_memory(self) -> int:
        """Latent frames after the first from which on the decoder's output does not depend on where it began."""
        if self.tiny is not None:
            return self.tiny.memory
        return _memory(self.model.decoder, frames_each=1)

    def encode(self, picture: Float[Tensor, "B 3 1 H W"]) -> Float[Tensor, "B C 1 h w"]:
        """Encode single pictures, -1..1, into normalised latents, on the model's device."""
        return Encoding(self).push(picture)

    def normalised(self, latents: Float[Tensor, "B C T h w"]) -> Float[Tensor, "B C T h w"]:
        """Normalise latents to mean 0 and deviation 1 (over Wan's training films)."""
        return (latents.float() - self._mean.to(latents.device)) / self._deviation.to(latents.device)

    def raw(self, latents: Float[Tensor, "B C T h w"]) -> Float[Tensor, "B C T h w"]:
        """Undo `normalised`."""
        return latents.float() * self._deviation.to(latents.device) + self._mean.to(latents.device)


class Encoding:
    """State of the encoder in the middle of a film."""

    def __init__(self, vae: Vae) -> None:
        self._vae = vae
        self._remembered: list[Any] = [None] * _convolutions(vae.model.encoder)

    def push(self, frames: Float[Tensor, "B 3 F H W"]) -> Float[Tensor, "B C 1 h w"]:
        """Encode the next frames, -1..1, into one latent frame: one frame at the first call, then four a call."""
        self._vae.wake()
        model = self._vae.model
        moments = model.quant_conv(
            model.encoder(frames.to(model.device, model.dtype), feat_cache=self._remembered, feat_idx=[0])
        )
        return self._vae.normalised(moments[:, :CHANNELS])


class Decoding:
    """State of the decoder in the middle of a film."""

    def __init__(self, vae: Vae) -> None:
        self._vae = vae
        self._remembered: list[Any] = [None] * _convolutions(vae.model.decoder if vae.tiny is None else vae.tiny)
        self._is_first = True

    def push(self, latent: Float[Tensor, "B C 1 h w"]) -> Float[Tensor, "B 3 F H W"]:
        """Decode the next latent frame into frames, -1..1: one frame at the first call, then four a call."""
        if self._vae.tiny is not None:
            frames = self._vae.tiny(latent, self._remembered)
            # The first latent frame stands for one frame, which is the last of the four that come out.
            frames, self._is_first = frames[:, :, -1:] if self._is_first else frames, False
            return frames
        self._vae.wake()
        model = self._vae.model
        inner = model.post_quant_conv(self._vae.raw(latent.to(model.device)).to(model.dtype))
        frames = model.decoder(inner, feat_cache=self._remembered, feat_idx=[0], first_chunk=self._is_first)
        self._is_first = False
        return frames.float().clamp(-1, 1)


class TinyDecoder(nn.Module):
    """The decoder of taew2_1: about a hundred times less work than Wan's own, and softer pictures.

    Its layers have the names and numbers of those in the published file.
    """

    memory = 3 * 2 + 2
    """As `Vae.decoder_memory`: nine blocks depend on one frame before, three at each of the rates of 1, 2 and 4 frames
    a latent frame."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_Squash(), _conv(CHANNELS, 256), nn.ReLU()]
        # Channels of a stage and of the next, and frames that each of its frames is expanded to.
        for width, following, times in ((256, 128, 1), (128, 64, 2), (64, 64, 2)):
            layers += [*(_Remembering(width) for _ in range(3)), nn.Upsample(scale_factor=2)]
            layers += [_Growing(width, times), _conv(width, following, bias=False)]
        self.decoder = nn.ModuleList([*layers, nn.ReLU(), _conv(64, 3)])

    @classmethod
    def load(cls, path: Path, device: torch.device) -> "TinyDecoder":
        """Read `taew2_1.safetensors`, in half precision on GPUs.

        Raises:
            WeightsError: the file is damaged, or of another network.
        """
        tiny = cls()
        try:
            tensors = {name: value for name, value in load_file(path).items() if name.startswith("decoder.")}
            for number, layer in enumerate(tiny.decoder):
                if isinstance(layer, _Growing) and (name := f"decoder.{number}.conv.weight") in tensors:
                    # If a file expands time more often than this decoder, the last of the expanded frames is taken.
                    tensors[name] = tensors[name][-len(layer.conv.weight) :]
            tiny.load_state_dict(tensors)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise WeightsError(
                f"{path} is no tiny decoder of Wan 2.1: {one_line(error)}. Remove it, and run `expportrait weights "
                "fetch taew2.1`."
            ) from error
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        return tiny.to(device, dtype).eval().requires_grad_(False)

    def forward(self, latent: Float[Tensor, "1 C 1 h w"], remembered: list[Any]) -> Float[Tensor, "1 3 4 H W"]:
        """Decode the next latent frame (normalised) into four frames, -1..1.

        `remembered`: the last frame that each block has seen, updated in place; `_convolutions` values, None at first.
        """
        kind = next(self.parameters())
        frames, at = latent[0].transpose(0, 1).to(kind.device, kind.dtype), 0
        for layer in self.decoder:
            if isinstance(layer, _Remembering):
                past = torch.zeros_like(frames[:1]) if remembered[at] is None else remembered[at]
                remembered[at], at = frames[-1:], at + 1
                frames = layer(frames, torch.cat([past, frames[:-1]]))
            else:
                frames = layer(frames)
        return 2 * frames.float().clamp(0, 1).transpose(0, 1)[None] - 1


class _Remembering(nn.Module):
    """A residual block on each frame and the frame before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = (_conv(width, width), nn.ReLU(), _conv(width, width))
        self.conv = nn.Sequential(_conv(2 * width, width), nn.ReLU(), *inner)

    def forward(self, frames: Float[Tensor, "F C h w"], past: Float[Tensor, "F C h w"]) -> Float[Tensor, "F C h w"]:
        return torch.relu(self.conv(torch.cat([frames, past], 1)) + frames)


class _Growing(nn.Module):
    """Expands each frame to several frames."""

    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * times, 1, bias=False)

    def forward(self, frames: Float[Tensor, "F C h w"]) -> Float[Tensor, "G C h w"]:
        return self.conv(frames).reshape(-1, *frames.shape[1:])


class _Squash(nn.Module):
    """Limits latents to -3..3, smoothly."""

    def forward(self, frames: Float[Tensor, "F C h w"]) -> Float[Tensor, "F C h w"]:
        return 3 * torch.tanh(frames / 3)


def _conv(taken: int, given: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(taken, given, 3, padding=1, bias=bias)


def _convolutions(part: nn.Module) -> int:
    """Number of layers of a part that have a cache over time."""
    return sum(isinstance(module, WanCausalConv3d | _Remembering) for module in part.modules())


def _memory(part: nn.Module, *, frames_each: int) -> int:
    """Upper bound of the receptive field over time of `part`, into the past, in latent frames.

    `frames_each`: frames per latent frame at the input of `part`.
    """
    total, rate = 0.0, float(frames_each)
    for module in part.modules():
        if isinstance(module, WanCausalConv3d):
            total += (module.kernel_size[0] - 1) / rate
        elif isinstance(module, WanResample) and module.mode.endswith("3d"):
            # Its convolution over time comes next and is counted at the new rate; here it is counted at the old one.
            total += 2 / rate
            rate = rate * 2 if module.mode == "upsample3d" else rate / 2
    return int(total) + 2


def pixels(
    pictures: Sequence[UInt8[np.ndarray, "H W 3"]], device: torch.device | None = None
) -> Float[Tensor, "1 3 F h w"]:
    """Convert pictures into the VAE's input, -1..1, padded by `filled`."""
    stack = torch.from_numpy(np.stack([filled(picture) for picture in pictures])).to(device)
    return (stack.permute(3, 0, 1, 2).float() / 127.5 - 1)[None]


def filled(picture: np.ndarray) -> np.ndarray:
    """Repeat the last row and column until both sides are multiples of 16: 8 px a latent pixel, 2 of these a token."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, -height % 16), (0, -width % 16), *((0, 0),) * (picture.ndim - 2)), mode="edge")


def pictures(frames: Float[Tensor, "1 3 F h w"], height: int, width: int) -> list[UInt8[np.ndarray, "H W 3"]]:
    """Convert the VAE's output into pictures, without the padding."""
    levels = (frames[0, :, :, :height, :width] + 1) * 127.5
    return list(levels.round().to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu().numpy())
