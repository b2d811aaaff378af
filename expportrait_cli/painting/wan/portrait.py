"""The paper's generator: a Wan transformer with more input channels, for its conditions (paper 3.3)."""

import re
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from expportrait_cli.errors import InputError, WeightsError, one_line
from expportrait_cli.painting.wan.encoders import CHANNELS, PoseEncoder, ReferenceEncoder
from expportrait_cli.painting.wan.prompts import TOKENS, padded

PATCH = "patch_embedding.weight"
HEAD_DIM = 128
"""Channels of an attention head in all published Wan models; it cannot be derived from a file's tensors."""

OTHERS = ("vace_blocks", "face_adapter", "motion_encoder", "ref_conv", "img_emb.emb_pos")
"""Beginnings of tensor names by which other Wan models (VACE, Animate, Fun, first-and-last-frame) are refused."""


def widened(transformer: WanTransformer3DModel, channels: int) -> WanTransformer3DModel:
    """Copy a transformer with `channels` more input channels, whose weights are zero; the others are shared.

    `from_pretrained(ignore_mismatched_sizes=True)` would not do: it leaves all weights of that layer without values.
    """
    config = {name: value for name, value in transformer.config.items() if not name.startswith("_")}
    own: nn.Conv3d = transformer.patch_embedding
    with torch.device("meta"):
        wide = WanTransformer3DModel(**{**config, "in_channels": own.in_channels + channels})
    tensors = dict(transformer.state_dict())
    tensors[PATCH] = torch.cat([own.weight.detach(), own.weight.new_zeros(_slice(own.weight, channels))], 1)
    wide.load_state_dict(tensors, assign=True)
    # The tables of rotary angles are not in the state dict, and have no values on `meta`.
    wide.rope = transformer.rope
    return wide.train(transformer.training)


def _slice(weight: Tensor, channels: int) -> tuple[int, ...]:
    return (weight.shape[0], channels, *weight.shape[2:])


def from_original(path: Path, *, head_dim: int = HEAD_DIM) -> WanTransformer3DModel:
    """Read a transformer in the format in which Wan itself, and most tools, publish it.

    Everything but `head_dim` is derived from the shapes of its tensors: diffusers' own reader guesses from one of them,
    and takes a 1.3B model with 36 or 48 channels for the plain one.

    Raises:
        WeightsError: the file is missing, or is no Wan transformer.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}. Download or copy it again.") from error
    tensors = {name.removeprefix("model.diffusion_model."): value for name, value in tensors.items()}
    extra = sorted(name for name in tensors if name.startswith(OTHERS))
    if extra:
        raise WeightsError(f"{path} is a Wan of another kind (it has {extra[0]}); expected a plain T2V or I2V model.")
    try:
        config = original_config(tensors, head_dim)
        with torch.device("meta"):
            model = WanTransformer3DModel(**config)
        rope = type(model.rope)(head_dim, config["patch_size"], model.config["rope_max_seq_len"])
        model.load_state_dict(convert_wan_transformer_to_diffusers(tensors), assign=True)
    except (LookupError, RuntimeError, ValueError, TypeError, ZeroDivisionError) as error:
        said = one_line(error)
        raise WeightsError(f"{path} holds no Wan transformer that this tool knows: {said}") from error
    model.rope = rope
    return model.eval()


def original_config(tensors: dict[str, Tensor], head_dim: int = HEAD_DIM) -> dict[str, Any]:
    """Derive the arguments of `WanTransformer3DModel` from tensors with Wan's own names."""
    dim, channels, *patch = tensors[PATCH].shape
    head = tensors["head.head.weight"].shape[0]
    blocks = {int(found[1]) for name in tensors if (found := re.match(r"blocks\.(\d+)\.", name))}
    with_image = "img_emb.proj.1.weight" in tensors
    return {
        "patch_size": tuple(patch),
        "num_attention_heads": dim // head_dim,
        "attention_head_dim": head_dim,
        "in_channels": channels,
        "out_channels": head // int(torch.tensor(patch).prod()),
        "text_dim": tensors["text_embedding.0.weight"].shape[1],
        "freq_dim": tensors["time_embedding.0.weight"].shape[1],
        "ffn_dim": tensors["blocks.0.ffn.0.weight"].shape[0],
        "num_layers": len(blocks),
        "cross_attn_norm": "blocks.0.norm3.weight" in tensors,
        "qk_norm": "rms_norm_across_heads" if "blocks.0.self_attn.norm_q.weight" in tensors else None,
        "image_dim": tensors["img_emb.proj.1.weight"].shape[1] if with_image else None,
        "added_kv_proj_dim": tensors["blocks.0.cross_attn.k_img.weight"].shape[1] if with_image else None,
    }


Base = Literal["t2v", "i2v"]

TIMESTEPS = 1000
"""Timestep of pure noise."""
LATENT, MASK = 16, 4
"""Channels of the Wan 2.1 latents, and of the mask of given frames."""


