"""`expportrait train`: networks of your own."""

from pathlib import Path
from typing import Annotated

import typer

from expportrait_cli.cli import options, train_generator, train_mini
from expportrait_cli.cli.display import Display
from expportrait_cli.config import TransferTraining

app = typer.Typer(help="Train networks on prepared sets.", rich_markup_mode=None)


@app.callback()
def train() -> None:
    """Train networks on prepared sets."""


app.command("mini")(train_mini.mini)
app.command("gate")(train_mini.gate)
app.command("generator")(train_generator.generator)

Datasets = Annotated[
    list[Path] | None,
    typer.Argument(metavar="DATASET...", help="Folders made by `data prepare`; none for made-up people alone."),
]
Steps = Annotated[int, typer.Option(min=1, help="Batches.")]
Synthetic = Annotated[int, typer.Option(min=0, help="People of the head model who are made up to learn from, too.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]


@app.command("transfer")
def transfer(
    datasets: Datasets = None,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="A .safetensors file.", show_default=False)],
    steps: Steps = TransferTraining.steps,
    synthetic: Synthetic = TransferTraining.synthetic,
    seed: Seed = TransferTraining.seed,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    log_level: options.LogLevel = None,
) -> None:
    """Train the network that says how a face moves beyond the head model's expressions.

    An interrupted run goes on where it stopped when the same command is given. FILE.html shows how it went.
    """
    path = options.result(out, "transfer.safetensors", inputs=(), suffixes=(".safetensors",))
    from expportrait_cli.train.transfer.run import train_transfer

    config = TransferTraining(steps=steps, synthetic=synthetic, seed=seed)
    with Display() as display:
        summary = train_transfer(datasets or [], path, config, display.stage)
    options.echo(path, summary, as_json=as_json)


@app.command("ablation")
def ablation(
    datasets: Datasets = None,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="A .json file.", show_default=False)],
    steps: Steps = TransferTraining.steps,
    synthetic: Synthetic = TransferTraining.synthetic,
    seed: Seed = TransferTraining.seed,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    log_level: options.LogLevel = None,
) -> None:
    """Measure what adapting to a face is worth: nothing, copying, and three networks on people none of them has seen.

    Trains the networks that are not in FILE.work yet, each as long as `train transfer` does.
    """
    path = options.result(out, "ablation.json", inputs=(), suffixes=(".json",))
    from expportrait_cli.train.transfer.ablation import ablation as run

    config = TransferTraining(steps=steps, synthetic=synthetic, seed=seed)
    with Display() as display:
        figures, table = run(datasets or [], path, config, display.stage)
    if not as_json:
        typer.echo(table, err=True)
    options.echo(path, figures, as_json=as_json)
