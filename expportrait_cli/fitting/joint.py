"""The paper's optimisation (3.1.2, 3.1.3): a head model's parameters and both offset fields at once (`rendered`).

It begins where the fit of the other qualities ends: the static field is not zero where it is expected, as 3.1.3 asks.
The person comes first, without dynamic offsets, which would otherwise take up what the identity is wrong by.
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
"""Sides of the rendered maps, px, coarse to fine, and the share of the steps that are taken with the last."""
STEPS = 60
PERSON_STEPS = 40
"""Steps of the person alone, which are taken with the smallest maps."""
SHARED, OF_FRAMES = ("identity", "static"), ("expression", "jaw", "turn", "translation", "dynamic")
"""Parameters that all frames share, and parameters that each frame has for itself."""


def descend(
    problem: Problem, targets: Sequence[Targets], progress: Progress, *, steps: int, moves: Sequence[str]
) -> list[float]:
    """Lower the loss; what moves ends at the state of least loss with the last targets. Those losses, first to last.

    `targets` are of growing size; `moves` names the parameters that are not kept as they are.
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
            # At full length to the end, the last steps swing by more than shallow folds are high.
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
    """Find identity, static offset, and each frame's parameters as if there were no dynamic offsets.

    Returns the fit and the tracking with what was found; dynamic offsets are to be found anew around them.
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
    """Refine a fit of a photo or a clip by the joint optimisation; frames that were not seen keep what they have.

    `clip` is the fit's own, `dynamic` the patch of its dynamic offsets. `weights` and `share` say what of their mean is
    static (`clip.recentred`). With `keeps_person` identity and static offset stay as they are.
    """
    rows, is_clip = clip.tracked(), bool(len(fit.dynamic_offset))
    start = fit.dynamic_offset[rows].astype(np.float32) if is_clip else fit.frame_offset[None, dynamic.vertices]
    problem = Problem(clip, rows, dynamic, np.ascontiguousarray(start), share=share)
    targets = [Targets.of(clip, rows, network, size) for size in sizes]
    descend(problem, targets, progress, steps=steps, moves=OF_FRAMES if keeps_person else (*SHARED, *OF_FRAMES))
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
def _found(
    fit: HeadFit, problem: Problem
) -> tuple[Float32[np.ndarray, " K"], Float32[np.ndarray, "V 3"], dict[str, Float32[np.ndarray, "T _"]]]:
    """Identity, static offset, and the parameters of the frames that took part."""
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
