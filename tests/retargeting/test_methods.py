"""What moves beyond the expressions: by the network, copied, or nothing; through the stage and the command line."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.known_head import dynamic_poses
from support.performers import make_state
from support.transfer_faces import driver_of, photo_of, rows_of, tiny, trained

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.curves_csv import read_csv
from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import HeadFit, Tracking
from expportrait_cli.cli import app
from expportrait_cli.config import TransferConfig
from expportrait_cli.dataset.summary import clip_meshes
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.head.finer import finer
from expportrait_cli.head.fitted import fitted_mesh, neutral_mesh, posed_meshes, reduced
from expportrait_cli.head.model import HEAD, JAW
from expportrait_cli.pipeline.performance import OffsetSource
from expportrait_cli.retargeting import Beyond, posed_frames, transfer
from expportrait_cli.retargeting.face import Face
from expportrait_cli.retargeting.network import load_network, save_network

pytest_plugins = ("support.astronaut",)

pytestmark = pytest.mark.slow

FRAMES = 4
SMILE = {"mouthSmileLeft": 0.8, "mouthSmileRight": 0.8, "browInnerUp": 0.6}


@pytest.fixture(scope="module")
def network(head):
    return trained(tiny(Face.of(head)))


@pytest.fixture(scope="module")
def photo(head) -> HeadFit:
    """Somebody who smiles a little."""
    psi = np.zeros(len(head.expression_names))
    psi[head.expression_names.index("mouthSmileLeft")] = 0.3
    return photo_of(head, 1, expression=psi, jaw=np.array([0.05, 0, 0]))


@pytest.fixture(scope="module")
def stranger(head) -> Tracking:
    """At rest, a smile, an open mouth while the head turns, at rest."""
    states = [
        make_state(head),
        make_state(head, **SMILE),
        make_state(head, jaw=(0.3, 0.0, 0.0), turn=(0.0, 0.2, 0.1)),
        make_state(head),
    ]
    return driver_of(head, states, seed=2)


@pytest.fixture(scope="module")
def driver_fit(head, stranger) -> HeadFit:
    """The stranger's own fit: random offsets, that are not zero at rest."""
    vertices = np.flatnonzero(head.facial_mask.numpy() > 0)[::3]
    generator = np.random.default_rng(0)
    return replace(
        photo_of(head, 2),
        dynamic_vertices=vertices,
        dynamic_offset=generator.normal(0, 1e-3, (FRAMES, len(vertices), 3)).astype(np.float16),
        **dynamic_poses(stranger),
        dynamic_loss=np.zeros((FRAMES, 2), np.float32),
    )


def meshes(fit, tracking, head, *, network=None, driver=None, **options) -> np.ndarray:
    performance = transfer(fit, tracking, head, TransferConfig(**options), Beyond(trained=network, driver=driver))
    return np.stack([*posed_frames(fit, head, performance)])


@pytest.mark.parametrize("seed", [1, 2])
def test_no_motion_leaves_the_photo(head, photo, network, seed):
    """A driver who keeps still, the photo's own person or another: what no method at all gives."""
    driver = driver_of(head, [make_state(head, **SMILE)] * 3, seed=seed)
    photo = replace(photo, identity_from=driver.fingerprint if seed == 1 else "")
    performance = transfer(photo, driver, head, TransferConfig(expression="relative"), Beyond(trained=network))
    # The person's own landmarks stand in for the network where the person drives.
    assert (performance.offsets is None) == (seed == 1)
    assert performance.offsets is None or not performance.offsets(slice(0, 3), performance.curves).any()
    learned = meshes(photo, driver, head, network=network, expression="relative")
    none = meshes(photo, driver, head, method="none", expression="relative")
    assert np.allclose(learned, none, rtol=0, atol=1e-6)
    assert np.linalg.norm(learned - fitted_mesh(photo, head), axis=-1).max() < 2e-6


