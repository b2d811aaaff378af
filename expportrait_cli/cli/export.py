"""`expportrait export`: a head or an animation for Blender, viewers and mesh libraries."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from expportrait_cli.artifacts.files import alone, stem
from expportrait_cli.cli import options
from expportrait_cli.cli.boundary import Display
from expportrait_cli.errors import UsageError

Format = Literal["obj", "ply", "glb"]
FORMATS: tuple[Format, ...] = ("obj", "ply", "glb")


def export(
    source: Annotated[
        Path, typer.Argument(metavar="HEAD|MESHES", help="A .head.npz or .meshes.npz.", show_default=False)
    ],
    *,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="PATH", help="A file; for frames as obj or ply, a folder of their own."),
    ] = None,
    form: Annotated[
        Format | None, typer.Option("--format", help="Kind of file; taken from the name of -o, else glb.")
    ] = None,
    frames: Annotated[
        str, typer.Option(metavar="N|START:END:STEP", help="Frames of an animation: 40, or 0:100:5; all of them.")
    ] = "",
    neutral: Annotated[
        bool, typer.Option("--neutral/--photo", help="The head without expression and pose, or as in the photo.")
    ] = False,
    detail: Annotated[
        bool, typer.Option("--detail/--no-detail", help="In a .glb, the fine static detail as a normal map.")
    ] = True,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    log_level: options.LogLevel = None,
) -> None:
    """Write a head or an animation as .glb, .obj or .ply: metres, y up, the photo's camera at the origin."""
    options.existing(source)
    chosen = chosen_format(out, form)
    from expportrait_cli.pipeline import export as pipeline

    kind = pipeline.kind_of(source)
    if (kind == "head" and frames) or (kind == "meshes" and neutral):
        raise UsageError(f"{source} is a '{kind}' artifact: --frames is for animations, --neutral for heads.")
    if kind == "meshes" and chosen != "glb" and (not frames or ":" in frames):
        path = frames_folder(out, f"{stem(source)}-{chosen}", chosen)
    else:
        path = options.result(out, f"{stem(source)}.{chosen}", inputs=(source,), suffixes=(f".{chosen}",))
    with Display() as display, alone(path):
        if kind == "head":
            summary = pipeline.export_head(source, path, chosen, display.stage, neutral=neutral, detail=detail)
        else:
            summary = pipeline.export_meshes(source, path, chosen, display.stage, frames=frames, detail=detail)
    options.echo(path, summary, as_json=as_json)


def chosen_format(out: str | None, form: Format | None) -> Format:
    """Kind of file that is asked for, by option or by the name of the result, which must not contradict each other."""
    named: Format | None = next(
        (name for name in FORMATS if out is not None and Path(out).suffix.lower() == f".{name}"), None
    )
    if form is not None and named is not None and form != named:
        raise UsageError(f"-o {out} contradicts --format {form}. Give one of them, or name it .{form}.")
    return form or named or "glb"


def frames_folder(out: str | None, default: str, form: Format) -> Path:
    """Folder that the frames go to; checked before any work."""
    path = Path(out or default)
    if path.suffix.lower() == f".{form}":
        raise UsageError(
            f"{path}: several frames make a folder of .{form} files. Name a folder with --format {form}, "
            "or choose one frame, such as --frames 0."
        )
    options.writable(path.parent)
    return path
