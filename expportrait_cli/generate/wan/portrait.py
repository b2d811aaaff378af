"""The paper's generator: a Wan transformer that is shown the photo, its normals and those of every frame (3.3).

Input channels of the transformer, one latent frame a column; slot 0 is prepended for the photo and dropped from what
comes out:

    base   channels                      slot 0                       slots 1 to T
    T2V    16 noisy latents              photo                        noisy film
           4  mask "given"               1                            0
           16 features                   ReferenceEncoder(N^R)        PoseEncoder(N^D)
           16 hint, if there is one      photo                        proxy film
    I2V    16 noisy latents              photo                        noisy film
           4  mask + 16 given latents    1, photo                     0, blank; everywhere + ReferenceEncoder(N^R)
           16 features                   0                            PoseEncoder(N^D)
           16 hint, if there is one      photo                        proxy film

An I2V base whose folder has CLIP is told by image tokens, too, what the photo shows.

All that the base was not trained with is multiplied by zeros at first: before training the generator is the base.
"""

from pathlib import Path
from typing import Literal

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from expportrait_cli.errors import InputError, WeightsError
from expportrait_cli.generate.wan.encoders import CHANNELS, PoseEncoder, ReferenceEncoder
from expportrait_cli.generate.wan.widen import widened

Base = Literal["t2v", "i2v"]

TIMESTEPS = 1000
"""Timestep of pure noise."""
LATENT, MASK = 16, 4
"""Channels of the Wan 2.1 VAE, and of the mask that says which frames are given."""
TEXT_TOKENS = 512
"""Wan pads what the text encoder says with zeros to that length."""


def base_of(transformer: WanTransformer3DModel) -> Base:
    """What kind of transformer one can be made from, by its channels.

    Raises:
        WeightsError: none that this generator is made for.
    """
    config = transformer.config
    inside, outside = int(config["in_channels"]), int(config["out_channels"])
    if outside == LATENT and inside == LATENT:
        return "t2v"
    if outside == LATENT and inside == 2 * LATENT + MASK:
        return "i2v"
    raise WeightsError(
        f"The base takes {inside} channels and gives {outside}; expected Wan 2.1 T2V (16 and 16) or I2V (36 and 16)."
    )


