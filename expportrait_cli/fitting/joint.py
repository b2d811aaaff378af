"""The paper's optimisation (3.1.2, 3.1.3): a head model's parameters and both offset fields at once (`rendered`).

It starts from the fit of the other qualities, so that the static field is already set, as 3.1.3 requires. Identity and
static offset are fitted first without dynamic offsets, which would otherwise absorb the error of the identity.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from expportrait_cli.artifacts.types import HeadFit, Tracking
from expportrait_cli.detect.estimate import Estimator
from expportrait_cli.fitting.clip import Clip, recentred
from expportrait_cli.fitting.losses import UniformAdam
from expportrait_cli.fitting.parametric import RATES
from expportrait_cli.fitting.patch import Patch, limited
from expportrait_cli.fitting.rendered import Problem, Targets
from expportrait_cli.geometry import rotations
from expportrait_cli.geometry.rotations import to_turns
from expportrait_cli.runtime import Progress

SIZES, FINE = (256, 512), 0.3
"""SIZES: sides of the rendered maps, px, coarse to fine. FINE: share of the steps that use the finest."""
STEPS = 60
"""Steps of the joint optimisation."""
PERSON_STEPS = 40
"""Steps without dynamic offsets (`person_first`), on the smallest maps."""
SHARED, OF_FRAMES = ("identity", "static"), ("expression", "jaw", "turn", "translation", "dynamic")
"""Parameters that all frames share, and parameters that each frame has for itself."""


def descend(
    problem: Problem, targets: Sequence[Targets], progress: Progress, *, steps: int, moves: Sequence[str]
) -> list[float]:
    """Minimise the loss; `problem.moving` ends at the state of least loss on the last targets.

    `targets` are of growing size; `moves` names the parameters that are optimised. Returns the losses on the last
    targets, from the start on.
    """
    moving, head = problem.moving, problem.head
    low, high = head.expression_low.float(), head.expression_high.float()
    rates = {name: rate for name, rate in RATES.items() if name in moves}
    adam = torch.optim.Adam([{"params": [moving[name]], "lr": rate} for name, rate in rates.items()])
    rate_m = problem.clip.config.descent.normals_rate_m
    fields_of = {name: UniformAdam(moving[name], rate_m) for name in ("static", "dynamic") if name in moves}
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
            # The step length falls linearly in the second half: at full length the last steps would oscillate by more
            # than the height of shallow folds.
            for name, own in fields_of.items():
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
    """Mean loss of all frames; its gradient is accumulated batch by batch to bound memory."""
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


def person_first(
    fit: HeadFit,
    clip: Clip,
    dynamic: Patch,
    network: Estimator,
    progress: Progress,
    *,
    share: float,
    steps: int = PERSON_STEPS,
    size: int = SIZES[0],
) -> tuple[HeadFit, Tracking]:
    """Fit identity, static offset and each frame's parameters without dynamic offsets.

    Returns the updated fit and tracking; dynamic offsets must be fitted again afterwards.
    """
    rows = clip.tracked()
    problem = Problem(clip, rows, dynamic, np.zeros((len(rows), len(dynamic.vertices), 3), np.float32), share=share)
    targets = [Targets.of(clip, rows, network, size)]
    descend(problem, targets, progress, steps=steps, moves=(*SHARED, *OF_FRAMES[:-1]))
    identity, static_offset, found = _found(fit, problem)
    columns = {name: getattr(clip.tracking, name).copy() for name in found}
    for name, values in found.items():
        columns[name][rows] = values
    tracking = replace(clip.tracking, identity=identity, **columns)
    at = {name: values[fit.frame] for name, values in columns.items()}
    return replace(fit, identity=identity, static_offset=static_offset, **at), tracking


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
    """Refine a fit of a photo or a clip by the joint optimisation; frames without detected landmarks are unchanged.

    `clip` is the fit's own, `dynamic` the patch of its dynamic offsets. `weights` and `share` define the static part of
    their mean (`clip.recentred`). With `keeps_person` identity and static offset are not changed.
    """
    rows, is_clip = clip.tracked(), bool(len(fit.dynamic_offset))
    start = fit.dynamic_offset[rows].astype(np.float32) if is_clip else fit.frame_offset[None, dynamic.vertices]
    problem = Problem(clip, rows, dynamic, np.ascontiguousarray(start), share=share)
    targets = [Targets.of(clip, rows, network, size) for size in sizes]
    descend(problem, targets, progress, steps=steps, moves=OF_FRAMES if keeps_person else (*SHARED, *OF_FRAMES))
    done = _written(fit, problem, is_clip=is_clip)
    if not is_clip or not share:
        return done
    # The weighted mean of the neutral frames moves to the static field, and is subtracted from all frames.
    more, offset = recentred(done.dynamic_offset.astype(np.float32), weights, share)
    static = done.static_offset.copy()
    static[dynamic.vertices] += more
    frame_offset = done.frame_offset.copy()
    frame_offset[dynamic.vertices] -= more
    return replace(done, static_offset=static, frame_offset=frame_offset, dynamic_offset=offset.astype(np.float16))


@torch.no_grad()
def _found(
    fit: HeadFit, problem: Problem
) -> tuple[Float32[np.ndarray, " K"], Float32[np.ndarray, "V 3"], dict[str, Float32[np.ndarray, "T _"]]]:
    """Identity, static offset, and by name the parameters of the optimised frames."""
    moving = {name: value.detach().cpu().numpy() for name, value in problem.moving.items()}
    static, _ = problem.offsets(torch.arange(0, device=problem.device))
    static_offset = fit.static_offset.copy()
    static_offset[problem.static.patch.vertices] += static[0].cpu().numpy()
    turn = rotations.matrix(problem.moving["turn"]) @ rotations.matrix(problem.tracked.rotation)
    found = {name: moving[name] for name in ("expression", "jaw", "translation")}
    found["rotation"] = to_turns(turn.cpu().double().numpy()).astype(np.float32)
    return moving["identity"], static_offset, found


@torch.no_grad()
def _written(fit: HeadFit, problem: Problem, *, is_clip: bool) -> HeadFit:
    identity, static_offset, found = _found(fit, problem)
    _, offsets = problem.offsets(torch.arange(len(problem.rows), device=problem.device))
    offset = limited(offsets.cpu().numpy(), problem.clip.config.descent.dynamic_limit_m)
    at = int(np.abs(problem.rows - fit.frame).argmin())
    frame_offset = fit.frame_offset.copy()
    frame_offset[problem.dynamic.patch.vertices] = offset[at]
    done = replace(
        fit,
        identity=identity,
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
