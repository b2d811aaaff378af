"""SMPL-X through the whole chain: its units are standard deviations, and its components have signs and no places."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.performers import make_state, quiet
from support.smplx_bodies import body, file_of, head_of, landmarked
from support.transfer_faces import driver_of, photo_of

from expportrait_cli.config import TransferConfig
from expportrait_cli.errors import WeightsError
from expportrait_cli.fitting.clip import neutral_weights
from expportrait_cli.head import HeadModel, load_head
from expportrait_cli.head.embed import embed
from expportrait_cli.head.smplx import build
from expportrait_cli.head.smplx.build import ENVIRONMENT
from expportrait_cli.retargeting import Beyond, transfer
from expportrait_cli.retargeting.face import Face, expression_map
from expportrait_cli.retargeting.network import load_network
from expportrait_cli.train.config import TransferTraining
from expportrait_cli.train.transfer.run import train_transfer
from expportrait_cli.train.transfer.synthetic import random_expressions

pytestmark = pytest.mark.slow

TRACKED_NORM = 2.6
"""Of the expressions of a tracked clip, on average over its frames."""


@pytest.fixture(scope="module")
def anny() -> HeadModel:
    return load_head()


@pytest.fixture(scope="module")
def head(anny, tmp_path_factory) -> HeadModel:
    """The first forty components are the default head's units, the others move nothing."""
    return head_of(tmp_path_factory.mktemp("smplx"), anny)


def test_made_up_expressions_are_as_large_as_tracked_ones(head):
    psi, jaw = random_expressions(head, 400, torch.Generator().manual_seed(0))
    norm = psi.norm(dim=1)[1:].mean().item()
    assert TRACKED_NORM / 1.5 < norm < TRACKED_NORM * 1.5
    assert not psi[0].any() and not jaw[0].any() and not psi[:, 40:].any()
    # Of either sign, and hardly ever at their limits.
    assert 0.45 < (psi[1:, :40] > 0).float().mean() < 0.55
    assert (psi.abs() == head.expression_high.float()).float().mean() < 1e-3


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("counts", ["absolute", "relative"])
def test_a_tracked_motion_comes_through(head, sign, counts):
    """Neither the photo's own expression nor a sign damps it."""
    rng = np.random.default_rng(0)
    own = np.clip(rng.normal(0, 0.7, 100), -1.4, 1.4)
    steps = np.concatenate([np.zeros((1, 100)), sign * np.abs(rng.normal(0, 0.26, (5, 100)))])
    driver = driver_of(head, [replace(make_state(head), expression=step) for step in steps], seed=3)
    config = TransferConfig(method="none", neutral_frame="0", expression=counts)
    curves = transfer(photo_of(head, 1, expression=own), driver, head, config).curves
    moved = curves.expression - curves.expression[0]
    assert np.linalg.norm(moved - steps, axis=1)[1:].max() < 0.01 * np.linalg.norm(steps, axis=1)[1:].min()


def test_regions_are_found_from_the_geometry(head, anny):
    """Of the default head's units, whose names say where they are, in a model that names no places."""
    shares = {region: np.diag(expression_map(head, frozenset([region]))) for region in ("lips", "eyes")}
    named = {
        name: {region: share[k] for region, share in shares.items()} for k, name in enumerate(anny.expression_names)
    }
    for name in ("mouthSmileLeft", "mouthFunnel", "mouthUpperUpRight", "mouthFrownLeft"):
        assert named[name]["lips"] > 0.85 and abs(named[name]["eyes"]) < 0.05, name
    for name in ("eyeBlinkLeft", "eyeBlinkRight", "eyeWideLeft"):
        assert named[name]["eyes"] > 0.85 and abs(named[name]["lips"]) < 0.05, name
    for name in ("browInnerUp", "browDownLeft"):
        assert max(map(abs, named[name].values())) < 0.2, name
    assert np.array_equal(expression_map(head, frozenset(["expression"])), np.eye(100))
    assert not expression_map(head, frozenset(["pose"])).any()


def test_neutral_frames_are_as_many_as_in_the_other_models_units(head, anny):
    """A clip in shares of the full weights is the same clip: 3 standard deviations are what 1 is for a unit."""
    psi = np.abs(np.random.default_rng(0).normal(0, 0.1, (20, 40)))
    jaw, sure = np.zeros((20, 3)), np.ones(20, bool)
    own = np.c_[3 * psi, np.zeros((20, 60))]
    weights = [neutral_weights(model.shares(values), jaw, sure) for model, values in ((anny, psi), (head, own))]
    assert np.allclose(*weights)
    assert not np.allclose(neutral_weights(own, jaw, sure), weights[0])


def test_vertices_in_no_triangle_of_the_face_are_no_part_of_it(head):
    mask = head.facial_mask.clone()
    (off,) = torch.nonzero(mask[: len(head.template)] == 0)[-1:].T
    mask[off] = 0.5
    strayed, face = Face.of(replace(head, facial_mask=mask)), Face.of(head)
    assert np.array_equal(strayed.vertices, face.vertices) and torch.equal(strayed.faces, face.faces)
    assert set(face.faces.unique().tolist()) == set(range(len(face.vertices)))
    assert head.facial_mask[face.vertices].min() > 0


def test_a_head_on_which_no_face_is_found_is_refused(head):
    with pytest.raises(WeightsError, match="no face in pictures of the head model 'smplx'"):
        embed(
            head,
            torch.zeros(len(head.parts), 3),
            rasterize=lambda pos, faces, resolution: torch.zeros(1, *resolution, 4),
            detect=lambda picture: None,
        )


def test_a_network_is_trained_for_it_and_moves_its_face(anny, tmp_path, monkeypatch):
    file = file_of(tmp_path, body(anny))
    monkeypatch.setenv(ENVIRONMENT, str(file))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    head = build.load(file=file, find_landmarks=lambda head, colours: landmarked(head, anny))
    config = TransferTraining(
        steps=6,
        report_every=3,
        people=2,
        frames=2,
        vertices=32,
        synthetic=3,
        synthetic_frames=2,
        held_out=0.0,
        head_model="smplx",
    )
    summary = train_transfer([], tmp_path / "transfer.safetensors", config, lambda name: quiet)
    assert summary["people"] == 3
    trained = load_network(tmp_path / "transfer.safetensors", head)
    assert trained.network.config.expression == 100 and 0 < trained.psi_most[:40].max() <= 3
    driver = driver_of(head, [make_state(head), replace(make_state(head), expression=0.5 * np.ones(100))], seed=2)
    moved = transfer(photo_of(head, 1), driver, head, TransferConfig(neutral_frame="0"), Beyond(trained=trained))
    found = moved.offsets(slice(0, 2), moved.curves)
    assert np.isfinite(found).all() and np.abs(found[1]).max() > 1e-6
