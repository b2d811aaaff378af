"""Folders of weights: whose they are, what may be done with them, and a hash that changes with what is painted with."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.tiny_wan import tiny_vae
from support.wan_film import portrait_folder, tiny_portrait, v2v_folder, vace_folder

from expportrait_cli.artifacts.files import sha256
from expportrait_cli.errors import WeightsError
from expportrait_cli.painting.wan.folder import save_folder
from expportrait_cli.painting.wan.manifest import read_manifest
from expportrait_cli.weights import catalogue as module
from expportrait_cli.weights.catalogue import kind_of, read_folder


@pytest.fixture
def memory(tmp_path, monkeypatch) -> Path:
    """Where hashes are remembered."""
    monkeypatch.setattr(module, "folders", lambda: (tmp_path / "cache",))
    return tmp_path / "cache" / ".hashes.json"


@pytest.mark.parametrize(
    ("make", "kind"), [(vace_folder, "wan-vace"), (v2v_folder, "wan-v2v"), (portrait_folder, "wan-portrait")]
)
def test_a_folder_is_known_and_may_be_moved(make, kind, memory, tmp_path):
    path = make(tmp_path)
    assert kind_of(path) == kind
    folder = read_folder(path, kind)
    assert folder.licence == "apache-2.0" and folder.row()["name"] == kind
    moved = shutil.copytree(path, tmp_path / "elsewhere" / "other name")
    assert read_folder(moved, kind).sha256 == folder.sha256
    (moved / "text_encoder").mkdir()
    (moved / "text_encoder" / "config.json").write_text("{}")
    assert read_folder(moved, kind).sha256 == folder.sha256


@pytest.mark.parametrize(
    "name", ["transformer/config.json", "vae/diffusion_pytorch_model.safetensors", "prompt_embeds.safetensors"]
)
def test_what_is_painted_with_is_in_the_hash(name, memory, tmp_path):
    path = vace_folder(tmp_path)
    before = read_folder(path, "wan-vace").sha256
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert read_folder(path, "wan-vace").sha256 != before


def test_an_autoencoder_that_lies_elsewhere_is_in_the_hash(memory, tmp_path):
    own = portrait_folder(tmp_path / "a")
    tiny_vae().save_pretrained(tmp_path / "vae")
    manifest = replace(read_manifest(own), vae=str(tmp_path / "vae"))
    path = save_folder(tiny_portrait(), tmp_path / "b", manifest)
    before = read_folder(path, "wan-portrait").sha256
    tiny_vae(1).save_pretrained(tmp_path / "vae")
    assert read_folder(path, "wan-portrait").sha256 != before


def test_files_are_hashed_once(memory, tmp_path, monkeypatch):
    path, hashed = vace_folder(tmp_path), []

    def counted(file: Path) -> str:
        hashed.append(file.name)
        return sha256(file)

    monkeypatch.setattr(module, "sha256", counted)
    first = read_folder(path, "wan-vace").sha256
    # Both parts have a config and weights; and there is the prompt.
    assert len(hashed) == 5 and len(json.loads(memory.read_text())) == 5
    assert read_folder(path, "wan-vace").sha256 == first and len(hashed) == 5
    memory.write_text("[")
    assert read_folder(path, "wan-vace").sha256 == first and len(hashed) == 10


def test_a_memory_that_cannot_be_written_costs_time_only(memory, tmp_path):
    memory.parent.write_text("a file where the folder should be")
    assert len(read_folder(vace_folder(tmp_path), "wan-vace").sha256) == 64


def test_folders_of_others_are_refused(memory, tmp_path):
    with pytest.raises(WeightsError, match=r"neither generator\.json nor"):
        kind_of(tmp_path)
    path = v2v_folder(tmp_path)
    config = path / "transformer" / "config.json"
    config.write_text(config.read_text().replace("WanTransformer3DModel", "FluxTransformer2DModel"))
    with pytest.raises(WeightsError, match="holds a FluxTransformer2DModel"):
        kind_of(path)
    (path / "README.md").unlink()
    assert "unknown" in read_folder(path, "wan-v2v").licence
    damaged = portrait_folder(tmp_path / "b")
    (damaged / "generator.json").write_text("{")
    with pytest.raises(WeightsError, match="is damaged"):
        read_folder(damaged, "wan-portrait")
