"""A generator as a folder: transformer (in diffusers' format), encoders, autoencoder, prompt, and a manifest."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel
from peft import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from expportrait_cli.artifacts.files import atomic_folder
from expportrait_cli.errors import OutputError, WeightsError, one_line
from expportrait_cli.painting.wan import manifest as facts
from expportrait_cli.painting.wan.encoders import IMAGE_ENCODER, find_image_encoder
from expportrait_cli.painting.wan.manifest import HOW, Manifest
from expportrait_cli.painting.wan.portrait import WanPortrait
from expportrait_cli.runtime import use_threads

ENCODERS_FILE = "model.safetensors"
SHARD = "5GB"
"""Largest file into which a transformer is split."""
M = TypeVar("M", WanTransformer3DModel, WanVACETransformer3DModel, AutoencoderKLWan)
NO_MODEL = (OSError, ValueError, TypeError, LookupError, RuntimeError, SafetensorError)
"""Errors that diffusers raises where a folder has no model of the wanted class."""


@dataclass(frozen=True)
class Loaded:
    """A generator that was read from its folder."""

    portrait: WanPortrait
    manifest: Manifest
    folder: Path

    def vae(self, dtype: torch.dtype = torch.float32) -> AutoencoderKLWan:
        """Load the autoencoder that the generator was trained with."""
        # An absolute path stays as it is; a name is a folder inside the generator's.
        return load_vae(self.folder / self.manifest.vae, dtype)


def save_folder(portrait: WanPortrait, folder: Path, manifest: Manifest, *, vae: Path | None = None) -> Path:
    """Write a generator, in full or not at all; an existing generator is replaced.

    `vae`: folder of the autoencoder, which is copied (as is the CLIP of `portrait`, if it has one); without it,
    `manifest.vae` is the path. A LoRA is written to a file of its own beside the transformer.

    Raises:
        OutputError: `folder` is something else than a generator, or cannot be written.
    """
    check_place(folder)
    with atomic_folder(folder) as partial:
        _plain(portrait.transformer).save_pretrained(partial / facts.TRANSFORMER, max_shard_size=SHARD)
        if is_lora(portrait.transformer):
            save_lora(portrait.transformer, partial / facts.LORA)
        encoders = partial / facts.ENCODERS
        encoders.mkdir()
        _save(encoder_tensors(portrait), encoders / ENCODERS_FILE)
        _save({"prompt_embeds": portrait.prompt}, partial / facts.PROMPT)
        if vae is not None:
            copy_model(vae, partial / facts.VAE)
        if portrait.image_encoder is not None:
            copy_model(portrait.image_encoder, partial / IMAGE_ENCODER)
        facts.write_manifest(partial, manifest)
    return folder


def load_folder(folder: Path, *, dtype: torch.dtype = torch.float32) -> Loaded:
    """Read a generator onto the CPU, for inference; a LoRA is fused into the weights.

    All hashes are checked, and no file can run code. Encoders, norms and the timestep embedding stay in float32,
    whatever `dtype` is.

    Raises:
        WeightsError: the folder is no generator, is damaged, or has another convention of normals.
    """
    manifest = facts.read_manifest(folder)
    facts.verify(folder)
    transformer = load_transformer(folder / facts.TRANSFORMER, dtype)
    lora = folder / facts.LORA
    if lora.is_file():
        _apply(transformer, lora)
    prompt = facts.read_tensors(folder / facts.PROMPT)
    tensors = facts.read_tensors(folder / facts.ENCODERS / ENCODERS_FILE)
    try:
        portrait = WanPortrait(transformer, prompt["prompt_embeds"], base=manifest.base, has_hint=manifest.has_hint)
        missing, unknown = portrait.load_state_dict(tensors, strict=False)
    except (KeyError, RuntimeError) as error:
        raise WeightsError(f"{folder} is damaged: its encoders or prompt are another generator's. {HOW}") from error
    if unknown or any(not name.startswith("transformer.") for name in missing):
        raise WeightsError(f"{folder / facts.ENCODERS} is damaged: it holds other encoders. {HOW}")
    portrait.image_encoder = find_image_encoder(folder)
    return Loaded(portrait.eval().requires_grad_(False), manifest, folder)


def load_transformer(folder: Path, dtype: torch.dtype = torch.float32) -> WanTransformer3DModel:
    """Read a Wan transformer in diffusers' format, from safetensors files only.

    Raises:
        WeightsError: there is none.
    """
    return _read(WanTransformer3DModel, folder, dtype, "Wan transformer")


def load_vace(folder: Path, dtype: torch.dtype = torch.float32) -> WanVACETransformer3DModel:
    """Read a VACE transformer in diffusers' format, from safetensors files only.

    Raises:
        WeightsError: there is none.
    """
    return _read(WanVACETransformer3DModel, folder, dtype, "VACE transformer")


def load_vae(folder: Path, dtype: torch.dtype = torch.float32) -> AutoencoderKLWan:
    """Read a Wan autoencoder in diffusers' format, for inference.

    Raises:
        WeightsError: there is none.
    """
    return _read(AutoencoderKLWan, folder, dtype, "Wan autoencoder").eval().requires_grad_(False)


def _read(kind: type[M], folder: Path, dtype: torch.dtype, title: str) -> M:
    use_threads()
    try:
        model = kind.from_pretrained(str(folder), torch_dtype=dtype, use_safetensors=True, local_files_only=True)
    except NO_MODEL as error:
        raise _no_model(folder, title, error) from error
    assert isinstance(model, kind)
    return model


def _no_model(folder: Path, what: str, error: Exception) -> WeightsError:
    return WeightsError(f"{folder} holds no {what} of diffusers in safetensors files: {one_line(error)}")


def is_lora(transformer: nn.Module) -> bool:
    """True if a LoRA has been added to a transformer."""
    return bool(getattr(transformer, "peft_config", None))


def encoder_tensors(portrait: WanPortrait) -> dict[str, Tensor]:
    """Weights of a generator outside its transformer."""
    return {name: value for name, value in portrait.state_dict().items() if not name.startswith("transformer.")}


def _plain(transformer: WanTransformer3DModel) -> WanTransformer3DModel:
    """Return the transformer without its LoRA; weights are shared."""
    if not is_lora(transformer):
        return transformer
    config = {name: value for name, value in transformer.config.items() if not name.startswith("_")}
    with torch.device("meta"):
        plain = WanTransformer3DModel(**config)
    tensors = {k.replace(".base_layer", ""): v for k, v in transformer.state_dict().items() if ".lora_" not in k}
    plain.load_state_dict(tensors, assign=True)
    return plain


def save_lora(transformer: WanTransformer3DModel | WanVACETransformer3DModel, path: Path) -> None:
    """Write the LoRA that was added to a transformer, in the format that diffusers reads.

    diffusers' own writer is not used: it gives other bytes every time.
    """
    (config,) = transformer.peft_config.values()
    settings = {
        f"transformer.{name}": sorted(value) if isinstance(value, set) else value
        for name, value in config.to_dict().items()
    }
    layers = {f"transformer.{name}": value for name, value in get_peft_model_state_dict(transformer).items()}
    _save(layers, path, {LORA_ADAPTER_METADATA_KEY: json.dumps(settings, sort_keys=True)})


def _apply(transformer: WanTransformer3DModel, lora: Path) -> None:
    """Fuse a LoRA into the weights."""
    names = facts.read_tensors(lora).keys()
    prefix: Any = "transformer" if any(name.startswith("transformer.") for name in names) else None
    try:
        transformer.load_lora_adapter(str(lora.parent), prefix, weight_name=lora.name, local_files_only=True)
    except NO_MODEL as error:
        raise WeightsError(f"{lora} does not go with the transformer beside it: {one_line(error)}") from error
    if not is_lora(transformer):
        raise WeightsError(f"{lora} holds nothing for the transformer beside it. Remove it, or copy the right one.")
    transformer.fuse_lora()
    transformer.unload_lora()


def _save(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path, metadata)


def copy_model(model: Path, folder: Path) -> None:
    """Copy the JSON and safetensors files of a model into a new folder."""
    folder.mkdir()
    for path in model.iterdir():
        if path.suffix in (".json", ".safetensors"):
            shutil.copyfile(path, folder / path.name)


def check_place(folder: Path) -> None:
    """Raise OutputError unless `folder` is missing, empty, a generator, or a VACE LoRA: these may be written to."""
    taken = folder.exists() and not any((folder / name).is_file() for name in (facts.FILE, facts.LORA_FILE))
    if taken and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists and is no generator's folder. Name another with -o.")