def base_of(transformer: WanTransformer3DModel) -> Base:
    """Return the kind of a base, from its channels: text-to-video or image-to-video.

    Raises:
        WeightsError: the channels are those of neither.
    """
    config = transformer.config
    inside, outside = int(config["in_channels"]), int(config["out_channels"])
    if outside == LATENT and inside == LATENT:
        return "t2v"
    if outside == LATENT and inside == 2 * LATENT + MASK:
        return "i2v"
    raise WeightsError(
        f"The base has {inside} input and {outside} output channels; expected Wan 2.1 T2V (16, 16) or I2V (36, 16)."
    )


class WanPortrait(nn.Module):
    """Transformer, both encoders of normals, and the embedded prompt, which is always the same."""

    def __init__(
        self, transformer: WanTransformer3DModel, prompt_embeds: Float[Tensor, "L D"], *, base: Base, has_hint: bool
    ):
        """`transformer` must already have the input channels of the conditions; `from_base` adds them."""
        super().__init__()
        needed = LATENT + MASK + CHANNELS + LATENT * ((base == "i2v") + has_hint)
        if transformer.config["in_channels"] != needed:
            raise WeightsError(
                f"The transformer takes {transformer.config['in_channels']} channels, expected {needed}: the folder's "
                "parts are not of one generator. Copy it again."
            )
        if prompt_embeds.shape[1] != transformer.config["text_dim"] or len(prompt_embeds) > TOKENS:
            raise WeightsError(
                f"The prompt is {len(prompt_embeds)} tokens of {prompt_embeds.shape[1]} numbers, expected "
                f"{TOKENS} or fewer of {transformer.config['text_dim']}: it is another text encoder's."
            )
        self.base: Base = base
        self.has_hint = has_hint
        self.transformer = transformer
        self.pose = PoseEncoder()
        self.reference = ReferenceEncoder(CHANNELS if base == "t2v" else MASK + LATENT)
        if base == "i2v":
            # Its features are added to channels that the base already uses: the encoder must start with zero output.
            last = self.reference.layers[-1]
            nn.init.zeros_(last.weight)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(last.bias)  # pyright: ignore[reportArgumentType]
        self.register_buffer("prompt", prompt_embeds.float(), persistent=False)
        # Condition of an I2V model for frames that are not given: the latent of a grey film.
        self.register_buffer("blank", torch.zeros(LATENT))
        self.prompt: Tensor
        self.blank: Tensor
        # Folder of the CLIP for image tokens. It is no submodule: it is not trained, and runs once per photo.
        self.image_encoder: Path | None = None

    @classmethod
    def from_base(
        cls, transformer: WanTransformer3DModel, prompt_embeds: Float[Tensor, "L D"], *, has_hint: bool = False
    ) -> "WanPortrait":
        """Build a generator from a base, sharing its weights; encoders are initialised by torch's global generator."""
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
        """Predict the velocity (noise minus film) of noisy latents: `encode`, then `denoise`; `timestep` is 1000 sigma.

        `normals` may begin `lead` latent frames before the latents and end after them: the pose encoder then has the
        context that it has in a film.
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
        """Encode N^D and N^R into features, which are the same in every step; normals in -1..1, zero in the background.

        Raises:
            InputError: F is not 4k + 1, or a side is no multiple of 16.
        """
        still = reference_normals[:, :, 0] if reference_normals.ndim == 5 else reference_normals
        # In 16 bits, slowly changing normals would be quantised to a few values.
        with torch.autocast(normals.device.type, enabled=False):
            # Float32, unless a launcher that shards the weights has them in half precision.
            dtype = next(self.pose.parameters()).dtype
            normals, still = normals.to(dtype), still.to(dtype)
            if torch.is_grad_enabled() and self.transformer.gradient_checkpointing:
                # The activations at full resolution would need more memory than the transformer's blocks.
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
        """Predict the velocity of noisy latents, in their dtype.

        `timestep` is 1000 sigma; latents are normalised. `drop_control` sets features and hint to zero,
        `drop_reference` the photo, its mask and `image_embeds` (CLIP tokens of the photo, for an I2V base; or None).

        Raises:
            InputError: there is a hint and the generator has none, or the reverse.
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
        text = padded(self.prompt).expand(len(x), -1, -1).to(dtype)
        velocity = self.transformer(x, timestep, text, image_embeds, return_dict=False)[0]
        return velocity[:, :, 1:].to(latents.dtype)


def _kept(drop: Bool[Tensor, " B"] | None, like: Tensor) -> Tensor:
    """Factor for each sample of a batch: 0 where it is dropped, else 1."""
    if drop is None:
        return like.new_ones(1)
    return (~drop).to(like)[:, None, None, None, None]


def _at(latents: Tensor, channels: int) -> tuple[int, ...]:
    return (len(latents), channels, *latents.shape[2:])
