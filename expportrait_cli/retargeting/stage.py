"""Expression transfer: motion of the person's head from a driver's tracking (paper 3.2)."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Float, Float32
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from expportrait_cli.artifacts.types import Curves, HeadFit, Tracking
from expportrait_cli.config import TransferConfig
from expportrait_cli.errors import UsageError
from expportrait_cli.head import HeadModel
from expportrait_cli.head.facemesh import BROWS, RIM_RIDGE, LandmarkSpread
from expportrait_cli.head.finer import Finer
from expportrait_cli.head.fitted import neutral_mesh, posed_meshes
from expportrait_cli.retargeting.face import (
    Copied,
    Folded,
    Neutral,
    Offsets,
    Refitted,
    expression_map,
    moves_jaw,
    parse_regions,
)
from expportrait_cli.retargeting.gaps import Rest, at_rest, photo_state, states
from expportrait_cli.retargeting.motion import Motion, at_limit, head_motion, landmark_steps, neutral_cost, torso_motion
from expportrait_cli.retargeting.network import Trained, on_device
from expportrait_cli.retargeting.steady import HeldBack, steady
from expportrait_cli.runtime import best_device
from expportrait_cli.solve.solver import JAW_RANGE_RAD


def smooth(values: Float[np.ndarray, "T *C"], sigma_frames: float) -> Float[np.ndarray, "T *C"]:
    """Gaussian smoothing over time; `sigma_frames` 0 returns the values unchanged."""
    return gaussian_filter1d(values, sigma_frames, axis=0, mode="nearest") if sigma_frames > 0 else values


class Learned:
    """Offsets from the network, as a function of the person's neutral head, expression and jaw.

    The result of a frame is bit-identical for any order and number of frames in a call.
    """

    def __init__(self, trained: Trained, head_fit: HeadFit, head: HeadModel):
        """Compute the basis of this person's dynamic offsets once, on the GPU if there is one."""
        network, self._device = trained.network, best_device()
        self.vertices, self._network = network.face.vertices, network
        with torch.inference_mode():
            neutral = Neutral.of(neutral_mesh(head_fit, head)[self.vertices], network.face.to("cpu"))
            self._neutral = neutral.to(self._device)
            on_device(network, self._device)
            self._code = network.code(self._neutral)
            self._rows = torch.arange(len(self.vertices), device=self._device)
            self._fields = None
            if network.config.kind != "concat":
                self._fields = network.flat(network.fields(self._neutral, self._code, self._rows))
            self._photo = self._frames(head_fit.expression[None], head_fit.jaw[None])

    def __call__(self, rows: slice, curves: Curves) -> Float32[np.ndarray, "T P 3"]:
        """See `Offsets`."""
        with torch.inference_mode():
            frames = [
                self._frames(curves.expression[begin : begin + BATCH], curves.jaw[begin : begin + BATCH]) - self._photo
                for begin in range(0, len(curves.jaw), BATCH)
            ]
        return torch.cat(frames).cpu().numpy()

    def _frames(self, psi: np.ndarray, jaw: np.ndarray) -> Float32[Tensor, "T P 3"]:
        # The order of sums in a matrix product depends on its size, so all products are padded to `BATCH`.
        count = len(psi)
        given = [torch.from_numpy(each.astype(np.float32)).to(self._device) for each in (psi, jaw)]
        if self._fields is None:
            padded = [torch.cat([each, each.new_zeros(BATCH - count, each.shape[1])]) for each in given]
            return self._network.offsets(self._neutral, self._code, *padded, rows=self._rows)[:count]
        one_by_one = zip(*(each.split(1) for each in given), strict=True)
        weights = torch.cat([self._network.coefficients(self._code, *frame) for frame in one_by_one])
        padded = torch.cat([weights, weights.new_zeros(BATCH - count, weights.shape[1])])
        return self._network.mixed_flat(self._fields, padded)[:count]