def test_offsets_count_from_the_photo(head, photo, network):
    """The photo's own expression, which is none of rest, moves nothing; rest does."""
    driver = driver_of(head, [make_state(head), make_state(head, mouthSmileLeft=0.5)], seed=2)
    performance = transfer(photo, driver, head, TransferConfig(neutral_frame="0"), Beyond(trained=network))
    curves = performance.curves
    here = replace(curves, expression=photo.expression[None].repeat(2, 0), jaw=photo.jaw[None].repeat(2, 0))
    assert not performance.offsets(slice(0, 2), here).any()
    rest = replace(curves, expression=0 * curves.expression, jaw=0 * curves.jaw)
    assert np.abs(performance.offsets(slice(0, 2), rest)).max() > 1e-5


def test_learned_offsets_move_the_mesh_and_nothing_off_the_face(head, photo, stranger, network):
    performance = transfer(photo, stranger, head, TransferConfig(), Beyond(trained=network))
    learned, none = (
        np.stack([*posed_frames(photo, head, p)]) for p in (performance, replace(performance, offsets=None))
    )
    moved = np.linalg.norm(learned - none, axis=-1)
    assert moved[1].max() > 1e-4 and moved[2].max() > 1e-4
    assert not moved[:, head.facial_mask.numpy() == 0].any()


def test_offsets_follow_the_strength_of_the_expression(head, photo, stranger, network, driver_fit):
    rows = slice(0, FRAMES)

    def found(scale: float, method: str) -> np.ndarray:
        config = TransferConfig(expression="relative", expression_scale=scale, method=method, neutral_frame="0")
        performance = transfer(photo, stranger, head, config, Beyond(trained=network, driver=driver_fit))
        return performance.offsets(rows, performance.curves)

    for method in ("learned", "direct"):
        assert not found(0.0, method).any()
    assert np.allclose(found(0.5, "direct"), 0.5 * found(1.0, "direct"), atol=1e-9)
    half, full = (np.linalg.norm(found(scale, "learned"), axis=-1).mean(1) for scale in (0.5, 1.0))
    assert (half[[1, 2]] > 0.2 * full[[1, 2]]).all() and (half[[1, 2]] < 0.9 * full[[1, 2]]).all()


def test_none_moves_what_the_model_moves(head, photo, stranger):
    wild = stranger.landmarks + np.random.default_rng(0).normal(0, 3, stranger.landmarks.shape).astype(np.float32)
    performance = transfer(photo, replace(stranger, landmarks=wild), head, TransferConfig(method="none"))
    assert performance.offsets is None and not performance.steps.any()
    found = np.stack([*posed_frames(photo, head, performance)])
    assert np.allclose(found, posed_meshes(photo, head, performance.curves), atol=1e-7)


def test_copied_offsets_keep_their_place_in_the_surface(head, photo, stranger, driver_fit):
    config = TransferConfig(method="direct", neutral_frame="0")
    performance = transfer(photo, stranger, head, config, Beyond(driver=driver_fit))
    found = performance.offsets(slice(0, FRAMES), performance.curves)
    given = driver_fit.dynamic_offset.astype(np.float32) - driver_fit.dynamic_offset[0].astype(np.float32)
    assert not found[0].any()
    assert np.array_equal(performance.offsets.vertices, driver_fit.dynamic_vertices)
    theirs, own = (
        vertex_normals(neutral_mesh(fit, head), head.dense_faces)[driver_fit.dynamic_vertices].numpy()
        for fit in (driver_fit, photo)
    )
    assert np.abs((found * own).sum(-1) - (given * theirs).sum(-1)).max() < 1e-7
    assert np.allclose(np.linalg.norm(found, axis=-1), np.linalg.norm(given, axis=-1), atol=1e-7)
    assert np.linalg.norm(found - given, axis=-1).max() > 1e-5
    assert np.array_equal(performance.offsets(slice(2, 3), rows_of(performance.curves, slice(2, 3))), found[2:3])


