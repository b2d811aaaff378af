"""SMPL-X through the whole chain: its units are standard deviations, and its components have signs and no places."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.performers import make_state, performed, quiet
from support.smplx_bodies import body, file_of, head_of, landmarked
from support.transfer_faces import driver_of, photo_of

from expportrait_cli.config import TransferConfig
from expportrait_cli.errors import InputError, WeightsError
from expportrait_cli.fitting.clip import neutral_weights
from expportrait_cli.geometry import rotations
from expportrait_cli.head import HeadModel, load_head
from expportrait_cli.head.embed import embed
from expportrait_cli.head.model import eye_rotation
from expportrait_cli.head.smplx import build
from expportrait_cli.head.smplx.build import ENVIRONMENT
from expportrait_cli.retargeting import Beyond, transfer
from expportrait_cli.retargeting.face import Face, expression_map
from expportrait_cli.retargeting.network import load_network
from expportrait_cli.tracking import Pretracked, with_parameters
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


def test_a_photos_smile_is_taken_off_before_another_face_is_put_on(head):
    """What goes beyond the neutral range is expression: the person then shows what the driver does, and no more."""
    smile = np.zeros(100)
    smile[[3, 7]] = 1.2, -0.9
    still = driver_of(head, [make_state(head)] * 2, seed=3)
    curves = transfer(photo_of(head, 1, expression=smile), still, head, TransferConfig(method="none")).curves
    assert np.abs(curves.expression[:, [3, 7]]).max() == pytest.approx(0.15, abs=1e-6)


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


COUNT = 4


@pytest.fixture
def foreign() -> dict[str, np.ndarray]:
    """What another tracker wrote of a clip: ten components of each, and eyes that look up and to the left."""
    rng = np.random.default_rng(5)
    pitch, yaw = 0.1, 0.2
    turn = eye_rotation(torch.tensor([pitch, yaw]).double())
    return {
        "betas": rng.normal(size=10),
        "expression": rng.normal(0, 0.5, (COUNT, 10)),
        "jaw_pose": np.abs(rng.normal(0, [0.1, 0.01, 0.01], (COUNT, 3))),
        "leye_pose": np.tile(rotations.axis_angle(turn).numpy(), (COUNT, 1)),
        "reye_pose": np.zeros((COUNT, 3)),
    }


def layouts(foreign: dict[str, np.ndarray], folder: Path) -> list[Path]:
    """The same parameters as each kind of tracker keeps them."""
    np.savez(folder / "plain.npz", **foreign)
    (folder / "frames").mkdir()
    for t in range(COUNT):
        rows = {name: values[None] if values.ndim == 1 else values[t : t + 1] for name, values in foreign.items()}
        np.savez(folder / "frames" / f"{t + 9:05}_0.npz", **rows)
        np.savez(folder / "frames" / f"{t + 9:05}_1.npz", **{name: 0 * values for name, values in rows.items()})
    poses = np.zeros((COUNT, 165))
    for name, at in (("jaw_pose", 66), ("leye_pose", 69), ("reye_pose", 72)):
        poses[:, at : at + 3] = foreign[name]
    np.savez(folder / "amass.npz", poses=poses, betas=foreign["betas"], expressions=foreign["expression"])
    rows = np.zeros((COUNT, 322))
    rows[:, 156:159], rows[:, 159:169] = foreign["jaw_pose"], foreign["expression"]
    rows[:, 312:322] = foreign["betas"]
    np.save(folder / "motion.npy", rows)
    return [folder / name for name in ("plain.npz", "frames", "amass.npz", "motion.npy")]


def test_parameters_of_other_trackers_are_read(foreign, tmp_path):
    for path in layouts(foreign, tmp_path):
        found = Pretracked.read(path)
        assert np.allclose(found.betas, foreign["betas"]) and np.allclose(found.jaw, foreign["jaw_pose"]), path
        assert np.allclose(found.expression[:, :10], foreign["expression"]) and not found.expression[:, 10:].any()
        gaze = [0.1, 0.2, 0, 0] if path.suffix != ".npy" else [0, 0, 0, 0]
        assert np.allclose(found.gaze, gaze, atol=1e-6), path


def test_parameters_of_other_trackers_stand_and_the_pose_is_the_landmarks(head, foreign, tmp_path):
    np.savez(tmp_path / "a.npz", **foreign)
    found = Pretracked.read(tmp_path / "a.npz")
    psi = np.pad(found.expression, ((0, 0), (0, 90)))
    states = [
        replace(make_state(head, turn=(0.05 * t, 0.1 * t, 0)), expression=psi[t], jaw=found.jaw[t], gaze=found.gaze[t])
        for t in range(COUNT)
    ]
    clip = driver_of(head, [make_state(head)], seed=4)
    identity = np.pad(found.betas, (0, 290))
    true = performed(clip, head, states, identity=identity)
    mine = replace(true, expression=0 * true.expression, jaw=0 * true.jaw, rotation=0 * true.rotation)
    done = with_parameters(mine, found, head, tmp_path)
    for name in ("identity", "expression", "jaw", "gaze"):
        assert np.allclose(getattr(done, name), getattr(true, name), atol=1e-6), name
    assert np.abs(done.rotation - true.rotation).max() < 0.03
    with pytest.raises(InputError, match="expected 3 of at most 300"):
        with_parameters(mine.frames([0, 1, 2]), found, head, tmp_path)
    with pytest.raises(InputError, match="head_model=smplx"):
        with_parameters(mine, found, replace(head, name="anny"), tmp_path)


@pytest.mark.parametrize(
    "content", [{}, {"betas": np.zeros(10), "expression": np.zeros((3, 10))}, {"poses": np.zeros(3)}]
)
def test_files_without_parameters_are_refused(content, tmp_path):
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(InputError, match="holds no SMPL-X parameters"):
        Pretracked.read(tmp_path / "a.npz")
