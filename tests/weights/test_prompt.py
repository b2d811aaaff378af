"""The script that writes the prompt's file, on a text encoder of toy size."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file
from support.places import ROOT
from support.tiny_wan import TEXT_DIM, tiny_scheduler, tiny_transformer, tiny_vae
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from expportrait_cli.errors import WeightsError
from expportrait_cli.painting.wan.painters import read_prompt

SCRIPT = ROOT / "weights" / "make_prompt_embeds.py"
WORDS = ["<pad>", "</s>", "<unk>", "a", "person", "is", "talking"]


@pytest.fixture
def encoder(tmp_path) -> Path:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    words.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(tmp_path / "text" / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = UMT5Config(vocab_size=7, d_model=TEXT_DIM, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        UMT5EncoderModel(config).save_pretrained(tmp_path / "text" / "text_encoder")
    return tmp_path / "text"


def test_it_writes_what_the_pipeline_would_make_of_the_prompt(encoder, tmp_path, monkeypatch, capsys):
    prompt = "a  person is\ntalking"
    monkeypatch.setattr(sys, "argv", ["make", str(tmp_path), "--encoder", str(encoder), "--prompt", prompt])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert f"({len(prompt.split()) + 1}, {TEXT_DIM})" in capsys.readouterr().out
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
    found = read_prompt(tmp_path, TEXT_DIM)
    assert found.shape == (1, 512, TEXT_DIM) and torch.equal(found, expected.float())
    assert len(load_file(tmp_path / "prompt_embeds.safetensors")["prompt_embeds"]) == 5


def test_another_encoders_prompt_is_refused_and_none_is_padding(encoder, tmp_path, monkeypatch, caplog):
    assert not read_prompt(tmp_path, TEXT_DIM).any() and "paints without a prompt" in caplog.text
    monkeypatch.setattr(sys, "argv", ["make", str(tmp_path), "--encoder", str(encoder)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    with pytest.raises(WeightsError, match="expected at most 512x4096"):
        read_prompt(tmp_path, 4096)
