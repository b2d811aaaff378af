"""The commands as functions of paths: the package's Python interface, which the command line calls too.

Nothing here prints: progress goes to `stage`. A result that exists and is up to date is not made again.
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
from expportrait_cli.pipeline.provenance import (
    LicenceMap,
    check_source,
    of_film,
    shows_another,
    stretch_behind,
    with_estimators,
)
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
    """Track a photo or clip, and write a `.track.npz`.

    `parameters`: SMPL-X parameters of the same clip by another tracker, in a file or in a folder of one file per frame.
    Identity, expression, jaw and gaze are taken from them; `tracking.Pretracked` describes the formats.

    Raises:
        InputError: no face is found, or a file cannot be read.
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

    `driver`: tracking of the driver; if it shows the same person, one identity is fitted to both. `known`: a
    `.head.npz` whose identity and static offset are kept.

    Raises:
        InputError: artifacts have different head models, or a source is gone or has changed.
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
    """Transfer the performance of a `.track.npz` to a `.head.npz`, and write a `.meshes.npz`.

    `curves`: a CSV that is used if it was edited, and otherwise written. `driver_head`: the driver's own `.head.npz`,
    whose folds are added (method `learned`, by the share `config.folds`), or whose offsets are copied (`direct`).

    Raises:
        InputError: the artifacts do not fit together.
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
    """Files of a film of normal maps that `render_normals` wrote."""

    path: Path
    sidecar: Path
    frames: int
    preview: Path | None
    """Film of driver and normals, side by side; None without."""


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
    """Render the normal maps of a `.meshes.npz`, and write a `.normals.mkv`.

    `view`: a fixed viewpoint (`yaw=20,pitch=5`, degrees); `orbit`: a path of the camera (`yaw=-30..30`). With
    `preview` also an .mp4 of driver and normals, side by side.

    Raises:
        UsageError: the angles cannot be read.
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
    """Make a film in which the person of a photo, a clip or a `.head.npz` performs a clip.

    The driver is a clip, a photo, a `.track.npz`, a `.meshes.npz` or a `.normals.mkv`; `stretch` is the range of its
    frames to take, and `track.stretch` that of the reference. Intermediate results are kept in `OUT.work`, and reused
    by the next run.

    Raises:
        InputError: an input cannot be used.
        UsageError: settings do not fit together.
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
    """Scores of a film, and the licences of the weights that made and measured it."""

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
    """Measure a film against its target, and write a `.scores.json`, and an HTML page if `page` is given.

    `reference`: photo to compare the identity with. `stretch`: range of the target that the film shows; by default the
    one in the film's run record, if the target was its driver.

    Raises:
        InputError: the films cannot be compared.
    """
    stages, photo = Stages(stage), Path(reference) if reference is not None else None
    read = (film, target, reference, Path(film).with_suffix(".json"))
    guard.check(filter(None, (out, page)), filter(None, read))
    if photo is None and shows_another(Path(film), Path(target)):
        log.warning(
            "%s shows another person than its driver %s: pictures are compared pixel by pixel, so that PSNR, SSIM "
            "and identity mean nothing. Give the photo as `reference`.",
            film,
            target,
        )
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
    """Read an artifact of any kind. Vertices of meshes are read when they are needed.

    For a film of normal maps, it is the content of its sidecar, after the films' hashes were checked.

    Raises:
        InputError: the file is no artifact of this tool, or the sidecar is of another film.
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
