"""`weights convert`: a file in Wan's own names becomes a base to train from; or one line of error, and nothing else."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_wan import add_image_encoder, base_folder, tiny_i2v_transformer, tiny_transformer, tiny_vae
from support.wan_tensors import original_name
from torch import nn

from expportrait_cli.cli import app
from expportrait_cli.errors import OutputError, WeightsError
from expportrait_cli.painting.wan.base import convert, find_base, fresh_portrait
from expportrait_cli.painting.wan.folder import load_transformer, load_vae

pytestmark = pytest.mark.slow


def original(path: Path, model: nn.Module, **more: torch.Tensor) -> Path:
    tensors = {original_name(name): value.contiguous() for name, value in model.state_dict().items()}
    save_file({**tensors, **more}, path)
    return path


@pytest.fixture
def file(tmp_path) -> Path:
    """With heads of 128 channels, as all that were published."""
    return original(tmp_path / "wan.safetensors", tiny_transformer(3, head_dim=128, layers=1))


@pytest.fixture
def parts(tmp_path) -> Path:
    return base_folder(tmp_path / "parts")


def test_a_file_becomes_a_base(file, parts, tmp_path, capsys):
    out = tmp_path / "base"
    assert app.run(["weights", "convert", str(file), "-o", str(out), "--parts", str(parts), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {
        "output": str(out),
        "base": "t2v",
        "layers": 1,
        "parts": ["prompt_embeds", "transformer", "vae"],
    }
    model = tiny_transformer(3, head_dim=128, layers=1)
    found = load_transformer(out / "transformer")
    for name in ("num_attention_heads", "attention_head_dim", "in_channels", "ffn_dim", "num_layers", "image_dim"):
        assert found.config[name] == model.config[name]
    own = model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in found.state_dict().items())
    assert torch.equal(load_vae(out / "vae").encoder.conv_in.weight, tiny_vae().encoder.conv_in.weight)
    portrait = fresh_portrait(find_base(str(out)))
    assert torch.equal(portrait.transformer.blocks[0].attn1.to_q.weight, own["blocks.0.attn1.to_q.weight"])
    assert portrait.prompt.shape == (7, 32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "parts", "wan.safetensors"]


def test_the_transformer_alone_is_said_to_be_alone(file, tmp_path, capsys):
    out = tmp_path / "base"
    assert app.run(["weights", "convert", str(file), "-o", str(out)]) == 0
    printed, err = capsys.readouterr()
    assert printed == f"{out}\n" and "holds the transformer alone" in err and "--parts" in err
    assert [path.name for path in out.iterdir()] == ["transformer"]


def test_half_precision_stays(tmp_path, parts):
    path = original(tmp_path / "wan.safetensors", tiny_transformer().to(torch.bfloat16))
    convert(path, tmp_path / "base", find_base(str(parts)), head_dim=12)
    tensors = load_file(tmp_path / "base" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}


def test_an_i2v_keeps_the_image_encoder(tmp_path):
    parts = add_image_encoder(base_folder(tmp_path / "parts", tiny_i2v_transformer(1)))
    path = original(tmp_path / "wan.safetensors", tiny_i2v_transformer(2))
    summary = convert(path, tmp_path / "base", find_base(str(parts)), head_dim=12)
    assert summary["base"] == "i2v" and "image_encoder" in summary["parts"]
    assert find_base(str(tmp_path / "base")).image_encoder == tmp_path / "base" / "image_encoder"


def said(capsys, *words: object) -> str:
    assert app.run(["weights", "convert", *(str(word) for word in words)]) in (2, 3, 4)
    printed, err = capsys.readouterr()
    assert not printed and len(err.strip().splitlines()) == 1
    return err


def test_other_files_are_refused_in_one_line(file, parts, tmp_path, capsys):
    out, bad = tmp_path / "base", tmp_path / "bad.safetensors"
    own = load_file(file)
    assert "can hold code" in said(capsys, tmp_path / "wan.pth", "-o", out)
    assert "cannot be read as safetensors" in said(capsys, tmp_path / "none.safetensors", "-o", out)
    bad.write_bytes(b"garbage")
    assert "cannot be read as safetensors" in said(capsys, bad, "-o", out)
    for changed in (
        {"x": torch.zeros(2)},
        {"patch_embedding.weight": torch.zeros(2)},
        {"patch_embedding.weight": torch.zeros(24, 16, 1, 2, 2), "head.head.weight": torch.zeros(64, 24)},
        {name: value for name, value in own.items() if "blocks.0.ffn.2" not in name},
        {**own, "blocks.0.ffn.0.scale_weight": torch.zeros(1)},
        {**own, "blocks.0.ffn.2.weight": torch.zeros(3, 3)},
    ):
        save_file(changed, bad)
        assert "holds no Wan transformer that this tool knows" in said(capsys, bad, "-o", out)
    save_file({**own, "vace_blocks.0.before_proj.weight": torch.zeros(2)}, bad)
    assert "a Wan of another kind" in said(capsys, bad, "-o", out)
    original(bad, tiny_transformer(in_channels=48, layers=1, head_dim=128))
    assert "has 48 input and 16 output channels; expected Wan 2.1 T2V" in said(capsys, bad, "-o", out)
    save_file({**own, "blocks.0.ffn.2.weight": own["blocks.0.ffn.2.weight"].to(torch.float8_e4m3fn)}, bad)
    assert "holds numbers of float8_e4m3fn, expected float32" in said(capsys, bad, "-o", out)
    assert "has no transformer/config.json" in said(capsys, file, "-o", out, "--parts", tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name not in (file.name, parts.name, bad.name)]


def test_nothing_is_left_of_what_does_not_go_together(file, parts, tmp_path):
    """And nothing is written over."""
    save_file({"prompt_embeds": torch.zeros(3, 8)}, parts / "prompt_embeds.safetensors")
    with pytest.raises(WeightsError, match="is 8 numbers a token, and the transformer reads 32"):
        convert(file, tmp_path / "base", find_base(str(parts)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "wan.safetensors"]
    before = sorted(parts.rglob("*"))
    with pytest.raises(OutputError, match="exists and is not empty"):
        convert(file, parts, None)
    assert sorted(parts.rglob("*")) == before
