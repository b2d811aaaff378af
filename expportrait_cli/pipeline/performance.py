"""Transfer of a driver's performance to a head, from tracking to meshes, with editable curves in between."""

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
    """Source of the dynamic offsets: the method, and the files that it needs."""

    config: TransferConfig
    network: Path | None = None
    driver: Path | None = None

    @classmethod
    def of(cls, config: TransferConfig, head_name: str, driver: Path | None = None) -> "OffsetSource":
        """Find the files. For a head model without a network the method becomes `direct`, with a warning.

        Raises:
            InputError, WeightsError: a file is missing or of another kind.
            UsageError: a file is given that the chosen method does not use.
        """
        if config.network and config.method != "learned":
            raise UsageError(f"`network={config.network}` needs `method=learned`, not {config.method}.")
        if driver is not None and config.method == "none":
            raise UsageError(f"`driver_head={driver}` needs `method=learned` or `method=direct`, not none.")
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
        """Hashes of the files, as inputs of the meshes' key."""
        files = {"network": self.network, "driver_head": self.driver}
        return {name: content_hash(path) for name, path in files.items() if path is not None}

    def load(self, head: HeadModel, frames: int) -> Beyond:
        """Read network, driver's fit and finer mesh, if the method and the head need them.

        `frames`: number of the driver's frames.

        Raises:
            InputError: the driver's fit does not match the driver or the head.
            WeightsError: the network does not match the head.
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
"""Share of frames outside the network's training range above which it is reported."""

STILL_RATE = Fraction(25)
"""Frame rate of a film that a photo drives, which has a single frame."""


@dataclass(frozen=True)
class Driver:
    """The clip or photo of the driver, as recorded in the header of a `.meshes.npz`."""

    source: Path
    crop: tuple[float, float, float]
    first_frame: int
    """Index of the source frame for the film's frame 0."""

    def row(self) -> dict[str, Any]:
        """Convert to plain types for the header."""
        return {"source": str(self.source), "crop": list(self.crop), "first_frame": self.first_frame}

    def picture(self, frame: int) -> UInt8[np.ndarray, "H W 3"]:
        """Read the driver's picture for a frame of the film."""
        return read_frame(self.source, self.first_frame + frame)

    @classmethod
    def of(cls, tracking: Tracking) -> "Driver":
        """The driver of a tracking."""
        left, top, side = (float(n) for n in tracking.crop)
        return cls(Path(tracking.source), (left, top, side), tracking.first_frame)

    @classmethod
    def behind(cls, meshes: Path) -> "Driver | None":
        """The driver in the header of meshes; None if there is none, or its file is gone."""
        row = npz.read_header(meshes)["made_by"].get("driver")
        if not isinstance(row, dict) or not Path(str(row.get("source"))).is_file():
            return None
        left, top, side = (float(n) for n in row["crop"])
        # Meshes of earlier versions have no first frame: clips were always taken from their beginning.
        return cls(Path(row["source"]), (left, top, side), int(row.get("first_frame", 0)))


def representation_of(meshes: Path) -> Representation:
    """The `representation` with which meshes were made."""
    settings = npz.read_header(meshes)["made_by"].get("settings")
    found = settings.get("representation") if isinstance(settings, dict) else None
    return next((each for each in get_args(Representation) if each == found), "full")


def rate_of(tracking: Tracking) -> Fraction:
    """Frame rate of the film that a tracking drives."""
    return Fraction(int(tracking.rate[0]), int(tracking.rate[1])) or STILL_RATE


@dataclass(frozen=True)
class CurvesFile:
    """The CSV table of a film's curves, which is the input if the user has edited it, and an output otherwise."""

    path: Path | None
    meshes: Path
    """Path of the film's meshes; their header lists the tables that were written for them and for earlier ones."""
    written: tuple[str, ...]
    """Hash and path of each table that the tool has written for these meshes; the last one is the current one."""

    @classmethod
    def of(cls, path: Path | None, meshes: Path, known: Sequence[str] = ()) -> "CurvesFile":
        """Collect the tables in the header of the meshes, and those `known` from elsewhere, such as a run record."""
        named: Any = None
        if meshes.is_file():
            try:
                named = npz.read_header(meshes)["made_by"].get("curves_written")
            except (InputError, AttributeError):
                log.debug("%s names no tables of curves.", meshes)
        # Earlier versions of the tool recorded one hash.
        own = [named] if isinstance(named, str) else named if isinstance(named, list) else []
        return cls(path, meshes, tuple(dict.fromkeys(str(each) for each in (*known, *own))))

    def edited(self) -> str:
        """Hash of the table if the user edited or made it: it exists, and was not written by the tool for these meshes.

        Otherwise empty: the output of an earlier run, also of one with other settings, is not taken for an edit.
        """
        if self.path is None or not self.path.is_file():
            return ""
        digest = content_hash(self.path)
        return "" if {digest, self._named(digest)} & {*self.written} else digest

    def with_table(self, curves: Curves, names: Sequence[str]) -> list[str]:
        """Return `written` with the table of these curves as the last; `names`: expressions, as for `csv_of`."""
        if self.path is None:
            return list(self.written)
        own = self._named(hashlib.sha256(csv_of(curves, names).encode()).hexdigest())
        return [*(each for each in self.written if each != own), own]

    def write(self, curves: Curves, names: Sequence[str]) -> None:
        """Write the table, unless it exists already; one that was edited in the meantime is not overwritten."""
        if self.path is None:
            return
        table = replace(self, written=tuple(self.with_table(curves, names)))
        if table.edited():
            log.warning("%s was edited meanwhile: the next run uses it.", self.path)
        elif not self.path.is_file() or self._named(content_hash(self.path)) != table.written[-1]:
            write_csv(curves, names, self.path)
            log.info("Curves written to %s.", self.path)

    def _named(self, digest: str) -> str:
        # With its path: a copy of a written table at another place was chosen by the user.
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
    """Transfer a performance, and write the posed meshes frame by frame. Edited curves replace the driver's."""
    head_fit = reduced(head_fit, source.config.representation)
    performance = transfer(head_fit, tracking, head, source.config, source.load(head, len(tracking.error)))
    header = {**header, "driver": Driver.of(tracking).row()}
    curves = table.path
    if curves is not None and header["inputs"]["curves"]:
        edited = read_csv(curves, head.expression_names)
        if len(edited.jaw) != len(performance.curves.jaw):
            raise InputError(f"{curves} has {len(edited.jaw)} frames, the driver {len(performance.curves.jaw)}.")
        performance = replace(performance, curves=edited)
        log.warning("%s exists: its curves are used; scales, regions and smoothing have no effect.", curves)
        header["curves_written"] = list(table.written)
    else:
        header["curves_written"] = table.with_table(performance.curves, head.expression_names)
    if performance.outside > OUTSIDE:
        log.warning(
            "In %.0f %% of the frames the driver's expression goes beyond what the transfer network was trained on: "
            "folds are uncertain there. `expression_scale` below 1 reduces it; `method=direct` copies the driver's.",
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
