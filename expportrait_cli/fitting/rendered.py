"""The loss of the paper's optimisation (3.1.2), with posed meshes that are drawn by a differentiable rasteriser.

Its terms are landmarks (Eq. 5), a network's normals and depth (Eq. 6), a prior on the expression (Eq. 7), and
penalties on the size and the Laplacian of both offset fields.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from scipy import sparse
from torch import Tensor

from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.detect.estimate import Estimator, resized
from expportrait_cli.fitting.clip import WINDOW, Clip, static_mask
from expportrait_cli.fitting.evidence import windows_of
from expportrait_cli.fitting.losses import MM, align
from expportrait_cli.fitting.parametric import landmark_term
from expportrait_cli.fitting.patch import Patch, Preconditioner, Surface
from expportrait_cli.geometry import mesh, rotations
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.mesh import csr_tensor
from expportrait_cli.head import coarse, dense, joints, pose
from expportrait_cli.head.fitted import pose_of
from expportrait_cli.head.model import HeadPose
from expportrait_cli.render.buffers import Buffers, render_buffers
from expportrait_cli.runtime import best_device

OUTLINE = 1.0
"""Weight of the mean difference of the masks; not in the paper. Without it nothing moves the outline."""
LAPLACIAN_PER_MM2 = 0.02
"""Weight of the squared Laplacian of both fields, per mm^2."""
SURE = 0.5
"""Confidence of a network above which a pixel counts as the person."""


@dataclass(frozen=True)
class Targets:
    """A network's maps of `T` frames at one size, S px."""

    normals: Float32[Tensor, "T S S 3"]
    depth: Float32[Tensor, "T S S"]
    """The network's relative depth (scale and shift unknown); 0 where `has_depth` is 0."""
    has_depth: Float32[Tensor, "T S S"]
    confidence: Float32[Tensor, "T S S"]

    @classmethod
    def of(cls, clip: Clip, rows: Int64[np.ndarray, " T"], network: Estimator, size: int) -> "Targets":
        """Run the network on every frame, and scale its maps to `size` px."""
        columns: list[list[np.ndarray]] = [[], [], [], []]
        for _, crops in windows_of(clip, rows, WINDOW):
            for found in map(network, crops):
                known = np.isfinite(found.depth).astype(np.float32)
                maps = (found.normals, np.nan_to_num(found.depth) * known, known, found.confidence)
                for column, values in zip(columns, maps, strict=True):
                    column.append(resized(values.astype(np.float32), size))
        normals, depth, known, confidence = (torch.from_numpy(np.stack(column)) for column in columns)
        # A pixel averaged from known and unknown depth is not a depth.
        return cls(mesh.normalize(normals), depth, (known > 0.999).float(), confidence)

    @property
    def size(self) -> int:
        """Side of the maps, px."""
        return self.normals.shape[1]

    def at(self, rows: Tensor, device: torch.device) -> "Targets":
        """Select frames, and move them to a device."""
        return Targets(*(getattr(self, field.name)[rows].to(device) for field in fields(Targets)))


@dataclass(frozen=True)
class Fields:
    """Everything that is fixed for one offset field: its patch, mask, Laplacian and preconditioner."""

    patch: Patch
    mask: Float32[Tensor, " P"]
    rows: Int64[Tensor, " P"]
    laplacian: Tensor
    """Sparse [P, P], on the device."""
    preconditioner: Preconditioner

    @classmethod
    def of(cls, patch: Patch, smoothness: float, device: torch.device) -> "Fields":
        """Prepare a field over a patch of the head."""
        return cls(
            patch,
            patch.mask.to(device),
            torch.from_numpy(patch.vertices).to(device),
            csr_tensor(sparse.csr_matrix(patch.laplacian)).to(device),
            patch.preconditioner(smoothness),
        )

    def roughness(self, offset: Float[Tensor, "T P 3"]) -> Float[Tensor, " T"]:
        """Mean square of the field's Laplacian in each frame, mm^2."""
        columns = offset.permute(1, 0, 2).flatten(1)
        rest = (self.laplacian @ columns).unflatten(1, (len(offset), 3))
        return (MM * rest).square().sum(-1).mean(0)


