"""Faces with known parameters, made by the head model."""

from dataclasses import replace

import numpy as np

from expportrait_cli.artifacts.types import CROP_SIZE, Tracking
from expportrait_cli.geometry.rotations import from_turns, to_turns
from expportrait_cli.head import HeadModel, landmark_model
from expportrait_cli.solve.solver import Solver
from expportrait_cli.solve.state import State


def quiet(done: int, total: int | None) -> None:
    """Show no progress."""


def units(head: HeadModel, **values: float) -> np.ndarray:
    """Expression with some units at work."""
    psi = np.zeros(len(head.expression_names))
    for name, value in values.items():
        psi[head.expression_names.index(name)] = value
    return psi


def make_state(
    head: HeadModel,
    *,
    jaw: tuple[float, float, float] = (0, 0, 0),
    gaze: tuple[float, float, float, float] = (0, 0, 0, 0),
    turn: tuple[float, float, float] = (0, 0, 0),
    translation: tuple[float, float, float] = (0.0, -0.02, 1.1),
    **values: float,
) -> State:
    """One frame's parameters: expression units by their names, the head's turn away from frontal."""
    return State(
        units(head, **values),
        np.array(jaw, float),
        np.array(gaze, float),
        from_turns(np.array(turn, float)),
        np.array(translation, float),
    )


def state_of(tracking: Tracking, frame: int) -> State:
    """Parameters of one tracked frame."""
    columns = (tracking.expression, tracking.jaw, tracking.gaze)
    psi, jaw, gaze = (column[frame].astype(float) for column in columns)
    return State(psi, jaw, gaze, from_turns(tracking.rotation[frame]), tracking.translation[frame].astype(float))


def performed(tracking: Tracking, head: HeadModel, states: list[State], *, identity=None) -> Tracking:
    """A clip of the photo's person, or another identity, in the given states: exact landmarks, still flow.

    The photo's own fit residual is added to every frame, so that a frame in the photo's state has its landmarks.
    """
    own = tracking.identity if identity is None else np.asarray(identity, np.float32)
    solver = Solver(landmark_model(head), focal_px=tracking.focal_px, centre_px=CROP_SIZE / 2)
    exact = np.stack([solver.predict(own.astype(float), state) for state in states])
    residual = tracking.landmarks[0] - solver.predict(tracking.identity.astype(float), state_of(tracking, 0))
    count = len(states)

    def rows(values):
        return np.stack(values).astype(np.float32)

    return replace(
        tracking,
        rate=np.array([25, 1]),
        landmarks=(exact + residual).astype(np.float32),
        identity=own,
        expression=rows([s.expression for s in states]),
        jaw=rows([s.jaw for s in states]),
        gaze=rows([s.gaze for s in states]),
        rotation=to_turns(np.stack([s.rotation for s in states])).astype(np.float32),
        translation=rows([s.translation for s in states]),
        shoulders=np.repeat(tracking.shoulders, count, 0),
        flow=np.tile(np.float32([1, 0, 0, 0]), (count, 2, 1)),
        shot=np.zeros(count, np.int64),
        state=np.zeros(count, np.uint8),
        error=np.ones(count, np.float32),
        doubt=np.zeros(count, np.float32),
    )
