"""Public Wan models on the proxy film: VACE paints anew what the proxy had to make up, and a plain Wan finishes it.

VACE was trained to repaint masked parts of films, and to follow films of grey levels or of depth, but never on normal
maps. So either it is told the proxy's own pixels, and follows their grey levels where the proxy guessed; or it follows
the head's depth and paints everything; or the normal maps, with a LoRA that was trained on them. The photo is its
reference picture, and sampling starts from the proxy film with noise on it.
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
from expportrait_cli.painting.wan.film import Told, Velocity
from expportrait_cli.painting.wan.masks import Masks
from expportrait_cli.painting.wan.portrait import TIMESTEPS
from expportrait_cli.painting.wan.prompts import Prompts, padded
from expportrait_cli.painting.wan.vae import CHANNELS, SPACE, Encoding, Vae, pixels
from expportrait_cli.painting.wan.windows import STRIDE, Chunks, Painted, Picture, chunks, latent_of
from expportrait_cli.render.buffers import encode
from expportrait_cli.runtime import read_ahead

GREY = 127
"""Level of what is to be painted, as VACE was trained."""
FAR = 0.3
"""Level, of 1, of the head's farthest point in a film of depth; black is the background."""
REACH = 1.1
"""Factor by which the head may be nearer or farther than in the photo before its levels in a film of depth are cut."""
Control = Literal["proxy", "holes", "depth", "normals"]
AHEAD = 16
"""Latent frames whose masks are found before they are asked for: as many as a window has more than the one before."""


class VaceModel:
    """VACE that has seen the photo."""

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
        """Encode the photo. With `keep` the proxy stays as it is outside the mask, of which VACE repaints all else."""
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
        # The reference picture is a latent frame of its own, in front of the film.
        self.front = vae.encode(pixels([still.photo]))
        # It is given whole: nothing of it is masked.
        blank = self.front.new_zeros(1, needed - CHANNELS, *self.front.shape[2:])
        self._reference = torch.cat([self.front, blank], 1)

    def controls(self, frames: Chunks, first: int) -> Iterator[Told]:
        """Yield what is kept, what guides the rest, and the mask, all on the latent grid; and the proxy film."""
        encoding = Encoding(self._vae)
        device = self._vae.model.device
        for proxies, guides, cells in read_ahead(self._prepared(frames), AHEAD):
            mask = torch.from_numpy(cells.repeat(SPACE, 0).repeat(SPACE, 1)).to(device)
            proxy = pixels(proxies, device)
            kept, guide = proxy * ~mask, pixels(guides, device) * mask
            latents = encoding.push(torch.cat([kept, guide, proxy]))
            control = latents[:2].flatten(0, 1)[None]
            told = torch.cat([control, _on_grid(mask).to(control)], 1)
            # In main memory, where it is needed to paste; a GPU gets its own copy.
            keep = torch.from_numpy(~cells)[None, None, None].float() if self._keep else None
            yield Told(told, latents[2:], keep)

    def _prepared(self, frames: Chunks) -> Iterator[tuple[list[Picture], list[Picture], Bool[np.ndarray, "h w"]]]:
        """Proxy, guide and mask of each latent frame: a thread makes them while the transformer works."""
        for chunk, cells in Masks(self._still).of(frames):
            if self._control in ("depth", "normals"):
                cells[:] = not isinstance(chunk[0], Painted)
            yield (
                [sketch.proxy for sketch in chunk],
                [guide_of(sketch, self._control, self._still) for sketch in chunk],
                cells,
            )

    def velocity(self, control: Float[Tensor, "1 C T h w"]) -> Velocity:
        """Velocity of a window and of the reference before it."""
        return self._told(control, self._prompts.positive)

    def untold(self, control: Float[Tensor, "1 C T h w"]) -> Velocity:
        """Velocity of the same window with the negative prompt; proxy and photo stay, as in VACE's own pipeline."""
        return self._told(control, self._prompts.against())

    def _told(self, control: Tensor, prompt: Tensor) -> Velocity:
        transformer = self._transformer
        told = torch.cat([self._reference.to(control), _as_published(control)], 2)

        def velocity(state: Tensor, sigma: float) -> Tensor:
            self._wake()
            shown = told.to(state.device, transformer.dtype)
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
    """Picture that guides VACE inside the mask: a kind of film that it, or a LoRA, was trained to follow."""
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
    """VACE as it learns to follow normal maps: of its layers, those of a LoRA on the branch of its control.

    It is shown what `VaceModel` shows it with `control="normals"`: the maps' latents, all of it masked.
    """

    base, has_hint, image_encoder = "vace", False, None

    def __init__(self, transformer: WanVACETransformer3DModel, prompt_embeds: Float[Tensor, "L D"]) -> None:
        """Take a transformer and the embedded prompt, without padding."""
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
        """Velocity (noise minus film) of noisy latents; `timestep` is 1000 sigma.

        `control` are latents of a film of grey and of the normal maps; the photo is the first frame of both, in the
        state with its own noise.
        """
        sigma = (timestep / TIMESTEPS).view(-1, 1, 1, 1, 1)
        front = torch.lerp(reference_latents, reference_noise, sigma.to(reference_latents))
        masks = control.new_ones(len(control), SPACE**2, *control.shape[2:])
        told = nn.functional.pad(reference_latents, (0, 0, 0, 0, 0, 0, 0, CHANNELS + SPACE**2))
        told = torch.cat([told, torch.cat([control, masks], 1)], 2)
        dtype = self.transformer.dtype
        text = padded(self.prompt).expand(len(latents), -1, -1)
        velocity = self.transformer(
            hidden_states=torch.cat([front, latents], 2).to(dtype),
            timestep=timestep,
            encoder_hidden_states=text.to(dtype),
            control_hidden_states=told.to(dtype),
            control_hidden_states_scale=told.new_ones(len(self.transformer.config["vace_layers"])).to(dtype),
            return_dict=False,
        )[0]
        return velocity[:, :, 1:].to(latents.dtype)