class Lifted:
    """Offsets interpolated to a head with two subdivisions (`head.finer`)."""

    def __init__(self, offsets: Offsets, mesh: Finer):
        """Find the finer vertices that depend on those that move."""
        self._offsets = offsets
        near = mesh.lift.tocsc()[:, offsets.vertices]
        self.vertices = np.flatnonzero(np.asarray(near.sum(1))[:, 0] > 0)
        self._carry = mesh.carry[self.vertices][:, offsets.vertices].astype(np.float32)

    def __call__(self, rows: slice, curves: Curves) -> Float32[np.ndarray, "T P 3"]:
        """See `Offsets`."""
        return np.stack([self._carry @ step for step in self._offsets(rows, curves)])


BATCH = 16
SAME_TURN_DEG = 3.0
"""Rotation between the photo and the driver's most similar frame, degrees, below which they count as one picture."""
LIMITED_DEG = 2.0
"""Reduction of a rotation by its limit, degrees, at which the weight of the driver's landmarks is 1/e."""


@dataclass(frozen=True)
class Beyond:
    """Sources of motion beyond the head model's expressions."""

    trained: Trained | None = None
    """The transfer network."""
    driver: HeadFit | None = None
    """The driver's own fit, whose offsets are copied, or whose folds are added."""
    mesh: Finer | None = None
    """Finer mesh of the head, if it has one subdivision more than the mesh that the transfer network works on."""


@dataclass(frozen=True)
class Performance:
    """Motion of the person's head: editable curves, and offsets beyond them."""

    curves: Curves
    steps: Float32[np.ndarray, "T 478 2"]
    """Offsets of the landmarks beyond the model, px of the person's crop."""
    neutral: int
    """Driver frame that counts as neutral."""
    offsets: Offsets | None
    """Source of dynamic offsets relative to the photo's own."""
    trained: Trained | None
    """The network that `offsets` come from."""
    held: HeldBack
    """Parts of the driver's motion that were limited or not measured."""

    @property
    def outside(self) -> float:
        """Share (0..1) of the frames whose expression lies outside the network's training range; 0 without network."""
        return self.trained.outside(self.curves.expression, self.curves.jaw) if self.trained is not None else 0.0


def same_person(head_fit: HeadFit, tracking: Tracking) -> bool:
    """True if the head's identity comes from the driver's tracking: the driver then shows the same person."""
    return head_fit.identity_from == tracking.fingerprint


