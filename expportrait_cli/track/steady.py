"""Anchors that steady the head's pose: the image motion of forehead, temples and hair.

A pose fitted to landmarks leans with the expression (1 to 3 degrees, 1 to 2 % of depth): the face hides it, the hair
shakes. What the camera saw of the hair does not lean, and it lies 5 to 15 cm behind the face, so that together they
tell turns from shifts.
"""

from dataclasses import dataclass

import numpy as np

from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.head import HeadModel, dense
from expportrait_cli.head.model import HEAD
from expportrait_cli.solve.solver import Anchors, Solver
from expportrait_cli.solve.state import State, interocular_px
from expportrait_cli.track.observe import Observations

TURN_DEG = 20.0
"""Turn out of the image plane at which the flow's similarity has lost 63 % of its say."""
SURE = 0.2
"""Trust from which the flow has its full say: it falls with every pixel of disagreement, long before the mean errs."""
WEIGHT = 600.0
DISAGREE_IOD = (0.01, 0.15)
"""Distance between where flow and where the landmarks alone put the hair, at which the flow has lost 63 % of its say,
and what full trust adds to it: smooth hair and fixed shading do not move as the head under them does."""
LOWEST_M = -0.01


def hair_points(head: HeadModel) -> np.ndarray:
    """What a camera in front sees of forehead, scalp and temples, in the head frame, m."""
    verts = dense(head, head.template)
    ahead = vertex_normals(verts, head.dense_faces)[:, 2] > 0.1
    scalp = (head.skinning[:, HEAD] > 0.9) & (verts[:, 1] > LOWEST_M) & (head.facial_mask < 0.6)
    return verts[ahead & scalp & head.part("skin")][::16].numpy().astype(np.float64)


@dataclass(frozen=True)
class Start:
    """The first frame of a shot: solved, and as its landmarks alone pose it."""

    state: State
    rigid: State


def anchors(
    points: np.ndarray, t: int, start: Start, rigid: State, seen: Observations, solver: Solver
) -> Anchors | None:
    """Where the flow says that the first frame's points are in frame `t`; None if it has no say.

    `rigid` is the pose that the landmarks alone give: gating on a pose that anchors have moved would confirm itself.
    """
    turn = rigid.rotation @ start.rigid.rotation.T
    angle = np.degrees(np.arccos(np.clip(turn[2, 2], -1, 1)))
    a, b, c, d = seen.flow[t, 0].astype(np.float64)
    moved, shift = np.array([[a, b], [-b, a]]), np.array([c, d])
    away = _project(points, rigid, solver) - (_project(points, start.rigid, solver) @ moved + shift)
    away_iod = np.linalg.norm(away, axis=1).mean() / interocular_px(seen.landmarks[t])
    trust = float(seen.flow_trust[t, 0])
    least, added = DISAGREE_IOD
    gate = min(1.0, trust / SURE) * np.exp(-((angle / TURN_DEG) ** 2) - (away_iod / (least + added * trust)) ** 2)
    if gate < 0.01:
        return None
    return Anchors(points, _project(points, start.state, solver) @ moved + shift, WEIGHT * gate)


def _project(points: np.ndarray, state: State, solver: Solver) -> np.ndarray:
    cam = points @ state.rotation.T + state.translation
    return cam[:, :2] / cam[:, 2:] * solver.focal_px + solver.centre_px
