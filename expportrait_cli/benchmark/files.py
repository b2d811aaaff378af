"""Run a benchmark and write its files: scores, times and page of a suite; scores of `eval --normals`."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64

from expportrait_cli.artifacts import guard
from expportrait_cli.artifacts.files import atomic_path, write_json, write_text
from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit, Tracking
from expportrait_cli.benchmark import run as suites
from expportrait_cli.benchmark.inputs import ENDINGS, Layout, suite_of_folder
from expportrait_cli.benchmark.report import suite_page
from expportrait_cli.benchmark.suite import Suite, given_films, read_suite, write_list
from expportrait_cli.benchmark.variants import Making
from expportrait_cli.config import FitConfig, TrackConfig
from expportrait_cli.detect.crop import Crop, picture_box
from expportrait_cli.detect.matte import Matte
from expportrait_cli.errors import InputError, UsageError, UserError
from expportrait_cli.evaluation import normals
from expportrait_cli.evaluation.report import NormalScores
from expportrait_cli.fitting import fit as run_fit
from expportrait_cli.fitting.clip import Clip, above_brows, dynamic_mask, first_frame, plain_skin, still_frames
from expportrait_cli.fitting.detail import read_relief
from expportrait_cli.fitting.dynamic import unseen_folds
from expportrait_cli.fitting.evidence import log_intensity
from expportrait_cli.fitting.hair import sides
from expportrait_cli.fitting.losses import Light, estimate
from expportrait_cli.fitting.patch import Patch
from expportrait_cli.fitting.seen import CROWN_M
from expportrait_cli.fitting.silhouette import DrawnClip
from expportrait_cli.geometry.rotations import from_turns
from expportrait_cli.head import HeadModel, dense
from expportrait_cli.head.finer import finer
from expportrait_cli.head.model import HEAD, TORSO
from expportrait_cli.pipeline.executors import Place
from expportrait_cli.pipeline.heads import head_by_name
from expportrait_cli.pipeline.provenance import read_record, write_record
from expportrait_cli.pipeline.steps import Steps
from expportrait_cli.retargeting.face import expression_map
from expportrait_cli.retargeting.steady import steady
from expportrait_cli.runtime import Progress, Stages, counted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """Settings of a benchmark; None or empty for those of the list."""

    source: Path
    """A list of pairs in TOML, or a folder of clips."""
    layout: Layout = "auto"
    stride: int | None = None
    frames: int | None = None
    size: int | None = None
    methods: tuple[str, ...] = ()
    """Other methods, NAME=FOLDER each."""
    ablation: bool = False
    own: bool = True
    making: Making = field(default_factory=Making)
    """Settings of this tool's films."""
    place: Place = field(default_factory=Place)


def work_folder(out: Path) -> Path:
    """Folder of all results that a second run reuses."""
    return out.with_name(f"{out.name.removesuffix('.json').removesuffix('.scores')}.work")


def load(request: Request) -> Suite:
    """Read the list, or choose the folder's clips.

    Raises:
        InputError: as `read_suite` and `suite_of_folder`.
        UsageError: a layout is given for a list.
    """
    if request.source.is_dir():
        suite = suite_of_folder(request.source, request.layout)
    elif request.layout != "auto":
        raise UsageError(f"`layout={request.layout}` is for folders, not for the list {request.source}. Leave it out.")
    else:
        suite = read_suite(request.source)
    given = {"stride": request.stride, "frames": request.frames, "size": request.size}
    return replace(suite, **{name: value for name, value in given.items() if value is not None})


def evaluate(
    request: Request, out: Path, open_display: suites.OpenDisplay, *, page: Path | None = None
) -> suites.Outcome:
    """Measure a suite, and write the scores to `out`, and the list of pairs and the times to the work folder.

    For the same films `out` is the same, byte for byte; times, which differ between runs, are in `times.json`.
    """
    suite, work = load(request), work_folder(out)
    plan = suites.plan(
        suite, work, request.making, ablation=request.ablation, own=request.own, given=given_films([*request.methods])
    )
    named = [suite.path(name) for pair in suite.pairs for name in (pair.reference, pair.driving) if name]
    guard.check(filter(None, (out, page, work / "pairs.toml")), [request.source, *named])
    with atomic_path(work / "pairs.toml") as partial:
        write_list(suite, partial)
    outcome = suites.run_at(request.place, plan, open_display)
    outcome = replace(outcome, seconds=_whole(outcome.seconds, read_record(work / "times.json").get("films")))
    if page is not None:
        with open_display() as display:
            write_text(page, suite_page(plan, outcome, outcome.licences, display.stage("write the page")))
    write_json(out, outcome.scores.to_json())
    write_record(work / "times.json", {"unit": "s", "films": outcome.seconds})
    return outcome


