"""Running of `track`, `fit` and `transfer`; results whose key is unchanged are read, not made again.

Films, benchmarks and datasets run these stages only through this module.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.files import content_hash
from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import HeadFit, Tracking
from expportrait_cli.config import FitConfig, GenerateConfig, Method, Quality, TrackConfig
from expportrait_cli.errors import InputError
from expportrait_cli.fitting import fit as run_fit
from expportrait_cli.fitting import shares_identity
from expportrait_cli.head import HeadModel
from expportrait_cli.head.model import is_finer
from expportrait_cli.media.stretch import settled
from expportrait_cli.pipeline.heads import tracking_head
from expportrait_cli.pipeline.performance import CurvesFile, OffsetSource, write_meshes
from expportrait_cli.pipeline.provenance import network_of, networks_behind, warn_of_misfit
from expportrait_cli.pipeline.sheets import FACES, write_faces
from expportrait_cli.retargeting.stage import same_person
from expportrait_cli.runtime import Progress, Stages
from expportrait_cli.tracking import Pretracked, with_parameters
from expportrait_cli.tracking import track as run_track
from expportrait_cli.version import __version__
from expportrait_cli.weights.catalogue import catalogue

log = logging.getLogger(__name__)

A = TypeVar("A")

REVISIONS = {
    "scan": 1,
    "clip": 3,
    "track": 4,
    "fit": 5,
    "transfer": 4,
    "render": 4,
    "generate": 5,
    "generator-cache": 4,
}
"""Revision of each stage. Raise one when the same inputs and settings give another result, so that results of earlier
versions are made again. `tests/pipeline/test_revisions.py` fails if a stage has changed and its revision has not.
"""


@dataclass(frozen=True)
class Keyed(Generic[A]):
    """An artifact and its key, which enters the keys of what is made from it."""

    artifact: A
    key: str


def given(cls: type[A], path: Path) -> Keyed[A]:
    """Read an artifact that the user gave; its key is the hash of its content, whatever its header contains."""
    return Keyed(npz.load(cls, path), content_hash(path))


def made_by(stage: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any]:
    """Header of an artifact: tool, stage, settings, inputs and weights, and the key, a hash of all of these.

    `inputs`: content hashes, or keys of intermediate artifacts, by role.
    """
    weights = {weight.name: weight.sha256 for weight in catalogue() if stage in weight.needed_by}
    header = {
        "tool": f"expportrait {__version__}",
        "stage": stage,
        "revision": REVISIONS[stage],
        "settings": dict(settings),
        "inputs": dict(inputs),
        "weights": weights,
    }
    text = json.dumps(header, sort_keys=True)
    return {**header, "key": hashlib.sha256(text.encode()).hexdigest()}


def is_current(path: Path, header: Mapping[str, Any]) -> bool:
    """True if the artifact at `path` has the key of `header`: the same inputs and settings."""
    if not path.is_file():
        return False
    try:
        found = npz.read_header(path)["made_by"]
    except InputError as error:
        _say_damaged(path, error)
        return False
    return isinstance(found, dict) and found.get("key") == header["key"]


def _say_damaged(path: Path, error: InputError) -> None:
    log.warning("%s is damaged, and is made again.", path)
    log.debug("%s", error)


def cached(cls: type[A], path: Path, header: Mapping[str, Any], make: Callable[[], A]) -> Keyed[A]:
    """Read the artifact if its key is that of `header`, otherwise make and save it."""
    if is_current(path, header):
        try:
            return Keyed(npz.load(cls, path), header["key"])
        except InputError as error:
            _say_damaged(path, error)
    artifact = make()
    npz.save(artifact, path, header)
    return Keyed(artifact, header["key"])


def faces_path(tracking: Path) -> Path:
    """Path of the picture of the faces that a tracking had to choose from."""
    return tracking.with_name(tracking.name.removesuffix(".track.npz") + FACES)


def parameter_files(parameters: Path | None) -> list[Path]:
    """Files of another program's parameters: one, or those of a folder in order."""
    if parameters is None:
        return []
    return sorted(parameters.glob("*.npz")) if parameters.is_dir() else [parameters]


