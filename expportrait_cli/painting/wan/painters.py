"""Wan painters as the command line asks for them."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from expportrait_cli.config import WanConfig
from expportrait_cli.errors import UsageError, WeightsError
from expportrait_cli.painting.scene import Sketch, Sketches, Still
from expportrait_cli.painting.wan import runtime, together
from expportrait_cli.painting.wan.budget import Cost, Shape, free_bytes, speed_of
from expportrait_cli.painting.wan.chain import paint_chain
from expportrait_cli.painting.wan.film import Model, Sampling, paint_windows, sigmas_of
from expportrait_cli.painting.wan.folder import NO_MODEL, load_folder, load_transformer, load_vae
from expportrait_cli.painting.wan.manifest import PROMPT, TRANSFORMER, VAE, Sampler, read_manifest, read_tensors
from expportrait_cli.painting.wan.portrait_model import PortraitModel
from expportrait_cli.painting.wan.vace import FinishModel, VaceModel
from expportrait_cli.painting.wan.vae import SPACE, Vae
from expportrait_cli.painting.wan.windows import STRIDE, Grid, latent_count
from expportrait_cli.runtime import best_device, read_ahead

log = logging.getLogger(__name__)

TOKENS = 512
"""Wan pads with zeros to that length."""


def read_prompt(folder: Path, width: int) -> Float[Tensor, "1 512 D"]:
    """Prompt of a folder, for a transformer that reads `width` numbers a token.

    Without the file it is padding alone, which is most of any prompt that Wan was trained with; with a warning.

    Raises:
        WeightsError: it is another text encoder's.
    """
    path = folder / PROMPT
    if not path.is_file():
        log.warning(
            "%s is missing: Wan paints without a prompt. weights/make_prompt_embeds.py makes the file once.", path
        )
        return torch.zeros(1, TOKENS, width)
    embeds = read_tensors(path).get("prompt_embeds")
    if embeds is None or embeds.ndim != 2 or embeds.shape[1] != width or len(embeds) > TOKENS:
        found = "none" if embeds is None else "x".join(map(str, embeds.shape))
        raise WeightsError(
            f"{path} has prompt_embeds of {found}, expected at most {TOKENS}x{width}: it is another text encoder's. "
            "Make it again with weights/make_prompt_embeds.py."
        )
    return torch.nn.functional.pad(embeds.float(), (0, 0, 0, TOKENS - len(embeds)))[None]


WanName = Literal["wan-vace", "wan-v2v", "wan-portrait"]
VAE_WIDTH = 96
"""Channels of the first layer of Wan's autoencoder."""
GROUPS = 3
"""Blocks that are on the device at a time when they come and go."""


@dataclass(frozen=True)
class Loaded:
    """A painter's models, where they run."""

    show: Callable[[Still], Model]
    """Shows the photo to the transformer."""
    vae: Vae
    transformer: nn.Module
    wake: Callable[[], None]
    """What to call before the transformer is used."""