def _whole(seconds: dict[str, dict[str, float]], known: Any) -> dict[str, dict[str, float]]:
    """Seconds by method and pair: the larger of this run's and an earlier one's: a resumed run measures only a part."""
    earlier = known if isinstance(known, dict) else {}
    return {
        method: {pair: max(taken, float(earlier.get(method, {}).get(pair, 0.0))) for pair, taken in films.items()}
        for method, films in seconds.items()
    }


def costs(outcome: suites.Outcome) -> str:
    """Text with the seconds per film of each of the tool's methods, and the licences of films and estimators."""
    lines = [
        f"{method:<18} {sum(films.values()) / len(films):8.1f} s a film, tracking and fit included"
        for method, films in outcome.seconds.items()
        if films
    ]
    return "\n".join([*lines, *(outcome.licences.lines() if outcome.licences is not None else [])])


FRAMES, SLIGHT_FRAMES, STILL_FRAMES = 8, 3, 8
"""Most frames that are measured: rotated by 15 degrees or more, rotated less, and pairs with hardly any motion."""
CLOTHES = 0.6
"""Skinning weight of the torso bone above which a skin vertex counts as clothes."""


def evaluate_normals(
    sources: Sequence[Path], out: Path, open_display: suites.OpenDisplay, *, with_folds: bool = False
) -> NormalScores:
    """Fit a head to the first frame of each clip (files, or folders of them), and measure it in later frames.

    Trackings are kept in the work folder of `out`. A clip that cannot be measured is listed in `failed`.

    Raises:
        InputError: a folder has no clips.
    """
    clips = _clips(sources)
    kept = {name: work_folder(out) / f"{name}.track.npz" for name in clips}
    guard.check([out, *kept.values()], clips.values())
    head, scores, failed = head_by_name("anny"), {}, {}
    for name, clip in clips.items():
        with open_display() as display:
            stages = Stages(lambda stage, name=name, display=display: display.stage(f"{name}: {stage}"))
            try:
                tracking = Steps(head, stages).track(clip, kept[name], TrackConfig()).artifact
                scores[name] = {"source": str(clip), **judge(tracking, head, stages)}
                if with_folds:
                    scores[name]["folds"] = stages.run("folds", lambda progress, t=tracking: folds(t, head, progress))
            except UserError as error:
                log.warning("%s: %s", name, error)
                failed[name] = str(error)
    found = NormalScores(scores, failed)
    write_json(out, found.to_json())
    return found


def _clips(sources: Sequence[Path]) -> dict[str, Path]:
    """Clips by name; a number is added to the second of two equal names."""
    paths: list[Path] = []
    for source in sources:
        inside = sorted(path for path in source.glob("*") if path.suffix.lower() in ENDINGS) if source.is_dir() else []
        if source.is_dir() and not inside:
            raise InputError(f"{source} holds no clip ({', '.join(ENDINGS)}). Give clips, or a folder of them.")
        paths += inside or [source]
    found: dict[str, Path] = {}
    for path in paths:
        same = sum(name.partition("~")[0] == path.stem for name in found)
        found[f"{path.stem}~{same + 1}" if same else path.stem] = path
    return found


def judge(tracking: Tracking, head: HeadModel, stages: Stages) -> dict[str, Any]:
    """Fit the head to the first frame only, and compare it, posed by the clip's tracking, with later frames.

    Identity and camera are those of the whole clip, as where a person drives their own photo.

    Raises:
        InputError: there is no face in the first frame, or no second frame.
    """
    if tracking.state[0] or len(tracking.state) < 2:
        raise InputError(
            f"{tracking.source} needs a face in its first frame, and at least two frames. Cut off the frames before "
            "the face appears."
        )
    fit = stages.run(
        "fit the first frame", lambda progress: run_fit([first_frame(tracking)], head, FitConfig(), progress)
    )
    if fit.head_model != head.name:
        head = finer(head).head
    clip = Clip.of(tracking, fit, head)
    drawn = DrawnClip.of(clip, fit)
    return stages.run("compare", lambda progress: _compared(drawn, progress))


