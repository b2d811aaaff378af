"""`expportrait generate`: a photo and a clip to a film."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from expportrait_cli.artifacts.files import film_name
from expportrait_cli.cli import options
from expportrait_cli.cli.boundary import Display
from expportrait_cli.config import FitConfig, GenerateConfig, TrackConfig, TransferConfig, WanConfig
from expportrait_cli.errors import UsageError


def generate(
    reference: Annotated[
        Path | None, typer.Argument(metavar="REF", help="Photo, or a .head.npz.", show_default=False)
    ] = None,
    driving: Annotated[
        Path | None,
        typer.Argument(metavar="DRIVING", help="Clip or photo, .track.npz or .meshes.npz.", show_default=False),
    ] = None,
    *,
    source_option: Annotated[
        Path | None, typer.Option("--source", "--reference", "-s", metavar="FILE", help="Same as REF.")
    ] = None,
    driving_option: Annotated[
        Path | None, typer.Option("--driving", "-d", metavar="FILE", help="Same as DRIVING.")
    ] = None,
    out: options.Out = None,
    face: options.Face = TrackConfig.face,
    driving_face: Annotated[str, typer.Option(help="Which face of the driver, as with --face.")] = TrackConfig.face,
    on_missing: options.OnMissing = TrackConfig.on_missing,
    same_person: options.SamePerson = None,
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
    audio: Annotated[
        Literal["driving", "reference", "none"], options.setting(GenerateConfig, "audio")
    ] = GenerateConfig.audio,
    paste_back: Annotated[
        bool, options.setting(GenerateConfig, "paste_back", "--paste-back/--no-paste-back")
    ] = GenerateConfig.paste_back,
    detail: Annotated[bool, options.setting(GenerateConfig, "detail", "--detail/--no-detail")] = GenerateConfig.detail,
    size: options.Size = "512",
    backend: options.BackendName = GenerateConfig.backend,
    weights_folder: options.Weights = None,
    steps: options.Steps = WanConfig.steps,
    guidance: options.Guidance = WanConfig.guidance,
    control: options.Control = WanConfig.control,
    strength: options.Strength = WanConfig.strength,
    chain: options.Chain = WanConfig.chain,
    dtype: options.Precision = WanConfig.dtype,
    offload: options.Offload = WanConfig.offload,
    quantize: options.Quantize = WanConfig.quantize,
    lora: options.Lora = None,
    cache: options.Cache = WanConfig.cache,
    attention: options.Attention = WanConfig.attention,
    seed: Annotated[int, options.setting(GenerateConfig, "seed")] = GenerateConfig.seed,
    grid: Annotated[
        bool, typer.Option("--grid/--no-grid", help="Also write a film of photo | driver | normals | result.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Also write a page about the film: OUT.html.")
    ] = False,
    keep_work: Annotated[
        bool,
        typer.Option(
            "--keep-work/--no-keep-work", help="Keep what was made on the way, in OUT.work, for the next run."
        ),
    ] = True,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    log_level: options.LogLevel = None,
) -> None:
    """Make the person in REF perform DRIVING: track both, fit the head, transfer, paint the film.

    What an earlier run has made with the same inputs and settings is used again; an interrupted run goes on where it
    stopped when the same command is given.
    """
    ref, drive = options.two(reference, driving, source_option, driving_option)
    options.existing(ref)
    options.existing(drive)
    path = options.result(out, film_name(ref, drive), inputs=(ref, drive), suffixes=(".mp4",))
    options.check_curves(curves)
    if report and not keep_work:
        raise UsageError("--report reads what --no-keep-work removes. Leave out one of them.")
    from expportrait_cli.pipeline import job as jobs

    job = jobs.Job(
        reference=ref,
        driving=drive,
        out=path,
        track=TrackConfig(face=face, on_missing=on_missing),
        driving_face=driving_face,
        fit=FitConfig(same_person=options.verdict(same_person)),
        transfer=TransferConfig(
            method=method,
            network=network,
            **options.counting(absolute, expression, pose, neutral_frame),
            expression_scale=expression_scale,
            pose_scale=pose_scale,
            region=region,
            smooth=smooth,
        ),
        generate=GenerateConfig(
            backend=backend,
            size=int(size),
            paste_back=paste_back,
            audio=audio,
            detail=detail,
            seed=seed,
            wan=WanConfig(
                weights=str(weights_folder or ""),
                steps=steps,
                guidance=guidance,
                control=control,
                strength=strength,
                chain=chain,
                dtype=dtype,
                offload=offload,
                quantize=quantize,
                lora=str(lora or ""),
                cache=cache,
                attention=attention,
            ),
        ),
        curves=curves,
        grid=grid,
        with_report=report,
        keep_work=keep_work,
    )
    if options.only_helps(job.generate):
        return
    from expportrait_cli.pipeline import film

    with Display() as display:
        made = film.generate(job, display.stage)
    options.echo(made.path, made.summary, as_json=as_json)
