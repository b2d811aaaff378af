"""A driver's performance on a head, from tracking to meshes, with the curves in between open to editing."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.curves_csv import read_csv, write_csv
from expportrait_cli.artifacts.meshes import MeshesWriter
from expportrait_cli.artifacts.types import HeadFit, Tracking
from expportrait_cli.errors import InputError
from expportrait_cli.head import HeadModel
from expportrait_cli.media.files import content_hash
from expportrait_cli.pipeline.offsets import OffsetSource
from expportrait_cli.transfer import posed_frames, transfer

log = logging.getLogger(__name__)

OUTSIDE = 0.05
"""Share of frames beyond the network's training from which it is worth a word."""

STILL_RATE = Fraction(25)
"""Frame rate of a film that a photo drives: its one frame needs some duration."""


@dataclass(frozen=True)
class Driver:
    """Where the driver's pictures are, as a `.meshes.npz` remembers it."""

    source: Path
    crop: tuple[float, float, float]

    def row(self) -> dict[str, Any]:
        """As the header holds it."""
        return {"source": str(self.source), "crop": list(self.crop)}

    @classmethod
    def of(cls, tracking: Tracking) -> "Driver":
        """The driver that a tracking shows."""
        left, top, side = (float(n) for n in tracking.crop)
        return cls(Path(tracking.source), (left, top, side))

    @classmethod
    def behind(cls, meshes: Path) -> "Driver | None":
        """The driver that meshes came from, if their header names one that is still there."""
        row = npz.read_header(meshes)["made_by"].get("driver")
        if not isinstance(row, dict) or not Path(str(row.get("source"))).is_file():
            return None
        left, top, side = (float(n) for n in row["crop"])
        return cls(Path(row["source"]), (left, top, side))


def rate_of(tracking: Tracking) -> Fraction:
    """Frame rate of what a tracking drives."""
    return Fraction(int(tracking.rate[0]), int(tracking.rate[1])) or STILL_RATE


def edited_curves(curves: Path | None, meshes: Path) -> str:
    """Hash of the curves if they are somebody's own: the file exists, and is not just what `meshes` was made with.

    So the same command can be given twice, and with other settings, without its own output counting as an edit.
    """
    if curves is None or not curves.is_file():
        return ""
    digest = content_hash(curves)
    try:
        written = npz.read_header(meshes)["made_by"].get("curves_written") if meshes.is_file() else None
    except InputError:
        written = None
    return "" if digest == written else digest


def write_meshes(
    path: Path,
    header: Mapping[str, Any],
    head_fit: HeadFit,
    tracking: Tracking,
    *,
    head: HeadModel,
    head_hash: str,
    source: OffsetSource,
    curves: Path | None,
    is_edited: bool,
    progress: Callable[[int, int | None], None],
) -> None:
    """Transfer and write the posed head frame by frame. Edited curves replace the driver's; others are written."""
    performance = transfer(head_fit, tracking, head, source.config, **source.load(head, len(tracking.error)))
    header = {**header, "driver": Driver.of(tracking).row()}
    if curves is not None and is_edited:
        edited = read_csv(curves, head.expression_names)
        if len(edited.jaw) != len(performance.curves.jaw):
            raise InputError(f"{curves} has {len(edited.jaw)} frames, the driver {len(performance.curves.jaw)}.")
        performance = replace(performance, curves=edited)
        log.warning("%s exists: its curves are used, whatever scales, regions and smoothing say.", curves)
    elif curves is not None:
        write_csv(performance.curves, head.expression_names, curves)
        header["curves_written"] = content_hash(curves)
        log.info("Curves written to %s.", curves)
    if performance.outside > OUTSIDE:
        log.warning(
            "In %.0f %% of the frames the driver's expression goes beyond what the transfer network was trained on: "
            "folds there are a guess. --expression-scale below 1 calms it, --method direct copies the driver's.",
            100 * performance.outside,
        )
    header = {**header, "outside_training": round(performance.outside, 3)}
    rows = performance.curves
    with MeshesWriter(
        path,
        faces=head.dense_faces.numpy(),
        focal_px=head_fit.focal_px,
        rate=rate_of(tracking),
        head_model=head.name,
        head_hash=head_hash,
        made_by=header,
    ) as writer:
        for index, verts in enumerate(posed_frames(head_fit, head, performance)):
            writer.write(verts, rows.rotation[index], rows.translation[index])
            progress(index + 1, len(rows.rotation))
        writer.finish(rows)
