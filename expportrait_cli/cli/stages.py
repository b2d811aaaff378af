"""The commands of the single stages: `track`, `fit`, `transfer`, `render-normals` and `export`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from expportrait_cli.artifacts.files import alone, stem
from expportrait_cli.cli import options
from expportrait_cli.cli.boundary import Display
from expportrait_cli.cli.options import HeadModelOption
from expportrait_cli.config import (
    FitConfig,
    Quality,
    Recenter,
    RenderConfig,
    Stretch,
    Supervision,
    TrackConfig,
    TransferConfig,
)
from expportrait_cli.errors import InputError, UsageError


def track(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Photo or clip.", show_default=False)],
    *,
    out: options.Out = None,
    face: options.Face = TrackConfig.face,
    start: options.Start = Stretch.start,
    end: options.End = Stretch.end,
    max_frames: options.MaxFrames = Stretch.max_frames,
    on_missing: options.OnMissing = TrackConfig.on_missing,
    head_model: HeadModelOption = "anny",
    parameters: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|FOLDER",
            exists=True,
            show_default=False,
            help="SMPL-X parameters of this clip from another tracker: an .npz with betas, expression, jaw_pose; a "
            "folder of one .npz a frame (SMPLest-X); AMASS's or Motion-X's layout.",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Follow one face: landmarks, expression, jaw, gaze, head pose and camera of every frame."""
    options.existing(source)
    path = options.result(out, f"{source.stem}.track.npz")
    from expportrait_cli.detect.faces import check_choice
    from expportrait_cli.pipeline.job import kind_of

    check_choice("face", face)
    kind = kind_of(source)
    if kind not in ("photo", "clip"):
        raise InputError(f"{source} is a '{kind}' artifact, expected a photo or a clip. Give what it was made from.")
    from expportrait_cli.pipeline import commands
    from expportrait_cli.pipeline.provenance import tracking_quality

    with Display() as display:
        config = TrackConfig(face=face, on_missing=on_missing, stretch=Stretch(start, end, max_frames))
        tracking = commands.track(
            source, path, config, head_model=head_model, parameters=parameters, stage=display.stage
        )
    options.echo(path, tracking_quality(tracking), as_json=as_json)


def fit(
    trackings: Annotated[
        list[Path],
        typer.Argument(
            metavar="TRACK...",
            help="Tracking of a photo or clip; further ones of the same person improve the identity.",
            show_default=False,
        ),
    ],
    *,
    head: Annotated[
        Path | None,
        typer.Option(metavar="HEAD", help="A fitted head of the same person: kept as it is, only frames are fitted."),
    ] = None,
    driver: Annotated[
        Path | None,
        typer.Option(
            metavar="TRACK", help="Tracking of the driver: if it shows the same person, one identity is fitted to both."
        ),
    ] = None,
    same_person: options.SamePerson = None,
    out: options.Out = None,
    quality: Annotated[Quality, options.setting(FitConfig, "quality")] = FitConfig.quality,
    supervision: Annotated[Supervision, options.setting(FitConfig, "supervision")] = FitConfig.supervision,
    recenter: Annotated[Recenter, options.setting(FitConfig, "recenter")] = FitConfig.recenter,
    detail: Annotated[bool, options.setting(FitConfig, "detail", "--detail/--no-detail")] = FitConfig.detail,
    rounds: Annotated[int, options.setting(FitConfig, "rounds")] = FitConfig.rounds,
    as_json: options.Json = False,
) -> None:
    """Fit the person's head: identity, static offsets (hair, clothes), and the folds of every frame."""
    own = tuple(options.existing(path, kind="track") for path in trackings)
    for given, kind in ((driver, "track"), (head, "head")):
        if given is not None:
            options.existing(given, kind=kind)
    path = options.result(out, f"{stem(own[0])}.head.npz")
    from expportrait_cli.pipeline import commands
    from expportrait_cli.pipeline.provenance import fit_quality

    if same_person is not None and (driver is None or head is not None):
        raise UsageError(
            "--same-person and --different-person need --driver, and cannot be used with --head. Leave them out."
        )
    config = FitConfig(
        quality=quality,
        supervision=supervision,
        same_person=options.verdict(same_person),
        recenter=recenter,
        detail=detail,
        rounds=rounds,
    )
    with Display() as display:
        head_fit = commands.fit(own, path, config, driver=driver, known=head, stage=display.stage)
    options.echo(path, fit_quality(head_fit), as_json=as_json)


def transfer(
    head: Annotated[Path, typer.Argument(metavar="HEAD", help="The person's .head.npz.", show_default=False)],
    driving: Annotated[Path, typer.Argument(metavar="TRACK", help="The driver's .track.npz.", show_default=False)],
    *,
    out: options.Out = None,
    method: options.Method = TransferConfig.method,
    network: options.Network = TransferConfig.network,
    expression: options.Expression = None,
    pose: options.Pose = None,
    absolute: options.Absolute = None,
    neutral_frame: options.NeutralFrame = None,
    expression_scale: options.ExpressionScale = TransferConfig.expression_scale,
    pose_scale: options.PoseScale = TransferConfig.pose_scale,
    region: options.Region = TransferConfig.region,
    smooth: options.Smooth = TransferConfig.smooth,
    curves: options.CurvesFile = None,
    representation: options.Shown = TransferConfig.representation,
    driver_head: Annotated[
        Path | None,
        typer.Option(
            metavar="HEAD",
            help="Head fitted to the driver's clip (.head.npz): a share of its folds is added to what the network "
            "predicts (see --folds). With --method direct, all its dynamic offsets are copied instead.",
            show_default=False,
        ),
    ] = None,
    folds: options.Folds = TransferConfig.folds,
    as_json: options.Json = False,
) -> None:
    """Transfer the driver's performance to the person's head."""
    options.existing(head, kind="head")
    options.existing(driving, kind="track")
    path = options.result(out, f"{stem(head)}--{stem(driving)}.meshes.npz")
    options.check_curves(curves)
    if driver_head is not None:
        options.existing(driver_head, kind="head")
    from expportrait_cli.pipeline import commands

    config = TransferConfig(
        method=method,
        network=network,
        **options.counting(absolute, expression, pose, neutral_frame),
        expression_scale=expression_scale,
        pose_scale=pose_scale,
        region=region,
        smooth=smooth,
        folds=folds,
        representation=representation,
    )
    with Display() as display:
        meshes = commands.transfer(
            head, driving, path, config, curves=curves, driver_head=driver_head, stage=display.stage
        )
    summary = {"frames": meshes.frame_count, "curves": str(curves) if curves is not None else None}
    options.echo(path, summary, as_json=as_json)


