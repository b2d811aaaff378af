"""The driver's performance on the person's head (paper 3.2)."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float, Float32

from expportrait_cli.artifacts.types import Curves, HeadFit, Tracking
from expportrait_cli.config import TransferConfig
from expportrait_cli.errors import UsageError
from expportrait_cli.head import HeadModel
from expportrait_cli.head.finer import Finer
from expportrait_cli.head.fitted import posed_meshes
from expportrait_cli.head.spread import LandmarkSpread
from expportrait_cli.solve.solver import JAW_RANGE_RAD
from expportrait_cli.transfer.controls import expression_mask, moves_jaw, parse_regions, smooth
from expportrait_cli.transfer.dynamic import Copied, Learned, Lifted, Offsets
from expportrait_cli.transfer.motion import Motion, head_motion, landmark_steps, neutral_cost, torso_motion
from expportrait_cli.transfer.network import Trained

BATCH = 16
LIMITED_DEG = 2.0
"""Degrees taken from a turn at which the driver's own landmarks have lost 63 % of their say."""


@dataclass(frozen=True)
class Performance:
    """What moves the person's head: the editable curves, and what the driver's landmarks say beyond them."""

    curves: Curves
    steps: Float32[np.ndarray, "T 478 2"]
    """Steps of the landmarks beyond the model, px of the person's crop."""
    neutral: int
    """Driver frame that counts as neutral."""
    offsets: Offsets | None
    """Dynamic offsets beyond the photo's own."""
    trained: Trained | None
    """The network that they come from."""

    @property
    def outside(self) -> float:
        """Share of the frames whose expression lies beyond what the transfer network was trained on."""
        return self.trained.outside(self.curves.expression, self.curves.jaw) if self.trained is not None else 0.0


def same_person(head_fit: HeadFit, tracking: Tracking) -> bool:
    """Whether photo and driver share an identity: then the driver's landmarks are the person's own."""
    return np.array_equal(head_fit.identity, tracking.identity)


def transfer(
    head_fit: HeadFit,
    tracking: Tracking,
    head: HeadModel,
    config: TransferConfig,
    *,
    trained: Trained | None = None,
    driver: HeadFit | None = None,
    mesh: Finer | None = None,
) -> Performance:
    """Put a performance onto a head, relative to a neutral driver frame or absolute.

    For the same person the two modes are one: the neutral frame is then the one most like the photo.
    Dynamic offsets come from the network `trained` with the method `learned`, unless the driver is the person; with
    `direct` from `driver`, the driver's own fit, or from the driver's landmarks without one. `mesh` is given where
    `head` is a finer one than the network's.
    """
    regions = parse_regions(config.region)
    same = same_person(head_fit, tracking)
    cost = neutral_cost(head_fit, tracking, same=same)
    neutral = _neutral(config, cost)
    relative = same or not config.absolute
    expression, jaw, gaze = _face_curves(head_fit, tracking, head, config, neutral if relative else None, same=same)
    motion = Motion.between(head_fit, tracking, neutral, cost)
    scale = config.pose_scale * ("pose" in regions)
    rotation, translation, taken_deg = head_motion(
        motion, tracking, scale=scale, absolute=not relative, limit_deg=config.turn_limit_deg
    )
    torso_rotation, torso_translation = torso_motion(motion, tracking, head_fit, head, scale=scale)
    columns = (expression, jaw, gaze, rotation, translation, torso_rotation, torso_translation)
    curves = Curves(*(smooth(np.asarray(c), config.smooth).astype(np.float32) for c in columns))
    whole = same and regions >= {"pose", "expression", "gaze"} and config.pose_scale == config.expression_scale == 1
    # Where the turn was limited the driver's landmarks lie on another side of the face.
    direct = np.exp(-((taken_deg / LIMITED_DEG) ** 2)) * (whole and config.method != "none")
    # Of landmarks; what a network predicts follows the scaled expression by itself.
    strength = expression_mask(head.expression_names, regions).max() * config.expression_scale
    offsets: Offsets | None = None
    # The person's own landmarks know more of their face than a network does.
    used = trained if config.method == "learned" and not same else None
    if used is not None:
        learned = Learned(used, head_fit, head)
        offsets = learned if mesh is None else Lifted(learned, mesh)
    elif config.method == "direct" and driver is not None:
        # They belong to no region: the whole face has them, or none.
        whole_face = min(config.expression_scale, 1.0) * ("expression" in regions)
        offsets = Copied.of(driver, neutral, head_fit, head, strength=whole_face)
    steps = landmark_steps(
        head_fit,
        tracking,
        head,
        curves,
        motion,
        direct=direct,
        strength=strength * (config.method != "none"),
        copied=config.method == "direct" and driver is None,
        own=_landmarks_moved(head, offsets, curves),
    )
    return Performance(curves, smooth(steps, config.smooth).astype(np.float32), neutral, offsets, used)


