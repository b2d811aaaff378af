"""Wan transformers that take more channels than they were made with, and files in Wan's own format."""

import re
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from expportrait_cli.errors import WeightsError

PATCH = "patch_embedding.weight"
HEAD_DIM = 128
"""Channels of an attention head in every Wan that was published; a file's tensors do not tell."""

OTHERS = ("vace_blocks", "face_adapter", "motion_encoder", "ref_conv", "img_emb.emb_pos")
"""Tensors of VACE, Animate, Fun and first-and-last-frame models."""


def widened(transformer: WanTransformer3DModel, channels: int) -> WanTransformer3DModel:
    """The same transformer with `channels` more at its input, whose weights are zero: at first they change nothing.

    Shares the other weights. By hand, because `from_pretrained(ignore_mismatched_sizes=True)` leaves the weights of
    that layer without values.
    """
    config = {name: value for name, value in transformer.config.items() if not name.startswith("_")}
    own: nn.Conv3d = transformer.patch_embedding
    with torch.device("meta"):
        wide = WanTransformer3DModel(**{**config, "in_channels": own.in_channels + channels})
    tensors = dict(transformer.state_dict())
    tensors[PATCH] = torch.cat([own.weight.detach(), own.weight.new_zeros(_slice(own.weight, channels))], 1)
    wide.load_state_dict(tensors, assign=True)
    # Tables of angles are no weights: they are in no state, and what was made on `meta` has no values.
    wide.rope = transformer.rope
    return wide.train(transformer.training)


def _slice(weight: Tensor, channels: int) -> tuple[int, ...]:
    return (weight.shape[0], channels, *weight.shape[2:])


def from_original(path: Path, *, head_dim: int = HEAD_DIM) -> WanTransformer3DModel:
    """Read a transformer in the format that Wan itself, and most tools, publish it in.

    Everything but `head_dim` is read off the shapes of its tensors: diffusers' own reader guesses by one of them, and
    takes a 1.3B model with 36 or 48 channels for the plain one.

    Raises:
        WeightsError: no such file, or none of a Wan transformer.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}. Download or copy it again.") from error
    tensors = {name.removeprefix("model.diffusion_model."): value for name, value in tensors.items()}
    extra = sorted(name for name in tensors if name.startswith(OTHERS))
    if extra:
        raise WeightsError(f"{path} is a Wan of another kind (it has {extra[0]}); expected a plain T2V or I2V one.")
    try:
        config = original_config(tensors, head_dim)
        with torch.device("meta"):
            model = WanTransformer3DModel(**config)
        rope = type(model.rope)(head_dim, config["patch_size"], model.config["rope_max_seq_len"])
        model.load_state_dict(convert_wan_transformer_to_diffusers(tensors), assign=True)
    except (LookupError, RuntimeError, ValueError, TypeError, ZeroDivisionError) as error:
        said = " ".join(str(error).split())[:160]
        raise WeightsError(f"{path} holds no Wan transformer that this tool knows: {said}") from error
    model.rope = rope
    return model.eval()


def original_config(tensors: dict[str, Tensor], head_dim: int = HEAD_DIM) -> dict[str, Any]:
    """Arguments of `WanTransformer3DModel` for tensors under Wan's own names."""
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