def render_normals(
    meshes: Annotated[Path, typer.Argument(metavar="MESHES", help="A .meshes.npz.", show_default=False)],
    *,
    out: options.Out = None,
    size: options.Size = "512",
    antialias: Annotated[
        bool, options.setting(RenderConfig, "antialias", "--antialias/--no-antialias")
    ] = RenderConfig.antialias,
    detail: Annotated[bool, options.setting(RenderConfig, "detail", "--detail/--no-detail")] = RenderConfig.detail,
    view: Annotated[str, typer.Option(metavar="ANGLES", help="A fixed viewpoint, degrees: yaw=20,pitch=5.")] = "",
    orbit: Annotated[str, typer.Option(metavar="ANGLES", help="A camera path, degrees: yaw=-30..30.")] = "",
    depth: Annotated[
        bool,
        typer.Option(
            "--depth/--no-depth", help="Also write the depth: 16-bit grey, 0.16 mm per level, 0 in the background."
        ),
    ] = False,
    mask: Annotated[bool, typer.Option("--mask/--no-mask", help="Also write the mask of the head.")] = False,
    preview: Annotated[
        bool, typer.Option("--preview/--no-preview", help="Also write an .mp4 of driver | normals.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Render normal maps of a performance, from the photo's viewpoint or another one, without painting a film."""
    if view and orbit:
        raise UsageError("--view and --orbit exclude each other: --orbit yaw=-30..30,pitch=5 does both.")
    options.existing(meshes, kind="meshes")
    path = options.result(out, f"{stem(meshes)}.normals.mkv", suffixes=(".normals.mkv",))
    from expportrait_cli.pipeline import commands

    config = RenderConfig(size=int(size), antialias=antialias, detail=detail)
    with Display() as display:
        film = commands.render_normals(
            meshes, path, config, view=view, orbit=orbit, depth=depth, mask=mask, preview=preview, stage=display.stage
        )
    summary: dict[str, Any] = {"frames": film.frames, "sidecar": str(film.sidecar)}
    if film.preview is not None:
        summary["preview"] = str(film.preview)
    options.echo(path, summary, as_json=as_json)


Format = Literal["obj", "ply", "glb"]
FORMATS: tuple[Format, ...] = ("obj", "ply", "glb")


def export(
    source: Annotated[
        Path, typer.Argument(metavar="HEAD|MESHES", help="A .head.npz or .meshes.npz.", show_default=False)
    ],
    *,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="PATH", help="A file; for several frames as .obj or .ply, a folder."),
    ] = None,
    form: Annotated[
        Format | None, typer.Option("--format", help="File format; by default that of the name of -o, else glb.")
    ] = None,
    frames: Annotated[
        str,
        typer.Option(
            metavar="N|START:END:STEP", help="Frames of an animation: one (40) or several (0:100:5); by default all."
        ),
    ] = "",
    neutral: Annotated[
        bool, typer.Option("--neutral/--photo", help="Export the head without expression and pose, or as in the photo.")
    ] = False,
    detail: Annotated[
        bool, typer.Option("--detail/--no-detail", help="Add the fine static detail to a .glb, as a normal map.")
    ] = True,
    as_json: options.Json = False,
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
        path = options.result(out, f"{stem(source)}.{chosen}", suffixes=(f".{chosen}",))
    with Display() as display, alone(path):
        if kind == "head":
            summary = pipeline.export_head(source, path, chosen, display.stage, neutral=neutral, detail=detail)
        else:
            summary = pipeline.export_meshes(source, path, chosen, display.stage, frames=frames, detail=detail)
    options.echo(path, summary, as_json=as_json)


def chosen_format(out: str | None, form: Format | None) -> Format:
    """Choose the file format, by --format or by the name of the result; the two must not contradict each other."""
    named: Format | None = next(
        (name for name in FORMATS if out is not None and Path(out).suffix.lower() == f".{name}"), None
    )
    if form is not None and named is not None and form != named:
        raise UsageError(f"-o {out} contradicts --format {form}. Give one of them, or name it .{form}.")
    return form or named or "glb"


def frames_folder(out: str | None, default: str, form: Format) -> Path:
    """Return the folder for the files of the frames; it is checked before any work."""
    path = Path(out or default)
    if path.suffix.lower() == f".{form}":
        raise UsageError(
            f"{path}: several frames make a folder of .{form} files. Name a folder with --format {form}, "
            "or choose one frame, such as --frames 0."
        )
    options.writable(path.parent)
    return path
