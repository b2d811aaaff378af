"""A photo and a clip in, a film out: run the stages that are missing, keep what they made, write down how."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.files import content_hash
from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import HeadFit, Tracking
from expportrait_cli.errors import InputError
from expportrait_cli.fit import fit
from expportrait_cli.generate import generate as paint
from expportrait_cli.generate.stage import Choice, choose, painter_of
from expportrait_cli.head import HeadModel
from expportrait_cli.media.image import is_image
from expportrait_cli.media.video import probe
from expportrait_cli.media.writer import join
from expportrait_cli.pipeline import cache, segments
from expportrait_cli.pipeline.heads import (
    check_same,
    head_behind,
    head_by_name,
    kind_of_head,
    track_header,
    tracking_head,
)
from expportrait_cli.pipeline.job import Job
from expportrait_cli.pipeline.licences import licence_map
from expportrait_cli.pipeline.performance import Driver, OffsetSource, edited_curves, write_meshes
from expportrait_cli.pipeline.provenance import (
    Clock,
    check_source,
    fit_quality,
    licences,
    network_of,
    networks_behind,
    read_record,
    synthetic_tags,
    tracking_quality,
    versions,
    warn_of_misfit,
    write_record,
)
from expportrait_cli.pipeline.sheets import write_grid
from expportrait_cli.progress import Progress, Stage
from expportrait_cli.track import track

log = logging.getLogger(__name__)

WORDS = {"reference": "photo", "driving": "driver"}


@dataclass(frozen=True)
class Film:
    """What a run left."""

    path: Path
    record: Path
    summary: dict[str, Any]


def generate(job: Job, kinds: tuple[str, str], stage: Stage) -> Film:
    """Make the film, or find that it is already there: same inputs, same settings, same tool. `kinds` is `check(job)`.

    What a killed run finished is in `job.work` and is not made again.
    """
    hashes = {"reference": content_hash(job.reference), "driving": content_hash(job.driving)}
    if edited := edited_curves(job.curves, job.meshes):
        hashes["curves"] = edited
    painter = choose(job.generate)
    whole = cache.made_by("generate", job.settings(), {**hashes, **painter.identity})
    known = read_record(job.record)
    is_whole = job.out.is_file() and known.get("sha256") == content_hash(job.out)
    is_written = job.curves is None or job.curves.is_file()
    if is_whole and is_written and known.get("key") == whole["key"]:
        log.info("%s is up to date: same inputs, same settings.", job.out)
        return Film(job.out, job.record, known)
    painter_of(job.generate)  # For what it refuses: better now than after minutes of tracking.
    painted = known.get("painted") if is_whole else None
    return _Run(job, stage, hashes, _head_model(job, kinds), painter).film(kinds, whole["key"], painted=painted)


def _head_model(job: Job, kinds: tuple[str, str]) -> HeadModel:
    """The head model of the artifacts that were given, and the default one for photos and clips."""
    own = npz.load(HeadFit, job.reference) if kinds[0] == "head" else None
    tracking = npz.load(Tracking, job.driving) if kinds[1] == "track" else None
    if own is not None and tracking is not None:
        check_same(job.reference, own, job.driving, tracking)
    if own is not None:
        return head_behind(job.reference, own)
    return head_behind(job.driving, tracking) if tracking is not None else head_by_name("anny")


class _Run:
    """One run: the head model, the clock, and the artifacts in the work folder."""

    def __init__(self, job: Job, stage: Stage, hashes: dict[str, str], head: HeadModel, painter: Choice) -> None:
        self.job, self.stage, self.hashes, self.head, self.painter = job, stage, hashes, head, painter
        self.clock = Clock()

    def film(self, kinds: tuple[str, str], key: str, *, painted: str | None) -> Film:
        """Run the stages in order; `painted` is the key of the frames and the sound that the film already has."""
        job, started = self.job, perf_counter()
        # The photo first: it shows in a second what would be found out after minutes of the driver.
        own = self._given_head() if kinds[0] == "head" else self._tracked("reference", job.reference, job.track.face)
        tracking, driver_key = self._driver(kinds[1])
        head_fit, head_key = self._head_fit(*own, tracking, driver_key)
        meshes, meshes_key = self._meshes(head_fit, tracking, {"head": head_key, "driver": driver_key})
        driver = Driver.of(tracking) if tracking is not None else Driver.behind(job.driving)
        inputs = {"head": head_key, "meshes": meshes_key, **self.painter.identity}
        film_key = cache.made_by("generate", asdict(job.generate), inputs)["key"]
        if film_key != painted:
            # Sound is added at the end: it makes no frame stale.
            frames = cache.made_by("generate", {**asdict(job.generate), "audio": None}, inputs)
            self._paint(head_fit, meshes, driver, job.work / f"segments-{frames['key'][:16]}")
        if job.grid:
            self._timed(
                "draw the grid",
                lambda progress: write_grid(
                    job.grid_path, job.out, head_fit, meshes, driver, job.generate.size, progress
                ),
            )
        summary = self._record(key, film_key, meshes, perf_counter() - started, _quality(head_fit, tracking, meshes))
        if not job.keep_work:
            shutil.rmtree(job.work)
        return Film(job.out, job.record, summary)

    def _paint(self, head_fit: HeadFit, meshes: Meshes, driver: Driver | None, folder: Path) -> None:
        """Paint what `folder` lacks, join it with the sound, and remove it."""
        job = self.job
        segments.forget_others(folder)
        parts = self._timed(
            "paint the film",
            lambda progress: segments.write_segments(
                lambda start: paint(head_fit, meshes, self.head, job.generate, start=start, keep=folder / "kept"),
                folder,
                frame_count=meshes.frame_count,
                rate=meshes.rate,
                progress=progress,
            ),
        )
        audio, audio_start_s = self._audio(driver)
        join(
            parts,
            job.out,
            rate=meshes.rate,
            frame_count=meshes.frame_count,
            audio=audio,
            audio_start_s=audio_start_s,
            metadata=synthetic_tags(),
        )
        shutil.rmtree(folder)

    def _timed(self, name: str, work: Callable[[Progress], Any]) -> Any:
        progress, since = self.stage(name), perf_counter()
        done = work(progress)
        self.clock.note(name, since)
        return done

    def _tracked(self, role: str, source: Path, face: str) -> tuple[Tracking, str]:
        """Tracking of a photo or clip, from the work folder if it is current."""
        config, head = replace(self.job.track, face=face), tracking_head(self.head)
        header = track_header(config, head.name, self.hashes[role])
        tracking = cache.cached(
            Tracking,
            self.job.work / f"{role}.track.npz"
            if self.job.shared is None
            else self.job.shared / f"{header['key'][:16]}.track.npz",
            header,
            lambda: self._timed(f"track the {WORDS[role]}", lambda progress: track(source, head, config, progress)),
        )
        warn_of_misfit(source, tracking)
        # The same content may lie elsewhere than when it was tracked.
        return replace(tracking, source=str(source.resolve())), header["key"]

    def _driver(self, kind: str) -> tuple[Tracking | None, str]:
        path = self.job.driving
        match kind:
            case "meshes":
                return None, ""
            case "track":
                return npz.load(Tracking, path), self.hashes["driving"]
        return self._tracked("driving", path, self.job.driving_face)

    def _given_head(self) -> tuple[HeadFit, str]:
        path = self.job.reference
        head_fit = npz.load(HeadFit, path)
        check_source(path, head_fit)
        return head_fit, self.hashes["reference"]

    def _head_fit(
        self, own: HeadFit | Tracking, key: str, driver: Tracking | None, driver_key: str
    ) -> tuple[HeadFit, str]:
        """The person's head: as given, or fitted to the photo's tracking."""
        if isinstance(own, HeadFit):
            return own, key
        networks = network_of(self.job.fit)
        # With another network, or one where there was none, the head is another.
        inputs = {"track": key, "driver": driver_key, **{row["name"]: row["sha256"] for row in networks}}
        header = {**cache.made_by("fit", asdict(self.job.fit), inputs), "networks": networks}
        head_fit = cache.cached(
            HeadFit,
            self.job.work / "reference.head.npz",
            header,
            lambda: self._timed(
                "fit the head", lambda progress: fit([own], self.head, self.job.fit, progress, driver=driver)
            ),
        )
        return replace(head_fit, source=str(self.job.reference.resolve())), header["key"]

    def _meshes(self, head_fit: HeadFit, tracking: Tracking | None, keys: dict[str, str]) -> tuple[Meshes, str]:
        job = self.job
        if tracking is None:
            meshes = Meshes.open(job.driving)
            if meshes.head_hash != self.hashes["reference"]:
                raise InputError(f"{job.driving} was made for another head than {job.reference}. Run transfer again.")
            return meshes, self.hashes["driving"]
        source = OffsetSource.of(job.transfer, self.head.name)
        made_from = {**keys, "curves": self.hashes.get("curves", ""), **source.inputs()}
        header = cache.made_by("transfer", asdict(source.config), made_from)
        path = job.meshes
        is_written = job.curves is None or job.curves.is_file()
        if not is_written or not cache.is_current(path, header):
            own = job.work / "reference.head.npz"
            self._timed(
                "transfer",
                lambda progress: write_meshes(
                    path,
                    header,
                    head_fit,
                    tracking,
                    head=self.head,
                    head_hash=content_hash(own) if own.is_file() else self.hashes["reference"],
                    source=source,
                    curves=job.curves,
                    is_edited="curves" in self.hashes,
                    progress=progress,
                ),
            )
        return Meshes.open(path), header["key"]

    def _audio(self, driver: Driver | None) -> tuple[Path | None, float]:
        """File that the sound comes from, and the time in it that frame 0 shows."""
        match self.job.generate.audio:
            case "none":
                return None, 0.0
            case "reference":
                source = self.job.reference
            case "driving":
                source = driver.source if driver is not None else self.job.driving
        if source.suffix == ".npz" or not source.is_file():
            log.warning("The clip behind %s is gone: the film has no sound.", source)
            return None, 0.0
        info = None if is_image(source) else probe(source)
        if info is not None and info.has_audio:
            return source, info.start_s
        if self.job.generate.audio == "reference":
            log.warning("%s has no sound to take: the film is silent. Leave out --audio reference.", source)
        return None, 0.0

    def _record(
        self, key: str, painted: str, meshes: Meshes, seconds: float, quality: dict[str, Any]
    ) -> dict[str, Any]:
        inputs = {"reference": self.job.reference, "driving": self.job.driving, "curves": self.job.curves}
        head = self.job.reference if self.job.reference.suffix == ".npz" else self.job.work / "reference.head.npz"
        stages = ("track", "fit", "transfer", "render", "generate", self.painter.name, kind_of_head(self.head.name))
        content = {
            "output": str(self.job.out),
            "sha256": content_hash(self.job.out),
            "key": key,
            "painted": painted,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "synthetic": synthetic_tags()["comment"],
            "inputs": {role: {"path": str(inputs[role]), "sha256": digest} for role, digest in self.hashes.items()},
            "frames": meshes.frame_count,
            "rate": str(meshes.rate),
            "seed": self.job.generate.seed,
            "settings": self.job.settings(),
            "quality": quality,
            "seconds": {**self.clock.seconds, "whole run": round(seconds, 3)},
            "versions": versions(),
            "painter": self.painter.identity,
            "weights": [*licences(stages), *networks_behind(head), *self.painter.licences],
        }
        content["licences"] = licence_map(content).to_json()
        write_record(self.job.record, content)
        return content


def _quality(head_fit: HeadFit, tracking: Tracking | None, meshes: Meshes) -> dict[str, Any]:
    """What the artifacts themselves say about the result."""
    tracked = tracking_quality(tracking) if tracking is not None else {}
    # Of frames whose expression the transfer network has not learned.
    outside = npz.read_header(meshes.path)["made_by"].get("outside_training", 0.0)
    return {**fit_quality(head_fit), **tracked, "outside_training": outside}
