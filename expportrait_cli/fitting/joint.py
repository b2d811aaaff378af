"""The paper's optimisation (3.1.2, 3.1.3): a head model's parameters and both offset fields at once.

Posed meshes are drawn by a differentiable rasteriser and compared with landmarks (Eq. 5) and with a network's normals
and depth (Eq. 6); the expressions have their prior (Eq. 7), both fields a penalty on their size and on their Laplacian.
It begins where the fit of the other qualities ends: the static field is not zero where it is expected, as 3.1.3 asks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from scipy import sparse
from torch import Tensor

from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit
from expportrait_cli.detect.estimate import Estimator, resized
from expportrait_cli.fitting.clip import WINDOW, Clip, recentred, static_mask
from expportrait_cli.fitting.evidence import windows_of
from expportrait_cli.fitting.losses import MM, UniformAdam, align
from expportrait_cli.fitting.parametric import RATES, landmark_term
from expportrait_cli.fitting.patch import Patch, Preconditioner, Surface, limited
from expportrait_cli.geometry import mesh, rotations
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.mesh import csr_tensor
from expportrait_cli.geometry.rotations import to_turns
from expportrait_cli.head import coarse, dense, joints, pose
from expportrait_cli.head.fitted import pose_of
from expportrait_cli.head.model import HeadPose
from expportrait_cli.render.buffers import Buffers, render_buffers
from expportrait_cli.runtime import Progress, best_device

SIZES, FINE = (256, 512), 0.3
"""Sides of the rendered maps, px, coarse to fine, and the share of the steps that are taken with the last."""
STEPS = 60
OUTLINE = 1.0
"""Weight of the mean difference of the masks. It is not among the paper's terms: normals alone do not move an edge."""
LAPLACIAN_PER_MM2 = 0.02
"""Weight of the squared Laplacian of both fields, per mm^2."""
SURE = 0.5
"""Confidence from which a pixel of a network shows the person."""


@dataclass(frozen=True)
class Targets:
    """A network's maps of `T` frames, at one size."""

    normals: Float32[Tensor, "T S S 3"]
    depth: Float32[Tensor, "T S S"]
    """Up to scale and shift; 0 where `has_depth` is."""
    has_depth: Float32[Tensor, "T S S"]
    confidence: Float32[Tensor, "T S S"]

    @classmethod
    def of(cls, clip: Clip, rows: Int64[np.ndarray, " T"], network: Estimator, size: int) -> "Targets":
        """Ask the network about every frame, and keep its maps at `size` px."""
        columns: list[list[np.ndarray]] = [[], [], [], []]
        for _, crops in windows_of(clip, rows, WINDOW):
            for found in map(network, crops):
                known = np.isfinite(found.depth).astype(np.float32)
                maps = (found.normals, np.nan_to_num(found.depth) * known, known, found.confidence)
                for column, values in zip(columns, maps, strict=True):
                    column.append(resized(values.astype(np.float32), size))
        normals, depth, known, confidence = (torch.from_numpy(np.stack(column)) for column in columns)
        # Averages over the border of what is known are no depths.
        return cls(mesh.normalize(normals), depth, (known > 0.999).float(), confidence)

    @property
    def size(self) -> int:
        """Side of the maps, px."""
        return self.normals.shape[1]

    def at(self, rows: Tensor, device: torch.device) -> "Targets":
        """Take some frames, and move them to a device."""
        return Targets(*(getattr(self, field.name)[rows].to(device) for field in fields(Targets)))


@dataclass(frozen=True)
class Fields:
    """A field of offsets: the patch that it is on, and how its variable is smoothed."""

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
        """Mean square of the Laplacian, mm^2."""
        columns = offset.permute(1, 0, 2).flatten(1)
        rest = (self.laplacian @ columns).unflatten(1, (len(offset), 3))
        return (MM * rest).square().sum(-1).mean(0)


class Problem:
    """The parameters that the optimisation moves, all that stays fixed, and the loss."""

    def __init__(
        self,
        clip: Clip,
        rows: Int64[np.ndarray, " T"],
        dynamic: Patch,
        start: Float32[np.ndarray, "T P 3"],
        *,
        share: float,
    ):
        """Begin at the clip's fit.

        `rows` are the frames that take part, `start` their dynamic offsets, `share` how far Delta g may enter the face
        (`clip.face_share`).
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
        """The whole head in some frames (Eq. 1 to 4), and its two fields."""
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
        """Normals, depth and mask of posed heads."""
        camera = Camera.of_crop(self.clip.focal_px, CROP_SIZE, size)
        return render_buffers(surface.verts, self.head.dense_faces, camera, edges=self.edges)

    def loss(self, rows: Tensor, targets: Targets) -> dict[str, Float[Tensor, " R"]]:
        """Every term of some frames, weighted; their sum is the loss."""
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
        """All frames, a few at a time."""
        return iter(torch.arange(len(self.rows), device=self.device).split(WINDOW))


def _depth_error(own: Buffers, seen: Targets, inside: Float[Tensor, "R S S"]) -> Float[Tensor, " R"]:
    """Mean distance, mm, after the network's depth was brought to the scale and shift of the drawn one."""
    weight = (inside * seen.has_depth).flatten(1)
    drawn, source = MM * own.depth.flatten(1), seen.depth.flatten(1)
    scale, shift = align(source, drawn.detach(), weight)
    error = (drawn - (scale * source + shift)).abs()
    return (weight * error).sum(1) / weight.sum(1).clamp(min=1.0)


def _moved(record: Any, device: torch.device) -> Any:
    """A dataclass with its tensors on a device."""
    return replace(record, **{k: v.to(device) for k, v in vars(record).items() if isinstance(v, Tensor)})