def _compared(drawn: DrawnClip, progress: Progress) -> dict[str, Any]:
    clip = drawn.clip
    turns_deg = np.degrees(clip.tracking.rotation[:, 1] - clip.tracking.rotation[0, 1])
    away = np.where(clip.tracking.state == 0, np.abs(turns_deg), 0)
    (slight, _), (_, most) = normals.DETAIL_TURNS_DEG[0], normals.OUTLINE_TURNS_DEG[-1]
    least = normals.OUTLINE_TURNS_DEG[0][0]
    rows = np.union1d(
        _spread(np.flatnonzero((away >= slight) & (away < least)), SLIGHT_FRAMES),
        _spread(np.flatnonzero((away >= least) & (away < most)), FRAMES),
    ).astype(np.int64)
    pairs = _spread(still_frames(clip.tracking), STILL_FRAMES)
    photo, *later = counted(_frames(drawn, np.r_[0, rows], turns_deg), len(rows) + 1, progress)
    person = _person(clip, photo, _light(later or [photo], plain_skin(clip.head)))
    # As in a film: while landmarks are still, the pose is held still.
    resting = steady(clip.tracking, expression_map(clip.head, frozenset({"eyes"})))
    calm = replace(drawn, clip=Clip.of(resting, clip.fit, clip.head))
    changes = [_changes_deg(calm, int(row)) for row in pairs]
    means = {name: normals.mean([each[name] for each in changes]) for name in STEADY}
    return {**normals.measure(later, person), **means}


def _spread(rows: Int64[np.ndarray, " R"], count: int) -> Int64[np.ndarray, " C"]:
    """Choose at most `count` of the rows, evenly spread."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, count).astype(int))] if len(rows) else rows


STEADY = ("steady_deg", "steady_mesh_deg", "steady_detail_deg")


def _changes_deg(drawn: DrawnClip, row: int) -> dict[str, float]:
    """Change of normals from a frame to the next, degrees: of all, without detail, and of the detail alone.

    Detail is compared at the same surface points, so that the change of pose does not count.
    """
    verts = [drawn.verts(row + step) for step in range(2)]
    plain, bent = ([drawn.seen(each, bump).normals[0].numpy() for each in verts] for bump in (None, drawn.bump))
    bends = [with_detail - without for without, with_detail in zip(plain, bent, strict=True)]
    shown = [drawn.vertices(each) for each in verts]
    both = np.intersect1d(shown[0][shown[0] >= 0], shown[1][shown[1] >= 0])
    places = [drawn.camera.project(each[0, both]).numpy() for each in verts]
    own = normals.bend_change_deg(bends, places)
    return dict(zip(STEADY, (normals.change_deg(*bent), normals.change_deg(*plain), own), strict=True))


def _frames(drawn: DrawnClip, rows: Int64[np.ndarray, " R"], turns_deg: np.ndarray) -> Iterator[normals.Frame]:
    clip, matting = drawn.clip, Matte()
    tracking, head = clip.tracking, clip.head
    box = picture_box(Crop(*map(float, tracking.crop)), tracking.size, CROP_SIZE)
    for row, picture in zip(rows, clip.crops(rows), strict=True):
        verts, matte = drawn.verts(int(row)), matting.matte(picture)
        shown, ids = drawn.seen(verts, drawn.bump), drawn.vertices(verts)
        px_per_mm = clip.focal_px / (1000 * float(tracking.translation[row, 2]))
        yield normals.Frame(
            row=int(row),
            turn_deg=float(abs(turns_deg[row])),
            picture=picture,
            log_luminance=log_intensity(picture),
            matte=matte,
            normals=shown.normals[0].numpy(),
            covered=shown.mask[0].numpy(),
            vertices=ids,
            rotation=from_turns(tracking.rotation[row]),
            translation=tracking.translation[row].astype(np.float64),
            focal_px=clip.focal_px,
            chin_px=tracking.landmarks[row, 152].astype(np.float64),
            relief_drawn=drawn.heights_mm(verts),
            relief_read=read_relief(picture, matte, ids, head, px_per_mm=px_per_mm)[0],
            box=box,
        )


def _light(frames: Sequence[normals.Frame], plain: np.ndarray) -> Light:
    """Estimate the clip's lighting from plain skin of all frames, assumed to have one colour; outliers weigh less."""
    values, shown = [], []
    for frame in frames:
        seen = (frame.vertices >= 0) & plain[frame.vertices] & np.isfinite(frame.log_luminance) & (frame.matte > 0.95)
        seen &= frame.normals[..., 2] > normals.FACING
        values.append(frame.log_luminance[seen][::3])
        shown.append(frame.normals[seen][::3])
    value = np.concatenate(values)[None]
    return estimate(value, np.concatenate(shown)[None], np.ones_like(value, bool))[0]


