"""The network that ships adapts to the face: figures on made-up people whom it has never seen."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from expportrait_cli.errors import WeightsError
from expportrait_cli.retargeting.face import Face
from expportrait_cli.retargeting.network import TransferNetwork, load_network
from expportrait_cli.train.transfer.ablation import dose
from expportrait_cli.train.transfer.clips import FaceClip
from expportrait_cli.train.transfer.methods import (
    FIRST_SEED,
    SCRIPT,
    Errors,
    Predict,
    Reenactment,
    errors,
    predictors,
    swap_penalty,
)
from expportrait_cli.train.transfer.synthetic import Synthesis
from expportrait_cli.weights.catalogue import weights_file

pytest_plugins = ("support.astronaut",)

pytestmark = pytest.mark.slow

NAME = "transfer_anny.safetensors"
PEOPLE, FRAMES = 4, 12
PARTS = ("lips", "brows", "lids")


@dataclass(frozen=True)
class Evaluation:
    """The network, and four people who do the same."""

    synthesis: Synthesis
    network: TransferNetwork
    people: list[FaceClip]
    methods: dict[str, Predict]
    found: dict[str, Errors]


@pytest.fixture(scope="module")
def evaluation(head) -> Evaluation:
    try:
        path = weights_file(NAME)
    except WeightsError:
        pytest.skip(f"weights/{NAME} is not there: weights/train_transfer_anny.sh makes it")
    synthesis, network = Synthesis(head, Face.of(head)), load_network(path, head).network
    people = [synthesis.clip(FIRST_SEED + k, FRAMES, script=SCRIPT) for k in range(PEOPLE)]
    methods = predictors({"learned": network}, people, synthesis.face)
    found = {name: errors(predict, people, synthesis.face) for name, predict in methods.items()}
    return Evaluation(synthesis, network, people, methods, found)


def test_it_is_nearer_than_copying_which_is_nearer_than_nothing(evaluation):
    none, direct, learned = (evaluation.found[name].offset_mm.mean() for name in ("none", "direct", "learned"))
    print(f"offsets, mm: none {none:.4f}, direct {direct:.4f}, learned {learned:.4f}")
    assert learned < 0.7 * direct
    assert direct < none


def test_its_normals_are_nearer_too(evaluation):
    none, direct, learned = (evaluation.found[name].normal_deg.mean() for name in ("none", "direct", "learned"))
    print(f"normals, degrees: none {none:.3f}, direct {direct:.3f}, learned {learned:.3f}")
    assert learned < min(direct, none)


def test_another_face_costs_a_third(evaluation):
    penalty = swap_penalty(evaluation.network, evaluation.people)
    print(f"swap {penalty:.3f}")
    assert penalty >= 0.3


def test_folds_grow_step_by_step_with_age(evaluation):
    """From the least to the most slack of many faces, in twenty steps."""
    energy = dose(evaluation.methods["learned"], evaluation.synthesis, evaluation.people[0])
    print(f"folds, mm rms: {energy.round(4)}; largest step {np.abs(np.diff(energy)).max() / np.ptp(energy):.3f}")
    assert energy[-1] > energy[0]
    assert np.abs(np.diff(energy)).max() <= 0.1 * np.ptp(energy)


@pytest.fixture(scope="module")
def amplitudes(evaluation) -> dict[str, np.ndarray]:
    """How far lips, brows and lids move by the network, against how far they truly do: a row a person."""
    truth = Reenactment(evaluation.synthesis, lambda person: torch.from_numpy(person.offset.astype(np.float32)))
    reenactment = Reenactment(evaluation.synthesis, evaluation.methods["learned"])
    ratio = [
        reenactment.amplitudes(FIRST_SEED + k, p) / truth.amplitudes(FIRST_SEED + k, p)
        for k, p in enumerate(evaluation.people)
    ]
    return dict(zip(PARTS, np.transpose(ratio), strict=True))


@pytest.mark.parametrize("part", PARTS)
def test_expressions_are_as_large_as_they_should_be(amplitudes, part):
    print(part, amplitudes[part].round(3))
    assert amplitudes[part].min() >= 0.8 and amplitudes[part].max() <= 1.25


@pytest.mark.xfail(
    strict=True, reason="7.9 degrees: 5.1 are the tracker's, that reads heads without any offsets that far off"
)
def test_a_round_trip_over_another_face_leads_back(evaluation):
    reenactment = Reenactment(evaluation.synthesis, evaluation.methods["learned"])
    found = [
        reenactment.cycle_deg(FIRST_SEED + k, FIRST_SEED + (k + 1) % PEOPLE, p) for k, p in enumerate(evaluation.people)
    ]
    print(f"round trips, degrees: {np.round(found, 2)}")
    assert np.mean(found) <= 3
