"""`expportrait generate`: make a film from a photo and a clip; and `compare-recipes`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from expportrait_cli.artifacts.files import film_name
from expportrait_cli.cli import options
from expportrait_cli.cli.boundary import Display, shown
from expportrait_cli.config import FitConfig, GenerateConfig, Quality, Stretch, TrackConfig, TransferConfig, WanConfig
from expportrait_cli.errors import UsageError

if TYPE_CHECKING:
    from expportrait_cli.pipeline.job import Job

CLIP, RESULT = options.CLIP, "Result"


def generate(
    ctx: options.Context,
    reference: Annotated[
        Path | None, typer.Argument(metavar="REF", help="Photo, clip, or .head.npz.", show_default=False)
    ] = None,
    driving: Annotated[
        Path | None,
        typer.Argument(
            metavar="DRIVING", help="Clip, photo, .track.npz, .meshes.npz, .normals.mkv.", show_default=False
        ),
    ] = None,
    *,
    source_option: Annotated[
        Path | None,
        typer.Option("--source", "--reference", "-s", metavar="FILE", help="Same as REF.", rich_help_panel=CLIP),
    ] = None,
    driving_option: Annotated[
        Path | None, typer.Option("--driving", "-d", metavar="FILE", help="Same as DRIVING.", rich_help_panel=CLIP)
    ] = None,
    out: options.Out = None,
    face: options.Face = TrackConfig.face,
    driving_face: Annotated[
        str, typer.Option(help="Face to follow in DRIVING: same values as --face.")
    ] = TrackConfig.face,
    start: options.Start = Stretch.start,
    end: options.End = Stretch.end,
    size: options.Size = "512",
    aspect: Annotated[str, options.setting(GenerateConfig, "aspect", metavar="W:H")] = GenerateConfig.aspect,
    quality: Annotated[Quality, options.setting(FitConfig, "quality", rich_help_panel=CLIP)] = FitConfig.quality,
    max_frames: options.MaxFrames = Stretch.max_frames,
    reference_start: Annotated[
        str,
        typer.Option(
            metavar="MOMENT", help="Like --start, for REF if it is a clip.", show_default=False, rich_help_panel=CLIP
        ),
    ] = Stretch.start,
    reference_end: Annotated[
        str,
        typer.Option(
            metavar="MOMENT", help="Like --end, for REF if it is a clip.", show_default=False, rich_help_panel=CLIP
        ),
    ] = Stretch.end,
    reference_max_frames: Annotated[
        int, typer.Option(min=0, help="Like --max-frames, for REF if it is a clip.", rich_help_panel=CLIP)
    ] = Stretch.max_frames,
    on_missing: options.OnMissing = TrackConfig.on_missing,
    head_model: options.OwnHeadModel = None,
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
    representation: options.Shown = TransferConfig.representation,
    mouth: Annotated[
        Literal["driver", "model"], options.setting(GenerateConfig, "mouth", rich_help_panel=RESULT)
    ] = GenerateConfig.mouth,
    wrinkles: Annotated[
        Literal["driver", "none"], options.setting(GenerateConfig, "wrinkles", rich_help_panel=RESULT)
    ] = GenerateConfig.wrinkles,
    audio: Annotated[
        Literal["driving", "reference", "none"], options.setting(GenerateConfig, "audio", rich_help_panel=RESULT)
    ] = GenerateConfig.audio,
    encode_quality: Annotated[
        Literal["fast", "small"], options.setting(GenerateConfig, "encode_quality", rich_help_panel=RESULT)
    ] = GenerateConfig.encode_quality,
    paste_back: Annotated[
        bool, options.setting(GenerateConfig, "paste_back", "--paste-back/--no-paste-back", rich_help_panel=RESULT)
    ] = GenerateConfig.paste_back,
    detail: Annotated[
        bool, options.setting(GenerateConfig, "detail", "--detail/--no-detail", rich_help_panel=RESULT)
    ] = GenerateConfig.detail,
    backend: options.BackendName = GenerateConfig.backend,
    weights_folder: options.Weights = WanConfig.weights,
    steps: options.Steps = WanConfig.steps,
    shift: options.Shift = WanConfig.shift,
    strength: options.Strength = WanConfig.strength,
    prompt: options.Prompt = WanConfig.prompt,
    negative_prompt: options.NegativePrompt = WanConfig.negative_prompt,
    guidance: options.Guidance = WanConfig.guidance,
    control: options.Control = WanConfig.control,
    keep: options.Keep = WanConfig.keep,
    skip: options.Skip = WanConfig.skip,
    chain: options.Chain = WanConfig.chain,
    dtype: options.Precision = WanConfig.dtype,
    offload: options.Offload = WanConfig.offload,
    quantize: options.Quantize = WanConfig.quantize,
    lora: options.Lora = None,
    cache: options.Cache = WanConfig.cache,
    attention: options.Attention = WanConfig.attention,
    compile: options.Compile = WanConfig.compile,
    vae: options.VaeKind = WanConfig.vae,
    seed: Annotated[int, options.setting(GenerateConfig, "seed", rich_help_panel=RESULT)] = GenerateConfig.seed,
    grid: Annotated[
        bool,
        typer.Option(
            "--grid/--no-grid",
            help="Also write a film with photo | driver | normals | result side by side.",
            rich_help_panel=RESULT,
        ),
    ] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report/--no-report", help="Also write a page about the film: OUT.html.", rich_help_panel=RESULT
        ),
    ] = False,
    show_control: Annotated[
        bool,
        typer.Option(
            "--show-control",
            help="Instead of the film, write a picture of wan-vace's conditions: OUT.control.png.",
            rich_help_panel=options.PAINTER,
        ),
    ] = False,
    keep_work: Annotated[
        bool,
        typer.Option(
            "--keep-work/--no-keep-work",
            help="Keep intermediate results, in OUT.work, for the next run.",
            rich_help_panel=RESULT,
        ),
    ] = True,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only print the plan: stages, results that are reused, weights, memory, time.",
            rich_help_panel=options.RUN,
        ),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Make the person in REF perform DRIVING: track both, fit the head, transfer, paint the film.

    Results of earlier runs with the same inputs and settings are reused. To resume an interrupted run, give the same
    command again.
    """
    ref, drive = photo_and_driver(ctx, reference, driving, source_option, driving_option)
    options.existing(ref)
    options.existing(drive)
    path = options.result(out, film_name(ref, drive), suffixes=(".mp4",))
    options.check_curves(curves)
    if report and not keep_work:
        raise UsageError("--report needs the intermediate results that --no-keep-work removes. Leave out one of them.")
    from expportrait_cli.pipeline import job as jobs

    job = jobs.Job(
        reference=ref,
        driving=drive,
        out=path,
        track=TrackConfig(
            face=face,
            on_missing=on_missing,
            stretch=Stretch(reference_start, reference_end, reference_max_frames),
        ),
        driving_face=driving_face,
        driving_stretch=Stretch(start, end, max_frames),
        head_model=head_model,
        fit=FitConfig(quality=quality, same_person=options.verdict(same_person)),
        transfer=TransferConfig(
            method=method,
            network=network,
            **options.counting(absolute, expression, pose, neutral_frame),
            expression_scale=expression_scale,
            pose_scale=pose_scale,
            region=region,
            smooth=smooth,
            representation=representation,
        ),
        generate=GenerateConfig(
            backend=backend,
            size=int(size),
            aspect=aspect,
            paste_back=paste_back,
            mouth=mouth,
            wrinkles=wrinkles,
            audio=audio,
            encode_quality=encode_quality,
            detail=detail,
            seed=seed,
            wan=WanConfig(
                weights=weights_folder,
                steps=steps,
                shift=shift,
                strength=strength,
                prompt=prompt,
                negative_prompt=negative_prompt,
                guidance=guidance,
                control=control,
                keep=keep,
                skip=skip,
                chain=chain,
                dtype=dtype,
                offload=offload,
                quantize=quantize,
                lora=options.loras(lora),
                cache=cache,
                attention=attention,
                compile=compile,
                vae=vae,
            ),
        ),
        curves=curves,
        grid=grid,
        with_report=report,
        show_control=show_control,
        keep_work=keep_work,
    )
    if dry_run:
        _say_plan(job, as_json=as_json)
        return
    if options.only_helps(job.generate):
        return
    from expportrait_cli.pipeline import film

    with Display() as display:
        made = film.generate(job, display.stage)
    options.echo(made.path, made.summary, as_json=as_json)


