"""Where and how a transformer runs: device, precision, what is kept on the device, and what makes it faster."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig
from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin
from torch import nn

from expportrait_cli.config import WanConfig
from expportrait_cli.errors import UsageError, WeightsError, one_line
from expportrait_cli.painting.wan.folder import NO_MODEL, is_lora
from expportrait_cli.painting.wan.manifest import read_tensors


def dtype_of(config: WanConfig, device: torch.device) -> torch.dtype:
    """Precision of the transformer: bfloat16 on GPUs that have it, else float16, and float32 on the CPU."""
    match config.dtype:
        case "fp32":
            return torch.float32
        case "bf16":
            return torch.bfloat16
        case "fp16":
            return torch.float16
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def check(config: WanConfig, device: torch.device) -> None:
    """Refuse what cannot be done here, before anything is loaded.

    Raises:
        UsageError: options that do not fit this machine or each other.
    """
    if config.offload != "none" and device.type == "cpu":
        raise UsageError(f"`offload={config.offload}` empties a GPU, and torch finds none here. Leave it out.")
    if config.quantize == "int8" and find_spec("torchao") is None:
        raise UsageError("`quantize=int8` needs torchao, not installed here. Run `pip install torchao`, or take fp8.")
    if config.quantize != "none" and config.offload == "group":
        raise UsageError("`quantize` and `offload=group` both move the weights. Take one of them.")
    if config.attention.endswith("_hub"):
        raise UsageError(
            f"`attention={config.attention}` downloads code. Install the package, and name it without _hub."
        )
    if config.lora and not config.lora.endswith(".safetensors"):
        raise UsageError(f"`lora={config.lora}`: expected a .safetensors file; other kinds can hold code.")


def settle(transformer: Any, config: WanConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Put a transformer into the state that it paints in; `place` comes after."""
    if config.lora:
        add_lora(transformer, Path(config.lora))
    transformer.eval().requires_grad_(False)
    if config.attention:
        try:
            transformer.set_attention_backend(config.attention)
        except (ValueError, RuntimeError, ImportError, NotImplementedError) as error:
            raise UsageError(f"`attention={config.attention}` cannot be used: {one_line(error)}") from error
    match config.quantize:
        case "fp8":
            transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
        case "int8":
            from torchao.quantization import (  # pyright: ignore[reportMissingImports]
                Int8WeightOnlyConfig,
                quantize_,
            )

            quantize_(transformer.to(device), Int8WeightOnlyConfig())
    if config.cache:
        transformer.enable_cache(FirstBlockCacheConfig(threshold=config.cache))


def add_lora(transformer: Any, path: Path) -> None:
    """Work a LoRA into the weights, in diffusers' names or in those of Wan's own tools.

    Raises:
        WeightsError: it is missing, damaged, or another model's.
    """
    if not path.is_file():
        raise WeightsError(f"{path} does not exist. Check `lora`.")
    tensors = read_tensors(path)
    try:
        state = WanLoraLoaderMixin.lora_state_dict(tensors)
        prefix: Any = "transformer" if any(str(name).startswith("transformer.") for name in state) else None
        transformer.load_lora_adapter(state, prefix=prefix)
    except NO_MODEL as error:
        raise WeightsError(f"{path} does not go with this transformer: {one_line(error)}") from error
    if not is_lora(transformer):
        raise WeightsError(f"{path} holds nothing for this transformer: it is no LoRA, or another model's.")
    transformer.fuse_lora()
    transformer.unload_lora()


class Seat:
    """The one place on the device, for modules that take turns."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seated: nn.Module | None = None

    def waker(self, module: nn.Module) -> Callable[[], None]:
        """What to call before `module` is used: it takes the seat, and who had it goes back to the CPU."""

        def wake() -> None:
            if self._seated is module:
                return
            if self._seated is not None:
                self._seated.to("cpu")
            module.to(self._device)
            self._seated = module

        return wake


def place(parts: dict[str, nn.Module], config: WanConfig, device: torch.device) -> dict[str, Callable[[], None]]:
    """Put modules where they run; `transformer` is the one that may be spread out. Returns what wakes each."""
    if config.offload == "model":
        seat = Seat(device)
        return {name: seat.waker(part) for name, part in parts.items()}
    for name, part in parts.items():
        if config.offload == "group" and name == "transformer":
            _in_groups(part, device)
        else:
            part.to(device)
    return {name: lambda: None for name in parts}


def _in_groups(part: Any, device: torch.device) -> None:
    """Bring a block to the device while the one before works."""
    transformer = getattr(part, "transformer", part)
    transformer.enable_group_offload(
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
    )
    if transformer is not part:
        for child in (child for child in part.children() if child is not transformer):
            child.to(device)
