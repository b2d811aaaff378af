"""`expportrait train mini` and `train gate`: the small painter."""

from pathlib import Path
from typing import Annotated

import typer

from expportrait_cli.cli import options
from expportrait_cli.cli.display import Display
from expportrait_cli.config import MiniTraining

Sets = Annotated[list[Path], typer.Argument(metavar="DATASET...", help="Folders made by `data prepare`.")]


def mini(
    datasets: Sets,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="A .safetensors file.", show_default=False)],
    steps: Annotated[int, typer.Option(min=1, help="Batches.")] = MiniTraining.steps,
    photos: Annotated[int, typer.Option(min=1, help="Frames of each clip that serve as the photo.")] = (
        MiniTraining.photos
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = MiniTraining.seed,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    log_level: options.LogLevel = None,
) -> None:
    """Train the small painter, which corrects what the proxy film had to guess.

    An interrupted run goes on where it stopped when the same command is given. A fifth of the people only judge.
    """
    path = options.result(out, "mini.safetensors", inputs=(), suffixes=(".safetensors",))
    from expportrait_cli.train.mini.run import train_mini

    config = MiniTraining(steps=steps, photos=photos, seed=seed)
    with Display() as display:
        summary = train_mini(datasets, path, config, display.stage)
    options.echo(path, summary, as_json=as_json)


def gate(
    weights: Annotated[Path, typer.Argument(metavar="FILE", help="Weights of the small painter.")],
    datasets: Sets,
    *,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    log_level: options.LogLevel = None,
) -> None:
    """Judge the small painter by people that it never saw, and write the verdict into FILE.

    `generate --backend auto` takes it in place of the proxy only if it passed: +0.3 dB on the head, +3 dB where the
    proxy guessed, 0.9 of the truth's edges left, no more flicker.
    """
    options.existing(weights)
    from expportrait_cli.train.mini import run

    with Display() as display:
        verdict = run.gate(weights, datasets, display.stage)
    options.echo(weights, verdict, as_json=as_json)
