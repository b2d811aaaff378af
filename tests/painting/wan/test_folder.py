"""A generator's folder: what was saved is read back, and everything else is refused in one line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from support.tiny_wan import prompt_embeds, tiny_i2v_transformer, tiny_transformer, tiny_vae
from support.wan_tensors import film, random

from expportrait_cli.artifacts.files import atomic_folder
from expportrait_cli.errors import OutputError, WeightsError
from expportrait_cli.painting.wan import manifest as facts
from expportrait_cli.painting.wan.folder import check_place, is_lora, load_folder, load_vae, save_folder
from expportrait_cli.painting.wan.manifest import FrameRule, Manifest, Sampler, read_manifest
from expportrait_cli.painting.wan.portrait import WanPortrait

ORIGIN = {"repo": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "revision": "abc", "license": "apache-2.0"}


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "vae"
    tiny_vae().save_pretrained(folder)
    return folder


def made(base=None, **options) -> WanPortrait:
    """A generator whose every part matters."""
    torch.manual_seed(5)
    portrait = WanPortrait.from_base(base or tiny_transformer(), prompt_embeds(), **options)
    with torch.no_grad():
        for part in (portrait.transformer.patch_embedding, portrait.reference.layers[-1]):
            part.weight.add_(0.1 * torch.randn(part.weight.shape))
        portrait.blank.normal_()
    return portrait.requires_grad_(False)


@pytest.fixture
def folder(tmp_path, vae) -> Path:
    return save_folder(made(), tmp_path / "wan", Manifest("t2v", False, ORIGIN), vae=vae)


def edit(folder: Path, **values: object) -> None:
    path = folder / facts.FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("kind", ["t2v", "i2v", "hint"])
def test_a_saved_generator_is_the_same_generator(kind, tmp_path, vae):
    portrait = made(tiny_i2v_transformer()) if kind == "i2v" else made(has_hint=kind == "hint")
    manifest = Manifest(
        portrait.base,
        portrait.has_hint,
        ORIGIN,
        resolution=256,
        frame_rule=FrameRule(window=49),
        sampler=Sampler(steps=8, shift=5.0),
        train={"steps": 12, "data": ["cc0"]},
    )
    save_folder(portrait, tmp_path / "wan", manifest, vae=vae)
    found = load_folder(tmp_path / "wan")
    assert found.manifest == manifest and found.portrait.base == portrait.base
    given = film()
    hint = random(*given["latents"].shape, seed=6) if portrait.has_hint else None
    # Weights that lie elsewhere in memory may be summed in another order.
    assert torch.allclose(found.portrait(**given, hint=hint), portrait(**given, hint=hint), atol=1e-5)
    own, other = found.portrait.state_dict(), portrait.state_dict()
    assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)
    assert not any(p.requires_grad for p in found.portrait.parameters()) and not found.portrait.training
    assert torch.equal(found.vae().encoder.conv_in.weight, load_vae(vae).encoder.conv_in.weight)


def test_the_folder_says_what_it_holds(folder):
    content = json.loads((folder / "generator.json").read_text())
    assert (content["backend"], content["schema"], content["prediction"]) == ("wan-portrait", 1, "v")
    assert content["arch"] == {"base": "t2v", "hint": False} and content["base"] == ORIGIN
    assert "x right, y up, z to the viewer" in content["normals"]
    assert content["frame_rule"] == {"multiple": 4, "offset": 1, "window": 81, "overlap": 20}
    assert [(row["file"], row["dtype"]) for row in content["weights"]] == [
        ("condition_encoder/model.safetensors", "F32"),
        ("prompt_embeds.safetensors", "F32"),
        ("transformer/diffusion_pytorch_model.safetensors", "F32"),
        ("vae/diffusion_pytorch_model.safetensors", "F32"),
    ]
    assert json.loads((folder / "transformer" / "config.json").read_text())["in_channels"] == 36
    assert not list(folder.parent.glob(".*"))


def test_half_precision_keeps_the_norms(folder):
    portrait = load_folder(folder, dtype=torch.bfloat16).portrait
    block = portrait.transformer.blocks[0]
    assert block.attn1.to_q.weight.dtype == torch.bfloat16 and portrait.pose.layers[0].weight.dtype == torch.float32
    assert block.norm2.weight.dtype == block.scale_shift_table.dtype == torch.float32
    given = film()
    found, whole = portrait(**given), load_folder(folder).portrait(**given)
    assert found.dtype == torch.float32
    # 8 bits of mantissa through two blocks.
    assert (found - whole).abs().max() < 0.1 * whole.abs().max()


def test_a_lora_is_worked_in(tmp_path, vae):
    portrait, given = made(), film()
    before = portrait(**given)
    portrait.transformer.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "ffn.net.2"]))
    assert torch.equal(portrait(**given), before)
    with torch.no_grad():
        for name, parameter in portrait.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    folder = save_folder(portrait, tmp_path / "wan", Manifest("t2v", False, ORIGIN), vae=vae)
    plain = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert plain.keys() == made().transformer.state_dict().keys()
    found = load_folder(folder).portrait
    assert not is_lora(found.transformer)
    with torch.no_grad():
        assert (portrait(**given) - before).abs().max() > 0.01
        # The product of the LoRA is added to the weights, instead of to what they give.
        assert torch.allclose(found(**given), portrait(**given), atol=1e-4)


def test_a_lora_of_something_else_is_refused(folder):
    path = folder / facts.LORA
    name = "transformer.blocks.7.attn1.to_q"
    save_file({f"{name}.lora_A.weight": torch.zeros(4, 24), f"{name}.lora_B.weight": torch.zeros(24, 4)}, path)
    facts.write_manifest(folder, read_manifest(folder))
    with pytest.raises(WeightsError, match=r"pytorch_lora_weights\.safetensors (does not go with|holds nothing for)"):
        load_folder(folder)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "dataset"}, "is not the manifest of a wan-portrait generator"),
        ({"backend": "mini"}, "is not the manifest of a wan-portrait generator"),
        ({"schema": 2}, r"has schema 2, this tool reads 1\. Update the tool"),
        ({"schema": 0}, r"has schema 0, this tool reads 1\. Train one"),
        ({"normals": "world space"}, r"another convention \('world space'\), this tool makes 'camera space.*again"),
        ({"prediction": "epsilon"}, "it predicts 'epsilon', expected 'v'"),
        ({"arch": {}}, r"is damaged \('base'\)"),
        ({"frame_rule": {"window": 9, "colour": 1}}, "is damaged"),
        # The types that the tests check answer first, in their own words.
        ({"sampler": {"steps": "20"}}, "steps=20: expected a whole number from 1 to 1000|parameter 'step"),
        ({"sampler": {"steps": 0}}, "steps=0: expected a whole number from 1"),
        ({"sampler": {"guidance": -1.0}}, "guidance=-1.0: expected a number from 0"),
        ({"frame_rule": {"window": 0}}, "window=0: expected a whole number from 1"),
        ({"frame_rule": {"window": 5, "offset": 9}}, "its window of 5 frames is shorter than the offset of 9"),
        ({"resolution": -512}, "resolution=-512: expected"),
        ({"vae": "/etc"}, "its vae is '/etc', which is no folder of an autoencoder"),
        ({"vae": "../../vae"}, "which is no folder of an autoencoder"),
        ({"arch": {"base": "i2i", "hint": False}}, "is damaged"),
        ({"weights": [{}]}, "its list of weights"),
        ({"weights": None}, "its list of weights"),
    ],
)
def test_other_manifests_are_refused(values, said, folder):
    edit(folder, **values)
    with pytest.raises(WeightsError, match=said):
        load_folder(folder)


def test_a_folder_without_a_manifest_is_none(tmp_path, folder):
    with pytest.raises(WeightsError, match=r"is no generator: it has no generator\.json\. Train one"):
        load_folder(tmp_path / "none")
    (folder / facts.FILE).write_text("{")
    with pytest.raises(WeightsError, match=r"generator\.json is damaged"):
        load_folder(folder)


def test_other_weights_are_refused(folder):
    path = folder / "condition_encoder" / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "blank": tensors["blank"] + 1}, path)
    with pytest.raises(WeightsError, match=r"model\.safetensors is not the file that generator\.json lists: its sha"):
        load_folder(folder)
    path.unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors is missing"):
        load_folder(folder)


def test_a_file_that_was_added_is_refused(folder):
    shutil.copy(folder / facts.PROMPT, folder / "transformer" / "more.safetensors")
    with pytest.raises(WeightsError, match=r"more\.safetensors is not among the weights"):
        load_folder(folder)


def test_parts_of_two_generators_are_refused(folder, tmp_path, vae):
    other = save_folder(made(has_hint=True), tmp_path / "other", Manifest("t2v", True, ORIGIN), vae=vae)
    shutil.copytree(other / "transformer", folder / "transformer", dirs_exist_ok=True)
    facts.write_manifest(folder, read_manifest(folder))
    with pytest.raises(WeightsError, match="takes 52 channels, expected 36: the folder's parts are not of one"):
        load_folder(folder)
    shutil.copytree(other / "transformer", folder / "vae", dirs_exist_ok=True)
    with pytest.raises(WeightsError, match="holds no Wan autoencoder"):
        load_vae(folder / "none")
    save_file({"x": torch.zeros(1)}, folder / "condition_encoder" / "model.safetensors")
    facts.write_manifest(folder, replace(read_manifest(folder), has_hint=True))
    with pytest.raises(WeightsError, match="condition_encoder is damaged: it holds other encoders"):
        load_folder(folder)


def test_pickled_weights_are_not_read(folder):
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    facts.write_manifest(folder, read_manifest(folder))
    with pytest.raises(WeightsError, match="holds no Wan transformer of diffusers in safetensors files"):
        load_folder(folder)


def test_only_a_generator_gives_way_to_one(folder, tmp_path):
    """Nor is one lost when writing the next fails."""
    before = (folder / facts.FILE).read_bytes()
    with pytest.raises(KeyboardInterrupt), atomic_folder(folder) as partial:
        (partial / "half").write_text("x")
        raise KeyboardInterrupt
    assert (folder / facts.FILE).read_bytes() == before and not list(tmp_path.glob(".*"))
    with atomic_folder(folder) as partial:
        (partial / "whole").write_text("x")
    assert [path.name for path in folder.iterdir()] == ["whole"] and not list(tmp_path.glob(".*"))
    with pytest.raises(OutputError, match="exists and is no generator's folder"):
        check_place(folder)


def test_an_autoencoder_may_lie_elsewhere(tmp_path, vae):
    manifest = Manifest("t2v", False, ORIGIN, vae=str(vae))
    folder = save_folder(made(), tmp_path / "wan", manifest)
    assert not (folder / "vae").exists()
    assert load_folder(folder).vae().config["z_dim"] == 16
