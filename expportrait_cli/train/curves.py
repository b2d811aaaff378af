"""Reports of a training: a JSON line for each, TensorBoard, and an HTML page with curves and predictions."""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image

from expportrait_cli.artifacts.files import atomic_path, write_text
from expportrait_cli.artifacts.texts import parse_json
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.rotations import FRONTAL
from expportrait_cli.head import HeadModel, dense
from expportrait_cli.pages import facts, figures, key, notes, overlay, page
from expportrait_cli.render.buffers import encode, render_buffers
from expportrait_cli.retargeting.network import TransferNetwork
from expportrait_cli.train.transfer.clips import FaceClipLike
from expportrait_cli.train.transfer.loop import whole_faces

log = logging.getLogger(__name__)

TILE = 200
SHOWN_PEOPLE, SHOWN_FRAMES = 4, 3
FIGURES = ("loss", "filmed", "synthetic")
"""Figures of a report that the page plots, if present."""


@dataclass
class History:
    """The reports of a training: figures by name, and the step. Stored as JSON lines in `path`."""

    path: Path
    tensorboard: Path | None = None
    rows: list[dict[str, float]] = field(default_factory=list)
    _writer: Any = None

    @classmethod
    def read(cls, path: Path) -> "History":
        """Read the reports of an earlier run; for a step that was reported twice, the later one counts."""
        by_step: dict[float, dict[str, float]] = {}
        for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], 1):
            try:
                row = {name: math.nan if value is None else float(value) for name, value in parse_json(line).items()}
                by_step[row["step"]] = row
            except (ValueError, TypeError, KeyError, AttributeError):
                log.warning("%s, line %d is damaged, and is left out of the curves.", path, number)
        return cls(path, rows=[by_step[step] for step in sorted(by_step)])

    def add(self, step: int, figures: dict[str, float]) -> None:
        """Append a report to the file, the log and TensorBoard."""
        with self.path.open("a", encoding="utf-8") as file:
            # JSON has no NaN.
            row = {name: round(value, 5) if math.isfinite(value) else None for name, value in figures.items()}
            file.write(json.dumps({"step": step, **row}) + "\n")
        text = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        log.info("step %d: %s", step, text)
        if self.tensorboard is not None and self._writer is None:
            self._writer = _summary_writer(self.tensorboard)
        if self._writer:
            for name, value in figures.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()


def _summary_writer(folder: Path) -> Any:
    """A TensorBoard writer; False if tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("tensorboard is not installed (pip install '.[train]'): curves are on the page and in the log only.")
        return False
    return SummaryWriter(str(folder))


def write_page(
    path: Path, history: History, network: TransferNetwork, judges: Sequence[FaceClipLike], head: HeadModel
) -> Path:
    """Write the HTML page, and its picture of held-out people (`judges`) as a JPEG beside it."""
    picture = path.with_suffix(".jpg")
    sheet = predictions(network, judges, head)
    if sheet is not None:
        with atomic_path(picture) as partial:
            Image.fromarray(sheet).save(partial, format="JPEG", quality=88, comment="expportrait")
    last = history.rows[-1] if history.rows else {}
    errors = "Errors are root mean squares on held-out people, as a share of the error without any predicted offset."
    each = "Each row is one person. For each of three expressions: without dynamic offsets, predicted, true."
    shown = figures([("predictions", picture.name)], "", "held-out people") if sheet is not None else notes(["None."])
    figures_now = facts([(name, f"{value:g}") for name, value in last.items()])
    sections = {"": [figures_now, notes([errors]), *curves(history.rows)], "Held-out people": [notes([each]), shown]}
    write_text(path, page(f"Transfer network, step {last.get('step', 0):g}", sections))
    return path


def curves(rows: Sequence[dict[str, float]]) -> list[str]:
    """HTML of a plot of the figures `FIGURES` over the reports, and its key; empty if there are none."""
    names = [name for name in FIGURES if rows and name in rows[-1]]
    if not names:
        return []
    series = [np.array([row.get(name, np.nan) for row in rows]) for name in names]
    return [overlay(series, "errors", f"{rows[-1]['step']:g} steps"), key(names)]


@torch.inference_mode()
def predictions(
    network: TransferNetwork, judges: Sequence[FaceClipLike], head: HeadModel
) -> UInt8[np.ndarray, "H W 3"] | None:
    """Picture of the normals of held-out people, a row each: without offsets, predicted, true. None without people."""
    rows = []
    filmed_first = sorted(judges, key=lambda p: p.is_synthetic)[:SHOWN_PEOPLE]
    for clip, neutral, code in whole_faces(network, filmed_first):
        energy = (clip.offset.astype(np.float32) ** 2).sum((1, 2))
        frames = np.argsort(energy)[:: -max(len(energy) // (3 * SHOWN_FRAMES), 1)][:SHOWN_FRAMES]
        psi, jaw = (torch.from_numpy(column[frames]) for column in (clip.expression, clip.jaw))
        found = network.offsets(neutral, code, psi, jaw, rows=torch.arange(len(network.face.vertices)))
        true = torch.from_numpy(clip.offset[frames].astype(np.float32))
        tiles = []
        for t, expression in enumerate(psi):
            base = (
                torch.from_numpy(clip.neutral) + dense(head, head.expression_basis @ expression)[network.face.vertices]
            )
            tiles += [_tile(base + offset, network.face.faces) for offset in (0 * true[t], found[t], true[t])]
        rows.append(np.concatenate(tiles, 1))
    return np.concatenate(rows) if rows else None


def _tile(points: Float[torch.Tensor, "P 3"], faces: torch.Tensor) -> UInt8[np.ndarray, "S S 3"]:
    """Normal map of a face, in the head frame (m), seen from the front."""
    camera = Camera(focal_px=5.0 * TILE, cx=TILE / 2, cy=TILE / 2, width=TILE, height=TILE)
    turned = (points - points.mean(0)) @ torch.from_numpy(FRONTAL.T).float() + torch.tensor([0.0, 0.0, 1.1])
    return encode(render_buffers(turned[None], faces.to(torch.int32), camera).normals[0].numpy())
