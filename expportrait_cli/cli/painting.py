"""Options of the large painters: which weights, how they are sampled, and how they are fitted into the machine."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from expportrait_cli.config import Backend, GenerateConfig

BackendName = Annotated[
    Backend,
    typer.Option("--backend", help="What paints the film; auto is the best that is installed and can run here."),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights-folder",
        metavar="DIR",
        help="Folder of a Wan transformer; without it the one of `weights fetch`.",
        show_default=False,
        file_okay=False,
        exists=True,
    ),
]
Steps = Annotated[int, typer.Option(min=0, max=200, help="Steps of the sampler; 0: as the weights were made for.")]
Guidance = Annotated[
    float,
    typer.Option(min=0.0, max=20.0, help="How far to go where the control leads; 1 is half the work; 0: as made for."),
]
Control = Annotated[
    Literal["proxy", "depth"], typer.Option(help="What wan-vace sees: the proxy film with holes, or the head's depth.")
]
Strength = Annotated[float, typer.Option(min=0.01, max=1.0, help="Share of noise that wan-v2v puts on the proxy film.")]
Chain = Annotated[
    int,
    typer.Option(min=0, max=5, help="Give each segment the last 1 or 5 frames, instead of windows that overlap (0)."),
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"], typer.Option("--dtype", help="Precision of the transformer.")
]
Offload = Annotated[
    Literal["none", "model", "group"],
    typer.Option(help="What waits outside the GPU: nothing, the idle model, or all but a few layers."),
]
Quantize = Annotated[Literal["none", "fp8", "int8"], typer.Option(help="Keep weights in 8 bits.")]
Lora = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="LoRA to work into the weights, .safetensors.", show_default=False),
]
Cache = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Skip a step's blocks when the first changes less; 0.05 is careful.")
]
Attention = Annotated[
    str, typer.Option(metavar="NAME", help="Attention of diffusers: sage, flash, xformers, ...", show_default=False)
]


def launched() -> int:
    """Processes that a launcher (torchrun, accelerate) started with this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def only_helps(config: GenerateConfig) -> bool:
    """Whether this process was launched beside others for one film, and has done its part: the first makes the film."""
    if launched() == 1:
        return False
    from expportrait_cli.generate.stage import only_helps

    return only_helps(config)
