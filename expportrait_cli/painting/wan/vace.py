"""Public Wan models on the proxy film: VACE repaints what the proxy guessed, and a text-to-video Wan refines it all.

VACE was trained to repaint masked parts of videos, and to follow grey or depth videos, but not normal maps. It is
conditioned on the proxy's pixels outside the mask and on their grey levels inside; or on the head's depth, all masked;
or on normal maps, with a LoRA that was trained on them. The photo is its reference picture, and sampling starts from
the proxy film with noise added.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Literal

import cv2
import numpy as np
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel
from jaxtyping import Bool, Float
from torch import Tensor, nn

from expportrait_cli.errors import WeightsError
from expportrait_cli.painting.scene import Sketch, Sketches, Still
from expportrait_cli.painting.wan.film import Conditions, Velocity
from expportrait_cli.painting.wan.masks import Masks
from expportrait_cli.painting.wan.portrait import TIMESTEPS
from expportrait_cli.painting.wan.prompts import Prompts, padded
from expportrait_cli.painting.wan.vae import CHANNELS, SPACE, Encoding, Vae, pixels
from expportrait_cli.painting.wan.windows import STRIDE, Chunks, Painted, Picture, chunks, latent_of
from expportrait_cli.render.buffers import encode
from expportrait_cli.runtime import read_ahead

GREY = 127
"""Level of masked pixels, as VACE was trained."""
FAR = 0.3
"""Grey level, 0..1, of the head's farthest point in a depth video; the background is 0."""
REACH = 1.1
"""Factor by which the head may be nearer or farther than in the photo before its grey levels are clipped."""
Control = Literal["proxy", "holes", "depth", "normals"]
AHEAD = 16
"""Latent frames whose masks are made ahead: the new ones of a window, 21 less an overlap of 5."""


