"""Making a film from a photo and a clip: run the stages that are missing, and write the film and its run record."""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.files import alone, content_hash, forget_partials
from expportrait_cli.artifacts.guard import check_outputs
from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import HeadFit, Tracking
from expportrait_cli.config import RenderConfig
from expportrait_cli.detect.crop import shown_box
from expportrait_cli.errors import InputError
from expportrait_cli.fitting import fit
from expportrait_cli.head import HeadModel
from expportrait_cli.head.fitted import reduced
from expportrait_cli.media.image import is_image
from expportrait_cli.media.video import probe
from expportrait_cli.media.writer import (
    forget_others,
    join,
    segment_folders,
    segments_folder,
    write_png,
    write_segments,
)
from expportrait_cli.painting import paint
from expportrait_cli.painting.stage import painter_of, shown_control
from expportrait_cli.pipeline import steps
from expportrait_cli.pipeline.heads import head_model_of, kind_of_head, tracking_head
from expportrait_cli.pipeline.job import Job, behind_normals, check
from expportrait_cli.pipeline.performance import CurvesFile, Driver, OffsetSource, representation_of
from expportrait_cli.pipeline.plan import Found, look
from expportrait_cli.pipeline.provenance import (
    check_source,
    fit_quality,
    licence_map,
    licences,
    networks_behind,
    synthetic_tags,
    tracking_quality,
    versions,
    write_record,
)
from expportrait_cli.pipeline.sheets import write_grid
from expportrait_cli.pipeline.steps import Keyed, Steps, track_header
from expportrait_cli.retargeting.stage import same_person
from expportrait_cli.runtime import Stage, Stages, beside, silent, thread_count

log = logging.getLogger(__name__)

WORDS = {"reference": "photo", "driving": "driver"}
"""Names of the roles in titles of stages."""


@dataclass(frozen=True)
class Film:
    """A film that a run made, or that was up to date."""

    path: Path
    record: Path
    summary: dict[str, Any]


def generate(job: Job, stage: Stage = silent) -> Film:
    """Make the film, unless it exists already, made from the same inputs and settings by the same revision.

    Results that an interrupted run has finished are in `job.work`, and are not made again.

    Raises:
        InputError, UsageError: as `job.check`.
    """
    # Before `behind_normals`, since a film of normal maps is an input too, which it replaces by its meshes.
    check_outputs(job.outputs(), [job.driving])
    job = behind_normals(job)
    kinds = check(job)
    with alone(job.out), alone(job.work):
        for path in (*job.outputs(), job.grid_path, job.report, job.control_picture):
            forget_partials(path)
        return _made(job, kinds, stage)


def _made(job: Job, kinds: tuple[str, str], stage: Stage) -> Film:
    found = look(job, kinds)
    if found.is_current:
        log.info("%s is up to date: same inputs, same settings.", job.out)
        _forget_segments(job.work)
        return Film(job.out, job.record, dict(found.known))
    if not job.show_control:
        painter_of(job.generate)  # Called for its errors, now and not after minutes of tracking.
    return _Run(job, Stages(stage), found, head_model_of(job, kinds)).film(kinds, found.key)


def _forget_segments(work: Path) -> None:
    for segments in segment_folders(work):
        shutil.rmtree(segments)


