"""GNM Head v3 as a head model, on a file of its format that is made from the default head."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.gnm_heads import arrays_of
from support.smplx_bodies import landmarked

from expportrait_cli.cli import app
from expportrait_cli.errors import WeightsError
from expportrait_cli.head import HeadModel, coarse, dense, gnm, joints, load_head
from expportrait_cli.head.model import JAW, NECK, HeadPose, pose
from expportrait_cli.pipeline.heads import kind_of_head
from expportrait_cli.retargeting.face import expression_map

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def anny() -> HeadModel:
    return load_head()


@pytest.fixture(scope="module")
def arrays(anny) -> dict[str, np.ndarray]:
    return arrays_of(anny)


@pytest.fixture(scope="module")
def file(arrays, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gnm") / "gnm_head.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def head(file) -> HeadModel:
    return gnm.build(gnm.read(file))


def test_its_mesh_is_the_files(head, arrays, anny):
    """Identity and expression are linear, as published; the head's origin follows the eyes."""
    rng = np.random.default_rng(0)
    beta, psi = (torch.tensor(rng.normal(size=n)).float() for n in (20, len(arrays["expression_names"])))
    shape = coarse(head, beta, psi, torch.zeros(3), torch.zeros(4))
    expected = arrays["template_vertex_positions"] + np.tensordot(beta, arrays["vertex_identity_basis"], 1)
    expected = expected + np.tensordot(psi, arrays["expression_basis"], 1)
    shift = dense(head, shape).numpy() - expected
    assert np.ptp(shift, axis=0).max() < 1e-6
    eyes = joints(head, 0 * beta)[[4, 5]].mean(0).numpy()
    assert np.abs(eyes - gnm.EYES_M).max() < 1e-6
    assert head.dense_faces.equal(torch.tensor(arrays["triangles"]).long())
    assert (head.skinning.sum(1) - 1).abs().max() < 1e-6 and head.skinning.min() >= 0


def test_the_jaw_is_a_hinge_that_is_found_in_the_components(head, anny):
    """In the default head it is one: the same axis, in the same place, and the same vertices hang on it."""
    away = head.joint_template[JAW] - anny.joint_template[JAW]
    # Only the components say where it is, and a line of them along the axis does.
    assert away[1:].norm() < 0.006
    ours, theirs = head.skinning[:, JAW], anny.skinning[: len(head.template), JAW]
    assert (ours - theirs).abs().mean() < 0.03
    zero, neck = torch.zeros(head.identity_basis.shape[-1]), head.joint_template[NECK]
    jaw = torch.tensor([head.jaw_full_rad, 0.0, 0.0])
    still, rest = torch.zeros(3), torch.zeros(4)
    moved = dense(head, coarse(head, zero, torch.zeros(len(head.expression_names)), jaw, rest))
    posed = pose(head, moved, head.joint_template, HeadPose(jaw, rest, still, still, still, neck))
    step = (posed - head.template).numpy()
    lower, upper = head.part("teeth_lower").numpy(), head.part("teeth_upper").numpy()
    assert step[lower, 1].mean() == pytest.approx(-gnm.OPENING_M, rel=0.05)
    assert np.abs(step[upper]).max() < 1e-3


def test_parts_are_the_files_groups(head, arrays):
    groups = dict(zip(arrays["vertex_group_names"], arrays["vertex_groups"] > 0.5, strict=True))
    for part, group in gnm.GROUPS.items():
        assert np.array_equal(head.part(part).numpy(), groups[group]), part
    assert np.array_equal(head.part("mouth_cavity").numpy(), groups["mouth_sock"] & ~groups["tongue"])


def test_regions_follow_the_names(head):
    lips, eyes = (np.diag(expression_map(head, frozenset([region]))) for region in ("lips", "eyes"))
    named = [("eyes" if name.startswith(("left_eye", "right_eye")) else "lips") for name in head.expression_names]
    assert [on == 1 for on in lips] == [name == "lips" for name in named]
    assert [on == 1 for on in eyes] == [name == "eyes" for name in named]


def test_it_is_loaded_by_its_name(file, anny, monkeypatch, tmp_path):
    monkeypatch.setenv(gnm.ENVIRONMENT, str(file))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="track --head-model gnm"):
        load_head("gnm")
    head = load_head("gnm", find_landmarks=lambda head, paint: landmarked(head, anny))
    assert kind_of_head(head.name) == "gnm" and len(head.name) == len("gnm-01234567")
    assert head.facial_mask.max() == 1 and not head.facial_mask[head.part("teeth_lower", "tongue")].any()
    assert load_head("gnm").landmark_triangles.equal(head.landmark_triangles)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ({"version": np.array("2.1")}, "version 2.1, expected 3"),
        ({"expression_basis": None}, "lacks 'expression_basis'"),
        ({"joint_names": np.array(["a", "b", "left_eye", "right_eye"])}, "lacks a joint of neck, head or an eye"),
        ({"template_joint_positions": np.full((4, 3), np.nan)}, "not finite"),
    ],
)
def test_other_files_are_refused(arrays, tmp_path, spoil, says):
    found = {key: value for key, value in {**arrays, **spoil}.items() if value is not None}
    np.savez(tmp_path / "a.npz", **found)
    with pytest.raises(WeightsError, match=says):
        gnm.read(tmp_path / "a.npz")


def test_a_missing_file_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(gnm.ENVIRONMENT, str(tmp_path / "none.npz"))
    with pytest.raises(WeightsError, match="weights fetch gnm"):
        load_head("gnm")
    assert app.run(["weights", "list"]) == 0 and "gnm" in capsys.readouterr().out
