"""Gauss-Newton solver with bounds for the parameters of a head model, from landmarks."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from expportrait_cli.head.facemesh import FACE_OVAL, IRIS, LID_PAIRS, LIP_PAIRS, LandmarkModel
from expportrait_cli.solve.state import Projection, State, cross_matrix, initial_state, interocular_px, rotate

PASSES = 10
"""Most passes of the active-set method; two or three are usual, and the limit ends cycles."""
SLACK = 1e-9


@dataclass(frozen=True)
class Quadratic:
    """Quadratic cost of a step in one frame, x·H·x / 2 + g·x, N = P + K: `P` own parameters, then `K` shared ones."""

    hessian: Float[np.ndarray, "N N"]
    gradient: Float[np.ndarray, " N"]
    low: Float[np.ndarray, " P"]
    """Lower bound of the step of each own parameter."""
    high: Float[np.ndarray, " P"]
    """Upper bound of the step of each own parameter."""

    def reply(self, held: Float[np.ndarray, " P"]) -> Float[np.ndarray, "P columns"]:
        """Solve for the own step, as an affine function of the shared step; the last column is its constant.

        `held`: fixed value of each own parameter, NaN where it is free.
        """
        own = len(held)
        free = np.isnan(held)
        out = np.zeros((own, len(self.gradient) - own + 1))
        out[~free, -1] = held[~free]
        slope = self.gradient[:own] + self.hessian[:own, :own] @ out[:, -1]
        right = np.concatenate([self.hessian[:own, own:], slope[:, None]], 1)[free]
        out[free] = -np.linalg.solve(self.hessian[:own, :own][free][:, free], right)
        return out

    def hold(
        self, held: Float[np.ndarray, " P"], step: Float[np.ndarray, " P"], shared: Float[np.ndarray, " K"]
    ) -> Float[np.ndarray, " P"]:
        """Update the active set: fix parameters at the bounds that they exceed, or at which the gradient keeps them."""
        push = -(self.hessian[: len(held)] @ np.concatenate([step, shared]) + self.gradient[: len(held)])
        at_low = (step < self.low - SLACK) | ((held == self.low) & (push < 0))
        at_high = (step > self.high + SLACK) | ((held == self.high) & (push > 0))
        return np.where(at_low, self.low, np.where(at_high, self.high, np.nan))


def least(
    frames: list[Quadratic], hessian: Float[np.ndarray, "K K"], gradient: Float[np.ndarray, " K"]
) -> tuple[Float[np.ndarray, " K"], list[Float[np.ndarray, " P"]]]:
    """Find the shared step and each frame's own step that minimise the sum of all costs.

    `hessian` and `gradient` are the additional cost of the shared step. The frames are eliminated (Schur complement);
    the bounds are enforced by a primal-dual active set (Hintermüller, Ito & Kunisch 2002, SIAM J. Optim. 13).
    """
    held = [np.full_like(frame.low, np.nan) for frame in frames]
    shared, steps = np.zeros_like(gradient), []
    for _ in range(PASSES):
        reduced, slope = hessian.copy(), gradient.copy()
        replies = [frame.reply(fixed) for frame, fixed in zip(frames, held, strict=True)]
        for frame, reply in zip(frames, replies, strict=True):
            own = len(reply)
            reduced += frame.hessian[own:, own:] + frame.hessian[own:, :own] @ reply[:, :-1]
            slope += frame.gradient[own:] + frame.hessian[own:, :own] @ reply[:, -1]
        shared = -np.linalg.solve(reduced, slope)
        steps = [reply[:, :-1] @ shared + reply[:, -1] for reply in replies]
        before = held
        held = [frame.hold(fixed, step, shared) for frame, fixed, step in zip(frames, before, steps, strict=True)]
        if all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, held, strict=True)):
            break
    return shared, steps


UNIT_IOD = 0.02
"""Unit of landmark errors, in inter-ocular distances."""
LID_WEIGHT, LIP_WEIGHT = 14.0, 10.0
"""Weights of the differences between opposite points of lids and lips, relative to single landmarks: the size of an
opening matters more than its position."""
IRIS_WEIGHT = 1.0
JAW_PRIOR = np.array([1.0, 40.0, 40.0])
GAZE_PRIOR = 0.05
JAW_RANGE_RAD = (-0.03, 0.6)
IDENTITY_PRIOR = 10.0
"""Stiffness of an identity shared by key frames: a coefficient of 1 costs as much as ten landmarks off by one unit."""
TEMPORAL = 2.0
"""Weight of the squared change of expression, jaw and gaze from the frame before."""
ITERATIONS_FIRST, ITERATIONS = 10, 4
"""Iterations for the first frame of a shot, and for frames that start from the one before."""


@dataclass(frozen=True)
class Anchors:
    """Points of the head with measured positions, which constrain only the pose."""

    points: Float[np.ndarray, "P 3"]
    """Points in the head frame, m."""
    targets_px: Float[np.ndarray, "P 2"]
    """Measured positions, crop px."""
    weight: float
    """Weight of all points together, as a number of landmarks."""


class Solver(Projection):
    """Landmark solver of one camera: `frame` fits one frame, `identity` a common identity of key frames."""

    def __init__(self, model: LandmarkModel, *, focal_px: float, centre_px: float):
        super().__init__(model, focal_px=focal_px, centre_px=centre_px)
        self.inner = np.setdiff1d(np.arange(len(model.template)), [*FACE_OVAL, *IRIS])
        self.pairs = np.array(LID_PAIRS + LIP_PAIRS)
        self.pair_weights = np.sqrt([LID_WEIGHT] * len(LID_PAIRS) + [LIP_WEIGHT] * len(LIP_PAIRS))
        self.prior = np.concatenate([model.expression_prior, JAW_PRIOR, np.full(4, GAZE_PRIOR)])

    def _anchor_rows(self, anchors: Anchors, state: State, unit: float, columns: int):
        """Jacobian and residual of anchors, in the units of the landmarks."""
        turned = anchors.points @ state.rotation.T
        px, by_camera = self.pinhole(turned + state.translation)
        jac = np.zeros((len(px), 2, columns))
        start = self.size - 6
        jac[:, :, start : start + 3] = by_camera @ -cross_matrix(turned)
        jac[:, :, start + 3 : start + 6] = by_camera
        scale = np.sqrt(anchors.weight / len(px)) / unit
        return jac * scale, (px - anchors.targets_px) * scale

    def _system(
        self, points, joints, state, landmarks, *, previous=None, temporal=0.0, with_identity=False, anchors=None
    ) -> Quadratic:
        """Normal equations of one frame, optionally with the identity as shared parameters; bounds of expressions."""
        e = self.model.expression.shape[2]
        unit = UNIT_IOD * interocular_px(landmarks)
        px, full, by_canonical = self.project(points, joints, state)
        if with_identity:
            full = np.concatenate([full, by_canonical @ self.model.identity], -1)
        residual = (px - landmarks) / unit
        # Huber weights, for landmarks that a hand or a strand of hair has displaced.
        length = np.sqrt((residual**2).sum(1))[self.inner]
        robust = np.sqrt(1 / np.maximum(1.0, length / 3.0))[:, None]
        iris = full[IRIS] * (np.sqrt(IRIS_WEIGHT) / unit)
        iris[:, :, :e] = iris[:, :, e : e + 3] = 0
        iris[:, :, e + 7 :] = 0
        (a, b), by_pair = self.pairs.T, self.pair_weights[:, None]
        rows = [
            (full[self.inner] * (robust / unit)[..., None], residual[self.inner] * robust),
            ((full[a] - full[b]) * (by_pair / unit)[..., None], (residual[a] - residual[b]) * by_pair),
            (iris, residual[IRIS] * np.sqrt(IRIS_WEIGHT)),
        ]
        if anchors is not None:
            rows.append(self._anchor_rows(anchors, state, unit, full.shape[2]))
        jacobian = np.concatenate([r[0].reshape(-1, full.shape[2]) for r in rows])
        error = np.concatenate([r[1].ravel() for r in rows])
        hessian, gradient = jacobian.T @ jacobian, jacobian.T @ error
        vector = state.vector()
        n = len(vector)
        hessian[np.arange(n), np.arange(n)] += self.prior + temporal
        gradient[:n] += self.prior * vector
        if previous is not None:
            gradient[:n] += temporal * (vector - previous.vector())
        low, high = np.full(self.size, -np.inf), np.full(self.size, np.inf)
        low[:e], high[:e] = self.model.expression_low - state.expression, self.model.expression_high - state.expression
        return Quadratic(hessian, gradient, low, high)

    def _step(self, state: State, step: Float[np.ndarray, " P"]) -> State:
        e = self.model.expression.shape[2]
        jaw = state.jaw + step[e : e + 3]
        jaw[0] = np.clip(jaw[0], *JAW_RANGE_RAD)
        return State(
            expression=np.clip(state.expression + step[:e], self.model.expression_low, self.model.expression_high),
            jaw=jaw,
            gaze=np.clip(state.gaze + step[e + 3 : e + 7], -0.7, 0.7),
            rotation=rotate(step[e + 7 : e + 10]) @ state.rotation,
            translation=state.translation + step[e + 10 : e + 13],
        )

    def rigid(self, identity: Float[np.ndarray, " K"], landmarks: Float[np.ndarray, "478 2"]) -> State:
        """State of the neutral head with its pose by PnP."""
        return initial_state(
            self.model, self.points(identity), landmarks, focal_px=self.focal_px, centre_px=self.centre_px
        )

    def frame(
        self,
        identity: Float[np.ndarray, " K"],
        landmarks: Float[np.ndarray, "478 2"],
        *,
        rigid: State | None = None,
        start: State | None = None,
        temporal: float = 0.0,
        iterations: int = 5,
        anchors: Anchors | None = None,
    ) -> State:
        """Solve one frame; its expression starts at that of `start`, the frame before. `rigid`: its pose by PnP."""
        points, joints = self.points(identity), self.joints(identity)
        fresh = rigid or self.rigid(identity, landmarks)
        landmarks = landmarks.astype(np.float64)
        # The pose starts at PnP's, which is better than the last frame's after a fast turn.
        state = fresh if start is None else replace(start, rotation=fresh.rotation, translation=fresh.translation)
        weight = temporal if start is not None else 0.0
        for _ in range(iterations):
            system = self._system(points, joints, state, landmarks, previous=start, temporal=weight, anchors=anchors)
            state = self._step(state, least([system], np.zeros((0, 0)), np.zeros(0))[1][0])
        return state

    def identity(
        self, landmarks: Float[np.ndarray, "T 478 2"], *, prior: float, iterations: int = 8
    ) -> tuple[Float[np.ndarray, " K"], list[State]]:
        """Solve the common identity of key frames; also the state of each."""
        k = self.model.identity.shape[2]
        beta = np.zeros(k)
        points = self.points(beta)
        states = [
            initial_state(self.model, points, lm, focal_px=self.focal_px, centre_px=self.centre_px)
            for lm in landmarks.astype(np.float64)
        ]
        for _ in range(iterations):
            points, joints = self.points(beta), self.joints(beta)
            systems = [
                self._system(points, joints, state, lm, with_identity=True)
                for state, lm in zip(states, landmarks.astype(np.float64), strict=True)
            ]
            step, own = least(systems, np.eye(k) * prior, prior * beta)
            beta = beta + step
            states = [self._step(*pair) for pair in zip(states, own, strict=True)]
        return beta, states

    def error_iod(
        self, identity: Float[np.ndarray, " K"], state: State, landmarks: Float[np.ndarray, "478 2"]
    ) -> float:
        """Mean distance over the inner face (no oval, no irises), percent of the inter-ocular distance."""
        distance = np.linalg.norm(self.predict(identity, state) - landmarks, axis=1)
        return float(distance[self.inner].mean() / interocular_px(landmarks) * 100)
