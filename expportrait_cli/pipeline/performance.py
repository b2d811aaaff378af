"""A driver's performance on a head, from tracking to meshes, with the curves in between open to editing."""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import UInt8

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.curves_csv import csv_of, read_csv, write_csv
from expportrait_cli.artifacts.files import check_file, content_hash
from expportrait_cli.artifacts.meshes import MeshesWriter
from expportrait_cli.artifacts.types import Curves, HeadFit, Tracking
from expportrait_cli.config import Representation, TransferConfig
from expportrait_cli.errors import InputError, UsageError, WeightsError
from expportrait_cli.head import HeadModel
from expportrait_cli.head.finer import finer
from expportrait_cli.head.fitted import reduced, relief_of
from expportrait_cli.media.video import read_frame
from expportrait_cli.pipeline.heads import kind_of_head, tracking_head
from expportrait_cli.retargeting import Beyond, posed_frames, transfer
from expportrait_cli.retargeting.network import load_network
from expportrait_cli.runtime import Progress
from expportrait_cli.weights.catalogue import weights_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OffsetSource:
    """The method that is used, and the file that it needs."""

    config: TransferConfig
    network: Path | None = None
    driver: Path | None = None

    @classmethod
    def of(cls, config: TransferConfig, head_name: str, driver: Path | None = None) -> "OffsetSource":
        """Find the file. A head model without a network takes the driver's landmarks instead, and says so.

        Raises:
            InputError, WeightsError: a file that was named is missing or no such file.
            UsageError: a file was named for another method than the chosen one.
        """
        if config.network and config.method != "learned":
            raise UsageError(f"`network={config.network}` serves `method=learned`, not {config.method}.")
        if driver is not None and config.method == "none":
            raise UsageError(f"`driver_head={driver}` serves `method=learned` and `method=direct`, not none.")
        if config.method != "learned":
            return cls(config, driver=driver)
        if config.network:
            check_file(Path(config.network))
            return cls(config, Path(config.network), driver)
        try:
            return cls(config, weights_file(f"transfer_{kind_of_head(head_name)}.safetensors"), driver)
        except WeightsError:
            log.warning(
                "There is no transfer network for the head model '%s': the driver's own landmarks move the face beyond "
                "its expressions (`method=direct`). Train one with `expportrait train transfer`.",
                head_name,
            )
            return cls(replace(config, method="direct"), driver=driver)

    def inputs(self) -> dict[str, str]:
        """Hashes of the files, for the key of what is made with them."""
        files = {"network": self.network, "driver_head": self.driver}
        return {name: content_hash(path) for name, path in files.items() if path is not None}

    def load(self, head: HeadModel, frames: int) -> Beyond:
        """Read network, driver's fit and finer mesh, as far as the method and the head take them.

        `frames` is the driver's count.

        Raises:
            InputError: the driver's fit does not go with the driver, or with the head.
            WeightsError: the network does not go with the head.
        """
        plain = tracking_head(head)
        driver = npz.load(HeadFit, self.driver) if self.driver is not None else None
        if driver is not None and (driver.head_model != head.name or len(driver.dynamic_offset) != frames):
            raise InputError(
                f"{self.driver} holds offsets of {len(driver.dynamic_offset)} frames on the head model "
                f"'{driver.head_model}', expected {frames} on '{head.name}'. Fit the driver's own tracking, with the "
                "`quality` of the person's head."
            )
        return Beyond(
            trained=load_network(self.network, plain) if self.network is not None else None,
            driver=driver,
            mesh=finer(plain) if plain is not head else None,
        )


OUTSIDE = 0.05
"""Share of frames beyond the network's training from which it is worth a word."""

STILL_RATE = Fraction(25)
"""Frame rate of a film that a photo drives: its one frame needs some duration."""


@dataclass(frozen=True)
class Driver:
    """The driver's pictures, as a `.meshes.npz` names them."""

    source: Path
    crop: tuple[float, float, float]
    first_frame: int
    """Frame of the source that the film's frame 0 follows."""

    def row(self) -> dict[str, Any]:
        """Convert to plain types for the header."""
        return {"source": str(self.source), "crop": list(self.crop), "first_frame": self.first_frame}

    def picture(self, frame: int) -> UInt8[np.ndarray, "H W 3"]:
        """Read what a frame of the film follows."""
        return read_frame(self.source, self.first_frame + frame)

    @classmethod
    def of(cls, tracking: Tracking) -> "Driver":
        """The driver that a tracking shows."""
        left, top, side = (float(n) for n in tracking.crop)
        return cls(Path(tracking.source), (left, top, side), tracking.first_frame)

    @classmethod
    def behind(cls, meshes: Path) -> "Driver | None":
        """The driver that meshes came from, if their header names one that is still there."""
        row = npz.read_header(meshes)["made_by"].get("driver")
        if not isinstance(row, dict) or not Path(str(row.get("source"))).is_file():
            return None
        left, top, side = (float(n) for n in row["crop"])
        # Earlier versions of the tool took every clip from its beginning.
        return cls(Path(row["source"]), (left, top, side), int(row.get("first_frame", 0)))


