"""The Wan painters: models, sampler settings and options by the painter's name."""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel
from jaxtyping import UInt8
from torch import nn

from expportrait_cli.config import WanConfig
from expportrait_cli.errors import UsageError, WeightsError
from expportrait_cli.painting.scene import Sketch, Sketches, Still
from expportrait_cli.painting.wan import runtime, together
from expportrait_cli.painting.wan.chain import paint_chain
from expportrait_cli.painting.wan.encoders import network_config
from expportrait_cli.painting.wan.film import FEW, Model, Sampling, paint_windows, sigmas_of
from expportrait_cli.painting.wan.folder import load_folder, load_transformer, load_vace, load_vae
from expportrait_cli.painting.wan.manifest import TRANSFORMER, VAE, Sampler, read_manifest
from expportrait_cli.painting.wan.portrait_model import PortraitModel
from expportrait_cli.painting.wan.prompts import Prompts, read_prompts
from expportrait_cli.painting.wan.runtime import Cost, Shape, free_bytes, speed_of
from expportrait_cli.painting.wan.vace import FinishModel, VaceModel
from expportrait_cli.painting.wan.vae import SPACE, TinyDecoder, Vae
from expportrait_cli.painting.wan.windows import STRIDE, Grid, latent_count
from expportrait_cli.runtime import best_device, cpu_count, read_ahead
from expportrait_cli.weights.catalogue import TINY_DECODER, checked_file

log = logging.getLogger(__name__)

WanName = Literal["wan-vace", "wan-v2v", "wan-portrait"]
VAE_WIDTH = 96
"""Channels of the first layer of Wan's VAE."""
MOST_WORKERS, BLOCK = 6, 16
"""Most threads that draw the proxy, and frames that each draws at a time: one chunk of a meshes file."""
VAE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "tiny": torch.bfloat16}
"""Precision of the VAE, by `WanConfig.vae`; with the tiny decoder only its encoder is used."""
GROUPS = 3
"""Transformer blocks that are on the device at a time with `offload=group`."""


@dataclass(frozen=True)
class Loaded:
    """Models of a painter, on their devices."""

    model_for: Callable[[Still, Prompts | None], Model]
    """Makes the `Model` of a film, conditioned on photo and prompts (wan-portrait ignores these: it has its own)."""
    vae: Vae
    transformer: nn.Module
    wake: Callable[[], None]
    """Moves the transformer to its device, if it was offloaded; to be called before each use."""


