"""What a generator is trained from: found on this machine, or refused; what its text encoder says of the prompt."""

from pathlib import Path

import pytest
import torch
from support.tiny_wan import TEXT_DIM, base_folder, prompt_embeds, tiny_transformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from expportrait_cli.errors import WeightsError
from expportrait_cli.painting.wan import base as module
from expportrait_cli.painting.wan.base import find_base, fresh_portrait
from expportrait_cli.painting.wan.folder import save_folder
from expportrait_cli.painting.wan.manifest import Manifest
from expportrait_cli.painting.wan.prompts import PROMPT_TEXT
from expportrait_cli.weights.catalogue import licence_of


def add_text_encoder(folder: Path) -> Path:
    """A toy umT5 instead of what it said: a word is a token, and a full stop ends the prompt."""
    words = {word: k for k, word in enumerate(["<pad>", "</s>", "<unk>", *dict.fromkeys(PROMPT_TEXT.lower().split())])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = UMT5Config(vocab_size=len(words), d_model=TEXT_DIM, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    (folder / "prompt_embeds.safetensors").unlink()
    return folder


def test_a_published_folder_is_a_base(tmp_path):
    base = find_base(str(base_folder(tmp_path / "wan")))
    assert base.origin == {"repo": "wan", "revision": "", "license": "apache-2.0"}
    assert base.vae == tmp_path / "wan" / "vae" and not base.is_generator
    torch.manual_seed(3)
    portrait = fresh_portrait(base)
    assert portrait.transformer.config["in_channels"] == 36
    assert torch.equal(portrait.prompt, prompt_embeds())
    torch.manual_seed(3)
    again = fresh_portrait(base).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in portrait.state_dict().items())


def test_a_generator_is_a_base_of_the_next(tmp_path):
    base = find_base(str(base_folder(tmp_path / "wan")))
    portrait = fresh_portrait(base)
    with torch.no_grad():
        portrait.transformer.patch_embedding.weight[:, 16:] = 1
    folder = save_folder(portrait, tmp_path / "first", Manifest("t2v", False, {"repo": "a/b"}), vae=base.vae)
    second = find_base(str(folder))
    assert second.is_generator and second.origin == {"repo": "a/b"} and second.vae == folder / "vae"
    found = fresh_portrait(second)
    assert found.transformer.patch_embedding.weight[:, 16:].min() == 1
    assert all(parameter.requires_grad for parameter in found.parameters())


def test_a_name_is_looked_for_in_the_cache_alone(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        WeightsError, match=r"a/b is no folder.*not in Hugging Face's cache.*`expportrait weights fetch"
    ):
        find_base("a/b")
    with pytest.raises(WeightsError, match="is no folder"):
        find_base("such a name/is/none")


def test_the_name_of_fetched_weights_is_a_base(tmp_path, monkeypatch):
    folder = base_folder(tmp_path / "wan-t2v-1.3b")
    monkeypatch.setenv("EXPPORTRAIT_WEIGHTS", str(tmp_path))
    assert find_base("wan-t2v-1.3b").folder == folder


def test_other_folders_are_no_base(tmp_path):
    with pytest.raises(WeightsError, match=r"has no transformer/config\.json: expected a Wan"):
        find_base(str(tmp_path))
    folder = base_folder(tmp_path / "wan", tiny_transformer(in_channels=48))
    with pytest.raises(WeightsError, match="has 48 input"):
        fresh_portrait(find_base(str(folder)))
    (folder / "prompt_embeds.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"has not been embedded\. .*`expportrait weights embed-prompt` once"):
        fresh_portrait(find_base(str(folder)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("---\nlicense: apache-2.0\ntags:\n- x\n---\n# Wan", "apache-2.0"),
        ("---\ntags: x\n---\nlicense: mit\n", "unknown"),
        ("no header", "unknown"),
    ],
)
def test_the_licence_is_the_pages(text, said, tmp_path):
    (tmp_path / "README.md").write_text(text)
    assert licence_of(tmp_path) == said
    assert licence_of(tmp_path / "none") == "unknown"


def test_the_text_encoder_is_asked_where_there_is_no_file(tmp_path):
    """One row a token, the end among them, and none for padding; the same as without padding."""
    folder = add_text_encoder(base_folder(tmp_path / "wan"))
    found = module.prompt_embeds(folder)
    count = len(PROMPT_TEXT.split())
    assert found.shape == (count + 1, TEXT_DIM) and found.dtype == torch.float32
    encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.bfloat16)
    tokens = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")(PROMPT_TEXT, return_tensors="pt")
    with torch.inference_mode():
        alone = encoder(tokens["input_ids"]).last_hidden_state[0].float()
    # bfloat16 has 8 bits.
    assert torch.allclose(found, alone, atol=0.05) and found.std() > 0.1


def test_another_text_encoder_is_refused(tmp_path):
    folder = add_text_encoder(base_folder(tmp_path / "wan"))
    (folder / "text_encoder" / "model.safetensors").write_bytes(b"none")
    with pytest.raises(WeightsError, match="holds no umT5 text encoder in safetensors files"):
        module.prompt_embeds(folder)
