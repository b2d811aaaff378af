"""Public Wan models on the proxy film: VACE paints anew what the proxy had to make up, and a plain Wan finishes it.

VACE was trained to repaint masked parts of films, and to follow films of depth, but never on normal maps. So either it
is told the proxy's own pixels, and the mask is what the proxy guessed; or it follows the head's depth and paints
everything. The photo is its reference picture.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import cv2
import numpy as np
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from expportrait_cli.errors import WeightsError
from expportrait_cli.painting.scene import Sketch, Still
from expportrait_cli.painting.wan.film import Chunks, Painted, Velocity
from expportrait_cli.painting.wan.vae import CHANNELS, SPACE, Encoding, Vae, filled, pixels

GUESSED = 0.5
"""Part of a pixel that the proxy made up, from which on it is painted anew."""
MARGIN = 12 / 512
"""Width, in heights of the picture, by which that is widened: a latent frame's pixels are 8 wide."""
GREY = 127
"""Level of what is to be painted, as VACE was trained."""
FAR = 0.3
"""Level, of 1, of the head's farthest point in a film of depth; black is the background."""
STEPS = 1000
"""Timestep of pure noise."""


class VaceModel:
    """VACE that has seen the photo."""

    lead = 1
    """The reference picture is a latent frame of its own, in front of the film."""

    def __init__(
        self,
        transformer: WanVACETransformer3DModel,
        vae: Vae,
        prompt: Float[Tensor, "1 L D"],
        still: Still,
        *,
        control: Literal["proxy", "depth"] = "proxy",
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """Encode the photo."""
        needed = 2 * CHANNELS + SPACE**2
        found = transformer.config["vace_in_channels"]
        if found != needed:
            raise WeightsError(
                f"The transformer's control has {found} channels, expected {needed}: "
                "its folder's parts are not of one model. Download it again."
            )
        self.memory = vae.encoder_memory
        self._transformer, self._vae, self._prompt, self._wake = transformer, vae, prompt, wake
        self._draws_depth = control == "depth"
        photo = vae.encode(pixels([still.photo]))
        # It is given whole: nothing of it is masked.
        self._reference = torch.cat([photo, photo.new_zeros(1, needed - CHANNELS, *photo.shape[2:])], 1)

    def controls(self, frames: Chunks, first: int) -> Iterator[Float[Tensor, "1 96 1 h w"]]:
        """What is kept, what guides the rest, and the mask, all on the latent grid."""
        encoding = Encoding(self._vae)
        for chunk in frames:
            masks = torch.from_numpy(np.stack([filled(self._mask(sketch)) for sketch in chunk]))
            film = pixels([self._film(sketch) for sketch in chunk])
            kept, guide = film * ~masks, film * masks
            latents = encoding.push(torch.cat([kept, guide]))
            yield torch.cat([latents.flatten(0, 1)[None], _on_grid(masks).to(latents)], 1)

    def velocity(self, control: Float[Tensor, "1 C T h w"]) -> Velocity:
        """Velocity of a window and of the reference before it."""
        return self._told(control, 1.0)

    def untold(self, control: Float[Tensor, "1 C T h w"]) -> Velocity:
        """Without the branch of the control: neither proxy nor photo."""
        return self._told(control, 0.0)

    def start(self, control: Tensor, noise: Float[Tensor, "1 c T h w"], sigma: float) -> Tensor:
        """From noise alone."""
        return sigma * noise

    def _told(self, control: Tensor, scale: float) -> Velocity:
        transformer = self._transformer

        def velocity(state: Tensor, sigma: float) -> Tensor:
            self._wake()
            told = torch.cat([self._reference.to(control), control], 2).to(state.device, transformer.dtype)
            return transformer(
                hidden_states=state.to(transformer.dtype),
                timestep=torch.full((1,), sigma * STEPS, device=state.device),
                encoder_hidden_states=self._prompt.to(state.device, transformer.dtype),
                control_hidden_states=told,
                control_hidden_states_scale=told.new_full((len(transformer.config["vace_layers"]),), scale),
                return_dict=False,
            )[0].float()

        return velocity

    def _mask(self, sketch: Sketch) -> Bool[np.ndarray, "H W"]:
        """What is painted anew."""
        guessed = sketch.guess > GUESSED
        if self._draws_depth and not isinstance(sketch, Painted):
            return np.ones_like(guessed)
        radius = max(1, round(MARGIN * len(guessed)))
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        return cv2.dilate(guessed.astype(np.uint8), disc) > 0

    def _film(self, sketch: Sketch) -> UInt8[np.ndarray, "H W 3"]:
        if self._draws_depth and not isinstance(sketch, Painted):
            return _depth_picture(sketch.depth)
        return np.where(self._mask(sketch)[..., None], np.uint8(GREY), sketch.proxy)


def _on_grid(masks: Bool[Tensor, "F H W"]) -> Float[Tensor, "1 64 1 h w"]:
    """Masks of one latent frame: each of its pixels holds the 8x8 of the film, masked where any of its frames is."""
    height, width = masks.shape[1] // SPACE, masks.shape[2] // SPACE
    cells = masks.any(0).view(height, SPACE, width, SPACE).permute(1, 3, 0, 2)
    return cells.reshape(1, SPACE**2, 1, height, width).float()


def _depth_picture(depth: Float[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Depth as the estimators that VACE was trained with draw it: near is white, each frame between its own limits."""
    head = depth > 0
    near = np.zeros(depth.shape, np.float32)
    near[head] = 1 / depth[head]
    if head.any():
        low, high = near[head].min(), near[head].max()
        near[head] = FAR + (1 - FAR) * (near[head] - low) / max(high - low, 1e-6)
    return np.repeat(np.rint(255 * near).astype(np.uint8)[..., None], 3, 2)


class FinishModel:
    """A plain text-to-video transformer as a finisher: noise is put on the proxy film and taken away again.

    SDEdit, Meng et al. 2022. The photo is only in the proxy film.
    """

    lead = 0

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        vae: Vae,
        prompt: Float[Tensor, "1 L D"],
        *,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """Check that it is one that paints from noise and words alone."""
        found = transformer.config["in_channels"]
        if found != CHANNELS:
            raise WeightsError(
                f"wan-v2v needs a transformer of {CHANNELS} channels, this one has {found}. "
                f"Name the folder of Wan2.1-T2V-1.3B-Diffusers."
            )
        self.memory = vae.encoder_memory
        self._transformer, self._vae, self._prompt, self._wake = transformer, vae, prompt, wake

    def controls(self, frames: Chunks, first: int) -> Iterator[Float[Tensor, "1 C 1 h w"]]:
        """Latents of the proxy film."""
        encoding = Encoding(self._vae)
        for chunk in frames:
            yield encoding.push(pixels([sketch.proxy for sketch in chunk]))

    def velocity(self, control: Float[Tensor, "1 C T h w"]) -> Velocity:
        """Velocity of a window; what it shows is all that the transformer is told."""
        transformer = self._transformer
        # What a cache remembers is of the window before.
        transformer._reset_stateful_cache()

        def velocity(state: Tensor, sigma: float) -> Tensor:
            self._wake()
            with transformer.cache_context("told"):
                return transformer(
                    hidden_states=state.to(transformer.dtype),
                    timestep=torch.full((1,), sigma * STEPS, device=state.device),
                    encoder_hidden_states=self._prompt.to(state.device, transformer.dtype),
                    return_dict=False,
                )[0].float()

        return velocity

    def untold(self, control: Float[Tensor, "1 C T h w"]) -> Velocity:
        """Velocity without the condition for guidance: this model has none that could be left out."""
        return self.velocity(control)

    def start(self, control: Float[Tensor, "1 C T h w"], noise: Float[Tensor, "1 C T h w"], sigma: float) -> Tensor:
        """The proxy film with noise on it."""
        return torch.lerp(control, noise, sigma)
