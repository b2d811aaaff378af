"""Whose face it is: one identity for a photo, a clip, or several of one person (paper 3.1.2)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float32, Int64

from expportrait_cli.artifacts.types import CROP_SIZE, Tracking
from expportrait_cli.geometry.rotations import from_turns
from expportrait_cli.head import HeadModel, landmark_model
from expportrait_cli.solve.solver import IDENTITY_PRIOR, ITERATIONS, ITERATIONS_FIRST, TEMPORAL, Solver
from expportrait_cli.solve.state import State, columns_of, distinct_rows, nearest_frame

SAME_PERSON = (1.12, 0.1)
"""The driver's identity is taken for the photo's own when it fits the photo's landmarks within this factor and these
percent of the inter-ocular distance,"""
SAME_FRAME_IOD = 0.02
"""or when a frame of the driver has the photo's landmarks up to this."""
KEY_FRAMES = 8
"""Of each clip, for an identity that several share."""


def solver_of(tracking: Tracking, head: HeadModel) -> Solver:
    """Solver in the camera of a tracking."""
    return Solver(landmark_model(head), focal_px=tracking.focal_px, centre_px=CROP_SIZE / 2)


def state_of(tracking: Tracking, frame: int) -> State:
    """Parameters of one frame."""
    columns = (tracking.expression, tracking.jaw, tracking.gaze, tracking.translation)
    psi, jaw, gaze, shift = (c[frame].astype(np.float64) for c in columns)
    return State(psi, jaw, gaze, from_turns(tracking.rotation[frame]), shift)


def neutral_frame(tracking: Tracking) -> int:
    """Seen frame of least expression: the one whose pictures a head is made from."""
    if len(tracking.error) == 1:
        return 0
    effort = np.abs(tracking.expression).sum(-1) + np.abs(tracking.jaw).sum(-1)
    return int((effort + 100.0 * tracking.state).argmin())


def shared_identity(trackings: Sequence[Tracking], head: HeadModel) -> Float32[np.ndarray, " K"]:
    """Identity that several trackings of one person agree on, each by its key frames.

    Their cameras differ: landmarks are scaled about the principal point to one focal length, which a pinhole allows.
    """
    first = trackings[0]
    points = []
    for tracking in trackings:
        keys = key_frames(tracking)
        centred = (tracking.landmarks[keys] - CROP_SIZE / 2) * (first.focal_px / tracking.focal_px)
        points.append(centred + CROP_SIZE / 2)
    identity, _ = solver_of(first, head).identity(np.concatenate(points).astype(np.float32), prior=IDENTITY_PRIOR)
    return identity.astype(np.float32)


def key_frames(tracking: Tracking) -> Int64[np.ndarray, " R"]:
    """Seen frames that differ most in pose and expression."""
    rows = np.flatnonzero(tracking.state == 0)
    values = np.c_[2.0 * tracking.rotation, tracking.expression, tracking.jaw][rows]
    return rows[distinct_rows(values, KEY_FRAMES)]


def is_same_person(tracking: Tracking, driver: Tracking, head: HeadModel) -> bool:
    """Whether the driver's identity explains a photo as well as the photo's own does."""
    if driver.head_model != tracking.head_model:
        return False
    frame = neutral_frame(tracking)
    solver, points = solver_of(tracking, head), tracking.landmarks[frame]
    shared = driver.identity.astype(np.float64)
    factor, slack = SAME_PERSON
    own = solver.error_iod(tracking.identity.astype(np.float64), state_of(tracking, frame), points)
    theirs = solver.error_iod(shared, solver.frame(shared, points, iterations=ITERATIONS_FIRST), points)
    return theirs <= factor * own + slack or nearest_frame(points, driver)[1] < SAME_FRAME_IOD


def with_identity(tracking: Tracking, identity: Float32[np.ndarray, " K"], head: HeadModel) -> Tracking:
    """The same tracking of a head whose identity is given: expression and pose of every frame anew."""
    if np.array_equal(identity, tracking.identity):
        return tracking
    solver, shape = solver_of(tracking, head), identity.astype(np.float64)
    states: list[State] = []
    for t, points in enumerate(tracking.landmarks):
        if t == 0 or tracking.shot[t] != tracking.shot[t - 1]:
            states.append(solver.frame(shape, points, iterations=ITERATIONS_FIRST))
        else:
            states.append(solver.frame(shape, points, start=states[-1], temporal=TEMPORAL, iterations=ITERATIONS))
    errors = [solver.error_iod(shape, s, points) for s, points in zip(states, tracking.landmarks, strict=True)]
    return replace(tracking, identity=identity, **columns_of(states), error=np.asarray(errors, np.float32))