def test_copied_offsets_of_the_same_face_are_the_same(head, stranger, driver_fit):
    own = photo_of(head, 2)
    performance = transfer(
        own, stranger, head, TransferConfig(method="direct", neutral_frame="0"), Beyond(driver=driver_fit)
    )
    given = driver_fit.dynamic_offset.astype(np.float32) - driver_fit.dynamic_offset[0].astype(np.float32)
    assert np.allclose(performance.offsets(slice(0, FRAMES), performance.curves), given, atol=1e-7)


def waves(head, fit: HeadFit, wave_m: float) -> np.ndarray:
    """Offsets [P,3] of 1 mm along the normals of a fit's neutral head, level waves over the whole face."""
    verts = neutral_mesh(fit, head)
    face = Face.of(head).vertices
    height = 1e-3 * np.cos(2 * np.pi * verts[face, 1].numpy() / wave_m)
    return height[:, None] * vertex_normals(verts, head.dense_faces)[face].numpy()


def added_folds(own: HeadFit, driver: HeadFit, stranger: Tracking, head, network, share: float) -> np.ndarray:
    """What a driver's fit adds to the offsets [T,V,3]."""
    config = TransferConfig(neutral_frame="0", folds=share)
    field = np.zeros((FRAMES, len(head.parts), 3), np.float32)
    for sign, fit in ((1, driver), (-1, None)):
        performance = transfer(own, stranger, head, config, Beyond(trained=network, driver=fit))
        if performance.offsets is not None:
            offsets = performance.offsets(slice(0, FRAMES), performance.curves)
            field[:, performance.offsets.vertices] += sign * offsets
    return field


@pytest.mark.parametrize("wave_m", [0.008, 0.1])
def test_the_person_is_drawn_as_fitted_to_every_frame(head, stranger, driver_fit, wave_m):
    """In self reenactment N^D shows what a generator is trained on: the head of each frame, folds, bulges and all."""
    face = Face.of(head).vertices
    offset = np.zeros((FRAMES, len(face), 3), np.float16)
    offset[1] = waves(head, driver_fit, wave_m)
    # The pose of the fit, too: it may leap where the landmarks stay, and differ from the tracked one.
    turns = driver_fit.dynamic_rotation.copy()
    turns[1, 0] += 0.05
    driver = replace(driver_fit, dynamic_vertices=face, dynamic_offset=offset, dynamic_rotation=turns)
    generator = np.random.default_rng(1)
    own_offset = np.zeros((len(head.parts), 3), np.float32)
    own_offset[face[::2]] = generator.normal(0, 3e-4, (len(face[::2]), 3))
    # The photo's own offset is in none of the frames.
    own = replace(photo_of(head, 2), identity_from=stranger.fingerprint, frame_offset=own_offset)
    wild = stranger.landmarks + generator.normal(0, 2, stranger.landmarks.shape).astype(np.float32)
    seen = replace(stranger, landmarks=wild)
    own = replace(own, identity_from=seen.fingerprint)
    performance = transfer(own, seen, head, TransferConfig(turn_limit_deg=None), Beyond(driver=driver))
    drawn = torch.from_numpy(np.stack([*posed_frames(own, head, performance)]))
    fitted = torch.from_numpy(clip_meshes(driver, seen, head, np.arange(FRAMES)))
    plain = replace(performance, offsets=None)
    bare = torch.from_numpy(np.stack([*posed_frames(replace(own, frame_offset=0 * own_offset), head, plain)]))
    # What hangs on the neck, too, follows a torso that is another's.
    on_skull = face[(head.skinning[face][:, [HEAD, JAW]].sum(1) > 0.999).numpy()]
    shown = [vertex_normals(verts, head.dense_faces)[:, on_skull] for verts in (drawn, fitted, bare)]
    away = [torch.rad2deg(torch.acos((shown[0] * other).sum(-1).clamp(-1, 1))) for other in shown[1:]]
    assert away[0].square().mean(1).sqrt().max() < 0.2
    if wave_m < 0.01:
        assert away[1][1].square().mean().sqrt() > 5


