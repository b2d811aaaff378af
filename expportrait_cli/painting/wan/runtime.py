"""Device, precision, offloading and quantisation of a transformer, and its cost in memory and time."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig
from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin
from safetensors import SafetensorError, safe_open
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from expportrait_cli.artifacts.texts import read_json
from expportrait_cli.config import WanConfig
from expportrait_cli.errors import OutOfMemoryError, UsageError, WeightsError, one_line
from expportrait_cli.painting.wan.folder import NO_MODEL, is_lora
from expportrait_cli.painting.wan.manifest import read_tensors
from expportrait_cli.runtime import has_bf16

log = logging.getLogger(__name__)


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
    return torch.bfloat16 if has_bf16(device) else torch.float16


def check(config: WanConfig, device: torch.device) -> None:
    """Refuse options that this machine cannot fulfil, before anything is loaded.

    Raises:
        UsageError: an option does not fit this machine or another option.
    """
    if config.offload != "none" and device.type == "cpu":
        raise UsageError(f"`offload={config.offload}` needs a GPU, and torch finds none here. Leave it out.")
    if config.quantize == "int8" and find_spec("torchao") is None:
        raise UsageError("`quantize=int8` needs torchao, not installed here. Run `pip install torchao`, or take fp8.")
    if config.quantize != "none" and config.offload == "group":
        raise UsageError("`quantize` cannot be combined with `offload=group`: both move the weights. Leave out one.")
    if config.attention.endswith("_hub"):
        raise UsageError(
            f"`attention={config.attention}` downloads code. Install the package, and name it without _hub."
        )
    for file, _ in config.loras():
        if not file.endswith(".safetensors"):
            raise UsageError(f"`lora={file}`: expected a .safetensors file; other kinds can hold code.")
    if config.compile and (config.quantize == "fp8" or config.offload == "group"):
        raise UsageError("`compile` does not work with `quantize=fp8` or `offload=group`. Leave out one of them.")


def settle(transformer: Any, config: WanConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Prepare a transformer for inference: LoRAs, attention, quantisation, cache, compilation. `place` comes after."""
    for file, scale in config.loras():
        add_lora(transformer, Path(file), scale)
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
    if config.compile:
        compile_blocks(transformer)


def compile_blocks(transformer: Any, backend: str | Callable = "inductor") -> None:
    """Have the blocks compiled at the first call; where that fails, they run as they are, and a line says why."""
    transformer.compile_repeated_blocks(backend=backend)
    forward = transformer.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except TorchDynamoException as error:
            reason = getattr(error, "inner_exception", error)
            log.warning("The transformer cannot be compiled here, and runs as it is: %s", one_line(reason))
            for module in transformer.modules():
                module._compiled_call_impl = None
            return forward(*args, **kwargs)

    transformer.forward = run


def add_lora(transformer: Any, path: Path, scale: float = 1.0) -> None:
    """Fuse `scale` times a LoRA into the weights; tensor names may be diffusers' or those of Wan's own tools.

    Raises:
        WeightsError: the file is missing or damaged, or belongs to another model.
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
    transformer.fuse_lora(lora_scale=scale)
    transformer.unload_lora()


class SharedDevice:
    """Keeps on the device the module that was used last, and the others on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._present: nn.Module | None = None

    def waker(self, module: nn.Module) -> Callable[[], None]:
        """Return what to call before `module` is used: it moves `module` to the device, the last one to the CPU."""

        def wake() -> None:
            if self._present is module:
                return
            if self._present is not None:
                self._present.to("cpu")
            module.to(self._device)
            self._present = module

        return wake


def place(parts: dict[str, nn.Module], config: WanConfig, device: torch.device) -> dict[str, Callable[[], None]]:
    """Move modules to the device, or offload them. Returns for each a function to call before its use."""
    if config.offload == "model":
        shared = SharedDevice(device)
        return {name: shared.waker(part) for name, part in parts.items()}
    for name, part in parts.items():
        if config.offload == "group" and name == "transformer":
            _in_groups(part, device)
        else:
            part.to(device)
    return {name: lambda: None for name in parts}


def _in_groups(transformer: Any, device: torch.device) -> None:
    """Offload the blocks of a transformer: each is moved to the device while the one before runs."""
    transformer.enable_group_offload(
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
    )


GB = 1 << 30
VAE_FLOATS = {"cpu": 115, "cuda": 64}
"""Peak memory of the VAE, in numbers for each pixel and each channel of its first layer: activations of four frames,
and the caches of its convolutions over time. Measured on the CPU (where convolutions copy their inputs); estimated for
GPUs."""
VAE_BYTES = 510_000_000
"""Size of the VAE's weights in float32."""
VAE_FLOP = 311e12 / (16 * 512 * 512)
"""Operations of the VAE, encoding and decoding, for each latent frame and pixel; estimated."""
ACHIEVED = 0.5
"""Speed of transformers as a share of that of a matrix product; by published times 0.42 on an H200, 0.65 on a 4090."""