class WanPainter:
    """Paints with a Wan transformer from a folder; the models are loaded at the first frame."""

    def __init__(self, name: WanName, folder: Path, config: WanConfig, seed: int, *, identity: str = "") -> None:
        """Check all that can be checked without loading; `identity`: hash of the folder.

        Raises:
            UsageError: an option does not fit the painter, this machine, or another option.
            WeightsError: the folder is not of this painter, or the tiny decoder is missing.
        """
        self._name: WanName = name
        self._folder, self._config, self._identity = folder, config, identity
        self._device = best_device()
        self._dtype = runtime.dtype_of(config, self._device)
        check_options(name, config)
        runtime.check(config, self._device)
        if config.vae == "tiny":
            checked_file(TINY_DECODER)
        self._shape = Shape.of(folder / TRANSFORMER)
        self._sampling = sampling_of(name, folder, config, seed)
        self._prompts = _prompts(name, folder, config, guided=self._sampling.guidance != 1)

    @property
    def name(self) -> str:
        """Name of the painter, as in `GenerateConfig.backend`."""
        return self._name

    detail = True
    """True: normal maps with static detail, see `Scene.detail`."""

    @torch.inference_mode()
    def paint(
        self, still: Still, sketches: Sketches, *, start: int, count: int, keep: Path | None = None
    ) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """Yield the frames from `start` on.

        Raises:
            OutOfMemoryError: the film does not fit this machine.
        """
        height, width = still.photo.shape[:2]
        self._announce(height, width, count)
        loaded = self._loaded()
        model, sampling = loaded.model_for(still, self._prompts), self._sampling
        sketches = self._drawn_ahead(sketches, count)
        if self._config.chain:
            given = self._config.chain
            yield from paint_chain(
                model, loaded.vae, sketches, sampling, given=given, start=start, count=count, keep=keep
            )
        else:
            yield from paint_windows(model, loaded.vae, sketches, sampling, start=start, count=count)

    def transformer(self) -> tuple[together.Run, Callable[[], None]]:
        """Return the transformer and the function to call before its use, for the helping processes of `together`."""
        loaded = self._loaded()
        return loaded.transformer, loaded.wake

    def _drawn_ahead(self, sketches: Sketches, count: int) -> Sketches:
        """Make the sketches of the next window in threads, while the transformer works on the present one."""
        shares = 0 if self._config.chain else self._sampling.overlap
        depth = STRIDE * (self._sampling.length - shares)
        asks_for_head = self._name == "wan-portrait" or self._config.control in ("depth", "normals")

        def drawn(start: int) -> Iterator[Sketch]:
            for sketch in sketches(start):
                buffers = sketch.draw() if asks_for_head else None
                yield sketch if buffers is None else replace(sketch, draw=lambda buffers=buffers: buffers)

        # Half of the cores: the others are for the transformer, and for encoding the video.
        workers = min(MOST_WORKERS, cpu_count() // 2)
        if workers < 2:
            return lambda start: read_ahead(drawn(start), depth)
        return lambda start: by_several(drawn, start, count, workers=workers, depth=depth)

    def _loaded(self) -> Loaded:
        return _load(self._name, self._folder, self._identity, self._config, self._device, self._dtype)

    def cost(self, height: int, width: int, count: int) -> tuple[Cost, float]:
        """Return the cost of a film, and the speed of this machine (all processes), operations a second."""
        grid = Grid(latent_count(count), self._sampling.length, self._sampling.overlap)
        slots = min(grid.length, grid.count) + (self._name != "wan-v2v")
        sides = [-(-side // (2 * SPACE)) for side in (height, width)]
        config = self._config
        cost = Cost.of(
            self._shape,
            tokens=slots * sides[0] * sides[1],
            windows=len(grid),
            calls=self._sampling.calls,
            pixels=sides[0] * sides[1] * (2 * SPACE) ** 2,
            bytes_each=1 if config.quantize != "none" else self._dtype.itemsize,
            vae_width=VAE_WIDTH,
            coded=min(grid.step, grid.count),
            device=self._device.type,
            resident=min(1.0, GROUPS / self._shape.layers) if config.offload == "group" else 1.0,
        )
        return cost, together.count() * speed_of(self._device, self._dtype)

    def _announce(self, height: int, width: int, count: int) -> None:
        """Log what the film costs; raise OutOfMemoryError if it does not fit."""
        where = "the GPU" if self._device.type == "cuda" else "this machine"
        cost, speed = self.cost(height, width, count)
        cost.check(free_bytes(self._device), where)
        log.info("%s, %s: %s.", self._name, where, cost.line(speed))


OWNERS: dict[str, tuple[WanName, ...]] = {
    "control": ("wan-vace",),
    "keep": ("wan-vace",),
    "chain": ("wan-vace",),
    "strength": ("wan-vace", "wan-v2v"),
    "prompt": ("wan-vace", "wan-v2v"),
    "negative_prompt": ("wan-vace", "wan-v2v"),
}
"""Painters that an option is for; it has no effect on the others."""


def check_options(name: WanName, config: WanConfig) -> None:
    """Refuse options that have no effect on a painter, or contradict each other.

    Raises:
        UsageError: there is one.
    """
    for option, owners in OWNERS.items():
        if getattr(config, option) != getattr(WanConfig, option) and name not in owners:
            whose = " and ".join(owners)
            raise UsageError(f"`{option}={getattr(config, option)}` is for {whose}, not {name}. Leave it out.")
    if config.chain not in (0, 1, 5):
        raise UsageError(f"`chain={config.chain}`: expected 1 or 5 frames, or 0 for windows.")
    if config.cache and name == "wan-vace":
        raise UsageError(
            "`cache` would skip the blocks that give wan-vace its control. Leave it out, or use `skip` instead."
        )
    if config.cache and config.skip:
        raise UsageError("`cache` and `skip` save the same steps. Leave out one of them.")


PUBLISHED: dict[WanName, Sampler] = {
    # Steps, guidance and shift as in diffusers' pipelines and in Wan's own code.
    "wan-vace": Sampler(steps=30, shift=3.0, guidance=5.0),
    "wan-v2v": Sampler(steps=30, shift=3.0, guidance=5.0),
}
"""Default sampler settings of the published weights."""
FEW_STEPS = Sampler(steps=4, shift=5.0, guidance=1.0)
"""Settings that LoRAs for few steps are published with: noise levels 1, .9375, .833 and .625."""
STRENGTH: dict[WanName, float] = {"wan-vace": 0.7, "wan-v2v": 0.35, "wan-portrait": 1.0}
"""Default of `WanConfig.strength`."""


def by_several(drawn: Sketches, start: int, count: int, *, workers: int, depth: int) -> Iterator[Sketch]:
    """Yield the sketches from `start` on; threads draw them in blocks, about `depth` frames ahead."""

    def block(begin: int) -> list[Sketch]:
        return list(islice(drawn(begin), min(begin - begin % BLOCK + BLOCK, count) - begin))

    # The first block is drawn alone: it also prepares what all frames share.
    yield from block(start)
    begins = iter(range(start - start % BLOCK + BLOCK, count, BLOCK))
    with ThreadPoolExecutor(workers) as pool:
        coming = deque(pool.submit(block, begin) for begin in islice(begins, max(workers, depth // BLOCK)))
        try:
            while coming:
                frames = coming.popleft().result()
                coming.extend(pool.submit(block, begin) for begin in islice(begins, 1))
                yield from frames
        finally:
            for future in coming:
                future.cancel()


def sampling_of(name: WanName, folder: Path, config: WanConfig, seed: int) -> Sampling:
    """Settings of the sampler: those of `config`, and where it has none, those that the weights were made for."""
    length, overlap = Sampling.length, Sampling.overlap
    if name == "wan-portrait":
        manifest = read_manifest(folder)
        own, rule = manifest.sampler, manifest.frame_rule
        length = (rule.window - rule.offset) // rule.multiple + 1
        overlap = max(1, min(rule.overlap // rule.multiple, length // 2))
    else:
        own = FEW_STEPS if config.lora and 0 < config.steps <= FEW else PUBLISHED[name]
    sigmas = sigmas_of(
        config.steps or own.steps, shift=config.shift or own.shift, strength=config.strength or STRENGTH[name]
    )
    every = config.skip + 1
    # The first two are computed, and the last, which determines the finest detail.
    skipped = frozenset(sigma for at, sigma in enumerate(sigmas[2:-2], 2) if config.skip and (at - 1) % every)
    return Sampling(
        sigmas, guidance=config.guidance or own.guidance, seed=seed, length=length, overlap=overlap, skipped=skipped
    )


@lru_cache(maxsize=1)
def _load(
    name: WanName, folder: Path, identity: str, config: WanConfig, device: torch.device, dtype: torch.dtype
) -> Loaded:
    """Load a painter's models. The last ones stay in memory for the next film of a batch."""
    # Tensors that are made in inference mode cannot be modified outside of it.
    with torch.inference_mode(False):
        match name:
            case "wan-portrait":
                return _portrait(folder, config, device, dtype)
            case "wan-vace":
                transformer = load_vace(folder / TRANSFORMER, dtype)
            case "wan-v2v":
                transformer = load_transformer(folder / TRANSFORMER, dtype)
        runtime.settle(transformer, config, device, dtype)
        vae = load_vae(folder / VAE, VAE_DTYPES[config.vae])
        wake = runtime.place({"transformer": transformer, "vae": vae}, config, device)
        own = Vae(vae, wake["vae"], _tiny(config, device))
    wakened = wake["transformer"]
    together.begin(transformer, device)

    def model_for(still: Still, prompts: Prompts | None) -> Model:
        assert prompts is not None
        if isinstance(transformer, WanVACETransformer3DModel):
            options = {"control": config.control, "keep": config.keep}
            return VaceModel(transformer, own, prompts, still, wake=wakened, **options)
        return FinishModel(transformer, own, prompts, wake=wakened)

    return Loaded(model_for, own, transformer, wakened)


def _portrait(folder: Path, config: WanConfig, device: torch.device, dtype: torch.dtype) -> Loaded:
    loaded = load_folder(folder, dtype=dtype)
    runtime.settle(loaded.portrait.transformer, config, device, dtype)
    vae = loaded.vae(VAE_DTYPES[config.vae])
    wake = runtime.place({"transformer": loaded.portrait.transformer, "vae": vae}, config, device)
    # The other parts are small, and stay on the device.
    for name, part in loaded.portrait.named_children():
        if name != "transformer":
            part.to(device)
    for name, buffer in loaded.portrait.named_buffers(recurse=False):
        setattr(loaded.portrait, name, buffer.to(device))
    own = Vae(vae, wake["vae"], _tiny(config, device))
    transformer = loaded.portrait.transformer
    together.begin(transformer, device)
    wakened = wake["transformer"]

    def model_for(still: Still, prompts: Prompts | None) -> Model:
        return PortraitModel(loaded.portrait, own, still, wake=wakened)

    return Loaded(model_for, own, transformer, wakened)


def _tiny(config: WanConfig, device: torch.device) -> TinyDecoder | None:
    return TinyDecoder.load(checked_file(TINY_DECODER), device) if config.vae == "tiny" else None


def _prompts(name: WanName, folder: Path, config: WanConfig, *, guided: bool) -> Prompts | None:
    if name == "wan-portrait":
        return None
    width = network_config(folder / TRANSFORMER).get("text_dim")
    if not isinstance(width, int):
        raise WeightsError(f"{folder / TRANSFORMER} has a text_dim of {width!r}. Download it again.")
    return read_prompts(folder, width, prompt=config.prompt, negative=config.negative_prompt, guided=guided)
