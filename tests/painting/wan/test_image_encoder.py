"""Image tokens: CLIP's own of the photo, the same in training and in painting, and none where there is no CLIP."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.balls import ball_entry
from support.tiny_wan import (
    IMAGE_DIM,
    IMAGE_TOKENS,
    add_image_encoder,
    base_folder,
    tiny_i2v_transformer,
    tiny_transformer,
)
from support.wan_film import sketches_of, still, vae, woken
from transformers import CLIPImageProcessor, CLIPVisionModel

from expportrait_cli.errors import WeightsError
from expportrait_cli.painting.wan.base import find_base, fresh_portrait
from expportrait_cli.painting.wan.encoders import ImageEncoder, find_image_encoder, fitted
from expportrait_cli.painting.wan.film import Conditions
from expportrait_cli.painting.wan.folder import load_folder, save_folder
from expportrait_cli.painting.wan.manifest import Manifest
from expportrait_cli.painting.wan.portrait import WanPortrait
from expportrait_cli.painting.wan.portrait_model import PortraitModel
from expportrait_cli.painting.wan.vae import Encoding, pixels
from expportrait_cli.painting.wan.windows import chunks
from expportrait_cli.train.config import GeneratorTask, GeneratorTraining
from expportrait_cli.train.generator.examples import Example, Examples
from expportrait_cli.train.generator.loop import set_free

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return add_image_encoder(base_folder(tmp_path_factory.mktemp("i2v") / "wan", tiny_i2v_transformer()))


def picture(seed: int, height: int = 40, width: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(40, 40), (512, 512), (300, 201), (41, 90)])
def test_pictures_are_fitted_as_the_library_does(shape):
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    wanted = processor(images=picture(0, *shape), return_tensors="pt")["pixel_values"]
    assert torch.allclose(fitted(picture(0, *shape), 32), wanted, atol=1e-4)


def test_tokens_are_those_of_the_last_layer_but_one(base, capsys):
    encoder = ImageEncoder(base / "image_encoder")
    one, two = encoder.tokens(picture(1)), encoder.tokens(picture(2))
    assert one.shape == (1, IMAGE_TOKENS, IMAGE_DIM) and (one - two).abs().mean() > 0.1
    assert not capsys.readouterr().err
    model = CLIPVisionModel.from_pretrained(base / "image_encoder").eval()
    with torch.no_grad():
        layers = model(pixel_values=fitted(picture(1), 32), output_hidden_states=True).hidden_states
    assert len(layers) == 4 and torch.allclose(one, layers[2], atol=1e-5)


def test_who_reads_no_tokens_gets_none(base, tmp_path):
    assert find_image_encoder(base) == base / "image_encoder" == find_base(str(base)).image_encoder
    assert fresh_portrait(find_base(str(base))).image_encoder == base / "image_encoder"
    assert find_image_encoder(add_image_encoder(base_folder(tmp_path / "t2v", tiny_transformer()))) is None
    assert find_image_encoder(base_folder(tmp_path / "bare", tiny_i2v_transformer())) is None


def test_other_encoders_are_refused(tmp_path):
    folder = add_image_encoder(base_folder(tmp_path / "wan", tiny_i2v_transformer()), width=24)
    with pytest.raises(WeightsError, match=r"gives tokens of 24 numbers, and the transformer reads 20"):
        find_base(str(folder)).image_encoder  # noqa: B018
    (folder / "image_encoder" / "model.safetensors").write_bytes(b"none")
    with pytest.raises(WeightsError, match="holds no CLIP vision model in safetensors files"):
        ImageEncoder(folder / "image_encoder").tokens(picture(0))
    (folder / "image_encoder" / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json cannot be read"):
        find_image_encoder(folder)


def generator(base: Path, folder: Path, *, has_hint: bool) -> WanPortrait:
    """Saved and loaded: every part of it matters."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        portrait = woken(fresh_portrait(find_base(str(base)), has_hint=has_hint))
    save_folder(portrait, folder, Manifest("i2v", has_hint, {}), vae=base / "vae")
    return load_folder(folder).portrait


def test_a_generator_keeps_its_encoder(base, tmp_path):
    portrait = generator(base, tmp_path / "out", has_hint=False)
    assert portrait.image_encoder == tmp_path / "out" / "image_encoder"
    rows = json.loads((tmp_path / "out" / "generator.json").read_text())["weights"]
    assert "image_encoder/model.safetensors" in [row["file"] for row in rows]
    assert not [name for name in portrait.state_dict() if "vision" in name]
    own = {name: ImageEncoder(folder).tokens(picture(3)) for name, folder in (
        ("base", base / "image_encoder"), ("copy", tmp_path / "out" / "image_encoder"))}  # fmt: skip
    assert torch.equal(own["base"], own["copy"])
    second = save_folder(
        fresh_portrait(find_base(str(tmp_path / "out"))), tmp_path / "second", Manifest("i2v", False, {})
    )
    assert find_image_encoder(second) is not None
    shutil.rmtree(tmp_path / "out" / "image_encoder")
    with pytest.raises(WeightsError, match=r"image_encoder/model\.safetensors is missing"):
        load_folder(tmp_path / "out")