def transfer(
    head_fit: HeadFit,
    tracking: Tracking,
    head: HeadModel,
    config: TransferConfig,
    beyond: Beyond | None = None,
) -> Performance:
    """Transfer the driver's motion to a head: expression and pose each relative to a neutral driver frame, or absolute.

    For the same person both are equivalent: the neutral frame is then the one most like the photo. If the driver is the
    person, dynamic offsets and expressions are those fitted to the driver's frames; without such a fit they follow the
    driver's landmarks. For another person, the method `learned` takes dynamic offsets from the network of `beyond`, and
    adds the folds of the driver's own fit; `direct` copies the fit's offsets (paper, Fig. 8), or without a fit follows
    the driver's landmarks.

    Raises:
        UsageError: an unknown region, or a neutral frame that the driver does not have.
    """
    if config.representation != "full":
        config, beyond = replace(config, method="none"), None
    beyond = beyond or Beyond()
    regions = parse_regions(config.region)
    same = same_person(head_fit, tracking)
    whole = same and regions >= {"pose", "expression", "gaze"} and config.pose_scale == config.expression_scale == 1
    # Frames that were fitted with this head are used as they are: neither relative to the photo, nor by landmarks.
    refitted = beyond.driver if whole and config.method != "none" else None
    if refitted is not None:
        # The pose must be the one that expressions and offsets were fitted with.
        tracking = replace(tracking, rotation=refitted.dynamic_rotation, translation=refitted.dynamic_translation)
    elif config.neutral_frame != "none":
        # `neutral_frame=none` is the paper's protocol, in which the tracking is used unchanged.
        tracking = steady(tracking, expression_map(head, frozenset({"eyes"})))
    cost = neutral_cost(head_fit, tracking, head, same=same)
    neutral = _neutral(config, cost)
    motion = Motion.between(head_fit, tracking, neutral, cost)
    scale = config.pose_scale * ("pose" in regions)
    is_own = (
        config.pose == "absolute" if not same else refitted is not None and motion.turn_deg(tracking) < SAME_TURN_DEG
    )
    rotation, translation, taken_deg, taken_px = head_motion(
        motion, tracking, scale=scale, absolute=is_own, limit_deg=config.turn_limit_deg, framed=not same
    )
    torso_rotation, torso_translation = torso_motion(
        motion, tracking, head_fit, head, translation=translation, taken_px=taken_px, scale=scale
    )
    if refitted is not None:
        face = (refitted.dynamic_expression, refitted.dynamic_jaw, refitted.dynamic_gaze)
    else:
        face = _face_curves(head_fit, tracking, head, config, neutral, same=same)
    columns = (*face, rotation, translation, torso_rotation, torso_translation)
    curves = Curves(*(smooth(np.asarray(c), config.smooth).astype(np.float32) for c in columns))
    # Where the rotation was limited, the driver's landmarks do not fit the person's pose.
    direct = np.exp(-((taken_deg / LIMITED_DEG) ** 2)) * (whole and config.method != "none")
    absolute = config.expression == "absolute" and not same
    rest = Rest.neutral(head_fit, tracking, head, neutral) if absolute else Rest.seen(head_fit, tracking, neutral)
    # Strength of the landmarks' offsets; the network's output already follows the scaled expression.
    strength = config.expression_scale * bool(regions & {"expression", "lips", "eyes"})
    follows = bool(strength > 0 and config.method != "none")
    offsets, used = _offsets(head_fit, head, config, beyond, neutral, same=same)
    steps = np.zeros((len(cost), 478, 2))
    if refitted is None:
        copied = np.full(len(head.landmark_triangles), float(config.method == "direct" and beyond.driver is None))
        if follows and regions & {"expression", "eyes"}:
            # The model's expressions reproduce less than half of the motion of brows.
            copied[BROWS] = 1.0
        steps = landmark_steps(
            head_fit,
            tracking,
            head,
            curves,
            motion,
            direct=direct,
            rest=rest,
            strength=strength * (config.method != "none"),
            eyes=follows and (not absolute or bool(regions & {"expression", "eyes"})),
            lips=follows and absolute and bool(regions & {"expression", "lips"}),
            copied=copied,
            own=_landmarks_moved(head, offsets, curves),
        )
    held = HeldBack.of(taken_deg, taken_px, tracking, head_fit, limited=at_limit(steps, head_fit))
    return Performance(curves, smooth(steps, config.smooth).astype(np.float32), neutral, offsets, used, held)


def _offsets(
    head_fit: HeadFit, head: HeadModel, config: TransferConfig, beyond: Beyond, neutral: int, *, same: bool
) -> tuple[Offsets | None, Trained | None]:
    """Source of dynamic offsets relative to the photo's own, and the network that they come from."""
    driver = beyond.driver
    # Fitted offsets are not separated by region: they are used for the whole face, or not at all.
    share = min(config.expression_scale, 1.0) * ("expression" in parse_regions(config.region))
    if same:
        # Fits of the person's own frames are more exact than the network.
        takes = driver is not None and config.method != "none" and share > 0
        return (Refitted(driver, head_fit, share), None) if takes and driver is not None else (None, None)
    match config.method:
        case "direct":
            copied = driver is not None
            return (Copied.of(driver, neutral, head_fit, head, strength=share) if copied else None), None
        case "learned":
            offsets: Offsets | None = None
            if beyond.trained is not None:
                offsets = Learned(beyond.trained, head_fit, head)
                offsets = offsets if beyond.mesh is None else Lifted(offsets, beyond.mesh)
            if driver is not None and config.folds * share > 0:
                offsets = Folded(offsets, driver, neutral, head_fit, head, config.folds * share)
            return offsets, beyond.trained
    return None, None