class WanPainter:
    """Paints with a Wan transformer from a folder; the models are loaded when the first frame is asked for."""

    def __init__(self, name: WanName, folder: Path, config: WanConfig, seed: int, *, identity: str = "") -> None:
        """Check everything that can be checked without loading; `identity` is the hash of the folder.

        Raises:
            UsageError: options that do not fit the painter, this machine, or each other.
            WeightsError: the folder is none of this painter.
        """
        self._name: WanName = name
        self._folder, self._config, self._identity = folder, config, identity
        self._device = best_device()
        self._dtype = runtime.dtype_of(config, self._device)
        check_options(name, config)
        runtime.check(config, self._device)
        self._shape = Shape.of(folder / TRANSFORMER)
        self._sampling = sampling_of(name, folder, config, seed)

    @property
    def name(self) -> str:
        """As in `GenerateConfig.backend`."""
        return self._name

    detail = True
    """True, because video models are shown all that is known of the person."""

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
        model, sampling = loaded.show(still), self._sampling
        sketches = self._drawn_ahead(sketches)
        if self._config.chain:
            given = self._config.chain
            yield from paint_chain(
                model, loaded.vae, sketches, sampling, given=given, start=start, count=count, keep=keep
            )
        else:
            yield from paint_windows(model, loaded.vae, sketches, sampling, start=start, count=count)

    def transformer(self) -> tuple[together.Run, Callable[[], None]]:
        """The transformer, and what to call before it is used: for processes that only help the one that paints."""
        loaded = self._loaded()
        return loaded.transformer, loaded.wake

    def _drawn_ahead(self, sketches: Sketches) -> Sketches:
        """Have those of the next window drawn while the transformer works on the present one."""
        shares = 0 if self._config.chain else self._sampling.overlap
        asks_for_head = self._name == "wan-portrait" or self._config.control == "depth"

        def drawn(start: int) -> Iterator[Sketch]:
            for sketch in sketches(start):
                buffers = sketch.draw() if asks_for_head else None
                yield sketch if buffers is None else replace(sketch, draw=lambda buffers=buffers: buffers)

        return lambda start: read_ahead(drawn(start), STRIDE * (self._sampling.length - shares))

    def _loaded(self) -> Loaded:
        return _load(self._name, self._folder, self._identity, self._config, self._device, self._dtype)

    def cost(self, height: int, width: int, count: int) -> tuple[Cost, float]:
        """Cost of a film, and how many operations a second this machine does."""
        grid = Grid(latent_count(count), self._sampling.length, self._sampling.overlap)
        slots = min(grid.length, grid.count) + (self._name != "wan-v2v")
        sides = [-(-side // (2 * SPACE)) for side in (height, width)]
        config = self._config
        cost = Cost.of(
            self._shape,
            tokens=slots * sides[0] * sides[1],
            windows=len(grid),
            calls=(len(self._sampling.sigmas) - 1) * (1 if self._sampling.guidance == 1 else 2),
            pixels=sides[0] * sides[1] * (2 * SPACE) ** 2,
            bytes_each=1 if config.quantize != "none" else self._dtype.itemsize,
            vae_width=VAE_WIDTH,
            device=self._device.type,
            resident=min(1.0, GROUPS / self._shape.layers) if config.offload == "group" else 1.0,
        )
        return cost, together.count() * speed_of(self._device, self._dtype)

    def _announce(self, height: int, width: int, count: int) -> None:
        """Say what the film costs, or that it cannot be painted here."""
        where = "the GPU" if self._device.type == "cuda" else "this machine"
        cost, speed = self.cost(height, width, count)
        cost.check(free_bytes(self._device), where)
        log.info("%s, %s: %s.", self._name, where, cost.line(speed))


def check_options(name: WanName, config: WanConfig) -> None:
    """Refuse options that mean nothing to a painter.

    Raises:
        UsageError: there is one.
    """
    if config.control != "proxy" and name != "wan-vace":
        raise UsageError(f"`control={config.control}` is wan-vace's, not {name}'s. Leave it out.")
    if config.strength != WanConfig.strength and name != "wan-v2v":
        raise UsageError(f"`strength` is wan-v2v's, not {name}'s. Leave it out.")
    if config.chain and name != "wan-vace":
        raise UsageError(f"`chain` needs a painter that can be given frames, wan-vace; not {name}. Leave it out.")
    if config.chain not in (0, 1, 5):
        raise UsageError(f"`chain={config.chain}`: expected 1 or 5 frames, or 0 for windows.")
    if config.cache and name == "wan-vace":
        raise UsageError("`cache` would skip the blocks that wan-vace is told by. Leave it out.")
    if config.guidance not in (0, 1) and name == "wan-v2v":
        raise UsageError(
            "`guidance` leads away from what is painted without control, and wan-v2v has none. Leave it out."
        )


def sampling_of(name: WanName, folder: Path, config: WanConfig, seed: int) -> Sampling:
    """How windows are sampled: as the weights were made for, where the user does not say otherwise."""
    own, length, overlap = Sampler(), Sampling.length, Sampling.overlap
    if name == "wan-portrait":
        manifest = read_manifest(folder)
        own, rule = manifest.sampler, manifest.frame_rule
        length = (rule.window - rule.offset) // rule.multiple + 1
        overlap = max(1, min(rule.overlap // rule.multiple, length // 2))
    strength = config.strength if name == "wan-v2v" else 1.0
    return Sampling(
        sigmas_of(config.steps or own.steps, shift=own.shift, strength=strength),
        guidance=config.guidance or own.guidance,
        seed=seed,
        length=length,
        overlap=overlap,
    )


@lru_cache(maxsize=1)
def _load(
    name: WanName, folder: Path, identity: str, config: WanConfig, device: torch.device, dtype: torch.dtype
) -> Loaded:
    """Load a painter's models. The last ones are kept: the next film of a batch is painted with the same."""
    # Weights made in inference mode could not be changed outside of it.
    with torch.inference_mode(False):
        match name:
            case "wan-portrait":
                return _portrait(folder, config, device, dtype)
            case "wan-vace":
                transformer = _vace_transformer(folder / TRANSFORMER, dtype)
            case "wan-v2v":
                transformer = load_transformer(folder / TRANSFORMER, dtype)
        runtime.settle(transformer, config, device, dtype)
        vae = load_vae(folder / VAE)
        wake = runtime.place({"transformer": transformer, "vae": vae}, config, device)
        own = Vae(vae, wake["vae"])
        prompt = read_prompt(folder, transformer.config["text_dim"])
    if isinstance(transformer, WanVACETransformer3DModel):
        show = partial(VaceModel, transformer, own, prompt, control=config.control, wake=wake["transformer"])
        return Loaded(show, own, transformer, wake["transformer"])
    together.begin(transformer, device)
    wakened = wake["transformer"]
    return Loaded(lambda still: FinishModel(transformer, own, prompt, wake=wakened), own, transformer, wakened)


def _portrait(folder: Path, config: WanConfig, device: torch.device, dtype: torch.dtype) -> Loaded:
    loaded = load_folder(folder, dtype=dtype)
    runtime.settle(loaded.portrait.transformer, config, device, dtype)
    vae = loaded.vae()
    wake = runtime.place({"transformer": loaded.portrait, "vae": vae}, config, device)
    own = Vae(vae, wake["vae"])
    transformer = loaded.portrait.transformer
    together.begin(transformer, device)
    show = partial(PortraitModel, loaded.portrait, own, wake=wake["transformer"])
    return Loaded(show, own, transformer, wake["transformer"])


def _vace_transformer(folder: Path, dtype: torch.dtype) -> WanVACETransformer3DModel:
    try:
        model = WanVACETransformer3DModel.from_pretrained(
            str(folder), torch_dtype=dtype, use_safetensors=True, local_files_only=True
        )
    except NO_MODEL as error:
        raise WeightsError(f"{folder} holds no VACE transformer of diffusers in safetensors files: {error}") from error
    assert isinstance(model, WanVACETransformer3DModel)
    return model
