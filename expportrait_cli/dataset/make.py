"""The work of a worker process: look at a video and cut its clips out; track and fit one clip."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.config import FitConfig, PrepareConfig, TrackConfig
from expportrait_cli.dataset.dataset import Clip, Row, clip_of
from expportrait_cli.dataset.scan import Scan, scan, scan_key
from expportrait_cli.dataset.sources import Source
from expportrait_cli.dataset.summary import counts, fitted_figures, tracked_figures, tracked_refusal, write_sheet
from expportrait_cli.detect.crop import Crop, crop_image
from expportrait_cli.errors import InputError
from expportrait_cli.head import HeadModel, HeadName
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.pipeline.heads import head_by_name
from expportrait_cli.pipeline.pool import notes
from expportrait_cli.pipeline.provenance import read_record, write_record
from expportrait_cli.pipeline.steps import Steps, fit_header, is_current, made_by, track_header
from expportrait_cli.runtime import Stages

SHEETS = "sheets"
TRACK, FIT = TrackConfig(), FitConfig()


@dataclass(frozen=True)
class Workshop:
    """Folder and settings of the set that is made."""

    folder: Path
    config: PrepareConfig
    head_name: HeadName

    def kept(self, kind: str, key: str) -> Path:
        """File that remembers what was found out, for a run that goes on."""
        return self.folder / "work" / kind / f"{key}.json"


@dataclass(frozen=True)
class Plan:
    """A clip to make."""

    row: Row
    """Its row as far as it is known before tracking."""
    clip: Clip
    key: str
    """Key of everything that the finished clip depends on."""
    shop: Workshop

    @property
    def out(self) -> Path:
        """Path of the clip's video, which names the task."""
        return self.clip.video


def scanned(source: Source, shop: Workshop) -> Scan:
    """Look at a video, unless that was done already."""
    digest = source.digest()
    path = shop.kept("scans", scan_key(digest, shop.config))
    if content := read_record(path):
        return Scan.from_json(content)
    notes.take()
    found = scan(source, digest, shop.config)
    found = replace(found, notes=tuple(notes.take()))
    write_record(path, found.to_json())
    return found


def cut_out(source: Source, found: Scan, shop: Workshop, *, person: str) -> list[Plan]:
    """Write the clips of a video that are not there yet, in one pass over it. Their plans, in order."""
    plans = [plan_of(source, found, index, shop, person=person) for index in range(len(found.stretches))]
    missing = [
        index
        for index, (plan, stretch) in enumerate(zip(plans, found.stretches, strict=True))
        if not stretch.reason and finished(plan) is None and not plan.clip.video.is_file()
    ]
    if not missing:
        return plans
    last = found.stretches[missing[-1]]
    frames = source.frames(end=last.first + last.frames)
    at = 0
    for index in missing:
        stretch = found.stretches[index]
        own = islice(frames, stretch.first - at, stretch.first - at + stretch.frames)
        at = stretch.first + stretch.frames
        assert stretch.crop is not None
        with VideoWriter(plans[index].clip.video, rate=found.rate) as writer:
            for picture in own:
                writer.write(crop_image(picture, Crop(*map(float, stretch.crop)), CROP_SIZE))
            if writer.frame_count != stretch.frames:
                raise InputError(
                    f"{source.path} ended at frame {stretch.first + writer.frame_count}, expected {at}: it changed "
                    "while it was read. Run the same command again."
                )
    return plans


def plan_of(source: Source, found: Scan, index: int, shop: Workshop, *, person: str) -> Plan:
    """Name a clip by what it shows, so that a clip of that name is the right one, and key it by all of its making."""
    stretch = found.stretches[index]
    extent = {"first": stretch.first, "frames": stretch.frames, "crop": stretch.crop, "size": CROP_SIZE}
    content = made_by("clip", extent, {"source": found.digest})["key"]
    name = f"{safe(source.relative.stem)}-{stretch.first:06d}-{content[:8]}"
    head = worker_head(shop.head_name).name
    inputs = {"track": track_header(TRACK, head, name)["key"], "fit": fit_header(FIT, {})["key"]}
    settings = {"max_error_percent": shop.config.max_error_percent, "face_share": shop.config.face_share}
    row = Row(
        name=name,
        person=person,
        source=source.relative.as_posix(),
        source_sha256=found.digest,
        first_frame=stretch.first,
        frames=stretch.frames,
        rate=str(found.rate),
        status="rejected" if stretch.reason else "accepted",
        reason=stretch.reason,
        head_model=head,
        figures=dict(stretch.figures),
        notes=list(found.notes),
    )
    return Plan(row, clip_of(shop.folder, name, person), made_by("clip", settings, inputs)["key"], shop)


def finished(plan: Plan) -> Row | None:
    """The row of a clip that is made, or was refused after tracking; None when something of it is missing."""
    content = read_record(plan.shop.kept("clips", plan.row.name))
    if content.get("key") != plan.key:
        return None
    row = replace(plan.row, **{name: content[name] for name in ("status", "reason", "figures", "histograms", "notes")})
    if row.status == "rejected":
        return row
    keys = {plan.clip.tracking: content["track"], plan.clip.head: content["head"]}
    there = plan.clip.video.is_file() and sheet_path(plan).is_file()
    return row if there and all(is_current(path, {"key": key}) for path, key in keys.items()) else None


def make(plan: Plan) -> Row:
    """Track and fit one clip; what is there and current is used.

    Raises:
        InputError: there is no face in it after all.
    """
    notes.take()
    clip, head = plan.clip, worker_head(plan.shop.head_name)
    steps = Steps(head, Stages())
    tracked = steps.track(clip.video, clip.tracking, TRACK)
    tracking = tracked.artifact
    figures = {**plan.row.figures, **tracked_figures(tracking)}
    reason = tracked_refusal(figures, plan.shop.config)
    if reason:
        return refused(plan, reason, figures)
    fit = steps.fit([tracked], clip.head, FIT).artifact
    write_sheet(sheet_path(plan), clip.video, tracking, fit, head)
    figures |= fitted_figures(fit)
    row = replace(plan.row, figures=figures, histograms=counts(tracking), notes=[*plan.row.notes, *notes.take()])
    return remembered(plan, row)


def refused(plan: Plan, reason: str, figures: Mapping[str, Any]) -> Row:
    """Remember why a clip is not taken after all, and remove it."""
    said = [*plan.row.notes, *notes.take()]
    row = replace(plan.row, status="rejected", reason=reason, figures=dict(figures), notes=said)
    shutil.rmtree(plan.clip.video.parent, ignore_errors=True)
    return remembered(plan, row)


def remembered(plan: Plan, row: Row) -> Row:
    """Write down a clip's row, last of all."""
    keys = {
        kind: npz.read_header(path)["made_by"]["key"] if path.is_file() else ""
        for kind, path in (("track", plan.clip.tracking), ("head", plan.clip.head))
    }
    write_record(plan.shop.kept("clips", row.name), {"key": plan.key, **keys, **asdict(row)})
    return row


def sheet_path(plan: Plan) -> Path:
    """Contact sheet of a clip."""
    return plan.shop.folder / SHEETS / f"{plan.row.name}.jpg"


@lru_cache(maxsize=1)
def worker_head(name: HeadName) -> HeadModel:
    """The head model, once a process."""
    return head_by_name(name)


def safe(name: str) -> str:
    """A name that every file system and shell takes as it is."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "+._-") else "_" for c in name)
    return plain.lstrip("-.")[:60] or "clip"