def track_header(
    config: TrackConfig, head_model: str, source_hash: str, parameters: Path | None = None
) -> dict[str, Any]:
    """Header of a tracking, whose settings include the head model."""
    inputs = {"source": source_hash}
    if parameters is not None:
        hashes = map(content_hash, parameter_files(parameters))
        inputs["parameters"] = hashlib.sha256("".join(hashes).encode()).hexdigest()
    return made_by("track", {**asdict(config), "head_model": head_model}, inputs)


def fit_header(config: FitConfig, inputs: dict[str, str], known: Path | None = None) -> dict[str, Any]:
    """Header of a fitted head, with the networks that are used for it on this machine.

    The networks' hashes are in the key, since the head depends on them. A `known` head's networks are listed too,
    because its identity and static offset, and thus the licences of these networks, carry over.
    """
    networks = network_of(config)
    hashes = {row["name"]: row["sha256"] for row in networks}
    if known is not None:
        networks += [row for row in networks_behind(known) if row not in networks]
    return {**made_by("fit", asdict(config), {**inputs, **hashes}), "networks": networks}


def fit_inputs(trackings: Sequence[str], driver: str = "", head: str = "") -> dict[str, str]:
    """Keys of the artifacts that a fit depends on, by role."""
    own = {f"track{index or ''}": key for index, key in enumerate(trackings)}
    return {**own, "driver": driver, "head": head}


def transfer_header(source: OffsetSource, head: str, driver: str, edited: str) -> dict[str, Any]:
    """Header of meshes, from the keys of head and driver's tracking, and the hash of edited curves (or empty)."""
    inputs = {"head": head, "driver": driver, "curves": edited, **source.inputs()}
    return made_by("transfer", asdict(source.config), inputs)


def painted_key(config: GenerateConfig, head: str, meshes: str, painter: Mapping[str, str], **other: Any) -> str:
    """Key of a film's frames and sound, from the keys of its artifacts; `other` overrides settings of `config`."""
    inputs = {"head": head, "meshes": meshes, "render": f"revision {REVISIONS['render']}", **painter}
    return str(made_by("generate", {**asdict(config), **other}, inputs)["key"])


def fits_driver(config: FitConfig, method: Method, frames: int, *, same: bool) -> bool:
    """True if a transfer needs a fit of the driver's own frames; `same`: the driver is the person of the photo."""
    has_folds = frames > 1 and config.quality != "draft"
    return has_folds and (method == "direct" or (same and method != "none"))


def driver_config(config: FitConfig, head: HeadModel) -> FitConfig:
    """Settings of the fit to the driver's own frames, for a head that was fitted with `config`."""
    quality: Quality = "high" if is_finer(head.name) else config.quality
    return replace(config, quality=quality, detail=False)


