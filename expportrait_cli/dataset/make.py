"""Tasks of worker processes: scan a video and cut its clips out; track and fit one clip."""

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
class Setup:
    """Folder and settings of the dataset that is made."""

    folder: Path
    config: PrepareConfig
    head_name: HeadName

    def kept(self, kind: str, key: str) -> Path:
        """File of a result, which a resumed run reuses."""
        return self.folder / "work" / kind / f"{key}.json"


@dataclass(frozen=True)
class Plan:
    """A clip to make."""

    row: Row
    """Row of the clip, as far as it is known before tracking."""
    clip: Clip
    key: str
    """Key of everything that the finished clip depends on."""
    setup: Setup

    @property
    def out(self) -> Path:
        """Path of the clip's video; identifies the task."""
        return self.clip.video


def scanned(source: Source, setup: Setup) -> Scan:
    """Scan a video, or read the result of an earlier scan."""
    digest = source.digest()
    path = setup.kept("scans", scan_key(digest, setup.config))
    if content := read_record(path):
        return Scan.from_json(content)
    notes.take()
    found = scan(source, digest, setup.config)
    found = replace(found, notes=tuple(notes.take()))
    write_record(path, found.to_json())
    return found


def cut_out(source: Source, found: Scan, setup: Setup, *, person: str) -> list[Plan]:
    """Write the missing clips of a video, in one pass over it; returns the plans of all its clips, in order."""
    plans = [plan_of(source, found, index, setup, person=person) for index in range(len(found.stretches))]
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


def plan_of(source: Source, found: Scan, index: int, setup: Setup, *, person: str) -> Plan:
    """Plan how a clip is made: its name has a hash of its content, its cache key one of all inputs and settings."""
    stretch = found.stretches[index]
    extent = {"first": stretch.first, "frames": stretch.frames, "crop": stretch.crop, "size": CROP_SIZE}
    content = made_by("clip", extent, {"source": found.digest})["key"]
    name = f"{safe(source.relative.stem)}-{stretch.first:06d}-{content[:8]}"
    head = worker_head(setup.head_name).name
    inputs = {"track": track_header(TRACK, head, name)["key"], "fit": fit_header(FIT, {})["key"]}
    settings = {"max_error_percent": setup.config.max_error_percent, "face_share": setup.config.face_share}
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
    return Plan(row, clip_of(setup.folder, name, person), made_by("clip", settings, inputs)["key"], setup)


def finished(plan: Plan) -> Row | None:
    """Return the row of a clip that is complete, or was rejected after tracking; None if some of it is missing."""
    content = read_record(plan.setup.kept("clips", plan.row.name))
    if content.get("key") != plan.key:
        return None
    row = replace(plan.row, **{name: content[name] for name in ("status", "reason", "figures", "histograms", "notes")})
    if row.status == "rejected":
        return row
    keys = {plan.clip.tracking: content["track"], plan.clip.head: content["head"]}
    there = plan.clip.video.is_file() and sheet_path(plan).is_file()
    return row if there and all(is_current(path, {"key": key}) for path, key in keys.items()) else None


def make(plan: Plan) -> Row:
    """Track and fit one clip; results that are up to date are reused.

    Raises:
        InputError: no face is found in the clip.
    """
    notes.take()
    clip, head = plan.clip, worker_head(plan.setup.head_name)
    steps = Steps(head, Stages())
    tracked = steps.track(clip.video, clip.tracking, TRACK)
    tracking = tracked.artifact
    figures = {**plan.row.figures, **tracked_figures(tracking)}
    reason = tracked_refusal(figures, plan.setup.config)
    if reason:
        return refused(plan, reason, figures)
    fit = steps.fit([tracked], clip.head, FIT).artifact
    write_sheet(sheet_path(plan), clip.video, tracking, fit, head)
    figures |= fitted_figures(fit)
    row = replace(plan.row, figures=figures, histograms=counts(tracking), notes=[*plan.row.notes, *notes.take()])
    return remembered(plan, row)


def refused(plan: Plan, reason: str, figures: Mapping[str, Any]) -> Row:
    """Reject a clip after tracking: record the reason, and remove its files."""
    said = [*plan.row.notes, *notes.take()]
    row = replace(plan.row, status="rejected", reason=reason, figures=dict(figures), notes=said)
    shutil.rmtree(plan.clip.video.parent, ignore_errors=True)
    return remembered(plan, row)


def remembered(plan: Plan, row: Row) -> Row:
    """Record a clip's row; the last step, which marks the clip as complete."""
    keys = {
        kind: npz.read_header(path)["made_by"]["key"] if path.is_file() else ""
        for kind, path in (("track", plan.clip.tracking), ("head", plan.clip.head))
    }
    write_record(plan.setup.kept("clips", row.name), {"key": plan.key, **keys, **asdict(row)})
    return row


def sheet_path(plan: Plan) -> Path:
    """Path of a clip's contact sheet."""
    return plan.setup.folder / SHEETS / f"{plan.row.name}.jpg"


@lru_cache(maxsize=1)
def worker_head(name: HeadName) -> HeadModel:
    """Load the head model; once per process."""
    return head_by_name(name)


def safe(name: str) -> str:
    """Convert a name to one that is safe for every file system and shell."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "+._-") else "_" for c in name)
    return plain.lstrip("-.")[:60] or "clip"
