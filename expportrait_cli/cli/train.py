"""`expportrait data` and `expportrait train`: datasets for training, and the training of networks."""

import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from expportrait_cli.artifacts.files import alone
from expportrait_cli.cli import options
from expportrait_cli.cli.batch import ExecutorName, SlurmOptions, slurm_options
from expportrait_cli.cli.boundary import Display, say
from expportrait_cli.cli.command import App
from expportrait_cli.cli.options import HeadModelOption
from expportrait_cli.config import PrepareConfig
from expportrait_cli.errors import UsageError
from expportrait_cli.runtime import cpu_count
from expportrait_cli.train.config import (
    PAPER_TASK,
    PAPER_TRAINING,
    GeneratorTask,
    GeneratorTraining,
    MiniTraining,
    TransferTraining,
)

data_app = App(help="Prepare datasets for training.", rich_markup_mode=None)


@data_app.callback()
def data() -> None:
    """Prepare datasets for training."""


@data_app.command("prepare")
def prepare(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Folder of videos; subfolders are searched too.", show_default=False),
    ],
    *,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="DATASET", help="Folder of the dataset; it may exist already.", show_default=False
        ),
    ],
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Number of workers; by default one for each processor.", show_default=False),
    ] = None,
    executor: ExecutorName = "local",
    slurm: SlurmOptions = "",
    frames: Annotated[int, options.setting(PrepareConfig, "frames")] = PrepareConfig.frames,
    min_face: Annotated[int, options.setting(PrepareConfig, "min_face_px", metavar="PX")] = PrepareConfig.min_face_px,
    head_model: HeadModelOption = "anny",
    as_json: options.Json = False,
) -> None:
    """Cut videos into clips of one face, drop unsuitable ones, track and fit the others; see DATASET/index.html.

    Run the same command again to resume it, or to add new videos in the folder.
    """
    options.writable(out)
    from expportrait_cli.dataset.prepare import prepare as run
    from expportrait_cli.pipeline.executors import Place

    place = Place(executor, jobs or cpu_count(), tuple(slurm_options(slurm, executor).items()))
    if executor != "local":
        # Absolute, since workers on other machines start in other folders.
        folder, out = folder.absolute(), out.absolute()
    config = PrepareConfig(frames=frames, min_face_px=min_face)
    # The lock is inside the dataset, since the folder above may not be writable.
    with Display() as display, alone(out / "dataset.json"):
        summary = run(folder, out, config, display.stage, head_model=head_model, place=place)
    options.echo(out, summary, as_json=as_json)


app = App(help="Train networks on prepared datasets.", rich_markup_mode=None)


@app.callback()
def train() -> None:
    """Train networks on prepared datasets."""


Datasets = Annotated[
    list[Path] | None,
    typer.Argument(metavar="DATASET...", help="Folders made by `data prepare`; none: only synthetic people."),
]
Steps = Annotated[int, options.setting(TransferTraining, "steps")]
Synthetic = Annotated[int, options.setting(TransferTraining, "synthetic")]
Seed = Annotated[int, options.setting(TransferTraining, "seed")]
OwnModel = Annotated[Literal["anny", "smplx", "gnm"], options.setting(TransferTraining, "head_model")]


@app.command("transfer")
def transfer(
    datasets: Datasets = None,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="A .safetensors file.", show_default=False)],
    steps: Steps = TransferTraining.steps,
    synthetic: Synthetic = TransferTraining.synthetic,
    seed: Seed = TransferTraining.seed,
    head_model: OwnModel = TransferTraining.head_model,
    as_json: options.Json = False,
) -> None:
    """Train the network that predicts how a face moves beyond the head model's expressions.

    To resume an interrupted run, give the same command again. FILE.html has curves and predictions.
    """
    path = options.result(out, "transfer.safetensors", suffixes=(".safetensors",))
    from expportrait_cli.train.transfer.run import train_transfer

    config = TransferTraining(steps=steps, synthetic=synthetic, seed=seed, head_model=head_model)
    with Display() as display, alone(path):
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
    head_model: OwnModel = TransferTraining.head_model,
    as_json: options.Json = False,
) -> None:
    """Compare methods of transfer on held-out people: no offsets, copied offsets, and three networks.

    Networks that the folder FILE.work (FILE without its suffix) does not hold yet are trained as by `train transfer`.
    """
    path = options.result(out, "ablation.json", suffixes=(".json",))
    from expportrait_cli.train.transfer.ablation import ablation as run

    config = TransferTraining(steps=steps, synthetic=synthetic, seed=seed, head_model=head_model)
    with Display() as display, alone(path):
        figures, table = run(datasets or [], path, config, display.stage)
    if not as_json:
        say(table)
    options.echo(path, figures, as_json=as_json)


BASE = "wan-t2v-1.3b"


