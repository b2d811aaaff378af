"""Anchors that steady the head's pose: the image motion of forehead, temples and hair.

A pose fitted to landmarks leans with the expression (1 to 3 degrees, 1 to 2 % of depth): the face hides it, the hair
shakes. What the camera saw of the hair does not lean, and it lies 5 to 15 cm behind the face, so that together they
tell turns from shifts.
"""

import numpy as np

from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.head import HeadModel, dense
from expportrait_cli.head.model import HEAD
from expportrait_cli.head.solve import Anchors, Solver, State
from expportrait_cli.track.observe import Observations

TURN_DEG = 14.0
"""Turn out of the image plane at which the flow's similarity has lost 63 % of its say."""
SURE = 0.2
"""Trust from which the flow has its full say: it falls with every pixel of disagreement, long before the mean errs."""
WEIGHT = 600.0
LOWEST_M = -0.01


def hair_points(head: HeadModel) -> np.ndarray:
    """What a camera in front sees of forehead, scalp and temples, in the head frame, m."""
    verts = dense(head, head.template)
    ahead = vertex_normals(verts, head.dense_faces)[:, 2] > 0.1
    scalp = (head.skinning[:, HEAD] > 0.9) & (verts[:, 1] > LOWEST_M) & (head.facial_mask < 0.6)
    return verts[ahead & scalp & head.part("skin")][::16].numpy().astype(np.float64)


def anchors(
    points: np.ndarray, t: int, first: int, first_state: State, last_state: State, seen: Observations, solver: Solver
) -> Anchors | None:
    """Where the flow says that the first frame's points are in frame `t`; None if it has no say."""
    turn = last_state.rotation @ first_state.rotation.T
    angle = np.degrees(np.arccos(np.clip(turn[2, 2], -1, 1)))
    gate = min(1.0, float(seen.flow_trust[t, 0]) / SURE) * np.exp(-((angle / TURN_DEG) ** 2))
    if t == first or gate < 0.01:
        return None
    a, b, c, d = seen.flow[t, 0].astype(np.float64)
    cam = points @ first_state.rotation.T + first_state.translation
    start = cam[:, :2] / cam[:, 2:] * solver.focal_px + solver.centre_px
    return Anchors(points, start @ np.array([[a, b], [-b, a]]) + [c, d], WEIGHT * gate)