class VaceModel:
    """VACE, conditioned on a photo and prompts."""

    def __init__(
        self,
        transformer: WanVACETransformer3DModel,
        vae: Vae,
        prompts: Prompts,
        still: Still,
        *,
        control: Control = "proxy",
        keep: bool = True,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """Encode the photo. With `keep`, pixels outside the mask are those of the proxy film, not VACE's."""
        needed = 2 * CHANNELS + SPACE**2
        found = transformer.config["vace_in_channels"]
        if found != needed:
            raise WeightsError(
                f"The transformer's control has {found} channels, expected {needed}: "
                "its folder's parts are not of one model. Download it again."
            )
        self.memory = vae.encoder_memory + Masks.memory
        self._transformer, self._vae, self._prompts, self._wake = transformer, vae, prompts, wake
        self._control: Control = control
        self._keep, self._still = keep, still
        # The reference picture is one latent frame in front of the film.
        self.front = vae.encode(pixels([still.photo]))
        # Its mask is zero: nothing of it is repainted.
        blank = self.front.new_zeros(1, needed - CHANNELS, *self.front.shape[2:])
        self._reference = torch.cat([self.front, blank], 1)

    def controls(self, frames: Chunks, first: int) -> Iterator[Conditions]:
        """Yield the control (latents of kept pixels, latents of the guide, mask) and the latents of the proxy film."""
        encoding = Encoding(self._vae)
        device = self._vae.model.device
        for proxies, guides, cells in read_ahead(self._prepared(frames), AHEAD):
            mask = torch.from_numpy(cells.repeat(SPACE, 0).repeat(SPACE, 1)).to(device)
            proxy = pixels(proxies, device)
            kept, guide = proxy * ~mask, pixels(guides, device) * mask
            latents = encoding.push(torch.cat([kept, guide, proxy]))
            control = latents[:2].flatten(0, 1)[None]
            channels = torch.cat([control, _on_grid(mask).to(control)], 1)
            # In main memory, where `pasted` needs it; for sampling it is copied to the GPU.
            keep = torch.from_numpy(~cells)[None, None, None].float() if self._keep else None
            yield Conditions(channels, latents[2:], keep)

    def _prepared(self, frames: Chunks) -> Iterator[tuple[list[Picture], list[Picture], Bool[np.ndarray, "h w"]]]:
        """Yield proxy frames, guide frames and mask of each latent frame; runs in a thread beside the transformer."""
        for chunk, cells in Masks(self._still).of(frames):
            if self._control in ("depth", "normals"):
                cells[:] = not isinstance(chunk[0], Painted)
            yield (
                [sketch.proxy for sketch in chunk],
                [guide_of(sketch, self._control, self._still) for sketch in chunk],
                cells,
            )

    def velocity(self, control: Float[Tensor, "1 C T h w"]) -> Velocity:
        """Velocity of a window, and of the reference frame in front of it, with the prompt."""
        return self._velocity(control, self._prompts.positive)

    def unconditional(self, control: Float[Tensor, "1 C T h w"]) -> Velocity:
        """Velocity of the same window with the negative prompt; proxy and photo stay, as in VACE's own pipeline."""
        return self._velocity(control, self._prompts.against())

    def _velocity(self, control: Tensor, prompt: Tensor) -> Velocity:
        transformer = self._transformer
        extended = torch.cat([self._reference.to(control), _as_published(control)], 2)

        def velocity(state: Tensor, sigma: float) -> Tensor:
            self._wake()
            shown = extended.to(state.device, transformer.dtype)
            return transformer(
                hidden_states=state.to(transformer.dtype),
                timestep=torch.full((1,), sigma * TIMESTEPS, device=state.device),
                encoder_hidden_states=prompt.to(state.device, transformer.dtype),
                control_hidden_states=shown,
                control_hidden_states_scale=shown.new_ones(len(transformer.config["vace_layers"])),
                return_dict=False,
            )[0].float()

        return velocity


def guide_of(sketch: Sketch, control: Control, still: Still) -> Picture:
    """Control picture inside the mask: grey levels, plain grey, depth or normals, which VACE (or a LoRA) follows."""
    if isinstance(sketch, Painted):
        return sketch.proxy
    match control:
        case "proxy":
            return cv2.cvtColor(cv2.cvtColor(sketch.proxy, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        case "holes":
            return np.full_like(sketch.proxy, GREY)
        case "depth":
            return _depth_picture(sketch.depth, still.depth)
        case "normals":
            return encode(sketch.normals)


class VaceBranch(nn.Module):
    """VACE as it is trained to follow normal maps, by a LoRA on its control branch.

    Its conditions are those of `VaceModel` with `control="normals"`: latents of the normal maps, all masked.
    """

    base, has_hint, image_encoder = "vace", False, None

    def __init__(self, transformer: WanVACETransformer3DModel, prompt_embeds: Float[Tensor, "L D"]) -> None:
        """`prompt_embeds`: the embedded prompt, without padding."""
        super().__init__()
        self.transformer = transformer
        self.register_buffer("prompt", prompt_embeds.float(), persistent=False)
        self.prompt: Tensor

    def forward(
        self,
        latents: Float[Tensor, "B 16 T h w"],
        timestep: Float[Tensor, " B"],
        control: Float[Tensor, "B 32 T h w"],
        reference_latents: Float[Tensor, "B 16 1 h w"],
        reference_noise: Float[Tensor, "B 16 1 h w"],
    ) -> Float[Tensor, "B 16 T h w"]:
        """Predict the velocity (noise minus film) of noisy latents; `timestep` is 1000 sigma.

        `control`: 16 channels of a grey film, 16 of the normal maps. The photo is put in front as one latent frame:
        clean in the control, and with `reference_noise` at this sigma in the noisy latents; its velocity is dropped.
        """
        sigma = (timestep / TIMESTEPS).view(-1, 1, 1, 1, 1)
        front = torch.lerp(reference_latents, reference_noise, sigma.to(reference_latents))
        masks = control.new_ones(len(control), SPACE**2, *control.shape[2:])
        extended = nn.functional.pad(reference_latents, (0, 0, 0, 0, 0, 0, 0, CHANNELS + SPACE**2))
        extended = torch.cat([extended, torch.cat([control, masks], 1)], 2)
        dtype = self.transformer.dtype
        text = padded(self.prompt).expand(len(latents), -1, -1)
        velocity = self.transformer(
            hidden_states=torch.cat([front, latents], 2).to(dtype),
            timestep=timestep,
            encoder_hidden_states=text.to(dtype),
            control_hidden_states=extended.to(dtype),
            control_hidden_states_scale=extended.new_ones(len(self.transformer.config["vace_layers"])).to(dtype),
            return_dict=False,
        )[0]
        return velocity[:, :, 1:].to(latents.dtype)


def control_sheet(still: Still, sketches: Sketches, count: int, control: Control, *, columns: int = 5) -> Picture:
    """Draw the conditions of VACE as one picture, without any weights.

    Its rows are the proxy, the proxy with the guide inside the mask, and the mask; the photo is in front.
    """
    rows = [[still.photo], [np.zeros_like(still.photo)], [np.zeros_like(still.photo)]]
    for frame in np.unique(np.linspace(0, count - 1, columns).round().astype(int)).tolist():
        latent = latent_of(frame)
        first = max(0, latent - Masks.memory)
        groups = islice(chunks(sketches(STRIDE * first), first=first, count=count), latent + Masks.memory - first)
        chunk, cells = next(islice(Masks(still).of(groups), latent - first, None))
        sketch, (height, width) = chunk[-1], still.photo.shape[:2]
        if control in ("depth", "normals"):
            cells[:] = True
        mask = cells.repeat(SPACE, 0).repeat(SPACE, 1)[:height, :width, None]
        guided = np.where(mask, guide_of(sketch, control, still), sketch.proxy)
        for row, picture in zip(rows, (sketch.proxy, guided, np.uint8(255) * mask.repeat(3, 2)), strict=True):
            row.append(picture.astype(np.uint8))
    return np.concatenate([np.concatenate(row, 1) for row in rows])


def _as_published(control: Float[Tensor, "1 C T h w"]) -> Float[Tensor, "1 C T h w"]:
    """Resample the masks of a window's control over time, as in the training of VACE.

    There, T masks are picked evenly from those of 4 T - 3 frames (`nearest-exact` in `WanVACEPipeline.prepare_masks`,
    and in Wan's own code), so that the mask of latent frame t is from up to one latent frame after it.
    """
    count = control.shape[2]
    frames = ((torch.arange(count) + 0.5) * (STRIDE * (count - 1) + 1) / count).long()
    masks = control[:, 2 * CHANNELS :, -(-frames // STRIDE)]
    return torch.cat([control[:, : 2 * CHANNELS], masks], 1)


def _on_grid(mask: Bool[Tensor, "H W"]) -> Float[Tensor, "1 64 1 h w"]:
    """Rearrange the mask of a latent frame: the 8 x 8 pixels of a latent pixel become its 64 channels."""
    height, width = mask.shape[0] // SPACE, mask.shape[1] // SPACE
    cells = mask.view(height, SPACE, width, SPACE).permute(1, 3, 0, 2)
    return cells.reshape(1, SPACE**2, 1, height, width).float()


def _depth_picture(depth: Float[np.ndarray, "H W"], photo: Float[np.ndarray, "H W"] | None) -> Picture:
    """Draw depth like the estimators that VACE was trained with: grey, proportional to 1 / depth, near is white.

    The range is that of the photo's head, widened by `REACH`, for all frames: with a range of its own each frame would
    differ in brightness. Without a head in the photo it is the frame's.
    """
    head, near = depth > 0, np.zeros(depth.shape, np.float32)
    known, reach = (depth, 1.0) if photo is None else (photo, REACH)
    if head.any() and (known > 0).any():
        low, high = 1 / (reach * known[known > 0].max()), reach / known[known > 0].min()
        near[head] = FAR + (1 - FAR) * np.clip((1 / depth[head] - low) / max(high - low, 1e-6), 0, 1)
    return np.repeat(np.rint(255 * near).astype(np.uint8)[..., None], 3, 2)


class FinishModel:
    """A text-to-video transformer that refines the proxy film: noise is added to it and removed again (SDEdit).

    Meng et al. 2022. The photo is not a condition of its own.
    """

    front = None

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        vae: Vae,
        prompts: Prompts,
        *,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """Check that the transformer is a text-to-video one, by its channels."""
        found = transformer.config["in_channels"]
        if found != CHANNELS:
            raise WeightsError(
                f"wan-v2v needs a transformer with {CHANNELS} input channels, this one has {found}. "
                f"Name the folder of Wan2.1-T2V-1.3B-Diffusers."
            )
        self.memory = vae.encoder_memory
        self._transformer, self._vae, self._prompts, self._wake = transformer, vae, prompts, wake

    def controls(self, frames: Chunks, first: int) -> Iterator[Conditions]:
        """Yield the latents of the proxy film, the only condition beside the prompt."""
        encoding = Encoding(self._vae)
        for chunk in frames:
            film = encoding.push(pixels([sketch.proxy for sketch in chunk], self._vae.model.device))
            yield Conditions(film, film)

    def velocity(self, control: Float[Tensor, "1 C T h w"]) -> Velocity:
        """Velocity of a window with the prompt."""
        # The cache has the state of the window before.
        self._transformer._reset_stateful_cache()
        return self._velocity(self._prompts.positive, "conditional")

    def unconditional(self, control: Float[Tensor, "1 C T h w"]) -> Velocity:
        """Velocity of a window with the negative prompt."""
        return self._velocity(self._prompts.against(), "unconditional")

    def _velocity(self, prompt: Tensor, context: str) -> Velocity:
        transformer = self._transformer

        def velocity(state: Tensor, sigma: float) -> Tensor:
            self._wake()
            with transformer.cache_context(context):
                return transformer(
                    hidden_states=state.to(transformer.dtype),
                    timestep=torch.full((1,), sigma * TIMESTEPS, device=state.device),
                    encoder_hidden_states=prompt.to(state.device, transformer.dtype),
                    return_dict=False,
                )[0].float()

        return velocity