def _person(clip: Clip, photo: normals.Frame, light: Light) -> normals.Person:
    """Regions and ears of the head, and the colours of the photo."""
    head = clip.head
    height, plain, forehead = dense(head, head.template)[:, 1].numpy(), plain_skin(head), above_brows(head)
    bones, skin = head.skinning.numpy(), head.part("skin").numpy()
    skull = (bones[:, HEAD] > 0.9) & skin
    ears = _ears(clip.fit, head)
    seen = (photo.matte > 0.9) & (photo.vertices >= 0)
    cheeks, scalp, crown = plain & ~forehead, skull & (dynamic_mask(head) < 0.1), skull & (height > CROWN_M)
    # With the chin up, hardly any visible part of the crown is outside of the face's mask.
    crown &= scalp | ((seen & (crown & scalp)[photo.vertices]).sum() < normals.LEAST_PX)
    colours = normals.Colours.of(photo.picture, *(seen & mask[photo.vertices] for mask in (cheeks, crown)))
    # Fringes overlap the face's mask; if colours of skin and hair differ enough, they decide.
    hairy = scalp | (skull & forehead) if colours is not None else scalp
    regions = {
        "skin": plain,
        "forehead": plain & forehead,
        "hair": hairy & ~np.any([ear.vertices for ear in ears], axis=0),
        "clothes": (bones[:, TORSO] > CLOTHES) & skin,
    }

    def log_shade(shown: Float32[np.ndarray, "S S 3"]) -> Float32[np.ndarray, "S S"]:
        return light.log_shade(torch.from_numpy(shown)).numpy()

    return normals.Person(regions, ears, colours, log_shade)


def _ears(fit: HeadFit, head: HeadModel) -> list[normals.Ear]:
    """Left and right ear, bare or covered as in the fit."""
    return [normals.Ear(ear, bool(is_bare)) for ear, is_bare in zip(sides(head), fit.ears_seen, strict=True)]


def folds(tracking: Tracking, head: HeadModel, progress: Progress) -> dict[str, Any]:
    """Fit every second frame of a clip, and compare the frames between with the mean of their neighbours' folds.

    Agreement as in `normals.agreement`, over skin that is used for shading, weighted by its visibility. Smooth offsets
    from each frame's own landmarks are included in both.
    """
    between = np.arange(len(tracking.state)) % 2 == 1
    fitted = replace(tracking, state=np.where(between, np.maximum(tracking.state, 1), tracking.state).astype(np.uint8))
    fit = run_fit([fitted], head, FitConfig(), progress)
    mesh = finer(head) if fit.head_model != head.name else None
    clip = Clip.of(tracking, fit, mesh.head if mesh else head)
    patch = Patch.of(head.dense_faces.numpy(), dynamic_mask(head))
    patch = Patch.above(patch, mesh, dynamic_mask(mesh.head)) if mesh else patch
    shown, made, weight = unseen_folds(clip, patch, fit.dynamic_offset.astype(np.float32), between)
    forehead = above_brows(clip.head)[patch.vertices]
    return {
        "face": normals.weighted_agreement(made, shown, weight),
        "forehead": normals.weighted_agreement(made, shown, weight * forehead),
    }