@pytest.mark.parametrize("has_hint", [False, True])
def test_painting_tells_what_training_told(base, has_hint, tmp_path):
    """Normals, photo, hint and image tokens of the same film give the same velocity, to the last bits."""
    portrait = generator(base, tmp_path / "out", has_hint=has_hint)
    own, photo, frames = vae(), still(), list(sketches_of(9)(0))
    hint = Encoding(own)
    pushed = [hint.push(pixels([f.proxy for f in frames[a:b]])) for a, b in ((0, 1), (1, 5), (5, 9))]
    random = torch.Generator().manual_seed(0)
    assert portrait.image_encoder is not None
    example = Example(
        film=torch.randn(1, 16, 3, 4, 4, generator=random),
        normals=torch.from_numpy(np.stack([f.normals for f in frames])).permute(3, 0, 1, 2)[None],
        lead=0,
        photo=own.encode(pixels([photo.photo])),
        still=torch.from_numpy(photo.normals).permute(2, 0, 1)[None],
        noise=torch.randn(1, 16, 3, 4, 4, generator=random),
        sigma=0.7,
        hint=torch.cat(pushed, 2) if has_hint else None,
        tokens=ImageEncoder(portrait.image_encoder).tokens(photo.photo),
    )
    told = portrait(example.noisy(), **example.conditions(torch.device("cpu")))
    painter = PortraitModel(portrait, own, photo)
    control = Conditions.joined(list(painter.controls(chunks(iter(frames), first=0, count=9), 0))).control
    painted = painter.velocity(control)(example.noisy(), 0.7)
    assert torch.allclose(painted, told, atol=1e-5)
    blind = portrait(example.noisy(), **{**example.conditions(torch.device("cpu")), "image_embeds": None})
    assert (blind - told).abs().max() > 1e-3
    untold = painter.unconditional(control)(example.noisy(), 0.7)
    dropped = {**example.conditions(torch.device("cpu")), "drop_control": torch.tensor([True])}
    assert torch.allclose(untold, portrait(example.noisy(), **dropped), atol=1e-5)


def test_without_the_photo_there_are_no_tokens(base, tmp_path):
    portrait = generator(base, tmp_path / "out", has_hint=False)
    entry = ball_entry(tmp_path, "one", 0, 9, side=32)
    example = Examples([entry], GeneratorTask(), frames=5, seed=0).example(0)
    told = {**example.conditions(torch.device("cpu")), "drop_reference": torch.tensor([True])}

    def seen(tokens: torch.Tensor) -> torch.Tensor:
        return portrait(example.noisy(), **{**told, "image_embeds": tokens})

    tokens = torch.randn(1, IMAGE_TOKENS, IMAGE_DIM, generator=torch.Generator().manual_seed(0))
    assert torch.equal(seen(tokens), seen(2 * tokens))
    told["drop_reference"] = torch.tensor([False])
    assert not torch.equal(seen(tokens), seen(2 * tokens))


def test_an_example_has_the_tokens_of_its_photo(tmp_path):
    entry = ball_entry(tmp_path, "one", 0, 17)
    tensors = load_file(entry.latents)
    count = len(tensors["rows"])
    tensors["tokens"] = torch.arange(count).half()[:, None, None].expand(-1, 3, 2).contiguous()
    tensors["hints"] = torch.arange(count).half()[:, None, None, None, None] + torch.zeros_like(tensors["film"])
    tensors["hints"] += torch.arange(5).half()[:, None, None] / 8
    save_file(tensors, entry.latents)
    examples, found = Examples([entry], GeneratorTask(), frames=9, seed=0), entry.read()
    shown = [examples.example(number) for number in range(20)]
    taken = set()
    for example in shown:
        assert example.tokens is not None and example.hint is not None
        photo = int(example.tokens[0, 0, 0])
        taken.add(photo)
        assert torch.equal(example.photo[0, :, 0], found.photos[photo])
        size = example.film.shape[2]
        begin = next(t for t in range(5) if torch.equal(example.film[0], found.film[:, t : t + size]))
        assert torch.equal(example.hint[0], found.hints[photo, :, begin : begin + size])
    assert len(taken) == count > 1


@pytest.mark.parametrize("lora", [0, 2])
def test_what_reads_tokens_learns_where_there_are_any(base, lora):
    portrait = fresh_portrait(find_base(str(base)))
    set_free(portrait, GeneratorTraining(lora=lora), GeneratorTask())
    names = {n for n, p in portrait.named_parameters() if p.requires_grad and ("image_embedder" in n or "add_" in n)}
    assert bool(names) != bool(lora)
    portrait.image_encoder = None
    set_free(portrait, GeneratorTraining(), GeneratorTask())
    assert not [n for n, p in portrait.named_parameters() if p.requires_grad and "image_embedder" in n]
