"""Steady the head's pose by the image motion of hair and forehead.

A fitted pose leans with the expression (1 to 3 degrees, 1 to 2 % of depth), which would shake the hair. What the
camera sees of hair and forehead does not: a similarity measured there corrects roll, depth and shift.
"""

from dataclasses import replace

import numpy as np

from expportrait_cli.geometry.rotations import rodrigues
from expportrait_cli.head import HeadModel
from expportrait_cli.head.solve import Solver, State
from expportrait_cli.track.observe import Observations

TURN_DEG = 14.0
"""Turn out of the image plane at which the flow's similarity has lost 63 % of its say."""
DEPTH_LIMIT = 0.05


def steady(states: list[State], seen: Observations, solver: Solver, head: HeadModel) -> list[State]:
    """Correct each frame's pose against the first frame of its shot."""
    points = _forehead(head)
    out = list(states)
    for t, state in enumerate(states):
        first = int(np.argmax(seen.shot == seen.shot[t]))
        trust = float(seen.flow_trust[t, 0])
        turn = state.rotation @ states[first].rotation.T
        angle = np.degrees(np.arccos(np.clip(turn[2, 2], -1, 1)))
        gate = trust * np.exp(-((angle / TURN_DEG) ** 2))
        if t == first or gate < 0.02:
            continue
        a, b, c, d = seen.flow[t, 0].astype(np.float64)
        start = _project(points, states[first], solver)
        measured = start @ np.array([[a, b], [-b, a]]) + [c, d]
        predicted = _project(points, state, solver)
        out[t] = _correct(state, predicted, measured, gate, solver)
    return out


def _forehead(head: HeadModel) -> np.ndarray:
    """Front of the scalp, forehead and temples in the head frame."""
    verts = head.template.numpy()
    mask = (verts[:, 1] > 0.03) & (verts[:, 2] > 0.0) & (np.abs(verts[:, 0]) < 0.085)
    return verts[mask][::4].astype(np.float64)


def _project(points, state: State, solver: Solver):
    cam = points @ state.rotation.T + state.translation
    return cam[:, :2] / cam[:, 2:] * solver.focal_px + solver.centre_px


def _correct(state: State, predicted, measured, gate: float, solver: Solver) -> State:
    p, m = predicted - predicted.mean(0), measured - measured.mean(0)
    norm = (p**2).sum()
    a, b = (p * m).sum() / norm, (p[:, 0] * m[:, 1] - p[:, 1] * m[:, 0]).sum() / norm
    roll = gate * np.arctan2(b, a)
    size = np.clip(np.hypot(a, b), 1 - DEPTH_LIMIT, 1 + DEPTH_LIMIT) ** gate
    # Roll and zoom about the forehead's centre, then shift it: the same similarity, as a rigid motion.
    turn = rodrigues(np.array([0.0, 0.0, roll]))
    centre = predicted.mean(0)
    goal = centre + gate * (measured.mean(0) - centre)
    depth = state.translation[2] / size
    origin = state.translation[:2] / state.translation[2] * solver.focal_px + solver.centre_px
    origin = goal + size * (turn[:2, :2] @ (origin - centre))
    shift = np.r_[(origin - solver.centre_px) / solver.focal_px * depth, depth]
    return replace(state, rotation=turn @ state.rotation, translation=shift)


