"""Any plain Wan as a finisher: noise is put on the proxy film and taken away again (SDEdit, Meng et al. 2022)."""

from collections.abc import Callable, Iterator

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from jaxtyping import Float
from torch import Tensor

from expportrait_cli.errors import WeightsError
from expportrait_cli.painting.wan.film import Chunks, Velocity
from expportrait_cli.painting.wan.vae import CHANNELS, Encoding, Vae, pixels

STEPS = 1000
"""Timestep of pure noise."""


class FinishModel:
    """A text-to-video transformer; the photo is only in the proxy film."""

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
                f" Name the folder of Wan2.1-T2V-1.3B-Diffusers."
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
        """There is nothing to leave out."""
        return self.velocity(control)

    def start(self, control: Float[Tensor, "1 C T h w"], noise: Float[Tensor, "1 C T h w"], sigma: float) -> Tensor:
        """The proxy film with noise on it."""
        return torch.lerp(control, noise, sigma)
