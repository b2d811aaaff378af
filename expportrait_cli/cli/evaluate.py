"""`expportrait eval`: how close a film is to what it should show."""

import json
from pathlib import Path
from typing import Annotated

import typer

from expportrait_cli.cli import options
from expportrait_cli.cli.display import Display


def evaluate(
    film: Annotated[Path, typer.Argument(metavar="OUT", help="The film to judge.", show_default=False)],
    *,
    target: Annotated[
        Path, typer.Option(metavar="CLIP", help="What drove it, or what it should look like.", show_default=False)
    ],
    reference: Annotated[
        Path | None, typer.Option("--reference", "-s", metavar="PHOTO", help="Photo to compare the identity with.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="PATH", help="Where the scores go; a file or a folder.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="HTML", help="Also write a page: intervals, curves, worst frames.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON instead of the path.")] = False,
    quiet: options.Quiet = False,
    log_level: options.LogLevel = None,
) -> None:
    """Measure a film: pixels against the target, landmarks against the driver, identity against the photo."""
    inputs = tuple(options.existing(path) for path in (film, target, reference) if path is not None)
    path = options.result(out, f"{film.stem}.scores.json", inputs=inputs, suffixes=(".json",))
    page = report
    if report is not None:
        page = options.result(report, f"{film.stem}.report.html", inputs=(*inputs, path), suffixes=(".html", ".htm"))
    from expportrait_cli.pipeline import single

    with Display() as display:
        scores, table = single.evaluate(film, target, reference, path, display.stage, page=page)
    if not as_json:
        typer.echo(table, err=True)
    typer.echo(json.dumps(scores) if as_json else str(path))
