"""`expportrait eval`: measures of a film against its target, or of all films of a suite, or of fitted heads."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from expportrait_cli.artifacts.files import alone
from expportrait_cli.cli import options
from expportrait_cli.cli.batch import ExecutorName, SlurmOptions, slurm_options
from expportrait_cli.cli.boundary import Display, say
from expportrait_cli.cli.options import BackendName
from expportrait_cli.config import Stretch, WanConfig
from expportrait_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from expportrait_cli.benchmark.files import Request


def evaluate(
    films: Annotated[
        list[Path] | None, typer.Argument(metavar="OUT", help="The film to measure.", show_default=False)
    ] = None,
    *,
    target: Annotated[
        Path | None,
        typer.Option(
            metavar="CLIP", help="The clip that drove the film, or that it should reproduce.", show_default=False
        ),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", "-s", metavar="PHOTO", help="Photo to compare the identity with.")
    ] = None,
    start: options.Start = Stretch.start,
    end: options.End = Stretch.end,
    max_frames: options.MaxFrames = Stretch.max_frames,
    suite: Annotated[
        Path | None,
        typer.Option(metavar="TOML|FOLDER", help="Instead of one film: a list of pairs, or a folder of clips."),
    ] = None,
    normals: Annotated[
        bool,
        typer.Option(
            "--normals",
            help="Measure fitted heads, not films: OUT are clips, or folders of them. A head is fitted to the first "
            "frame of each clip, and its outline and normal maps are compared with the pictures of later frames.",
        ),
    ] = False,
    folds: Annotated[
        bool, typer.Option("--folds", help="With --normals: also measure the folds of every frame; takes long.")
    ] = False,
    layout: Annotated[
        Literal["auto", "clips", "ravdess", "nersemble"], typer.Option(help="Layout of the suite's folder.")
    ] = "auto",
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="Also score the films of another method, called NAME: DIR has one film for each pair, named PAIR.mp4.",
        ),
    ] = None,
    ablation: Annotated[
        bool,
        typer.Option(
            "--ablation",
            help="Also make and score films without some parts of this method, to show what each part contributes.",
        ),
    ] = False,
    own: Annotated[
        bool, typer.Option("--own/--no-own", help="With --suite: make and score films of this tool, too.")
    ] = True,
    backend: BackendName = "auto",
    weights_folder: options.Weights = WanConfig.weights,
    head_model: options.HeadModelOption = "anny",
    representation: options.Shown = "full",
    stride: Annotated[
        int | None, typer.Option(min=1, help="With --suite: step between the frames that are used.", show_default=False)
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            min=2, help="With --suite: largest number of frames of each clip, after --stride.", show_default=False
        ),
    ] = None,
    size: Annotated[
        Literal["256", "512", "768"] | None,
        typer.Option(help="With --suite: side of the crop, px.", show_default=False),
    ] = None,
    executor: ExecutorName = "local",
    workers: Annotated[int, typer.Option(min=1, help="Number of pairs that are processed at a time.")] = 1,
    slurm: SlurmOptions = "",
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="PATH", help="File of the scores, or a folder for it.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="HTML",
            help="Also write an HTML page: scores with confidence intervals and their curves, worst frames.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON instead of the path.")] = False,
) -> None:
    """Measure a film: pixels against the target, landmarks against the driver, identity against the photo.

    With --suite, make and measure many, and give means over clips. Run it again to make only what is missing.
    """
    makes = (backend, head_model, representation, weights_folder) != ("auto", "anny", "full", WanConfig.weights)
    stretch = Stretch(start, end, max_frames)
    serving = (
        makes,
        method,
        ablation,
        not own,
        stride,
        frames,
        size,
        layout != "auto",
        (executor, workers) != ("local", 1),
    )
    if stretch != Stretch() and (normals or suite is not None):
        raise UsageError("--start, --end and --max-frames trim the --target of one film; leave them out.")
    if folds and not normals:
        raise UsageError("--folds can only be used with --normals.")
    if normals:
        if any(serving) or any(given is not None for given in (suite, target, reference, report)):
            raise UsageError("--normals takes only clips: leave out the options for films and suites.")
        _heads(films or [], out, folds=folds, as_json=as_json)
        return
    if suite is not None:
        if films or target is not None or reference is not None:
            raise UsageError("A --suite already has all files: leave out OUT, --target and --reference.")
        from expportrait_cli.benchmark.files import Request
        from expportrait_cli.benchmark.variants import Making
        from expportrait_cli.pipeline.executors import Place

        place = Place(executor, workers, tuple(slurm_options(slurm, executor).items()))
        request = Request(
            suite,
            layout,
            stride=stride,
            frames=frames,
            size=int(size) if size else None,
            methods=tuple(method or ()),
            ablation=ablation,
            own=own,
            making=Making(backend, weights_folder, head_model, representation),
            place=place,
        )
        _many(request, out, report, as_json=as_json)
        return
    if not films or len(films) > 1 or target is None:
        raise UsageError("Expected one film and its --target, a --suite of pairs, or --normals and clips.")
    if any(serving):
        raise UsageError("Without --suite, one film is measured: leave out the options that only suites have.")
    _one((films[0], target, reference), out, report, stretch, as_json=as_json)


def _one(
    files: tuple[Path, Path, Path | None], out: str | None, report: Path | None, stretch: Stretch, *, as_json: bool
) -> None:
    film, target, reference = files
    for given in filter(None, files):
        options.existing(given)
    path = options.result(out, f"{film.stem}.scores.json", suffixes=(".json",))
    page = report
    if report is not None:
        page = options.result(report, f"{film.stem}.report.html", suffixes=(".html", ".htm"))
    from expportrait_cli.evaluation import table
    from expportrait_cli.pipeline import commands

    with Display() as display:
        judged = commands.evaluate(
            film,
            target,
            path,
            reference=reference,
            page=page,
            stretch=stretch if stretch != Stretch() else None,
            stage=display.stage,
        )
    if not as_json:
        verdicts = [line for line in judged.licences.lines() if line.startswith("licences:")]
        say("\n".join([table(judged.scores), *verdicts, f"The licence of each part is in {path}."]))
    typer.echo(json.dumps(judged.scores.means) if as_json else str(path))


def _many(request: "Request", out: str | None, report: Path | None, *, as_json: bool) -> None:
    if not request.source.is_dir():
        options.existing(request.source)
    stem = request.source.resolve().name.removesuffix(".toml").removesuffix(".suite")
    path = options.result(out, f"{stem}.scores.json", suffixes=(".json",))
    page = report
    if report is not None:
        page = options.result(report, f"{stem}.report.html", suffixes=(".html", ".htm"))
    from expportrait_cli.benchmark import files
    from expportrait_cli.pipeline.executors import Place

    if request.place != Place():
        # Absolute, since workers start in other folders.
        request, path = replace(request, source=request.source.absolute()), path.absolute()
    with alone(path):
        outcome = files.evaluate(request, path, Display, page=page)
    if not as_json:
        say("\n".join([outcome.scores.table(), files.costs(outcome)]))
    typer.echo(json.dumps(outcome.scores.to_json()) if as_json else str(path))
    failed = {pair for pairs in outcome.scores.failed.values() for pair in pairs}
    if failed:
        raise InputError(
            f"{len(failed)} of {len(outcome.scores.pairs)} pairs have no scores of every method; see above."
        )


def _heads(sources: list[Path], out: str | None, *, folds: bool, as_json: bool) -> None:
    if not sources:
        raise UsageError("--normals needs clips, or a folder of them.")
    for source in sources:
        if not source.is_dir():
            options.existing(source)
    stem = sources[0].resolve().stem if len(sources) == 1 else "heads"
    path = options.result(out, f"{stem}.normal-scores.json", suffixes=(".json",))
    from expportrait_cli.benchmark import files

    scores = files.evaluate_normals(sources, path, Display, with_folds=folds)
    if not as_json:
        say(scores.table())
    typer.echo(json.dumps(scores.to_json()) if as_json else str(path))
    if scores.failed:
        raise InputError(f"{len(scores.failed)} of {len(scores.failed) + len(scores.clips)} clips have no scores.")