def compare_recipes(
    photo: Annotated[Path, typer.Argument(metavar="PHOTO", help="Photo of a person.", show_default=False)],
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="A clip of some seconds.", show_default=False)],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder for films and page.")] = Path(
        "recipes"
    ),
    weights_folder: options.Weights = WanConfig.weights,
    steps: Annotated[int, typer.Option(min=1, max=200, help="Steps of the sampler.")] = 20,
    lora: options.Lora = None,
    dtype: options.Precision = WanConfig.dtype,
    offload: options.Offload = WanConfig.offload,
    quantize: options.Quantize = WanConfig.quantize,
    size: options.Size = "512",
    seed: Annotated[int, options.setting(GenerateConfig, "seed")] = GenerateConfig.seed,
    as_json: options.Json = False,
) -> None:
    """Paint a film with wan-vace in six ways, measure each against the proxy, and write a page: FOLDER/index.html.

    After that, `--backend auto` may choose these weights on this machine. An interrupted comparison can be resumed.
    """
    options.existing(photo)
    options.existing(clip)
    options.writable(out)
    from expportrait_cli.pipeline.recipes import compare

    wan = WanConfig(
        weights=weights_folder,
        steps=steps,
        lora=options.loras(lora),
        dtype=dtype,
        offload=offload,
        quantize=quantize,
    )
    with Display() as display:
        page, summary = compare(photo, clip, out, GenerateConfig(size=int(size), seed=seed, wan=wan), display.stage)
    options.echo(page, summary, as_json=as_json)


def _say_plan(job: "Job", *, as_json: bool) -> None:
    from expportrait_cli.pipeline.plan import plan

    found = plan(job)
    typer.echo(json.dumps(found.to_json()) if as_json else shown("\n".join(found.lines()), keep="\n"))


def photo_and_driver(
    ctx: options.Context, first: Path | None, second: Path | None, source: Path | None, driving: Path | None
) -> tuple[Path, Path]:
    """Return photo and driver, given by position or option; both override those of a settings file."""
    if source is not None and _is_from_file(ctx, "reference"):
        first = None
    if driving is not None and _is_from_file(ctx, "driving"):
        second = None
    given = [path for path in (first, second) if path is not None]
    named = [path for path in (source, driving) if path is not None]
    if len(given) + len(named) != 2:
        raise UsageError(
            f"Expected a photo and a driving clip, got {len(given) + len(named)} files. "
            "Write `expportrait generate REF DRIVING`."
        )
    reference = source if source is not None else given.pop(0)
    return reference, driving if driving is not None else given.pop(0)


def _is_from_file(ctx: options.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "DEFAULT_MAP"
