"""`expportrait fit`: trackings to `.head.npz`."""

from pathlib import Path
from typing import Annotated

import typer

from expportrait_cli.artifacts import stem
from expportrait_cli.cli import options
from expportrait_cli.cli.display import Display
from expportrait_cli.config import FitConfig, Quality, Recenter, Supervision


def fit(
    trackings: Annotated[
        list[Path],
        typer.Argument(
            metavar="TRACK...",
            help="Tracking of a photo or clip; more of the same person help to find the identity.",
            show_default=False,
        ),
    ],
    *,
    head: Annotated[
        Path | None,
        typer.Option(metavar="HEAD", help="A fitted head of the same person: keep it, fit the frames alone."),
    ] = None,
    driver: Annotated[
        Path | None,
        typer.Option(
            metavar="TRACK", help="The driver's tracking: if it shows the same person, they share an identity."
        ),
    ] = None,
    out: options.Out = None,
    quality: Annotated[
        Quality, typer.Option(help="draft: landmarks and outline; standard: folds too; high: finer folds too.")
    ] = FitConfig.quality,
    supervision: Annotated[
        Supervision, typer.Option(help="What folds are read from; auto: a network if installed, else shading.")
    ] = FitConfig.supervision,
    recenter: Annotated[
        Recenter, typer.Option(help="Mean over a clip that counts as the person's own shape.")
    ] = FitConfig.recenter,
    rounds: Annotated[int, typer.Option(min=0, help="Rounds of the silhouette fit.")] = FitConfig.rounds,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    log_level: options.LogLevel = None,
) -> None:
    """Build the person's head: identity, the offset of hair and clothes, and every frame's folds."""
    own = tuple(options.existing(path, kind="track") for path in trackings)
    others = [options.existing(path, kind=kind) for path, kind in ((driver, "track"), (head, "head")) if path]
    path = options.result(out, f"{stem(own[0])}.head.npz", inputs=(*own, *others))
    from expportrait_cli.pipeline import steps

    config = FitConfig(quality=quality, supervision=supervision, recenter=recenter, rounds=rounds)
    with Display() as display:
        summary = steps.fit(own, path, config, display.stage, driver=driver, known=head)
    options.echo(path, summary, as_json=as_json)