def _face_curves(
    head_fit: HeadFit, tracking: Tracking, head: HeadModel, config: TransferConfig, neutral: int | None, *, same: bool
) -> tuple[Float[np.ndarray, "T E"], Float[np.ndarray, "T 3"], Float[np.ndarray, "T 4"]]:
    """Expression, jaw and gaze: the driver's change from a neutral frame, or their own where there is none."""
    regions = parse_regions(config.region)
    mask = expression_mask(head.expression_names, regions) * config.expression_scale
    psi, jaw, gaze = (getattr(tracking, name).astype(np.float64) for name in ("expression", "jaw", "gaze"))
    if neutral is not None:
        psi, jaw, gaze = psi - psi[neutral], jaw - jaw[neutral], gaze - gaze[neutral]
    relative = neutral is not None
    keep = 1.0 if relative else 1 - (mask > 0)
    jaw_weight = config.expression_scale * moves_jaw(regions)
    gaze_weight = float("gaze" in regions)
    step = mask * psi
    if relative and not same:
        # A smile on a smile is not twice a smile: the more a unit is at work, the less there is to add.
        step = np.where(step > 0, step * (1 - head_fit.expression).clip(0, 1), step)
    low, high = (bound.cpu().numpy() for bound in (head.expression_low, head.expression_high))
    expression = np.clip(keep * head_fit.expression + step, low, high)
    jaw = head_fit.jaw * (1.0 if relative or not jaw_weight else 0.0) + jaw_weight * jaw
    jaw[:, 0] = np.clip(jaw[:, 0], *JAW_RANGE_RAD)
    gaze = head_fit.gaze * (1.0 if relative or not gaze_weight else 0.0) + gaze_weight * gaze
    return expression, jaw, gaze


def _landmarks_moved(head: HeadModel, offsets: Offsets | None, curves: Curves) -> Float32[np.ndarray, "T 478 3"]:
    """Canonical steps of the landmarks by dynamic offsets, m."""
    count = len(curves.jaw)
    moved = np.zeros((count, len(head.landmark_triangles), 3), np.float32)
    if offsets is None:
        return moved
    rows = np.full(len(head.facial_mask), -1)
    rows[offsets.vertices] = np.arange(len(offsets.vertices))
    corners, weights = rows[head.landmark_triangles.numpy()], head.landmark_barycentrics.numpy()
    weights = np.where(corners >= 0, weights, 0.0)
    for part, own in _batches(curves):
        step = offsets(part, own)
        moved[part] = np.einsum("lk,tlkc->tlc", weights, step[:, corners])
    return moved


def _batches(curves: Curves) -> Iterator[tuple[slice, Curves]]:
    """A few frames of the curves at a time: memory does not grow with the clip."""
    for begin in range(0, len(curves.jaw), BATCH):
        rows = slice(begin, begin + BATCH)
        yield rows, Curves(*(getattr(curves, field.name)[rows] for field in fields(Curves)))


def posed_frames(head_fit: HeadFit, head: HeadModel, performance: Performance) -> Iterator[Float32[np.ndarray, "V 3"]]:
    """Vertices of the person's head in every frame, in the photo's crop camera."""
    spread, offsets = LandmarkSpread(head, head_fit.identity), performance.offsets
    for rows, curves in _batches(performance.curves):
        beyond = None if offsets is None else (offsets.vertices, offsets(rows, curves))
        moved = spread(performance.steps[rows]) / head_fit.focal_px
        for verts, steps in zip(posed_meshes(head_fit, head, curves, beyond), moved, strict=True):
            verts[spread.vertices, :2] += steps * verts[spread.vertices, 2:]
            yield verts


def _neutral(config: TransferConfig, cost: Float[np.ndarray, " T"]) -> int:
    if config.neutral_frame == "auto":
        return int(cost.argmin())
    if not config.neutral_frame.isdecimal() or int(config.neutral_frame) >= len(cost):
        raise UsageError(
            f"--neutral-frame {config.neutral_frame!r}: expected auto or one of the frames 0 to {len(cost) - 1}."
        )
    return int(config.neutral_frame)