def control_sheet(still: Still, sketches: Sketches, count: int, control: Control, *, columns: int = 5) -> Picture:
    """Draw the inputs of VACE as one picture: a row of the proxy, one of what guides VACE in it, and one of the mask.

    In front of them is the photo. No weights are needed.
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
        told = np.where(mask, guide_of(sketch, control, still), sketch.proxy)
        for row, picture in zip(rows, (sketch.proxy, told, np.uint8(255) * mask.repeat(3, 2)), strict=True):
            row.append(picture.astype(np.uint8))
    return np.concatenate([np.concatenate(row, 1) for row in rows])


def _as_published(control: Float[Tensor, "1 C T h w"]) -> Float[Tensor, "1 C T h w"]:
    """A window's control with masks as VACE was trained: those of single frames, evenly chosen from all of the film.

    With 4 T - 3 frames to choose T from, the choice for latent frame t lies up to one latent frame after it
    (`nearest-exact` of `WanVACEPipeline.prepare_masks`, and of Wan's own code).
    """
    count = control.shape[2]
    frames = ((torch.arange(count) + 0.5) * (STRIDE * (count - 1) + 1) / count).long()
    masks = control[:, 2 * CHANNELS :, -(-frames // STRIDE)]
    return torch.cat([control[:, : 2 * CHANNELS], masks], 1)


def _on_grid(mask: Bool[Tensor, "H W"]) -> Float[Tensor, "1 64 1 h w"]:
    """A mask of one latent frame: each of its pixels holds the 8x8 of the film."""
    height, width = mask.shape[0] // SPACE, mask.shape[1] // SPACE
    cells = mask.view(height, SPACE, width, SPACE).permute(1, 3, 0, 2)
    return cells.reshape(1, SPACE**2, 1, height, width).float()


def _depth_picture(depth: Float[np.ndarray, "H W"], photo: Float[np.ndarray, "H W"] | None) -> Picture:
    """Depth as the estimators that VACE was trained with draw it: near is white.

    Its limits are those of the photo's head and a tenth more, in all frames: with limits of its own, each frame would
    be of another brightness. Without a head in the photo they are the frame's.
    """
    head, near = depth > 0, np.zeros(depth.shape, np.float32)
    known, reach = (depth, 1.0) if photo is None else (photo, REACH)
    if head.any() and (known > 0).any():
        low, high = 1 / (reach * known[known > 0].max()), reach / known[known > 0].min()
        near[head] = FAR + (1 - FAR) * np.clip((1 / depth[head] - low) / max(high - low, 1e-6), 0, 1)
    return np.repeat(np.rint(255 * near).astype(np.uint8)[..., None], 3, 2)


class FinishModel:
    """A plain text-to-video transformer as a finisher: noise is put on the proxy film and taken away again.

    SDEdit, Meng et al. 2022. The photo is only in the proxy film.
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
        """Check that it is one that paints from noise and words alone."""
        found = transformer.config["in_channels"]
        if found != CHANNELS:
            raise WeightsError(
                f"wan-v2v needs a transformer of {CHANNELS} channels, this one has {found}. "
                f"Name the folder of Wan2.1-T2V-1.3B-Diffusers."
            )
        self.memory = vae.encoder_memory
        self._transformer, self._vae, self._prompts, self._wake = transformer, vae, prompts, wake

    def controls(self, frames: Chunks, first: int) -> Iterator[Told]:
        """Latents of the proxy film, which are all that it is told."""
        encoding = Encoding(self._vae)
        for chunk in frames:
            film = encoding.push(pixels([sketch.proxy for sketch in chunk], self._vae.model.device))
            yield Told(film, film)

    def velocity(self, control: Float[Tensor, "1 C T h w"]) -> Velocity:
        """Velocity of a window."""
        # What a cache remembers is of the window before.
        self._transformer._reset_stateful_cache()
        return self._told(self._prompts.positive, "told")

    def untold(self, control: Float[Tensor, "1 C T h w"]) -> Velocity:
        """Velocity of a window with the negative prompt."""
        return self._told(self._prompts.against(), "untold")

    def _told(self, prompt: Tensor, context: str) -> Velocity:
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
