"""The transfer network's file: it gives the network back, and says why it cannot."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.smplx_bodies import body, file_of
from support.transfer_faces import KINDS, expressions, face_of, offsets, tiny, trained

from expportrait_cli.artifacts.network_file import read_header
from expportrait_cli.errors import WeightsError
from expportrait_cli.head.smplx.build import build, read
from expportrait_cli.retargeting.face import Face
from expportrait_cli.retargeting.network import KIND, load_network, save_network, topology

pytest_plugins = ("support.astronaut",)


@pytest.fixture(scope="module")
def face(head) -> Face:
    return Face.of(head)


@pytest.fixture
def written(head, face, tmp_path):
    """A network's file, and the network."""
    network = tiny(face)
    save_network(trained(network), tmp_path / "net.safetensors", head, {"steps": 3})
    return tmp_path / "net.safetensors", network


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_the_network_back(head, face, tmp_path, kind):
    network, path = tiny(face, kind), tmp_path / "net.safetensors"
    for file in (path, tmp_path / "again.safetensors"):
        save_network(trained(network, most=0.75), file, head, {"steps": 3})
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    found = load_network(path, head)
    assert found.network.config == network.config and not found.network.training
    assert not any(value.requires_grad for value in found.network.parameters())
    assert set(found.psi_most) == {np.float32(0.75)} == set(found.jaw_most)
    # Weights in 16 bits are off by up to 0.05 % each. Layers of random weights add that up; trained ones are calmer.
    (psi, jaw), verts = expressions(2), face_of(head, face, 1)
    first, second = (offsets(n, verts, 0.3 * psi, 0.3 * jaw) for n in (network, found.network))
    assert (first - second).norm(dim=-1).max() < 0.01 * first.norm(dim=-1).max()
    assert read_header(path, KIND)["made_by"] == {"steps": 3}
    # What was rounded once stays as it is.
    save_network(found, tmp_path / "third.safetensors", head, {"steps": 3})
    assert path.read_bytes() == (tmp_path / "third.safetensors").read_bytes()


def rewritten(path, **changed):
    """The file with other entries in its header; those that are None are left out."""
    header = {**read_header(path, KIND), **changed}
    text = json.dumps({key: value for key, value in header.items() if value is not None})
    save_file(load_file(path), path, {"expportrait": text})


def refused(path, head, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as error:
        load_network(path, head)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, 4, 300, -5])
def test_a_truncated_file_is_refused(written, head, size):
    path, _ = written
    path.write_bytes(path.read_bytes()[:size])
    refused(path, head, r"net\.safetensors cannot be read as safetensors.*Train or copy it again")


def test_a_file_of_something_else_is_refused(written, head, tmp_path):
    path, _ = written
    for metadata in (None, {"format": "pt"}, {"expportrait": "[1]"}, {"expportrait": '{"kind": "head"}'}):
        save_file({"a": torch.zeros(3)}, path, metadata)
        refused(path, head, "holds no transfer network.*expportrait train transfer")
    save_file({"a": torch.zeros(3)}, path, {"expportrait": "{"})
    refused(path, head, "cannot be read as safetensors")
    refused(tmp_path, head, "cannot be read as safetensors")


def test_another_version_is_refused(written, head):
    path, _ = written
    rewritten(path, version=2)
    refused(path, head, "version 2 of the transfer network, this tool reads 1")


@pytest.mark.parametrize(
    "changed",
    [
        {"network": {"kind": "blind"}},
        {"network": {"width": 3}},
        {"network": {}},
        {"network": None},
        {"topology": None},
        {"head_model": None, "topology": "0"},
    ],
)
def test_a_damaged_file_is_refused(written, head, changed):
    path, _ = written
    rewritten(path, **changed)
    refused(path, head, "net.safetensors")


@pytest.mark.slow
def test_an_unknown_kind_of_network_is_damage(written):
    """Without the type checks that tests run under, which would catch it for another reason."""
    path, _ = written
    rewritten(path, network={"kind": "other"})
    code = (
        "import pathlib, sys; from expportrait_cli.head import load_head\n"
        "from expportrait_cli.errors import WeightsError\n"
        "from expportrait_cli.retargeting.network import load_network\n"
        "try: load_network(pathlib.Path(sys.argv[1]), load_head())\n"
        "except WeightsError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert "is damaged" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["psi_most", "linear.weight", "code_mean"])
def test_a_tensor_that_is_missing_is_damage(written, head, name):
    path, _ = written
    header = read_header(path, KIND)
    tensors = {key: value for key, value in load_file(path).items() if key != name}
    save_file(tensors, path, {"expportrait": json.dumps(header)})
    refused(path, head, "is damaged")


@pytest.mark.slow
def test_a_network_of_another_head_model_is_refused(written, head, tmp_path):
    other, _ = build(read(file_of(tmp_path, body(head))))
    assert topology(Face.of(other)) != topology(Face.of(head))
    refused(written[0], other, f"trained on the head model 'anny', here it is '{other.name}'.*`method=direct`")


def test_expressions_beyond_the_training_are_counted(face):
    psi, jaw = np.zeros((4, 40), np.float32), np.zeros((4, 3), np.float32)
    known = trained(tiny(face), most=0.5)
    assert known.outside(psi, jaw) == 0
    psi[0, 3], psi[1, 3], jaw[2, 1] = 0.6, -0.7, 0.7
    assert known.outside(psi, jaw) == 0.5
