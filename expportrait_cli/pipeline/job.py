"""The job of one film: its inputs, settings and files, and checks before the work starts."""

import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from expportrait_cli.artifacts import guard, npz
from expportrait_cli.artifacts.files import check_file, content_hash, sha256
from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import HeadFit
from expportrait_cli.config import FitConfig, GenerateConfig, Stretch, TrackConfig, TransferConfig
from expportrait_cli.detect.crop import shape_of
from expportrait_cli.detect.faces import check_choice
from expportrait_cli.errors import InputError, UsageError
from expportrait_cli.head import HeadName
from expportrait_cli.media.ffmpeg import check_sound
from expportrait_cli.media.image import is_image, read_image
from expportrait_cli.media.stretch import settled
from expportrait_cli.media.video import probe
from expportrait_cli.render.files import SUFFIX, load_info
from expportrait_cli.retargeting.stage import check_neutral, parse_regions

log = logging.getLogger(__name__)

WORK_FILES = (
    *("reference.track.npz", "driving.track.npz", "reference.head.npz", "driving.head.npz", "driving.meshes.npz"),
    *("reference.faces.png", "driving.faces.png"),
)
"""Artifacts in the work folder of a run, and pictures of the faces to choose from."""


@dataclass(frozen=True)
class Job:
    """Inputs, settings and output of one film."""

    reference: Path
    """A photo, a clip, or a `.head.npz`."""
    driving: Path
    """A clip, a photo, a `.track.npz`, a `.meshes.npz`, or a `.normals.mkv` whose `.meshes.npz` still exists."""
    out: Path
    track: TrackConfig = field(default_factory=TrackConfig)
    """Settings of tracking, for reference and driver; the choice of a face and of frames in them is the reference's."""
    driving_face: str = TrackConfig.face
    driving_stretch: Stretch = field(default_factory=Stretch)
    """Range of the driver's frames; that of the reference is `track.stretch`."""
    head_model: HeadName | None = None
    """Head model for photos and clips; None for that of the given artifacts, or the default one."""
    fit: FitConfig = field(default_factory=FitConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    curves: Path | None = None
    """CSV of the curves, which are used if it was edited, and otherwise written to it."""
    grid: bool = False
    with_report: bool = False
    """Also write an HTML page about the film."""
    show_control: bool = False
    """Instead of the film, write a picture of the conditions of wan-vace."""
    keep_work: bool = True
    shared: Path | None = None
    """Folder of trackings that several films share; None: they are in each film's work folder."""

    @property
    def work(self) -> Path:
        """Folder of the intermediate artifacts."""
        return self.out.with_name(f"{self.out.stem}.work")

    @property
    def meshes(self) -> Path:
        """File of the meshes, if they are made by this run."""
        return self.work / "driving.meshes.npz"

    def tracking(self, role: str, key: str) -> Path:
        """File of the tracking of role `reference` or `driving`, in the work folder, or by its key in `shared`."""
        return self.work / f"{role}.track.npz" if self.shared is None else self.shared / f"{key[:16]}.track.npz"

    def tracked(self, role: str) -> tuple[Path, TrackConfig]:
        """Return photo or clip of a role, and the settings of its tracking, with the stretch in frames."""
        if role == "reference":
            return self.reference, replace(self.track, stretch=settled(self.track.stretch, self.reference))
        stretch = settled(self.driving_stretch, self.driving)
        return self.driving, replace(self.track, face=self.driving_face, stretch=stretch)

    @property
    def record(self) -> Path:
        """Run record beside the film."""
        return self.out.with_name(f"{self.out.stem}.json")

    @property
    def grid_path(self) -> Path:
        """Film of photo, driver, normals and result, side by side."""
        return self.out.with_name(f"{self.out.stem}.grid.mp4")

    @property
    def control_picture(self) -> Path:
        """Picture of the conditions of wan-vace."""
        return self.out.with_name(f"{self.out.stem}.control.png")

    @property
    def report(self) -> Path:
        """Page about the film."""
        return self.out.with_suffix(".html")

    def inputs(self) -> list[Path]:
        """Files that the run reads, with the curves if they exist."""
        loras = self.generate.wan.loras() if self.generate.wan.lora else []
        files = [Path(name) for name in (self.transfer.network, *(file for file, _ in loras)) if name]
        files += [self.curves] if self.curves is not None and self.curves.exists() else []
        return [self.reference, self.driving, *behind(self.reference, self.driving), *files]

    def side_products(self) -> list[Path]:
        """Files beside the film whose names the tool chooses."""
        wanted = {self.grid_path: self.grid, self.report: self.with_report, self.control_picture: self.show_control}
        return [self.record, *(path for path, is_wanted in wanted.items() if is_wanted)]

    def outputs(self) -> list[Path]:
        """Files that the run writes, replaces or removes, with the curves unless they exist."""
        curves = [self.curves] if self.curves is not None and not self.curves.exists() else []
        return [self.out, *self.side_products(), *(self.work / name for name in WORK_FILES), *curves]

    def remove_work(self) -> None:
        """Remove the tool's files from the work folder, and the folder if nothing else is in it."""
        for name in WORK_FILES:
            (self.work / name).unlink(missing_ok=True)
        others = sorted(path.name for path in self.work.iterdir())
        if others:
            log.warning("%s is not removed: it holds other files (%s).", self.work, others[0])
        else:
            self.work.rmdir()

    def settings(self) -> dict[str, Any]:
        """Settings of all stages, in plain types for JSON."""
        stages = ("track", "fit", "transfer", "generate")
        return {
            **{stage: asdict(getattr(self, stage)) for stage in stages},
            "driving_face": self.driving_face,
            "driving_stretch": asdict(self.driving_stretch),
            "head_model": self.head_model or "",
            "grid": self.grid,
        }


def behind(*paths: Path) -> list[Path]:
    """Photos and clips from which artifacts were made: they are read where their pictures are needed."""
    return [source for path in paths if path.suffix == ".npz" and path.is_file() for source in _sources(path)]


def _sources(path: Path) -> list[Path]:
    try:
        made_by = npz.read_header(path)["made_by"]
        driver = made_by.get("driver") if isinstance(made_by, dict) else None
        if isinstance(driver, dict):
            return [Path(str(driver.get("source")))]
        with npz.open_archive(path) as archive:
            return [Path(str(npz.read_member(path, archive, "source")))]
    except InputError:
        # It has none, or is damaged, which is reported when the artifact is read.
        return []


def kind_of(path: Path) -> str:
    """Return `photo`, `clip`, `normals`, or the kind of an artifact.

    Films of normal maps are recognised by their name, since they too have faces. Photos are read in full, since the
    header of a truncated one looks whole; only headers of clips and artifacts are read.

    Raises:
        InputError: the file is missing, empty, a folder, damaged, or of a kind that the tool does not read.
    """
    check_file(path)
    if path.suffix == ".npz":
        return str(npz.read_header(path)["kind"])
    if path.name.endswith(".normals.mkv"):
        return "normals"
    if is_image(path):
        read_image(path)
        return "photo"
    probe(path)
    return "clip"


def behind_normals(job: Job) -> Job:
    """If the driver is a film of normal maps, return the job with the meshes and the head that it was drawn from.

    Raises:
        InputError: the film was edited, shows another viewpoint or another person, or its meshes or head are gone.
    """
    film = job.driving
    if not film.name.endswith(SUFFIX):
        return job
    info = load_info(film)
    if info.viewpoint:
        raise InputError(
            f"{film} shows the head from {info.viewpoint}, and films are painted from the photo's viewpoint. Run "
            "`render-normals` without `view` and `orbit`."
        )
    meshes = Path(info.meshes)
    if not meshes.is_file() or content_hash(meshes) != info.mesh_hash:
        raise InputError(
            f"{meshes}, from which {film} was drawn, is gone or was made again. Run `render-normals` again."
        )
    if job.reference.suffix == ".npz":
        return replace(job, driving=meshes)
    head = Path(str(npz.read_header(meshes)["made_by"].get("head")))
    if not head.is_file() or content_hash(head) != Meshes.open(meshes).head_hash:
        raise InputError(f"{head}, the head in {film}, is gone or was made again. Give its .head.npz as the reference.")
    fit = npz.load(HeadFit, head)
    if fit.source_hash != sha256(job.reference):
        raise InputError(f"{film} shows the person of {fit.source}, not of {job.reference}. Give that photo.")
    return replace(job, reference=head, driving=meshes)


def check(job: Job) -> tuple[str, str]:
    """Check all of a job that can be checked quickly; returns the kinds of reference and driver.

    Raises:
        InputError: an input cannot be used.
        UsageError: settings do not fit together.
    """
    reference, driving = kind_of(job.reference), kind_of(job.driving)
    guard.check(job.outputs(), job.inputs())
    if reference not in ("photo", "clip", "head"):
        remedy = "Make a head of it with `expportrait fit`." if reference == "track" else "Give the person's."
        raise InputError(f"{job.reference} is a '{reference}' artifact, expected a photo or a .head.npz. {remedy}")
    if driving not in ("photo", "clip", "track", "meshes"):
        remedy = "A head comes first, as REF." if driving == "head" else "Give the driver's."
        raise InputError(
            f"{job.driving} is a '{driving}' artifact, expected a clip, a .track.npz or a .meshes.npz. {remedy}"
        )
    if reference == "clip" and driving == "photo":
        log.warning(
            "%s is a clip and %s a photo: the film has one frame, in which the person of the clip makes the photo's "
            "expression. If the photo shall perform the clip, name the photo first.",
            job.reference,
            job.driving,
        )
    if driving == "meshes" and reference != "head":
        raise InputError(f"{job.driving} was made for one head: give its .head.npz instead of {job.reference}.")
    if driving == "meshes" and job.curves is not None:
        raise UsageError(f"`curves` cannot change the finished meshes of {job.driving}. Give the .track.npz instead.")
    sounding = {"driving": (driving, job.driving), "reference": (reference, job.reference)}.get(job.generate.audio)
    if sounding is not None and sounding[0] == "clip" and probe(sounding[1]).has_audio:
        check_sound(sounding[1])
    _check_stretch(reference, job.reference, job.track.stretch, "reference_")
    _check_stretch(driving, job.driving, job.driving_stretch, "")
    if job.generate.paste_back and job.generate.aspect != GenerateConfig.aspect:
        raise UsageError(f"`aspect={job.generate.aspect}` and `paste_back` exclude each other: leave out one of them.")
    shape_of(job.generate.aspect, job.generate.size)
    check_choice("face", job.track.face)
    check_choice("driving_face", job.driving_face)
    parse_regions(job.transfer.region)
    check_neutral(job.transfer)
    if job.fit.same_person != "auto" and (reference == "head" or driving == "meshes"):
        raise UsageError(
            f"`same_person={job.fit.same_person}` is for fitting a head, and {job.reference} is fitted already. "
            "Leave it out, or give the photo."
        )
    return reference, driving


def _check_stretch(kind: str, path: Path, stretch: Stretch, prefix: str) -> None:
    if stretch != Stretch() and kind not in ("photo", "clip"):
        raise UsageError(f"`{prefix}start` chooses frames of a clip, and {path} was made of one. Trim with `track`.")
    settled(stretch, path, prefix=prefix)
