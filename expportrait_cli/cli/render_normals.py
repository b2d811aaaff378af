"""`expportrait render-normals`: meshes to a film of normal maps."""

from pathlib import Path
from typing import Annotated

import typer

from expportrait_cli.artifacts import stem
from expportrait_cli.cli import options
from expportrait_cli.cli.display import Display
from expportrait_cli.config import RenderConfig
from expportrait_cli.errors import UsageError


def render_normals(
    meshes: Annotated[Path, typer.Argument(metavar="MESHES", help="A .meshes.npz.", show_default=False)],
    *,
    out: options.Out = None,
    size: options.Size = "512",
    antialias: Annotated[
        bool, typer.Option("--antialias/--no-antialias", help="Smooth the silhouette's edge.")
    ] = RenderConfig.antialias,
    view: Annotated[str, typer.Option(metavar="ANGLES", help="A fixed viewpoint, degrees: yaw=20,pitch=5.")] = "",
    orbit: Annotated[str, typer.Option(metavar="ANGLES", help="A camera path, degrees: yaw=-30..30.")] = "",
    depth: Annotated[bool, typer.Option("--depth/--no-depth", help="Also write depth, 16-bit.")] = False,
    mask: Annotated[bool, typer.Option("--mask/--no-mask", help="Also write the mask.")] = False,
    preview: Annotated[
        bool, typer.Option("--preview/--no-preview", help="Also write an .mp4 of driver | normals.")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    log_level: options.LogLevel = None,
) -> None:
    """Draw normal maps of a performance, from the photo's viewpoint or another, without painting a film."""
    if view and orbit:
        raise UsageError("--view and --orbit exclude each other: --orbit yaw=-30..30,pitch=5 does both.")
    options.existing(meshes, kind="meshes")
    path = options.result(out, f"{stem(meshes)}.normals.mkv", inputs=(meshes,), suffixes=(".normals.mkv",))
    from expportrait_cli.pipeline import steps

    config = RenderConfig(size=int(size), antialias=antialias)
    with Display() as display:
        summary = steps.render_normals(
            meshes, path, config, display.stage, view=view, orbit=orbit, depth=depth, mask=mask, preview=preview
        )
    options.echo(path, summary, as_json=as_json)