def _face_curves(
    head_fit: HeadFit, tracking: Tracking, head: HeadModel, config: TransferConfig, neutral: int, *, same: bool
) -> tuple[Float[np.ndarray, "T E"], Float[np.ndarray, "T 3"], Float[np.ndarray, "T 4"]]:
    """Expression, jaw and gaze (rad) of each frame.

    Absolute: the driver's, on the person's neutral face; relative: the driver's change, added to the photo's.
    """
    regions = parse_regions(config.region)
    chosen = expression_map(head, regions) * bool(config.expression_scale)
    jaw_weight, gaze_weight = config.expression_scale * moves_jaw(regions), float("gaze" in regions)
    photo, shown = photo_state(head_fit), states(tracking)[neutral]
    low, high = (bound.cpu().numpy() for bound in (head.expression_low, head.expression_high))
    start = photo
    if config.expression == "absolute" and not same:
        start, shown = at_rest(photo, head), at_rest(shown, head)
        if config.neutral_frame == "none":
            start, shown = (
                replace(s, expression=0 * s.expression, jaw=0 * s.jaw, gaze=0 * s.gaze) for s in (start, shown)
            )
    step = tracking.expression - shown.expression
    if not same:
        # A smile added to a smile must not be twice a smile: the increase of a unit is scaled to the range that is
        # left. Signed components have no such limit.
        room = ((high - start.expression) / np.maximum(high - shown.expression, 1e-6)).clip(0, 1)
        step = np.where((step > 0) & (low >= 0), step * room, step)
    begin = photo.expression + chosen @ (start.expression - photo.expression)
    expression = np.clip(begin + config.expression_scale * step @ chosen.T, low, high)
    jaw = (start.jaw if jaw_weight else photo.jaw) + jaw_weight * (tracking.jaw - shown.jaw)
    jaw[:, 0] = np.clip(jaw[:, 0], *JAW_RANGE_RAD)
    gaze = (start.gaze if gaze_weight else photo.gaze) + gaze_weight * (tracking.gaze - shown.gaze)
    return expression, jaw, gaze


def _landmarks_moved(head: HeadModel, offsets: Offsets | None, curves: Curves) -> Float32[np.ndarray, "T 478 3"]:
    """Displacement of the landmarks by dynamic offsets, canonical, m."""
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
    """Yield the curves in batches of `BATCH` frames, to bound memory."""
    for begin in range(0, len(curves.jaw), BATCH):
        rows = slice(begin, begin + BATCH)
        yield rows, Curves(*(getattr(curves, field.name)[rows] for field in fields(Curves)))


def posed_frames(head_fit: HeadFit, head: HeadModel, performance: Performance) -> Iterator[Float32[np.ndarray, "V 3"]]:
    """Yield the vertices of the person's head in every frame, in the photo's crop camera, m."""
    spread, offsets = LandmarkSpread(head, head_fit.identity, rim_ridge=RIM_RIDGE), performance.offsets
    for rows, curves in _batches(performance.curves):
        beyond = None if offsets is None else (offsets.vertices, offsets(rows, curves))
        moved = spread(performance.steps[rows]) / head_fit.focal_px
        for verts, steps in zip(posed_meshes(head_fit, head, curves, beyond), moved, strict=True):
            verts[spread.vertices, :2] += steps * verts[spread.vertices, 2:]
            yield verts


def check_neutral(config: TransferConfig) -> None:
    """Raise UsageError unless `neutral_frame` is auto, a number, or none with `expression=absolute`."""
    frame = config.neutral_frame
    if frame not in ("auto", "none") and not (frame.isascii() and frame.isdecimal()):
        raise UsageError(f"`neutral_frame={frame!r}`: expected auto, none, or the number of a frame from 0.")
    if frame == "none" and config.expression == "relative":
        raise UsageError(
            "`neutral_frame=none` is only for `expression=absolute`: a relative expression is a change from a neutral "
            "frame. Give the number of that frame, or auto."
        )


def _neutral(config: TransferConfig, cost: Float[np.ndarray, " T"]) -> int:
    check_neutral(config)
    if config.neutral_frame in ("auto", "none"):
        return int(cost.argmin())
    if int(config.neutral_frame) >= len(cost):
        raise UsageError(f"`neutral_frame={config.neutral_frame!r}`: expected one of the frames 0 to {len(cost) - 1}.")
    return int(config.neutral_frame)
