"""The landmark solver against numeric derivatives, and against faces whose parameters are known."""

from dataclasses import replace

import numpy as np
import pytest
from support.performers import make_state, performed, state_of, units

from expportrait_cli.geometry.rotations import logarithm
from expportrait_cli.head.facemesh import FACE_OVAL, LID_PAIRS, LIP_PAIRS
from expportrait_cli.solve.solver import JAW_RANGE_RAD, Anchors, Solver
from expportrait_cli.solve.state import State, eye, focal_for, interocular_px, nearest_frame, rotate

pytest_plugins = ("support.astronaut",)

EXPRESSIONS = 40
IRIS_CENTRES = (473, 468)
SEEDS = range(5)


def angle_deg(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.linalg.norm(logarithm(a @ b.T))))


def gaps_iod(points: np.ndarray, pairs) -> np.ndarray:
    """Opening of each pair, percent of the inter-ocular distance."""
    upper, lower = np.array(pairs).T
    return np.linalg.norm(points[upper] - points[lower], axis=-1) / interocular_px(points) * 100


def moved(state: State, column: int, step: float) -> State:
    """One parameter changed, in the solver's parametrisation: rotations from the left."""
    vector = np.zeros(EXPRESSIONS + 13)
    vector[column] = step
    e = EXPRESSIONS
    return State(
        state.expression + vector[:e],
        state.jaw + vector[e : e + 3],
        state.gaze + vector[e + 3 : e + 7],
        rotate(vector[e + 7 : e + 10]) @ state.rotation,
        state.translation + vector[e + 10 :],
    )


def random_face(head, seed: int) -> tuple[np.ndarray, State]:
    generator = np.random.default_rng(seed)
    psi = np.zeros(EXPRESSIONS)
    at_work = generator.choice(EXPRESSIONS, 8, replace=False)
    psi[at_work] = generator.uniform(0.3, 1.0, 8)
    jaw, gaze = (generator.uniform(0.0, 0.3), 0.0, 0.0), generator.uniform(-0.25, 0.25, 2)
    state = make_state(head, jaw=jaw, gaze=(*gaze, *gaze), turn=tuple(generator.uniform(-0.3, 0.3, 3)))
    return generator.normal(size=80) * 0.7, replace(state, expression=psi)


@pytest.mark.parametrize("start", ["still", "at work"])
def test_columns_of_the_jacobian_are_the_numeric_ones(solver, head, start):
    identity, state = random_face(head, 0)
    # Not at gaze 0, where the lids change over.
    still = make_state(head, gaze=(0.01, -0.01, 0.01, -0.01))
    state = still if start == "still" else replace(state, jaw=np.array([0.35, 0.02, -0.03]))
    points, joints = solver.points(identity), solver.joints(identity)
    _, jacobian, _ = solver.project(points, joints, state)
    h = 1e-6
    for column in range(solver.size):
        ahead, behind = (solver.predict(identity, moved(state, column, side * h)) for side in (1, -1))
        numeric = (ahead - behind) / (2 * h)
        scale = np.abs(numeric).max()
        # A jaw's columns are first-order in its angle: opened by 0.35 rad, its other axes tilt by half of that.
        tolerance = 0.2 if EXPRESSIONS < column < EXPRESSIONS + 3 else 0.03 if column == EXPRESSIONS else 1e-6
        assert np.abs(jacobian[:, :, column] - numeric).max() < tolerance * scale, column


def test_a_canonical_step_is_what_identity_needs(solver, head):
    identity, state = random_face(head, 1)
    points, joints = solver.points(identity), solver.joints(identity)
    _, _, by_canonical = solver.project(points, joints, state)
    h = 1e-6
    for axis in range(3):
        step = np.eye(3)[axis] * h
        numeric = (
            solver.project(points + step, joints, state)[0] - solver.project(points - step, joints, state)[0]
        ) / (2 * h)
        assert np.abs(by_canonical[:, :, axis] - numeric).max() < 1e-6 * np.abs(numeric).max()