class Problem:
    """The variables of the joint optimisation (`moving`), its fixed inputs, and the loss."""

    def __init__(
        self,
        clip: Clip,
        rows: Int64[np.ndarray, " T"],
        dynamic: Patch,
        start: Float32[np.ndarray, "T P 3"],
        *,
        share: float,
    ):
        """Start at the parameters of `clip`.

        `rows`: frames to optimise; `start`: their dynamic offsets, canonical, m; `share` (0..1): mask of Delta g in the
        face (`clip.face_share`).
        """
        self.clip, self.rows, self.device = clip, rows, best_device()
        head = self.head = clip.head.to(self.device)
        smoothness = clip.config.descent.normals_smoothness
        everywhere = Patch.of(clip.head.dense_faces.numpy(), static_mask(clip.head, share))
        self.static, self.dynamic = (Fields.of(patch, smoothness, self.device) for patch in (everywhere, dynamic))
        curves = clip.rows(rows)
        self.tracked = _moved(pose_of(curves, curves.torso_translation), self.device)
        self.static_start = torch.from_numpy(clip.fit.static_offset).to(self.device)
        self.dynamic_start = torch.from_numpy(start).to(self.device)
        self.edges = mesh.edges(head.dense_faces)
        self.landmarks = _moved(landmark_term(clip, rows), self.device)
        self.moving = {
            "identity": torch.from_numpy(clip.fit.identity.copy()),
            "expression": torch.from_numpy(curves.expression.copy()),
            "jaw": torch.from_numpy(curves.jaw.copy()),
            "turn": torch.zeros(len(rows), 3),
            "translation": torch.from_numpy(curves.translation.copy()),
            "static": torch.zeros(1, len(everywhere.vertices), 3),
            "dynamic": torch.zeros(len(rows), len(dynamic.vertices), 3),
        }
        self.moving = {name: value.to(self.device).requires_grad_() for name, value in self.moving.items()}

    def offsets(self, rows: Tensor) -> tuple[Float[Tensor, "1 Q 3"], Float[Tensor, "R P 3"]]:
        """The change of Delta g, and Delta f of some frames; canonical, m."""
        static = self.static.mask[:, None] * self.static.preconditioner.field(self.moving["static"])
        field = self.dynamic.preconditioner.field(self.moving["dynamic"][rows])
        return static, self.dynamic_start[rows] + self.dynamic.mask[:, None] * field

    def surface(self, rows: Tensor) -> tuple[Surface, Tensor, Tensor]:
        """The whole head in some frames (Eq. 1 to 4), the change of Delta g, and Delta f."""
        head, moved = self.head, self.moving
        jaw, turned = moved["jaw"][rows], moved["turn"][rows]
        identity = moved["identity"].expand(len(rows), -1)
        static, offset = self.offsets(rows)
        shape = dense(head, coarse(head, identity, moved["expression"][rows], jaw, self.tracked.gaze[rows]))
        shape = (shape + self.static_start).index_add(1, self.static.rows, static.expand(len(rows), -1, -1))
        shape = shape.index_add(1, self.dynamic.rows, offset)
        tracked = HeadPose(*(getattr(self.tracked, field.name)[rows] for field in fields(HeadPose)))
        turn = rotations.axis_angle(rotations.matrix(turned) @ rotations.matrix(tracked.rotation))
        at = replace(tracked, jaw=jaw, rotation=turn, translation=moved["translation"][rows])
        verts = pose(head, shape, joints(head, identity), at)
        return Surface.of(verts, verts, head.dense_faces, focal_px=self.clip.focal_px), static, offset

    def drawn(self, surface: Surface, size: int) -> Buffers:
        """Render normals, depth and mask of posed heads at `size` px."""
        camera = Camera.of_crop(self.clip.focal_px, CROP_SIZE, size)
        return render_buffers(surface.verts, self.head.dense_faces, camera, edges=self.edges)

    def loss(self, rows: Tensor, targets: Targets) -> dict[str, Float[Tensor, " R"]]:
        """The weighted terms of the loss, by name, one value a frame."""
        weights = self.clip.config.weights
        surface, static, offset = self.surface(rows)
        term = replace(
            self.landmarks,
            **{name: getattr(self.landmarks, name)[rows] for name in ("target", "weight", "unit_px")},
        )
        own, seen = self.drawn(surface, targets.size), targets.at(rows.cpu(), self.device)
        inside = seen.confidence * (own.mask.detach() > 0.99)
        total = inside.sum((1, 2)).clamp(min=1.0)
        normals = (inside * (own.normals - seen.normals).abs().sum(-1)).sum((1, 2)) / total
        return {
            "landmarks": term(surface),
            "normals": normals,
            "depth": weights.depth_per_mm * _depth_error(own, seen, inside),
            "outline": OUTLINE * (own.mask - (seen.confidence > SURE).float()).abs().mean((1, 2)),
            "expression": weights.expression * self.moving["expression"][rows].square().mean(-1),
            "identity": (weights.identity * self.moving["identity"].square().mean()).expand(len(rows)),
            "dynamic": weights.dynamic_per_mm2 * (MM * offset).square().sum(-1).mean(-1),
            "static": (weights.static_per_mm2 * (MM * static).square().sum(-1).mean()).expand(len(rows)),
            "rough": LAPLACIAN_PER_MM2
            * (self.dynamic.roughness(offset) + self.static.roughness(static).expand(len(rows))),
        }

    def batches(self) -> Iterator[Tensor]:
        """Iterate over all frames in batches of `WINDOW`."""
        return iter(torch.arange(len(self.rows), device=self.device).split(WINDOW))


def _depth_error(own: Buffers, seen: Targets, inside: Float[Tensor, "R S S"]) -> Float[Tensor, " R"]:
    """Mean absolute depth error of each frame, mm, after aligning the network's depth by scale and shift."""
    weight = (inside * seen.has_depth).flatten(1)
    drawn, source = MM * own.depth.flatten(1), seen.depth.flatten(1)
    scale, shift = align(source, drawn.detach(), weight)
    error = (drawn - (scale * source + shift)).abs()
    return (weight * error).sum(1) / weight.sum(1).clamp(min=1.0)


def _moved(record: Any, device: torch.device) -> Any:
    """Move the tensors of a dataclass to a device."""
    return replace(record, **{k: v.to(device) for k, v in vars(record).items() if isinstance(v, Tensor)})