def descend(
    problem: Problem, targets: Sequence[Targets], progress: Progress, *, steps: int, keeps_person: bool = False
) -> list[float]:
    """Lower the loss; what moves ends at the state of least loss with the last targets. Those losses, first to last.

    `targets` are of growing size. With `keeps_person` identity and static offset stay.
    """
    moving, head = problem.moving, problem.head
    low, high = head.expression_low.float(), head.expression_high.float()
    rates = {name: rate for name, rate in RATES.items() if not (keeps_person and name == "identity")}
    adam = torch.optim.Adam([{"params": [moving[name]], "lr": rate} for name, rate in rates.items()])
    rate_m = problem.clip.config.descent.normals_rate_m
    fields_of = ("dynamic",) if keeps_person else ("static", "dynamic")
    shared = {name: UniformAdam(moving[name], rate_m) for name in fields_of}
    coarse_steps = 0 if len(targets) == 1 else round((1 - FINE) * steps)
    best, curve = _kept(moving), [_total(problem, targets[-1])]
    for step in range(steps + 1):
        is_fine = step >= coarse_steps
        total = _backward(problem, targets[-1 if is_fine else 0])
        if is_fine:
            best = _kept(moving) if total < min(curve) else best
            curve.append(total)
        if step < steps:
            adam.step()
            # At full length to the end, the last steps swing by more than shallow folds are high.
            for name, own in shared.items():
                gradient = moving[name].grad
                assert gradient is not None
                own.step(gradient, min(1.0, 2 * (1 - step / steps)))
            moving["expression"].data.clamp_(low, high)
        progress(step, steps)
    for name, value in best.items():
        moving[name].data.copy_(value)
    return curve


def _kept(moving: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in moving.items()}


def _backward(problem: Problem, targets: Targets) -> float:
    """Mean loss of all frames, with its gradient, a few frames at a time: memory does not grow with the clip."""
    for value in problem.moving.values():
        value.grad = None
    total = 0.0
    for rows in problem.batches():
        loss = torch.stack(list(problem.loss(rows, targets).values())).sum() / len(problem.rows)
        loss.backward()
        total += float(loss.detach())
    return total


@torch.no_grad()
def _total(problem: Problem, targets: Targets) -> float:
    terms = [problem.loss(rows, targets) for rows in problem.batches()]
    return sum(float(torch.stack(list(each.values())).sum()) for each in terms) / len(problem.rows)


def jointly(
    fit: HeadFit,
    clip: Clip,
    dynamic: Patch,
    network: Estimator,
    progress: Progress,
    *,
    weights: Float[np.ndarray, " T"],
    share: float,
    keeps_person: bool = False,
    steps: int = STEPS,
    sizes: Sequence[int] = SIZES,
) -> HeadFit:
    """Refine a fit of a photo or a clip by the joint optimisation; frames that were not seen keep what they have.

    `clip` is the fit's own, `dynamic` the patch of its dynamic offsets. `weights` and `share` say what of their mean is
    static (`clip.recentred`). With `keeps_person` identity and static offset stay as they are.
    """
    rows, is_clip = clip.tracked(), bool(len(fit.dynamic_offset))
    start = fit.dynamic_offset[rows].astype(np.float32) if is_clip else fit.frame_offset[None, dynamic.vertices]
    problem = Problem(clip, rows, dynamic, np.ascontiguousarray(start), share=share)
    targets = [Targets.of(clip, rows, network, size) for size in sizes]
    descend(problem, targets, progress, steps=steps, keeps_person=keeps_person)
    done = _written(fit, problem, is_clip=is_clip)
    if not is_clip or not share:
        return done
    # The static field is the mean of what is common to neutral frames; what is left to the frames has none of it.
    more, offset = recentred(done.dynamic_offset.astype(np.float32), weights, share)
    static = done.static_offset.copy()
    static[dynamic.vertices] += more
    frame_offset = done.frame_offset.copy()
    frame_offset[dynamic.vertices] -= more
    return replace(done, static_offset=static, frame_offset=frame_offset, dynamic_offset=offset.astype(np.float16))


@torch.no_grad()
def _written(fit: HeadFit, problem: Problem, *, is_clip: bool) -> HeadFit:
    moving = {name: value.detach().cpu().numpy() for name, value in problem.moving.items()}
    every = torch.arange(len(problem.rows), device=problem.device)
    static, offset = (values.cpu().numpy() for values in problem.offsets(every))
    offset = limited(offset, problem.clip.config.descent.dynamic_limit_m)
    static_offset = fit.static_offset.copy()
    static_offset[problem.static.patch.vertices] += static[0]
    turn = rotations.matrix(problem.moving["turn"]) @ rotations.matrix(problem.tracked.rotation)
    found = {name: moving[name] for name in ("expression", "jaw", "translation")}
    found["rotation"] = to_turns(turn.cpu().double().numpy()).astype(np.float32)
    at = int(np.abs(problem.rows - fit.frame).argmin())
    frame_offset = fit.frame_offset.copy()
    frame_offset[problem.dynamic.patch.vertices] = offset[at]
    done = replace(
        fit,
        identity=moving["identity"],
        static_offset=static_offset,
        frame_offset=frame_offset,
        **{name: values[at] for name, values in found.items()},
    )
    if not is_clip:
        return done
    columns = {f"dynamic_{name}": getattr(fit, f"dynamic_{name}").copy() for name in found}
    for name, values in found.items():
        columns[f"dynamic_{name}"][problem.rows] = values
    dynamic = fit.dynamic_offset.copy()
    dynamic[problem.rows] = offset.astype(np.float16)
    return replace(done, dynamic_offset=dynamic, **columns)
