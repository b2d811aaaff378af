"""People who were made up: expressions in proportion, lids and lips that meet, folds where skin shortens."""

import numpy as np
import pytest
import torch
from jaxtyping import Float64
from scipy import sparse

from expportrait_cli.head import dense
from expportrait_cli.head.facemesh import LID_PAIRS, LIP_PAIRS
from expportrait_cli.retargeting.face import Face
from expportrait_cli.train.transfer import folds
from expportrait_cli.train.transfer.clips import FaceClip
from expportrait_cli.train.transfer.synthetic import ANCHOR, Synthesis, random_expressions

pytest_plugins = ("support.astronaut",)

pytestmark = pytest.mark.slow

SCALE = 1.2
PEOPLE = (1, 2, 3)


@pytest.fixture(scope="module")
def synthesis(head) -> Synthesis:
    return Synthesis(head, Face.of(head))


@pytest.fixture(scope="module")
def person(synthesis) -> FaceClip:
    return synthesis.clip(5, 6)


@pytest.fixture(scope="module")
def scaled(head, synthesis) -> Float64[np.ndarray, "E N 3"]:
    return synthesis.proportion.beyond(SCALE * head.template)


def steps_of(head) -> Float64[np.ndarray, "E N 3"]:
    return head.expression_basis.double().permute(2, 0, 1).numpy()


def graph(verts: np.ndarray, faces: np.ndarray) -> sparse.csr_matrix:
    """Laplacian of half the cotangents, each between 0.05 and 5, written down anew."""
    rows, columns, weights = [], [], []
    for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        left, right = (verts[faces[:, k]] - verts[faces[:, c]] for k in (a, b))
        angle = np.arccos((left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1))
        rows, columns = [*rows, faces[:, a]], [*columns, faces[:, b]]
        weights.append(np.clip(0.5 / np.tan(angle), 0.05, 5))
    rows, columns, weights = (np.concatenate(part) for part in (rows, columns, weights))
    half = sparse.csr_matrix((weights, (rows, columns)), (len(verts), len(verts)))
    both = half + half.T
    return sparse.diags(np.asarray(both.sum(1))[:, 0]) - both


def test_the_mean_head_does_what_the_model_says(head, synthesis):
    assert np.abs(synthesis.proportion.beyond(head.template)).max() < 1e-12


def test_a_larger_head_has_larger_expressions(head, scaled):
    """Minimum of the quadratic form whose sides are 1.2 times the mean head's, and that is tied to the plain step."""
    steps = steps_of(head)
    laplacian = graph(SCALE * head.template.double().numpy(), head.faces.numpy())
    for expression in range(0, len(steps), 8):
        step, beyond = steps[expression], scaled[expression]
        gradient = laplacian @ (step + beyond - SCALE * step) + ANCHOR * beyond
        assert np.abs(gradient).max() < 1e-4 * np.abs(laplacian @ step).max()


@pytest.mark.parametrize("names", [("mouthSmileLeft", "mouthPucker", "eyeBlinkLeft", "noseSneerRight", "browInnerUp")])
def test_the_step_grows_with_the_head(head, scaled, names):
    """What is local follows the size in full; the tie to the plain step keeps some of what is wide."""
    steps = steps_of(head)
    for name in names:
        step = steps[head.expression_names.index(name)]
        beyond = scaled[head.expression_names.index(name)] / (SCALE - 1)
        assert (beyond * step).sum() / (step**2).sum() == pytest.approx(1, abs=0.35), name
        assert np.corrcoef(beyond.ravel(), step.ravel())[0, 1] > 0.95, name


def marked(synthesis: Synthesis, identity, psi, jaw=None, *, slack: float = 0.5) -> list[np.ndarray]:
    """Landmarks [T,478,3] at rest, with the model's own expression, and with the offsets."""
    head = synthesis.head
    canonical = synthesis.expressed(identity, psi)
    moved = canonical.clone()
    moved[:, synthesis.face.vertices] += torch.from_numpy(
        synthesis.offsets(identity, psi, torch.zeros(len(psi), 3) if jaw is None else jaw, slack)
    )
    return [folds.face_marks(head, verts) for verts in (synthesis.neutral(identity)[None], canonical, moved)]


def test_lids_close_on_every_face(head, synthesis):
    """Half and whole blinks: the lids' opening comes nearer to the share of it that the mean head keeps."""
    psi = torch.zeros(2, len(head.expression_names))
    psi[:, [head.expression_names.index(f"eyeBlink{side}") for side in ("Left", "Right")]] = torch.tensor([[0.5], [1]])
    upper, lower = np.array(LID_PAIRS).T

    def openings(identity):
        gaps = [(marks[:, upper] - marks[:, lower])[..., 1] for marks in marked(synthesis, identity, psi)]
        return gaps[1] / gaps[0], gaps[2] / gaps[0]

    wanted = openings(synthesis.rest)[0].clip(0)
    for seed in PEOPLE:
        plain, found = openings(synthesis.identity(seed))
        assert (found[1] < 0.03).all(), "shut"
        assert np.abs(found - wanted).mean() < 0.85 * np.abs(plain - wanted).mean()


