"""`expportrait track`: a photo or a clip to `.track.npz`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from expportrait_cli.cli import options
from expportrait_cli.cli.display import Display
from expportrait_cli.config import TrackConfig
from expportrait_cli.errors import InputError

HeadModelOption = Annotated[
    Literal["anny", "smplx"],
    typer.Option(help="3D head: the built-in one, or SMPL-X from your own licensed file (EXPPORTRAIT_SMPLX)."),
]


def track(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Photo or clip.", show_default=False)],
    *,
    out: options.Out = None,
    face: options.Face = TrackConfig.face,
    on_missing: options.OnMissing = TrackConfig.on_missing,
    head_model: HeadModelOption = "anny",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    log_level: options.LogLevel = None,
) -> None:
    """Follow one face: landmarks, expression, jaw, gaze, head pose and camera of every frame."""
    options.existing(source)
    path = options.result(out, f"{source.stem}.track.npz", inputs=(source,))
    from expportrait_cli.detect.faces import check_choice
    from expportrait_cli.pipeline.job import kind_of

    check_choice("--face", face)
    kind = kind_of(source)
    if kind not in ("photo", "clip"):
        raise InputError(f"{source} is a '{kind}' artifact, expected a photo or a clip. Give what it was made from.")
    from expportrait_cli.pipeline import steps

    with Display() as display:
        config = TrackConfig(face=face, on_missing=on_missing)
        summary = steps.track(source, path, config, display.stage, head_model=head_model)
    options.echo(path, summary, as_json=as_json)
