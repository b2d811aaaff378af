"""Photo or clip to tracking: observe, solve, steady."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from expportrait_cli.artifacts.files import content_hash
from expportrait_cli.artifacts.types import CROP_SIZE, Tracking, surest
from expportrait_cli.config import TrackConfig
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.head import HeadModel, dense, landmark_model
from expportrait_cli.head.model import HEAD
from expportrait_cli.runtime import Progress
from expportrait_cli.solve.solver import IDENTITY_PRIOR, ITERATIONS, ITERATIONS_FIRST, TEMPORAL, Anchors, Solver
from expportrait_cli.solve.state import State, columns_of, distinct_rows, focal_for, interocular_px
from expportrait_cli.tracking.observe import Observations, ShowFaces, observe

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


log = logging.getLogger(__name__)

KEY_FRAMES = 12
DIFFERENT = 1e-3
"""Distance of normalised landmarks below which one more frame tells the identity nothing."""


def track(
    source: Path, head: HeadModel, config: TrackConfig, progress: Progress, show_faces: ShowFaces | None = None
) -> Tracking:
    """Track the chosen face. A row for every frame that is taken; missing faces are filled as `on_missing` says."""
    return solve(source, observe(source, landmark_model(head), config, progress, show_faces), head)


def solve(source: Path, seen: Observations, head: HeadModel) -> Tracking:
    """Identity from key frames, then expression and pose of every frame."""
    model = landmark_model(head)
    keys = key_frames(seen)
    focal_px = float(np.median([focal_for(model, seen.landmarks[k], crop_size=CROP_SIZE) for k in keys]))
    solver = Solver(model, focal_px=focal_px, centre_px=CROP_SIZE / 2)
    identity, _ = solver.identity(seen.landmarks[keys], prior=IDENTITY_PRIOR)
    states = solve_frames(solver, identity, seen, head)
    errors = [solver.error_iod(identity, s, lm) for s, lm in zip(states, seen.landmarks, strict=True)]
    return Tracking(
        source=str(source.resolve()),
        source_hash=content_hash(source),
        head_model=head.name,
        size=np.array(seen.size),
        rate=np.array([seen.rate.numerator, seen.rate.denominator]),
        crop=np.asarray(seen.crop, np.float32),
        focal_px=focal_px,
        landmarks=seen.landmarks,
        identity=identity.astype(np.float32),
        **columns_of(states),
        shoulders=seen.shoulders,
        flow=seen.flow,
        shot=seen.shot,
        state=seen.state,
        error=np.asarray(errors, np.float32),
        doubt=seen.doubt,
        first_frame=seen.first_frame,
    )


def solve_frames(solver: Solver, identity: np.ndarray, seen: Observations, head: HeadModel) -> list[State]:
    """Solve frame by frame; a cut starts afresh."""
    points = hair_points(head)
    states: list[State] = []
    start = None
    for t, landmarks in enumerate(seen.landmarks):
        rigid = solver.rigid(identity, landmarks)
        if start is None or seen.shot[t] != seen.shot[t - 1]:
            states.append(solver.frame(identity, landmarks, iterations=ITERATIONS_FIRST))
            start = Start(states[-1], rigid)
            continue
        still = anchors(points, t, start, rigid, seen, solver)
        states.append(
            solver.frame(identity, landmarks, start=states[-1], temporal=TEMPORAL, iterations=ITERATIONS, anchors=still)
        )
    return states


def key_frames(seen: Observations) -> np.ndarray:
    """Frames that differ most from each other in their landmarks, for the identity."""
    tracked = np.flatnonzero(surest(seen.state, seen.doubt))
    points = seen.landmarks[tracked].astype(np.float64)
    points = points - points.mean(1, keepdims=True)
    points /= np.linalg.norm(points, axis=(1, 2), keepdims=True)
    return tracked[distinct_rows(points.reshape(len(points), -1), KEY_FRAMES, least=DIFFERENT)]