@app.command("generator")
def generator(
    datasets: Annotated[list[Path], typer.Argument(metavar="DATASET...", help="Folders made by `data prepare`.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="A new folder.", show_default=False)],
    base: Annotated[
        str,
        typer.Option(
            metavar="FOLDER", help="Wan in diffusers' format: name of `weights fetch`, folder, or cached repository."
        ),
    ] = BASE,
    control: Annotated[Literal["none", "normals"], options.setting(GeneratorTask, "control")] = GeneratorTask.control,
    paper: Annotated[
        bool,
        typer.Option(
            "--paper", help="The paper's settings: one learning rate for all weights, its loss, no face weights."
        ),
    ] = False,
    epochs: Annotated[int, options.setting(GeneratorTraining, "epochs")] = GeneratorTraining.epochs,
    steps: Annotated[int, options.setting(GeneratorTraining, "steps")] = GeneratorTraining.steps,
    size: Annotated[int, options.setting(GeneratorTraining, "size")] = GeneratorTraining.size,
    frames: Annotated[int, options.setting(GeneratorTraining, "frames")] = GeneratorTraining.frames,
    batch: Annotated[int, options.setting(GeneratorTraining, "batch")] = GeneratorTraining.batch,
    rate: Annotated[float, options.setting(GeneratorTraining, "rate")] = GeneratorTraining.rate,
    trunk: Annotated[float, options.setting(GeneratorTraining, "trunk")] = GeneratorTraining.trunk,
    lora: Annotated[int, options.setting(GeneratorTraining, "lora")] = GeneratorTraining.lora,
    representation: Annotated[
        Literal["full", "static", "base"], options.setting(GeneratorTraining, "representation")
    ] = GeneratorTraining.representation,
    loss: Annotated[Literal["velocity", "epsilon"], options.setting(GeneratorTask, "loss")] = GeneratorTask.loss,
    face: Annotated[float, options.setting(GeneratorTask, "face")] = GeneratorTask.face,
    features: Annotated[float, options.setting(GeneratorTask, "features")] = GeneratorTask.features,
    hint: Annotated[bool, options.setting(GeneratorTask, "hint", "--hint")] = GeneratorTask.hint,
    checkpointing: Annotated[
        bool,
        options.setting(GeneratorTask, "checkpointing", "--checkpointing/--no-checkpointing"),
    ] = GeneratorTask.checkpointing,
    report_every: Annotated[int, options.setting(GeneratorTask, "report_every")] = GeneratorTask.report_every,
    sample_every: Annotated[int, options.setting(GeneratorTask, "sample_every")] = GeneratorTask.sample_every,
    seed: Seed = GeneratorTraining.seed,
    as_json: options.Json = False,
) -> None:
    """Train the generator that paints a film from the photo and normal maps, on top of a public Wan.

    With `--base wan-vace-1.3b --control normals` it is a LoRA that makes VACE follow normal maps: one small file, for
    `generate --backend wan-vace --control normals --lora FOLDER/pytorch_lora_weights.safetensors`.

    On several GPUs: `accelerate launch --no-python expportrait train generator ...`. To resume an interrupted
    run, give the same command again; FOLDER.work has its state, curves and films.
    """
    if frames % 4 != 1:
        raise UsageError(f"--frames {frames}: Wan takes 5, 9, 13, ..., 81.")
    if size % 16:
        raise UsageError(f"--size {size}: Wan takes multiples of 16.")
    options.writable(out.parent)
    from expportrait_cli.painting.wan import require_packages

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
        representation=representation,
    )
    task = GeneratorTask(
        loss=loss,
        control=control,
        face=face,
        features=features,
        hint=hint,
        checkpointing=checkpointing,
        report_every=report_every,
        sample_every=sample_every,
    )
    if paper:
        config, task = replace(config, **PAPER_TRAINING), replace(task, **PAPER_TASK)
    # Processes that were launched together are one run: only the first takes the lock.
    with Display() as display, alone(out) if os.environ.get("RANK", "0") == "0" else nullcontext():
        summary = train_generator(datasets, out, base, config, task, display.stage)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if summary:
        options.echo(out, summary, as_json=as_json)


Sets = Annotated[list[Path], typer.Argument(metavar="DATASET...", help="Folders made by `data prepare`.")]


@app.command("mini")
def mini(
    datasets: Sets,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="A .safetensors file.", show_default=False)],
    steps: Annotated[int, options.setting(MiniTraining, "steps")] = MiniTraining.steps,
    photos: Annotated[int, options.setting(MiniTraining, "photos")] = MiniTraining.photos,
    seed: Seed = MiniTraining.seed,
    as_json: options.Json = False,
) -> None:
    """Train the painter `mini`, a small network that corrects what the proxy film had to guess.

    To resume an interrupted run, give the same command again. A fifth of the people are held out.
    """
    path = options.result(out, "mini.safetensors", suffixes=(".safetensors",))
    from expportrait_cli.train.mini.run import train_mini

    config = MiniTraining(steps=steps, photos=photos, seed=seed)
    with Display() as display, alone(path):
        summary = train_mini(datasets, path, config, display.stage)
    options.echo(path, summary, as_json=as_json)


@app.command("gate")
def gate(
    weights: Annotated[Path, typer.Argument(metavar="FILE", help="Weights of the painter `mini`.")],
    datasets: Sets,
    *,
    as_json: options.Json = False,
) -> None:
    """Evaluate the painter `mini` on people that it was not trained on, and write the result into FILE.

    `generate --backend auto` takes it in place of the proxy only if it passed: +0.3 dB on the head, +3 dB where the
    proxy guessed, edges at least 0.9 as strong as the true ones, no more flicker.
    """
    options.existing(weights)
    from expportrait_cli.train.mini import run

    with Display() as display, alone(weights):
        verdict = run.gate(weights, datasets, display.stage)
    options.echo(weights, verdict, as_json=as_json)
