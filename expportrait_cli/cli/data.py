"""`expportrait data`: sets to train on."""

from pathlib import Path
from typing import Annotated

import typer

from expportrait_cli.cli import options
from expportrait_cli.cli.display import Display
from expportrait_cli.cli.options import HeadModelOption
from expportrait_cli.config import PrepareConfig
from expportrait_cli.runtime import cpu_count

app = typer.Typer(help="Make sets to train on.", rich_markup_mode=None)


@app.callback()
def data() -> None:
    """Make sets to train on."""


@app.command("prepare")
def prepare(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of videos, searched to its depth.", show_default=False)
    ],
    *,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DATASET", help="Folder of the set; it may exist.", show_default=False),
    ],
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes at a time; one for each processor.", show_default=False)
    ] = None,
    frames: Annotated[int, options.setting(PrepareConfig, "frames", min=24)] = PrepareConfig.frames,
    min_face: Annotated[
        int, options.setting(PrepareConfig, "min_face_px", metavar="PX", min=16)
    ] = PrepareConfig.min_face_px,
    head_model: HeadModelOption = "anny",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    log_level: options.LogLevel = None,
) -> None:
    """Cut videos into clips of one face, leave out what is no use, track and fit the rest; see DATASET/index.html.

    Run the same command again to go on where it stopped, or to add videos that came to the folder.
    """
    options.writable(out)
    from expportrait_cli.dataset.prepare import prepare as run

    count = jobs or cpu_count()
    config = PrepareConfig(frames=frames, min_face_px=min_face)
    with Display() as display:
        summary = run(folder, out, config, display.stage, head_model=head_model, jobs=count)
    options.echo(out, summary, as_json=as_json)