@pytest.mark.parametrize("shown", ["base", "static"])
def test_a_part_of_the_head_is_shown_alone(head, photo, stranger, network, shown):
    """The baseline of the paper's Fig. 7: nothing but the head model's mesh, or that and the static offset."""
    generator = np.random.default_rng(0)
    static, moving = generator.normal(0, 1e-3, (2, len(head.parts), 3)).astype(np.float32)
    own = replace(photo, static_offset=static, frame_offset=moving, relief=np.ones((4, 4), np.float16))
    part = reduced(own, shown)
    performance = transfer(part, stranger, head, TransferConfig(representation=shown), Beyond(trained=network))
    assert performance.offsets is None and not performance.steps.any()
    found = np.stack([*posed_frames(part, head, performance)])
    bare = replace(own, static_offset=static * (shown == "static"), frame_offset=0 * moving)
    assert np.abs(found - posed_meshes(bare, head, performance.curves)).max() < 1e-6
    assert part.relief.size == (16 if shown == "static" else 0)
    assert reduced(own, "full") is own


def test_a_person_who_is_scaled_goes_part_of_the_way(head, stranger, driver_fit):
    own = replace(photo_of(head, 2), identity_from=stranger.fingerprint)
    found = {}
    for scale in (1.0, 0.5):
        config = TransferConfig(expression_scale=scale, neutral_frame="0")
        performance = transfer(own, stranger, head, config, Beyond(driver=driver_fit))
        found[scale] = performance.offsets(slice(0, FRAMES), performance.curves)
    assert np.allclose(found[0.5], 0.5 * found[1.0], atol=1e-8)
    assert np.allclose(found[1.0], driver_fit.dynamic_offset.astype(np.float32), atol=1e-8)


def test_strangers_folds_are_added_by_their_share(head, photo, stranger, driver_fit, network):
    face = Face.of(head).vertices
    offset = np.zeros((FRAMES, len(face), 3), np.float16)
    offset[1] = waves(head, driver_fit, 0.008)
    driver = replace(driver_fit, dynamic_vertices=face, dynamic_offset=offset)
    none, half, whole = (added_folds(photo, driver, stranger, head, network, share) for share in (0.0, 0.5, 1.0))
    assert not none.any() and np.abs(whole).max() > 3e-4
    np.testing.assert_allclose(whole, 2 * half, atol=1e-8)
    # Frame 3 is at rest as frame 0: neither the driver nor the network shows folds there.
    assert np.abs(whole[3]).max() < 0.15 * np.abs(whole[1]).max()


def test_other_curves_have_other_offsets(head, photo, stranger, network):
    """Frames that are edited move by what the network says of the new expression, and only they."""
    config = TransferConfig(expression="relative", neutral_frame="0")
    performance = transfer(photo, stranger, head, config, Beyond(trained=network))
    psi = performance.curves.expression.copy()
    psi[1] = photo.expression
    edited = replace(performance, curves=replace(performance.curves, expression=psi))
    before, after = (np.stack([*posed_frames(photo, head, p)]) for p in (performance, edited))
    assert np.array_equal(before[[0, 2, 3]], after[[0, 2, 3]])
    # In the edited frame there is the photo's expression, and nothing beyond it.
    plain = np.stack([*posed_frames(photo, head, replace(edited, offsets=None))])
    assert np.array_equal(after[1], plain[1])
    assert np.linalg.norm(after[1] - before[1], axis=-1).max() > 1e-3


