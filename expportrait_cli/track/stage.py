"""Track a photo or a clip: landmarks frame by frame, then identity, expression and pose from them."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from expportrait_cli.artifacts.types import CROP_SIZE, Tracking
from expportrait_cli.config import TrackConfig
from expportrait_cli.head import HeadModel, landmark_model
from expportrait_cli.media.files import content_hash
from expportrait_cli.solve.solver import IDENTITY_PRIOR, ITERATIONS, ITERATIONS_FIRST, TEMPORAL, Solver
from expportrait_cli.solve.state import State, columns_of, distinct_rows, focal_for
from expportrait_cli.track.observe import Observations, observe
from expportrait_cli.track.steady import Start, anchors, hair_points

log = logging.getLogger(__name__)

KEY_FRAMES = 12
DIFFERENT = 1e-3
"""Distance of normalised landmarks below which one more frame tells the identity nothing."""

Progress = Callable[[int, int | None], None]


def track(source: Path, head: HeadModel, config: TrackConfig, progress: Progress) -> Tracking:
    """Track the chosen face. Every frame of the source gets a row; missing faces are filled as `on_missing` says."""
    return solve(source, observe(source, config, progress), head)


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
    tracked = np.flatnonzero(seen.state == 0)
    points = seen.landmarks[tracked].astype(np.float64)
    points = points - points.mean(1, keepdims=True)
    points /= np.linalg.norm(points, axis=(1, 2), keepdims=True)
    return tracked[distinct_rows(points.reshape(len(points), -1), KEY_FRAMES, least=DIFFERENT)]