class _Run:
    """One run: the head model, the stages, and the artifacts in the work folder."""

    def __init__(self, job: Job, stages: Stages, found: Found, head: HeadModel) -> None:
        """Take over the state that `look` has found."""
        self.job, self.stages, self.head = job, stages, head
        self.hashes, self.painter, self.known, self.table = found.hashes, found.painter, found.known, found.table
        self.steps = Steps(head, stages)

    def film(self, kinds: tuple[str, str], key: str) -> Film:
        """Run the stages in order; a film whose frames and sound are up to date is not painted again."""
        job, started = self.job, perf_counter()
        # The photo first: its errors show in a second, not after minutes of tracking the driver.
        photo = self._tracked("reference") if kinds[0] != "head" else None
        if kinds[0] == "photo" and photo is not None:
            shown_box(photo.artifact, photo.artifact.landmarks[0], job.generate)  # Raises if the head does not fit.
        with self._fit_begun(photo, kinds[1]) as begun:
            tracking = self._driver(kinds[1])
            head_fit, head_path = self._head_fit(photo, tracking, begun)
        meshes = self._meshes(head_fit, head_path, tracking)
        if job.show_control:
            sheet = self.stages.run(
                "draw the control",
                lambda _: shown_control(head_fit.artifact, meshes.artifact, self.head, job.generate),
            )
            write_png(job.control_picture, sheet)
            return Film(job.control_picture, job.record, {"frames": meshes.artifact.frame_count})
        driver = Driver.of(tracking.artifact) if tracking is not None else Driver.behind(job.driving)
        watched = self._watched(head_fit.artifact, tracking.artifact if tracking is not None else None)
        shown = representation_of(Path(meshes.artifact.path))
        # The normals of the photo must have the same representation as those of the film.
        head_fit = replace(head_fit, artifact=reduced(head_fit.artifact, shown))
        # Head and meshes determine whether the driver's clip is read, unless it is gone.
        is_there = tracking is None or Path(tracking.artifact.source).is_file()
        gone = {} if watched is not None or is_there else {"mouth": "model", "wrinkles": "none"}
        painted = steps.painted_key(job.generate, head_fit.key, meshes.key, self.painter.identity, **gone)
        if painted != self.known.get("painted"):
            # Frames do not depend on the sound, which is added when segments are joined.
            own = {**gone, "audio": None}
            frames = steps.painted_key(job.generate, head_fit.key, meshes.key, self.painter.identity, **own)
            self._paint(head_fit.artifact, meshes.artifact, driver, watched, segments_folder(job.work, frames))
        if job.grid:
            self.stages.run(
                "draw the grid",
                lambda progress: write_grid(
                    job.grid_path,
                    job.out,
                    head_fit.artifact,
                    meshes.artifact,
                    driver,
                    RenderConfig(size=job.generate.size, detail=job.generate.detail),
                    progress,
                ),
            )
        quality = _quality(head_fit.artifact, tracking.artifact if tracking is not None else None, meshes.artifact)
        quality["mouth"] = job.generate.mouth if watched is not None else "model"
        quality["wrinkles"] = job.generate.wrinkles if watched is not None else "none"
        record = self._record(key, painted, meshes.artifact, head_path, perf_counter() - started, quality)
        if job.with_report:
            # Imported here, because only runs with a page need the libraries that measure a film.
            from expportrait_cli.pipeline.report import write_run_report

            self.stages.run("write the report", lambda progress: write_run_report(job, record, job.report, progress))
        wanted = (job.grid_path if job.grid else None, job.report if job.with_report else None, job.curves)
        record["beside"] = {path.name: content_hash(path) for path in wanted if path is not None}
        write_record(job.record, record)
        # Segments are removed last, so that a run that stops earlier need not paint again.
        _forget_segments(job.work)
        if not job.keep_work:
            job.remove_work()
        return Film(job.out, job.record, record)

    def _watched(self, head_fit: HeadFit, driver: Tracking | None) -> Tracking | None:
        """Tracking of the clip that mouth and folds are read from; None for the head model's mouth and no folds.

        None too if the driver is the photo's person: the clip is the ground truth then.
        """
        asked = "driver" in (self.job.generate.mouth, self.job.generate.wrinkles)
        if not asked or driver is None or same_person(head_fit, driver):
            return None
        if not Path(driver.source).is_file():
            log.warning(
                "The clip %s is gone: the inside of the mouth is the head model's (`mouth=model`), and no folds are "
                "taken from it (`wrinkles=none`).",
                driver.source,
            )
            return None
        return driver

    def _paint(
        self, head_fit: HeadFit, meshes: Meshes, driver: Driver | None, watched: Tracking | None, folder: Path
    ) -> None:
        """Paint the segments that `folder` lacks, and join all with the sound."""
        job = self.job
        forget_others(folder)
        segments = self.stages.run(
            "paint the film",
            lambda progress: write_segments(
                lambda start: paint(
                    head_fit, meshes, self.head, job.generate, start=start, keep=folder / "kept", driver=watched
                ),
                folder,
                frame_count=meshes.frame_count,
                rate=meshes.rate,
                encode=job.generate.encode_quality,
                progress=progress,
            ),
        )
        audio, audio_start_s = self._audio(driver, head_fit)
        join(
            segments,
            job.out,
            rate=meshes.rate,
            frame_count=meshes.frame_count,
            audio=audio,
            audio_start_s=audio_start_s,
            metadata=synthetic_tags(),
        )

    def _tracked(self, role: str) -> Keyed[Tracking]:
        source, config = self.job.tracked(role)
        title = f"track the {WORDS[role]}"
        path = self.job.tracking(role, self._tracking_header(role)["key"])
        if self.job.shared is None:
            return self.steps.track(source, path, config, title=title)
        # Another worker may be tracking the same clip.
        with alone(path, wait=True):
            return self.steps.track(source, path, config, title=title)

    def _driver(self, kind: str) -> Keyed[Tracking] | None:
        match kind:
            case "meshes":
                return None
            case "track":
                return steps.given(Tracking, self.job.driving)
        return self._tracked("driving")

    @contextmanager
    def _fit_begun(self, photo: Keyed[Tracking] | None, kind: str) -> Iterator[Callable[[], HeadFit] | None]:
        """Fit the head to the photo while the driver is tracked: it needs the driver only if both are one person."""
        job, config = self.job, self.job.fit
        key = self._tracking_header("driving")["key"] if kind in ("photo", "clip") else ""
        header = steps.fit_header(config, steps.fit_inputs([photo.key], key)) if photo is not None else {}
        is_there = not key or self._is_tracked("driving") or steps.is_current(job.work / "reference.head.npz", header)
        if photo is None or is_there or config.same_person == "yes" or thread_count() == 1:
            yield None
            return
        with beside(lambda progress: fit([photo.artifact], self.head, config, progress)) as begun:
            yield begun

    def _tracking_header(self, role: str) -> dict[str, Any]:
        _, config = self.job.tracked(role)
        return track_header(config, tracking_head(self.head).name, self.hashes[role])

    def _is_tracked(self, role: str) -> bool:
        header = self._tracking_header(role)
        return steps.is_current(self.job.tracking(role, header["key"]), header)

    def _head_fit(
        self, photo: Keyed[Tracking] | None, driver: Keyed[Tracking] | None, begun: Callable[[], HeadFit] | None
    ) -> tuple[Keyed[HeadFit], Path]:
        """Return the person's head and its file: the given one, or one fitted to the photo's tracking."""
        if photo is None:
            head_fit = steps.given(HeadFit, self.job.reference)
            check_source(self.job.reference, head_fit.artifact)
            return head_fit, self.job.reference
        path = self.job.work / "reference.head.npz"
        return self.steps.fit([photo], path, self.job.fit, driver=driver, begun=begun), path

    def _meshes(self, head_fit: Keyed[HeadFit], head_path: Path, tracking: Keyed[Tracking] | None) -> Keyed[Meshes]:
        job = self.job
        if tracking is None:
            meshes = Meshes.open(job.driving)
            meshes.check()
            if meshes.head_hash != self.hashes["reference"]:
                raise InputError(f"{job.driving} was made for another head than {job.reference}. Run transfer again.")
            return Keyed(meshes, self.hashes["driving"])
        driver_head = self.steps.fit_driver(
            head_fit, head_path, tracking, job.work / "driving.head.npz", job.fit, method=job.transfer.method
        )
        source = OffsetSource.of(job.transfer, self.head.name, driver_head)
        return self.steps.transfer(
            head_fit, tracking, job.meshes, source, head_path=head_path, curves=job.curves, written=self.table.written
        )

    def _audio(self, driver: Driver | None, head_fit: HeadFit) -> tuple[Path | None, float]:
        """Return the file of the sound (None without), and the time in it, s, of the film's frame 0."""
        first = 0
        match self.job.generate.audio:
            case "none":
                return None, 0.0
            case "reference":
                source, first = self.job.reference, head_fit.first_frame
            case "driving" if driver is not None:
                source, first = driver.source, driver.first_frame
            case "driving":
                source = self.job.driving
        if source.suffix == ".npz" or not source.is_file():
            log.warning("The clip behind %s is gone: the film has no sound.", source)
            return None, 0.0
        info = None if is_image(source) else probe(source)
        if info is not None and info.has_audio:
            return source, info.start_s + float(first / info.rate)
        if self.job.generate.audio == "reference":
            log.warning("%s has no sound: the film is silent. Leave out `audio=reference`.", source)
        return None, 0.0

    def _record(
        self, key: str, painted: str, meshes: Meshes, head_path: Path, seconds: float, quality: dict[str, Any]
    ) -> dict[str, Any]:
        inputs = {"reference": self.job.reference, "driving": self.job.driving, "curves": self.job.curves}
        stages = ("track", "fit", "transfer", "render", "generate", self.painter.name, kind_of_head(self.head.name))
        content = {
            "output": str(self.job.out),
            "sha256": content_hash(self.job.out),
            "key": key,
            "painted": painted,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "synthetic": synthetic_tags()["comment"],
            "inputs": {role: {"path": str(inputs[role]), "sha256": digest} for role, digest in self.hashes.items()},
            "frames": meshes.frame_count,
            "rate": str(meshes.rate),
            "seed": self.job.generate.seed,
            "settings": self.job.settings(),
            "quality": quality,
            "seconds": {**self.stages.seconds, "whole run": round(seconds, 3)},
            "cpu_seconds": self.stages.cpu_seconds,
            "curves_written": list(CurvesFile.of(self.job.curves, self.job.meshes, self.table.written).written),
            "versions": versions(),
            "painter": self.painter.identity,
            "weights": [*licences(stages), *networks_behind(head_path), *self.painter.licences],
        }
        content["licences"] = licence_map(content).to_json()
        return content


def _quality(head_fit: HeadFit, tracking: Tracking | None, meshes: Meshes) -> dict[str, Any]:
    """Collect the figures of quality from the artifacts."""
    tracked = tracking_quality(tracking) if tracking is not None else {}
    made_by = npz.read_header(meshes.path)["made_by"]
    # Share of frames outside the network's training range; and motion that was not transferred in full, with reasons.
    moved = {"outside_training": made_by.get("outside_training", 0.0), "held_back": made_by.get("held_back", {})}
    same = {"same_person": same_person(head_fit, tracking)} if tracking is not None else {}
    return {**fit_quality(head_fit), **same, **tracked, **moved}
