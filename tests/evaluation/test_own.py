import numpy as np
import pytest

from expportrait_cli.evaluation import own
from expportrait_cli.geometry.rotations import FRONTAL, rodrigues
from expportrait_cli.head import LandmarkModel, landmark_model, load_head
from expportrait_cli.solve.solver import Solver
from expportrait_cli.solve.state import State


@pytest.fixture(scope="module")
def model() -> LandmarkModel:
    return landmark_model(load_head())


def head(model: LandmarkModel, turn_deg: tuple[float, float, float] = (0, 0, 0), **changed: np.ndarray) -> State:
    rest = {"expression": np.zeros(model.expression.shape[2]), "jaw": np.zeros(3), "gaze": np.zeros(4)}
    rotation = rodrigues(np.radians(turn_deg)) @ FRONTAL
    return State(rotation=rotation, translation=np.array([0.0, 0.02, 1.1]), **rest | changed)


def film(model: LandmarkModel, states: list[State]) -> np.ndarray:
    solver = Solver(model, focal_px=1500.0, centre_px=256.0)
    identity = np.zeros(model.identity.shape[2])
    return np.stack([solver.predict(identity, state) for state in states]).astype(np.float32)


@pytest.fixture(scope="module")
def scored(model):
    def score(film_states: list[State], truth_states: list[State]) -> dict[str, np.ndarray]:
        films = film(model, film_states), film(model, truth_states)
        person = own.Person(films[1], (512, 512), model)
        return own.differences(*films, (person, person))

    return score


def test_five_degrees_about_one_axis_count_five_thirds(scored, model):
    base = [head(model), head(model, (0, 10, 0)), head(model, (6, -8, 0))]
    turned = [head(model, (0, 5, 0)), head(model, (0, 15, 0)), head(model, (6, -3, 0))]
    found = scored(turned, base)
    # The film's landmarks are a perspective picture of points that the fit follows to 0.1 degrees.
    assert found["apd_own_deg"][:2] == pytest.approx([5 / 3, 5 / 3], abs=0.25)
    assert found["aed_own"].max() < 0.03


def test_a_roll_past_half_a_turn_is_no_full_turn(scored, model):
    found = scored([head(model, (0, 0, 4))], [head(model, (0, 0, -4))])
    assert found["apd_own_deg"][0] == pytest.approx(8 / 3, abs=0.2)
    assert own.pitch_yaw_roll_deg(rodrigues(np.radians([0.0, 20.0, 0.0])) @ FRONTAL) == pytest.approx([0, 20, 0])


def test_an_open_jaw_and_a_look_aside_are_seen_where_they_belong(scored, model):
    base = [head(model), head(model, (0, 8, 0))]
    opened = [head(model, jaw=np.array([0.6 * model.jaw_full_rad, 0, 0])), base[1]]
    found = scored(opened, base)
    assert found["aed_own"][0] > 0.4 / 41 > 10 * found["aed_own"][1]
    aside = scored([head(model, gaze=np.radians([0.0, 12.0, 0.0, 12.0])), base[1]], base)
    assert aside["gaze_own_deg"][0] == pytest.approx(6, abs=1.5)
    assert aside["gaze_own_deg"][1] == 0


def test_what_moves_is_compared_whatever_the_pose_at_rest(scored, model):
    yaws = (0, 4, 8, 3, -4)
    base = [head(model, (0, yaw, 0)) for yaw in yaws]
    elsewhere = [head(model, (0, yaw + 9, 0)) for yaw in yaws]
    found = scored(elsewhere, base)
    assert found["apd_own_deg"] == pytest.approx(np.full(5, 3), abs=0.4)
    assert found["apd_motion_own_deg"].max() < 0.3
    # A film that stands still moves by as much less as its driver moves.
    frozen = scored([head(model)] * 5, base)
    assert frozen["apd_motion_own_deg"] == pytest.approx(np.abs(np.array(yaws) - 3) / 3, abs=0.3)
    assert frozen["aed_motion_own"].max() < 0.02


def test_frames_without_a_face_are_left_empty(model):
    seen = film(model, [head(model), head(model, (0, 6, 0)), head(model, (0, 12, 0))])
    lost = seen.copy()
    lost[1] = np.nan
    person = own.Person(lost, (512, 512), model)
    found = own.differences(seen, lost, (person, person))
    assert np.isnan(found["aed_own"]).tolist() == [False, True, False]
    assert found["aed_own"][[0, 2]].tolist() == [0, 0]
    assert np.isnan(found["aed_motion_own"]).tolist() == [False, True, False]
    nobody = own.differences(seen, np.full_like(seen, np.nan), (person, person))
    assert nobody.keys() == found.keys() and all(np.isnan(column).all() for column in nobody.values())
