"""The catalogue, and the two commands that read it."""

import json

import pytest
from support.places import ROOT

from expportrait_cli.cli import app
from expportrait_cli.weights import catalogue

FOLDER = ROOT / "weights"


def test_every_file_of_weights_is_in_the_catalogue():
    listed = {
        weight.file for weight in catalogue.catalogue() if not (weight.package or weight.downloads or weight.form)
    }
    shipped = {
        path.name for path in FOLDER.iterdir() if path.suffix in (".npz", ".safetensors", ".onnx", ".task", ".tflite")
    }
    assert shipped == listed


@pytest.mark.parametrize("weight", catalogue.catalogue(), ids=lambda weight: weight.name)
def test_the_hash_fits(weight):
    state = catalogue.state(weight)
    assert state == "ok" or (state == "missing" and weight.optional)


def test_names_are_unique_and_licences_are_named():
    names = [weight.name for weight in catalogue.catalogue()]
    assert len(set(names)) == len(names)
    assert all(weight.licence and weight.source and weight.needed_by for weight in catalogue.catalogue())


def test_list_is_json_on_request(capsys):
    assert app.run(["weights", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} == {weight.name for weight in catalogue.catalogue()}


def test_verify_ends_with_4_when_a_file_is_wrong(monkeypatch, capsys, tmp_path):
    own = catalogue.Weight("mine", "mine.npz", "here", "0" * 64, "CC0-1.0", ("track",))
    (tmp_path / "mine.npz").write_bytes(b"other")
    monkeypatch.setenv("EXPPORTRAIT_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(catalogue, "catalogue", lambda: (own,))
    assert app.run(["weights", "verify"]) == 4
    out, err = capsys.readouterr()
    assert out == "wrong    mine\n"
    assert err.count("\n") == 1 and "mine is wrong" in err
    (tmp_path / "mine.npz").unlink()
    assert app.run(["weights", "verify"]) == 4
    assert "mine is missing" in capsys.readouterr().err


def test_a_missing_file_is_named(monkeypatch):
    monkeypatch.setattr(catalogue, "folders", lambda: ())
    with pytest.raises(catalogue.WeightsError, match=r"nothing\.npz"):
        catalogue.weights_file("nothing.npz")


def test_what_the_wheel_leaves_out_is_taken_from_a_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(catalogue, "folders", lambda: (tmp_path / "wheel", tmp_path / "cache"))
    mini = next(weight for weight in catalogue.catalogue() if weight.name == "mini")
    with pytest.raises(catalogue.WeightsError) as caught:
        catalogue.found_file(mini)
    assert str(caught.value) == (
        f"mini.safetensors is missing. It is not in the wheel: copy it from the folder `weights` of a checkout to "
        f"{tmp_path / 'cache'}."
    )