def test_derivatives_of_an_eyeball():
    at = np.array([0.3, -0.4])
    _, slopes = eye(at)
    for axis in range(2):
        step = np.eye(2)[axis] * 1e-6
        assert np.abs(slopes[axis] - (eye(at + step)[0] - eye(at - step)[0]) / 2e-6).max() < 1e-8


def test_frames_are_recovered_from_exact_landmarks(solver, head):
    psi = []
    for seed in SEEDS:
        identity, state = random_face(head, seed)
        seen = solver.predict(identity, state)
        found = solver.frame(identity, seen, iterations=15)
        assert angle_deg(found.rotation, state.rotation) < 1.0
        assert np.abs(found.translation[:2] - state.translation[:2]).max() < 0.002
        assert abs(found.translation[2] / state.translation[2] - 1) < 0.01
        assert solver.error_iod(identity, found, seen) < 0.7
        assert np.abs(found.gaze - state.gaze)[[1, 3]].max() < np.radians(2)
        psi.append((found.expression, state.expression))
        assert np.corrcoef(*psi[-1])[0, 1] > 0.7
    # One face alone may fall below: the prior shares out what units that look alike at the landmarks do.
    assert np.corrcoef(*np.array(psi).swapaxes(0, 1).reshape(2, -1))[0, 1] > 0.8


def test_more_steps_end_at_the_same_place(solver, head):
    identity, state = random_face(head, 0)
    seen = solver.predict(identity, state)
    odd, even = (solver.frame(identity, seen, iterations=count) for count in (39, 40))
    assert np.abs(odd.expression - even.expression).max() < 1e-3


def test_wide_eyes_are_no_upward_gaze(solver, head):
    state = make_state(head, eyeWideLeft=0.8, eyeWideRight=0.8)
    found = solver.frame(np.zeros(80), solver.predict(np.zeros(80), state), iterations=10)
    assert np.abs(found.gaze).max() < np.radians(2)


@pytest.mark.parametrize(
    "face",
    [
        {},
        {"jaw": (0.3, 0.0, 0.0)},
        {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0},
        {"eyeBlinkRight": 1.0},
        {"jaw": (0.1, 0.0, 0.0), "mouthClose": 0.4},
        {"eyeWideLeft": 0.8, "eyeWideRight": 0.8},
    ],
    ids=["closed mouth", "open mouth", "shut eyes", "wink", "lips held shut", "wide eyes"],
)
def test_lids_and_lips_open_as_far_as_seen(solver, head, face):
    identity, _ = random_face(head, 3)
    seen = solver.predict(identity, make_state(head, turn=(0.1, 0.2, 0.0), **face))
    found = solver.predict(identity, solver.frame(identity, seen, iterations=10))
    for pairs in (LID_PAIRS, LIP_PAIRS):
        assert np.abs(gaps_iod(found, pairs) - gaps_iod(seen, pairs)).max() < 0.6


@pytest.mark.slow
def test_an_identity_is_recovered_from_several_frames(solver, head):
    pairs = []
    for seed in SEEDS:
        identity, _ = random_face(head, seed)
        states = [random_face(head, 100 * seed + k)[1] for k in range(8)]
        frames = np.stack([solver.predict(identity, state) for state in states])
        found, solved = solver.identity(frames, prior=10.0)
        error = (solver.points(found) - solver.points(identity))[np.setdiff1d(np.arange(468), FACE_OVAL)]
        assert np.linalg.norm(error - error.mean(0), axis=1).mean() < 0.0012
        psi = [np.stack([state.expression for state in side]).ravel() for side in (solved, states)]
        assert np.corrcoef(*psi)[0, 1] > 0.75
        pairs.append(psi)
        # A shared identity may lean by a constant turn; the frames must lean alike, but for what expressions take.
        lean = np.stack([logarithm(a.rotation.T @ b.rotation) for a, b in zip(solved, states, strict=True)])
        assert np.degrees(np.linalg.norm(lean - lean.mean(0), axis=1)).max() < 2.5
    assert np.corrcoef(*np.concatenate(pairs, 1))[0, 1] > 0.8


