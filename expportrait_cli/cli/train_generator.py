"""`expportrait train generator`: the paper's generator."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from expportrait_cli.cli import options
from expportrait_cli.cli.display import Display
from expportrait_cli.config import GeneratorTask, GeneratorTraining
from expportrait_cli.errors import UsageError

BASE = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


def generator(
    datasets: Annotated[list[Path], typer.Argument(metavar="DATASET...", help="Folders made by `data prepare`.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="A new folder.", show_default=False)],
    base: Annotated[
        str, typer.Option(metavar="FOLDER", help="Wan in the form of diffusers, by folder or by name in the cache.")
    ] = BASE,
    epochs: Annotated[int, typer.Option(min=1, help="Times through the clips.")] = GeneratorTraining.epochs,
    steps: Annotated[int, typer.Option(min=0, help="Steps instead of epochs.")] = GeneratorTraining.steps,
    size: Annotated[int, typer.Option(min=32, help="Side of the pictures, px; a multiple of 16.")] = (
        GeneratorTraining.size
    ),
    frames: Annotated[int, typer.Option(min=5, help="Frames of a window: 5, 9, ... 81.")] = GeneratorTraining.frames,
    batch: Annotated[int, typer.Option(min=1, help="Windows a step, on each device.")] = GeneratorTraining.batch,
    rate: Annotated[float, typer.Option(min=0.0, help="Learning rate.")] = GeneratorTraining.rate,
    trunk: Annotated[float, typer.Option(min=0.0, help="Times that, for the base's own weights.")] = (
        GeneratorTraining.trunk
    ),
    lora: Annotated[int, typer.Option(min=0, help="Train a LoRA of this rank; 0 trains all.")] = GeneratorTraining.lora,
    loss: Annotated[Literal["velocity", "epsilon"], typer.Option(help="What is compared: epsilon is Eq. 10.")] = (
        GeneratorTask.loss
    ),
    hint: Annotated[
        bool, typer.Option("--hint", help="Show it the proxy film, too (not the paper's); draws one for some photos.")
    ] = GeneratorTask.hint,
    checkpointing: Annotated[
        bool,
        typer.Option("--checkpointing/--no-checkpointing", help="Compute twice what would have to be kept in memory."),
    ] = GeneratorTask.checkpointing,
    report_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = GeneratorTask.report_every,
    sample_every: Annotated[int, typer.Option(min=1, help="Steps between films.")] = GeneratorTask.sample_every,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = GeneratorTraining.seed,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    log_level: options.LogLevel = None,
) -> None:
    """Train the generator that paints a film from the photo and normal maps, on top of a public Wan.

    On several GPUs: `accelerate launch --no-python expportrait train generator ...`. An interrupted run goes on where
    it stopped when the same command is given; FOLDER.work has its state, curves and films.
    """
    if frames % 4 != 1:
        raise UsageError(f"--frames {frames}: Wan takes 5, 9, 13, ..., 81.")
    if size % 16:
        raise UsageError(f"--size {size}: Wan takes multiples of 16.")
    options.writable(out.parent)
    from expportrait_cli.generate.wan.packages import require_packages

    require_packages()
    import torch

    from expportrait_cli.train.generator.run import train_generator

    config = GeneratorTraining(
        epochs=epochs,
        steps=steps,
        frames=frames,
        size=size,
        batch=batch,
        rate=rate,
        trunk=trunk,
        lora=lora,
        seed=seed,
    )
    task = GeneratorTask(
        loss=loss, hint=hint, checkpointing=checkpointing, report_every=report_every, sample_every=sample_every
    )
    with Display() as display:
        summary = train_generator(datasets, out, base, config, task, display.stage)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if summary:
        options.echo(out, summary, as_json=as_json)
