"""The stages one by one: read what a stage needs, run it, save what it made, say how good it is."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.files import atomic_path, content_hash
from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit, Tracking
from expportrait_cli.config import FitConfig, RenderConfig, TrackConfig, TransferConfig
from expportrait_cli.fit import fit as run_fit
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.head import HeadName
from expportrait_cli.pipeline.cache import made_by
from expportrait_cli.pipeline.heads import check_same, head_behind, head_by_name, track_header
from expportrait_cli.pipeline.licences import of_film, with_estimators
from expportrait_cli.pipeline.performance import Driver, OffsetSource, edited_curves, write_meshes
from expportrait_cli.pipeline.provenance import (
    check_source,
    fit_quality,
    network_of,
    networks_behind,
    tracking_quality,
    warn_of_misfit,
)
from expportrait_cli.progress import Stage, counted
from expportrait_cli.runtime import best_device
from expportrait_cli.track import track as run_track

A = TypeVar("A")


def track(
    source: Path, path: Path, config: TrackConfig, stage: Stage, *, head_model: HeadName = "anny"
) -> dict[str, Any]:
    """Track a photo or clip."""
    head = head_by_name(head_model)
    header = track_header(config, head.name, content_hash(source))
    tracking = run_track(source, head, config, stage("track"))
    warn_of_misfit(source, tracking)
    npz.save(tracking, path, header)
    return tracking_quality(tracking)


def fit(
    trackings: Sequence[Path],
    path: Path,
    config: FitConfig,
    stage: Stage,
    *,
    driver: Path | None = None,
    known: Path | None = None,
) -> dict[str, Any]:
    """Fit the head to a tracking, or to several of one person; `known` is a head whose frames alone are fitted."""
    first, own = trackings[0], [npz.load(Tracking, tracking) for tracking in trackings]
    for tracking, loaded in zip(trackings, own, strict=True):
        check_source(tracking, loaded)
        check_same(first, own[0], tracking, loaded)
    other = npz.load(Tracking, driver) if driver is not None else None
    given = npz.load(HeadFit, known) if known is not None else None
    for optional, loaded in ((driver, other), (known, given)):
        if optional is not None and loaded is not None:
            check_same(first, own[0], optional, loaded)
    inputs = {f"track{index or ''}": content_hash(tracking) for index, tracking in enumerate(trackings)}
    inputs["driver"] = content_hash(driver) if driver is not None else ""
    inputs["head"] = content_hash(known) if known is not None else ""
    head = head_behind(first, own[0])
    networks = network_of(config)
    if known is not None:
        # Its identity and static offset go on in the new head, and so do the conditions of what they were made with.
        networks += [row for row in networks_behind(known) if row not in networks]
    head_fit = run_fit(own, head, config, stage("fit the head"), driver=other, known=given)
    npz.save(head_fit, path, {**made_by("fit", asdict(config), inputs), "networks": networks})
    return fit_quality(head_fit)


def transfer(
    head_path: Path,
    driving: Path,
    path: Path,
    config: TransferConfig,
    stage: Stage,
    *,
    curves: Path | None,
    driver_head: Path | None,
) -> dict[str, Any]:
    """Put a performance onto a head; `driver_head` is the driver's own fit, whose offsets are copied."""
    head_fit, tracking = npz.load(HeadFit, head_path), npz.load(Tracking, driving)
    check_same(head_path, head_fit, driving, tracking)
    source = OffsetSource.of(config, head_fit.head_model, driver_head)
    inputs = {"head": content_hash(head_path), "driver": content_hash(driving), **source.inputs()}
    if edited := edited_curves(curves, path):
        inputs["curves"] = edited
    write_meshes(
        path,
        made_by("transfer", asdict(source.config), inputs),
        head_fit,
        tracking,
        head=head_behind(head_path, head_fit),
        head_hash=inputs["head"],
        source=source,
        curves=curves,
        is_edited=bool(edited),
        progress=stage("transfer"),
    )
    return {"frames": len(tracking.error), "curves": str(curves) if curves is not None else None}


def render_normals(
    meshes_path: Path,
    path: Path,
    config: RenderConfig,
    stage: Stage,
    *,
    view: str,
    orbit: str,
    depth: bool,
    mask: bool,
    preview: bool,
) -> dict[str, Any]:
    """Draw normal maps; with `preview` also an .mp4 of driver | normals."""
    from expportrait_cli.pipeline.sheets import write_preview
    from expportrait_cli.render import files, rasterizer
    from expportrait_cli.render import render_normals as run_render
    from expportrait_cli.render.stage import parse_orbit, parse_view

    viewpoint = parse_view(view) if view else parse_orbit(orbit) if orbit else None
    meshes = Meshes.open(meshes_path)
    device = best_device()
    info = files.NormalsInfo(
        camera=Camera.of_crop(meshes.focal_px, CROP_SIZE, config.size),
        rate=meshes.rate,
        mesh_hash=content_hash(meshes_path),
        rasterizer=rasterizer.choose(device)[0],
    )
    progress = stage("render normals")
    frames = counted(run_render(meshes, config, viewpoint=viewpoint, device=device), meshes.frame_count, progress)
    files.save_normals(frames, path, info, with_depth=depth, with_mask=mask)
    summary: dict[str, Any] = {"frames": meshes.frame_count, "sidecar": str(files.sidecar_path(path))}
    if preview:
        summary["preview"] = str(write_preview(path, meshes, Driver.behind(meshes_path), config.size, stage("preview")))
    return summary


def evaluate(
    film: Path, target: Path, reference: Path | None, path: Path, stage: Stage, *, page: Path | None = None
) -> tuple[dict[str, Any], str]:
    """Judge a film: the scores, and the same as a table to read; and as an HTML page if one is asked for.

    With the licences of what the scores rest on and, of a film with its run record beside it, of what made it.
    """
    from expportrait_cli.evaluate import evaluate as run_evaluate
    from expportrait_cli.evaluate import report_page, table
    from expportrait_cli.evaluate.scores import estimators

    scores = run_evaluate(film, target, reference=reference, progress=stage("evaluate"))
    terms = with_estimators(of_film(film), estimators([scores]))
    document = {**scores.to_json(), "licences": terms.to_json()}
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    if page is not None:
        stage("write the report")
        with atomic_path(page) as partial:
            partial.write_text(report_page(scores, licences=terms.lines()), "utf-8")
    return scores.means, "\n".join([table(scores), *terms.lines()])