@pytest.fixture(scope="module")
def files(head, photo, stranger, driver_fit, network, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("transfer")
    paths = {name: folder / f"{name}.npz" for name in ("own.head", "own.track", "driver.head", "short.head")}
    npz.save(photo, paths["own.head"], {})
    npz.save(stranger, paths["own.track"], {})
    npz.save(driver_fit, paths["driver.head"], {})
    names = ("dynamic_offset", "dynamic_loss", *dynamic_poses(stranger))
    npz.save(replace(driver_fit, **{n: getattr(driver_fit, n)[:3] for n in names}), paths["short.head"], {})
    paths["net"] = folder / "net.safetensors"
    save_network(network, paths["net"], head, {})
    paths["narrow"] = folder / "narrow.safetensors"
    save_network(trained(network.network, most=0.25), paths["narrow"], head, {})
    return paths


def command(capsys, files, tmp_path, *options: str, code: int = 0) -> str:
    """Run `transfer` on the files; a word that names one stands for its path. What it said, in lines."""
    words = ["transfer", "own.head", "own.track", "-o", str(tmp_path / "out.meshes.npz"), *options]
    assert app.run([str(files.get(word, word)) for word in words]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err


def test_the_command_takes_a_network(head, photo, stranger, files, tmp_path, capsys):
    err = command(capsys, files, tmp_path, "--network", "net", "--neutral-frame", "0")
    assert "beyond what the transfer network" not in err
    written = Meshes.open(tmp_path / "out.meshes.npz")
    header = npz.read_header(tmp_path / "out.meshes.npz")["made_by"]
    assert header["outside_training"] == 0
    found = np.stack([*written.frames()])
    expected = meshes(photo, stranger, head, network=load_network(files["net"], head), neutral_frame="0")
    assert np.abs(found - expected).max() < 1e-5


def test_expressions_beyond_the_training_are_told_and_recorded(files, tmp_path, capsys):
    err = command(capsys, files, tmp_path, "--network", "narrow", "--neutral-frame", "0")
    assert "In 50 % of the frames" in err and "--expression-scale" in err
    assert npz.read_header(tmp_path / "out.meshes.npz")["made_by"]["outside_training"] == 0.5


def test_curves_that_are_edited_are_taken(head, photo, files, tmp_path, capsys):
    curves, options = tmp_path / "c.csv", ["--network", "net", "--neutral-frame", "0"]
    options += ["--expression", "relative", "--curves"]
    command(capsys, files, tmp_path, *options, str(curves))
    before = np.stack([*Meshes.open(tmp_path / "out.meshes.npz").frames()])
    rows = [*csv.DictReader(curves.open())]
    for name in head.expression_names:
        rows[1][name] = str(float(photo.expression[head.expression_names.index(name)]))
    with curves.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    assert "its curves are used" in command(capsys, files, tmp_path, *options, str(curves))
    after = np.stack([*Meshes.open(tmp_path / "out.meshes.npz").frames()])
    assert np.abs(after - before)[[0, 2, 3]].max() < 2e-5
    edited = rows_of(read_csv(curves, head.expression_names), slice(1, 2))
    plain = posed_meshes(photo, head, edited)[0]
    # Beyond the photo's expression there are only the steps of the lids, in the picture: depths are the model's own.
    assert np.abs(after[1] - plain)[:, 2].max() < 2e-5
    assert np.abs(before[1] - plain)[:, 2].max() > 1e-3


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--network", "net", "--method", "direct"], 2, "needs --method learned, not direct"),
        (["--network", "net", "--method", "none"], 2, "needs --method learned, not none"),
        (
            ["--driver-head", "driver.head", "--network", "net", "--method", "direct"],
            2,
            "needs --method learned, not direct",
        ),
        (
            ["--driver-head", "short.head", "--method", "direct"],
            3,
            "offsets of 3 frames on the head model 'anny', expected 4 on 'anny'",
        ),
        (
            ["--driver-head", "own.head", "--method", "direct"],
            3,
            "offsets of 0 frames on the head model 'anny', expected 4",
        ),
        (["--network", "own.track"], 4, "cannot be read as safetensors"),
        (["--network", "nowhere.safetensors"], 3, "nowhere.safetensors"),
    ],
)
def test_mistakes_are_one_line(files, tmp_path, capsys, options, code, said):
    err = command(capsys, files, tmp_path, *options, code=code)
    assert err.count("\n") == 1 and said in err
    assert not (tmp_path / "out.meshes.npz").exists()