class WanPortrait(nn.Module):
    """Transformer, both encoders of normals, and what a text encoder said of the one prompt."""

    def __init__(
        self, transformer: WanTransformer3DModel, prompt_embeds: Float[Tensor, "L D"], *, base: Base, has_hint: bool
    ):
        """Put together a transformer that takes all channels; `from_base` widens one."""
        super().__init__()
        needed = LATENT + MASK + CHANNELS + LATENT * ((base == "i2v") + has_hint)
        if transformer.config["in_channels"] != needed:
            raise WeightsError(
                f"The transformer takes {transformer.config['in_channels']} channels, expected {needed}: the folder's "
                "parts are not of one generator. Copy it again."
            )
        if prompt_embeds.shape[1] != transformer.config["text_dim"] or len(prompt_embeds) > TEXT_TOKENS:
            raise WeightsError(
                f"The prompt is {len(prompt_embeds)} tokens of {prompt_embeds.shape[1]} numbers, expected "
                f"{TEXT_TOKENS} or fewer of {transformer.config['text_dim']}: it is another text encoder's."
            )
        self.base: Base = base
        self.has_hint = has_hint
        self.transformer = transformer
        self.pose = PoseEncoder()
        self.reference = ReferenceEncoder(CHANNELS if base == "t2v" else MASK + LATENT)
        if base == "i2v":
            # Its features go to channels that the base knows, so here it is the encoder that has to start silent.
            last = self.reference.layers[-1]
            nn.init.zeros_(last.weight)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(last.bias)  # pyright: ignore[reportArgumentType]
        self.register_buffer("prompt", prompt_embeds.float(), persistent=False)
        # What an I2V model is given where nothing is given: the latent of a grey film.
        self.register_buffer("blank", torch.zeros(LATENT))
        self.prompt: Tensor
        self.blank: Tensor
        # Folder of the CLIP whose image tokens it is given. Not one of its parts: it does not learn, and is asked once.
        self.image_encoder: Path | None = None

    @classmethod
    def from_base(
        cls, transformer: WanTransformer3DModel, prompt_embeds: Float[Tensor, "L D"], *, has_hint: bool = False
    ) -> "WanPortrait":
        """Widen a base; shares its weights. The encoders start at random (torch's global generator)."""
        base = base_of(transformer)
        more = CHANNELS + LATENT * has_hint + MASK * (base == "t2v")
        return cls(widened(transformer, more), prompt_embeds, base=base, has_hint=has_hint)

    def forward(
        self,
        latents: Float[Tensor, "B 16 T h w"],
        timestep: Float[Tensor, " B"],
        normals: Float[Tensor, "B 3 F H W"],
        reference_latents: Float[Tensor, "B 16 1 h w"],
        reference_normals: Float[Tensor, "B 3 H W"] | Float[Tensor, "B 3 1 H W"],
        hint: Float[Tensor, "B 16 T h w"] | None = None,
        *,
        lead: int = 0,
        drop_control: Bool[Tensor, " B"] | None = None,
        drop_reference: Bool[Tensor, " B"] | None = None,
        image_embeds: Float[Tensor, "B I E"] | None = None,
    ) -> Float[Tensor, "B 16 T h w"]:
        """Velocity (noise minus film) of noisy latents: `encode`, then `denoise`; `timestep` is 1000 sigma.

        The normals are those of the latents' frames, or of a longer stretch in which the latents begin at latent frame
        `lead`: then the pose encoder sees what comes before and after a window, as it does in a film.
        """
        pose, reference = self.encode(normals, reference_normals)
        return self.denoise(
            latents,
            timestep,
            pose[:, :, lead : lead + latents.shape[2]],
            reference,
            reference_latents,
            hint,
            drop_control=drop_control,
            drop_reference=drop_reference,
            image_embeds=image_embeds,
        )

    def encode(
        self,
        normals: Float[Tensor, "B 3 F H W"],
        reference_normals: Float[Tensor, "B 3 H W"] | Float[Tensor, "B 3 1 H W"],
    ) -> tuple[Float[Tensor, "B 16 T h w"], Float[Tensor, "B C h w"]]:
        """Features of N^D and N^R, the same in every step; normals in -1..1, zero in the background.

        Raises:
            InputError: F is not 4k + 1, or a side is no multiple of 16.
        """
        still = reference_normals[:, :, 0] if reference_normals.ndim == 5 else reference_normals
        dtype = next(self.pose.parameters()).dtype
        normals, still = normals.to(dtype), still.to(dtype)
        if torch.is_grad_enabled() and self.transformer.gradient_checkpointing:
            # At full size its layers would hold more than the transformer's blocks.
            pose = checkpoint(self.pose, normals, use_reentrant=False)
            assert isinstance(pose, Tensor)
        else:
            pose = self.pose(normals)
        return pose, self.reference(still)

    def denoise(
        self,
        latents: Float[Tensor, "B 16 T h w"],
        timestep: Float[Tensor, " B"],
        pose: Float[Tensor, "B 16 T h w"],
        reference: Float[Tensor, "B C h w"],
        reference_latents: Float[Tensor, "B 16 1 h w"],
        hint: Float[Tensor, "B 16 T h w"] | None = None,
        *,
        drop_control: Bool[Tensor, " B"] | None = None,
        drop_reference: Bool[Tensor, " B"] | None = None,
        image_embeds: Float[Tensor, "B I E"] | None = None,
    ) -> Float[Tensor, "B 16 T h w"]:
        """Velocity of noisy latents, in their dtype.

        `timestep` is 1000 sigma, sigma the share of noise. Latents are normalised. What is dropped is zero: of the
        control the features and the hint, of the reference the photo, its mask and the `image_embeds`. These are CLIP's
        of the photo, for an I2V base; without them it sees none.

        Raises:
            InputError: a hint for a generator without one, or none for one with it.
        """
        if (hint is not None) != self.has_hint:
            wanted, given = ("a", "none was given") if self.has_hint else ("no", "one was given")
            raise InputError(f"This generator takes {wanted} proxy film beside the normals, {given}.")
        shown = _kept(drop_control, latents)
        photo = reference_latents * _kept(drop_reference, latents)
        given = latents.new_ones(len(latents), MASK, 1, *latents.shape[3:]) * _kept(drop_reference, latents)
        pose, still = pose * shown, reference[:, :, None] * shown
        if self.base == "t2v":
            slot, film = [photo, given, still], [latents, given.new_zeros(_at(latents, MASK)), pose]
        else:
            blank = self.blank.to(latents)[:, None, None, None].expand(_at(latents, LATENT))
            rest = torch.cat([given.new_zeros(_at(latents, MASK)), blank], 1)
            slot = [photo, torch.cat([given, photo], 1) + still, torch.zeros_like(photo)]
            film = [latents, rest + still, pose]
        if hint is not None:
            slot, film = [*slot, photo * shown], [*film, hint * shown]
        dtype = self.transformer.dtype
        x = torch.cat([torch.cat(slot, 1), torch.cat(film, 1)], 2).to(dtype)
        if image_embeds is not None:
            image_embeds = (image_embeds * _kept(drop_reference, image_embeds).reshape(-1, 1, 1)).to(dtype)
        text = self._text(len(x)).to(dtype)
        velocity = self.transformer(x, timestep, text, image_embeds, return_dict=False)[0]
        return velocity[:, :, 1:].to(latents.dtype)

    def _text(self, count: int) -> Float[Tensor, "B 512 D"]:
        padded = nn.functional.pad(self.prompt, (0, 0, 0, TEXT_TOKENS - len(self.prompt)))
        return padded.expand(count, -1, -1)


def _kept(drop: Bool[Tensor, " B"] | None, like: Tensor) -> Tensor:
    """Factor of each sample: 0 where something is dropped."""
    if drop is None:
        return like.new_ones(1)
    return (~drop).to(like)[:, None, None, None, None]


def _at(latents: Tensor, channels: int) -> tuple[int, ...]:
    return (len(latents), channels, *latents.shape[2:])