def test_lips_do_not_overlap_more_than_before(head, synthesis):
    psi, _ = random_expressions(head, 10, torch.Generator().manual_seed(3))
    psi[1, head.expression_names.index("mouthClose")] = 1
    upper, lower = np.array(LIP_PAIRS).T
    for seed in PEOPLE[:2]:
        before, after = (
            (marks[:, lower] - marks[:, upper])[..., 1].clip(0)
            for marks in marked(synthesis, synthesis.identity(seed), psi)[1:]
        )
        assert before.max() > 0.002
        # Half a millimetre: offsets in proportion move lips that are at a distance, too.
        assert (after <= before + 5e-4).all()
        assert after.max() < 0.7 * before.max()


def test_skin_that_keeps_its_lengths_does_not_rise(head, synthesis):
    skin, points, _ = skin_of(head, synthesis, 1)
    for slack in (0.0, 0.5, 1.0):
        assert not folds.heights(skin, points, slack).any()
        turned = points @ np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]) + np.array([0.1, 0.2, 0.3])
        assert np.abs(folds.heights(skin, turned, slack)).max() < 1e-9


def skin_of(head, synthesis: Synthesis, seed: int):
    neutral = synthesis.neutral(synthesis.identity(seed))
    points = neutral[synthesis.face.vertices].double().numpy()
    lines = folds.expression_lines(points, folds.face_marks(head, neutral), folds.normals_of(synthesis.face, points))
    return folds.Skin(synthesis.face, points, lines), points, lines


def test_slack_skin_folds_deeper(head, synthesis):
    """A forehead that is shortened by a tenth bulges on any face, and has lines on a slack one alone."""
    skin, points, lines = skin_of(head, synthesis, 1)
    raised = points * np.array([1, 0.9, 1])
    tight, half, slack = (folds.heights(skin, raised, s) for s in (0.0, 0.5, 1.0))
    assert tight.max() > 2e-4
    forehead = lines[0].where > 0.8
    waves = (slack - tight)[forehead]
    assert waves.std() > 1e-4
    assert np.corrcoef(waves, lines[0].profile[forehead])[0, 1] > 0.9
    assert np.allclose(half - tight, (slack - tight) / 2, atol=1e-9)
    stretched = folds.heights(skin, points * np.array([1, 1.1, 1]), 1.0)
    assert stretched.max() < 1e-4 and stretched.min() < -2e-4


def test_lines_lie_in_the_surface(head, synthesis):
    _, points, lines = skin_of(head, synthesis, 1)
    normals = folds.normals_of(synthesis.face, points)
    assert len(lines) == 8
    for family in lines:
        used = family.where > 0.05
        assert used.any() and (family.where >= 0).all() and (family.where <= 1).all()
        assert np.abs((family.across * normals).sum(1))[used].max() < 1e-6
        assert np.abs(np.linalg.norm(family.across, axis=1)[used] - 1).max() < 1e-6
        assert np.abs(family.profile).max() < 1.6


def test_the_same_seed_is_the_same_person(synthesis, person):
    again, other = synthesis.clip(5, 6), synthesis.clip(6, 6)
    for name in ("neutral", "expression", "jaw", "offset", "weight"):
        assert np.array_equal(getattr(again, name), getattr(person, name)), name
    assert np.abs(other.neutral - person.neutral).max() > 1e-3
    assert (person.name, person.is_synthetic) == ("synthetic-00005", True)


def test_people_with_one_script_do_the_same(synthesis):
    one, two = (synthesis.clip(seed, 3, script=7) for seed in (8, 9))
    assert np.array_equal(one.expression, two.expression) and np.array_equal(one.jaw, two.jaw)
    difference = one.offset.astype(float) - two.offset.astype(float)
    assert np.abs(difference).max() > 1e-4


def test_offsets_begin_at_rest_and_end_at_the_mask(synthesis, person):
    size = np.linalg.norm(person.offset.astype(float), axis=-1)
    mask = synthesis.face.mask.numpy()
    assert size[0].max() < 1e-6
    assert 2e-4 < size[1:].max() < 0.02
    assert (size <= 0.02 * mask + 1e-6).all()


def test_random_expressions_stay_in_their_range(head):
    psi, jaw = random_expressions(head, 200, torch.Generator().manual_seed(0))
    assert not psi[0].any() and not jaw[0].any()
    assert (psi >= head.expression_low).all() and (psi <= head.expression_high + 1e-6).all()
    assert 0.02 < float((psi > 0).float().mean()) < 0.5
    assert jaw[:, 0].min() >= 0 and jaw[:, 0].max() < 0.45
    left, right = (head.expression_names.index(f"mouthSmile{side}") for side in ("Left", "Right"))
    both = psi[(psi[:, [left, right]] > 0).any(1)][:, [left, right]]
    assert len(both) > 20
    assert 0.6 < float((both[:, 0] == both[:, 1]).float().mean()) < 1
    again, _ = random_expressions(head, 200, torch.Generator().manual_seed(0))
    assert torch.equal(psi, again)


def test_faces_at_rest_are_the_models_own(head, synthesis, person):
    shape = head.template + head.identity_basis @ synthesis.identity(5)
    assert np.allclose(person.neutral, dense(head, shape)[synthesis.face.vertices].numpy(), atol=1e-7)
