"""The commands as functions, from paths to a path: what the command line calls, and the package's Python interface.

Nothing here prints: `stage` is told of the progress, and a result that is there and current is not made again.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from expportrait_cli.artifacts import guard, npz
from expportrait_cli.artifacts.files import alone, content_hash, write_json, write_text
from expportrait_cli.artifacts.meshes import KIND as MESHES
from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit, Tracking
from expportrait_cli.config import FitConfig, GenerateConfig, RenderConfig, Stretch, TrackConfig, TransferConfig
from expportrait_cli.errors import InputError
from expportrait_cli.evaluation import Scores, report_page
from expportrait_cli.evaluation import evaluate as run_evaluate
from expportrait_cli.evaluation.scores import estimators
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.head import HeadName
from expportrait_cli.pipeline import film as films
from expportrait_cli.pipeline.heads import check_same, head_behind, head_by_name
from expportrait_cli.pipeline.job import Job, behind
from expportrait_cli.pipeline.performance import Driver, OffsetSource
from expportrait_cli.pipeline.provenance import LicenceMap, check_source, of_film, stretch_behind, with_estimators
from expportrait_cli.pipeline.sheets import write_preview
from expportrait_cli.pipeline.steps import Steps, faces_path, given, parameter_files
from expportrait_cli.render import files, rasterizer
from expportrait_cli.render import render_normals as run_render
from expportrait_cli.render.stage import parse_orbit, parse_view
from expportrait_cli.runtime import Stage, Stages, best_device, counted, silent
from expportrait_cli.version import __version__

log = logging.getLogger(__name__)

PathLike = str | Path


def track(
    source: PathLike,
    out: PathLike,
    config: TrackConfig | None = None,
    *,
    head_model: HeadName = "anny",
    parameters: PathLike | None = None,
    stage: Stage = silent,
) -> Tracking:
    """Track a photo or clip to a `.track.npz`.

    `parameters` are SMPL-X's of this very clip that another program tracked, a file or a folder of one file a frame:
    identity, expression, jaw and gaze are then theirs (`tracking.Pretracked` says which layouts are read).

    Raises:
        InputError: no face, or nothing that can be read.
    """
    stages, others = Stages(stage), Path(parameters) if parameters is not None else None
    guard.check([out, faces_path(Path(out))], [source, *parameter_files(others)])
    with alone(out):
        made = Steps(head_by_name(head_model), stages).track(
            Path(source), Path(out), config or TrackConfig(), parameters=others
        )
    _say_if_current(out, stages)
    return made.artifact


def fit(
    trackings: Sequence[PathLike],
    out: PathLike,
    config: FitConfig | None = None,
    *,
    driver: PathLike | None = None,
    known: PathLike | None = None,
    stage: Stage = silent,
) -> HeadFit:
    """Fit a person's head to a `.track.npz`, or to several of the same person, and write a `.head.npz`.

    `driver` is the tracking of a clip whose identity is shared if it shows the same person; `known` is a `.head.npz`
    whose identity and static offset are kept.

    Raises:
        InputError: artifacts of different head models, or a source that is gone or has changed.
    """
    paths = [Path(tracking) for tracking in trackings]
    read = [*paths, *(Path(other) for other in (driver, known) if other is not None)]
    guard.check([out], [*read, *behind(*read)])
    own = [given(Tracking, path) for path in paths]
    for path, tracking in zip(paths, own, strict=True):
        check_source(path, tracking.artifact)
        check_same(paths[0], own[0].artifact, path, tracking.artifact)
    other = given(Tracking, Path(driver)) if driver is not None else None
    if driver is not None and other is not None:
        check_same(paths[0], own[0].artifact, Path(driver), other.artifact)
    if known is not None:
        check_same(paths[0], own[0].artifact, Path(known), npz.load(HeadFit, known))
    stages = Stages(stage)
    with alone(out):
        made = Steps(head_behind(paths[0], own[0].artifact), stages).fit(
            own, Path(out), config or FitConfig(), driver=other, known=Path(known) if known is not None else None
        )
    _say_if_current(out, stages)
    return made.artifact


def transfer(
    head: PathLike,
    driving: PathLike,
    out: PathLike,
    config: TransferConfig | None = None,
    *,
    curves: PathLike | None = None,
    driver_head: PathLike | None = None,
    stage: Stage = silent,
) -> Meshes:
    """Put the performance of a `.track.npz` onto a `.head.npz`, and write a `.meshes.npz`.

    `curves` is a CSV that is used if it was edited and else written; `driver_head` is the driver's own `.head.npz`,
    whose folds are added (method `learned`, by the share `config.folds`), or whose offsets are copied (`direct`).

    Raises:
        InputError: artifacts that do not go together.
    """
    head_path, tracking_path = Path(head), Path(driving)
    table, network = Path(curves) if curves is not None else None, config.network if config is not None else ""
    read = [head_path, tracking_path, *(Path(other) for other in (driver_head, network or None) if other is not None)]
    guard.check([out], [*read, *behind(*read)])
    # A table that is there may be the user's: it is read, or known as our own.
    guard.check_outputs([out, *([table] if table is not None else [])], read)
    head_fit, tracking = given(HeadFit, head_path), given(Tracking, tracking_path)
    check_same(head_path, head_fit.artifact, tracking_path, tracking.artifact)
    copied = Path(driver_head) if driver_head is not None else None
    source = OffsetSource.of(config or TransferConfig(), head_fit.artifact.head_model, copied)
    stages = Stages(stage)
    with alone(out):
        made = Steps(head_behind(head_path, head_fit.artifact), stages).transfer(
            head_fit,
            tracking,
            Path(out),
            source,
            head_path=head_path,
            curves=table,
        )
    _say_if_current(out, stages)
    return made.artifact


@dataclass(frozen=True)
class NormalFilm:
    """A film of normal maps that `render_normals` wrote."""

    path: Path
    sidecar: Path
    frames: int
    preview: Path | None
    """Film of driver | normals."""


def render_normals(
    meshes: PathLike,
    out: PathLike,
    config: RenderConfig | None = None,
    *,
    view: str = "",
    orbit: str = "",
    depth: bool = False,
    mask: bool = False,
    preview: bool = False,
    stage: Stage = silent,
) -> NormalFilm:
    """Draw the normal maps of a `.meshes.npz` to a `.normals.mkv`.

    `view` is a fixed viewpoint (`yaw=20,pitch=5`, degrees), `orbit` a path of the camera (`yaw=-30..30`). With
    `preview` also an .mp4 of driver | normals.

    Raises:
        UsageError: angles that cannot be read.
    """
    meshes, path, config = Path(meshes), Path(out), config or RenderConfig()
    viewpoint = parse_view(view) if view else parse_orbit(orbit) if orbit else None
    wanted = {"depth.mkv": depth, "mask.mkv": mask, "preview.mp4": preview}
    more = [files.beside(path, ending) for ending, is_wanted in wanted.items() if is_wanted]
    guard.check([path, files.sidecar_path(path), *more], [meshes, *behind(meshes)])
    opened, device, stages = Meshes.open(meshes), best_device(), Stages(stage)
    info = files.NormalsInfo(
        camera=Camera.of_crop(opened.focal_px, CROP_SIZE, config.size),
        rate=opened.rate,
        mesh_hash=content_hash(meshes),
        rasterizer=rasterizer.choose(device)[0],
        meshes=str(meshes.resolve()),
        viewpoint=view or orbit,
    )
    drawn = run_render(opened, config, viewpoint=viewpoint, device=device)
    shown = None
    with alone(out):
        stages.run(
            "render normals",
            lambda progress: files.save_normals(
                counted(drawn, opened.frame_count, progress), path, info, with_depth=depth, with_mask=mask
            ),
        )
        if preview:
            driver = Driver.behind(meshes)
            shown = stages.run("preview", lambda progress: write_preview(path, opened, driver, config.size, progress))
    return NormalFilm(path, files.sidecar_path(path), opened.frame_count, shown)


def generate(
    reference: PathLike,
    driving: PathLike,
    out: PathLike,
    *,
    track: TrackConfig | None = None,
    fit: FitConfig | None = None,
    transfer: TransferConfig | None = None,
    paint: GenerateConfig | None = None,
    head_model: HeadName | None = None,
    stretch: Stretch | None = None,
    stage: Stage = silent,
) -> films.Film:
    """Make the person of a photo, or of a `.head.npz`, perform a clip or what was made of one.

    The driver is a clip, a `.track.npz`, a `.meshes.npz` or a `.normals.mkv`; `stretch` is the range of its
    frames that is taken, and `track.stretch` that of the reference's. What the stages make on the way lies in
    `OUT.work`, and is used by the next run.

    Raises:
        InputError: a file that cannot serve.
        UsageError: settings that do not fit together.
    """
    job = Job(
        Path(reference),
        Path(driving),
        Path(out),
        track=track or TrackConfig(),
        driving_stretch=stretch or Stretch(),
        fit=fit or FitConfig(),
        transfer=transfer or TransferConfig(),
        generate=paint or GenerateConfig(),
        head_model=head_model,
    )
    return films.generate(job, stage)


@dataclass(frozen=True)
class Evaluation:
    """Scores of a film, and the licences of what they rest on and of what made the film."""

    scores: Scores
    licences: LicenceMap


def evaluate(
    film: PathLike,
    target: PathLike,
    out: PathLike,
    *,
    reference: PathLike | None = None,
    page: PathLike | None = None,
    stretch: Stretch | None = None,
    stage: Stage = silent,
) -> Evaluation:
    """Judge a film by its target, and write a `.scores.json`; also an HTML `page` if one is asked for.

    `reference` is the photo of a film that another clip drove. `stretch` is what of the target the film shows; left
    out, what the film's own record says if the target drove it.

    Raises:
        InputError: films that cannot be compared.
    """
    stages, photo = Stages(stage), Path(reference) if reference is not None else None
    read = (film, target, reference, Path(film).with_suffix(".json"))
    guard.check(filter(None, (out, page)), filter(None, read))
    with alone(out):
        scores = stages.run(
            "evaluate",
            lambda progress: run_evaluate(
                Path(film),
                Path(target),
                reference=photo,
                progress=progress,
                stretch=stretch or stretch_behind(Path(film), Path(target)),
            ),
        )
        terms = with_estimators(of_film(Path(film)), estimators([scores]))
        write_json(out, {**scores.to_json(), "licences": terms.to_json()})
        if page is not None:
            text = stages.run("write the report", lambda _: report_page(scores, licences=terms.lines()))
            write_text(page, text)
    return Evaluation(scores, terms)


def load(path: PathLike) -> Tracking | HeadFit | Meshes | files.NormalsInfo:
    """Read an artifact, whichever it is. Vertices of meshes are read when they are asked for.

    Of a film of normal maps it is what the file beside it says, once its films were found to be those that it names.

    Raises:
        InputError: no artifact of this tool, or a film beside another one's description.
    """
    if Path(path).name.endswith(files.SUFFIX):
        return files.load_info(path)
    match npz.read_header(path)["kind"]:
        case Tracking.KIND:
            return npz.load(Tracking, path)
        case HeadFit.KIND:
            return npz.load(HeadFit, path)
        case kind if kind == MESHES:
            return Meshes.open(path)
        case kind:
            raise InputError(f"{path} is a '{kind}' artifact, expected a tracking, a head or meshes.")


def save(artifact: Tracking | HeadFit, path: PathLike) -> Path:
    """Write a tracking or a head, such as one that was edited; the next stage takes it as it is."""
    guard.check([path])
    return npz.save(artifact, path, {"tool": f"expportrait {__version__}", "stage": "edited"})


def _say_if_current(out: PathLike, stages: Stages) -> None:
    if not stages.seconds:
        log.info("%s is up to date: same inputs, same settings.", out)