def representation_of(meshes: Path) -> Representation:
    """Part of the head that meshes show."""
    settings = npz.read_header(meshes)["made_by"].get("settings")
    found = settings.get("representation") if isinstance(settings, dict) else None
    return next((each for each in get_args(Representation) if each == found), "full")


def rate_of(tracking: Tracking) -> Fraction:
    """Frame rate of what a tracking drives."""
    return Fraction(int(tracking.rate[0]), int(tracking.rate[1])) or STILL_RATE


@dataclass(frozen=True)
class CurvesFile:
    """The table of a film's curves: the user's if it was edited, else what the tool writes there."""

    path: Path | None
    meshes: Path
    """Path of the film's meshes; the file names the tables that were written for them and for earlier meshes."""
    written: tuple[str, ...]
    """Tables that runs for these meshes wrote, hash and place each; the last one belongs to the meshes."""

    @classmethod
    def of(cls, path: Path | None, meshes: Path, known: Sequence[str] = ()) -> "CurvesFile":
        """Collect the tables that the meshes name, and those `known` from elsewhere, such as a run record."""
        named: Any = None
        if meshes.is_file():
            try:
                named = npz.read_header(meshes)["made_by"].get("curves_written")
            except (InputError, AttributeError):
                log.debug("%s names no tables of curves.", meshes)
        # Earlier versions of the tool named one hash.
        own = [named] if isinstance(named, str) else named if isinstance(named, list) else []
        return cls(path, meshes, tuple(dict.fromkeys(str(each) for each in (*known, *own))))

    def edited(self) -> str:
        """Hash of the table if it is somebody's own: a file that exists, and that no run for these meshes wrote.

        So the same command can be given twice, and with other settings, without its own output counting as an edit.
        """
        if self.path is None or not self.path.is_file():
            return ""
        digest = content_hash(self.path)
        return "" if {digest, self._named(digest)} & {*self.written} else digest

    def with_table(self, curves: Curves, names: Sequence[str]) -> list[str]:
        """The tables that were written, and that of these curves as the last; `names` as `csv_of` takes them."""
        if self.path is None:
            return list(self.written)
        own = self._named(hashlib.sha256(csv_of(curves, names).encode()).hexdigest())
        return [*(each for each in self.written if each != own), own]

    def write(self, curves: Curves, names: Sequence[str]) -> None:
        """Write the table, unless it is there; one that was edited in the meantime stays."""
        if self.path is None:
            return
        table = replace(self, written=tuple(self.with_table(curves, names)))
        if table.edited():
            log.warning("%s was edited meanwhile: the next run uses it.", self.path)
        elif not self.path.is_file() or self._named(content_hash(self.path)) != table.written[-1]:
            write_csv(curves, names, self.path)
            log.info("Curves written to %s.", self.path)

    def _named(self, digest: str) -> str:
        # A copy elsewhere of what the tool wrote is a table that the user chose.
        assert self.path is not None
        return f"{digest} {os.path.relpath(self.path, self.meshes.parent)}"


def write_meshes(
    path: Path,
    header: Mapping[str, Any],
    head_fit: HeadFit,
    tracking: Tracking,
    *,
    head: HeadModel,
    head_hash: str,
    source: OffsetSource,
    table: CurvesFile,
    progress: Progress,
) -> None:
    """Transfer and write the posed head frame by frame. Edited curves replace the driver's."""
    head_fit = reduced(head_fit, source.config.representation)
    performance = transfer(head_fit, tracking, head, source.config, source.load(head, len(tracking.error)))
    header = {**header, "driver": Driver.of(tracking).row()}
    curves = table.path
    if curves is not None and header["inputs"]["curves"]:
        edited = read_csv(curves, head.expression_names)
        if len(edited.jaw) != len(performance.curves.jaw):
            raise InputError(f"{curves} has {len(edited.jaw)} frames, the driver {len(performance.curves.jaw)}.")
        performance = replace(performance, curves=edited)
        log.warning("%s exists: its curves are used, whatever scales, regions and smoothing say.", curves)
        header["curves_written"] = list(table.written)
    else:
        header["curves_written"] = table.with_table(performance.curves, head.expression_names)
    if performance.outside > OUTSIDE:
        log.warning(
            "In %.0f %% of the frames the driver's expression goes beyond what the transfer network was trained on: "
            "folds there are a guess. `expression_scale` below 1 calms it, `method=direct` copies the driver's.",
            100 * performance.outside,
        )
    held = performance.held.row()
    if "turn_damped" in held:
        log.warning(
            "The driver turns the head up to %s degrees further than the photo can show: damped from a turn of about "
            "%.0f degrees on (`turn_limit_deg`).",
            held["turn_damped"]["most"],
            source.config.turn_limit_deg,
        )
    header = {**header, "outside_training": round(performance.outside, 3), "held_back": held}
    rows = performance.curves
    with MeshesWriter(
        path,
        faces=head.dense_faces.numpy(),
        focal_px=head_fit.focal_px,
        rate=rate_of(tracking),
        head_model=head.name,
        head_hash=head_hash,
        made_by=header,
        relief=relief_of(head_fit, head),
    ) as writer:
        for index, verts in enumerate(posed_frames(head_fit, head, performance)):
            writer.write(verts, rows.rotation[index], rows.translation[index])
            progress(index + 1, len(rows.rotation))
        writer.finish(rows)