@dataclass(frozen=True)
class Steps:
    """Tracking, fit and transfer with one head model; results that are up to date are read, not made again."""

    head: HeadModel
    stages: Stages

    def track(
        self, source: Path, path: Path, config: TrackConfig, *, title: str = "track", parameters: Path | None = None
    ) -> Keyed[Tracking]:
        """Track a photo or clip, always with the plain head model, also if the head's mesh is a finer one.

        `parameters`: file or folder of SMPL-X parameters by another tracker (`tracking.Pretracked`).

        Raises:
            InputError: no face is found, or a file cannot be read.
        """
        plain = tracking_head(self.head)
        config = replace(config, stretch=settled(config.stretch, source))
        header = track_header(config, plain.name, content_hash(source), parameters)
        given = Pretracked.read(parameters) if parameters is not None else None
        show = partial(write_faces, faces_path(path))

        def tracked(progress: Progress) -> Tracking:
            own = run_track(source, plain, config, progress, show)
            return own if given is None or parameters is None else with_parameters(own, given, plain, parameters)

        made = cached(
            Tracking,
            path,
            header,
            lambda: self.stages.run(title, tracked),
        )
        warn_of_misfit(source, made.artifact)
        # The file may have been moved since it was tracked.
        return replace(made, artifact=replace(made.artifact, source=str(source.resolve())))

    def fit(
        self,
        trackings: Sequence[Keyed[Tracking]],
        path: Path,
        config: FitConfig,
        *,
        driver: Keyed[Tracking] | None = None,
        known: Path | None = None,
        title: str = "fit the head",
        begun: Callable[[], HeadFit] | None = None,
    ) -> Keyed[HeadFit]:
        """Fit the head to a tracking, or to several of one person; with the head `known`, only the frames are fitted.

        `begun` returns a fit to the photo alone, begun while the driver was tracked; it is used if the driver does not
        share the identity.
        """
        head = given(HeadFit, known) if known is not None else None
        inputs = fit_inputs([each.key for each in trackings], driver.key if driver else "", head.key if head else "")
        own = [tracking.artifact for tracking in trackings]
        other = driver.artifact if driver is not None else None

        def fitted(progress: Progress) -> HeadFit:
            if begun is not None and other is not None and not shares_identity(own, other, config):
                return begun()
            known_head = head.artifact if head is not None else None
            return run_fit(own, self.head, config, progress, driver=other, known=known_head)

        made = cached(
            HeadFit,
            path,
            fit_header(config, inputs, known),
            lambda: self.stages.run(title, fitted),
        )
        return replace(made, artifact=replace(made.artifact, source=trackings[0].artifact.source))

    def fit_driver(
        self,
        own: Keyed[HeadFit],
        head_path: Path,
        tracking: Keyed[Tracking],
        path: Path,
        config: FitConfig,
        *,
        method: Method,
    ) -> Path | None:
        """Fit the driver's own frames, if the method needs them; returns the file of the fit, or None.

        If the driver is the person, the person's head is kept: generators are trained on normals with each frame's own
        folds, so that a film of the person needs them as well. Otherwise only for `direct`.
        """
        driver = tracking.artifact
        same = same_person(own.artifact, driver)
        if not fits_driver(config, method, len(driver.error), same=same):
            return None
        if not Path(driver.source).is_file():
            log.warning("%s is gone: the offsets of its frames are estimated from its landmarks.", driver.source)
            return None
        plain = Steps(tracking_head(self.head), self.stages)
        known = head_path if same else None
        plain.fit([tracking], path, driver_config(config, self.head), known=known, title="fit the driver's frames")
        return path

    def transfer(
        self,
        head_fit: Keyed[HeadFit],
        tracking: Keyed[Tracking],
        path: Path,
        source: OffsetSource,
        *,
        head_path: Path,
        curves: Path | None = None,
        written: Sequence[str] = (),
    ) -> Keyed[Meshes]:
        """Transfer a performance to a head with file `head_path`; `curves` are read if edited, otherwise written.

        `written`: tables that earlier runs wrote, beside those in the header of the meshes at `path` (`CurvesFile`).
        """
        table = CurvesFile.of(curves, path, written)
        edited = table.edited()
        header = transfer_header(source, head_fit.key, tracking.key, edited)
        meshes = _whole_meshes(path) if is_current(path, header) else None
        if meshes is None:
            self.stages.run(
                "transfer",
                lambda progress: write_meshes(
                    path,
                    {**header, "head": str(head_path.resolve())},
                    head_fit.artifact,
                    tracking.artifact,
                    head=self.head,
                    head_hash=content_hash(head_path),
                    source=source,
                    table=table,
                    progress=progress,
                ),
            )
            meshes = Meshes.open(path)
        if not edited:
            # The table is written last: if the run stops before, the meshes' header still lists every table.
            table.write(meshes.curves, self.head.expression_names)
        return Keyed(meshes, header["key"])


def _whole_meshes(path: Path) -> Meshes | None:
    """Open the meshes of an earlier run; None if they are damaged."""
    try:
        meshes = Meshes.open(path)
        meshes.check()
    except InputError as error:
        _say_damaged(path, error)
        return None
    return meshes
