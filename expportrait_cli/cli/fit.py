"""`expportrait fit`: a tracking to `.head.npz`."""

from pathlib import Path
from typing import Annotated

import typer

from expportrait_cli.cli import options
from expportrait_cli.cli.display import Display
from expportrait_cli.config import FitConfig
from expportrait_cli.pipeline.names import stem


def fit(
    tracking: Annotated[
        Path, typer.Argument(metavar="TRACK", help="Tracking of the photo, or of a clip.", show_default=False)
    ],
    *,
    driver: Annotated[
        Path | None,
        typer.Option(
            metavar="TRACK", help="The driver's tracking: if it shows the same person, they share an identity."
        ),
    ] = None,
    out: options.Out = None,
    rounds: Annotated[int, typer.Option(min=0, help="Rounds of the silhouette fit.")] = FitConfig.rounds,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    log_level: options.LogLevel = None,
) -> None:
    """Build the person's head: identity, and the offset that hair, clothes and shoulders add."""
    options.existing(tracking, kind="track")
    others = () if driver is None else (options.existing(driver, kind="track"),)
    path = options.result(out, f"{stem(tracking)}.head.npz", inputs=(tracking, *others))
    from expportrait_cli.pipeline import single

    with Display() as display:
        summary = single.fit(tracking, driver, path, FitConfig(rounds=rounds), display.stage)
    options.echo(path, summary, as_json=as_json)
