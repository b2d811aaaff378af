"""Base models that a generator is trained from: found in folders of diffusers, or converted from Wan's own files."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from expportrait_cli.artifacts.files import atomic_folder
from expportrait_cli.errors import OutputError, UsageError, WeightsError
from expportrait_cli.painting.wan import manifest as facts
from expportrait_cli.painting.wan.encoders import IMAGE_ENCODER, encoder_for, find_image_encoder
from expportrait_cli.painting.wan.folder import SHARD, copy_model, load_folder, load_transformer
from expportrait_cli.painting.wan.portrait import HEAD_DIM, WanPortrait, base_of, from_original
from expportrait_cli.painting.wan.prompts import PROMPT_TEXT, embedded, encoded, has_encoder
from expportrait_cli.weights.catalogue import folders, licence_of


@dataclass(frozen=True)
class BaseModel:
    """Folder of a base model, and where it comes from."""

    folder: Path
    origin: dict[str, str]
    """`repo`, `revision` and `license`; empty where unknown."""

    @property
    def vae(self) -> Path:
        """Folder of the autoencoder."""
        if self.is_generator:
            return self.folder / facts.read_manifest(self.folder).vae
        return self.folder / facts.VAE

    @property
    def image_encoder(self) -> Path | None:
        """Folder of the CLIP whose image tokens the transformer takes; None without one."""
        return find_image_encoder(self.folder)

    @property
    def is_generator(self) -> bool:
        """True for a generator of `train generator`, False for a published Wan model."""
        return (self.folder / facts.FILE).is_file()


def find_base(name: str) -> BaseModel:
    """Find a folder, one of the weights folders, or a repository in Hugging Face's cache. Nothing is downloaded.

    Raises:
        WeightsError: none of these exists, or it is no Wan model in the format of diffusers.
    """
    folder = next((place for place in (Path(name), *(root / name for root in folders())) if place.is_dir()), None)
    if folder is None:
        folder = _cached(name)
        found = BaseModel(folder, {"repo": name, "revision": folder.name, "license": licence_of(folder)})
    elif (folder / facts.FILE).is_file():
        found = BaseModel(folder, dict(facts.read_manifest(folder).origin))
    else:
        found = BaseModel(folder, {"repo": folder.resolve().name, "revision": "", "license": licence_of(folder)})
    for part in (facts.TRANSFORMER, *(() if found.is_generator else (facts.VAE,))):
        if not (folder / part / "config.json").is_file():
            raise WeightsError(
                f"{folder} has no {part}/config.json: expected a Wan model in the format of diffusers, such as "
                "Wan-AI/Wan2.1-T2V-1.3B-Diffusers."
            )
    return found


def _cached(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        raise WeightsError(
            f"{name} is no folder, none of the weights folders, and not in Hugging Face's cache. Run `expportrait "
            "weights fetch wan-t2v-1.3b` and name that, or name a folder."
        ) from None


def check_hint(base: BaseModel, has_hint: bool) -> None:
    """Raise UsageError if `base` was trained with the proxy film and is to be trained without, or the reverse."""
    if base.is_generator and facts.read_manifest(base.folder).has_hint != has_hint:
        advice = "takes no proxy film: leave out" if has_hint else "takes the proxy film as well: add"
        raise UsageError(f"{base.folder} {advice} `hint`, or name another base.")


def fresh_portrait(base: BaseModel, *, has_hint: bool = False, dtype: torch.dtype = torch.float32) -> WanPortrait:
    """Build a generator to train, from a base or an earlier generator. New parts use torch's global random generator.

    An earlier generator has a hint if it was trained with one, whatever `has_hint` is: see `check_hint`.

    Raises:
        WeightsError: a part of the base is missing or cannot be read.
    """
    if base.is_generator:
        return load_folder(base.folder, dtype=dtype).portrait.requires_grad_(True)
    transformer = load_transformer(base.folder / facts.TRANSFORMER, dtype)
    portrait = WanPortrait.from_base(transformer, prompt_embeds(base.folder), has_hint=has_hint)
    portrait.image_encoder = base.image_encoder
    return portrait


def prompt_embeds(folder: Path) -> Float[Tensor, "L D"]:
    """Return the embedded prompt of a base: from its file, else by its text encoder, else as embedded before.

    Raises:
        WeightsError: none of these exists.
    """
    path = folder / facts.PROMPT
    if path.is_file():
        tensors = facts.read_tensors(path)
        if "prompt_embeds" not in tensors or tensors["prompt_embeds"].ndim != 2:
            raise WeightsError(
                f"{path} holds no matrix prompt_embeds (tokens x channels). Remove the file, or replace it."
            )
        return tensors["prompt_embeds"].float()
    return encoded(folder, PROMPT_TEXT) if has_encoder(folder) else embedded(PROMPT_TEXT)


log = logging.getLogger(__name__)

WHOLE = (torch.float32, torch.bfloat16, torch.float16)
"""Types of weights that are not quantised."""


def convert(original: Path, folder: Path, parts: BaseModel | None, *, head_dim: int = HEAD_DIM) -> dict[str, Any]:
    """Convert a file of Wan's own format into a new `folder`, in full or not at all.

    Returns the kind of base, the number of layers and the parts. Autoencoder, prompt and image encoder are copied from
    `parts`; without them no film can be painted or trained on.

    Raises:
        OutputError: the folder exists and is not empty.
        UsageError: the file is of a kind that can contain code.
        WeightsError: the file is no supported Wan T2V or I2V model, or `parts` belong to another model.
    """
    if original.suffix != ".safetensors":
        raise UsageError(f"{original} is no .safetensors file, and other kinds can hold code. Download that kind.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(
            f"{folder} exists and is not empty. Use it if it is this conversion's result, or name a new folder with -o."
        )
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
            "%s holds the transformer alone. To train or paint with it, name a Wan model in the format of "
            "diffusers, whose autoencoder and prompt are copied: `parts` Wan-AI/Wan2.1-T2V-1.3B-Diffusers.",
            folder,
        )
    return {"base": base, "layers": transformer.config["num_layers"], "parts": held}


def _check_numbers(transformer: WanTransformer3DModel, original: Path) -> None:
    others = sorted({str(p.dtype).removeprefix("torch.") for p in transformer.parameters() if p.dtype not in WHOLE})
    if others:
        raise WeightsError(
            f"{original} holds numbers of {' and '.join(others)}, expected float32, bfloat16 or float16: take the file "
            "that was not quantised. `quantize` does that when painting."
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