@dataclass(frozen=True)
class Shape:
    """Size of a transformer, as in its folder."""

    parameters: int
    width: int
    """Channels of a token."""
    hidden: int
    """Channels inside the feed-forward layers."""
    layers: int
    controls: int
    """Blocks of VACE's control branch; 0 in other transformers."""

    @classmethod
    def of(cls, folder: Path) -> "Shape":
        """Read `config.json` and the headers of the weights.

        Raises:
            WeightsError: the folder has no transformer of diffusers in safetensors files.
        """
        try:
            config: Mapping[str, Any] = read_json(folder / "config.json")
            for name in ("num_attention_heads", "attention_head_dim", "ffn_dim", "num_layers"):
                if type(config[name]) is not int or not 0 < config[name] < 10**6:
                    raise ValueError(f"its {name} is {config[name]!r}")
            return cls(
                parameters=sum(_count(path) for path in folder.glob("*.safetensors")),
                width=config["num_attention_heads"] * config["attention_head_dim"],
                hidden=config["ffn_dim"],
                layers=config["num_layers"],
                controls=len(config.get("vace_layers", ())),
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise WeightsError(
                f"{folder} is no transformer of diffusers: {error}. Download or copy it again."
            ) from error


def _count(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


@dataclass(frozen=True)
class Cost:
    """Memory and operations that a film takes."""

    weights: int
    """Bytes of weights on the device."""
    work: int
    """Peak of the memory beside the weights, bytes."""
    windows: int
    flop: float
    """Operations per window."""

    @classmethod
    def of(
        cls,
        shape: Shape,
        *,
        tokens: int,
        windows: int,
        calls: int,
        pixels: int,
        bytes_each: int,
        vae_width: int,
        coded: int = 0,
        resident: float = 1.0,
        device: str = "cuda",
    ) -> "Cost":
        """Cost of `windows` windows of `tokens` tokens, with `calls` calls of the transformer each.

        `bytes_each`: size of a parameter; `resident`: share of the parameters on the device at a time; `coded`: latent
        frames that the VAE encodes and decodes per window. A call takes 2 operations for each token and parameter, and
        for attention 4 for each pair of tokens, channel and layer.
        """
        layers = shape.layers + shape.controls
        call = 2 * tokens * shape.parameters + 4 * tokens**2 * shape.width * layers
        # A block keeps its input, norms in float32, queries, keys, values, and activations of the feed-forward layer.
        block = tokens * (shape.width * 20 + shape.hidden * 4)
        branch = tokens * shape.width * 2 * shape.controls
        autoencoder = VAE_BYTES + VAE_FLOATS[device] * vae_width * pixels * 4
        return cls(
            round(shape.parameters * bytes_each * resident),
            max(block + branch, autoencoder),
            windows,
            float(calls * call) + VAE_FLOP * pixels * coded,
        )

    def line(self, speed: float) -> str:
        """Describe the cost in words; `speed`: operations a second."""
        seconds = self.flop / speed
        return (
            f"{self.weights / GB:.1f} GB of weights and about {self.work / GB:.1f} GB to work in; "
            f"about {_time(seconds)} for each of {self.windows} windows, {_time(seconds * self.windows)} in all"
        )

    def check(self, free: int, where: str) -> None:
        """Check the cost against the free memory, bytes, of the device called `where`.

        Raises:
            OutOfMemoryError: more is needed than is free.
        """
        needed = self.weights + self.work
        if needed > free:
            raise OutOfMemoryError(
                f"This needs about {needed / GB:.1f} GB on {where}, where {free / GB:.1f} GB are free. Take `offload` "
                "group, `quantize=fp8`, `dtype=bf16` or a smaller `size`; or another `backend`."
            )


def free_bytes(device: torch.device) -> int:
    """Free memory, bytes, of a device. On GPUs, memory that torch has reserved for this process counts as free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    import psutil

    return psutil.virtual_memory().available


def speed_of(device: torch.device, dtype: torch.dtype) -> float:
    """Expected speed of a transformer on a device, operations a second; measuring it takes a tenth of a second."""
    side = 8192 if device.type == "cuda" else 512
    a = torch.ones(side, side, device=device, dtype=dtype)
    best = math.inf
    for _ in range(4):
        since = perf_counter()
        (a @ a).sum().item()
        best = min(best, perf_counter() - since)
    return ACHIEVED * 2 * side**3 / best


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
