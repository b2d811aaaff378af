"""A transformer as Wan itself publishes it, in one file, to the folder that diffusers and this tool read."""

import logging
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors.torch import save_file

from expportrait_cli.errors import OutputError, UsageError, WeightsError
from expportrait_cli.generate.wan import manifest as facts
from expportrait_cli.generate.wan.base import BaseModel, prompt_embeds
from expportrait_cli.generate.wan.folder import SHARD, atomic_folder, copy_model
from expportrait_cli.generate.wan.image_encoder import IMAGE_ENCODER, encoder_for
from expportrait_cli.generate.wan.portrait import base_of
from expportrait_cli.generate.wan.widen import HEAD_DIM, from_original

log = logging.getLogger(__name__)

WHOLE = (torch.float32, torch.bfloat16, torch.float16)


def convert(original: Path, folder: Path, parts: BaseModel | None, *, head_dim: int = HEAD_DIM) -> dict[str, Any]:
    """Write `folder`, in full or not at all; what it holds.

    Beside the transformer go the autoencoder, the prompt and the image encoder of `parts`, without which no film can
    be painted or learned from.

    Raises:
        OutputError: there is something in the folder's place.
        UsageError: a file of a kind that can hold code.
        WeightsError: no Wan T2V or I2V that this tool knows, or `parts` of another model.
    """
    if original.suffix != ".safetensors":
        raise UsageError(f"{original} is no .safetensors file, and other kinds can hold code. Download that kind.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists and is not empty. Name a new folder with -o.")
    transformer = from_original(original, head_dim=head_dim)
    base = base_of(transformer)
    _check_numbers(transformer, original)
    with atomic_folder(folder) as partial:
        transformer.save_pretrained(partial / facts.TRANSFORMER, max_shard_size=SHARD)
        if parts is not None:
            _add(parts, transformer, partial)
        held = sorted(path.stem for path in partial.iterdir())
    if parts is None:
        log.warning(
            "%s holds the transformer alone. To train or paint with it name a Wan in the form of diffusers, whose "
            "autoencoder and prompt go along: --parts Wan-AI/Wan2.1-T2V-1.3B-Diffusers.",
            folder,
        )
    return {"base": base, "layers": transformer.config["num_layers"], "parts": held}


def _check_numbers(transformer: WanTransformer3DModel, original: Path) -> None:
    others = sorted({str(p.dtype).removeprefix("torch.") for p in transformer.parameters() if p.dtype not in WHOLE})
    if others:
        raise WeightsError(
            f"{original} holds numbers of {' and '.join(others)}, expected float32, bfloat16 or float16: take the file "
            "that was not quantised. `--quantize` does that when painting."
        )


def _add(parts: BaseModel, transformer: WanTransformer3DModel, folder: Path) -> None:
    prompt, width = prompt_embeds(parts.folder), transformer.config["text_dim"]
    if prompt.shape[1] != width:
        raise WeightsError(
            f"The prompt of {parts.folder} is {prompt.shape[1]} numbers a token, and the transformer reads {width}. "
            "Name the parts of the model that the file was made from."
        )
    encoder = encoder_for(transformer.config["image_dim"], parts.folder / IMAGE_ENCODER)
    save_file({"prompt_embeds": prompt}, folder / facts.PROMPT)
    copy_model(parts.vae, folder / facts.VAE)
    if encoder is not None:
        copy_model(encoder, folder / IMAGE_ENCODER)