def test_a_driver_on_another_mesh_is_refused(head, driver_fit, files, tmp_path, capsys):
    """A driver's clip that was fitted at high quality has more vertices than a photo that was not."""
    fine = finer(head)
    offsets = {name: fine.lifted(getattr(driver_fit, name)) for name in ("static_offset", "frame_offset")}
    offsets["relief_seen"] = np.zeros(len(fine.head.parts), np.float16)
    npz.save(replace(driver_fit, head_model=fine.head.name, **offsets), tmp_path / "fine.head.npz", {})
    options = ("--method", "direct", "--driver-head", str(tmp_path / "fine.head.npz"))
    err = command(capsys, files, tmp_path, *options, code=3)
    assert err.count("\n") == 1 and "'anny@2', expected 4 on 'anny'" in err and "--quality" in err


def test_a_finer_mesh_moves_by_the_same_network(head, photo, stranger, network):
    fine = finer(head)
    lifted = photo_of(fine.head, 1, expression=photo.expression, jaw=photo.jaw)
    config = TransferConfig(expression="relative", neutral_frame="0")
    plain = transfer(photo, stranger, head, config, Beyond(trained=network))
    dense = transfer(lifted, stranger, fine.head, config, Beyond(trained=network, mesh=fine))
    rows = slice(0, FRAMES)
    found, expected = (p.offsets(rows, p.curves) for p in (dense, plain))
    assert not found[0].any()
    # The vertices of the plain mesh are the first of the finer one, and keep their places.
    shared = dense.offsets.vertices < len(head.facial_mask)
    assert set(plain.offsets.vertices) <= set(dense.offsets.vertices[shared])
    at = np.searchsorted(dense.offsets.vertices, plain.offsets.vertices)
    # The network reads the same neutral face but for the roundness that the second subdivision gives it.
    assert np.linalg.norm(found[:, at] - expected, axis=-1).max() < 1e-4
    assert np.linalg.norm(found, axis=-1).max() < 1.1 * np.linalg.norm(expected, axis=-1).max()
    assert np.abs(dense.steps - plain.steps).max() < 0.1


def test_a_head_model_without_a_network_takes_the_drivers_landmarks(caplog):
    source = OffsetSource.of(TransferConfig(), "smplx-01234567")
    assert (source.config.method, source.network) == ("direct", None)
    (record,) = caplog.records
    assert "smplx-01234567" in record.message and "`method=direct`" in record.message
    assert OffsetSource.of(TransferConfig(method="none"), "smplx-01234567").config.method == "none"


def test_edited_curves_are_judged_by_themselves(head, files, tmp_path, capsys):
    curves = tmp_path / "curves.csv"
    command(capsys, files, tmp_path, "--network", "narrow", "--neutral-frame", "0", "--curves", str(curves))
    names, *rows = [line.split(",") for line in curves.read_text("utf-8").splitlines()]
    still = [name in head.expression_names or name.startswith("jaw") for name in names]
    calm = [["0" if is_still else value for is_still, value in zip(still, row, strict=True)] for row in rows]
    curves.write_text("\n".join(",".join(row) for row in [names, *calm]) + "\n", "utf-8")
    err = command(capsys, files, tmp_path, "--network", "narrow", "--neutral-frame", "0", "--curves", str(curves))
    assert "beyond what the transfer network" not in err
    assert npz.read_header(tmp_path / "out.meshes.npz")["made_by"]["outside_training"] == 0
