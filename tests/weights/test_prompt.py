"""Prompts as the text encoder says them, once, and as films read them; on an encoder of toy size."""

from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from support.tiny_wan import TEXT_DIM, text_encoder, tiny_scheduler, tiny_transformer, tiny_vae
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from expportrait_cli.cli import app
from expportrait_cli.errors import WeightsError
from expportrait_cli.painting.wan import prompts
from expportrait_cli.painting.wan.prompts import embedded, read_prompts
from expportrait_cli.weights import catalogue


@pytest.fixture
def encoder(tmp_path) -> Path:
    return text_encoder(tmp_path / "text")


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    """Where embedded prompts go."""
    for module in (prompts, catalogue):
        monkeypatch.setattr(module, "folders", lambda: (tmp_path / "kept",))
    return tmp_path / "kept"


def test_a_prompt_is_what_the_pipeline_would_make_of_it(encoder, kept, capsys):
    text = "a  person is\ntalking"
    assert app.run(["weights", "embed-prompt", text, "--encoder", str(encoder)]) == 0
    assert Path(capsys.readouterr().out.strip()).parent == kept / "prompts"
    pipeline = WanPipeline(
        tokenizer=PreTrainedTokenizerFast.from_pretrained(encoder / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(encoder / "text_encoder", dtype=torch.bfloat16),
        transformer=tiny_transformer(),
        vae=tiny_vae(),
        scheduler=tiny_scheduler(),
    )
    with torch.inference_mode():
        expected, _ = pipeline.encode_prompt(
            "a person is talking", do_classifier_free_guidance=False, max_sequence_length=512
        )
    asked = {"prompt": "a person is talking", "negative": "", "guided": False}
    found = read_prompts(kept, TEXT_DIM, **asked)
    assert found.positive.shape == (1, 512, TEXT_DIM) and torch.equal(found.positive, expected.float())
    assert len(embedded(text)) == 5 and found.negative is None
    with pytest.raises(WeightsError, match="expected at most 512x4096"):
        read_prompts(kept, 4096, **asked)


def test_without_a_prompt_no_film_is_made(encoder, kept, tmp_path):
    """Not with 512 vectors of zeros, which no Wan ever saw; the refusal names the command."""
    asked = {"prompt": "", "negative": "", "guided": True}
    with pytest.raises(WeightsError, match=r"has not been embedded\. .*`expportrait weights embed-prompt` once"):
        read_prompts(tmp_path, TEXT_DIM, **asked)
    assert app.run(["weights", "embed-prompt", "--encoder", str(encoder)]) == 0
    found = read_prompts(tmp_path, TEXT_DIM, **asked)
    assert not torch.equal(found.positive, found.against()) and found.positive.any() and found.against().any()
    # Another prompt needs the command again, with its words.
    with pytest.raises(WeightsError, match='embed-prompt "a cat"` once'):
        read_prompts(tmp_path, TEXT_DIM, prompt="a cat", negative="", guided=False)


def test_an_encoder_that_was_read_wrongly_is_refused(encoder, kept, monkeypatch, capsys):
    """As transformers 5.0 to 5.2 read it: the embeddings that are used are not those of the file."""
    read = UMT5EncoderModel.from_pretrained

    def wrong(*given, **options):
        model = read(*given, **options)
        model.encoder.embed_tokens = torch.nn.Embedding(12, TEXT_DIM, dtype=torch.bfloat16)
        torch.nn.init.zeros_(model.encoder.embed_tokens.weight)
        return model

    monkeypatch.setattr(UMT5EncoderModel, "from_pretrained", wrong)
    assert app.run(["weights", "embed-prompt", "a", "--encoder", str(encoder)]) == 4
    assert "reads the text encoder wrongly" in capsys.readouterr().err
    assert not list(kept.rglob("*.safetensors"))