def test_a_stronger_prior_gives_a_smaller_identity(solver, head):
    identity, state = random_face(head, 2)
    frames = np.stack([solver.predict(identity, state)])
    sizes = [np.linalg.norm(solver.identity(frames, prior=prior)[0]) for prior in (1.0, 10.0, 1e3, 1e7)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.05


def test_bounds_hold(solver, head):
    identity, state = random_face(head, 4)
    points = solver.predict(
        identity, replace(state, expression=1.5 * (state.expression > 0), jaw=np.array([0.9, 0, 0]))
    )
    found = solver.frame(identity, points, iterations=15)
    assert (found.expression >= solver.model.expression_low).all()
    assert (found.expression <= solver.model.expression_high).all()
    assert found.expression.max() > 0.5
    assert found.jaw[0] == JAW_RANGE_RAD[1]
    # What pulls the lips through each other does not turn the jaw the other way.
    shut = solver.predict(identity, make_state(head, jaw=(-0.2, 0, 0)))
    assert solver.frame(identity, shut, iterations=10).jaw[0] >= JAW_RANGE_RAD[0]


def test_bounds_and_priors_are_the_head_models_own(model, solver, head):
    column = head.expression_names.index("browInnerUp")
    seen = solver.predict(np.zeros(80), make_state(head, browInnerUp=-0.8))
    assert solver.frame(np.zeros(80), seen, iterations=10).expression[column] == 0
    signed = replace(model, expression_low=np.full(EXPRESSIONS, -0.1))
    found = Solver(signed, focal_px=solver.focal_px, centre_px=solver.centre_px).frame(np.zeros(80), seen)
    assert found.expression[column] == pytest.approx(-0.1)
    stiff = replace(signed, expression_prior=np.full(EXPRESSIONS, 1e9))
    held = Solver(stiff, focal_px=solver.focal_px, centre_px=solver.centre_px).frame(np.zeros(80), seen)
    assert np.abs(held.expression).max() < 1e-4


def test_one_wrong_landmark_does_not_move_the_others(solver, head):
    identity, state = random_face(head, 0)
    seen = solver.predict(identity, state)
    right = solver.predict(identity, solver.frame(identity, seen, iterations=10))
    wrong = seen.copy()
    wrong[4] += [0.5 * interocular_px(seen), 0.0]
    found = solver.predict(identity, solver.frame(identity, wrong, iterations=10))
    step = np.linalg.norm(found - right, axis=1) / interocular_px(seen) * 100
    assert step.max() < 1.0


def test_the_outline_of_the_face_has_no_say(solver, head):
    identity, state = random_face(head, 0)
    seen = solver.predict(identity, state)
    wrong = seen.copy()
    wrong[FACE_OVAL] += 30.0
    # PnP starts without them too, so that both solves take the same steps.
    a, b = (solver.frame(identity, points, iterations=3) for points in (seen, wrong))
    assert np.array_equal(a.vector(), b.vector())


def test_the_last_frame_steadies_what_moves_in_the_face_alone(solver, head):
    identity, state = random_face(head, 0)
    last = make_state(head, turn=(0.0, 0.3, 0.0))
    seen = solver.predict(identity, state)
    free = solver.frame(identity, seen, iterations=8)
    tied = solver.frame(identity, seen, start=last, temporal=1e6, iterations=8)
    assert np.abs(tied.vector() - last.vector()).max() < 0.05
    assert angle_deg(tied.rotation, free.rotation) < 5


def test_irises_turn_the_eyes_and_nothing_else(solver, head):
    identity, state = random_face(head, 0)
    seen = solver.predict(identity, state)
    glancing = seen.copy()
    glancing[468:478] += [0.02 * interocular_px(seen), 0.0]
    a, b = (solver.frame(identity, points, iterations=1) for points in (seen, glancing))
    assert (b.gaze[[1, 3]] - a.gaze[[1, 3]] > np.radians(2)).all()
    assert angle_deg(a.rotation, b.rotation) < 0.05
    assert np.abs(b.expression - a.expression).max() < 0.03


def leaning_face(seen: np.ndarray) -> np.ndarray:
    """Landmarks of the lower face shifted as a snarl does: a turn explains a part of it."""
    leaning = seen.copy()
    low = leaning[:, 1] > leaning[4, 1]
    leaning[low] += np.array([0.04, -0.03]) * interocular_px(seen)
    return leaning


def test_anchors_steady_the_pose(solver, head):
    identity, _ = random_face(head, 0)
    state = make_state(head, turn=(0.05, 0.1, 0.0))
    seen = solver.predict(identity, state)
    generator = np.random.default_rng(0)
    # A scalp: half an ellipsoid above the brows.
    points = generator.normal(size=(300, 3))
    points = points / np.linalg.norm(points, axis=1, keepdims=True) * [0.075, 0.11, 0.09] + [0, 0.02, -0.02]
    points = points[(points[:, 1] > 0.05) & (points[:, 2] > -0.05)]
    camera = points @ state.rotation.T + state.translation
    targets = camera[:, :2] / camera[:, 2:] * solver.focal_px + solver.centre_px
    anchors = Anchors(points, targets, 600.0)
    leaning = leaning_face(seen)
    start = solver.frame(identity, seen, iterations=10)
    free = solver.frame(identity, leaning, start=start, iterations=6)
    held = solver.frame(identity, leaning, start=start, iterations=6, anchors=anchors)
    assert angle_deg(free.rotation, state.rotation) > 1.0
    assert angle_deg(held.rotation, state.rotation) < 0.4 * angle_deg(free.rotation, state.rotation)
    exact = solver.frame(identity, seen, start=start, iterations=6, anchors=anchors)
    assert angle_deg(exact.rotation, state.rotation) < 0.5


def test_anchors_speak_on_the_pose_alone(solver, head):
    _, state = random_face(head, 0)
    points = np.random.default_rng(0).normal(size=(20, 3)) * 0.05
    rows, _ = solver._anchor_rows(Anchors(points, np.zeros((20, 2)), 5.0), state, 1.0, solver.size)
    pose = slice(EXPRESSIONS + 7, EXPRESSIONS + 13)
    assert np.abs(rows[..., : EXPRESSIONS + 7]).max() == 0
    for column in range(pose.start, pose.stop):
        px = []
        for side in (1, -1):
            at = moved(state, column, side * 1e-6)
            camera = points @ at.rotation.T + at.translation
            px.append(camera[:, :2] / camera[:, 2:] * solver.focal_px)
        numeric = (px[0] - px[1]) / 2e-6 * np.sqrt(5.0 / 20)
        assert np.abs(rows[..., column] - numeric).max() < 1e-5 * np.abs(numeric).max()


@pytest.mark.parametrize("face_px", [80, 110, 140])
def test_the_focal_length_puts_the_head_at_arms_length(model, head, face_px):
    solver = Solver(model, focal_px=1000.0, centre_px=256.0)
    state = make_state(head, translation=(0.0, 0.0, 1.1))
    size = interocular_px(solver.predict(np.zeros(80), state))
    seen = (solver.predict(np.zeros(80), state) - 256) * (face_px / size) + 256
    focal_px = focal_for(model, seen, crop_size=512)
    found = Solver(model, focal_px=focal_px, centre_px=256.0).frame(np.zeros(80), seen, iterations=8)
    # The guessed focal length shows the face under another perspective.
    assert abs(found.translation[2] - 1.1) < 0.06


def test_the_nearest_frame_is_found_wherever_the_face_lies(photo_tracking, head):
    neutral = state_of(photo_tracking, 0)
    states = [
        replace(neutral, expression=units(head, jawForward=k / 5), jaw=np.array([0.06 * k, 0, 0])) for k in range(6)
    ]
    clip = performed(photo_tracking, head, states)
    frame, distance = nearest_frame(clip.landmarks[4] * 0.6 + 40, clip)
    assert (frame, round(distance, 4)) == (4, 0.0)
    own = performed(photo_tracking, head, [*states, neutral])
    assert nearest_frame(photo_tracking.landmarks[0], own)[0] == 6


def test_the_same_landmarks_give_the_same_bits(solver, head):
    identity, state = random_face(head, 0)
    seen = solver.predict(identity, state)
    a, b = (solver.frame(identity, seen) for _ in range(2))
    assert np.array_equal(a.vector(), b.vector()) and np.array_equal(a.rotation, b.rotation)
