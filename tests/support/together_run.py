"""Films of processes that work together: `python -m torch.distributed.run` starts it.

With `films` and a folder behind it, these are films of toy models, each of which the first process paints alone, too;
with other words it is the command line.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from expportrait_cli.cli import app
from expportrait_cli.config import WanConfig
from expportrait_cli.painting.wan import runtime, together
from expportrait_cli.painting.wan.film import Model, Sampling, paint_windows, sigmas_of
from expportrait_cli.painting.wan.portrait import WanPortrait
from expportrait_cli.painting.wan.portrait_model import PortraitModel
from expportrait_cli.painting.wan.vace import FinishModel
from expportrait_cli.painting.wan.vae import Vae
from support.tiny_wan import (
    IMAGE_DIM,
    TEXT_DIM,
    tiny_i2v_transformer,
    tiny_prompts,
    tiny_transformer,
    tiny_vae,
)
from support.wan_film import sketches_of, still, tiny_portrait

CPU = torch.device("cpu")
COUNT, HEIGHT, WIDTH = 33, 44, 76
"""Several windows; the 15 tokens of a latent frame cannot be halved."""
FILMS = (("wan-portrait", "none", 2.0), ("wan-v2v", "group", 1.0), ("i2v", "none", 1.0))
"""Painter, what waits outside the device, and guidance; of a transformer with image tokens, one step."""


STEP = ((36, 3, 6, 10), (512, TEXT_DIM), (257, IMAGE_DIM))
"""Latents, text and picture of that step."""


def whole_of(name: str) -> nn.Module:
    return {"wan-v2v": tiny_transformer, "wan-portrait": tiny_portrait, "i2v": tiny_i2v_transformer}[name]()


def share(name: str, offload: str) -> nn.Module:
    """Load a model where it is shared out."""
    with torch.inference_mode(False):
        whole = whole_of(name)
        transformer = getattr(whole, "transformer", whole)
        runtime.place({"transformer": transformer}, WanConfig(offload=offload), CPU)  # pyright: ignore
        together.begin(transformer, CPU)
    return whole


def film(whole: nn.Module, guidance: float) -> np.ndarray:
    if getattr(whole, "config", {}).get("image_dim"):
        words = [torch.randn(1, *shape, generator=torch.Generator().manual_seed(1)) for shape in STEP]
        return whole(words[0], torch.tensor([500.0]), *words[1:], return_dict=False)[0].numpy()
    own = Vae(tiny_vae())
    if isinstance(whole, WanPortrait):
        model: Model = PortraitModel(whole, own, still(HEIGHT, WIDTH))
    else:
        model = FinishModel(whole, own, tiny_prompts())  # pyright: ignore[reportArgumentType]
    settings = Sampling(sigmas_of(2, shift=3.0), guidance=guidance, length=5, overlap=2)
    sketches = sketches_of(COUNT, height=HEIGHT, width=WIDTH)
    return np.stack(list(paint_windows(model, own, sketches, settings, start=0, count=COUNT)))


@torch.inference_mode()
def main(folder: Path) -> None:
    if together.gather_processes():
        names = iter(FILMS)

        def load():
            name, offload, _ = next(names)
            whole = share(name, offload)
            return getattr(whole, "transformer", whole), lambda: None

        together.help_first(load, CPU)
        return
    for name, offload, guidance in FILMS:
        alone, whole = film(whole_of(name), guidance), share(name, offload)
        tokens: list[int] = []
        block = getattr(whole, "transformer", whole).blocks[1]
        block.register_forward_pre_hook(lambda module, given, seen=tokens: seen.append(given[0].shape[1]))
        np.savez(folder / f"{name}.npz", alone=alone, shared=film(whole, guidance), tokens=tokens)
    together.first().dismiss()


if __name__ == "__main__":
    if sys.argv[1] == "films":
        main(Path(sys.argv[2]))
    else:
        app.main()
